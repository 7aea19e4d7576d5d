"""Critics that need no iterations: canonical correlations, of features or of their monomials, and ridge regression."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from unbraid.metrics._bounds import Critic, Tabulated, donsker_varadhan, info_nce, standardised

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from unbraid.metrics._bounds import Fold

N_INNER = 3  # folds within the training part; what a critic has learned is shrunk to what holds up on them
RIDGE = 1e-3  # of the variance of a feature
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
MOST_CORRELATION = 1 - 1e-6
LEAST_DEVIATIONS = 1.4  # standard errors; a smaller held-out correlation is taken for 0
DENSE_FEATURES = 90  # more directions than that are mostly noise at a few thousand rows
SPARSE_FEATURES = 600
SPARSE_DEVIATIONS = 4.5  # standard errors; smaller correlations of many monomials are taken for 0
MOST_DIRECTIONS = 32
N_WEIGHTS = {1: 6, 2: 4}  # between 0 and 1, of one critic or of each of two
ROWS_FOR_WEIGHTS = 256


@dataclass(frozen=True)
class Products:
    """Sums of products of features over rows."""

    n: int
    ab: NDArray
    aa: NDArray | None = None
    bb: NDArray | None = None

    def __add__(self, other: Products) -> Products:
        return self._with(other, 1)

    def __sub__(self, other: Products) -> Products:
        return self._with(other, -1)

    def _with(self, other: Products, sign: int) -> Products:
        both = lambda mine, others: None if mine is None else mine + sign * others
        return Products(
            self.n + sign * other.n, both(self.ab, other.ab), both(self.aa, other.aa), both(self.bb, other.bb)
        )


@dataclass(frozen=True)
class Directions:
    """Variates a @ left and b @ right, of unit held-out variance, and their held-out correlations."""

    left: NDArray
    right: NDArray
    rho: NDArray

    def critic(self, a: NDArray, b: NDArray) -> Critic:
        """Sum over pairs of variates of log N(u, v; rho) - log N(u) - log N(v)."""
        u, v, rho = a @ self.left, b @ self.right, self.rho
        slope = rho / (1 - rho**2)
        constant = -np.log1p(-(rho**2)).sum() / 2
        return Critic(u * slope, v, constant - u**2 @ (rho * slope) / 2, -(v**2) @ (rho * slope) / 2)


@dataclass(frozen=True)
class Regression:
    """Predictions b @ weights of a @ whitening, both of unit held-out variance, and what they leave unexplained."""

    whitening: NDArray
    weights: NDArray
    noise: NDArray

    def critic(self, a: NDArray, b: NDArray) -> Critic:
        """Sum over features of log N(a; prediction, noise) - log N(a; 0, 1)."""
        truth, predicted, noise = a @ self.whitening, b @ self.weights, self.noise
        constant = -np.log(noise).sum() / 2
        return Critic(
            truth / noise, predicted, constant + truth**2 @ (1 - 1 / noise) / 2, -(predicted**2) @ (1 / noise) / 2
        )


@dataclass(frozen=True)
class Fitted:
    """A model of the whole training part, and of it without each of its inner folds."""

    whole: Directions | Regression
    without: list[Directions | Regression]
    nats: float


def canonical(fold: Fold, rng: np.random.Generator) -> Critic | None:
    """Canonical correlation analysis."""
    parts = fold.inner_parts(N_INNER, rng)
    linear = _correlated(fold.a, fold.b, parts, _sums_of_products(fold.a, fold.b, parts), _canonical_directions)
    return _weighted([(linear, fold.a, fold.b)], fold, parts, donsker_varadhan)


def quadratic(fold: Fold, rng: np.random.Generator) -> Critic | None:
    """Canonical correlations, and correlated directions of monomials: of a few densely, or of many sparsely."""
    parts = fold.inner_parts(N_INNER, rng)
    linear = _correlated(fold.a, fold.b, parts, _sums_of_products(fold.a, fold.b, parts), _canonical_directions)
    a, b = (_monomials(z, fold) for z in (fold.a, fold.b))
    products = _sums_of_products(a, b, parts, only_across=True)
    for part in products:  # features with features are in the linear term
        part.ab[: fold.a.shape[1], : fold.b.shape[1]] = 0
    found = [_correlated(a, b, parts, products, directions) for directions in (_dense_directions, _sparse_directions)]
    best = max(found, key=lambda fitted: 0 if fitted is None else fitted.nats)
    return _weighted([(linear, fold.a, fold.b), (best, a, b)], fold, parts, info_nce)


def ridge(fold: Fold, rng: np.random.Generator) -> Critic | None:
    """Ridge regression of whitened `a` on `b`."""
    parts = fold.inner_parts(N_INNER, rng)
    fitted = _regressed(fold.a, fold.b, parts, _sums_of_products(fold.a, fold.b, parts))
    return _weighted([(fitted, fold.a, fold.b)], fold, parts, donsker_varadhan)


FIT = {"canonical": canonical, "quadratic": quadratic, "ridge": ridge}


# --------------------------------------------------------------------------------------------------
# Within the training part


def _sums_of_products(a: NDArray, b: NDArray, parts: list[NDArray], *, only_across: bool = False) -> list[Products]:
    found = []
    for rows in parts:
        x, y = a[rows], b[rows]
        found.append(Products(len(rows), x.T @ y, *(() if only_across else (x.T @ x, y.T @ y))))
    return found


def _total(products: list[Products]) -> Products:
    first, *rest = products
    return sum(rest, first)


def _correlated(
    a: NDArray,
    b: NDArray,
    parts: list[NDArray],
    products: list[Products],
    directions: Callable[[Products], tuple[NDArray, NDArray]],
) -> Fitted | None:
    """Directions of the whole part, with the correlations that directions of its other folds keep on a fold.

    The j-th direction of the whole part is taken to do as well as the j-th of the other folds. Correlations are
    shrunk to rho (1 - 1.4^2 / (n rho^2)), and those below 1.4 standard errors to 0.
    """
    total = _total(products)
    left, right = directions(total)
    most = left.shape[1]
    if most == 0:
        return None
    inner, moments = [], np.zeros((3, most))
    for rows, part in zip(parts, products, strict=True):
        inner_left, inner_right = (_padded(side, most) for side in directions(total - part))
        u, v = a[rows] @ inner_left, b[rows] @ inner_right
        moments += np.stack([np.einsum("ij,ij->j", x, y) for x, y in ((u, v), (u, u), (v, v))])
        inner.append((inner_left, inner_right))
    covariance, u_variance, v_variance = moments / total.n
    spread = np.sqrt(u_variance * v_variance)
    rho = np.divide(covariance, spread, out=np.zeros(most), where=spread > 0)
    rho *= np.clip(1 - LEAST_DEVIATIONS**2 / (total.n * np.maximum(rho, 1e-12) ** 2), 0, None)
    keep = rho > 0
    if not keep.any():
        return None
    rho = np.minimum(rho[keep], MOST_CORRELATION)
    scaled = lambda left, right: Directions(
        left[:, keep] / np.sqrt(u_variance[keep]), right[:, keep] / np.sqrt(v_variance[keep]), rho
    )
    return Fitted(scaled(left, right), [scaled(*pair) for pair in inner], -np.log1p(-(rho**2)).sum() / 2)


def _regressed(a: NDArray, b: NDArray, parts: list[NDArray], products: list[Products]) -> Fitted | None:
    """Ridge regression with the penalty that does best on inner folds, of what it explains there."""
    total = _total(products)
    whitening = _whitening(total.aa / total.n)
    whitened = a @ whitening
    inner = [_ridge_weights(total - part, whitening) for part in products]
    squares, variance = np.zeros((len(PENALTIES), a.shape[1])), np.zeros(a.shape[1])
    for rows, weights in zip(parts, inner, strict=True):
        variance += (whitened[rows] ** 2).sum(axis=0) / total.n
        for k, some in enumerate(weights):
            squares[k] += ((whitened[rows] - b[rows] @ some) ** 2).sum(axis=0)
    unexplained = squares / total.n / np.where(variance > 0, variance, 1)
    unexplained = np.clip(unexplained, 1 - MOST_CORRELATION**2, 1)
    best = int(np.argmin(np.log(unexplained).sum(axis=1)))
    keep = 1 - unexplained[best] > LEAST_DEVIATIONS**2 / total.n
    if not keep.any():
        return None
    noise, scale = unexplained[best][keep], np.sqrt(variance[keep])
    scaled = lambda weights: Regression(whitening[:, keep] / scale, weights[best][:, keep] / scale, noise)
    return Fitted(
        scaled(_ridge_weights(total, whitening)), [scaled(weights) for weights in inner], -np.log(noise).sum() / 2
    )


def _weighted(
    terms: list[tuple[Fitted | None, NDArray, NDArray]],
    fold: Fold,
    parts: list[NDArray],
    bound: Callable[[Critic | Tabulated, list[NDArray]], NDArray],
) -> Critic | None:
    """The sum of critics that has the highest bound on the inner folds; none where no sum exceeds its error."""
    terms = [(fitted, a, b) for fitted, a, b in terms if fitted is not None]
    if not terms:
        return None
    inner, blocks = [], []
    for k, part in enumerate(parts):
        rows = part[:ROWS_FOR_WEIGHTS]
        every = np.arange(len(rows))
        critics = [fitted.without[k].critic(a[rows], b[rows]) for fitted, a, b in terms]
        inner.append(np.stack([critic.pairs(every) for critic in critics]).astype(np.float32))
        blocks.append(fold.blocks(rows))
    best, best_weights = 0.0, None
    grid = np.linspace(0, 1, N_WEIGHTS[len(terms)], dtype=np.float32)
    for weights in product(grid, repeat=len(terms)):
        if any(weights):
            scores = np.concatenate(
                [
                    bound(Tabulated(np.einsum("t,tij->ij", weights, f)), pairs)
                    for f, pairs in zip(inner, blocks, strict=True)
                ]
            )
            if scores.mean() > max(best, scores.std() / np.sqrt(len(scores))):
                best, best_weights = scores.mean(), weights
    if best_weights is None:
        return None
    return _combined([fitted.whole.critic(a[fold.test], b[fold.test]) for fitted, a, b in terms], best_weights)


def _combined(critics: list[Critic], weights: tuple[float, ...]) -> Critic:
    return Critic(
        np.concatenate([weight * critic.x for critic, weight in zip(critics, weights, strict=True)], axis=1),
        np.concatenate([critic.y for critic in critics], axis=1),
        sum(weight * critic.s for critic, weight in zip(critics, weights, strict=True)),
        sum(weight * critic.t for critic, weight in zip(critics, weights, strict=True)),
    )


# --------------------------------------------------------------------------------------------------
# Directions


def _canonical_directions(products: Products) -> tuple[NDArray, NDArray]:
    most = max(1, products.n // 4)  # of more directions than that, too little is known
    white_a, white_b = (_whitening(gram / products.n, most) for gram in (products.aa, products.bb))
    left, _, right = np.linalg.svd(white_a.T @ (products.ab / products.n) @ white_b, full_matrices=False)
    return white_a @ left, white_b @ right.T


def _dense_directions(products: Products) -> tuple[NDArray, NDArray]:
    p, q = (min(size, DENSE_FEATURES) for size in products.ab.shape)
    return _leading(products.ab, np.arange(p), np.arange(q))


def _sparse_directions(products: Products) -> tuple[NDArray, NDArray]:
    correlation = products.ab / products.n
    kept = np.where(np.abs(correlation) > SPARSE_DEVIATIONS / np.sqrt(products.n), correlation, 0)
    return _leading(kept, np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0)))


def _leading(correlation: NDArray, rows: NDArray, columns: NDArray) -> tuple[NDArray, NDArray]:
    """Leading singular vectors of a submatrix, as those of the whole."""
    k = min(len(rows), len(columns), MOST_DIRECTIONS)
    left, right = np.zeros((len(correlation), k)), np.zeros((correlation.shape[1], k))
    if k:
        u, _, v = np.linalg.svd(correlation[np.ix_(rows, columns)], full_matrices=False)
        left[rows], right[columns] = u[:, :k], v[:k].T
    return left, right


def _padded(directions: NDArray, most: int) -> NDArray:
    """Exactly `most` columns."""
    return np.pad(directions[:, :most], ((0, 0), (0, max(0, most - directions.shape[1]))))


def _whitening(covariance: NDArray, most: int | None = None) -> NDArray:
    """Symmetric inverse square root; with `most`, of the leading directions only."""
    variance, directions = np.linalg.eigh(covariance)
    scale = 1 / np.sqrt(np.maximum(variance, 0) + RIDGE)
    if most is not None and most < len(scale):
        return directions[:, -most:] * scale[-most:]
    return directions * scale @ directions.T


def _ridge_weights(products: Products, whitening: NDArray) -> list[NDArray]:
    """(q, p) for every penalty."""
    variance, directions = np.linalg.eigh(products.bb / products.n)
    rotated = directions.T @ (products.ab.T / products.n) @ whitening
    return [directions @ (rotated / (np.maximum(variance, 0) + penalty)[:, None]) for penalty in PENALTIES]


def _monomials(z: NDArray, fold: Fold) -> NDArray:
    """Whitened features, their squares, and their products, standardised; at most SPARSE_FEATURES of them."""
    w = z @ _whitening(z[fold.train].T @ z[fold.train] / len(fold.train))
    p = w.shape[1]
    first, second = np.triu_indices(p, 1)
    nearest = np.argsort(first + second, kind="stable")[: max(0, SPARSE_FEATURES - 2 * p)]
    every = np.concatenate([w, w**2, w[:, first[nearest]] * w[:, second[nearest]]], axis=1)
    return standardised(np.clip(every, -9, 9), fold.train, fold.strata).astype(np.float32)
