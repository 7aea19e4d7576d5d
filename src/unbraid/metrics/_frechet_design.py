"""Samples as Gaussians, and the distance between them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from sklearn.covariance import ledoit_wolf, oas
from threadpoolctl import threadpool_limits

from unbraid._messages import check_option, check_range, check_whole
from unbraid.metrics._lookup import values_of
from unbraid.metrics._rows import canonical_order, codes_of, present_rows, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    Shrinkage = Literal["ledoit_wolf", "oas"] | None

ONE_THREAD_BELOW = 300  # features; on fewer, threads wait longer than they work


def gaussian_distance(mean_x: NDArray, cov_x: NDArray, mean_y: NDArray, cov_y: NDArray) -> float:
    root = _root(cov_x)
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_y @ root).clip(0)).sum()
    return max(0.0, float(((mean_x - mean_y) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * cross))


def _root(cov: NDArray) -> NDArray:
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def moments_of(x: NDArray, shrinkage: Shrinkage) -> tuple[NDArray, NDArray]:
    if shrinkage is None:
        return x.mean(axis=0), np.cov(x, rowvar=False).reshape(x.shape[1], -1)
    return x.mean(axis=0), {"ledoit_wolf": ledoit_wolf, "oas": oas}[shrinkage](x)[0]


@dataclass(frozen=True)
class Rows:
    x: NDArray  # (n, d)
    groups: NDArray | None  # (n,) codes 0 to n_groups - 1

    def __len__(self) -> int:
        return len(self.x)

    @property
    def n_groups(self) -> int:
        return len(self) if self.groups is None else int(self.groups.max()) + 1

    def __getitem__(self, rows: NDArray) -> Rows:
        groups = None if self.groups is None else np.unique(self.groups[rows], return_inverse=True)[1]
        return Rows(self.x[rows], groups)

    def subset(self, n: int, rng: np.random.Generator) -> Rows:
        return self[np.sort(rng.choice(len(self), n, replace=False))] if n < len(self) else self

    def resampled(self, rng: np.random.Generator) -> NDArray:
        times = np.bincount(rng.integers(self.n_groups, size=self.n_groups), minlength=self.n_groups)
        return self.x[np.repeat(np.arange(len(self)), times if self.groups is None else times[self.groups])]


def read_samples(
    given: dict[str, tuple[ArrayLike, ArrayLike | None]],
    feature_extractor: Callable[[ArrayLike], ArrayLike] | None,
    equal_n: bool,
    rng: np.random.Generator,
) -> tuple[list[Rows], int]:
    """The rows that are there, in an order that does not depend on theirs, and how many are not used."""
    samples, n_given = [], 0
    for name, (raw, groups) in given.items():
        x = rows_of(None, raw if feature_extractor is None else feature_extractor(raw), name)
        keep = present_rows(x, name)
        codes = None if groups is None else codes_of(values_of(raw, groups, f"{name}_groups", len(x))[keep], "group")
        sample = Rows(x[keep], codes)
        samples.append(sample[canonical_order(sample.x, *([] if codes is None else [codes]))])
        n_given += len(x)
        if len(sample) < 2:
            raise ValueError(f"{name} has {len(sample)} rows; a covariance needs at least two.")
        if x.shape[1] != samples[0].x.shape[1]:
            raise ValueError(f"{next(iter(given))} has {samples[0].x.shape[1]} features, but {name} has {x.shape[1]}.")
    if equal_n:
        n = min(map(len, samples))
        samples = [each.subset(n, rng) for each in samples]
    return samples, n_given - sum(map(len, samples))


def check_options(shrinkage: Shrinkage, n_bootstrap: int, confidence: float) -> None:
    check_option("shrinkage", shrinkage, (None, "ledoit_wolf", "oas"))
    check_whole("n_bootstrap", n_bootstrap, 0)
    check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")


def few_threads(samples: list[Rows]) -> AbstractContextManager:
    return threadpool_limits(1) if samples[0].x.shape[1] < ONE_THREAD_BELOW else nullcontext()
