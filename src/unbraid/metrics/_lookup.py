"""Embeddings and columns of arrays, AnnData and MuData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from unbraid._messages import suggest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def embedding_of(data: ArrayLike | AnnData | MuData, use_rep: str | None) -> NDArray:
    """(n, d) floats."""
    if isinstance(data, AnnData | MuData):
        if use_rep is None:
            raise ValueError(f"Name the embedding with use_rep; there is {', '.join(_keys(data, 'obsm'))}.")
        values = _lookup(data, use_rep, "obsm")
    elif use_rep is not None:
        raise ValueError("use_rep names an embedding within AnnData or MuData, but data is the embedding itself.")
    else:
        values = data
    try:
        x = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("The embedding must be an array of numbers.") from error
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"The embedding must have shape (n_obs, n_features), not {x.shape}.")
    return x


def values_of(data: ArrayLike | AnnData | MuData, values: ArrayLike | str, name: str, n: int) -> pd.Series:
    """A target or groups, one per row of the embedding."""
    is_annotated = isinstance(data, AnnData | MuData)
    if isinstance(values, str):
        if not is_annotated:
            raise ValueError(f"{name}={values!r} names a column of obs, but data is an array: pass the values.")
        values = _lookup(data, values, "obs")
    elif isinstance(values, pd.Series):
        names = data.obs_names if is_annotated else getattr(data, "index", None)
        if names is not None and not values.index.equals(names) and set(values.index) == set(names):
            values = values.reindex(names)
    elif hasattr(values, "__array__") and not isinstance(values, pd.Index | pd.api.extensions.ExtensionArray):
        values = np.asarray(values)
    if np.ndim(values) != 1:
        raise ValueError(f"{name} must have one dimension, not {np.ndim(values)}.")
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} values, but the embedding has {n} rows.")
    return pd.Series(values).reset_index(drop=True).infer_objects()


def _keys(data: AnnData | MuData, attr: Literal["obs", "obsm"]) -> list[str]:
    keys = [str(key) for key in getattr(data, attr)]
    if isinstance(data, MuData):
        keys = [key for key in keys if attr == "obs" or key not in data.mod]  # obsm of a MuData also has its masks
        keys += [f"{mod}:{key}" for mod in data.mod for key in _keys(data.mod[mod], attr)]
    elif attr == "obsm" and data.X is not None:
        keys += ["X"]
    return list(dict.fromkeys(keys))


def _lookup(data: AnnData | MuData, key: str, attr: Literal["obs", "obsm"], name: str = "data"):
    """A column of `obs` or an array of `obsm`; of a MuData also "modality:key", missing where the modality is."""
    if key in getattr(data, attr):
        return getattr(data, attr)[key]
    if attr == "obsm" and key == "X" and isinstance(data, AnnData) and data.X is not None:
        return data.X
    if isinstance(data, MuData):
        mod, _, inner = key.partition(":")
        if inner and mod in data.mod:
            row = data.obsmap[mod].ravel().astype(int) - 1  # -1: the observation lacks the modality
            return _spread(_lookup(data.mod[mod], inner, attr, f"{name}[{mod!r}]"), row)
        for mod in data.mod:
            if key in getattr(data.mod[mod], attr) or (attr, key) == ("obsm", "X"):
                raise KeyError(
                    f"{key!r} is in {name}[{mod!r}].{attr}, not in {name}.{attr}: write '{mod}:{key}'."
                    if key != "X"
                    else f"A MuData has no X of its own: write '{mod}:X'."
                )
    raise KeyError(f"{key!r} is not in {name}.{attr}. {suggest(key, _keys(data, attr))}")


def _spread(values: pd.Series | pd.DataFrame | NDArray, row: NDArray) -> pd.Series | NDArray:
    """Values of a modality's observations, as values of all."""
    if isinstance(values, pd.Series):  # integers and booleans stay what they are, which missing values else change
        return pd.Series(values.convert_dtypes(convert_floating=False).array.take(row, allow_fill=True))
    values = values.toarray() if sparse.issparse(values) else np.asarray(values)
    spread = np.full((len(row), values.shape[1]), np.nan)
    spread[row >= 0] = values[row[row >= 0]]
    return spread
