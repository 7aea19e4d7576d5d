"""How a probe is fitted and scored: folds, permutations, bootstrap, null."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unbraid.metrics._resampling import N_BOOTSTRAP, percentiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

BOOSTED_NULL_OBS = 5_000  # rows on which boosting is refitted to permuted targets
RIDGE_PENALTIES = np.logspace(-4, 2, 7)  # times the number of rows: from none to all but the mean


@dataclass(frozen=True)
class Sample:
    """Observations that have both embedding and target."""

    x: NDArray  # (n, d)
    y: NDArray  # (n,) class codes or numbers
    classes: list | None  # None for numbers
    groups: NDArray | None  # (n,) codes 0 to n_groups - 1

    @property
    def is_classes(self) -> bool:
        return self.classes is not None

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: NDArray) -> Sample:
        groups = None if self.groups is None else np.unique(self.groups[rows], return_inverse=True)[1]
        return Sample(self.x[rows], self.y[rows], self.classes, groups)


@dataclass(frozen=True)
class Gains:
    """Per observation, what the prediction gains of what there is to gain.

    Of a class, 1 or 0 of 1; of a number, the reduction of the squared error of the training mean. The score is
    gained / available, for each column (class; numbers have one) and then averaged over columns: balanced accuracy
    and R2 in one.
    """

    gained: NDArray  # (n,)
    available: NDArray  # (n,)
    column: NDArray  # (n,)

    def per_column(self) -> NDArray:
        return np.bincount(self.column, self.gained) / np.bincount(self.column, self.available)

    def score(self) -> float:
        return float(_mean_ratio(np.bincount(self.column, self.gained), np.bincount(self.column, self.available)))


def _mean_ratio(gained: NDArray, available: NDArray) -> float:
    return np.mean(gained[available > 0] / available[available > 0])


def gains_of(sample: Sample, fold: NDArray, predicted: NDArray) -> Gains:
    if sample.is_classes:
        return Gains((predicted == sample.y).astype(float), np.ones(len(sample)), sample.y)
    n, total = np.bincount(fold), np.bincount(fold, sample.y)
    training_mean = ((total.sum() - total) / (n.sum() - n))[fold]
    available = (sample.y - training_mean) ** 2
    return Gains(available - (sample.y - predicted) ** 2, available, np.zeros(len(sample), dtype=int))


def bootstrap_interval(
    gains: Gains, groups: NDArray | None, confidence: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Bootstrap over units: groups, or observations. Units with the same gains share a row of the tables."""
    if groups is not None:
        row = groups
        row_of_unit = np.arange(groups.max() + 1)
    elif gains.column.any():  # classes: a unit is of one class and right or wrong
        row = row_of_unit = 2 * gains.column + gains.gained.astype(int)
    else:
        row = row_of_unit = np.arange(len(gains.column))
    shape = (row.max() + 1, gains.column.max() + 1)
    cell = row * shape[1] + gains.column
    share = 1 / np.bincount(row_of_unit, minlength=shape[0]).clip(1)  # of a table's row, that is one unit's
    gained, available = (
        np.bincount(cell, values, minlength=shape[0] * shape[1]).reshape(shape) * share[:, None]
        for values in (gains.gained, gains.available)
    )
    scores = []
    for _ in range(N_BOOTSTRAP):
        drawn = rng.integers(len(row_of_unit), size=len(row_of_unit))
        times = np.bincount(row_of_unit[drawn], minlength=shape[0])
        scores.append(_mean_ratio(times @ gained, times @ available))
    return percentiles(np.array(scores), confidence)


# --------------------------------------------------------------------------------------------------
# The probes: (x, y, x_new) -> prediction at x_new


def out_of_fold(x: NDArray, y: NDArray, fold: NDArray, fit_predict: Callable[..., NDArray]) -> NDArray:
    predicted = np.empty_like(y)
    for k in range(fold.max() + 1):
        test = fold == k
        predicted[test] = fit_predict(x[~test], y[~test], x[test])
    return predicted


