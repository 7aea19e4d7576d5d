"""How much of a label or of a number can be read off an embedding."""

from __future__ import annotations

import difflib
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

FEW_VALUES = 20  # integers with at most so many different values are classes
N_PERMUTATIONS = {"linear": 100, "boosted": 20}
BOOSTED_NULL_OBS = 5_000  # rows on which boosting is refitted to permuted targets
N_BOOTSTRAP = 1_000
RIDGE_PENALTIES = np.logspace(-4, 2, 7)  # times the number of rows: from none to all but the mean
ONE_THREAD_BELOW = 2_000_000  # numbers in the embedding; on less, threads wait longer than they work


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What :func:`probe` found.

    Attributes
    ----------
    score
        Held-out score: balanced accuracy of classes, cross-validated :math:`R^2` of numbers.
    metric
        Which of the two it is.
    interval
        Bootstrap interval of the score.
    chance
        Mean score on permuted targets; without permutations 1 / number of classes, or 0.
    chance_interval
        Interval of the score on permuted targets (NaN without permutations).
    p_value
        Share of permuted targets that are read off as well as the true one (NaN without permutations).
    n_obs
        Number of observations that the score is made of.
    n_dropped
        Number of observations left out: no target, no embedding, or of a class that is too rare.
    n_groups
        Number of groups, None without groups.
    n_features
        Dimensions of the embedding.
    n_classes
        Number of classes, None for a number.
    per_class
        Recall of each class, None for a number.
    kind
        The probe that was used.
    confidence
        Level of both intervals.
    n_permutations
        Number of permutations behind `chance` and `p_value`.
    """

    score: float
    metric: Literal["balanced_accuracy", "r2"]
    interval: tuple[float, float]
    chance: float
    chance_interval: tuple[float, float]
    p_value: float
    n_obs: int
    n_dropped: int
    n_groups: int | None
    n_features: int
    n_classes: int | None
    per_class: dict | None
    kind: Literal["linear", "boosted"]
    confidence: float
    n_permutations: int

    def to_series(self) -> pd.Series:
        """All fields, flat: intervals as `*_low` and `*_high`, the recall of class c as `recall:c`."""
        flat = {}
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name.endswith("interval"):
                prefix = name.removesuffix("interval")
                flat[f"{prefix}low"], flat[f"{prefix}high"] = value
            elif name == "per_class":
                flat |= {f"recall:{label}": recall for label, recall in (value or {}).items()}
            else:
                flat[name] = value
        return pd.Series(flat, name="probe", dtype=object)

    def to_frame(self) -> pd.DataFrame:
        """The fields of :meth:`to_series` as a table of one row, to be concatenated with others."""
        return self.to_series().to_frame().T.infer_objects().reset_index(drop=True)

    def __str__(self) -> str:
        low, high = self.interval
        of = "" if self.n_groups is None else f" in {self.n_groups:,} groups"
        facts = [] if np.isnan(self.p_value) else [f"p = {self.p_value:.2g}"]
        facts += [f"n = {self.n_obs:,}{of}"]
        facts += [] if self.n_classes is None else [f"{self.n_classes} classes"]
        name = {"balanced_accuracy": "balanced accuracy", "r2": "R2"}[self.metric]
        return f"{name} {self.score:z.2f} [{low:z.2f}, {high:z.2f}], chance {self.chance:z.2f} ({', '.join(facts)})"

    __repr__ = __str__


def probe(
    data: ArrayLike | AnnData | MuData,
    target: ArrayLike | str,
    *,
    use_rep: str | None = None,
    groups: ArrayLike | str | None = None,
    kind: Literal["linear", "boosted"] = "linear",
    task: Literal["auto", "classification", "regression"] = "auto",
    n_splits: int = 5,
    n_permutations: int | None = None,
    confidence: float = 0.95,
    max_obs: int | None = None,
    seed: int = 0,
) -> ProbeResult:
    r"""How much of a label or of a number can be read off an embedding.

    A probe [1]_ is a supervised model fitted on a frozen embedding and scored on observations, or whole groups of
    them, that it has not seen. The score says nothing by itself, so it comes with an interval and with the score
    of the same embedding on permuted targets.

    Parameters
    ----------
    data
        Embedding of shape `(n_obs, n_features)`: an array, a DataFrame, or a sparse matrix (made dense). Or an
        AnnData or MuData that holds it under `use_rep`. Rows that are NaN throughout (modality missing) are left out.
    target
        What to read: `n_obs` labels or numbers, or the name of a column of `data.obs`. Observations without a
        target (NaN, None) are left out. A Series with the observation names in another order is aligned.
    use_rep
        Key of `data.obsm`, or `"X"`. In a MuData, `"rna:Z_s"` stands for `data["rna"].obsm["Z_s"]`, with
        observations that lack the modality missing; `target` and `groups` take `"rna:column"` in the same way.
    groups
        What must not be on both sides of a split (donor, molecule, plate): `n_obs` labels, or a column of `data.obs`.
    kind
        `"linear"`: features standardised, then logistic regression with classes weighted alike, or ridge regression
        with its penalty chosen in the training part. `"boosted"`: gradient boosted trees. What boosting reads and
        the linear probe does not is there, but not linearly.
    task
        `"auto"` takes strings, categories, booleans, objects, and integers of at most 20 different values for
        classes, and floats and other integers for numbers. NumPy and pandas turn integers with missing values into
        floats; use pandas' `Int64`, or say `"classification"`.
    n_splits
        Number of folds. Classes with fewer observations (with `groups`: found in fewer groups) are left out.
    n_permutations
        Number of permuted targets; by default 100 for the linear probe and 20 for boosting. With 0 the chance
        level is the theoretical one and there is no p-value.
    confidence
        Level of the interval of the score and of the interval of chance.
    max_obs
        Use a random subset of at most so many observations.
    seed
        Seed of folds, permutations, bootstrap and boosting. Global random state is neither used nor changed.

    Returns
    -------
    The score with its interval, chance level, p-value and counts.

    Raises
    ------
    KeyError
        `use_rep`, or a column named by `target` or `groups`, is not there.
    ValueError
        Lengths differ; the embedding is infinite, or NaN in a part of a row; a group is missing; fewer than two
        classes are left; a number is infinite or constant; too few observations or groups for `n_splits`; an
        option is unknown.

    Warns
    -----
    UserWarning
        Classes are left out as too rare, or most targets cannot be permuted within the groups.

    Notes
    -----
    **Score.** With out-of-fold predictions :math:`\hat y_i`, classes :math:`c` of :math:`n_c` observations, and
    :math:`\bar y_{-i}` the mean of the target over the folds that do not hold :math:`i`,

    .. math::

        \text{balanced accuracy} = \frac{1}{C} \sum_{c=1}^{C} \frac{1}{n_c} \sum_{i: y_i = c} [\hat y_i = c],
        \qquad
        R^2 = 1 - \frac{\sum_i (y_i - \hat y_i)^2}{\sum_i (y_i - \bar y_{-i})^2}.

    Both have a fixed zero of information: :math:`1/C` however unequal the classes, and 0, which is what predicting
    the training mean gives. :math:`R^2` is negative where the probe does worse than that.

    **Interval.** Percentiles of the score over 1,000 bootstrap samples of groups, or of observations without
    groups. It holds the fitted probes fixed: it is the uncertainty from the observations that were predicted. With
    fewer than about ten groups it is too narrow.

    **Chance.** Targets are permuted as the design allows. Without groups, freely. Where the target is constant
    within groups (disease of a donor), among whole groups. Otherwise within groups, and groups of the same size
    also exchange their targets as blocks [3]_; what a group's own composition gives away then counts as chance.
    Folds move with the targets, so that permuted targets are stratified as the true ones are. With few groups there
    are few different permutations, and the p-value cannot be small.

    The p-value is :math:`(1 + \#\{T_\text{permuted} \ge T\}) / (1 + n_\text{permutations})`, where the statistic
    :math:`T` is the score of

    - *numbers, linear*: the probe itself. Ridge regression fits all permutations at once.
    - *classes, linear*: a ridge linear discriminant on the same observations and folds. To first order it is
      logistic regression after one Newton step from zero, so that under permuted targets, where the weights stay
      near zero, it scores alike; and an embedding is whitened once for all permutations.
    - *boosted*: the probe itself, refitted on a random subset of at most 5,000 observations.

    As :math:`T` is computed in the same way on the true target, the test is valid whatever the probe; chance and
    its interval are those of :math:`T`. A permuted target is also what keeps a strong probe honest: whatever it can
    memorise, it memorises there too (compare control tasks [2]_).

    The result does not depend on the order of the observations, nor on the location and (positive) scale of the
    features.

    References
    ----------
    .. [1] Alain and Bengio (2016), Understanding intermediate layers using linear classifier probes.
       arXiv:1610.01644.
    .. [2] Hewitt and Liang (2019), Designing and interpreting probes with control tasks. EMNLP.
    .. [3] Winkler et al. (2015), Multi-level block permutation. NeuroImage 123, 253-268.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> rng = np.random.default_rng(0)
    >>> cell_type = np.repeat(["B", "NK", "T"], 100)
    >>> z = rng.normal(size=(300, 8)) + 2 * (cell_type == "T")[:, None]
    >>> result = ub.metrics.probe(z, cell_type)
    >>> result.n_obs, result.n_classes, result.per_class["T"] > 0.9
    (300, 3, True)

    From a MuData, with no donor on both sides of a split:

    >>> ub.metrics.probe(mdata, "rna:cell_type", use_rep="prot:Z_s", groups="donor")  # doctest: +SKIP
    """
    _check_option("kind", kind, ("linear", "boosted"))
    _check_option("task", task, ("auto", "classification", "regression"))
    n_permutations = N_PERMUTATIONS[kind] if n_permutations is None else n_permutations
    _check_range("n_splits", n_splits, n_splits >= 2, "at least 2")
    _check_range("n_permutations", n_permutations, n_permutations >= 0, "0 or more")
    _check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")
    _check_range("max_obs", max_obs, max_obs is None or max_obs >= 2 * n_splits, "at least twice n_splits")
    subset_rng, fold_rng, boosting_rng, null_rng, bootstrap_rng = np.random.default_rng(seed).spawn(5)

    sample, n_dropped = _read(data, target, use_rep, groups, task)
    if max_obs is not None and len(sample) > max_obs:
        sample = sample[np.sort(subset_rng.choice(len(sample), max_obs, replace=False))]
    sample, n_rare = _checked(sample, n_splits)

    fit_predict = _FIT_PREDICT[kind, sample.is_classes]
    if kind == "boosted":
        fit_predict = partial(fit_predict, seed=int(boosting_rng.integers(2**31)))
    with threadpool_limits(1) if sample.x.size < ONE_THREAD_BELOW else nullcontext():
        fold = _folds(sample, n_splits, seed=int(fold_rng.integers(2**31)))
        gains = _gains(sample, fold, _out_of_fold(sample.x, sample.y, fold, fit_predict))
        interval = _interval(gains, sample.groups, confidence, bootstrap_rng)
        observed, null = _null(sample, fold, kind, fit_predict, n_permutations, null_rng)

    n_classes = len(sample.classes) if sample.is_classes else None
    return ProbeResult(
        score=gains.score(),
        metric="balanced_accuracy" if sample.is_classes else "r2",
        interval=interval,
        chance=float(null.mean()) if n_permutations else 1 / n_classes if n_classes else 0.0,
        chance_interval=_percentiles(null, confidence),
        p_value=float((1 + np.sum(null >= observed)) / (1 + n_permutations)) if n_permutations else np.nan,
        n_obs=len(sample),
        n_dropped=n_dropped + n_rare,
        n_groups=None if sample.groups is None else int(sample.groups.max()) + 1,
        n_features=sample.x.shape[1],
        n_classes=n_classes,
        per_class=dict(zip(sample.classes, gains.per_column().tolist(), strict=True)) if sample.is_classes else None,
        kind=kind,
        confidence=confidence,
        n_permutations=n_permutations,
    )


def _check_option(name: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, not {value!r}.")


def _check_range(name: str, value: float | None, ok: bool, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {rule}, not {value}.")


# --------------------------------------------------------------------------------------------------
# What is scored, and how


@dataclass(frozen=True)
class _Sample:
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

    def __getitem__(self, rows: NDArray) -> _Sample:
        groups = None if self.groups is None else np.unique(self.groups[rows], return_inverse=True)[1]
        return _Sample(self.x[rows], self.y[rows], self.classes, groups)


@dataclass(frozen=True)
class _Gains:
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


def _gains(sample: _Sample, fold: NDArray, predicted: NDArray) -> _Gains:
    if sample.is_classes:
        return _Gains((predicted == sample.y).astype(float), np.ones(len(sample)), sample.y)
    n, total = np.bincount(fold), np.bincount(fold, sample.y)
    training_mean = ((total.sum() - total) / (n.sum() - n))[fold]
    available = (sample.y - training_mean) ** 2
    return _Gains(available - (sample.y - predicted) ** 2, available, np.zeros(len(sample), dtype=int))


def _percentiles(scores: NDArray, confidence: float) -> tuple[float, float]:
    if len(scores) == 0:
        return (np.nan, np.nan)
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _interval(
    gains: _Gains, groups: NDArray | None, confidence: float, rng: np.random.Generator
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
    return _percentiles(np.array(scores), confidence)


# --------------------------------------------------------------------------------------------------
# The probes: (x, y, x_new) -> prediction at x_new


def _out_of_fold(x: NDArray, y: NDArray, fold: NDArray, fit_predict: Callable[..., NDArray]) -> NDArray:
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
_FIT_PREDICT = {
    ("linear", True): _logistic,
    ("linear", False): _ridge,
    ("boosted", True): _boosted_classes,
    ("boosted", False): _boosted_number,
}


# --------------------------------------------------------------------------------------------------
# The design: folds and permutations


def _is_constant_within(groups: NDArray, y: NDArray) -> bool:
    _, first = np.unique(groups, return_index=True)
    return bool((y == y[first][groups]).all())


def _folds(sample: _Sample, n_splits: int, seed: int) -> NDArray:
    """Fold of each observation."""
    x, y, groups = np.zeros(len(sample)), sample.y, sample.groups
    shuffled = {"n_splits": n_splits, "shuffle": True, "random_state": seed}
    if groups is None:
        split = (StratifiedKFold if sample.is_classes else KFold)(**shuffled).split(x, y)
    elif not sample.is_classes:
        split = GroupKFold(n_splits).split(x, y, groups)
    elif _is_constant_within(groups, y):  # groups are the units: stratify them, which also is faster
        _, first = np.unique(groups, return_index=True)
        split = StratifiedKFold(**shuffled).split(first, y[first])
    else:
        split = StratifiedGroupKFold(**shuffled).split(x, y, groups)
    tests = [test for _, test in split]
    fold = np.empty(sum(map(len, tests)), dtype=int)
    for k, test in enumerate(tests):
        fold[test] = k
    return fold if len(fold) == len(sample) else fold[groups]


def _permutations(y: NDArray, groups: NDArray | None, rng: np.random.Generator) -> Iterator[NDArray]:
    """Endless row numbers: observation i is given the target of observation `order[i]`."""
    n = len(y)
    if groups is None:
        while True:
            yield rng.permutation(n)

    _, first, size = np.unique(groups, return_index=True, return_counts=True)
    if _is_constant_within(groups, y):
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


def _null(
    sample: _Sample,
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
    orders = chain([np.arange(len(sample))], islice(_permutations(sample.y, sample.groups, rng), n_permutations))

    if kind == "linear" and not sample.is_classes:
        scores = _ridge_scores(sample, fold, orders)
    elif kind == "linear":
        scores = _discriminant_scores(sample, fold, orders)
    else:
        scores = (
            _gains(moved, fold[order], _out_of_fold(moved.x, moved.y, fold[order], fit_predict)).score()
            for order in orders
            for moved in [_Sample(sample.x, sample.y[order], sample.classes, sample.groups)]
        )
    observed, *null = scores
    return observed, np.array(null)


def _ridge_scores(sample: _Sample, fold: NDArray, orders: Iterator[NDArray]) -> Iterator[float]:
    """Folds of numbers are not stratified and can stay: a fold's fit serves many permutations at once."""
    at_once = max(1, 10_000_000 // len(sample))
    while batch := list(islice(orders, at_once)):
        y = sample.y[np.stack(batch, axis=1)]  # (n, permutations)
        predicted = _out_of_fold(sample.x, y, fold, _ridge)
        for j in range(len(batch)):
            moved = _Sample(sample.x, y[:, j], None, sample.groups)
            yield _gains(moved, fold, predicted[:, j]).score()


def _discriminant_scores(sample: _Sample, fold: NDArray, orders: Iterator[NDArray]) -> Iterator[float]:
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


# --------------------------------------------------------------------------------------------------
# From what the user has to a sample


def _read(
    data: ArrayLike | AnnData | MuData,
    target: ArrayLike | str,
    use_rep: str | None,
    groups: ArrayLike | str | None,
    task: str,
) -> tuple[_Sample, int]:
    """The observations that can be used, in an order that does not depend on theirs, and how many cannot."""
    x = _embedding(data, use_rep)
    values = _values(data, target, "target", len(x))
    task = _task(values) if task == "auto" else task

    is_nan = np.isnan(x)
    absent = is_nan.all(axis=1)
    n_partly = int((is_nan.any(axis=1) & ~absent).sum())
    if n_partly:
        raise ValueError(
            f"{n_partly} of {len(x)} rows of the embedding are NaN in some features but not in all. Fill or drop these "
            "features, or set the whole row to NaN to leave it out as missing."
        )
    if np.isinf(x).any():
        raise ValueError(f"{int(np.isinf(x).any(axis=1).sum())} of {len(x)} rows of the embedding are infinite.")

    keep = ~absent & values.notna().to_numpy()
    x, values = x[keep], values[keep]
    if task == "classification":
        target_codes = pd.Categorical(values).remove_unused_categories()
        y, classes = target_codes.codes.astype(int), target_codes.categories.tolist()
    else:
        y, classes = _numbers(values), None
    codes = None
    if groups is not None:
        group_values = _values(data, groups, "groups", len(keep))[keep]
        if group_values.isna().any():
            raise ValueError(
                f"{int(group_values.isna().sum())} of {len(x)} observations have no group. Give each one, or leave "
                "these observations out."
            )
        codes = np.unique(group_values.astype(str).to_numpy(dtype=str), return_inverse=True)[1]
    order = _canonical_order(x, y, codes)
    return _Sample(x, y, classes, codes)[order], int((~keep).sum())


def _checked(sample: _Sample, n_splits: int) -> tuple[_Sample, int]:
    """Without the classes that are too rare, and how many observations that costs."""
    n_given = len(sample)
    unit = "observations" if sample.groups is None else "groups"
    if sample.is_classes:
        units = np.arange(n_given) if sample.groups is None else sample.groups
        pairs = np.unique(np.stack([units, sample.y], axis=1), axis=0)
        n_units = np.bincount(pairs[:, 1], minlength=len(sample.classes))
        frequent = n_units >= n_splits
        rare = [f"{sample.classes[c]} ({n_units[c]})" for c in np.flatnonzero(~frequent & (n_units > 0))]
        named = ", ".join(rare[:10]) + (f" and {len(rare) - 10} more" if len(rare) > 10 else "")
        if frequent.sum() < 2:
            raise ValueError(
                f"A probe needs two classes of at least n_splits = {n_splits} {unit}, but {frequent.sum()} of "
                f"{len(frequent)} classes have so many" + (f"; too few: {named}." if rare else ".")
            )
        if rare:
            warnings.warn(
                f"Classes with fewer than n_splits = {n_splits} {unit} are left out: {named}. Lower n_splits to keep "
                "them.",
                UserWarning,
                stacklevel=3,
            )
        sample = sample[frequent[sample.y]]
        classes = [label for label, keep in zip(sample.classes, frequent, strict=True) if keep]
        sample = _Sample(sample.x, np.unique(sample.y, return_inverse=True)[1], classes, sample.groups)
    else:
        n_units = n_given if sample.groups is None else len(np.unique(sample.groups))
        least = 2 * n_splits if sample.groups is None else n_splits
        if n_units < least:
            raise ValueError(
                f"{n_units} {unit} have both an embedding and a target; with n_splits = {n_splits} a probe needs at "
                f"least {least}."
            )
        if (sample.y == sample.y[0]).all():
            raise ValueError(f"The target is constant ({sample.y[0]:g}): there is nothing to read.")

    if sample.groups is not None and not _is_constant_within(sample.groups, sample.y):
        size = np.bincount(sample.groups)
        pairs = np.unique(np.stack([sample.groups, np.unique(sample.y, return_inverse=True)[1]], axis=1), axis=0)
        is_frozen = (np.bincount(pairs[:, 0]) == 1) & (np.bincount(size)[size] == 1)
        if (share := size[is_frozen].sum() / len(sample)) > 0.5:
            warnings.warn(
                f"{share:.0%} of the observations are in a group that has a single target, and a size of its own: "
                "their targets cannot be permuted, so chance is overstated and the p-value is too large.",
                UserWarning,
                stacklevel=3,
            )
    return sample, n_given - len(sample)


def _embedding(data: ArrayLike | AnnData | MuData, use_rep: str | None) -> NDArray:
    """(n, d) floats."""
    if isinstance(data, AnnData | MuData):
        if use_rep is None:
            raise ValueError(f"Name the embedding with use_rep; there is {', '.join(_keys(data, 'obsm'))}.")
        values = _lookup(data, use_rep, "obsm")
    elif use_rep is not None:
        raise ValueError("use_rep names an embedding within AnnData or MuData, but data is the embedding itself.")
    else:
        values = data
    try:
        x = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("The embedding must be an array of numbers.") from error
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"The embedding must have shape (n_obs, n_features), not {x.shape}.")
    return x


