import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unbraid.tl import support

law = settings(deadline=None, max_examples=25, derandomize=True)


def naive(reference, query, k):
    """The definition, in loops."""
    mean, deviation = reference.mean(0), reference.std(0)
    reference, query = ((x - mean) / np.where(deviation > 0, deviation, 1.0) for x in (reference, query))
    nearest = lambda point, others: np.mean(sorted(np.linalg.norm(other - point) for other in others)[:k])
    own = [nearest(point, np.delete(reference, i, axis=0)) for i, point in enumerate(reference)]
    return [(1 + sum(d >= nearest(point, reference) for d in own)) / (1 + len(own)) for point in query]


@law
@given(st.integers(3, 12), st.integers(1, 2), st.integers(1, 3), st.integers(0, 1_000))
def test_is_the_definition(n, k, d, seed):
    rng = np.random.default_rng(seed)
    reference, query = rng.normal(size=(n, d)), 2 * rng.normal(size=(5, d))
    np.testing.assert_allclose(support(reference, query, n_neighbors=k), naive(reference, query, k))


def test_uniform_for_points_of_the_same_distribution():
    rng = np.random.default_rng(0)
    reference, query = rng.normal(size=(3_000, 3)), rng.normal(size=(1_000, 3))
    assert stats.kstest(support(reference, query), "uniform").pvalue > 0.01


def test_far_points_have_the_least_and_the_middle_the_most():
    reference = np.random.default_rng(0).normal(size=(200, 2))
    assert support(reference, [[50.0, 0.0]]).tolist() == [1 / 201]
    assert support(reference, [[0.0, 0.0]])[0] > 0.5


def test_finds_combinations_that_no_cell_has():
    rng = np.random.default_rng(0)
    group = rng.integers(2, size=400)
    # every column alone is usual, their combination is not
    codes = np.column_stack([group, group]) * 6.0 + rng.normal(size=(400, 2))
    found = support(codes, [[0.0, 0.0], [6.0, 6.0], [0.0, 6.0], [6.0, 0.0]])
    assert found[:2].min() > 0.3
    assert found[2:].max() < 0.02


@law
@given(st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_units_do_not_matter(scale, shift):
    rng = np.random.default_rng(0)
    reference, query = rng.normal(size=(60, 2)), rng.normal(size=(9, 2))
    moved = [x * [scale, 1.0] + [shift, -3.0] for x in (reference, query)]
    np.testing.assert_allclose(support(*moved), support(reference, query), atol=1 / 61 + 1e-12)


def test_gaps_stay_and_few_points_serve():
    reference = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    found = support(reference, np.array([[1.0, 1.0], [np.nan, 1.0], [9.0, 1.0]]), n_neighbors=50)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(np.isnan(found), [False, True, False])
    assert found[2] == 0.25
    assert np.isnan(support(reference, np.full((2, 2), np.nan))).all()
    assert support(reference, np.zeros((0, 2))).shape == (0,)


@pytest.mark.parametrize(
    ("reference", "query", "options", "message"),
    [
        (np.zeros((5, 2)), np.zeros((3, 3)), {}, r"as many columns.*\(5, 2\) and \(3, 3\)"),
        (np.zeros((1, 2)), np.zeros((3, 2)), {}, "needs 2 rows"),
        (np.zeros(5), np.zeros((3, 2)), {}, "must be matrices"),
        (np.zeros((5, 2)), np.zeros((3, 2)), {"n_neighbors": 0}, "`n_neighbors` must be a whole number of at least 1"),
    ],
)
def test_bad_input(reference, query, options, message):
    with pytest.raises(ValueError, match=message):
        support(reference, query, **options)
