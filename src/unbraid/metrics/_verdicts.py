"""Verdicts of a scorecard: numbers in, a word and a sentence out."""

from __future__ import annotations

import numpy as np

CARRIES = 0.1  # of the way from chance to a perfect score
COMPLETE = 0.8  # of the reproducible variance
STABLE = 0.9  # linear CKA


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values adjusted for the number of tests (Holm 1979)."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def shared(low: float, p_value: float, alpha: float, condition: str) -> tuple[str, str]:
    where = "" if condition == "all" else f" {condition}"
    if p_value < alpha and low > 0:
        return "shared", f"The codes share at least {low:.2f} nats{where}."
    if p_value < alpha:
        return "traces", f"The codes are not independent{where}, but they share too little to be measured."
    return "not shown", f"Nothing shared{where} was found."


def leak(
    estimate: float, low: float, high: float, p_value: float, alpha: float, margin: float, limit: float
) -> tuple[str, str]:
    if p_value < alpha and high >= margin and low > 0:
        return "leaks", f"At least {max(low, 0):.3f} nats of the other modality."
    if p_value < alpha:
        return "traces", f"Not independent of the other modality; measured {max(estimate, 0):.3f} nats, a lower bound."
    if np.isnan(limit):
        return "not found", "No dependence on the other modality was found."
    if limit <= margin and high < margin:
        return "clean", f"No leak found; leaks of {limit:.2g} nats would have been (9 of 10)."
    bound = max(limit, high)
    known = "of any planted size" if np.isinf(bound) else f"below {bound:.2g} nats"
    return "not shown", f"No leak found, but at this size of data leaks {known} can be missed (margin {margin:.2g})."


def complete(both: float, ceiling: float) -> tuple[str, str]:
    if np.isnan(ceiling):
        return "no ceiling", f"Both codes explain {both:.0%} of the variance; what of the rest is noise is not known."
    share = both / ceiling if ceiling > 0 else np.nan
    if share > 1:
        return "complete", f"Both codes explain {both:.0%} of the variance: the reproducible {ceiling:.0%}, and noise."
    word = "complete" if share >= COMPLETE else "partial"
    return word, f"Both codes explain {both:.0%} of the variance, {share:.0%} of what is reproducible ({ceiling:.0%})."


def nuisance(score: float, low: float, chance: float, p_value: float, alpha: float, target: str) -> tuple[str, str]:
    if p_value < alpha and low > chance + CARRIES * (1 - chance):
        return "carries", f"Holds {target}: {score:z.2f}, by chance {chance:z.2f}."
    if p_value < alpha and low > chance:
        return "traces", f"Traces of {target}: {score:z.2f}, by chance {chance:z.2f}."
    return "not found", f"{target.capitalize()} was not found: {score:z.2f}, by chance {chance:z.2f}."


def label(score: float, low: float, chance: float, p_value: float, alpha: float, target: str) -> tuple[str, str]:
    if p_value < alpha and low > chance:
        return "reads", f"{target} can be read: {score:z.2f}, by chance {chance:z.2f}."
    return "at chance", f"{target} cannot be read: {score:z.2f}, by chance {chance:z.2f}."


def dimension(effective: float, n_collapsed: int, n: int) -> tuple[str, str]:
    if n_collapsed:
        return "collapsed", f"{n_collapsed} of {n} dimensions hold nothing; {effective:.1f} carry the variance."
    return "used", f"{effective:.1f} of {n} dimensions carry the variance."


def stability(value: float) -> tuple[str, str]:
    word = "stable" if value >= STABLE else "unstable"
    return word, f"Other runs give a code with similarity {value:.2f} (1: the same up to rotation)."
