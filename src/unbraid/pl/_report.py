"""A scorecard as one HTML file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from jinja2 import Environment, PackageLoader, select_autoescape

from unbraid.pl._scorecard import SHADES, budget, scorecard, table_of

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure

QUESTIONS = {
    "shared": "Shared?",
    "specific": "Specific?",
    "limit of detection": "Limit of detection: the smallest planted leak that is found",
    "complete": "Complete?",
    "nuisance": "Nuisances",
    "label": "Labels",
    "dimension": "Dimensions",
    "stability": "Stability over runs",
    "control": "Controls",
}


def report(card: object, path: str | PathLike, *, title: str = "Scorecard") -> Path:
    """Write a scorecard as one HTML file that needs nothing else, no network either.

    Parameters
    ----------
    card
        What :func:`unbraid.metrics.scorecard` returned.
    path
        File to write; an existing one is overwritten.
    title
        Heading.

    Returns
    -------
    The path.

    Raises
    ------
    TypeError
        If it is no card.
    """
    table = table_of(card)
    environment = Environment(loader=PackageLoader("unbraid.pl"), autoescape=select_autoescape())
    sections = [
        (heading, table[table["question"] == question].to_dict("records"))
        for question, heading in QUESTIONS.items()
        if (table["question"] == question).any()
    ]
    html = environment.get_template("scorecard.html").render(
        title=title,
        sections=sections,
        shades=SHADES,
        notes=getattr(card, "notes", ()),
        methods=card.to_methods_text() if hasattr(card, "to_methods_text") else "",
        pictures=[_inline(scorecard(card)), _inline(budget(card))],
    )
    path = Path(path)
    path.write_text(html, encoding="utf-8")
    return path


def _inline(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
