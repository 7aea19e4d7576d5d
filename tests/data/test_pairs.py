"""Must-links and cannot-links: how they are kept, and what follows from them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import unbraid as ub
from unbraid.data._pairs import (
    Pairs,
    check_consistent,
    close_pairs,
    components,
    pairs_of_matrix,
    read_pairs,
)

law = settings(deadline=None, max_examples=60, derandomize=True)


@st.composite
def labelled_pairs(draw):
    """Labels of a few cells, and pairs of them that agree with the labels."""
    labels = draw(st.lists(st.integers(0, 3), min_size=2, max_size=12))
    every = list(combinations(range(len(labels)), 2))
    chosen = draw(st.lists(st.sampled_from(every), unique=True, max_size=15))
    same = [pair for pair in chosen if labels[pair[0]] == labels[pair[1]]]
    other = [pair for pair in chosen if labels[pair[0]] != labels[pair[1]]]
    return np.array(labels), Pairs(same, other)


def chains(pairs, n_obs):
    """Connected components, one union at a time."""
    of = list(range(n_obs))
    for a, b in pairs.must.tolist():
        of = [of[a] if of[i] == of[b] else of[i] for i in range(n_obs)]
    return np.array(of)


def as_sets(pairs):
    return {tuple(row) for row in pairs.must.tolist()}, {tuple(row) for row in pairs.cannot.tolist()}


def test_rows_are_sorted_and_unique():
    pairs = Pairs([[3, 1], [0, 2], [1, 3]], np.array([[4, 0]], dtype=np.int32))
    assert pairs.must.tolist() == [[0, 2], [1, 3]]
    assert pairs.cannot.tolist() == [[0, 4]]
    assert pairs.must.dtype == pairs.cannot.dtype == np.int64
    assert len(pairs) == 3


@law
@given(labelled_pairs())
def test_matrix_and_back(case):
    labels, pairs = case
    matrix = pairs.matrix(len(labels))
    dense = matrix.toarray()
    assert sparse.issparse(matrix)
    assert (matrix.format, matrix.dtype, matrix.nnz) == ("csr", np.int8, 2 * len(pairs))
    np.testing.assert_array_equal(dense, dense.T)
    assert all(dense[a, b] == 1 for a, b in pairs.must)
    assert all(dense[a, b] == -1 for a, b in pairs.cannot)
    for form in (matrix, dense, sparse.csc_array(matrix), matrix.astype(np.float64)):
        assert as_sets(pairs_of_matrix(form)) == as_sets(pairs)


@law
@given(labelled_pairs())
def test_components_and_closure_agree_with_loops(case):
    labels, pairs = case
    n_obs = len(labels)
    naive, found = chains(pairs, n_obs), components(pairs, n_obs)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found[:, None] == found, naive[:, None] == naive)

    apart = {frozenset((naive[a], naive[b])) for a, b in pairs.cannot}
    must = {(a, b) for a, b in combinations(range(n_obs), 2) if naive[a] == naive[b]}
    cannot = {(a, b) for a, b in combinations(range(n_obs), 2) if frozenset((naive[a], naive[b])) in apart}
    closed = close_pairs(pairs, n_obs)
    assert as_sets(closed) == (must, cannot)
    assert as_sets(close_pairs(closed, n_obs)) == (must, cannot)
    assert all(labels[a] == labels[b] for a, b in closed.must)
    assert all(labels[a] != labels[b] for a, b in closed.cannot)


def test_closure_is_refused_before_it_is_made():
    n_obs = 100_000  # a chain of all cells: 5e9 pairs
    chain = Pairs(np.stack([np.arange(n_obs - 1), np.arange(1, n_obs)], axis=1), [])
    with pytest.raises(ValueError, match="4999950000 must-links and 0 cannot-links follow"):
        close_pairs(chain, n_obs)
    assert len(close_pairs(Pairs([[0, 1], [1, 2]], []), 3, max_pairs=3)) == 3
    with pytest.raises(ValueError, match="more than 2"):
        close_pairs(Pairs([[0, 1], [1, 2]], []), 3, max_pairs=2)


def test_contradictions_are_named():
    pairs = Pairs([[0, 1], [1, 2], [4, 5]], [[0, 2], [0, 4]])
    with pytest.raises(ValueError, match="1 of 2 cannot-links contradict the must-links: cells 'u' and 'w'"):
        check_consistent(pairs, 6, list("uvwxyz"))
    with pytest.raises(ValueError, match="cells 0 and 2"):
        close_pairs(pairs, 6)
    check_consistent(Pairs(pairs.must, [[0, 4]]), 6)


@pytest.mark.parametrize(
    ("must", "cannot", "message"),
    [
        ([[0, 1]], [[1, 0]], "both must-link and cannot-link, e.g. cells 0 and 1"),
        ([[2, 2]], [], "`must` pairs cell 2 with itself"),
        ([], [[0, -1]], "`cannot` has the row number -1"),
        ([[0, 1, 2]], [], r"`must` must be an \(n, 2\) array"),
        ([[0.0, 1.0]], [], "not float64"),
    ],
)
def test_wrong_rows(must, cannot, message):
    with pytest.raises(ValueError, match=message):
        Pairs(must, cannot)


def test_rows_beyond_the_cells():
    with pytest.raises(ValueError, match="names cell 5, but there are 5 cells"):
        Pairs([[0, 5]], []).matrix(5)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 3)), r"its shape is \(2, 3\)"),
        ([[0, 2], [2, 0]], "it holds 2"),
        ([[0, np.nan], [np.nan, 0]], "it holds nan"),
        ([[1, 0], [0, 0]], "pairs 1 cells with themselves"),
        ([[0, 1], [0, 0]], "not symmetric"),
        ([[0, 1], [-1, 0]], "not symmetric"),
    ],
)
def test_wrong_matrices(matrix, message):
    with pytest.raises(ValueError, match=message):
        pairs_of_matrix(np.asarray(matrix, dtype=float))


def test_reading_from_a_container():
    mdata = ub.data.simulate.citeseq(n_obs=30, n_genes=10, n_proteins=6, seed=0)
    mdata.obsp["pairs"] = Pairs([[0, 1]], [[0, 2]]).matrix(30)
    assert as_sets(read_pairs(mdata, "pairs")) == ({(0, 1)}, {(0, 2)})
    with pytest.raises(KeyError, match="Did you mean 'pairs'"):
        read_pairs(mdata, "pair")
    rna = next(iter(mdata.mod))
    mdata.mod[rna].obsp["own"] = sparse.csr_matrix((30, 30), dtype=np.int8)
    with pytest.raises(KeyError, match=f"in obsp of modality '{rna}', not of the MuData"):
        read_pairs(mdata, "own")
    mdata.obsp["wrong"] = sparse.csr_matrix(([3], ([0], [1])), shape=(30, 30))
    with pytest.raises(ValueError, match=r"obsp\['wrong'\] must hold 1"):
        read_pairs(mdata, "wrong")
    with pytest.raises(KeyError, match="obsp of the AnnData"):
        read_pairs(AnnData(np.zeros((3, 2))), "pairs")
