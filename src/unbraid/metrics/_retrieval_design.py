"""Who is asked in a retrieval, who are the candidates, and how many of them are closer than the true match."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unbraid.metrics._lookup import values_of
from unbraid.metrics._rows import codes_of, present_rows, rows_of

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

BLOCK = 4_000_000  # similarities held at a time
TIE = 1e-10  # similarities that differ by less, relative to their possible size, differ by rounding only


@dataclass(frozen=True)
class Sides:
    """Queries and what they are matched to."""

    query: NDArray  # (n_queries, d)
    target: NDArray  # (n_targets, d)
    query_present: NDArray  # (n_queries,) bool
    target_present: NDArray
    query_codes: NDArray  # (n_queries,) code of the true match
    target_codes: NDArray  # (n_targets,) code of the candidate that a row belongs to
    query_strata: NDArray
    target_strata: NDArray | None  # None: the target has no strata of its own
    units: NDArray | None  # (n_queries,) what the bootstrap draws
    is_grouped: bool


def read_sides(
    data: AnnData | MuData | None,
    query: ArrayLike | str,
    target: ArrayLike | str,
    query_groups: ArrayLike | str | None,
    target_groups: ArrayLike | str | None,
    groups: ArrayLike | str | None,
    strata: ArrayLike | str | None,
) -> Sides:
    """What the user has, as arrays and codes."""
    given = query, target
    query, target = rows_of(data, query, "query"), rows_of(data, target, "target")
    if query.shape[1] != target.shape[1]:
        raise ValueError(f"query has {query.shape[1]} features, but target has {target.shape[1]}.")
    n, n_targets = len(query), len(target)
    query_present, target_present = present_rows(query, "query"), present_rows(target, "target")

    def labels(values: ArrayLike | str, name: str, of: int) -> pd.Series:
        rows = data if isinstance(given[of], str) or isinstance(values, str) else given[of]
        return values_of(rows, values, name, (n, n_targets)[of])

    is_grouped = query_groups is not None or target_groups is not None
    if is_grouped:
        if (query_groups is None or target_groups is None) and n != n_targets:
            absent, has = (
                ("query_groups", "target_groups") if query_groups is None else ("target_groups", "query_groups")
            )
            raise ValueError(
                f"query has {n} rows and target {n_targets}, so {has} cannot stand for both: pass {absent}, too."
            )
        query_labels = labels(query_groups if query_groups is not None else target_groups, "query_groups", 0)
        target_labels = labels(target_groups if target_groups is not None else query_groups, "target_groups", 1)
        for present, of_rows in ((query_present, query_labels), (target_present, target_labels)):
            codes_of(of_rows[present], "group")
        codes = codes_of(pd.concat([query_labels.astype(str), target_labels.astype(str)]), "group")
        query_codes, target_codes = codes[:n], codes[n:]
        unknown = query_present & ~np.isin(query_codes, target_codes)
        if unknown.any():
            raise ValueError(
                f"{int(unknown.sum())} of {n} queries are of a group that the target does not have, such as "
                f"{query_labels[unknown].iloc[0]}."
            )
        query_present &= np.isin(query_codes, target_codes[target_present])
    else:
        if n != n_targets:
            raise ValueError(
                f"query has {n} rows and target {n_targets}. Row i of one must match row i of the other, or pass "
                "query_groups and target_groups."
            )
        query_present = target_present = query_present & target_present
        query_codes = target_codes = np.arange(n)

    query_strata, target_strata = np.zeros(n, dtype=int), np.zeros(n_targets, dtype=int)
    if strata is not None:
        query_strata = codes_of(labels(strata, "strata", 0), "stratum")
        is_aligned = n == n_targets and (query_codes == target_codes).all()
        target_strata = query_strata if is_aligned else None
    units = query_codes if is_grouped else None
    if groups is not None:
        units = codes_of(labels(groups, "groups", 0), "group")
    return Sides(
        query,
        target,
        query_present,
        target_present,
        query_codes,
        target_codes,
        query_strata,
        target_strata,
        units,
        is_grouped,
    )


def _average(x: NDArray, key: NDArray) -> tuple[NDArray, NDArray]:
    """Mean of the rows of each key, and a row that has it."""
    _, first, code = np.unique(key, axis=0, return_index=True, return_inverse=True)
    code = code.ravel()
    total = np.zeros((len(first), x.shape[1]))
    np.add.at(total, code, x)
    return total / np.bincount(code)[:, None], first


def average_queries(sides: Sides) -> Sides:
    """One query of each group, within each stratum."""
    rows = np.flatnonzero(sides.query_present)
    mean, first = _average(sides.query[rows], np.stack([sides.query_codes[rows], sides.query_strata[rows]], axis=1))
    first = rows[first]
    return replace(
        sides,
        query=mean,
        query_present=np.ones(len(mean), dtype=bool),
        query_codes=sides.query_codes[first],
        query_strata=sides.query_strata[first],
        units=None if sides.units is None else sides.units[first],
    )


def average_targets(sides: Sides) -> Sides:
    """One row of each candidate, within each stratum."""
    rows = np.flatnonzero(sides.target_present)
    strata = np.zeros(len(sides.target), dtype=int) if sides.target_strata is None else sides.target_strata
    mean, first = _average(sides.target[rows], np.stack([sides.target_codes[rows], strata[rows]], axis=1))
    first = rows[first]
    return replace(
        sides,
        target=mean,
        target_present=np.ones(len(mean), dtype=bool),
        target_codes=sides.target_codes[first],
        target_strata=None if sides.target_strata is None else strata[first],
    )


def count_closer(sides: Sides, asked: NDArray, metric: str) -> tuple[NDArray, NDArray, NDArray]:
    """Of each query asked: candidates closer than the true match, others as close, and all candidates."""
    query, target_all = sides.query, sides.target
    if metric == "euclidean":  # less cancellation in |q|^2 - 2 q.t + |t|^2
        centre = target_all[sides.target_present].mean(axis=0) if sides.target_present.any() else 0.0
        query, target_all = query - centre, target_all - centre
    closer, tied, n_candidates = (np.zeros(len(asked), dtype=int) for _ in range(3))
    for stratum in np.unique(sides.query_strata[asked]):
        queries = np.flatnonzero(sides.query_strata[asked] == stratum)
        if sides.target_strata is None:
            asked_for = sides.query_codes[sides.query_present & (sides.query_strata == stratum)]
            rows = sides.target_present & np.isin(sides.target_codes, asked_for)
        else:
            rows = sides.target_present & (sides.target_strata == stratum)
        rows = np.flatnonzero(rows)
        rows = rows[np.argsort(sides.target_codes[rows], kind="stable")]  # rows of a candidate side by side
        candidates, start = np.unique(sides.target_codes[rows], return_index=True)
        target = target_all[rows]
        true = np.searchsorted(candidates, sides.query_codes[asked[queries]])
        found = np.isin(sides.query_codes[asked[queries]], candidates)
        queries, true = queries[found], true[found]
        n_candidates[queries] = len(candidates)
        square = (target**2).sum(axis=1)
        length = np.sqrt(square.max(initial=0))
        for block in np.array_split(np.arange(len(queries)), max(1, -(-len(queries) * len(rows) // BLOCK))):
            x = query[asked[queries[block]]]
            similarity = x @ target.T
            scale = np.linalg.norm(x, axis=1, keepdims=True) * length
            if metric == "euclidean":  # minus half the squared distance, up to what is the same for all candidates
                similarity -= square / 2
                scale += length**2
            if len(candidates) < len(rows):
                similarity = np.maximum.reduceat(similarity, start, axis=1)
            of_true = np.take_along_axis(similarity, true[block, None], axis=1)
            closer[queries[block]] = (similarity > of_true + TIE * scale).sum(axis=1)
            as_close = (similarity >= of_true - TIE * scale).sum(axis=1)  # also the true match
            tied[queries[block]] = as_close - closer[queries[block]] - 1
    return closer, tied, n_candidates
