"""Clusters of cells, read out of a model that has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unbraid.model.base._latents import seeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from mudata import MuData


class ClusterMixin:
    """Clusters of a model whose module has ``cluster_probabilities(batch)``, ``(n, n_clusters)``."""

    def predict_cluster(
        self,
        mdata: MuData | None = None,
        *,
        soft: bool = False,
        vote: bool = False,
        seed: int | None = None,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Cluster of every cell, from whichever modalities it has.

        Parameters
        ----------
        mdata
            Cells; those of the set-up by default. They may lack modalities.
        soft
            Give the probabilities of all clusters.
        vote
            Let every modality name the cluster of one sample of its latent, and take the one that most of them name, as
            CMVAE is published; of a tie the first. By default it is the largest of the mean over modalities of the
            probabilities at posterior means, which are less noisy. Only of models whose modalities have latents each.
        seed
            Of these samples; torch's state by default.
        indices
            Cells, by number, by name or as a mask; all by default.

        Returns
        -------
        int64 array ``(n_obs,)`` of numbers from 0 to ``n_clusters - 1``; or with ``soft`` float32
        ``(n_obs, n_clusters)``, whose rows sum to 1 (with ``vote`` the shares of votes). What the numbers stand for
        changes from training to training.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If ``vote`` is asked of a model with one code of the cell.
        """
        read = self.module.cluster_probabilities
        if vote:
            if not hasattr(self.module, "cluster_votes"):
                raise ValueError(f"{type(self).__name__} has one code of the cell, so that modalities cannot `vote`.")
            read = self.module.cluster_votes
        with seeded(seed, self.module.device):
            probabilities = torch.cat([read(batch) for batch in self._batches(mdata, indices)])
        return (probabilities.float() if soft else probabilities.argmax(1)).cpu().numpy()
