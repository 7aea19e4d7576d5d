"""VolMaxDCC: clusters from pairs of cells alone, some of which may be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from unbraid.data import read_pairs
from unbraid.model.base import ClusteringModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._networks import Networks


class VolMaxDCC(ClusteringModel):
    r"""Deep constrained clustering with a volume regulariser (Nguyen, Ibrahim and Fu, ICML 2023).

    A network gives probabilities of the clusters, :math:`f(x) = \operatorname{softmax}(\cdot)`, and a learned matrix
    :math:`B \in (0, 1)^{K \times K}` how likely annotators link cells of two clusters, who may be wrong:

    .. math::
        \mathcal L = -\operatorname*{mean}_{\text{must}} \log f_i^\top B f_j
        - \operatorname*{mean}_{\text{cannot}} \log\big(1 - f_i^\top B f_j\big)
        - \lambda \log \det\Big(\frac1n F^\top F + 10^{-5} I\Big) .

    The volume of the last term is largest where cells are surely of one cluster. There is no decoder, and nothing to
    train on without pairs.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata` with a ``pairs_key``; one modality is enough.
    n_shared
        Dimensions of the code: the layer before the softmax.
    n_clusters
        Number of clusters K.
    encoders
        ``"mlp"``, ``"resnet"``, ``"text"``, a :class:`torch.nn.Module`, or one of them per modality.
    volume_weight
        :math:`\lambda`; the paper tries 0 and :math:`10^{-5}` to :math:`10^{-1}`.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all deep clustering models: see :class:`~unbraid.model.base.ClusteringModel`; there is nothing to pretrain.

    Raises
    ------
    ValueError
        If ``volume_weight`` is negative; and by ``train`` if there are no pairs of training cells.

    Notes
    -----
    The released code averages over all pairs together and takes the volume over all cells, without a ridge; here the
    mean is over those of each kind, and the volume that of the cells of a batch and its pairs. As published, the network
    has no layer norm (``norm=None``). Without the volume two clusters often become one and another stays empty.

    References
    ----------
    Nguyen, Ibrahim and Fu. Deep clustering with incomplete noisy pairwise annotations: a geometric regularization
    approach. ICML 2023.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.pp.pairs_from_labels(mdata, "cell_type")
    >>> ub.model.VolMaxDCC.setup_mudata(mdata, pairs_key="pairs")
    >>> model = ub.model.VolMaxDCC(mdata, n_clusters=8)
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
        *,
        volume_weight: float = 0.1,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        self._warn_of_covariates("nowhere: it has no decoder")
        self._check_weights(volume_weight=volume_weight)
        if without := [name for name in ("pretrain", "decoders", "likelihood_scale") if name in options]:
            raise ValueError(f"VolMaxDCC has no decoder, and so no `{without[0]}`.")
        self.module = self._build_module(
            n_shared,
            n_clusters,
            encoders=encoders,
            clusters="softmax",
            links="annotation",
            weights={"must_link": 1.0, "cannot_link": 1.0, "volume": volume_weight},
            **{"norm": None, **options},
        )
        self._finish(locals())

    def _check_parts(self, presence: np.ndarray, parts: dict[str, np.ndarray]) -> None:
        super()._check_parts(presence, parts)
        key = self.registry_["setup_args"]["pairs_key"]
        if key is None:
            raise ValueError(
                "VolMaxDCC learns from pairs of cells alone. Make some with `unbraid.pp.pairs_from_labels` and name them "
                "in `setup_mudata(pairs_key=...)`."
            )
        pairs = read_pairs(self.adata, key)
        if not np.isin(np.concatenate([pairs.must, pairs.cannot]), parts["train"]).all(axis=1).any():
            raise ValueError(
                f"VolMaxDCC learns from pairs of cells alone, but none of the {len(pairs)} pairs in obsp[{key!r}] has both "
                "of its cells among those to train on. Add pairs, raise `train_size`, or check `split_key`."
            )
