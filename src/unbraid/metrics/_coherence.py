"""Whether what is generated shows what it should, and the same in all modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from unbraid._messages import check_range, suggest
from unbraid.metrics._lookup import values_of
from unbraid.metrics._resampling import bootstrap_sums, percentiles
from unbraid.metrics._rows import codes_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Classifier = Callable[[Any], ArrayLike] | Any  # or an estimator with predict

KINDS = ("self", "cross", "unconditional")


@dataclass(frozen=True, kw_only=True)
class CoherenceResult:
    """What :func:`coherence` found.

    Attributes
    ----------
    table
        One row for each kind (`"self"`, `"cross"`, `"unconditional"`) and attribute: `coherence` with `low` and `high`,
        `chance`, `ceiling` (the same on real data, NaN without), `n_obs`, `n_groups`, `n_dropped`. With several
        attributes also `"product"`, their product, and `"all"`, the share of samples that show all of them at once.
    pairs
        The same for each `source` and `target` modality of conditional generation.
    confidence
        Level of the intervals.
    """

    table: pd.DataFrame = field(compare=False)
    pairs: pd.DataFrame = field(compare=False)
    confidence: float

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def __str__(self) -> str:
        lines = []
        for row in self.table.itertuples():
            of = "" if row.n_groups is None or pd.isna(row.n_groups) else f" in {int(row.n_groups):,} groups"
            ceiling = "" if np.isnan(row.ceiling) else f", real data {row.ceiling:.2f}"
            lines.append(
                f"{row.kind} coherence of {row.attribute} {row.coherence:.2f} [{row.low:.2f}, {row.high:.2f}], chance "
                f"{row.chance:.2f}{ceiling} (n = {row.n_obs:,}{of})"
            )
        return "\n".join(lines)

    __repr__ = __str__


def coherence(
    generated: Mapping[tuple[str, str], ArrayLike] | None,
    labels: ArrayLike | Mapping[str, ArrayLike | Mapping[str, ArrayLike]] | None,
    classifier: Mapping[str, Classifier] | Mapping[str, Mapping[str, Classifier]],
    *,
    unconditional: Mapping[str, ArrayLike] | None = None,
    real: Mapping[str, ArrayLike] | None = None,
    real_labels: ArrayLike | Mapping[str, ArrayLike | Mapping[str, ArrayLike]] | None = None,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> CoherenceResult:
    r"""Whether what is generated shows what it should, and the same in all modalities.

    Parameters
    ----------
    generated
        Conditional generation: rows of modality t from modality s of the same observations, as `{(s, t): rows}`; of
        s = t, self-reconstruction. Arrays whose first axis are the `n_obs` observations, or AnnData, whose `X` is
        taken. Rows that are NaN throughout (the source is missing) are left out. None if there is none.
    labels
        What the rows should show: `n_obs` labels; of several attributes, `{attribute: labels}`. Where they differ
        between the modalities that are generated (private labels), `{attribute: {t: labels}}`. Observations without a
        label are left out. None for unconditional generation alone.
    classifier
        Of each modality, what maps rows to labels: a callable, or an estimator with `predict`. With several attributes
        `{attribute: {modality: classifier}}`.
    unconditional
        Generation from the prior: rows of each modality, `{modality: rows}`, where row i of all is one set made from
        one shared latent.
    real
        Real observations that the classifiers have not seen, `{modality: rows}`, for the ceiling.
    real_labels
        Their labels, as `labels`. By default `labels`: the rows are the observations generated from.
    groups
        What is drawn in the bootstrap (donor, molecule): `n_obs` labels. Sets are drawn one by one.
    confidence
        Level of the intervals.
    seed
        Seed of the bootstrap. Global random state is neither used nor changed.

    Returns
    -------
    The table by kind and attribute, as `.table`, and by pair of modalities, as `.pairs`.

    Raises
    ------
    KeyError
        A modality has no classifier, or an attribute no labels or no classifiers.
    ValueError
        Lengths differ; nothing is generated; a classifier does not return one label for each row, or returns numbers
        for labels that are strings; no observation is left; `unconditional` has a single modality.

    Notes
    -----
    With the classifier :math:`f_t` of modality t, label :math:`y_i` and the row :math:`\hat x_i^{s \to t}`,

    .. math::

        \text{coherence}(s, t) = \frac{1}{n} \sum_i [f_t(\hat x_i^{s \to t}) = y_i], \qquad
        \text{unconditional} = \frac{1}{n} \sum_i [f_1(\hat x_i^1) = \ldots = f_M(\hat x_i^M)].

    Self-coherence is the mean over pairs s = t, cross-coherence over pairs s != t [1]_. Whether high or low is good
    depends on the label: rows made with a shared latent from the posterior and a specific one from the prior should
    show the shared label and not the private one.

    **Product.** With several attributes, DL2 [2]_ multiplies their coherences: `"product"` is the product of the means
    over pairs, and of the pair in `.pairs`. `"all"` is the share of rows that show all attributes at once, which is
    the same if errors are independent.

    **Chance** is the expected coherence if rows and labels are permuted, with the frequency :math:`p_k` of labels and
    :math:`q_k` of predictions: :math:`\sum_k p_k q_k`, 1 / K for balanced labels; unconditionally,
    :math:`\sum_k \prod_m q_k^m`. A generator that makes one class only has an unconditional coherence, and a chance
    level, of 1.

    **Ceiling.** The same on real data, where all that is missing to 1 is the classifiers' error: accuracy of the target
    modalities, and agreement of all modalities.

    Intervals are percentiles over 1,000 bootstrap samples of groups, or of observations, with the classifiers fixed.

    References
    ----------
    .. [1] Zhang, Shen and Wang, Disentanglement of variations with multimodal generative modeling, section 4.1.
    .. [2] Dual-level disentanglement (DL2): task-adaptive disentanglement for resolving the task-generation dilemma,
       appendix H.1.2.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> rng = np.random.default_rng(0)
    >>> label = rng.integers(2, size=200)
    >>> good, bad = label[:, None] + 0.1 * rng.normal(size=(200, 1)), rng.normal(size=(200, 1))
    >>> threshold = lambda rows: (rows[:, 0] > 0.5).astype(int)
    >>> result = ub.metrics.coherence(
    ...     {("rna", "rna"): good, ("rna", "prot"): bad}, label, {"rna": threshold, "prot": threshold}
    ... )
    >>> result.table["kind"].tolist(), float(result.table["coherence"][0])
    (['self', 'cross'], 1.0)
    """
    check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")
    generated, unconditional, real = generated or {}, unconditional or {}, real or {}
    if not generated and not unconditional:
        raise ValueError("There is nothing to judge: pass generated, unconditional, or both.")
    if len(unconditional) == 1:
        raise ValueError("unconditional has a single modality; whether modalities agree needs two.")
    if generated and labels is None:
        raise ValueError("Pass the labels that the generated rows should show.")
    classifiers = _by_attribute(labels, classifier)
    rngs = np.random.default_rng(seed).spawn(2)

    by_target: dict[str, pd.DataFrame] = {}  # of real data: right or wrong
    real_labels = labels if real_labels is None else real_labels
    if real_labels is not None:
        by_target = {
            t: _judge(rows, t, classifiers, real_labels, f"real[{t!r}]").right.dropna() for t, rows in real.items()
        }
    judged = {
        (s, t): _judge(rows, t, classifiers, labels, f"generated[{(s, t)!r}]") for (s, t), rows in generated.items()
    }
    lengths = {len(each.right) for each in judged.values()}
    if len(lengths) > 1:
        raise ValueError(f"generated has arrays of {', '.join(map(str, sorted(lengths)))} rows; all must be the same.")
    codes = None if groups is None or not judged else codes_of(values_of(None, groups, "groups", *lengths), "group")

    table, pairs = _conditional(judged, by_target, codes, confidence, rngs[0])
    if unconditional:
        table += _unconditional(unconditional, real, classifiers, confidence, rngs[1])
    return CoherenceResult(table=pd.DataFrame(table), pairs=pd.DataFrame(pairs), confidence=confidence)


# --------------------------------------------------------------------------------------------------
# From rows to right and wrong


@dataclass(frozen=True)
class _Judged:
    right: pd.DataFrame  # (n_obs, attributes and "all"); 1 or 0, NaN where left out
    chance: dict[str, float]


def _by_attribute(labels: Any, classifier: Mapping) -> dict[str, Mapping[str, Classifier]]:
    """Classifiers of each attribute and modality; a single attribute is called "label"."""
    if not isinstance(classifier, Mapping) or not classifier:
        raise ValueError("classifier must be a mapping from modalities to classifiers.")
    is_nested = [isinstance(each, Mapping) for each in classifier.values()]
    if not any(is_nested):
        if isinstance(labels, Mapping) and len(labels) > 1:
            raise ValueError("labels has several attributes: classifier must be {attribute: {modality: classifier}}.")
        return {next(iter(labels)) if isinstance(labels, Mapping) else "label": classifier}
    if labels is not None:
        if not isinstance(labels, Mapping):
            raise ValueError("classifier has attributes: labels must be {attribute: labels}, too.")
        for attribute in [*classifier, *labels]:
            if attribute not in labels or attribute not in classifier:
                where = "labels" if attribute not in labels else "classifier"
                raise KeyError(f"Attribute {attribute!r} is not in {where}.")
    return dict(classifier)


def _judge(rows: ArrayLike, target: str, classifiers: dict, labels: Any, name: str) -> _Judged:
    """Whether rows show their labels."""
    rows = rows.X if isinstance(rows, AnnData) else rows
    n = rows.shape[0] if hasattr(rows, "shape") else len(rows)
    wanted = {}
    for attribute in classifiers:
        of_attribute = labels[attribute] if isinstance(labels, Mapping) else labels
        if isinstance(of_attribute, Mapping):
            if target not in of_attribute:
                raise KeyError(f"labels[{attribute!r}] has no {target!r}. {suggest(target, of_attribute)}")
            of_attribute = of_attribute[target]
        wanted[attribute] = values_of(None, np.asarray(of_attribute, dtype=object), f"labels ({name})", n)
    keep = _present(rows) & np.all([each.notna() for each in wanted.values()], axis=0)
    if not keep.any():
        raise ValueError(f"{name}: no row has both values and labels.")
    predicted, truth = {}, {}
    for attribute, by_modality in classifiers.items():
        predicted[attribute] = _predict(by_modality, target, rows, keep, name)
        truth[attribute] = wanted[attribute][keep].to_numpy()
        if _are_strings(truth[attribute]) != _are_strings(predicted[attribute]):
            raise ValueError(
                f"{name}: the classifier returns {predicted[attribute][0]!r}, but labels are such as "
                f"{truth[attribute][0]!r}. Let it return labels, not their codes."
            )
    columns = {a: predicted[a] == truth[a] for a in classifiers}
    chance = {a: _by_chance(truth[a], predicted[a]) for a in classifiers}
    if len(classifiers) > 1:
        columns["all"] = np.all(list(columns.values()), axis=0)
        chance["all"] = _by_chance(_joint(truth), _joint(predicted))
    right = pd.DataFrame(np.nan, index=range(n), columns=list(columns))
    right.loc[keep] = np.column_stack(list(columns.values())).astype(float)
    return _Judged(right, chance)


def _predict(by_modality: Mapping, modality: str, rows: Any, keep: NDArray, name: str) -> NDArray:
    if modality not in by_modality:
        raise KeyError(f"classifier has no {modality!r}. {suggest(modality, by_modality)}")
    each = by_modality[modality]
    rows = (rows.iloc if isinstance(rows, pd.DataFrame) else rows)[keep] if not keep.all() else rows
    predicted = np.asarray((each.predict if hasattr(each, "predict") else each)(rows))
    if predicted.shape != (keep.sum(),):
        raise ValueError(
            f"{name}: the classifier must return one label for each of {keep.sum()} rows, not an array of shape "
            f"{predicted.shape}." + (" Of probabilities take the argmax." if predicted.ndim == 2 else "")
        )
    return predicted


def _are_strings(values: NDArray) -> bool:
    return all(isinstance(each, str) for each in values)


def _present(rows: Any) -> NDArray:
    if sparse.issparse(rows):
        return np.ones(rows.shape[0], dtype=bool)
    values = np.asarray(rows)
    if values.dtype.kind != "f":
        return np.ones(len(values), dtype=bool)
    return ~np.isnan(values.reshape(len(values), -1)).all(axis=1)


def _joint(columns: dict[str, NDArray]) -> NDArray:
    """One label of several."""
    return np.array(list(zip(*columns.values(), strict=True)) + [None], dtype=object)[:-1]


def _by_chance(*labelings: NDArray) -> float:
    """Probability that independent draws from each are the same."""
    frequencies = pd.DataFrame([pd.Series(list(each)).value_counts(normalize=True) for each in labelings])
    return float(frequencies.fillna(0).prod().sum())


# --------------------------------------------------------------------------------------------------
# From right and wrong to tables


def _conditional(
    judged: dict[tuple[str, str], _Judged],
    by_target: dict[str, pd.DataFrame],
    groups: NDArray | None,
    confidence: float,
    rng: np.random.Generator,
) -> tuple[list[dict], list[dict]]:
    """Rows of the table by kind and of that by pair, from the same bootstrap samples."""
    if not judged:
        return [], []
    right = np.stack([each.right.to_numpy() for each in judged.values()], axis=1)  # (n, pairs, attributes)
    names = list(next(iter(judged.values())).right.columns)
    is_used = ~np.isnan(right)
    used = is_used.any(axis=(1, 2))
    units = None if groups is None else np.unique(groups[used], return_inverse=True)[1]
    columns = np.concatenate([np.nan_to_num(right), is_used], axis=2)[used].reshape(used.sum(), -1)
    if units is None:  # an order that does not depend on theirs
        columns = columns[np.lexsort(columns.T)]
    sums = np.concatenate([columns.sum(axis=0)[None], bootstrap_sums(columns, units, rng)])
    hits, counts = np.split(sums.reshape(len(sums), len(judged), -1), 2, axis=2)
    with np.errstate(invalid="ignore"):  # a bootstrap sample without any row of a pair
        scores = hits / counts  # (1 + bootstrap samples, pairs, attributes)
    chance = np.array([[each.chance[name] for name in names] for each in judged.values()])
    ceiling = np.array([[by_target[t][name].mean() if t in by_target else np.nan for name in names] for _, t in judged])
    counted = {"n_groups": None if units is None else int(units.max()) + 1}

    pairs, table = [], []
    for p, (s, t) in enumerate(judged):
        head = {"kind": "self" if s == t else "cross", "source": s, "target": t}
        facts = {"n_obs": int(is_used[:, p, 0].sum()), "n_dropped": int((~is_used[:, p, 0]).sum()), **counted}
        pairs += _lines(head, names, scores[:, p], chance[p], ceiling[p], facts, confidence)
    for kind in KINDS[:2]:
        of_kind = [p for p, (s, t) in enumerate(judged) if (s == t) == (kind == "self")]
        if of_kind:
            n_obs = int(is_used[:, of_kind, 0].any(axis=1).sum())
            facts = {"n_obs": n_obs, "n_dropped": len(right) - n_obs, **counted}
            means = [np.mean(each, axis=0) for each in (chance[of_kind], ceiling[of_kind])]
            with np.errstate(invalid="ignore"):
                table += _lines(
                    {"kind": kind}, names, np.nanmean(scores[:, of_kind], axis=1), *means, facts, confidence
                )
    return table, pairs


def _unconditional(
    sets: Mapping[str, ArrayLike],
    real: Mapping[str, ArrayLike],
    classifiers: dict[str, Mapping[str, Classifier]],
    confidence: float,
    rng: np.random.Generator,
) -> list[dict]:
    agree, chance, n_dropped = _agreement(sets, classifiers, "unconditional")
    ceiling = np.full(len(chance), np.nan)
    if all(modality in real for modality in sets):
        ceiling = _agreement({m: real[m] for m in sets}, classifiers, "real")[0].mean(axis=0)
    agree = agree[np.lexsort(agree.T)]
    scores = np.concatenate([agree.mean(axis=0)[None], bootstrap_sums(agree, None, rng) / len(agree)])
    names = [*classifiers, "all"][: len(chance)]
    facts = {"n_obs": len(agree), "n_dropped": n_dropped, "n_groups": None}
    return _lines({"kind": "unconditional"}, names, scores, chance, ceiling, facts, confidence)


def _agreement(
    sets: Mapping[str, ArrayLike], classifiers: dict[str, Mapping[str, Classifier]], name: str
) -> tuple[NDArray, NDArray, int]:
    """Whether all modalities show the same: (n, attributes and "all"), and by chance."""
    sets = {m: rows.X if isinstance(rows, AnnData) else rows for m, rows in sets.items()}
    lengths = {m: rows.shape[0] if hasattr(rows, "shape") else len(rows) for m, rows in sets.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name} has modalities of different lengths: {lengths}.")
    keep = np.all([_present(rows) for rows in sets.values()], axis=0)
    if not keep.any():
        raise ValueError(f"{name}: no set has all modalities.")
    shown = {
        a: [_predict(by_modality, m, rows, keep, f"{name}[{m!r}]") for m, rows in sets.items()]
        for a, by_modality in classifiers.items()
    }
    agree = [np.all([each == first for each in others], axis=0) for first, *others in shown.values()]
    chance = [_by_chance(*each) for each in shown.values()]
    if len(classifiers) > 1:
        agree.append(np.all(agree, axis=0))
        of_modality = [{a: each[m] for a, each in shown.items()} for m in range(len(sets))]
        chance.append(_by_chance(*map(_joint, of_modality)))
    return np.stack(agree, axis=1).astype(float), np.array(chance), int((~keep).sum())


def _lines(
    head: dict, names: list[str], scores: NDArray, chance: NDArray, ceiling: NDArray, facts: dict, confidence: float
) -> list[dict]:
    """A line for each attribute, and for their product, of `(1 + bootstrap samples, attributes)` scores."""
    if len(names) > 1:  # "all" is the last
        names = [*names, "product"]
        scores = np.column_stack([scores, scores[:, :-1].prod(axis=1)])
        chance, ceiling = (np.append(each, each[:-1].prod()) for each in (chance, ceiling))
    lines = []
    for j, name in enumerate(names):
        drawn = scores[1:, j]
        low, high = percentiles(drawn[~np.isnan(drawn)], confidence)
        numbers = {"coherence": float(scores[0, j]), "low": low, "high": high}
        numbers |= {"chance": float(chance[j]), "ceiling": float(ceiling[j])}
        lines.append(head | {"attribute": name} | numbers | facts)
    return lines
