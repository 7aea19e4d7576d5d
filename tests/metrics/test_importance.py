"""What `unbraid.metrics.masking_importance` promises."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.metrics import _importance as internals
from unbraid.metrics._importance import masking_importance

A = np.array([[0.034, 1.36, 1.225, -0.51, -0.298], [-0.527, 0.57, -0.056, 0.747, -1.847], [1.567, -0.096, 0.68, -0.137, -0.379]])  # fmt: skip
B = np.array([0.463, 0.825, -0.203])
X = np.array([
    [-0.153, 0.686, -0.87, -1.514, 0.395], [-0.671, -1.92, -0.814, -0.468, -1.193], [-1.492, 0.037, 0.897, -0.233, -0.744],
    [0.385, 0.717, -0.3, 0.545, 1.043], [-0.207, -0.814, 0.348, 0.248, 1.099], [-1.285, -0.662, -0.838, -1.734, 0.126],
    [0.528, -0.739, 1.386, 0.822, 0.627], [0.402, 0.956, -1.332, 0.614, 0.603], [-1.768, 0.347, -0.25, 0.782, -0.439],
])  # fmt: skip


def linear(x):
    return x @ A.T + B


def test_linear_map_with_coordinates_set_to_zero():
    result = masking_importance(linear, X, mask="zero")
    change = [2.463435514016666, 1.7842803746844444, 1.506335582317, 0.7062318595826667, 2.1838001651033334]
    np.testing.assert_allclose(result.change, change, rtol=1e-12)
    share = [0.2849851595303228, 0.20641637434103757, 0.17426203519038314, 0.08170118439203485, 0.25263524654622166]
    np.testing.assert_allclose(result.importance, share, rtol=1e-12)
    assert (result.n_obs, result.n_dropped, result.n_groups, result.chance) == (9, 0, None, 0.2)


def test_linear_map_with_coordinates_set_to_their_mean():
    result = masking_importance(linear, X)
    change = [1.8505265608900734, 1.7320420058026667, 1.4300308400680004, 0.6971414634464691, 2.080274719081037]
    np.testing.assert_allclose(result.change, change, rtol=1e-12)
    share = [0.23755107286751284, 0.2223412759512743, 0.18357226935904739, 0.08949166474134938, 0.26704371708081603]
    np.testing.assert_allclose(result.importance, share, rtol=1e-12)


def test_uniform_draw_in_the_limit():
    result = masking_importance(linear, X, draw="uniform", mask="zero", n_draws=40_000)
    expected = [0.24059640036417126, 0.19214423813920356, 0.17300166661050007, 0.07363653777572743, 0.32062115711039785]
    np.testing.assert_allclose(result.importance, expected, atol=0.004)
    assert (result.low < expected).all()
    assert (expected < result.high).all()
    assert result.n_obs == 40_000


def test_permuted_linear_map_has_twice_the_variance():
    x = np.random.default_rng(0).normal(size=(5000, 5)) * [1, 2, 1, 1, 3]
    expected = 2 * (A**2).sum(0) * x.var(0)
    np.testing.assert_allclose(masking_importance(linear, x, mask="permute").change, expected, rtol=0.06)


def test_coordinate_without_effect_has_none():
    result = masking_importance(lambda x: x[:, :3] ** 2, X)
    assert (result.importance[3:] == 0).all()
    assert (result.high[3:] == 0).all()
    assert result.importance.sum() == pytest.approx(1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.sampled_from(["zero", "mean"]), st.floats(0.1, 10))
def test_order_of_rows_and_scale_of_the_output_do_not_matter(seed, mask, scale):
    order = np.random.default_rng(seed).permutation(len(X))
    moved = masking_importance(lambda x: scale * np.tanh(linear(x)), X[order], mask=mask)
    given_order = masking_importance(lambda x: np.tanh(linear(x)), X, mask=mask)
    np.testing.assert_allclose(moved.importance, given_order.importance, rtol=1e-9)


@pytest.mark.parametrize("block", [1, 7, 60])
def test_blocks_change_nothing(monkeypatch, block):
    expected = masking_importance(linear, X).change
    monkeypatch.setattr(internals, "BLOCK_VALUES", block)
    np.testing.assert_allclose(masking_importance(linear, X).change, expected, rtol=1e-12)


def test_torch_module():
    layer = torch.nn.Linear(5, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(A))
    expected = masking_importance(linear, X).importance
    np.testing.assert_allclose(masking_importance(layer.eval(), X).importance, expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"encode\.eval"):
        masking_importance(layer.train(), X)


def test_missing_rows_frames_and_groups():
    frame = pd.DataFrame(np.vstack([X, np.full((2, 5), np.nan)]), columns=list("abcde"))
    result = masking_importance(linear, frame, groups=[*"xxxyyyzzz", "x", None])
    assert (result.n_obs, result.n_dropped, result.n_groups) == (9, 2, 3)
    np.testing.assert_allclose(result.change, masking_importance(linear, X).change)
    table = result.to_frame()
    assert list(table.index) == list("abcde")
    assert table.attrs["n_obs"] == 9
    assert "n = 9 in 3 groups" in str(result)


def test_interval_covers():
    rng, truth, covered = np.random.default_rng(0), (A**2).sum(0) / (A**2).sum(), 0
    for _ in range(40):
        result = masking_importance(linear, rng.normal(size=(200, 5)))
        covered += (result.low <= truth) & (truth <= result.high)
    assert covered.mean() > 40 * 0.88


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = masking_importance(linear, X, draw="uniform", seed=3)
    second = masking_importance(linear, X, draw="uniform", seed=3)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.testing.assert_array_equal(first.importance, second.importance)
    assert (first.importance != masking_importance(linear, X, draw="uniform", seed=4).importance).any()


def test_constant_map_warns():
    with pytest.warns(UserWarning, match="constant"):
        result = masking_importance(lambda x: np.zeros((len(x), 2)), X)
    assert np.isnan(result.importance).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encode": lambda x: x[:2]}, "a row for each"),
        ({"encode": lambda x: x * np.nan}, "NaN or infinite"),
        ({"x": X[:, 0]}, "shape"),
        ({"x": np.where(X > 1, np.nan, X)}, "NaN in some features"),
        ({"x": X[:1]}, "at least 2"),
        ({"mask": "noise"}, "mask must be one of"),
        ({"draw": "normal"}, "draw must be one of"),
        ({"low": 2, "high": 1}, "below high"),
        ({"groups": ["a"] * 3}, "groups has 3 values"),
        ({"groups": ["a"] * 9, "draw": "uniform"}, "belong to rows"),
    ],
)
def test_bad_input(arguments, message):
    arguments = {"encode": linear, "x": X} | arguments
    with pytest.raises(ValueError, match=message):
        masking_importance(**arguments)
