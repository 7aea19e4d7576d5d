"""From cells to batches: seeded samplers, splits, and the data module that training uses."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from unbraid._messages import check_whole
from unbraid.data._pair_batches import PairDataset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import pandas as pd

    from unbraid.data._dataset import MultimodalDataset

# More validation cells than this cost time every epoch and tell nothing new.
MAX_VALIDATION_OBS = 2_000


class BlockSampler(Sampler):
    """Blocks of cell numbers: one block is one batch.

    The order depends on ``(seed, epoch)`` only, so that a resumed run sees what the interrupted one
    would have seen. Blocks differ in size by at most one cell, so that no small last batch is left
    over; ``drop_last`` cuts blocks of exactly ``batch_size`` instead.

    Parameters
    ----------
    indices
        Cell numbers to draw from.
    batch_size
        Largest block.
    shuffle
        New order every epoch.
    drop_last
        Exact blocks; the remainder is left out of the epoch.
    seed
        Seed of the order.
    share
        Under distributed training, every process takes its own share of the cells.
    """

    def __init__(
        self,
        indices: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        share: bool = False,
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        self.indices = np.asarray(indices, dtype=np.int64)
        self.batch_size, self.shuffle, self.drop_last, self.share = batch_size, shuffle, drop_last, share
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch (Lightning calls this)."""
        self.epoch = epoch

    @property
    def _processes(self) -> tuple[int, int]:
        if self.share and torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def __len__(self) -> int:
        n_obs = len(self.indices) // self._processes[1]
        if self.drop_last and n_obs >= self.batch_size:
            return n_obs // self.batch_size
        return -(-n_obs // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        order = self.indices
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        rank, n_processes = self._processes
        # equal shares: one process with a batch more than the others would wait for them for ever
        order = order[: len(order) // n_processes * n_processes][rank::n_processes]
        if self.drop_last and len(order) >= self.batch_size:
            order = order[: len(order) // self.batch_size * self.batch_size]
        return iter(np.array_split(order, len(self)) if len(order) else [])


def block_loader(dataset: MultimodalDataset, sampler: BlockSampler, **loader_kwargs: Any) -> DataLoader:
    """A torch loader that asks the dataset for one whole block at a time, and leaves the user's random state alone."""
    # without a generator of its own, every pass of a loader draws from torch's global one
    return DataLoader(dataset, sampler=sampler, batch_size=None, **{"generator": torch.Generator(), **loader_kwargs})


def split_indices(
    n_obs: int,
    *,
    train_size: float | None = None,
    validation_size: float | None = None,
    labels: pd.Series | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Cell numbers of the training, validation and test part.

    Parameters
    ----------
    n_obs
        Number of cells.
    train_size
        Fraction of the cells to train on; by default what validation and test leave over.
    validation_size
        Fraction to validate on; by default a tenth (at most 2,000 cells), or what ``train_size``
        leaves over.
    labels
        Ready-made split: a column of ``train``, ``val`` or ``validation``, and ``test``.
    groups
        Codes ``(n_obs,)`` of groups that a random split keeps together; sizes are then as near as groups allow.
    seed
        Seed of the random split.

    Returns
    -------
    ``{"train": ..., "validation": ..., "test": ...}``, increasing int64 arrays.

    Raises
    ------
    ValueError
        If fractions are impossible, labels are unknown, or nothing is left to train on.
    """
    if labels is not None:
        if train_size is not None or validation_size is not None:
            raise ValueError("`split_key` already names the parts: leave out `train_size` and `validation_size`.")
        words = labels.astype(str).str.lower().replace({"val": "validation", "valid": "validation"}).to_numpy()
        if unknown := sorted(set(words) - {"train", "validation", "test"}):
            raise ValueError(
                f"`split_key`: column {labels.name!r} must hold 'train', 'val' or 'test'; found {unknown[:5]}."
            )
        parts = {part: np.flatnonzero(words == part) for part in ("train", "validation", "test")}
    else:
        for name, size in {"train_size": train_size, "validation_size": validation_size}.items():
            if size is not None and not (isinstance(size, Real) and 0 <= size <= 1):
                raise ValueError(f"`{name}` is a fraction between 0 and 1, got {size!r}.")
        if (train_size or 0) + (validation_size or 0) > 1:
            raise ValueError(f"`train_size` + `validation_size` is {train_size + validation_size}, more than 1.")
        if validation_size is not None:
            n_validation = round(validation_size * n_obs)
        elif train_size is not None:
            n_validation = n_obs - round(train_size * n_obs)
        else:
            n_validation = min(n_obs // 10, MAX_VALIDATION_OBS)
        n_train = n_obs - n_validation if train_size is None else round(train_size * n_obs)
        if groups is None:
            order = np.random.default_rng(seed).permutation(n_obs)
            cuts = np.split(order, [n_train, n_train + n_validation])
        else:  # groups one after the other in random order, each where its middle falls
            _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
            order = np.random.default_rng(seed).permutation(len(sizes))
            middle = np.empty(len(sizes))
            middle[order] = np.cumsum(sizes[order]) - sizes[order] / 2
            part = np.searchsorted([n_train, n_train + n_validation], middle, side="right")[codes]
            cuts = [np.flatnonzero(part == k) for k in range(3)]
        parts = dict(zip(("train", "validation", "test"), map(np.sort, cuts), strict=True))
    if len(parts["train"]) == 0:
        raise ValueError("No cell is left to train on: check `train_size` or `split_key`.")
    return parts


class MultimodalDataModule(LightningDataModule):
    """Training and validation batches of one dataset.

    Parameters
    ----------
    dataset
        Cells of a registered MuData; pairs of cells, if it has any, come with training cells only.
    parts
        Result of :func:`split_indices`.
    batch_size
        Cells of a batch.
    drop_last
        See :class:`BlockSampler`.
    seed
        Seed of the order of the cells.
    **loader_kwargs
        Passed to :class:`torch.utils.data.DataLoader`, e.g. ``num_workers``, ``pin_memory``.
    """

    def __init__(
        self,
        dataset: MultimodalDataset | PairDataset,
        parts: dict[str, np.ndarray],
        batch_size: int,
        *,
        drop_last: bool = False,
        seed: int = 0,
        **loader_kwargs: Any,
    ) -> None:
        super().__init__()
        self.dataset, self.parts, self.batch_size = dataset, parts, batch_size
        self.cells = dataset.cells if isinstance(dataset, PairDataset) else dataset
        self.drop_last, self.seed, self.loader_kwargs = drop_last, seed, loader_kwargs

    def _loader(self, part: str, *, shuffle: bool, seed: int) -> DataLoader:
        drop_last = self.drop_last and shuffle
        sampler = BlockSampler(
            self.parts[part], self.batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed, share=True
        )
        return block_loader(self._of(part), sampler, **self.loader_kwargs)

    def _of(self, part: str) -> MultimodalDataset | PairDataset:
        return self.dataset if part == "train" else self.cells

    def train_dataloader(self) -> DataLoader:
        """Shuffled training cells."""
        return self._loader("train", shuffle=True, seed=self.seed)

    def inner_dataloader(self) -> DataLoader:
        """The training cells in another order, for inner loops that want batches of their own."""
        return self._loader("train", shuffle=True, seed=self.seed + 1)

    def whole_dataloader(self, part: str = "train") -> DataLoader:
        """All cells of a part once, in their own order; under distributed training in every process."""
        sampler = BlockSampler(self.parts[part], self.batch_size)
        return block_loader(self._of(part), sampler, **self.loader_kwargs)

    def val_dataloader(self) -> DataLoader | list:
        """Validation cells in their own order; empty without a validation part."""
        return self._loader("validation", shuffle=False, seed=self.seed) if len(self.parts["validation"]) else []
