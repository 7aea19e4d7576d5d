"""VaDE: a variational autoencoder whose prior is a mixture, without any word on what clusters are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unbraid.model.base import ClusteringModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._networks import Networks


class VaDE(ClusteringModel):
    r"""Variational deep embedding (Jiang et al., IJCAI 2017).

    The prior of the code is a mixture of normals with weights :math:`\pi`, means and scales of its own, the posterior
    :math:`q(z, c \mid x) = q(z \mid x)\, p(c \mid z)`, and the loss minus the evidence bound

    .. math::
        \mathcal L = -\mathbb E_{q(z \mid x)} \sum_m \log p(x_m \mid z)
        + \mathrm{KL}\big(q(z, c \mid x) \,\|\, \pi_c\, \mathcal N(z \mid \mu_c, \sigma_c^2)\big)

    with :math:`p(c \mid z)` at one sample of z. Clusters are whatever tells cells apart most: pairs of cells are not
    used, see :class:`DCGMM`.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`; one modality is enough.
    n_shared
        Dimensions of the code.
    n_clusters
        Number of clusters.
    encoders, decoders
        ``"mlp"``, ``"resnet"``, ``"text"``, a :class:`torch.nn.Module`, or one of them per modality.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all deep clustering models: see :class:`~unbraid.model.base.ClusteringModel`.

    Notes
    -----
    The paper pretrains stacked autoencoders and lets the learning rate fall by steps; here one autoencoder is trained at
    once. The comparison in the DL2 paper runs it without (``pretrain=False``).

    References
    ----------
    Jiang et al. Variational deep embedding: an unsupervised and generative approach to clustering. IJCAI 2017.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.VaDE.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.VaDE(mdata, n_clusters=8)
    >>> model.train()
    >>> mdata.obs["cluster"] = model.predict_cluster()
    """

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 10,
        n_clusters: int = 10,
        encoders: Networks = "mlp",
        decoders: Networks = "mlp",
        *,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        self.module = self._build_module(
            n_shared,
            n_clusters,
            encoders=encoders,
            decoders=decoders,
            clusters="mixture",
            weights={"reconstruction": 1.0, "divergence": 1.0},
            **options,
        )
        self._finish(locals())
