"""A scorecard as a picture: estimates with intervals, and stacked budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from mudata import MuData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOOD, BAD, UNSURE, PLAIN = "#2a7f62", "#b3382c", "#c98b1b", "#5b6770"
SHADES = {
    "shared": GOOD, "found": GOOD, "clean": GOOD, "complete": GOOD, "used": GOOD, "stable": GOOD, "reads": PLAIN,
    "leaks": BAD, "carries": BAD, "collapsed": BAD, "unstable": BAD,
    "traces": UNSURE, "not shown": UNSURE, "partial": UNSURE, "not found": PLAIN, "at chance": PLAIN,
}  # fmt: skip
PARTS = {
    "shared: batch": "#8a6d9b",
    "shared: label": "#1f5f8b",
    "shared: within label": "#57a0d3",
    "shared": "#1f5f8b",
    "specific": "#e0902f",
    "shared code only": "#9ccfc0",
    "left out": "#c9c9c9",
    "not explained": "#dedede",
    "noise": "#efefef",
}
TITLES = {
    "shared": "Shared? Information of the modalities' shared codes",
    "specific": "Specific? Leak of the other modality",
    "complete": "Complete? Variance explained, held out",
    "nuisance": "Nuisances, read by a linear probe",
    "label": "Labels, read by a linear probe",
}


def table_of(card: object) -> pd.DataFrame:
    """The table of a card, of a MuData that holds one, or the table itself."""
    if isinstance(card, MuData):
        if "scorecard" not in card.uns:
            raise KeyError("No 'scorecard' in uns of the MuData: call `ub.metrics.scorecard(mdata)` first.")
        return card.uns["scorecard"]
    table = card if isinstance(card, pd.DataFrame) else getattr(card, "table", None)
    if not isinstance(table, pd.DataFrame) or "question" not in table:
        raise TypeError(f"Not a scorecard: {type(card).__name__}. Pass what `ub.metrics.scorecard` returns.")
    return table


def scorecard(card: object) -> Figure:
    """Draw the findings of a scorecard, one panel per question.

    Dots are estimates, bars their intervals, hollow diamonds the null, and the colour is the verdict: green is what a
    good split shows, red what spoils it, amber what is not settled. The dashed line is
    the largest limit of detection, of whichever kind of leak.

    Parameters
    ----------
    card
        What :func:`unbraid.metrics.scorecard` returned, its table, or the MuData that holds it.

    Returns
    -------
    The figure.

    Raises
    ------
    KeyError
        If the MuData holds no card.
    TypeError
        If it is no card.
    """
    table = table_of(card)
    panels = []
    for question, title in TITLES.items():
        rows = table[(table["question"] == question) & table["estimate"].notna()]
        for unit, part in rows.groupby("unit", sort=False):
            if len(part):
                panels.append((title, question, unit, part))
    limits = table[table["question"] == "limit of detection"]
    heights = [len(part) + 1.6 for *_, part in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9.5, 0.27 * sum(heights) + 0.4), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, (title, question, unit, rows) in zip(axes[:, 0], panels, strict=True):
        _panel(ax, rows)
        measure = rows["measure"].iloc[0] if rows["measure"].nunique() == 1 else "score"
        ax.set_title(title if unit or question != "shared" else "Shared? Retrieval", loc="left", fontsize=10)
        ax.set_xlabel(unit or measure.replace("r2", "$R^2$"), fontsize=8, labelpad=1)
        if question == "specific" and len(limits):
            worst = limits["estimate"].max()
            if np.isfinite(worst):
                ax.axvline(worst, color="0.35", lw=0.8, ls="--")
                ax.annotate(" worst limit of detection", (worst, -0.6), fontsize=7, color="0.35", va="center")
    return figure


def _panel(ax: plt.Axes, rows: pd.DataFrame) -> None:
    names = [
        f"{r.code}{' | ' + r.against if r.against else ''}{'' if r.condition == 'all' else f' ({r.condition})'}"
        for r in rows.itertuples()
    ]
    y = np.arange(len(rows))
    shade = [SHADES.get(verdict, PLAIN) for verdict in rows["verdict"]]
    low, high = rows["low"].fillna(rows["estimate"]), rows["high"].fillna(rows["estimate"])
    ax.hlines(y, low, high, color=shade, lw=2.2)
    ax.scatter(rows["estimate"], y, color=shade, s=26, zorder=3)
    ax.scatter(rows["null"], y, marker="D", s=16, facecolors="none", edgecolors="0.45", linewidths=0.8)
    ax.set_yticks(y, names, fontsize=8)
    ax.set_ylim(len(rows) - 0.4, -1.0)
    ax.tick_params(axis="x", labelsize=8)
    ax.axvline(0, color="0.85", lw=0.8, zorder=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    for position, verdict in zip(y, rows["verdict"], strict=True):
        if verdict:
            ax.annotate(
                verdict, (1.01, position), xycoords=("axes fraction", "data"), fontsize=8, va="center",
                color=SHADES.get(verdict, PLAIN),
            )  # fmt: skip


def budget(card: object, *, by_label: bool = True) -> Figure:
    """Draw the budgets of a scorecard: what is shared (by batch, by label, within labels), specific, left out and noise, as stacked bars.

    Parameters
    ----------
    card
        What :func:`unbraid.metrics.scorecard` returned, its table, or the MuData that holds it.
    by_label
        Also draw the budget of the variance within every label.

    Returns
    -------
    The figure: nats of every pair of modalities, variance of every modality. A part whose estimate is negative is
    drawn as 0.

    Raises
    ------
    KeyError
        If the MuData holds no card.
    TypeError
        If it is no card.
    """
    table = table_of(card)
    table = table[table["question"] == "budget"]
    nats, variance = table[table["unit"] == "nats"], table[table["unit"] == "share of variance"]
    if not by_label:
        variance = variance[variance["against"] == "all"]
    panels = [("Information shared by the codes (nats)", nats, nats["code"])]
    panels += [
        (f"Variance of {name}", part, part["against"].replace({"all": "all observations"}))
        for name, part in variance.groupby("code", sort=False)
    ]
    panels = [panel for panel in panels if len(panel[1])]
    heights = [names.nunique() + 1.4 for *_, names in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8.5, 0.33 * sum(heights) + 0.9), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, (title, rows, names) in zip(axes[:, 0], panels, strict=True):
        bars = rows.assign(bar=names.to_numpy()).pivot(index="bar", columns="measure", values="estimate")
        bars = bars.reindex(names.unique()).clip(lower=0)
        left = np.zeros(len(bars))
        for part in PARTS:
            if part in bars:
                width = bars[part].fillna(0).to_numpy()
                ax.barh(bars.index, width, left=left, color=PARTS[part], height=0.72, edgecolor="white", lw=0.5)
                left += width
        ax.set_ylim(len(bars) - 0.4, -0.6)
        ax.set_xlim(0, None if rows["unit"].iloc[0] == "nats" else 1)
        ax.set_title(title, loc="left", fontsize=10)
        ax.tick_params(labelsize=8)
        ax.tick_params(axis="y", length=0)
        ax.spines[["top", "right", "left"]].set_visible(False)
    used = [part for part in PARTS if (table["measure"] == part).any()]
    handles = [plt.Rectangle((0, 0), 1, 1, color=PARTS[part]) for part in used]
    figure.legend(handles, used, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure
