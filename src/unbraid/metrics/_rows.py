"""Rows of an embedding that are there, whose they are, and an order that does not depend on theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from mudata import MuData

from unbraid.metrics._lookup import embedding_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray


def rows_of(data: AnnData | MuData | None, rows: ArrayLike | str, name: str) -> NDArray:
    """(n, d) floats: `rows` itself, or what it names in `data`."""
    if isinstance(rows, str):
        if data is None:
            raise ValueError(f"{name}={rows!r} names an embedding, but there is no data: pass data, or the array.")
        return embedding_of(data, rows)
    if isinstance(rows, AnnData | MuData):
        raise ValueError(f"{name} must be an array or a key: write data=..., {name}='key'.")
    try:
        return embedding_of(rows, None)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def present_rows(x: NDArray, name: str) -> NDArray:
    """Which rows are there. NaN throughout is a missing modality; NaN in part, or infinite, is an error."""
    is_nan = np.isnan(x)
    absent = is_nan.all(axis=1)
    n_partly = int((is_nan.any(axis=1) & ~absent).sum())
    if n_partly:
        raise ValueError(
            f"{name}: {n_partly} of {len(x)} rows are NaN in some features but not in all. Fill or drop these "
            "features, or set the whole row to NaN to leave it out as missing."
        )
    if n_infinite := int(np.isinf(x).any(axis=1).sum()):
        raise ValueError(f"{name}: {n_infinite} of {len(x)} rows are infinite.")
    return ~absent


def codes_of(values: pd.Series, name: str) -> NDArray:
    """0 to n - 1 in the order of the names, which does not depend on the order of the observations."""
    if n_missing := int(values.isna().sum()):
        raise ValueError(
            f"{n_missing} of {len(values)} observations have no {name}. Give each one, or leave these observations out."
        )
    return np.unique(values.astype(str).to_numpy(dtype=str), return_inverse=True)[1]


def canonical_order(*columns: NDArray) -> NDArray:
    """Sort observations by their values, the first arrays counting most; each is `(n,)` or `(n, d)`."""
    keys = [key for column in columns for key in np.atleast_2d(column.T)]
    return np.lexsort(keys[::-1])
