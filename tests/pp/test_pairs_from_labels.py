"""``ub.pp.pairs_from_labels`` and ``ub.pp.add_pairs``."""

from __future__ import annotations

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

import unbraid as ub
from unbraid.data import close_pairs, read_pairs
from unbraid.pp import add_pairs, pairs_from_labels
from unbraid.pp._pairs_from_labels import _random_pairs


@pytest.fixture
def mdata():
    mdata = ub.data.simulate.classes(n_obs=200, modalities=2, n_shared=4, n_features=5, missing=0.2, seed=0)
    mdata.obs["type"] = mdata.obs["y_shared"].astype(object)
    mdata.obs.loc[mdata.obs_names[:80], "type"] = None
    return mdata


def labels_of(mdata, rows, key="type"):
    return mdata.obs[key].to_numpy()[rows]


def rows_of(pairs):
    return np.concatenate([pairs.must, pairs.cannot])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_all_pairs_are_each_there_once(n, seed):
    rows = np.sort(_random_pairs(n, n * (n - 1) // 2, np.random.default_rng(seed)), axis=1)
    assert sorted(map(tuple, rows.tolist())) == [(i, j) for i in range(n) for j in range(i + 1, n)]


def test_pairs_of_many_cells_are_uniform():
    n = 1_000_001  # 5e11 pairs
    first, second = _random_pairs(n, 20_000, np.random.default_rng(0)).T
    assert len(np.unique(np.minimum(first, second) * n + np.maximum(first, second))) == 20_000
    assert (first != second).all()
    gap = np.abs(first - second) / n  # of two uniform numbers: mean 1/3, standard deviation sqrt(1/18)
    assert gap.mean() == pytest.approx(1 / 3, abs=4 * np.sqrt(1 / 18 / 20_000))
    assert gap.std() == pytest.approx(np.sqrt(1 / 18), rel=0.02)


def test_pairs_say_what_the_labels_say(mdata):
    pairs_from_labels(mdata, "type", n_pairs=500)
    pairs = read_pairs(mdata, "pairs")
    assert len(pairs) == 500
    assert rows_of(pairs).min() >= 80  # the first 80 cells have no label
    assert (labels_of(mdata, pairs.must[:, 0]) == labels_of(mdata, pairs.must[:, 1])).all()
    assert (labels_of(mdata, pairs.cannot[:, 0]) != labels_of(mdata, pairs.cannot[:, 1])).all()
    assert mdata.uns["unbraid_pairs"]["pairs"] == {
        "key": "type", "n_labelled": 120, "noise": 0.0, "closure": False, "seed": 0,
        "n_must": len(pairs.must), "n_cannot": len(pairs.cannot),
    }  # fmt: skip


def test_the_seed_decides(mdata):
    for key, seed in (("a", 0), ("b", 0), ("c", 1)):
        pairs_from_labels(mdata, "type", fraction=0.5, key_added=key, seed=seed)
        assert mdata.obsp[key].nnz == 2 * 100  # of all 200 cells
    assert (mdata.obsp["a"] != mdata.obsp["b"]).nnz == 0
    assert (mdata.obsp["a"] != mdata.obsp["c"]).nnz > 0
    assert set(mdata.uns["unbraid_pairs"]) == {"a", "b", "c"}


def test_all_pairs_by_default(mdata):
    pairs_from_labels(mdata, "type")
    assert len(read_pairs(mdata, "pairs")) == 120 * 119 // 2


@pytest.mark.parametrize(("n_labelled", "expected"), [(15, 15), (0.05, 6), (1.0, 120)])
def test_few_labelled_cells(mdata, n_labelled, expected):
    pairs_from_labels(mdata, "type", n_labelled=n_labelled)
    rows = rows_of(read_pairs(mdata, "pairs"))
    assert len(np.unique(rows)) == expected
    assert len(rows) == expected * (expected - 1) // 2


@pytest.mark.parametrize("noise", [0.0, 0.13, 0.5, 1.0])
def test_noise_flips_exactly_so_many(mdata, noise):
    pairs_from_labels(mdata, "type", n_pairs=301, noise=noise)
    pairs = read_pairs(mdata, "pairs")
    right = lambda rows: labels_of(mdata, rows[:, 0]) == labels_of(mdata, rows[:, 1])
    assert (~right(pairs.must)).sum() + right(pairs.cannot).sum() == round(noise * 301)


def test_closure_adds_what_follows(mdata):
    pairs_from_labels(mdata, "type", n_pairs=100, key_added="open")
    pairs_from_labels(mdata, "type", n_pairs=100, key_added="closed", closure=True)
    expected = close_pairs(read_pairs(mdata, "open"), mdata.n_obs).matrix(mdata.n_obs)
    assert (mdata.obsp["closed"] != expected).nnz == 0
    assert expected.nnz > mdata.obsp["open"].nnz


def test_written_read_and_subset(mdata, tmp_path):
    pairs_from_labels(mdata, "type", n_pairs=300, noise=0.1)
    mdata.write(tmp_path / "pairs.h5mu")
    read = mudata.read_h5mu(tmp_path / "pairs.h5mu")
    assert (read.obsp["pairs"] != mdata.obsp["pairs"]).nnz == 0
    assert read.obsp["pairs"].dtype == np.int8
    assert dict(read.uns["unbraid_pairs"]["pairs"]) == mdata.uns["unbraid_pairs"]["pairs"]

    cells = np.random.default_rng(0).permutation(200)[:150]
    part = mdata[mdata.obs_names[cells]].copy()
    names = lambda data: {
        (kind, frozenset(data.obs_names[row])) for kind, rows in vars(read_pairs(data, "pairs")).items() for row in rows
    }
    kept = set(part.obs_names)
    assert names(part) == {(kind, pair) for kind, pair in names(mdata) if pair <= kept}


def test_anndata_and_clonotypes_of_one_cell():
    adata = AnnData(np.zeros((6, 1)), obs=pd.DataFrame({"clone": list("abcdef")}, index=[f"c{i}" for i in range(6)]))
    with pytest.warns(UserWarning, match="no must-links among 15 pairs of 'clone'"):
        pairs_from_labels(adata, "clone")
    assert adata.uns["unbraid_pairs"]["pairs"]["n_cannot"] == 15
    adata.obs["clone"] = "a"
    with pytest.warns(UserWarning, match="no cannot-links"):
        pairs_from_labels(adata, "clone")
    with pytest.raises(KeyError, match="Did you mean 'clone'"):
        pairs_from_labels(adata, "clones")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_pairs": 7141}, "7141 pairs are asked for, but 120 labelled cells have only 7140"),
        ({"n_pairs": 5, "fraction": 0.1}, "not both"),
        ({"n_pairs": 0}, "n_pairs"),
        ({"fraction": -1.0}, "`fraction` must be positive"),
        ({"n_labelled": 121}, "means 121 cells, but there are 120"),
        ({"n_labelled": 0.01}, "means 1 cells"),
        ({"n_labelled": 1.5}, "a share above 0 and up to 1"),
        ({"noise": 1.1}, "`noise` must be between 0 and 1"),
        ({"noise": 0.1, "closure": True}, "use one of the two"),
    ],
)
def test_mistakes_are_named(mdata, options, message):
    with pytest.raises(ValueError, match=message):
        pairs_from_labels(mdata, "type", **options)
    assert "pairs" not in mdata.obsp


