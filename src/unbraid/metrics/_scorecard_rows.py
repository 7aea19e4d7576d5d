"""The questions of a scorecard, each a few rows of its table."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from unbraid.metrics import _verdicts
from unbraid.metrics._detectors import Panel, detection_limits
from unbraid.metrics._pointwise import held_out_scores
from unbraid.metrics._probe import probe
from unbraid.metrics._resampling import bootstrap_sums, mean_interval, percentiles, permutations_within
from unbraid.metrics._retrieval import retrieval
from unbraid.metrics._variance import Prediction, available, explained, held_out_prediction, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from unbraid.metrics._scorecard_input import CardInput, Modality

LABEL_OBS = 100  # observations of a label that has a budget of its own
PROBE_OBS = 2_000
PROBE_PERMUTATIONS = 20
COLLAPSED = 1e-4  # of the largest variance


@dataclass
class Writer:
    """Rows of the card, and what all questions need."""

    data: CardInput
    estimators: tuple[str, ...]
    alpha: float
    confidence: float
    seed: int
    step: Callable[[str], None]
    rows: list[dict] = field(default_factory=list)

    def add(self, question: str, code: str, against: str, measure: str, estimate: float, **columns) -> None:
        blank = {"unit": "", "low": np.nan, "high": np.nan, "null": np.nan, "p_value": np.nan, "condition": "all"}
        blank |= {"n_obs": 0, "verdict": "", "words": ""}
        self.rows.append(
            {"question": question, "code": code, "against": against, "measure": measure, "estimate": estimate}
            | blank
            | columns
        )

    def rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def interval(self, scores: NDArray, keep: NDArray) -> tuple[float, float]:
        return mean_interval(scores, self.units(keep), self.confidence, self.rng(1))

    def units(self, keep: NDArray) -> NDArray | None:
        units = self.data.units
        return None if units is None else np.unique(units[keep], return_inverse=True)[1]


@dataclass(frozen=True)
class Condition:
    """What is held fixed when two codes are compared."""

    name: str  # in words
    strata: NDArray | None
    partial: NDArray | None = None  # (n, k) taken out of both sides by regression


def conditions(data: CardInput, keep: NDArray, *names: str) -> Iterator[Condition]:
    """Those of batch, label and depth that the data have columns for, after no condition."""
    yield Condition("all", None)
    if "batch" in names and data.batch is not None:
        yield Condition("within batch", data.strata("batch")[keep])
    if "label" in names and data.labels is not None:
        both = "within label" if data.batch is None else "within batch and label"
        yield Condition(both, data.strata("batch", "labels")[keep])
    depth = [m.nuisance["depth"][keep] for m in data.modalities.values() if "depth" in m.nuisance]
    depth = [d for d in depth if np.isfinite(d).all()]
    if "depth" in names and len(depth) >= 2:
        z = np.stack([(d - d.mean()) / max(d.std(), 1e-12) for d in depth], axis=1)
        i, j = np.triu_indices(z.shape[1])
        yield Condition("beyond depth", None, np.hstack([np.ones((len(z), 1)), z, z[:, i] * z[:, j]]))


def without(x: NDArray, condition: Condition) -> NDArray:
    if condition.partial is None:
        return x
    return x - condition.partial @ np.linalg.lstsq(condition.partial, x, rcond=None)[0]


def pointwise(a: NDArray, b: NDArray, strata: NDArray | None, keep: NDArray, writer: Writer, *, fast: bool) -> NDArray:
    """Scores of the estimator that did best on the other half of the folds: choosing it does not raise the estimate."""
    if is_constant(a) or is_constant(b):
        return np.zeros(len(a))
    estimators = [name for name in writer.estimators if name != "critic"] if fast else writer.estimators
    fold, units = writer.data.fold[keep], writer.units(keep)
    all_scores = np.stack(
        [
            held_out_scores(
                a, b, estimator=name, fold=fold, strata=strata, groups=units, rng=writer.rng(2), seed=writer.seed
            )
            for name in estimators
        ]
    )
    half = np.isin(fold, np.unique(fold)[::2])
    chosen = np.empty(len(a))
    for side in (half, ~half):
        chosen[side] = all_scores[all_scores[:, ~side].mean(1).argmax(), side]
    return chosen


def p_value(a: NDArray, b: NDArray, strata: NDArray | None, writer: Writer) -> float:
    """Of independence; a code that collapsed tells nothing."""
    return 1.0 if is_constant(a) or is_constant(b) else Panel(b, strata, seed=writer.seed).test(a)[0]


def is_constant(x: NDArray) -> bool:
    return bool((np.ptp(x, axis=0) <= 1e-10 * (1 + np.abs(x).max(0))).all())


def shared_rows(writer: Writer) -> float:
    """Is it shared? Returns the nats shared by the pair of modalities that shares most."""
    data, most = writer.data, 0.0
    for one, other in combinations(data.modalities.values(), 2):
        keep = one.present & other.present
        pair = (f"{one.shared_key}", f"{other.shared_key}")
        scores = {}
        for condition in conditions(data, keep, "batch", "label", "depth"):
            a, b = (without(m.shared[keep], condition) for m in (one, other))
            strata = condition.strata
            scores[condition.name] = s = pointwise(a, b, strata, keep, writer, fast=condition.name != "all")
            shuffled = next(permutations_within(strata, len(b), writer.rng(3)))
            null = pointwise(a, b[shuffled], strata, keep, writer, fast=True).mean()
            low, high = writer.interval(s, keep)
            writer.add(
                "shared", *pair, "mutual information", s.mean(), unit="nats", low=low, high=high, null=null,
                p_value=p_value(a, b, strata, writer), n_obs=int(keep.sum()), condition=condition.name,
            )  # fmt: skip
            writer.step(f"shared by {one.name} and {other.name}")
        most = max(most, scores["all"].mean())
        _shared_budget(writer, f"{one.name}, {other.name}", scores, keep)
        _rank_row(writer, one, other, keep)
    return most


def _shared_budget(writer: Writer, pair: str, scores: dict[str, NDArray], keep: NDArray) -> None:
    """What of the shared nats is batch, label, and within labels: differences of conditional informations."""
    ladder = [name for name in scores if name != "beyond depth"]
    has_label = ladder[-1].endswith("label")
    parts = {}
    for above, below in zip(ladder, ladder[1:], strict=False):
        parts["shared: batch" if below == "within batch" else "shared: label"] = scores[above] - scores[below]
    parts["shared: within label" if has_label else "shared"] = scores[ladder[-1]]
    for name, part in parts.items():
        low, high = writer.interval(part, keep)
        writer.add(
            "budget", pair, "all", name, part.mean(), unit="nats", low=low, high=high, n_obs=len(part),
        )  # fmt: skip


def _rank_row(writer: Writer, one: Modality, other: Modality, keep: NDArray) -> None:
    """Where the observation's own code of the other modality stands among all codes of the other modality."""
    a, b = one.shared[keep], other.shared[keep]
    if a.shape[1] != b.shape[1]:
        return
    result = retrieval(a, b, groups=writer.units(keep), top=(1,), confidence=writer.confidence, seed=writer.seed)
    low, high = result.foscttm_interval
    words = f"{result.foscttm:.1%} of the codes are nearer than the observation's own (by chance 50%)."
    writer.add(
        "shared", one.shared_key, other.shared_key, "share of nearer codes", result.foscttm, low=low, high=high,
        null=result.foscttm_chance, n_obs=result.n_queries, verdict="found" if high < 0.5 else "not found", words=words,
    )  # fmt: skip


