"""A split, critics on its held-out rows, and the bounds that turn them into nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.special import logsumexp

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Fold:
    """One split: all rows of both sides, and which rows train and test."""

    a: NDArray
    b: NDArray
    train: NDArray
    test: NDArray
    strata: NDArray | None
    groups: NDArray | None

    def inner_parts(self, n_parts: int, rng: np.random.Generator) -> list[NDArray]:
        """Random parts of the training rows, groups on one side."""
        units = np.arange(len(self.train)) if self.groups is None else self.groups[self.train]
        _, unit = np.unique(units, return_inverse=True)
        n_units = int(unit.max()) + 1
        if n_units < n_parts:  # too few groups to keep them together
            return np.array_split(rng.permutation(self.train), n_parts)
        part = rng.permutation(np.arange(n_units) % n_parts)[unit]
        return [rng.permutation(self.train[part == k]) for k in range(n_parts)]

    def blocks(self, rows: NDArray) -> list[NDArray]:
        """Positions in `rows`, by stratum: the pairs that may be compared."""
        if self.strata is None:
            return [np.arange(len(rows))]
        order = np.argsort(self.strata[rows], kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.strata[rows][order])) + 1)


@dataclass(frozen=True)
class Critic:
    """f(i, j) = x_i . y_j + s_i + t_j on held-out rows."""

    x: NDArray
    y: NDArray
    s: NDArray
    t: NDArray

    def pairs(self, rows: NDArray) -> NDArray:
        """(m, m): f of all pairs of `rows`."""
        return self.x[rows] @ self.y[rows].T + self.s[rows, None] + self.t[rows]

    def own(self) -> NDArray:
        """(m,): f of the true pairs."""
        return np.einsum("ij,ij->i", self.x, self.y) + self.s + self.t


@dataclass(frozen=True)
class Tabulated:
    """As :class:`Critic`, from the matrix of f of all pairs."""

    f: NDArray

    def pairs(self, rows: NDArray) -> NDArray:
        """(m, m): f of all pairs of `rows`, a copy."""
        return self.f[np.ix_(rows, rows)] if len(rows) < len(self.f) else self.f.copy()

    def own(self) -> NDArray:
        """(m,): f of the true pairs."""
        return np.diagonal(self.f)


def donsker_varadhan(critic: Critic | Tabulated, blocks: list[NDArray]) -> NDArray:
    """F of the true pairs less the log of the mean ratio over other pairs, where that is positive."""
    return critic.own() - max(0.0, _log_mean_ratio(critic, blocks, np.inf))


def smile(critic: Critic | Tabulated, blocks: list[NDArray], clip: float = 5.0) -> NDArray:
    """Song and Ermon (2020), eq. 10: ratios of other pairs clipped to exp(-clip), exp(clip)."""
    return critic.own() - _log_mean_ratio(critic, blocks, clip)


def info_nce(critic: Critic | Tabulated, blocks: list[NDArray]) -> NDArray:
    """Van den Oord et al. (2018), against the other rows of either side; both are bounds, and so is their mean."""
    own = critic.own()
    scores = np.zeros(len(own))
    for rows in blocks:
        f = critic.pairs(rows)
        scores[rows] = own[rows] - (_log_sum(f, 0) + _log_sum(f, 1)) / 2 + np.log(len(rows))
    return scores


def _log_sum(f: NDArray, axis: int) -> NDArray:
    """Log of the sum of exp(f); SciPy's takes three times as long."""
    peak = f.max(axis=axis, keepdims=True)
    return np.log(np.exp(f - peak).sum(axis=axis)) + peak.squeeze(axis)


def _log_mean_ratio(critic: Critic | Tabulated, blocks: list[NDArray], clip: float) -> float:
    """Log of the mean of exp(f) over pairs of different rows of one stratum, strata weighted by their size."""
    terms, weights = [], []
    for rows in blocks:
        if len(rows) > 1:
            f = critic.pairs(rows)
            if np.isfinite(clip):
                np.clip(f, -clip, clip, out=f)
            np.fill_diagonal(f, -np.inf)
            peak = f.max()
            f -= peak
            terms.append(np.log(np.exp(f, out=f).sum(dtype=float)) + peak - np.log(len(rows) * (len(rows) - 1)))
            weights.append(len(rows))
    return float(logsumexp(terms, b=np.array(weights) / np.sum(weights))) if terms else 0.0


def standardised(z: NDArray, train: NDArray, strata: NDArray | None) -> NDArray:
    """Less the training mean (of the stratum), over the training standard deviation; constants become 0."""
    if strata is None:
        z = z - z[train].mean(axis=0)
    else:
        ones = sparse.csr_array(
            (np.ones(len(train)), (strata[train], np.arange(len(train)))), (strata.max() + 1, len(train))
        )
        size = np.maximum(ones.sum(axis=1), 1)
        z = z - ((ones @ z[train]) / size[:, None])[strata]
    scale = z[train].std(axis=0)
    return z / np.where(scale > 1e-8, scale, np.inf)
