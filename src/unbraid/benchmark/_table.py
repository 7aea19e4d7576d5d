"""Tables of an experiment: rows that are not run twice, and their means over seeds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path


def run_missing(
    asked: Iterable[dict[str, Any]], run: Callable[[dict[str, Any]], Iterable[dict[str, Any]]], out: Path | None
) -> pd.DataFrame:
    """Run what a file does not hold yet, and write the file after each.

    Parameters
    ----------
    asked
        Columns that name a run, the same ones for all.
    run
        Gives the finished rows of a run, with these columns.
    out
        CSV of finished rows; None to keep none.

    Returns
    -------
    The rows that were asked for, those of the file included.
    """
    done = pd.read_csv(out).to_dict("records") if out is not None and out.exists() else []
    asked = list(asked)
    name = lambda row: tuple(str(row.get(column)) for column in asked[0])
    known = {name(row) for row in done} if asked else set()
    for row in asked:
        if name(row) in known:
            continue
        for found in run(row):
            done.append(found)
            shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}
            print(shown, file=sys.stderr, flush=True)
        if out is not None:
            pd.DataFrame(done).to_csv(out, index=False)
    wanted = {name(row) for row in asked}
    return pd.DataFrame([row for row in done if name(row) in wanted])


def mean_and_deviation(table: pd.DataFrame, by: Sequence[str], digits: int = 3) -> pd.DataFrame:
    """Mean ± standard deviation of all numeric columns as text, one line per group in order of appearance.

    Parameters
    ----------
    table
        Finished rows with a column ``seed``.
    by
        Columns that name a group.
    digits
        Decimals.
    """
    numbers = table.drop(columns=["seed", *by]).select_dtypes("number").dropna(axis=1, how="all").columns
    grouped = table.groupby(list(by), sort=False)[list(numbers)]
    mean, deviation = grouped.mean(), grouped.std(ddof=1)
    lines = pd.DataFrame(index=mean.index)
    lines["seeds"] = table.groupby(list(by), sort=False)["seed"].nunique()
    for column in numbers:
        lines[column] = [
            "" if pd.isna(m) else f"{m:z.{digits}f}" + ("" if pd.isna(d) else f" ± {d:.{digits}f}")
            for m, d in zip(mean[column], deviation[column], strict=True)
        ]
    return lines.reset_index()


def to_markdown(table: pd.DataFrame) -> str:
    """A pipe table of text and whole numbers.

    Parameters
    ----------
    table
        As :func:`mean_and_deviation` gives it.
    """
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + " --- |" * table.shape[1]]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)