def leak_rows(writer: Writer, *, with_limits: bool) -> None:
    """Is it specific? Dependence of a specific code on the other modality's shared code and data."""
    data = writer.data
    pairs = [
        (own, other)
        for own in data.modalities.values()
        for other in data.modalities.values()
        if own is not other and own.specific is not None
    ]
    n_tests = 2 * len(pairs)
    for own, other in pairs:
        keep = own.present & other.present
        for against, target, asked in (
            (other.shared_key, other.shared, ("batch", "depth")),
            (f"data of {other.name}", other.components, ("batch",)),
        ):
            for condition in conditions(data, keep, *asked):
                a, b = without(own.specific[keep], condition), without(target[keep], condition)
                strata = condition.strata
                scores = pointwise(a, b, strata, keep, writer, fast=condition.name != "all")
                shuffled = next(permutations_within(strata, len(b), writer.rng(3)))
                null = pointwise(a, b[shuffled], strata, keep, writer, fast=True).mean()
                low, high = writer.interval(scores, keep)
                writer.add(
                    "specific", own.specific_key, against, "mutual information", scores.mean(), unit="nats", low=low,
                    high=high, null=null, p_value=p_value(a, b, strata, writer),
                    n_obs=int(keep.sum()), condition=condition.name,
                )  # fmt: skip
                writer.step(f"leak of {other.name} into {own.specific_key}")
        if with_limits and not is_constant(own.specific[keep]) and not is_constant(other.shared[keep]):
            labels = None if data.labels is None else np.unique(data.labels[keep], return_inverse=True)[1]
            limits = detection_limits(
                own.specific[keep],
                other.shared[keep],
                labels=labels,
                alpha=writer.alpha / n_tests,
                seed=writer.seed,
                on_step=lambda code=own.specific_key: writer.step(f"limit of detection in {code}"),
            )
            for limit in limits.itertuples():
                writer.add(
                    "limit of detection", own.specific_key, other.shared_key, f"{limit.family} leak", limit.nats,
                    unit="nats", n_obs=int(keep.sum()),
                    words=f"Found in {limit.power:.0%} of the repeats; {limit.share:.0%} of the variance of two dimensions.",
                )  # fmt: skip


