"""What every simulator needs: a MuData whose truth follows its rows."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import mudata
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from anndata import AnnData


def cell_names(n_obs: int) -> pd.Index:
    """``cell_0``, ``cell_1``, ..."""
    return pd.Index([f"cell_{i}" for i in range(n_obs)])


def split_column(is_train: np.ndarray) -> pd.Categorical:
    """``train`` and ``test`` as the categorical that ``obs["split"]`` holds."""
    return pd.Categorical(np.where(is_train, "train", "test"), categories=["train", "test"])


def assemble(
    mod: Mapping[str, AnnData], obs: pd.DataFrame, *, shared: np.ndarray, simulation: Mapping[str, Any]
) -> mudata.MuData:
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
    # mudata 0.3 pulls the modalities' columns up, with a warning, unless told not to; 0.4 has no such option.
    quiet = mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()
    with quiet:
        mdata = mudata.MuData(dict(mod), obs=pd.DataFrame(index=obs.index))
        rows = obs.index.get_indexer(mdata.obs_names)
        for column in obs:
            mdata.obs[column] = obs[column].array[rows]
        mdata.obsm["true_shared"] = np.asarray(shared, dtype=np.float32)[rows]
        mdata.uns["simulation"] = dict(simulation)
    return mdata
