"""Two embeddings of the same observations, with what conditions and what groups them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from unbraid.metrics._lookup import embedding_of, values_of
from unbraid.metrics._resampling import permutations_within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Pairs:
    """Complete observations, in an order that does not depend on theirs."""

    a: NDArray
    b: NDArray
    strata: NDArray | None
    groups: NDArray | None
    n_dropped: int

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, rows: NDArray) -> Pairs:
        of = lambda values: None if values is None else np.unique(values[rows], return_inverse=True)[1]
        return replace(self, a=self.a[rows], b=self.b[rows], strata=of(self.strata), groups=of(self.groups))

    @property
    def n_groups(self) -> int | None:
        """Number of groups, None without."""
        return None if self.groups is None else int(self.groups.max()) + 1

    @property
    def n_strata(self) -> int | None:
        """Number of strata, None without."""
        return None if self.strata is None else int(self.strata.max()) + 1

    def subset(self, max_obs: int | None, rng: np.random.Generator) -> Pairs:
        """At most so many of them."""
        if max_obs is None or len(self) <= max_obs:
            return self
        return self[np.sort(rng.choice(len(self), max_obs, replace=False))]


def read_pairs(
    a: ArrayLike | str,
    b: ArrayLike | str,
    data: AnnData | MuData | None,
    strata: ArrayLike | str | Sequence[str] | None,
    groups: ArrayLike | str | None,
    least: int,
) -> Pairs:
    """Look both sides up, leave out what is missing in either, and check the rest; `least` observations are needed."""
    if data is not None and not isinstance(data, AnnData | MuData):
        raise ValueError("data must be an AnnData or MuData; arrays go into a and b.")
    sides = {name: _embedding(side, data, name) for name, side in (("a", a), ("b", b))}
    n = len(sides["a"])
    if len(sides["b"]) != n:
        raise ValueError(f"a has {n} rows, but b has {len(sides['b'])}: pass the same observations in both.")
    source = data if data is not None else a if isinstance(a, pd.DataFrame) else sides["a"]

    keep = np.ones(n, dtype=bool)
    for name, x in sides.items():
        is_nan = np.isnan(x)
        absent = is_nan.all(axis=1)
        if n_partly := int((is_nan.any(axis=1) & ~absent).sum()):
            raise ValueError(
                f"{n_partly} of {n} rows of {name} are NaN in some features but not in all. Fill or drop these "
                "features, or set the whole row to NaN to leave it out as missing."
            )
        if n_infinite := int(np.isinf(x).any(axis=1).sum()):
            raise ValueError(f"{n_infinite} of {n} rows of {name} are infinite.")
        keep &= ~absent
    n_kept = int(keep.sum())
    if n_kept < least:
        raise ValueError(f"{n_kept} observations have both a and b; at least {least} are needed.")

    stratum = None if strata is None else _codes(_columns(source, strata, n), keep, "stratum")
    group = None if groups is None else _codes([values_of(source, groups, "groups", n)], keep, "group")
    found = Pairs(sides["a"][keep], sides["b"][keep], stratum, group, n - n_kept)
    columns = np.concatenate([found.a, found.b], axis=1).T[::-1]
    codes = [values for values in (stratum, group) if values is not None]
    return found[np.lexsort((*codes, *columns))]


def _embedding(side: ArrayLike | str, data: AnnData | MuData | None, name: str) -> NDArray:
    if isinstance(side, str):
        if data is None:
            raise ValueError(f"{name}={side!r} names an embedding, but there is no data: pass data=, or the array.")
        return embedding_of(data, side)
    if isinstance(side, AnnData | MuData):
        raise ValueError(f"{name} must be an array or a key: pass the object as data= and name its embedding.")
    if np.ndim(side) == 1:
        side = np.asarray(side).reshape(-1, 1)
    try:
        return embedding_of(side, None)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _columns(source: object, strata: ArrayLike | str | Sequence[str], n: int) -> list[pd.Series]:
    """One column, or several that are crossed."""
    names_columns = (
        isinstance(strata, list | tuple)
        and isinstance(source, AnnData | MuData)
        and all(isinstance(name, str) for name in strata)
    )
    if names_columns and not strata:
        raise ValueError("strata is empty; name a column, or leave it out.")
    return [values_of(source, column, "strata", n) for column in (strata if names_columns else [strata])]


def _codes(columns: list[pd.Series], keep: NDArray, name: str) -> NDArray:
    codes = []
    for values in columns:
        values = values[keep]
        if values.isna().any():
            raise ValueError(
                f"{int(values.isna().sum())} of {len(values)} observations have no {name}. Give each one, or leave "
                "these observations out."
            )
        codes.append(np.unique(values.astype(str).to_numpy(dtype=str), return_inverse=True)[1])
    return np.unique(np.stack(codes), axis=1, return_inverse=True)[1].ravel()


def is_constant_within(groups: NDArray, x: NDArray) -> bool:
    """Whether all rows of a group are equal."""
    first = np.unique(groups, return_index=True)[1]
    return bool((x == x[first][groups]).all())


def permuted_side(pairs: Pairs) -> tuple[str, bool]:
    """Which side is permuted, and whether as whole groups: the one that is constant within groups, if one is."""
    if pairs.groups is not None:
        for name in ("b", "a"):
            if is_constant_within(pairs.groups, getattr(pairs, name)):
                return name, True
    return "b", False


def orders(pairs: Pairs, rng: np.random.Generator, fold: NDArray | None = None) -> Iterator[NDArray]:
    """Endless orders of the rows of one side under no dependence, within strata (and folds).

    Without groups, rows are permuted. With groups, rows within their group; or, where the permuted side is constant
    within groups, whole groups: every row gets the value of the group that takes the place of its own. A group that is
    in several strata counts as several.
    """
    codes = [values for values in (pairs.strata, fold) if values is not None]
    if pairs.groups is None or not permuted_side(pairs)[1]:
        codes += [] if pairs.groups is None else [pairs.groups]
        yield from permutations_within(_crossed(codes), len(pairs), rng)
    unit = _crossed([pairs.groups, *codes])
    first = np.unique(unit, return_index=True)[1]
    within = _crossed([values[first] for values in codes])
    for order in permutations_within(within, len(first), rng):
        yield first[order][unit]


def _crossed(codes: list[NDArray]) -> NDArray | None:
    return np.unique(np.stack(codes), axis=1, return_inverse=True)[1].ravel() if codes else None