def variance_rows(writer: Writer) -> None:
    """Is it complete? And the budget of every modality's variance."""
    data = writer.data
    for own in data.modalities.values():
        keep = own.present
        # what another modality says of an observation needs that modality
        for other in data.modalities.values():
            if other is not own:
                keep = keep & other.present
        if keep.sum() < 50:
            continue
        x, fold = own.values[keep], data.fold[keep]
        others = [m.shared[keep] for m in data.modalities.values() if m is not own]
        codes = {"shared": [own.shared[keep]], "confirmed": others}
        if own.specific is not None:
            codes["specific"] = [own.specific[keep]]
            codes["both"] = [own.shared[keep], own.specific[keep]]
            codes["confirmed, specific"] = [*others, own.specific[keep]]
        codes["all"] = [*others, *codes.get("both", codes["shared"])]
        predicted = {name: held_out_prediction(x, parts, fold) for name, parts in codes.items()}
        total = available(x)
        ceiling = np.nan if own.reproducible is None else float(own.reproducible.sum() / x.var(0).sum())
        for name, key in (("shared", own.shared_key), ("specific", own.specific_key), ("both", "both")):
            if name in predicted:
                gain = explained(x, predicted[name])
                share, low, high = _ratio(writer, gain, total, keep)
                verdict, words = _verdicts.complete(share, ceiling) if name == "both" else ("", f"{share:.0%}.")
                writer.add(
                    "complete", key, own.name, "variance explained", share, unit="share", low=low, high=high, null=0.0,
                    n_obs=len(x), verdict=verdict, words=words,
                )  # fmt: skip
        _variance_budget(writer, own, x, codes, predicted, total, ceiling, keep)
        writer.step(f"variance of {own.name}")


def _variance_budget(
    writer: Writer,
    own: Modality,
    x: NDArray,
    codes: dict[str, list[NDArray]],
    predicted: dict[str, Prediction],
    total: NDArray,
    ceiling: float,
    keep: NDArray,
) -> None:
    data = writer.data
    confirmed = predicted["confirmed"]
    parts, before = {}, np.zeros(len(x))

    def add(name: str, gain: NDArray) -> None:
        nonlocal before
        parts[name] = gain - before
        before = gain

    if data.batch is not None:
        add("shared: batch", explained(x, within(confirmed, data.strata("batch")[keep])))
    if data.labels is not None:
        add("shared: label", explained(x, within(confirmed, data.strata("batch", "labels")[keep])))
    add("shared: within label" if data.labels is not None else "shared", explained(x, confirmed))
    if own.specific is not None:
        add("specific", explained(x, predicted["confirmed, specific"]))
    add("shared code only", explained(x, predicted["all"]))
    explained_share = before.sum() / total.sum()
    for name, part in parts.items():
        share, low, high = _ratio(writer, part, total, keep)
        writer.add("budget", own.name, "all", name, share, unit="share of variance", low=low, high=high, n_obs=len(x))
    if np.isnan(ceiling):
        writer.add(
            "budget", own.name, "all", "not explained", 1 - explained_share, unit="share of variance", n_obs=len(x)
        )
    else:
        left = max(ceiling - explained_share, 0.0)
        writer.add("budget", own.name, "all", "left out", left, unit="share of variance", n_obs=len(x))
        writer.add(
            "budget", own.name, "all", "noise", 1 - explained_share - left, unit="share of variance", n_obs=len(x)
        )
    if data.labels is None:
        return
    fold, label = data.fold[keep], data.labels[keep]
    names = data.columns["labels"].astype(str)
    for k in np.unique(label):
        member = label == k
        if member.sum() < LABEL_OBS:
            continue
        name = names[np.flatnonzero(data.labels == k)[0]]
        inside = x[member] - x[member].mean(0)
        total = available(inside)
        of_label = np.zeros(len(keep), dtype=bool)
        of_label[np.flatnonzero(keep)[member]] = True
        before = np.zeros(len(inside))
        for part, key in (
            ("shared: within label", "confirmed"),
            ("specific", "confirmed, specific"),
            ("shared code only", "all"),
        ):
            if key in codes:
                now = explained(inside, held_out_prediction(inside, [c[member] for c in codes[key]], fold[member]))
                share, low, high = _ratio(writer, now - before, total, of_label)
                before = now
                writer.add(
                    "budget",
                    own.name,
                    name,
                    part,
                    share,
                    unit="share of variance",
                    low=low,
                    high=high,
                    n_obs=len(inside),
                )
        rest = 1 - before.sum() / total.sum()
        writer.add("budget", own.name, name, "not explained", rest, unit="share of variance", n_obs=len(inside))