def _logistic(x: NDArray, y: NDArray, x_new: NDArray) -> NDArray:
    if (y == y[0]).all():
        return np.full(len(x_new), y[0])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    return model.fit(x, y).predict(x_new)


def _ridge(x: NDArray, y: NDArray, x_new: NDArray) -> NDArray:
    ridge = RidgeCV(alphas=len(x) * RIDGE_PENALTIES, alpha_per_target=y.ndim == 2)
    return make_pipeline(StandardScaler(), ridge).fit(x, y).predict(x_new).reshape(-1, *y.shape[1:])


def _boosted_classes(x: NDArray, y: NDArray, x_new: NDArray, seed: int) -> NDArray:
    n_of_class = np.bincount(y)
    n_of_class = n_of_class[n_of_class > 0]
    if len(n_of_class) == 1:
        return np.full(len(x_new), y[0])
    model = HistGradientBoostingClassifier(
        **_BOOSTING, early_stopping=len(y) >= 100 and n_of_class.min() >= 5, random_state=seed
    )
    # the best guess when classes count alike; weights in the fit would do the same, ten times slower
    likelihood = model.fit(x, y).predict_proba(x_new) / n_of_class
    return model.classes_[likelihood.argmax(1)]


def _boosted_number(x: NDArray, y: NDArray, x_new: NDArray, seed: int) -> NDArray:
    model = HistGradientBoostingRegressor(**_BOOSTING, early_stopping=len(y) >= 100, random_state=seed)
    return model.fit(x, y).predict(x_new)


_BOOSTING = {"max_leaf_nodes": 15, "max_bins": 63, "n_iter_no_change": 10, "validation_fraction": 0.2}
FIT_PREDICT = {
    ("linear", True): _logistic,
    ("linear", False): _ridge,
    ("boosted", True): _boosted_classes,
    ("boosted", False): _boosted_number,
}


# --------------------------------------------------------------------------------------------------
# The design: folds and permutations


def is_constant_within(groups: NDArray, y: NDArray) -> bool:
    _, first = np.unique(groups, return_index=True)
    return bool((y == y[first][groups]).all())


def fold_of(sample: Sample, n_splits: int, seed: int) -> NDArray:
    """Fold of each observation."""
    x, y, groups = np.zeros(len(sample)), sample.y, sample.groups
    shuffled = {"n_splits": n_splits, "shuffle": True, "random_state": seed}
    if groups is None:
        split = (StratifiedKFold if sample.is_classes else KFold)(**shuffled).split(x, y)
    elif not sample.is_classes:
        split = GroupKFold(n_splits).split(x, y, groups)
    elif is_constant_within(groups, y):  # groups are the units: stratify them, which also is faster
        _, first = np.unique(groups, return_index=True)
        split = StratifiedKFold(**shuffled).split(first, y[first])
    else:
        split = StratifiedGroupKFold(**shuffled).split(x, y, groups)
    tests = [test for _, test in split]
    fold = np.empty(sum(map(len, tests)), dtype=int)
    for k, test in enumerate(tests):
        fold[test] = k
    return fold if len(fold) == len(sample) else fold[groups]


def permutations(y: NDArray, groups: NDArray | None, rng: np.random.Generator) -> Iterator[NDArray]:
    """Endless row numbers: observation i is given the target of observation `order[i]`."""
    n = len(y)
    if groups is None:
        while True:
            yield rng.permutation(n)

    _, first, size = np.unique(groups, return_index=True, return_counts=True)
    if is_constant_within(groups, y):
        while True:
            yield first[rng.permutation(len(size))][groups]

    start = np.cumsum(size) - size
    grouped = np.argsort(groups, kind="stable")
    position = np.arange(n) - np.repeat(start, size)
    by_size = np.argsort(size, kind="stable")
    while True:
        shuffled = np.lexsort((rng.random(n), groups))  # rows within groups
        giver = np.empty_like(by_size)  # groups among those of the same size
        giver[by_size] = np.lexsort((rng.random(len(size)), size))
        order = np.empty(n, dtype=int)
        order[grouped] = shuffled[np.repeat(start[giver], size) + position]
        yield order


