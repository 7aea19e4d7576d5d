r"""Held-out pointwise mutual information: critics fitted on other folds, and the bounds that score them.

Every critic has the form :math:`f(a_i, b_j) = x_i \cdot y_j + s_i + t_j`, so that all pairs of held-out rows cost one
matrix product. Two bounds turn a critic into nats, both lower bounds of :math:`I(A; B)` for *any* :math:`f` that has
not seen the held-out rows:

- Donsker and Varadhan: :math:`E[f(a, b)] - \log E_{p(a)p(b)}[e^f]`. A critic that is a likelihood ratio has a second
  term of 0 by itself, and the sample estimate of it is far too small where the information is high (few pairs carry
  the mean). It is therefore subtracted only where it is positive, which is where the model of the critic is wrong
  (clusters in place of Gaussians), and dependence would be overstated.
- InfoNCE: :math:`E[f(a_i, b_i) - \log \frac{1}{m} \sum_j e^{f(a_i, b_j)}]`, which cannot exceed :math:`\log m`.

With strata all pairs are of one stratum and the bounds are those of :math:`I(A; B \mid S)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from unbraid._messages import check_option
from unbraid.metrics._bounds import Fold, donsker_varadhan, info_nce, smile, standardised
from unbraid.metrics._closed_form_critics import FIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ESTIMATORS = ("canonical", "ridge", "quadratic", "critic", "smile")
NEURAL = ("critic", "smile")
SATURATING = ("quadratic", "critic")  # scored by InfoNCE: at most log(number of held-out rows)
LEAST_IN_STRATUM = 3  # training rows; below, the mean of a stratum is not known and its rows score 0
LEAST_TRAINING = 12


def held_out_scores(
    a: NDArray,
    b: NDArray,
    *,
    estimator: str,
    fold: NDArray,
    strata: NDArray | None = None,
    groups: NDArray | None = None,
    rng: np.random.Generator,
    seed: int = 0,
) -> NDArray:
    """Pointwise mutual information of every observation, from a critic fitted on the other folds.

    Parameters
    ----------
    a
        `(n_obs, p)`.
    b
        `(n_obs, q)`.
    estimator
        `"canonical"`: log-likelihood ratio of canonical correlations of normal scores. `"ridge"`: Gaussian
        log-likelihood ratio of whitened `a` given its ridge prediction from `b`. `"quadratic"`: canonical
        log-likelihood ratio of monomials up to degree two, scored by InfoNCE. `"critic"`: neural, trained and scored
        by InfoNCE. `"smile"`: neural, trained by the Jensen-Shannon bound, scored by Donsker-Varadhan with clipped
        ratios [1]_, which is not a certified bound.
    fold
        `(n_obs,)` codes; what must not be on both sides of a split is in one fold.
    strata
        `(n_obs,)` codes: condition on them.
    groups
        `(n_obs,)` codes of what is in one fold; splits within the training part then keep groups on one side too.
    rng
        Source of the inner folds.
    seed
        Of the weights of neural critics.

    Returns
    -------
    `(n_obs,)` in nats; the mean is a held-out estimate of the mutual information, 0 in expectation or below where
    there is none. Observations of strata that are too small score 0.

    References
    ----------
    .. [1] Song and Ermon (2020), Understanding the limitations of variational mutual information estimators. ICLR.
    """
    check_option("estimator", estimator, ESTIMATORS)
    return scores_of(Sides.of(a, b, fold, strata, groups, copula=estimator != "ridge"), estimator, rng, seed)


@dataclass(frozen=True)
class Sides:
    """Both sides, prepared for every fold: features standardised by the training part, within strata.

    A permutation of pairs within folds (and strata) leaves the preparation as it is.
    """

    folds: tuple[Fold, ...]
    n: int

    @classmethod
    def of(
        cls, a: NDArray, b: NDArray, fold: NDArray, strata: NDArray | None, groups: NDArray | None, *, copula: bool
    ) -> Sides:
        """Prepare; with `copula`, features become normal scores."""
        strata = None if strata is None else np.unique(strata, return_inverse=True)[1]
        maps = [NormalScores.of(x) if copula else _bounded_features(x) for x in (a, b)]
        folds = []
        for k in np.unique(fold):
            is_train = fold != k
            known = np.ones(len(a), dtype=bool)
            if strata is not None:
                known = np.bincount(strata[is_train], minlength=strata.max() + 1)[strata] >= LEAST_IN_STRATUM
            train, test = np.flatnonzero(is_train & known), np.flatnonzero(~is_train & known)
            if len(train) >= LEAST_TRAINING and len(test):
                z_a, z_b = (standardised(side(train), train, strata) for side in maps)
                folds.append(Fold(z_a, z_b, train, test, strata, groups))
        return cls(tuple(folds), len(a))

    def permuted(self, order: NDArray, side: str) -> Sides:
        """Row i of the side is now what row `order[i]` was; `order` stays within folds and strata."""
        return Sides(tuple(replace(f, **{side: getattr(f, side)[order]}) for f in self.folds), self.n)


def scores_of(sides: Sides, estimator: str, rng: np.random.Generator, seed: int) -> NDArray:
    """As :func:`held_out_scores`, of prepared sides."""
    scores = np.zeros(sides.n)
    if not sides.folds:
        return scores
    if estimator in NEURAL:
        from unbraid.metrics._neural_critic import fit_critics  # torch loads only where it is needed

        critics = fit_critics(sides.folds, "info_nce" if estimator == "critic" else "jensen_shannon", seed)
        bound = info_nce if estimator == "critic" else smile
    else:
        critics = (FIT[estimator](fold, rng) for fold in sides.folds)
        bound = info_nce if estimator == "quadratic" else donsker_varadhan
    for fold, critic in zip(sides.folds, critics, strict=True):
        if critic is not None:
            scores[fold.test] = bound(critic, fold.blocks(fold.test))
    return scores


def ceiling(fold: NDArray, strata: NDArray | None) -> float:
    """What InfoNCE cannot exceed: mean log of the number of held-out rows that a row is compared with."""
    code = fold if strata is None else np.unique(np.stack([fold, strata]), axis=1, return_inverse=True)[1].ravel()
    _, index, count = np.unique(code, return_inverse=True, return_counts=True)
    return float(np.log(count[index]).mean())


# --------------------------------------------------------------------------------------------------
# Features


@dataclass(frozen=True)
class NormalScores:
    """Features as normal scores of their rank among the training rows."""

    order: NDArray  # (n, p) rows in ascending order
    first: NDArray  # (n, p) where in that order the values equal to a row's begin
    last: NDArray  # (n, p) and end

    @classmethod
    def of(cls, x: NDArray) -> NormalScores:
        """Of all rows; which of them train is said later."""
        x = x[:, (x != x[:1]).any(axis=0)]
        n = len(x)
        order = np.argsort(x, axis=0, kind="stable")
        ordered = np.take_along_axis(x, order, axis=0)
        position = np.broadcast_to(np.arange(n)[:, None], x.shape)
        begins = np.ones(x.shape, dtype=bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        ends = np.ones(x.shape, dtype=bool)
        ends[:-1] = begins[1:]
        first, last = np.empty(x.shape, dtype=int), np.empty(x.shape, dtype=int)
        starts = np.maximum.accumulate(np.where(begins, position, 0), axis=0)
        stops = np.minimum.accumulate(np.where(ends, position, n)[::-1], axis=0)[::-1]
        np.put_along_axis(first, order, starts, axis=0)
        np.put_along_axis(last, order, stops, axis=0)
        return cls(order, first, last)

    def __call__(self, train: NDArray) -> NDArray:
        """Scores of all rows from the midranks of the training rows."""
        is_train = np.zeros(len(self.order), dtype=np.int64)
        is_train[train] = 1
        below = np.zeros((len(self.order) + 1, self.order.shape[1]), dtype=np.int64)
        np.cumsum(is_train[self.order], axis=0, out=below[1:])
        twice = np.take_along_axis(below, self.first, axis=0) + np.take_along_axis(below, self.last + 1, axis=0)
        half_steps = np.clip(np.arange(2 * len(train) + 1), 1, 2 * len(train) - 1)
        return ndtri(half_steps / (2 * len(train)))[twice]


def _bounded_features(x: NDArray) -> Callable[[NDArray], NDArray]:
    """Features in units of their training standard deviation, outliers drawn in."""
    x = x[:, (x != x[:1]).any(axis=0)]

    def scaled(train: NDArray) -> NDArray:
        scale = x[train].std(axis=0)
        return np.clip((x - x[train].mean(axis=0)) / np.where(scale > 0, scale, np.inf), -5, 5)

    return scaled