def _ratio(writer: Writer, gain: NDArray, total: NDArray, keep: NDArray) -> tuple[float, float, float]:
    sums = bootstrap_sums(np.stack([gain, total], axis=1), writer.units(keep), writer.rng(1))
    return gain.sum() / total.sum(), *percentiles(sums[:, 0] / sums[:, 1], writer.confidence)


def latents(data: CardInput) -> Iterator[tuple[str, NDArray, NDArray]]:
    """Key, values and rows of every latent on the card."""
    if data.joint is not None:
        yield data.joint_key, data.joint, np.ones(len(data.fold), dtype=bool)
    for modality in data.modalities.values():
        if not data.has_views:
            yield modality.shared_key, modality.shared, modality.present
        if modality.specific is not None:
            yield modality.specific_key, modality.specific, modality.present


def probe_rows(writer: Writer) -> None:
    """Nuisances and labels, read off every latent."""
    data = writer.data
    targets = [("nuisance", "batch", data.columns["batch"])] if "batch" in data.columns else []
    for modality in data.modalities.values():
        targets += [
            ("nuisance", f"{name} of {modality.name}", pd.Series(values)) for name, values in modality.nuisance.items()
        ]
    if "labels" in data.columns:
        targets.append(("label", str(data.columns["labels"].name or "labels"), data.columns["labels"]))
    groups = data.columns.get("group")
    for key, values, present in latents(data):
        for question, name, target in targets:
            kept = np.flatnonzero(present & target.notna().to_numpy())
            if len(kept) > PROBE_OBS:
                kept = np.sort(writer.rng(4).choice(kept, PROBE_OBS, replace=False))
            is_number = pd.api.types.is_float_dtype(target)
            y = target.iloc[kept].reset_index(drop=True)
            y = y if is_number else y.astype(str).astype("category")
            units = None if groups is None else groups.iloc[kept].astype(str).to_numpy()
            try:
                result = probe(
                    values[kept], y, groups=units, n_permutations=PROBE_PERMUTATIONS, confidence=writer.confidence,
                    seed=writer.seed,
                )  # fmt: skip
            except ValueError as error:  # one class, a constant, too few groups: the card goes on without the row
                writer.add(question, key, name, "", np.nan, verdict="not judged", words=str(error), n_obs=len(kept))
                continue
            words = _verdicts.nuisance if question == "nuisance" else _verdicts.label
            verdict, sentence = words(
                result.score, result.interval[0], result.chance, result.p_value, writer.alpha, name
            )
            writer.add(
                question, key, name, result.metric.replace("_", " "), result.score, low=result.interval[0],
                high=result.interval[1], null=result.chance, p_value=result.p_value, n_obs=result.n_obs,
                verdict=verdict, words=sentence,
            )  # fmt: skip
        writer.step(f"probes of {key}")


def dimension_rows(writer: Writer) -> None:
    for key, values, present in latents(writer.data):
        variance = values[present].var(0)
        spectrum = np.linalg.eigvalsh(np.atleast_2d(np.cov(values[present].T)))
        spectrum = np.clip(spectrum, 0, None)
        effective = spectrum.sum() ** 2 / max((spectrum**2).sum(), 1e-300)
        n_collapsed = int((variance <= COLLAPSED * variance.max()).sum())
        verdict, words = _verdicts.dimension(effective, n_collapsed, len(variance))
        writer.add(
            "dimension", key, "", "participation ratio", effective, unit="dimensions", n_obs=int(present.sum()),
            verdict=verdict, words=words,
        )  # fmt: skip


def stability_rows(writer: Writer, runs: list[CardInput]) -> None:
    """Similarity of a code to that of other runs on the same observations."""
    own = {key: (values, present) for key, values, present in latents(writer.data)}
    for position, (key, (values, present)) in enumerate(own.items()):
        codes = [values[present]]
        for run in runs:
            _, other, _ = list(latents(run))[position]
            codes.append(other[present])
        similarities = [linear_cka(a, b) for a, b in combinations(codes, 2)]
        verdict, words = _verdicts.stability(float(np.mean(similarities)))
        writer.add(
            "stability", key, f"{len(runs)} other runs", "linear CKA", float(np.mean(similarities)),
            low=min(similarities), high=max(similarities), null=0.0, n_obs=int(present.sum()), verdict=verdict,
            words=words + " The interval is the range over pairs of runs.",
        )  # fmt: skip


def linear_cka(a: NDArray, b: NDArray) -> float:
    """Similarity of two codes up to rotation and scale, 0 to 1 (Kornblith et al. 2019, eq. 4)."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float(np.sum((a.T @ b) ** 2) / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def single_threaded() -> threadpool_limits:
    return threadpool_limits(1)  # the matrices are small: threads wait longer than they work
