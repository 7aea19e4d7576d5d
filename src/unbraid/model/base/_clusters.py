"""Clusters of cells, read out of a model that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from mudata import MuData


class ClusterMixin:
    """Clusters of a model whose module has ``cluster_probabilities(batch)``, ``(n, n_clusters)``."""

    def predict_cluster(
        self, mdata: MuData | None = None, *, soft: bool = False, indices: Sequence[int] | None = None
    ) -> np.ndarray:
        """Cluster of every cell, from whichever modalities it has.

        Parameters
        ----------
        mdata
            Cells; those of the set-up by default. They may lack modalities.
        soft
            Give the probabilities of all clusters.
        indices
            Numbers of cells; all by default.

        Returns
        -------
        int64 array ``(n_obs,)`` of numbers from 0 to ``n_clusters - 1``; or with ``soft`` float32
        ``(n_obs, n_clusters)``, whose rows sum to 1. What the numbers stand for changes from training to training.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        parts = [self.module.cluster_probabilities(batch) for batch in self._batches(mdata, indices)]
        probabilities = torch.cat(parts)
        return (probabilities.float() if soft else probabilities.argmax(1)).cpu().numpy()
