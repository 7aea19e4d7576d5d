"""How much of a label or of a number can be read off an embedding."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from unbraid._messages import check_option, check_range
from unbraid.metrics._lookup import embedding_of, values_of
from unbraid.metrics._probe_design import (
    FIT_PREDICT,
    Sample,
    bootstrap_interval,
    fold_of,
    gains_of,
    is_constant_within,
    null_scores,
    out_of_fold,
)
from unbraid.metrics._resampling import percentiles
from unbraid.metrics._result import Result

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

FEW_VALUES = 20  # integers with at most so many different values are classes
N_PERMUTATIONS = {"linear": 100, "boosted": 20}
ONE_THREAD_BELOW = 2_000_000  # numbers in the embedding; on less, threads wait longer than they work


@dataclass(frozen=True, kw_only=True)
class ProbeResult(Result):
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

    _measure = "probe"
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

    def _flat(self, name: str) -> dict:
        if name == "per_class":
            return {f"recall:{label}": recall for label, recall in (self.per_class or {}).items()}
        return super()._flat(name)

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
    check_option("kind", kind, ("linear", "boosted"))
    check_option("task", task, ("auto", "classification", "regression"))
    n_permutations = N_PERMUTATIONS[kind] if n_permutations is None else n_permutations
    check_range("n_splits", n_splits, n_splits >= 2, "at least 2")
    check_range("n_permutations", n_permutations, n_permutations >= 0, "0 or more")
    check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")
    check_range("max_obs", max_obs, max_obs is None or max_obs >= 2 * n_splits, "at least twice n_splits")
    subset_rng, fold_rng, boosting_rng, null_rng, bootstrap_rng = np.random.default_rng(seed).spawn(5)

    sample, n_dropped = _read(data, target, use_rep, groups, task)
    if max_obs is not None and len(sample) > max_obs:
        sample = sample[np.sort(subset_rng.choice(len(sample), max_obs, replace=False))]
    sample, n_rare = _checked(sample, n_splits)

    fit_predict = FIT_PREDICT[kind, sample.is_classes]
    if kind == "boosted":
        fit_predict = partial(fit_predict, seed=int(boosting_rng.integers(2**31)))
    with threadpool_limits(1) if sample.x.size < ONE_THREAD_BELOW else nullcontext():
        fold = fold_of(sample, n_splits, seed=int(fold_rng.integers(2**31)))
        gains = gains_of(sample, fold, out_of_fold(sample.x, sample.y, fold, fit_predict))
        interval = bootstrap_interval(gains, sample.groups, confidence, bootstrap_rng)
        observed, null = null_scores(sample, fold, kind, fit_predict, n_permutations, null_rng)

    n_classes = len(sample.classes) if sample.is_classes else None
    return ProbeResult(
        score=gains.score(),
        metric="balanced_accuracy" if sample.is_classes else "r2",
        interval=interval,
        chance=float(null.mean()) if n_permutations else 1 / n_classes if n_classes else 0.0,
        chance_interval=percentiles(null, confidence),
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


# --------------------------------------------------------------------------------------------------
# From what the user has to a sample


def _read(
    data: ArrayLike | AnnData | MuData,
    target: ArrayLike | str,
    use_rep: str | None,
    groups: ArrayLike | str | None,
    task: str,
) -> tuple[Sample, int]:
    """The observations that can be used, in an order that does not depend on theirs, and how many cannot."""
    x = embedding_of(data, use_rep)
    values = values_of(data, target, "target", len(x))
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
        group_values = values_of(data, groups, "groups", len(keep))[keep]
        if group_values.isna().any():
            raise ValueError(
                f"{int(group_values.isna().sum())} of {len(x)} observations have no group. Give each one, or leave "
                "these observations out."
            )
        codes = np.unique(group_values.astype(str).to_numpy(dtype=str), return_inverse=True)[1]
    order = _canonical_order(x, y, codes)
    return Sample(x, y, classes, codes)[order], int((~keep).sum())


def _checked(sample: Sample, n_splits: int) -> tuple[Sample, int]:
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
        sample = Sample(sample.x, np.unique(sample.y, return_inverse=True)[1], classes, sample.groups)
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

    if sample.groups is not None and not is_constant_within(sample.groups, sample.y):
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
