"""DC-GMM: VaDE with pairs of cells that say which clusters are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unbraid.model.base import ClusteringModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._networks import Networks


class DCGMM(ClusteringModel):
    r"""Deep conditional Gaussian mixture model (Manduchi et al., NeurIPS 2021).

    The loss of :class:`VaDE` with equal weights of the clusters, and a prior under which linked cells have the same
    cluster and cells that cannot be linked have not:

    .. math::
        \mathcal L = \mathcal L_{\mathrm{VaDE}}
        - \alpha \sum_c \Big[ \operatorname*{mean}_{(i, j)\ \text{must}} p(c \mid z_i)\, p(c \mid z_j)
        - \operatorname*{mean}_{(i, j)\ \text{cannot}} p(c \mid z_i)\, p(c \mid z_j) \Big] .

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata` with a ``pairs_key``; one modality is enough.
    n_shared
        Dimensions of the code.
    n_clusters
        Number of clusters.
    encoders, decoders
        ``"mlp"``, ``"resnet"``, ``"text"``, a :class:`torch.nn.Module`, or one of them per modality.
    alpha
        How sure the pairs are. As published it leaves the evidence little weight.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all deep clustering models: see :class:`~unbraid.model.base.ClusteringModel`.

    Raises
    ------
    ValueError
        If ``alpha`` is negative.

    Notes
    -----
    The released code takes pairs from a batch that holds both of their cells and averages over its cells. Here every
    batch has pairs beside it, and the mean is over those of each kind, so that the more numerous do not outvote the
    others. Without pairs this is VaDE with equal clusters. Probabilities that are sure have hardly a gradient: where the
    mixture begins along a factor that is not wanted, hundreds of steps may pass before pairs turn it.

    References
    ----------
    Manduchi et al. Deep conditional Gaussian mixture model for constrained clustering. NeurIPS 2021.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.pp.pairs_from_labels(mdata, "cell_type")
    >>> ub.model.DCGMM.setup_mudata(mdata, batch_key="batch", pairs_key="pairs")
    >>> model = ub.model.DCGMM(mdata, n_clusters=8)
    >>> model.train()
    >>> mdata.obs["cluster"] = model.predict_cluster()
    """

    _takes_pairs = True

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 10,
        n_clusters: int = 10,
        encoders: Networks = "mlp",
        decoders: Networks = "mlp",
        *,
        alpha: float = 1e4,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        self._check_weights(alpha=alpha)
        self.module = self._build_module(
            n_shared,
            n_clusters,
            encoders=encoders,
            decoders=decoders,
            clusters="mixture",
            learn_cluster_weights=False,
            links="probability",
            weights={"reconstruction": 1.0, "divergence": 1.0, "must_link": alpha, "cannot_link": alpha},
            **options,
        )
        self._finish(locals())