def _values(data: ArrayLike | AnnData | MuData, values: ArrayLike | str, name: str, n: int) -> pd.Series:
    """A target or groups, one per row of the embedding."""
    is_annotated = isinstance(data, AnnData | MuData)
    if isinstance(values, str):
        if not is_annotated:
            raise ValueError(f"{name}={values!r} names a column of obs, but data is an array: pass the values.")
        values = _lookup(data, values, "obs")
    elif isinstance(values, pd.Series):
        names = data.obs_names if is_annotated else getattr(data, "index", None)
        if names is not None and not values.index.equals(names) and set(values.index) == set(names):
            values = values.reindex(names)
    elif hasattr(values, "__array__") and not isinstance(values, pd.Index | pd.api.extensions.ExtensionArray):
        values = np.asarray(values)
    if np.ndim(values) != 1:
        raise ValueError(f"{name} must have one dimension, not {np.ndim(values)}.")
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} values, but the embedding has {n} rows.")
    return pd.Series(values).reset_index(drop=True).infer_objects()


def _task(values: pd.Series) -> Literal["classification", "regression"]:
    types = pd.api.types
    if types.is_integer_dtype(values):
        return "classification" if values.nunique() <= FEW_VALUES else "regression"
    if types.is_float_dtype(values):
        return "regression"
    if (
        isinstance(values.dtype, pd.CategoricalDtype)
        or types.is_bool_dtype(values)
        or types.is_object_dtype(values)
        or types.is_string_dtype(values)
    ):
        return "classification"
    raise ValueError(f"A target of dtype {values.dtype} is neither classes nor numbers; convert it, or pass task.")


