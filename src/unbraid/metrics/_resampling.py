"""Bootstrap over units and permutations within strata."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

N_BOOTSTRAP = 1_000


def percentiles(scores: NDArray, confidence: float) -> tuple[float, float]:
    """Central interval of `scores`; NaN where there are none."""
    if len(scores) == 0:
        return (np.nan, np.nan)
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_sums(values: NDArray, groups: NDArray | None, rng: np.random.Generator) -> NDArray:
    """Sums over bootstrap samples of units.

    Parameters
    ----------
    values
        `(n_obs,)` or `(n_obs, k)`: what each observation adds.
    groups
        `(n_obs,)` codes 0 to n_groups - 1, the units; None: observations are the units.
    rng
        Source of the draws.

    Returns
    -------
    `(N_BOOTSTRAP, k)`: a ratio of two columns is then a ratio of bootstrapped sums.
    """
    values = values.reshape(len(values), -1)
    if groups is not None:
        values = np.stack([np.bincount(groups, column) for column in values.T], axis=1)
    n = len(values)
    return np.stack([np.bincount(rng.integers(n, size=n), minlength=n) @ values for _ in range(N_BOOTSTRAP)])


def mean_interval(
    values: NDArray, groups: NDArray | None, confidence: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Interval of the mean over observations, from bootstrap samples of groups (or of observations)."""
    sums = bootstrap_sums(np.stack([values, np.ones(len(values))], axis=1), groups, rng)
    return percentiles(sums[:, 0] / sums[:, 1], confidence)


def permutations_within(strata: NDArray | None, n: int, rng: np.random.Generator) -> Iterator[NDArray]:
    """Endless permutations of `n` rows that keep every row in its stratum."""
    if strata is None:
        while True:
            yield rng.permutation(n)
    members = np.argsort(strata, kind="stable")
    while True:
        order = np.empty(n, dtype=int)
        order[members] = np.lexsort((rng.random(n), strata))
        yield order
