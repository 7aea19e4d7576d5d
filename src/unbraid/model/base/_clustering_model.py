"""The user's side of the deep clustering methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi import REGISTRY_KEYS

from unbraid._messages import check_range, check_whole
from unbraid.model.base._clusters import ClusterMixin
from unbraid.model.base._split_model import SplitModel
from unbraid.module._deep_clustering import DeepClustering

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from unbraid.nn import InputTransform


class ClusteringModel(ClusterMixin, SplitModel):
    """Base of the deep clustering methods; builds the module from the registry.

    They know one code of the cell and its clusters, and nothing of what modalities share: they are there to be compared
    with. One modality is enough. Several are concatenated, and a cell that lacks some is encoded by the others.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    registry
        Registry of a saved model, to load it without data.

    Notes
    -----
    Training has the stages ``"pretrain"``, reconstruction alone, and ``"cluster"``, between which the clusters are put
    where k-means finds them among the codes of all training cells. Training again puts them anew. All these models take
    these ``**options``:

    ``pretrain``
        False leaves out the first stage, unless ``max_epochs`` names it; the clusters are then found among the codes of
        random networks.
    ``encoders``, ``decoders``
        As of the generative models: ``"mlp"``; ``"resnet"`` for images, ``"text"`` for texts; a network of one's own;
        or one of them per modality. What the encoders of the modalities give is summed and goes through ``n_layers``
        further layers.
    ``n_hidden``, ``n_layers``, ``norm``, ``dropout``
        Of the multilayer perceptrons: width, hidden layers of the encoder, ``"layer"`` norm or None, dropout rate.
    ``likelihood_scale``
        Fixed scale of normal and Laplace likelihoods in the units of the data. By default it is learned per feature by
        VaDE and DCGMM, and the root mean square of the features' standard deviations for the autoencoders.
    ``pairs_per_batch``
        Must-links and cannot-links beside every batch, at most so many of each (128).
    ``input_transform``
        What encoders see; see :class:`~unbraid.nn.InputLayer`.
    ``lr``, ``weight_decay``, ``schedule``
        Of Adam: ``"constant"`` (default) or ``"cosine"``.

    The likelihoods are those of :meth:`setup_mudata`; decoders get batch and covariates, encoders do not.
    """

    _min_modalities = 1
    _takes_categories = True
    _default_batch_size = 256
    module: DeepClustering

    def _build_module(
        self,
        n_shared: int,
        n_clusters: int,
        *,
        weights: Mapping[str, float],
        pairs_per_batch: int = 128,
        input_transform: InputTransform | dict[str, InputTransform] | None = None,
        **options: Any,
    ) -> DeepClustering:
        check_whole("n_clusters", n_clusters, 2)
        check_whole("pairs_per_batch", pairs_per_batch, 1)
        self._pairs_per_batch = pairs_per_batch
        check_range("`n_shared`", n_shared, n_shared > 0, "positive")
        setup, stats = self.registry_["setup_args"], self.summary_stats
        categorical = self.registry_["field_registries"][REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
        return DeepClustering(
            self._specs(input_transform),
            n_shared,
            n_clusters,
            weights=weights,
            n_categories=[0 if setup["batch_key"] is None else stats.n_batch, *categorical.get("n_cats_per_key", [])],
            n_continuous=stats.get("n_extra_continuous_covs", 0),
            **options,
        )

    @staticmethod
    def _check_weights(**weights: float) -> None:
        for name, weight in weights.items():
            check_range(f"`{name}`", weight, weight >= 0, "at least 0")

    def _check_parts(self, presence: np.ndarray, parts: dict[str, np.ndarray]) -> None:
        n_train, n_clusters = len(parts["train"]), self.module.n_clusters
        if n_train < n_clusters:
            raise ValueError(
                f"{n_train} training cells cannot make {n_clusters} clusters. Lower `n_clusters`, raise `train_size`, or "
                "check `split_key`."
            )

    def _epochs(self, max_epochs: int | dict[str, int] | None, stages: list, n_train: int, batch_size: int) -> dict:
        epochs = super()._epochs(max_epochs, stages, n_train, batch_size)
        named = isinstance(max_epochs, dict) and "pretrain" in max_epochs
        return epochs | ({} if self.module.pretrain or named or "pretrain" not in epochs else {"pretrain": 0})