def _numbers(values: pd.Series) -> NDArray:
    try:
        y = values.astype(float).to_numpy()
    except (TypeError, ValueError) as error:
        raise ValueError(f"A target of dtype {values.dtype} cannot be taken for numbers.") from error
    if np.isinf(y).any():
        raise ValueError(f"{int(np.isinf(y).sum())} of {len(y)} targets are infinite.")
    return y


def _canonical_order(x: NDArray, y: NDArray, groups: NDArray | None) -> NDArray:
    """Sort observations by their values, so that their order in the data plays no part in what follows."""
    tie_breakers = (y,) if groups is None else (y, groups)
    n_columns = 4  # a few decide, unless the embedding is discrete
    while True:
        columns = x[:, :n_columns]
        order = np.lexsort((*tie_breakers, *columns.T[::-1]))
        is_decided = (np.diff(columns[order], axis=0) != 0).any(axis=1).all()
        if is_decided or n_columns >= x.shape[1]:
            return order
        n_columns *= 8


def _keys(data: AnnData | MuData, attr: Literal["obs", "obsm"]) -> list[str]:
    keys = [str(key) for key in getattr(data, attr)]
    if isinstance(data, MuData):
        keys = [key for key in keys if attr == "obs" or key not in data.mod]  # obsm of a MuData also has its masks
        keys += [f"{mod}:{key}" for mod in data.mod for key in _keys(data.mod[mod], attr)]
    elif attr == "obsm" and data.X is not None:
        keys += ["X"]
    return list(dict.fromkeys(keys))