def null_scores(
    sample: Sample,
    fold: NDArray,
    kind: str,
    fit_predict: Callable[..., NDArray],
    n_permutations: int,
    rng: np.random.Generator,
) -> tuple[float, NDArray]:
    """Statistic of the true target and of permuted ones, `(n_permutations,)`."""
    if n_permutations == 0:
        return np.nan, np.empty(0)
    if kind == "boosted" and len(sample) > BOOSTED_NULL_OBS:
        rows = np.sort(rng.choice(len(sample), BOOSTED_NULL_OBS, replace=False))
        sample, fold = sample[rows], fold[rows]
    orders = chain([np.arange(len(sample))], islice(permutations(sample.y, sample.groups, rng), n_permutations))

    if kind == "linear" and not sample.is_classes:
        scores = _ridge_scores(sample, fold, orders)
    elif kind == "linear":
        scores = _discriminant_scores(sample, fold, orders)
    else:
        scores = (
            gains_of(moved, fold[order], out_of_fold(moved.x, moved.y, fold[order], fit_predict)).score()
            for order in orders
            for moved in [Sample(sample.x, sample.y[order], sample.classes, sample.groups)]
        )
    observed, *null = scores
    return observed, np.array(null)


def _ridge_scores(sample: Sample, fold: NDArray, orders: Iterator[NDArray]) -> Iterator[float]:
    """Folds of numbers are not stratified and can stay: a fold's fit serves many permutations at once."""
    at_once = max(1, 10_000_000 // len(sample))
    while batch := list(islice(orders, at_once)):
        y = sample.y[np.stack(batch, axis=1)]  # (n, permutations)
        predicted = out_of_fold(sample.x, y, fold, _ridge)
        for j in range(len(batch)):
            moved = Sample(sample.x, y[:, j], None, sample.groups)
            yield gains_of(moved, fold, predicted[:, j]).score()


def _discriminant_scores(sample: Sample, fold: NDArray, orders: Iterator[NDArray]) -> Iterator[float]:
    """Nearest class mean once the embedding is whitened, which needs no target."""
    n, n_classes, n_folds = len(sample), len(sample.classes), fold.max() + 1
    pca = PCA()
    white = pca.fit_transform(StandardScaler().fit_transform(sample.x))
    # C / n is the penalty of logistic regression, whose curvature at zero is n / C times the covariance; d / n because
    # whitening with more features than observations makes all of them equally far apart
    white /= np.sqrt(pca.explained_variance_ + (n_classes + white.shape[1]) / n)
    for order in orders:
        y, moved_fold = sample.y[order], fold[order]
        cell = moved_fold * n_classes + y
        indicator = sparse.csr_array((np.ones(n), (cell, np.arange(n))), shape=(n_folds * n_classes, n))
        totals = (indicator @ white).reshape(n_folds, n_classes, -1)
        counts = np.bincount(cell, minlength=n_folds * n_classes).reshape(n_folds, n_classes, 1)
        n_train = counts.sum(0) - counts
        means = (totals.sum(0) - totals) / n_train.clip(1)  # (folds, classes, d), of the other folds
        offset = np.where(n_train[..., 0] > 0, -0.5 * (means**2).sum(-1), -np.inf)
        predicted = np.empty_like(y)
        for k in range(n_folds):
            test = moved_fold == k
            predicted[test] = (white[test] @ means[k].T + offset[k]).argmax(1)
        right = np.bincount(y, predicted == y, minlength=n_classes)
        yield float(_mean_ratio(right, np.bincount(y, minlength=n_classes)))
