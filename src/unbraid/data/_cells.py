"""Observations, however the user names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unbraid._messages import suggest

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray


def numbers_of(cells: ArrayLike | None, data: AnnData | MuData, name: str) -> NDArray:
    """Numbers of observations that are given by a mask, by numbers (negative ones from the end) or by names.

    Parameters
    ----------
    cells
        Mask ``(n_obs,)``, numbers or names; None for all. A mask that is a series is matched by name; what it misses is
        not meant.
    data
        Whose observations.
    name
        Of the argument, for messages.

    Returns
    -------
    int64 array.

    Raises
    ------
    KeyError
        If a name is unknown.
    IndexError
        If a number is out of range.
    ValueError
        If a mask has another length, or the values are of no such kind.
    """
    n_obs = data.n_obs
    if cells is None:
        return np.arange(n_obs)
    if hasattr(cells, "dtype") and pd.api.types.is_bool_dtype(cells.dtype):
        if len(cells) != n_obs:
            raise ValueError(f"`{name}` is a mask of {len(cells)} values, but there are {n_obs} observations.")
        if isinstance(cells, pd.Series) and set(cells.index) == set(data.obs_names):
            cells = cells.reindex(data.obs_names)  # of its rows, in whatever order
        cells = pd.Series(cells).fillna(False).astype(bool)
    cells = np.atleast_1d(np.asarray(cells))
    if cells.ndim != 1:
        raise ValueError(f"`{name}` must be a list of observations, or a mask; got an array of shape {cells.shape}.")
    if cells.dtype == bool and len(cells) != n_obs:  # a list
        raise ValueError(f"`{name}` is a mask of {len(cells)} values, but there are {n_obs} observations.")
    if cells.dtype == bool:
        return np.flatnonzero(cells)
    if cells.dtype.kind in "OUS" and len(cells):
        found = data.obs_names.get_indexer(cells.astype(str))
        if (found < 0).any():
            unknown = str(cells[found < 0][0])
            raise KeyError(f"`{name}`: there is no observation {unknown!r}. {suggest(unknown, data.obs_names)}")
        return found.astype(np.int64)
    if cells.dtype.kind not in "iu" and len(cells):
        raise ValueError(f"`{name}` must hold names, numbers or a mask of observations, not {cells.dtype}.")
    cells = cells.astype(np.int64)
    if len(cells) and not (-n_obs <= cells.min() and cells.max() < n_obs):
        raise IndexError(f"`{name}` runs from {cells.min()} to {cells.max()}, but there are {n_obs} observations.")
    return cells % max(n_obs, 1)
