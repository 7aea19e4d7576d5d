"""An index finds what the definition says, keeps what it is told, and says what is wrong."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from importlib.util import find_spec

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

import unbraid as ub
from unbraid.tl import _retrieval_index, _top

needs_faiss = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")
BACKENDS = ["exact", pytest.param("faiss", marks=needs_faiss)]
law = settings(deadline=None, max_examples=40, derandomize=True)


@contextmanager
def small_blocks(rows=3, queries=2):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_top, "ROWS", rows)
        patch.setattr(_retrieval_index, "QUERIES", queries)
        yield


def definition(query, target, groups, replicates, k):
    """Scores of all candidates by name, sorted: in loops."""
    found = []
    for q in query:
        scores = {}
        for name in sorted(set(groups)):
            products = [float(q @ t) for t, g in zip(target, groups, strict=True) if g == name]
            scores[name] = max(products) if replicates == "best" else sum(products) / len(products)
        found.append(sorted(scores.items(), key=lambda item: -item[1])[:k])  # a stable sort: ties by name
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@law
@given(
    st.integers(1, 25),
    st.integers(1, 8),
    st.integers(1, 12),
    st.sampled_from(["best", "average"]),
    st.integers(0, 10_000),
)
def test_is_the_definition(backend, n_rows, n_groups, k, replicates, seed):
    if backend == "faiss":
        n_rows = min(n_rows, 9)  # among many equal ones, faiss chooses which it gives
    rng = np.random.default_rng(seed)
    # whole numbers: products are exact, and many are equal; four rows of a group have an exact mean
    target, query = rng.integers(-2, 3, size=(n_rows, 3)), rng.integers(-2, 3, size=(5, 3))
    groups = np.array([f"g{i}" for i in rng.integers(n_groups, size=n_rows)])
    if replicates == "average":
        target, groups = np.repeat(target, 4, axis=0), np.repeat(np.array([f"g{i:02}" for i in range(n_rows)]), 4)
        target = target + np.tile([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, 3, 0]], (n_rows, 1))
    with small_blocks():
        index = ub.tl.build_index(target, groups=groups, metric="dot", replicates=replicates, backend=backend)
        hits = index.search(query, k)
    expected = definition(query, target, groups, replicates, k)
    n = min(k, len(set(groups)))
    assert hits.names[:, :n].tolist() == [[name for name, _ in row] for row in expected]
    assert hits.scores[:, :n].tolist() == [[score for _, score in row] for row in expected]
    assert (index.names[hits.codes[:, :n]] == hits.names[:, :n]).all()
    assert (hits.codes[:, n:] == -1).all()
    assert np.isnan(hits.scores[:, n:]).all()
    assert (hits.names[:, n:] == "").all()


@pytest.mark.parametrize("n_rows", [500, 5_000])  # more and less than a block
def test_finds_what_scikit_learn_finds(n_rows):
    rng = np.random.default_rng(0)
    target, query = rng.normal(size=(n_rows, 6)), rng.normal(size=(300, 6))
    distance, row = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(target).kneighbors(query)
    hits = ub.tl.build_index(target).search(query, 7)
    np.testing.assert_array_equal(hits.codes, row)
    np.testing.assert_allclose(hits.scores, 1 - distance, atol=1e-6)
    assert hits.scores.dtype == np.float32


@pytest.mark.parametrize("order", ["rising", "falling"])
@pytest.mark.parametrize("n_groups", [None, 40, 4_000])
def test_the_order_of_candidates_does_not_matter(order, n_groups):
    x = np.linspace(-1, 1, 8_000)[:: 1 if order == "rising" else -1]  # every block is better than the one before
    group = np.arange(8_000) if n_groups is None else np.arange(8_000) * n_groups // 8_000
    names = np.array([f"{g:04}" for g in group])
    index = ub.tl.build_index(x[:, None], metric="dot", **({"names": names} if n_groups is None else {"groups": names}))
    found = index.search([[1.0], [-1.0]], 3).names
    best = pd.Series(x).groupby(names).max().sort_values()
    lowest = pd.Series(x).groupby(names).min().sort_values()
    assert found[0].tolist() == best.index[:-4:-1].tolist()
    assert found[1].tolist() == lowest.index[:3].tolist()


@pytest.mark.parametrize("replicates", ["best", "average"])
def test_ranks_are_those_of_the_measure(replicates):
    rng = np.random.default_rng(1)
    target = rng.normal(size=(90, 5))
    groups = np.repeat(np.arange(30), 3).astype(str)
    query = target + rng.normal(size=target.shape)
    measured = ub.metrics.retrieval(query, target, query_groups=groups, target_replicates=replicates)
    hits = ub.tl.build_index(target, groups=groups, replicates=replicates).search(query, 30)
    assert ((hits.names == groups[:, None]).argmax(axis=1) + 1).tolist() == measured.ranks.tolist()


def test_a_query_finds_the_same_alone_and_copies_are_in_order():
    rng = np.random.default_rng(2)
    target = rng.normal(size=(6_000, 33))
    copies = np.sort(rng.choice(6_000, 7, replace=False))
    target[copies] = target[copies[0]]
    index = ub.tl.build_index(target)
    query = np.concatenate([target[copies[:1]] + 0.1, rng.normal(size=(300, 33))])
    hits = index.search(query, 7)
    assert hits.codes[0].tolist() == copies.tolist()
    assert len(set(hits.scores[0].tolist())) == 1
    for i in (0, 17, 300):
        alone = index.search(query[i : i + 1], 7)
        assert alone.codes[0].tolist() == hits.codes[i].tolist()
        assert alone.scores[0].tolist() == hits.scores[i].tolist()


def test_missing_rows_have_no_name_and_no_hits():
    target = np.array([[1.0, 0], [np.nan, np.nan], [0, 1]])
    index = ub.tl.build_index(target)
    assert index.names.tolist() == ["0", "2"]
    hits = index.search([[np.nan, np.nan], [0.0, 2.0]], 1)
    assert hits.names.tolist() == [[""], ["2"]]
    assert hits.codes.tolist() == [[-1], [1]]
    with pytest.raises(ValueError, match="1 of 2 rows are NaN in some"):
        index.search([[1.0, np.nan], [0.0, 2.0]])
    with pytest.raises(ValueError, match="None of the 2 rows"):
        ub.tl.build_index(np.full((2, 2), np.nan))


def test_zero_vectors_have_no_direction():
    index = ub.tl.build_index([[0.0, 0], [-1, 0], [1, 0]])
    hits = index.search([[0.0, 0], [3, 0]], 3)
    assert hits.scores.tolist() == [[0, 0, 0], [1, 0, -1]]
    assert hits.codes.tolist() == [[0, 1, 2], [2, 0, 1]]


def test_one_candidate_and_more_hits_than_candidates():
    index = ub.tl.build_index([[2.0, 0]], names=["only"])
    hits = index.search([[1.0, 1]], 3)
    assert hits.names.tolist() == [["only", "", ""]]
    assert hits.scores[0, 0] == pytest.approx(0.5**0.5)
    assert (len(index), index.n_candidates) == (1, 1)


def test_what_is_excluded_is_not_offered():
    index = ub.tl.build_index(np.eye(3), names=["a", "b", "c"])
    query = [[3.0, 2, 1]] * 3
    hits = index.search(query, 3, exclude=["a", None, "unheard of"])
    assert hits.names.tolist() == [["b", "c", ""], ["a", "b", "c"], ["a", "b", "c"]]
    assert hits.codes[0].tolist() == [1, 2, -1]


def test_keys_columns_and_gaps_of_a_mudata():
    rng = np.random.default_rng(3)
    names = [f"well {i}" for i in range(6)]
    phenotype = AnnData(obs=pd.DataFrame(index=names[:5]), obsm={"Z_c": rng.normal(size=(5, 2))})
    molecule = AnnData(obs=pd.DataFrame(index=names[1:][::-1]), obsm={"Z_c": rng.normal(size=(5, 2))})
    mdata = mudata.MuData({"phenotype": phenotype, "molecule": molecule})
    mdata.obs["compound"] = pd.Series([7, 7, 8, 8, 9, np.nan], index=names).reindex(mdata.obs_names)
    assert ub.tl.build_index("molecule:Z_c", data=mdata).names.tolist() == names[1:]
    with pytest.raises(ValueError, match="1 of 5 rows of target have no group"):
        ub.tl.build_index("molecule:Z_c", data=mdata, groups="compound")
    index = ub.tl.build_index("phenotype:Z_c", data=mdata, groups="compound")
    assert index.names.tolist() == ["7", "8", "9"]  # whole numbers, which the gap turned into floats
    hits = index.search("phenotype:Z_c", 2, data=mdata, exclude="compound")
    assert hits.names[0].tolist() in (["8", "9"], ["9", "8"])
    assert hits.codes[mdata.obs_names.get_loc("well 5")].tolist() == [-1, -1]
    with pytest.raises(KeyError, match="compound"):
        ub.tl.build_index("phenotype:Z_c", data=mdata, groups="compund")
    with pytest.raises(KeyError, match="Z_c"):
        ub.tl.build_index("phenotype:Z_d", data=mdata)
    with pytest.raises(ValueError, match="there is no data"):
        index.search("phenotype:Z_c")


def test_repeated_rows_of_a_group_are_kept_once():
    target = np.repeat(np.eye(2), [3, 2], axis=0)
    index = ub.tl.build_index(target, groups=list("aaabb"))
    assert len(index.vectors) == 2
    assert ub.tl.build_index(target, names=list("abcde")).vectors.shape == (5, 2)


def test_bad_input_is_named():
    index = ub.tl.build_index(np.eye(3))
    with pytest.raises(ValueError, match="query has 2 columns, but the candidates have 3"):
        index.search(np.eye(2))
    with pytest.raises(ValueError, match="`k`"):
        index.search(np.eye(3), 0)
    with pytest.raises(ValueError, match="metric must be one of 'cosine', 'dot'"):
        ub.tl.build_index(np.eye(3), metric="euclidean")
    with pytest.raises(ValueError, match="replicates"):
        ub.tl.build_index(np.eye(3), replicates="worst")
    with pytest.raises(ValueError, match="backend"):
        ub.tl.build_index(np.eye(3), backend="annoy")
    with pytest.raises(ValueError, match="backend='faiss'"):
        ub.tl.build_index(np.eye(3), factory="HNSW32")
    with pytest.raises(ValueError, match="not unique, such as 'a'"):
        ub.tl.build_index(np.eye(3), names=["a", "b", "a"])
    with pytest.raises(ValueError, match="only without groups"):
        ub.tl.build_index(np.eye(3), names=list("abc"), groups=list("abc"))
    with pytest.raises(ValueError, match="groups has 2 values"):
        ub.tl.build_index(np.eye(3), groups=list("ab"))
    with pytest.raises(ValueError, match="rescale"):
        ub.tl.build_index(1e30 * np.eye(3), metric="dot")
    with pytest.raises(ValueError, match="infinite"):
        ub.tl.build_index([[np.inf, 0.0]])


def test_nothing_of_the_users_is_changed():
    rng = np.random.default_rng(4)
    target, query = rng.normal(size=(20, 3)), rng.normal(size=(4, 3))
    before = target.copy(), query.copy()
    ub.tl.build_index(target).search(query)
    np.testing.assert_array_equal(target, before[0])
    np.testing.assert_array_equal(query, before[1])


# --- faiss --------------------------------------------------------------------------------------------------------


@needs_faiss
def test_faiss_fetches_until_there_are_enough_groups():
    rng = np.random.default_rng(5)
    centre = np.repeat(rng.normal(size=(20, 4)), 200, axis=0)  # the first 200 rows are of one group
    target = centre + 0.01 * rng.normal(size=centre.shape)
    groups = np.repeat(np.arange(20), 200).astype(str)
    query = rng.normal(size=(50, 4))
    hits = [ub.tl.build_index(target, groups=groups, backend=b).search(query, 12) for b in ("exact", "faiss")]
    np.testing.assert_array_equal(hits[0].codes, hits[1].codes)
    np.testing.assert_array_equal(hits[0].scores, hits[1].scores)


@needs_faiss
def test_approximate_indices_find_most_and_pad_what_they_miss():
    rng = np.random.default_rng(6)
    target, query = rng.normal(size=(2_000, 8)), rng.normal(size=(100, 8))
    exact = ub.tl.build_index(target).search(query, 5).codes
    graph = ub.tl.build_index(target, backend="faiss", factory="HNSW32").search(query, 5).codes
    assert np.mean(graph == exact) > 0.9
    cells = ub.tl.build_index(target, backend="faiss", factory="IVF400,Flat")
    few = cells.search(query, 20)
    assert (few.codes == -1).any()  # one of 400 lists holds fewer than 20
    assert (np.isnan(few.scores) == (few.codes == -1)).all()
    cells.faiss_index.nprobe = 400
    np.testing.assert_array_equal(cells.search(query, 5).codes, exact)


@needs_faiss
def test_faiss_that_fails_or_is_absent_is_named(monkeypatch):
    with pytest.raises(ValueError, match="cannot make an index 'Nonsense7'"):
        ub.tl.build_index(np.eye(3), backend="faiss", factory="Nonsense7")
    with pytest.raises(ValueError, match="of 3 vectors"):
        ub.tl.build_index(np.eye(3), backend="faiss", factory="IVF100,Flat")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'unbraid\[ann\]'"):
        ub.tl.build_index(np.eye(3), backend="faiss")
    assert ub.tl.build_index(np.eye(3)).search(np.eye(3), 1).codes.tolist() == [[0], [1], [2]]


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def screen():
    rng = np.random.default_rng(7)
    target = rng.normal(size=(60, 4))
    return target, target + 0.5 * rng.normal(size=target.shape), [f"Verbindung α{i}\n" for i in range(60)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("calibrated", ["no", "few", "yes"])
def test_what_is_saved_finds_the_same(screen, backend, calibrated, tmp_path):
    target, query, names = screen
    index = ub.tl.build_index(target, groups=names, backend=backend)
    if calibrated == "yes":
        index.calibrate(query, names)
    elif calibrated == "few":
        with pytest.warns(UserWarning, match="fewer than the 30"):
            index.calibrate(query[:5], names[:5])
    path = tmp_path / "library"
    index.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["library"]
    loaded = ub.tl.RetrievalIndex.load(path)
    assert repr(loaded) == repr(index)
    before, after = index.search(query, 12), loaded.search(query, 12)
    for name in ("codes", "scores", "names", "p_values", "confidences"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    assert np.isnan(after.p_values).all() == (calibrated == "no")
    assert np.isnan(after.confidences).all() == (calibrated != "yes")
    with np.load(path, allow_pickle=False) as file:  # no pickles: none of these raises
        assert all(file[name].dtype != object for name in file)


@needs_faiss
def test_what_is_no_index_is_refused(screen, tmp_path):
    path = tmp_path / "index.npz"
    ub.tl.build_index(screen[0]).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    options = json.loads(str(arrays["options"]))

    def rewritten(**changed):
        np.savez(path, **{**arrays, **changed})
        return path

    load = ub.tl.RetrievalIndex.load
    load(rewritten())
    with pytest.raises(ValueError, match="newer version"):
        load(rewritten(options=np.array(json.dumps({**options, "format": 99}))))
    with pytest.raises(ValueError, match="no index"):
        load(rewritten(options=np.array(json.dumps({**options, "format": None}))))
    with pytest.raises(ValueError, match="no index"):
        load(rewritten(options=np.array("{")))
    for changed in (
        {"vectors": arrays["vectors"][:-1]},
        {"vectors": arrays["vectors"].astype(float)},
        {"candidates": arrays["candidates"][::-1]},
        {"candidates": arrays["candidates"] + 1},
        {"names": arrays["names"][:-3]},
        {"names": np.frombuffer(b'["a"]', dtype=np.uint8)},
        {"options": np.array(json.dumps({**options, "what": 1}))},
        {"options": np.array(json.dumps({**options, "backend": "faiss"}))},
        {"options": np.array(json.dumps({**options, "backend": "faiss"})), "faiss": np.zeros(5, dtype=np.uint8)},
    ):
        with pytest.raises(ValueError, match="is damaged"):
            load(rewritten(**changed))
    np.savez(path, other=np.eye(2))
    with pytest.raises(ValueError, match="no index"):
        load(path)
    np.save(path.with_suffix(".npy"), np.eye(2))
    with pytest.raises(ValueError, match="no index"):
        load(path.with_suffix(".npy"))
    path.write_bytes(rewritten().read_bytes()[:-40])
    with pytest.raises(ValueError, match="no index"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="no index"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.npz")


@needs_faiss
def test_an_index_says_what_it_is(screen):
    target, query, names = screen
    index = ub.tl.build_index(np.repeat(target, 2, axis=0) + np.arange(120)[:, None], groups=names * 2)
    assert repr(index) == (
        "RetrievalIndex of 60 candidates (120 rows, best) in 4 dimensions: cosine, exact, not calibrated"
    )
    flat = ub.tl.build_index(target, names=names, backend="faiss", metric="dot").calibrate(query, names)
    assert repr(flat) == (
        "RetrievalIndex of 60 candidates in 4 dimensions: dot, faiss Flat, calibrated on queries of 60 groups"
    )
