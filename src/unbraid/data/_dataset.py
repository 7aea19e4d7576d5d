"""Cells of a MuData as batches of tensors, with presence masks instead of padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS
from torch.utils.data import Dataset

from unbraid.data._fields import positions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from unbraid.data._manager import MultimodalManager


class _Rows:
    """Row access to one modality's matrix: position lookup, sparse gather, on-disk order, column alignment."""

    def __init__(self, data: Any, position: np.ndarray, columns: np.ndarray | None, n_features: int) -> None:
        self.data, self.position, self.columns, self.n_features = data, position, columns, n_features
        self.in_memory = isinstance(data, np.ndarray) or sp.issparse(data)

    def __call__(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = self.position[indices]
        present = rows >= 0
        if len(rows) and present.all():
            return self._take(rows), present
        values = np.zeros((len(indices), self.n_features), dtype=np.float32)
        if present.any():
            values[present] = self._take(rows[present])
        return values, present

    def _take(self, rows: np.ndarray) -> np.ndarray:
        if self.in_memory:
            block = self.data[rows]
        else:  # h5py and zarr want increasing, distinct row numbers
            distinct, back = np.unique(rows, return_inverse=True)
            block = self.data[distinct][back]
        block = block.toarray() if sp.issparse(block) else np.asarray(block)
        return (block if self.columns is None else block[:, self.columns]).astype(np.float32, copy=False)


class MultimodalDataset(Dataset):
    """The cells of a registered MuData, indexed by lists of global cell numbers.

    ``dataset[[3, 17, 5]]`` is a batch, a dictionary of tensors with n = 3 rows each:

    - ``x[modality]``: float32 ``(n, n_features)``; rows of cells that lack the modality are zero and meaningless;
    - ``mask[modality]``: bool ``(n,)``, whether the cell has the modality;
    - ``size_factor[modality]``: float32 ``(n,)``, only where a ``size_factor_key`` was given;
    - ``batch``: int64 ``(n,)``;
    - ``categorical``: int64 ``(n, n_categorical_covariates)``;
    - ``continuous``: float32 ``(n, n_continuous_covariates)``;
    - ``group``: int64 ``(n,)``, of which group a cell is a replicate, only where a ``group_key`` was given;
    - ``index``: int64 ``(n,)``, the cells' numbers.

    Parameters
    ----------
    manager
        Manager of the registered MuData.
    """

    def __init__(self, manager: MultimodalManager) -> None:
        mdata = manager.adata
        self.n_obs = mdata.n_obs
        self._rows: dict[str, _Rows] = {}
        self._size_factors: dict[str, np.ndarray] = {}
        for field in manager.modality_fields:
            state = manager.get_state_registry(field.registry_key)
            position, names = positions(mdata, field.mod_key, field._mask_key), state["feature_names"]
            matrix, columns = None, None
            if state["present"]:
                matrix, columns = manager.row_matrix(field), field.columns(mdata, names)
            self._rows[field.mod_key] = _Rows(matrix, position, columns, len(names))
            if (sizes := field.size_factors(mdata)) is not None:
                self._size_factors[field.mod_key] = sizes.astype(np.float32)
        registered = manager.data_registry
        take = lambda key: np.asarray(manager.get_from_registry(key)) if key in registered else None
        batch = take(REGISTRY_KEYS.BATCH_KEY).ravel()
        if pd.isna(batch).any():
            raise ValueError("The MuData got new cells since it was set up. Run `setup_mudata` again.")
        self._batch, self._groups = batch.astype(np.int64), manager.groups
        categorical, continuous = take(REGISTRY_KEYS.CAT_COVS_KEY), take(REGISTRY_KEYS.CONT_COVS_KEY)
        self._categorical = np.zeros((self.n_obs, 0), np.int64) if categorical is None else categorical.astype(np.int64)
        self._continuous = (
            np.zeros((self.n_obs, 0), np.float32) if continuous is None else continuous.astype(np.float32)
        )

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in the order of the setup."""
        return list(self._rows)

    @property
    def groups(self) -> np.ndarray | None:
        """Of which group every cell is a replicate, int64 ``(n_obs,)``; None without a ``group_key``."""
        return self._groups

    @property
    def batch(self) -> np.ndarray:
        """Batch code of every cell, int64, shape ``(n_obs,)``."""
        return self._batch

    @property
    def presence(self) -> np.ndarray:
        """Which cell has which modality: bool, shape ``(n_obs, n_modalities)``."""
        return np.stack([rows.position >= 0 for rows in self._rows.values()], axis=1)

    def __len__(self) -> int:
        return self.n_obs

    def __getitem__(self, indices: int | Sequence[int] | np.ndarray) -> dict[str, Any]:
        indices = np.array(indices, dtype=np.int64, ndmin=1, order="C")
        x, mask = {}, {}
        for modality, rows in self._rows.items():
            values, present = rows(indices)
            x[modality], mask[modality] = torch.from_numpy(values), torch.from_numpy(present)
        batch = {
            "x": x,
            "mask": mask,
            "size_factor": {m: torch.from_numpy(s[indices]) for m, s in self._size_factors.items()},
            "batch": torch.from_numpy(self._batch[indices]),
            "categorical": torch.from_numpy(self._categorical[indices]),
            "continuous": torch.from_numpy(self._continuous[indices]),
            "index": torch.from_numpy(indices),
        }
        if self._groups is not None:
            batch["group"] = torch.from_numpy(self._groups[indices])
        return batch


class CachedDataset(Dataset):
    """Batches of cells whose tensors are all in memory: what a model computed of them once.

    Parameters
    ----------
    tensors
        What a batch holds, for all cells of ``indices`` in their order: tensors, or dictionaries of them.
    indices
        Numbers of these cells among all, distinct.
    n_obs
        Number of all cells.
    """

    def __init__(self, tensors: dict[str, Any], indices: np.ndarray, n_obs: int) -> None:
        self.tensors, self.n_obs = tensors, n_obs
        self._row = np.full(n_obs, -1)
        self._row[indices] = np.arange(len(indices))

    def __len__(self) -> int:
        return self.n_obs

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> dict[str, Any]:
        rows = torch.from_numpy(self._row[np.array(indices, dtype=np.int64, ndmin=1)])
        if (rows < 0).any():
            raise IndexError("Not all of these cells are in memory.")
        take = lambda x: {name: take(part) for name, part in x.items()} if isinstance(x, dict) else x[rows]
        return take(self.tensors)