def test_wrong_columns(mdata):
    with pytest.raises(KeyError, match="Did you mean 'type'"):
        pairs_from_labels(mdata, "typ")
    mdata["x1"].obs["own"] = "a"
    with pytest.raises(KeyError, match="an obs column of modality 'x1', not of the MuData. Copy it up"):
        pairs_from_labels(mdata, "own")
    mdata.obs["bare"] = [None] * 199 + ["a"]
    with pytest.raises(ValueError, match="1 of 200 cells have a label"):
        pairs_from_labels(mdata, "bare")
    with pytest.raises(ValueError, match="is a view"):
        pairs_from_labels(mdata[:50], "type")


def test_many_cells_need_a_number():
    adata = AnnData(np.zeros((1500, 1)), obs=pd.DataFrame({"y": np.arange(1500) % 3}, index=map(str, range(1500))))
    with pytest.raises(ValueError, match="1500 labelled cells have 1124250 pairs, more than 1000000. Say how many"):
        pairs_from_labels(adata, "y")


# ---- answers -----------------------------------------------------------------------------------------


def test_answers_are_added(mdata):
    a, b, c, d = mdata.obs_names[:4]
    add_pairs(mdata, [a], [b], [True])
    add_pairs(mdata, pd.Series([c, b]), pd.Series([a, d]), pd.Series([False, True], dtype=object))
    pairs = read_pairs(mdata, "pairs")
    assert pairs.must.tolist() == [[0, 1], [1, 3]]
    assert pairs.cannot.tolist() == [[0, 2]]
    add_pairs(mdata, [b], [a], [True])  # known already
    assert mdata.obsp["pairs"].nnz == 6
    assert mdata.uns["unbraid_pairs"]["pairs"] == {"n_must": 2, "n_cannot": 1}


def test_answers_keep_the_record(mdata):
    pairs_from_labels(mdata, "type", n_pairs=10)
    unpaired = mdata.obs_names[:2]
    had = dict(mdata.uns["unbraid_pairs"]["pairs"])
    add_pairs(mdata, unpaired[:1], unpaired[1:], [True])
    assert mdata.uns["unbraid_pairs"]["pairs"] == had | {"n_must": had["n_must"] + 1}


def test_conflicting_answers_change_nothing(mdata):
    a, b, c, d = mdata.obs_names[:4]
    add_pairs(mdata, [a, b], [b, c], [True, True])
    before = mdata.obsp["pairs"].copy()
    with pytest.raises(ValueError, match=f"answered in two ways, e.g. cells {a!r} and {b!r}"):
        add_pairs(mdata, [b], [a], [False])
    with pytest.raises(ValueError, match=f"cells {a!r} and {c!r} are a cannot-link, yet a chain"):
        add_pairs(mdata, [c], [a], [False])
    with pytest.raises(ValueError, match="answered in two ways"):
        add_pairs(mdata, [c, d], [d, c], [False, True])
    with pytest.raises(KeyError, match="there is no cell 'nobody'"):
        add_pairs(mdata, [a], ["nobody"], [True])
    with pytest.raises(ValueError, match="`same` must be boolean"):
        add_pairs(mdata, [a], [d], [None])
    with pytest.raises(ValueError, match="of one length"):
        add_pairs(mdata, [a, b], [d], [True])
    with pytest.raises(ValueError, match="with itself"):
        add_pairs(mdata, [d], [d], [True])
    assert (mdata.obsp["pairs"] != before).nnz == 0
