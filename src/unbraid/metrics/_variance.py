"""Shares of a modality's variance that codes explain, held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # times the number of observations, on standardised codes


@dataclass(frozen=True)
class Prediction:
    """Held-out predictions, and how much learning from a finite sample inflated their squared errors."""

    values: NDArray  # (n, p)
    inflation: NDArray  # (n,)


def held_out_prediction(x: NDArray, codes: Sequence[NDArray], fold: NDArray) -> Prediction:
    """Ridge prediction of `x` `(n, p)` from standardised codes `(n, d_k)` side by side, fitted on the other folds.

    The penalty is the one that predicts best in an inner split of the training part, one for all columns. With k
    effective parameters and m training observations, the squared error exceeds that of the best linear prediction by
    about (1 + 1 / m) (1 + k / (m - k - 2)), which is exact for least squares on Gaussian codes.
    """
    code = np.hstack([np.asarray(c, dtype=np.float64) for c in codes])
    predicted, inflation = np.empty_like(x), np.ones(len(x))
    for k in np.unique(fold):
        train, test = np.flatnonzero(fold != k), fold == k
        mean, scale = code[train].mean(0), code[train].std(0)
        z = (code - mean) / np.where(scale > 1e-12, scale, 1.0)
        inner = fold[train] == np.unique(fold[train])[0]
        penalty = _best_penalty(z[train[~inner]], x[train[~inner]], z[train[inner]], x[train[inner]])
        intercept, gram = x[train].mean(0), z[train].T @ z[train]
        ridge = gram + penalty * len(train) * np.eye(len(gram))
        predicted[test] = intercept + z[test] @ np.linalg.solve(ridge, z[train].T @ (x[train] - intercept))
        n_parameters = np.trace(np.linalg.solve(ridge, gram))
        free = max(len(train) - n_parameters - 2, n_parameters, 1.0)
        inflation[test] = (1 + 1 / len(train)) * (1 + n_parameters / free)
    return Prediction(predicted, inflation)


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


def explained(x: NDArray, predicted: Prediction) -> NDArray:
    """Per observation, by how much the best prediction reduces the squared error of the mean, summed over columns."""
    return available(x) - ((x - predicted.values) ** 2).sum(1) / predicted.inflation


def available(x: NDArray) -> NDArray:
    """Per observation, the squared error of the mean, summed over columns."""
    return ((x - x.mean(0)) ** 2).sum(1) * len(x) / (len(x) - 1)


def within(predicted: Prediction, strata: NDArray) -> Prediction:
    """Means of strata in place of the predictions of their members."""
    totals = np.zeros((strata.max() + 1, predicted.values.shape[1]))
    np.add.at(totals, strata, predicted.values)
    means = totals / np.bincount(strata).clip(1)[:, None]
    return Prediction(means[strata], np.ones(len(strata)))
