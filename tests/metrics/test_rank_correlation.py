"""What `unbraid.metrics.weight_rank_correlation` promises."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from unbraid.metrics import _rank_correlation as internals
from unbraid.metrics._rank_correlation import weight_rank_correlation


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    types = np.repeat([f"t{k}" for k in range(10)], 30)
    mean = np.repeat(np.arange(10.0), 30)
    return mean + 3 * rng.normal(size=300), mean + 3 * rng.normal(size=300), types


def test_ranks_of_five_types():
    result = weight_rank_correlation([3, 1, 4, 2, 5], [2, 1, 5, 3, 4], groups=list("abcde"))
    assert result.rho == pytest.approx(0.8)
    null = [spearmanr([3, 1, 4, 2, 5], order)[0] for order in permutations([2, 1, 5, 3, 4])]
    assert result.p_value == pytest.approx(np.mean(np.abs(null) >= 0.8 - 1e-9))
    assert result.is_exact
    assert result.n_permutations == 120
    assert (result.n_types, result.n_obs) == (5, 5)


def test_types_are_ranked_by_their_means(cells):
    a, b, types = cells
    result = weight_rank_correlation(a, b, groups=types)
    means = pd.DataFrame({"a": a, "b": b, "type": types}).groupby("type").mean()
    assert result.rho == pytest.approx(spearmanr(means["a"], means["b"])[0])
    np.testing.assert_allclose(result.means[["a", "b"]], means)
    assert result.rho_cells == pytest.approx(spearmanr(a, b)[0])
    assert not result.is_exact
    assert result.p_value < 0.01
    for low, high in (result.interval, result.cell_interval, result.rho_cells_interval):
        assert -1 <= low < high <= 1
    assert result.cell_interval[0] <= result.rho <= result.cell_interval[1]
    assert abs(result.rho_within) < 0.2  # the cells agree because of their types
    assert result.rho_cells > 0.3


def test_ties_share_their_mean_rank():
    a, b = np.array([1, 1, 2, 3, 3]), np.array([1, 2, 2, 4, 5])
    assert weight_rank_correlation(a, b, groups=list("abcde")).rho == pytest.approx(spearmanr(a, b)[0])


def test_within_types_is_what_is_left():
    rng = np.random.default_rng(1)
    common = rng.normal(size=400)
    types = np.repeat(list("abcd"), 100)
    result = weight_rank_correlation(common, common + 0.1 * rng.normal(size=400), groups=types)
    ranks = [pd.Series(v).groupby(types).rank() for v in (common, common)]
    assert ranks[0].equals(ranks[1])
    assert result.rho_within > 0.95
    own = internals._ranks_within(common, np.repeat(np.arange(4), 100))
    np.testing.assert_allclose(own, (ranks[0] - 50.5) / 100)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_order_of_cells_does_not_matter_and_exchange_is_symmetric(seed):
    rng = np.random.default_rng(seed)
    a, b, types = rng.normal(size=60), rng.normal(size=60), rng.choice(list("abcdef"), 60)
    types[:6] = list("abcdef")
    result = weight_rank_correlation(a, b, groups=types)
    order = rng.permutation(60)
    assert weight_rank_correlation(a[order], b[order], groups=types[order]).to_series().equals(result.to_series())
    assert weight_rank_correlation(b, a, groups=types).rho == pytest.approx(result.rho)
    assert weight_rank_correlation(-a, b, groups=types).rho == pytest.approx(-result.rho)


def test_p_values_of_unrelated_weights_are_uniform():
    rng = np.random.default_rng(0)
    p = [
        weight_rank_correlation(rng.normal(size=12), rng.normal(size=12), groups=range(12), n_permutations=200).p_value
        for _ in range(60)
    ]
    assert 0.35 < np.mean(p) < 0.65
    assert np.mean(np.array(p) <= 0.1) < 0.25


def test_columns_and_missing_cells(cells):
    a, b, types = cells
    obs = pd.DataFrame({"a": a, "b": b, "type": types}, index=[f"c{i}" for i in range(300)])
    obs.loc["c0", "a"], obs.loc["c1", "b"], obs.loc["c2", "type"] = np.nan, np.nan, None
    result = weight_rank_correlation("a", "b", groups="type", data=AnnData(obs=obs))
    assert (result.n_obs, result.n_dropped) == (297, 3)
    few = weight_rank_correlation(a, b, groups=np.r_[["rare"] * 2, types[2:]], min_obs=3)
    assert (few.n_types, few.n_dropped) == (10, 2)
    assert few.to_frame().loc[0, "low"] == few.interval[0]
    assert "over 10 types" in str(few)


def test_constant_weights_have_no_correlation():
    result = weight_rank_correlation(np.ones(20), np.arange(20), groups=np.repeat(list("abcd"), 5))
    assert np.isnan(result.rho)
    assert np.isnan(result.p_value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"a": "theta"}, ValueError, "no data"),
        ({"a": "theta", "data": AnnData(obs=pd.DataFrame(index=list("abcd")))}, KeyError, "theta"),
        ({"b": [1, 2]}, ValueError, "b has 2 values"),
        ({"b": [1, 2, 3, np.inf]}, ValueError, "infinite"),
        ({"b": list("wxyz")}, ValueError, "b must be numbers"),
        ({"groups": list("aabb")}, ValueError, "at least 3"),
        ({"min_obs": 0}, ValueError, "min_obs"),
        ({"confidence": 1}, ValueError, "confidence"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        weight_rank_correlation(**({"a": [1, 2, 3, 4], "b": [1, 2, 4, 3], "groups": list("abcd")} | arguments))
