"""Hits are drawn as the molecules that they are, and the true one is marked."""

from __future__ import annotations

from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_rgb
from mudata import MuData

import unbraid as ub
from unbraid.pl import _retrieval

mpl.use("agg")
pytest.importorskip("rdkit")

SMILES = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "ethanol": "CCO",
}


def frame(query, names, match=None, **columns):
    n = len(names)
    is_match = pd.array([pd.NA if match is None else name == match for name in names], dtype="boolean")
    start = {"query": query, "rank": range(1, n + 1), "hit": names, "score": np.linspace(0.9, 0.1, n)}
    return pd.DataFrame({**start, "is_match": is_match, **columns})


@pytest.fixture
def hits():
    names = list(SMILES)
    return pd.concat(
        [
            frame("well 1", names, "caffeine", p_value=[0.0001, 0.004, 0.3, 1], confidence=[0.999, 0.25, 0.004, np.nan]),
            frame("well 2", names[::-1], p_value=[0.02, 0.5, 1, 1], confidence=[np.nan] * 4),
        ],
        ignore_index=True,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def shown(figure):
    n_columns = figure.axes[0].get_gridspec().ncols
    return [[ax for ax in figure.axes[i : i + n_columns] if ax.get_visible()] for i in range(0, len(figure.axes), n_columns)]  # fmt: skip


def test_a_row_per_query_and_a_molecule_per_hit(hits):
    before = hits.copy()
    figure = ub.pl.retrieval(hits, SMILES, n_hits=3)
    rows = shown(figure)
    assert [len(row) for row in rows] == [4, 4]
    assert [ax.get_title(loc="left") for ax in rows[0]] == ["query well 1", "1  aspirin", "2  caffeine", "3  ibuprofen"]
    assert [ax.get_xlabel() for ax in rows[0]] == [
        "caffeine\nmatch has rank 2",
        "score 0.90, p < 0.001\nconfidence > 99 %",
        "score 0.63, p = 0.004\nconfidence 25 %",
        "score 0.37, p = 0.30\nconfidence < 1 %",
    ]
    assert [len(ax.images) for ax in rows[0]] == [1, 1, 1, 1]
    assert rows[1][1].get_xlabel() == "score 0.90, p = 0.02"
    pd.testing.assert_frame_equal(hits, before)
    assert len(shown(ub.pl.retrieval(hits, SMILES, n_hits=50))[0]) == 5  # no more than there are


def test_the_match_is_marked_by_frame_and_word(hits):
    rows = shown(ub.pl.retrieval(hits, SMILES))
    marked = [[ax.get_title(loc="right") for ax in row] for row in rows]
    assert marked == [["", "", "match", "", ""], [""] * 5]
    width = {ax.get_title(loc="left"): ax.spines["left"].get_linewidth() for ax in rows[0]}
    assert width.pop("2  caffeine") > 2 * max(width.values())
    blue, grey = (np.array(to_rgb(colour)) for colour in (_retrieval.MATCH, _retrieval.PLAIN))
    lightness = lambda colour: colour @ [0.2126, 0.7152, 0.0722]  # is seen without any colour vision
    assert lightness(grey) - lightness(blue) > 0.3


def test_a_molecule_is_the_one_that_rdkit_draws():
    from rdkit import Chem

    drawn = {name: _retrieval._picture(text) for name, text in SMILES.items()}
    ratio = _retrieval.WIDTH / _retrieval.HEIGHT
    assert all(abs(picture.shape[1] / picture.shape[0] - ratio) < 0.01 for picture in drawn.values())
    ink = {name: (picture[..., 3] > 0.5).mean() for name, picture in drawn.items()}
    n_bonds = {name: Chem.MolFromSmiles(text).GetNumBonds() for name, text in SMILES.items()}
    assert sorted(ink, key=ink.get)[0] == "ethanol" == sorted(n_bonds, key=n_bonds.get)[0]
    red = lambda picture: (np.abs(picture[..., :3] - [1, 0, 0]).sum(axis=-1) < 0.1) & (picture[..., 3] > 0.5)
    assert red(drawn["aspirin"]).any()  # oxygen
    assert not red(_retrieval._picture("c1ccccc1")).any()
    assert drawn["ethanol"][0, 0, 3] == 0  # the frame's own background is seen


def test_what_is_asked_is_known_from_several_places(hits):
    own = pd.Series({"well 1": "caffeine", "well 2": "absent", "well 3": None})
    first = shown(ub.pl.retrieval(hits, SMILES, own=own))
    assert first[1][0].get_xlabel() == "absent\nmatch not in the best 4"
    assert [text.get_text() for text in first[1][0].texts] == ["absent"]
    unknown = shown(ub.pl.retrieval(hits, SMILES))[1][0]
    assert [text.get_text() for text in unknown.texts] == ["match not known"]
    # a molecule that asks for cells is drawn itself
    cells = frame("aspirin", ["cell 1", "cell 2"], "cell 2")
    row = shown(ub.pl.retrieval(cells, SMILES))[0]
    assert len(row[0].images) == 1
    assert row[0].get_xlabel() == "aspirin\nmatch has rank 2"
    assert [ax.texts[0].get_text() for ax in row[1:]] == ["cell 1", "cell 2"]


def test_names_stand_for_what_cannot_be_drawn(hits, capfd):
    smiles = pd.Series(["CCO", "not a molecule", np.nan, "CC"], index=["ethanol", "aspirin", "caffeine", "ethanol"])
    row = shown(ub.pl.retrieval(hits, smiles, queries="well 1"))[0]
    assert [len(ax.images) for ax in row] == [0, 0, 0, 0, 1]
    assert row[1].texts[0].get_text() == "aspirin\n(SMILES cannot be read)"
    assert "SMILES" not in capfd.readouterr().err  # rdkit does not speak up
    assert all(not ax.images for ax in shown(ub.pl.retrieval(hits))[0])


def test_no_text_lies_on_another_even_with_long_names():
    names = [f"4-[(2,4-dichlorobenzoyl)-methylamino] ${i}_1$ hexacosanoate" for i in range(3)]
    hits = frame("plate 17, well H12, replicate 3 of donor 1000000", names, names[1], p_value=0.5, confidence=0.123)
    figure = ub.pl.retrieval(pd.concat([hits, frame("b", names[:2], names[0])]), {names[0]: "C" * 60})
    figure.canvas.draw()
    texts = [figure._supxlabel]
    for ax in (ax for row in shown(figure) for ax in row):
        titles = [ax._left_title, ax._right_title, ax.xaxis.label]
        texts += [text for text in (*titles, *ax.texts) if text.get_text().strip()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) > 15
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
    assert any("$1_1$" in text.get_text() and not text.get_parse_math() for text in texts)


def test_hits_of_a_retrieval_are_drawn():
    rng = np.random.default_rng(0)
    names = [f"cell {i}" for i in range(40)]
    make = lambda: AnnData(obs=pd.DataFrame(index=names), obsm={"Z_c": rng.normal(size=(40, 3))})
    hits = ub.tl.retrieve(MuData({"rna": make(), "prot": make()}), "rna", "prot", k=2)
    figure = ub.pl.retrieval(hits)
    assert [len(row) for row in shown(figure)] == [3] * 5
    assert "given that the match is among" in figure._supxlabel.get_text()


def test_bad_input_is_named(hits):
    with pytest.raises(KeyError, match="no query 'well 9'. Did you mean 'well"):
        ub.pl.retrieval(hits, SMILES, queries=["well 9"])
    with pytest.raises(KeyError, match="no column 'score'"):
        ub.pl.retrieval(hits.drop(columns="score"))
    with pytest.raises(ValueError, match="no hits to draw"):
        ub.pl.retrieval(hits[:0])
    with pytest.raises(ValueError, match="no hits to draw"):
        ub.pl.retrieval(hits, queries=[])
    with pytest.raises(ValueError, match="`n_hits`"):
        ub.pl.retrieval(hits, n_hits=0)
