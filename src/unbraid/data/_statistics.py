"""One pass over a modality's values, in blocks of rows, without densifying what is sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# Largest block: at 32 million values the float64 copies of a dense one stay below 1 GB.
BLOCK_ROWS, BLOCK_VALUES = 4096, 2**25


@dataclass(frozen=True)
class ValueStatistics:
    """What one pass over a matrix of shape ``(n_obs, n_features)`` tells.

    Attributes
    ----------
    n_obs
        Rows seen.
    minimum, maximum
        Range of the values.
    integer
        Whether every value is a whole number.
    mean, standard_deviation
        Per feature, shape ``(n_features,)``, float64.
    totals
        Row sums, shape ``(n_obs,)``, float64.
    """

    n_obs: int
    minimum: float
    maximum: float
    integer: bool
    mean: np.ndarray
    standard_deviation: np.ndarray
    totals: np.ndarray


def by_rows(matrix: Any) -> Any:
    """Columns-first sparse matrices as CSR in memory, so that rows are quick to take; others as they are."""
    if getattr(matrix, "format", "csr") == "csr":
        return matrix
    return (matrix if sp.issparse(matrix) else matrix.to_memory()).tocsr()


def iter_blocks(matrix: Any, rows: np.ndarray) -> Iterator[np.ndarray | sp.csr_matrix]:
    """Yield ``matrix[rows]`` block by block; on-disk arrays get increasing row numbers.

    Parameters
    ----------
    matrix
        Dense or sparse, in memory or backed, shape ``(n_obs, n_features)``.
    rows
        Increasing row numbers.
    """
    block_rows = max(1, min(BLOCK_ROWS, BLOCK_VALUES // matrix.shape[1]))
    for start in range(0, len(rows), block_rows):
        block = rows[start : start + block_rows]
        contiguous = block[-1] - block[0] + 1 == len(block)
        yield matrix[slice(int(block[0]), int(block[-1]) + 1)] if contiguous else matrix[block]


class NotFiniteError(ValueError):
    """NaN or infinity among the values; ``rows`` counts the rows that hold one."""

    def __init__(self, rows: int) -> None:
        super().__init__(f"{rows} rows hold NaN or infinite values")
        self.rows = rows


def value_statistics(matrix: Any, rows: np.ndarray) -> ValueStatistics:
    """Summarise the given rows of a numeric matrix.

    Parameters
    ----------
    matrix
        Dense or sparse, in memory or backed, shape ``(n_obs, n_features)``.
    rows
        Increasing row numbers to look at.

    Raises
    ------
    NotFiniteError
        If a value is NaN, infinite, or overflows float32.
    """
    total, square = 0.0, 0.0
    minimum, maximum, integer, bad_rows = np.inf, -np.inf, True, 0
    totals = []
    for block in iter_blocks(by_rows(matrix), rows):
        sparse = sp.issparse(block)
        block = block if sparse else np.asarray(block)
        values = block.data if sparse else block
        # float32 is what the models see, so a value that overflows there is infinite for them
        with np.errstate(over="ignore"):
            finite = np.isfinite(values.astype(np.float32, copy=False))
        if not finite.all():
            if sparse:
                bad_rows += len(np.unique(np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))[~finite]))
            else:
                bad_rows += int((~finite).any(axis=1).sum())
            continue
        wide = block.astype(np.float64)
        total = total + np.asarray(wide.sum(axis=0)).ravel()
        square = square + np.asarray((wide.multiply(wide) if sparse else wide * wide).sum(axis=0)).ravel()
        totals.append(np.asarray(wide.sum(axis=1)).ravel())
        if values.size:
            minimum, maximum = min(minimum, float(values.min())), max(maximum, float(values.max()))
            integer = integer and (values.dtype.kind in "iub" or bool((values == np.rint(values)).all()))
        if sparse and values.size < np.prod(block.shape):
            minimum, maximum = min(minimum, 0.0), max(maximum, 0.0)
    if bad_rows:
        raise NotFiniteError(bad_rows)
    n_obs = len(rows)
    mean = total / n_obs
    variance = np.maximum(square / n_obs - mean**2, 0.0)
    # cancellation leaves dust on constant features
    variance[variance <= 1e-12 * np.maximum(square / n_obs, 1e-300)] = 0.0
    deviation = np.sqrt(variance)
    deviation[deviation < np.finfo(np.float32).tiny] = 0.0  # nor can float32 divide by it
    return ValueStatistics(n_obs, minimum, maximum, integer, mean, deviation, np.concatenate(totals))
