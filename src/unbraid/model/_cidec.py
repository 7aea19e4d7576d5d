"""C-IDEC: deep embedded clustering, with the probabilities of pairs of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unbraid.model.base import ClusteringModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._networks import Networks


class CIDEC(ClusteringModel):
    r"""Constrained improved deep embedded clustering (Zhang, Basu and Davidson, ECML 2019).

    As in IDEC, assignments q by Student's t kernel are drawn to a target p that is surer of itself, beside the
    reconstruction; linked cells shall have the same cluster and cells that cannot be linked shall not:

    .. math::
        \mathcal L = \mathcal L_{\mathrm{rec}} + \gamma\, \mathrm{KL}(p \,\|\, q)
        - \lambda_{\mathrm{ML}} \operatorname*{mean}_{\text{must}} \log \sum_c q_{ic} q_{jc}
        - \lambda_{\mathrm{CL}} \operatorname*{mean}_{\text{cannot}} \log \Big(1 - \sum_c q_{ic} q_{jc}\Big) .

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
    clustering_weight
        :math:`\gamma`.
    must_link_weight, cannot_link_weight
        :math:`\lambda_{\mathrm{ML}}` and :math:`\lambda_{\mathrm{CL}}`.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all deep clustering models: see :class:`~unbraid.model.base.ClusteringModel`.

    Raises
    ------
    ValueError
        If a weight is negative.

    Notes
    -----
    On a simulation with two shared factors it merges classes at two seeds of three, where
    :func:`~unbraid.tl.relevant_components` and k-means do not; of wrong pairs one seed is on the reproduction page.

    The released code has the kernel's exponent wrong, see :func:`~unbraid.objectives.student_t_assignment`, and goes
    through the pairs in passes of their own after those through the cells; here both are in every step. The target is
    that of the cells of a batch, computed at every step; the paper computes it of all cells, once per epoch.

    References
    ----------
    Zhang, Basu and Davidson. A framework for deep constrained clustering: algorithms and advances. ECML PKDD
    2019.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.pp.pairs_from_labels(mdata, "cell_type")
    >>> ub.model.CIDEC.setup_mudata(mdata, batch_key="batch", pairs_key="pairs")
    >>> model = ub.model.CIDEC(mdata, n_clusters=8)
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
        clustering_weight: float = 0.1,
        must_link_weight: float = 0.1,
        cannot_link_weight: float = 1.0,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        terms = {"clustering": clustering_weight, "must_link": must_link_weight, "cannot_link": cannot_link_weight}
        self._check_weights(**{f"{name}_weight": weight for name, weight in terms.items()})
        self.module = self._build_module(
            n_shared,
            n_clusters,
            encoders=encoders,
            decoders=decoders,
            clusters="student_t",
            links="log_probability",
            weights={"reconstruction": 1.0, **terms},
            **options,
        )
        self._finish(locals())