def _lookup(data: AnnData | MuData, key: str, attr: Literal["obs", "obsm"], name: str = "data"):
    """A column of `obs` or an array of `obsm`; of a MuData also "modality:key", missing where the modality is."""
    if key in getattr(data, attr):
        return getattr(data, attr)[key]
    if attr == "obsm" and key == "X" and isinstance(data, AnnData) and data.X is not None:
        return data.X
    if isinstance(data, MuData):
        mod, _, inner = key.partition(":")
        if inner and mod in data.mod:
            row = data.obsmap[mod].ravel().astype(int) - 1  # -1: the observation lacks the modality
            return _spread(_lookup(data.mod[mod], inner, attr, f"{name}[{mod!r}]"), row)
        for mod in data.mod:
            if key in getattr(data.mod[mod], attr) or (attr, key) == ("obsm", "X"):
                raise KeyError(
                    f"{key!r} is in {name}[{mod!r}].{attr}, not in {name}.{attr}: write '{mod}:{key}'."
                    if key != "X"
                    else f"A MuData has no X of its own: write '{mod}:X'."
                )
    keys = _keys(data, attr)
    close = difflib.get_close_matches(key, keys, n=1)
    raise KeyError(
        f"{key!r} is not in {name}.{attr}."
        + (f" Did you mean {close[0]!r}?" if close else "")
        + f" There is {', '.join(keys) or 'nothing'}."
    )


def _spread(values: pd.Series | pd.DataFrame | NDArray, row: NDArray) -> pd.Series | NDArray:
    """Values of a modality's observations, as values of all."""
    if isinstance(values, pd.Series):  # integers and booleans stay what they are, which missing values else change
        return pd.Series(values.convert_dtypes(convert_floating=False).array.take(row, allow_fill=True))
    values = values.toarray() if sparse.issparse(values) else np.asarray(values)
    spread = np.full((len(row), values.shape[1]), np.nan)
    spread[row >= 0] = values[row[row >= 0]]
    return spread
