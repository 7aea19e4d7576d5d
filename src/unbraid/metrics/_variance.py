"""Shares of a modality's variance that codes explain, held out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # times the number of observations, on standardised codes


def held_out_prediction(x: NDArray, codes: Sequence[NDArray], fold: NDArray) -> NDArray:
    """Ridge prediction of `x` `(n, p)` from standardised codes `(n, d_k)` side by side, fitted on the other folds.

    The penalty is the one that predicts best in an inner split of the training part, one for all columns.
    """
    code = np.hstack([np.asarray(c, dtype=np.float64) for c in codes])
    predicted = np.empty_like(x)
    for k in np.unique(fold):
        train, test = np.flatnonzero(fold != k), fold == k
        mean, scale = code[train].mean(0), code[train].std(0)
        z = (code - mean) / np.where(scale > 1e-12, scale, 1.0)
        inner = fold[train] == np.unique(fold[train])[0]
        penalty = _best_penalty(z[train[~inner]], x[train[~inner]], z[train[inner]], x[train[inner]])
        intercept = x[train].mean(0)
        weights = np.linalg.solve(_gram(z[train], penalty), z[train].T @ (x[train] - intercept))
        predicted[test] = intercept + z[test] @ weights
    return predicted


def _best_penalty(z: NDArray, x: NDArray, z_new: NDArray, x_new: NDArray) -> float:
    center, intercept = z.mean(0), x.mean(0)
    z, x = z - center, x - intercept
    values, vectors = np.linalg.eigh(z.T @ z)
    loading = vectors.T @ (z.T @ x)
    rotated, target = (z_new - center) @ vectors, x_new - intercept
    gram, cross = rotated.T @ rotated, np.einsum("kj,kj->k", loading, rotated.T @ target)
    inner = loading @ loading.T
    errors = []
    for penalty in PENALTIES:
        shrink = 1 / (values + penalty * len(z))
        # |target - rotated W|^2 without forming the prediction
        errors.append(np.sum((shrink[:, None] * inner * shrink) * gram) - 2 * np.sum(shrink * cross))
    return PENALTIES[int(np.argmin(errors))]


def _gram(z: NDArray, penalty: float) -> NDArray:
    return z.T @ z + penalty * len(z) * np.eye(z.shape[1])


def explained(x: NDArray, predicted: NDArray) -> NDArray:
    """Per observation, by how much the prediction reduces the squared error of the mean, summed over columns."""
    return ((x - x.mean(0)) ** 2).sum(1) - ((x - predicted) ** 2).sum(1)


def within(values: NDArray, strata: NDArray) -> NDArray:
    """Means of strata in place of the values of their members."""
    totals = np.zeros((strata.max() + 1, values.shape[1]))
    np.add.at(totals, strata, values)
    return (totals / np.bincount(strata).clip(1)[:, None])[strata]
