"""What every simulator needs: a MuData whose truth follows its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import nn

from unbraid.data._arrays import pair

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from anndata import AnnData
    from mudata import MuData


def cell_names(n_obs: int) -> pd.Index:
    """``cell_0``, ``cell_1``, ..."""
    return pd.Index([f"cell_{i}" for i in range(n_obs)])


def split_column(is_train: np.ndarray) -> pd.Categorical:
    """``train`` and ``test`` as the categorical that ``obs["split"]`` holds."""
    return pd.Categorical(np.where(is_train, "train", "test"), categories=["train", "test"])


def assemble(
    mod: Mapping[str, AnnData], obs: pd.DataFrame, *, shared: np.ndarray, simulation: Mapping[str, Any]
) -> MuData:
    """MuData of the modalities with the truth about every cell beside them.

    A MuData orders its cells by the modalities that hold them, so with cells that lack a modality its order is
    not that of ``obs``. Giving it the index keeps the order; rows are matched by name all the same.

    Parameters
    ----------
    mod
        The modalities, each with the cells that have it.
    obs
        Columns about every cell, indexed by cell name.
    shared
        True shared factors, one row for each row of ``obs``.
    simulation
        Goes to ``uns["simulation"]``.
    """
    mdata = pair(mod, obs)
    rows = obs.index.get_indexer(mdata.obs_names)
    mdata.obsm["true_shared"] = np.asarray(shared, dtype=np.float32)[rows]
    mdata.uns["simulation"] = dict(simulation)
    return mdata


def random_label(latent: np.ndarray, rng: np.random.RandomState, *, torch_seed: int) -> np.ndarray:
    """Median split of an untrained network's noisy output; the reference's sigmoid before it changes no order."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # Not torch.manual_seed, which would reseed the caller's GPUs as well.
        torch.random.default_generator.manual_seed(torch_seed)
        kwargs = {"device": "cpu", "dtype": torch.float32}
        network = nn.Sequential(nn.Linear(latent.shape[1], 100, **kwargs), nn.ReLU(), nn.Linear(100, 1, **kwargs))
        for layer in (network[0], network[2]):
            nn.init.xavier_uniform_(layer.weight)
        score = network(torch.from_numpy(latent.astype(np.float32))).numpy()
    score = score + rng.normal(0.0, 0.1, score.shape)
    return (score >= np.median(score)).ravel().astype(np.int64)


def reference_split(n_obs: int) -> np.ndarray:
    """Rows that ``torch.utils.data.random_split`` puts first under seed 0: the head of one permutation."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    order = torch.randperm(n_obs, generator=generator, device="cpu").numpy()
    is_train = np.zeros(n_obs, dtype=bool)
    is_train[order[: int(0.8 * n_obs)]] = True
    return is_train
