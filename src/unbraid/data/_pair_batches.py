"""Pairs of cells beside the cells of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unbraid.data._dataset import MultimodalDataset
    from unbraid.data._pairs import Pairs


class PairDataset(Dataset):
    """Batches of cells with must-link and cannot-link pairs beside them.

    A batch of :class:`MultimodalDataset` that also has, where there are such pairs, ``must_link`` and ``cannot_link``:
    each a batch of its own, of 2P cells of which the p-th and the (P + p)-th are a pair. Which pairs these are is a
    function of the seed and of the cells of the batch, so that a resumed run sees what the interrupted one would have.

    Parameters
    ----------
    cells
        The cells.
    pairs
        Pairs of their numbers.
    among
        Numbers of the cells that both members must be of: those to train on.
    n_pairs
        Pairs of either kind beside a batch, at most.
    seed
        Seed of the draws.
    """

    def __init__(
        self, cells: MultimodalDataset, pairs: Pairs, among: np.ndarray, *, n_pairs: int, seed: int = 0
    ) -> None:
        self.cells, self.n_pairs, self.seed = cells, n_pairs, seed
        known = np.zeros(cells.n_obs, dtype=bool)
        known[among] = True
        kinds = {"must_link": pairs.must, "cannot_link": pairs.cannot}
        self.pairs = {kind: rows[known[rows].all(axis=1)] for kind, rows in kinds.items()}

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.cells.n_obs

    def __len__(self) -> int:
        return self.cells.n_obs

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        indices = np.asarray(indices, dtype=np.int64)
        batch = self.cells[indices]
        rng = np.random.default_rng([self.seed, crc32(indices.tobytes())])
        for kind, pairs in self.pairs.items():
            if len(pairs):
                chosen = pairs[rng.choice(len(pairs), min(self.n_pairs, len(pairs)), replace=False)]
                # a pair has no first and second
                chosen = rng.permuted(chosen, axis=1)
                batch[kind] = self.cells[chosen.T.ravel()]
        return batch
