"""What was found for each query, as molecules."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd

from unbraid._messages import check_whole, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MATCH, PLAIN = "#0072b2", "0.8"  # a blue that no kind of colour blindness takes for grey
WIDTH, HEIGHT = 1.9, 1.5  # inches of a molecule
BOND = 0.16  # of inches
DPI = 250
N_QUERIES = 5
LETTERS = 23  # that fit above a molecule, capitals too
TEXT = {"fontsize": 8, "parse_math": False}  # names may have dollars
NOTES = {
    "p_value": "p: how often the best of these candidates scores as high for a query that has no match among them",
    "confidence": "confidence: that the hit is the match, given that the match is among the candidates",
}


def retrieval(
    hits: pd.DataFrame,
    smiles: Mapping[str, str] | pd.Series | None = None,
    *,
    queries: str | Sequence[str] | None = None,
    n_hits: int = 5,
    own: Mapping[str, str] | pd.Series | None = None,
) -> Figure:
    """Draw the hits of some queries as molecules, one row per query.

    The first picture of a row is the query's own molecule, if it is known, and says where among the hits it is. The
    others are hits in order, with score, confidence and p-value. The true match has a thick blue frame and the word
    "match". What has no SMILES, such as cells, is drawn as a box with its name.

    Parameters
    ----------
    hits
        What :func:`unbraid.tl.retrieve` returned.
    smiles
        SMILES by name of hit: a dict, or a series with names as its index, such as
        ``mdata.obs.set_index("compound")["smiles"]``.
    queries
        Names of the queries to draw. By default the first five.
    n_hits
        Hits of each.
    own
        By name of query the hit that is its match, such as ``mdata.obs["compound"]``. By default what ``hits`` says;
        a query that has a SMILES is drawn itself.

    Returns
    -------
    The figure.

    Raises
    ------
    KeyError
        If ``hits`` lacks a column, or there is no such query.
    ValueError
        If there are no hits to draw.

    Examples
    --------
    >>> hits = ub.tl.retrieve(mdata, group="compound")  # doctest: +SKIP
    >>> by_compound = mdata.obs.set_index("compound")["smiles"]  # doctest: +SKIP
    >>> ub.pl.retrieval(hits, by_compound, own=mdata.obs["compound"])  # doctest: +SKIP
    """
    check_whole("n_hits", n_hits, 1)
    for column in ("query", "rank", "hit", "score", "is_match"):
        if column not in hits:
            raise KeyError(f"`hits` has no column {column!r}: pass what `ub.tl.retrieve` returned.")
    by_query = {str(query): rows.sort_values("rank") for query, rows in hits.groupby("query", sort=False)}
    queries = [queries] if isinstance(queries, str) else queries
    queries = list(by_query)[:N_QUERIES] if queries is None else [str(query) for query in queries]
    if not queries:
        raise ValueError("There are no hits to draw.")
    for query in queries:
        if query not in by_query:
            raise KeyError(f"`hits` has no query {query!r}. {suggest(query, by_query)}")
    smiles, own = _by_name(smiles), _by_name(own)

    n_hits = min(n_hits, max(len(by_query[query]) for query in queries))
    figure, axes = plt.subplots(
        len(queries), n_hits + 2, figsize=(WIDTH * (n_hits + 1.2) + 0.4, (HEIGHT + 0.75) * len(queries) + 0.3),
        width_ratios=[1, 0.05] + [1] * n_hits, squeeze=False, layout="constrained",
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.06)
    for ax in axes.flat:
        ax.set_visible(False)
    for row, query in zip(axes, queries, strict=True):
        found = by_query[query]
        names = found["hit"].astype(str)
        is_match = names == own[query] if query in own else found["is_match"].fillna(False).astype(bool)
        name = own.get(query, query if query in smiles else names[is_match].iloc[0] if is_match.any() else None)
        _draw(row[0], name or "match not known", smiles.get(name), f"query {_short(query, LETTERS - 6)}", "0.95")
        at = ""
        if is_match.any():
            at = f"match has rank {found['rank'][is_match].iloc[0]}"
        elif query in own or found["is_match"].notna().any():
            at = f"match not in the best {len(found)}"
        row[0].set_xlabel(f"{_short(name or '', LETTERS)}\n{at}", **TEXT)
        for ax, hit, name, is_own in zip(row[2:], found.itertuples(), names, is_match, strict=False):
            _draw(ax, name, smiles.get(name), f"{hit.rank}  {_short(name, LETTERS - 3 - 6 * is_own)}", "white")
            ax.set_xlabel(_numbers(hit), **TEXT)
            if is_own:
                ax.set_title("match", loc="right", fontsize=8, color=MATCH, weight="bold")
                ax.spines[:].set(color=MATCH, linewidth=3)
    if notes := [note for column, note in NOTES.items() if column in hits and hits[column].notna().any()]:
        figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=7, color="0.35")
    return figure


def _draw(ax: Axes, name: str, smiles: str | None, title: str, background: str) -> None:
    """A molecule in its frame, or a name in a box."""
    ax.set_visible(True)
    ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), facecolor=background)
    ax.set_box_aspect(HEIGHT / WIDTH)
    ax.spines[:].set(color=PLAIN, linewidth=0.8)
    ax.set_title(title, loc="left", **TEXT)
    picture = None if smiles is None else _picture(smiles)
    if picture is None:
        words = name if smiles is None else f"{name}\n(SMILES cannot be read)"
        lines = [line for part in words.split("\n") for line in textwrap.wrap(part, LETTERS)]
        ax.text(0.5, 0.5, "\n".join(lines[:7]), ha="center", va="center", **TEXT)
    else:
        ax.imshow(picture, extent=(0, 1, 0, 1), aspect="auto", interpolation="antialiased")


def _picture(smiles: str) -> np.ndarray | None:
    """(height, width, 4), transparent where nothing is drawn; None if there is no such molecule."""
    from rdkit import Chem, rdBase
    from rdkit.Chem.Draw import rdMolDraw2D

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        return None
    canvas = rdMolDraw2D.MolDraw2DCairo(round(WIDTH * DPI), round(HEIGHT * DPI))
    options = canvas.drawOptions()
    options.clearBackground = False
    options.fixedBondLength = BOND * DPI  # at most: small molecules are not blown up, large ones fit
    options.padding, options.bondLineWidth, options.minFontSize = 0.06, 3, 22
    rdMolDraw2D.PrepareAndDrawMolecule(canvas, molecule)
    canvas.FinishDrawing()
    return plt.imread(io.BytesIO(canvas.GetDrawingText()))


def _numbers(hit: tuple) -> str:
    """Score, and what it means where that is known."""
    first = f"score {hit.score:.2f}"
    p, confidence = getattr(hit, "p_value", None), getattr(hit, "confidence", None)
    if pd.notna(p):
        first += ", p < 0.001" if p < 0.001 else f", p = {p:.3f}" if p < 0.01 else f", p = {p:.2f}"
    if pd.isna(confidence):
        return first
    share = "< 1 %" if confidence < 0.01 else "> 99 %" if confidence > 0.99 else f"{confidence:.0%}".replace("%", " %")
    return f"{first}\nconfidence {share}"


def _short(name: str, n_letters: int) -> str:
    return name if len(name) <= n_letters else f"{name[: n_letters - 1]}…"


def _by_name(values: Mapping[str, str] | pd.Series | None) -> dict[str, str]:
    """Text by name as text, without what is missing; of a name that comes twice, the first."""
    pairs = [] if values is None else list(values.items())[::-1]
    return {str(name): str(value) for name, value in pairs if pd.notna(value)}
