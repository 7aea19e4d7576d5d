"""How much of a label or of a number can be read off an embedding."""

from __future__ import annotations

import difflib
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike

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
        return f"{name} {self.score:.2f} [{low:.2f}, {high:.2f}], chance {self.chance:.2f} ({', '.join(facts)})"

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
        classes, and floats and other integers for numbers.
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
    - *classes, linear*: the linear discriminant on the same folds, on all observations. It is logistic regression
      after one Newton step from zero, and under permuted targets, where the weights are near zero, scores alike,
      at a hundredth of the cost.
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
    for name, value, ok, rule in (
        ("n_splits", n_splits, n_splits >= 2, "at least 2"),
        ("n_permutations", n_permutations, n_permutations >= 0, "0 or more"),
        ("confidence", confidence, 0 < confidence < 1, "between 0 and 1"),
        ("max_obs", max_obs, max_obs is None or max_obs >= 2 * n_splits, f"at least 2 * n_splits = {2 * n_splits}"),
    ):
        if not ok:
            raise ValueError(f"{name} must be {rule}, not {value}.")

    sample = _read(data, target, use_rep, groups, task)
    n_given = sample.n_given
    rngs = dict(zip(("subset", "folds", "null", "bootstrap"), np.random.default_rng(seed).spawn(4), strict=True))
    if max_obs is not None and len(sample) > max_obs:
        sample = sample[np.sort(rngs["subset"].choice(len(sample), max_obs, replace=False))]
    n_subset = len(sample)
    sample = _checked(sample, n_splits)

    one_thread = threadpool_limits(1) if sample.x.size < ONE_THREAD_BELOW else nullcontext()
    with one_thread:
        fold = _folds(sample, n_splits, int(rngs["folds"].integers(2**31)))
        part, whole = _SCORERS[kind, sample.classes is not None](sample, sample.y[:, None], fold, seed)
        part, whole = part[..., 0], whole[..., 0]
        null, observed = np.empty(0), np.nan
        if n_permutations:
            null, observed = _null(sample, fold, kind, n_permutations, rngs["null"], seed)

    units = np.arange(len(sample)) if sample.groups is None else sample.groups
    is_class = sample.classes is not None
    score = _ratio(part.sum(0), whole.sum(0))
    return score


def _check_option(name: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, not {value!r}.")
