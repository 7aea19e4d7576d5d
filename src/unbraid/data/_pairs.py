"""Pairs of cells that are known to be of one kind (must-link) or of two (cannot-link)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from unbraid._messages import suggest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Pairs:
    """Pairs of cells, as row numbers: ``(P, 2)`` that are of one kind, ``(Q, 2)`` that are not.

    Rows are kept unique, sorted, and with the smaller number first, whichever way they were given.

    Parameters
    ----------
    must
        Must-links, ``(P, 2)``.
    cannot
        Cannot-links, ``(Q, 2)``.

    Raises
    ------
    ValueError
        If a cell is paired with itself, a number is negative, or a pair is both a must-link and a cannot-link.
    """

    must: NDArray[np.int64]
    cannot: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name in ("must", "cannot"):
            object.__setattr__(self, name, _sorted_unique(getattr(self, name), name))
        span = 1 + max((int(rows.max()) for rows in (self.must, self.cannot) if len(rows)), default=0)
        both = np.intersect1d(self.must @ [span, 1], self.cannot @ [span, 1])
        if len(both):
            raise ValueError(
                f"{len(both)} pairs are both must-link and cannot-link, e.g. cells {both[0] // span} and "
                f"{both[0] % span}. Keep one kind each."
            )

    def __len__(self) -> int:
        return len(self.must) + len(self.cannot)

    def matrix(self, n_obs: int) -> sparse.csr_matrix:
        """Symmetric int8 ``(n_obs, n_obs)``: 1 for must-links, -1 for cannot-links, nothing on the diagonal."""
        rows = np.concatenate([self.must, self.cannot])
        if len(rows) and rows.max() >= n_obs:
            raise ValueError(f"A pair names cell {rows.max()}, but there are {n_obs} cells, counted from 0.")
        kind = np.repeat(np.array([1, -1], dtype=np.int8), [len(self.must), len(self.cannot)])
        first, second = np.concatenate([rows, rows[:, ::-1]]).T
        return sparse.csr_matrix((np.tile(kind, 2), (first, second)), shape=(n_obs, n_obs), dtype=np.int8)


def pairs_of_matrix(matrix: Any, name: str = "The matrix of pairs") -> Pairs:
    """Pairs from a symmetric matrix of 1 (must-link), -1 (cannot-link) and 0 (unknown), such as one of ``obsp``.

    Parameters
    ----------
    matrix
        ``(n_obs, n_obs)``, sparse or dense.
    name
        What to call it in errors.

    Raises
    ------
    ValueError
        If the matrix is not square, has values other than 1, -1 and 0, has any on the diagonal, or is not symmetric.
    """
    matrix = sparse.csr_matrix(matrix, copy=True)
    matrix.eliminate_zeros()
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must have one row and one column per cell, but its shape is {matrix.shape}.")
    if not np.isin(matrix.data, (-1, 1)).all():
        wrong = matrix.data[~np.isin(matrix.data, (-1, 1))][0]
        raise ValueError(f"{name} must hold 1 (must-link) and -1 (cannot-link) only; it holds {wrong}.")
    matrix = matrix.astype(np.int8)
    if on_diagonal := int(np.count_nonzero(matrix.diagonal())):
        raise ValueError(f"{name} pairs {on_diagonal} cells with themselves. Clear its diagonal.")
    if (matrix != matrix.T).nnz:
        raise ValueError(f"{name} is not symmetric: a pair must be there from both cells, `matrix.maximum(matrix.T)`.")
    upper = sparse.triu(matrix, format="coo")
    rows = np.stack([upper.row, upper.col], axis=1)
    return Pairs(rows[upper.data > 0], rows[upper.data < 0])


def read_pairs(mdata: MuData | AnnData, key: str) -> Pairs:
    """Pairs of ``mdata.obsp[key]``.

    Parameters
    ----------
    mdata
        MuData or AnnData.
    key
        Key of its ``obsp``.

    Raises
    ------
    KeyError
        If there is no such key.
    ValueError
        As :func:`pairs_of_matrix`.
    """
    if key not in mdata.obsp:
        holders = [name for name in getattr(mdata, "mod", {}) if key in mdata.mod[name].obsp]
        if holders:
            raise KeyError(
                f"{key!r} is in obsp of modality {holders[0]!r}, not of the MuData. Pairs are of cells, whichever "
                "modalities they have: write them to `mdata.obsp`, e.g. by `unbraid.pp.pairs_from_labels`."
            )
        where = type(mdata).__name__
        raise KeyError(
            f"No pairs {key!r} in obsp of the {where}. {suggest(key, mdata.obsp)} "
            "`unbraid.pp.pairs_from_labels` makes pairs."
        )
    return pairs_of_matrix(mdata.obsp[key], f"obsp[{key!r}]")


def components(pairs: Pairs, n_obs: int) -> NDArray[np.int64]:
    """Which cells are of one kind as must-links chain them: ``(n_obs,)`` from 0; a cell without is alone in its own."""
    first, second = pairs.must.T
    graph = sparse.csr_matrix((np.ones(len(first), dtype=np.int8), (first, second)), shape=(n_obs, n_obs))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def check_consistent(pairs: Pairs, n_obs: int, names: Sequence[str] | NDArray | None = None) -> None:
    """Raise ValueError if a cannot-link joins two cells that must-links chain together.

    Parameters
    ----------
    pairs
        The pairs.
    n_obs
        Number of cells.
    names
        Of the cells, for the error; their numbers by default.
    """
    of = components(pairs, n_obs)
    first, second = pairs.cannot.T
    broken = np.flatnonzero(of[first] == of[second])
    if len(broken):
        a, b = pairs.cannot[broken[0]]
        a, b = (a, b) if names is None else (repr(str(names[a])), repr(str(names[b])))
        raise ValueError(
            f"{len(broken)} of {len(pairs.cannot)} cannot-links contradict the must-links: cells {a} and {b} are a "
            "cannot-link, yet a chain of must-links joins them. Remove one of these pairs."
        )


def close_pairs(pairs: Pairs, n_obs: int, max_pairs: int = 5_000_000) -> Pairs:
    """All pairs that follow: must-links within chains of must-links, cannot-links between chains that have one.

    Parameters
    ----------
    pairs
        The pairs.
    n_obs
        Number of cells.
    max_pairs
        More are refused before they are made.

    Raises
    ------
    ValueError
        If the pairs contradict each other, or if there are more than ``max_pairs``.
    """
    check_consistent(pairs, n_obs)
    of = components(pairs, n_obs)
    sizes = np.bincount(of, minlength=1)
    linked = np.unique(np.sort(of[pairs.cannot], axis=1), axis=0)
    n_must, n_cannot = int((sizes * (sizes - 1) // 2).sum()), int(sizes[linked].prod(axis=1).sum())
    if n_must + n_cannot > max_pairs:
        raise ValueError(
            f"{n_must} must-links and {n_cannot} cannot-links follow from these pairs, more than {max_pairs}. "
            "Use the pairs as they are, or fewer of them."
        )
    cells = np.argsort(of, kind="stable")  # each component is a run, from `start`
    start = np.cumsum(sizes) - sizes

    position = np.arange(n_obs)
    n_later = (start + sizes)[of[cells]] - position - 1
    first = np.repeat(position, n_later)
    must = np.stack([cells[first], cells[first + 1 + _count_up(n_later)]], axis=1)

    left, right = linked.T
    n_crossed = sizes[left] * sizes[right]
    count, width = _count_up(n_crossed), np.repeat(sizes[right], n_crossed)
    cannot = np.stack(
        [
            cells[np.repeat(start[left], n_crossed) + count // width],
            cells[np.repeat(start[right], n_crossed) + count % width],
        ],
        axis=1,
    )
    return Pairs(must, cannot)


def _count_up(lengths: NDArray) -> NDArray:
    """0, 1, ..., length - 1 for each length, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _sorted_unique(rows: ArrayLike, name: str) -> NDArray[np.int64]:
    rows = np.asarray(rows)
    if not rows.size:
        return np.empty((0, 2), dtype=np.int64)
    if rows.ndim != 2 or rows.shape[1] != 2 or rows.dtype.kind not in "iu":
        raise ValueError(f"`{name}` must be an (n, 2) array of row numbers, not {rows.dtype} of shape {rows.shape}.")
    rows = np.sort(rows.astype(np.int64), axis=1)
    if rows.min() < 0:
        raise ValueError(f"`{name}` has the row number {rows.min()}; rows are counted from 0.")
    if (rows[:, 0] == rows[:, 1]).any():
        raise ValueError(f"`{name}` pairs cell {rows[rows[:, 0] == rows[:, 1]][0, 0]} with itself.")
    span = rows.max() + 1
    return np.stack(np.divmod(np.unique(rows @ [span, 1]), span), axis=1)
