import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import log_loss, r2_score

from unbraid.objectives._prediction import density_ratio, discrimination, explained_variance, scaled_squared_error

law = settings(deadline=None, max_examples=30, derandomize=True)

X = torch.tensor(
    [
        [0.959, -0.98, -0.798],
        [-0.203, 0.748, 0.851],
        [-0.71, -0.607, -0.798],
        [-0.584, -0.238, -0.132],
        [2.058, -0.506, -0.289],
        [0.459, -0.953, -0.369],
    ],
    dtype=torch.float64,
)
X_HAT = torch.tensor(
    [
        [0.013, 0.774, -1.316],
        [1.371, -0.352, 0.169],
        [0.847, 0.661, 1.059],
        [0.173, -0.02, 0.316],
        [-0.996, 1.214, -0.775],
        [-1.26, 2.056, -0.136],
    ],
    dtype=torch.float64,
)


@st.composite
def predictions(draw, min_n=1):
    """A latent and a prediction on a coarse grid, so that constant columns are common."""
    shape = (draw(st.integers(min_n, 8)), draw(st.integers(1, 4)))
    grid = hnp.arrays("int64", shape, elements=st.integers(-3, 3))
    return torch.from_numpy(draw(grid)).double() / 2, torch.from_numpy(draw(grid)).double() / 2


@st.composite
def logits(draw):
    n = draw(st.integers(1, 8))
    vector = hnp.arrays("int64", n, elements=st.integers(-12, 12))
    return torch.from_numpy(draw(vector)).double() / 2, torch.from_numpy(draw(vector)).double() / 2


# --- explained variance ---------------------------------------------------------------------------


def test_is_the_coefficient_of_determination():
    expected = r2_score(X.numpy(), X_HAT.numpy(), multioutput="uniform_average")
    assert expected < 0  # not clipped
    assert explained_variance(X, X_HAT).item() == pytest.approx(expected, rel=1e-10)


def test_linear_prediction_explains_the_squared_correlation():
    torch.manual_seed(0)
    c, noise = torch.randn(2, 20_000, 1, dtype=torch.float64)
    z = 0.6 * c + 0.8 * noise
    assert explained_variance(z, 0.6 * c).item() == pytest.approx(0.36, abs=0.02)


@law
@given(predictions())
def test_bounds_of_explained_variance(pair):
    z, prediction = pair
    varying = (z != z[0]).any(dim=0).double().mean().item()
    assert explained_variance(z, prediction).item() <= varying + 1e-12
    assert explained_variance(z, z).item() == pytest.approx(varying, abs=1e-12)
    assert explained_variance(z, z.mean(dim=0).expand_as(z)).item() == pytest.approx(0, abs=1e-12)


@law
@given(predictions(), st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
def test_order_and_units_of_columns_do_not_matter(pair, scale, random):
    z, prediction = pair
    value = explained_variance(z, prediction)
    order = torch.tensor(random.sample(range(len(z)), len(z)))
    torch.testing.assert_close(explained_variance(z[order], prediction[order]), value, rtol=1e-9, atol=1e-9)
    units = scale * torch.arange(1, z.shape[1] + 1).double()
    torch.testing.assert_close(explained_variance(z * units, prediction * units), value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(explained_variance(z + 5, prediction + 5), value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_column_without_variance_counts_as_zero(dtype):
    # 0.1 is not a binary fraction: its mean over 7 rows need not be 0.1 again
    torch.manual_seed(0)
    z, prediction = torch.randn(2, 7, 3, dtype=dtype)
    wider = torch.cat([z, torch.full((7, 1), 0.1, dtype=dtype)], dim=1).requires_grad_()
    guess = torch.cat([prediction, torch.ones(7, 1, dtype=dtype)], dim=1).requires_grad_()
    value = explained_variance(wider, guess)
    value.backward()
    torch.testing.assert_close(value, explained_variance(z, prediction) * 3 / 4)
    assert (wider.grad[:, 3] == 0).all()
    assert (guess.grad[:, 3] == 0).all()
    assert (guess.grad[:, :3] != 0).all()


# --- density ratio --------------------------------------------------------------------------------


def test_discrimination_is_the_log_loss():
    torch.manual_seed(0)
    paired, permuted = torch.randn(2, 9, dtype=torch.float64)
    probabilities = torch.cat([paired, permuted]).sigmoid().numpy()
    expected = log_loss([1] * 9 + [0] * 9, probabilities)
    assert discrimination(paired, permuted).item() == pytest.approx(expected, rel=1e-10)


def test_density_ratio_of_gaussians():
    # correlation r: with the exact log ratio the two Kullback-Leibler divergences add up to r^2 / (1 - r^2)
    r, n = 0.6, 200_000
    torch.manual_seed(0)
    c, noise, other = torch.randn(3, n, dtype=torch.float64)
    z = r * c + math.sqrt(1 - r**2) * noise

    def log_ratio(z, c):
        return -math.log(1 - r**2) / 2 + (r * z * c - r**2 * (z**2 + c**2) / 2) / (1 - r**2)

    value = density_ratio(log_ratio(z, c), log_ratio(z, other)).item()
    assert value == pytest.approx(r**2 / (1 - r**2), rel=0.02)
    assert value > -math.log(1 - r**2) / 2  # the mutual information
    # no other critic discriminates better
    best = discrimination(log_ratio(z, c), log_ratio(z, other))
    for scale in (0.8, 1.2):
        assert discrimination(scale * log_ratio(z, c), scale * log_ratio(z, other)) > best


@law
@given(logits(), st.floats(-5, 5), st.randoms(use_true_random=False))
def test_laws_of_discrimination(pair, offset, random):
    paired, permuted = pair
    ratio, loss = density_ratio(paired, permuted), discrimination(paired, permuted)
    assert loss.item() >= 0
    # softplus is convex and has slope 1/2 at 0
    assert loss.item() >= math.log(2) - ratio.item() / 4 - 1e-12
    torch.testing.assert_close(density_ratio(paired + offset, permuted + offset), ratio, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(density_ratio(permuted, paired), -ratio)
    torch.testing.assert_close(discrimination(-permuted, -paired), loss)
    order = torch.tensor(random.sample(range(len(paired)), len(paired)))
    torch.testing.assert_close(density_ratio(paired[order], permuted), ratio, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(discrimination(paired, permuted[order]), loss)


def test_large_logits_do_not_overflow():
    paired = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = discrimination(paired, torch.zeros(2))
    loss.backward()
    assert loss.item() == pytest.approx((1e4 + 2 * math.log(2)) / 4)
    assert paired.grad.tolist() == [-0.25, 0]


# --- squared error --------------------------------------------------------------------------------


def test_reconstruction_term_of_indiseek():
    # lambda / (2 E||X||^2) E||X_hat - X||^2 with lambda = 0.1 and E||X||^2 = 1.932708, computed apart
    for scale in (1.932708, torch.tensor(1.932708, dtype=torch.float64)):
        assert 0.1 * scaled_squared_error(X, X_HAT, scale).item() == pytest.approx(0.17798428422710522, rel=1e-10)


@law
@given(predictions(), st.floats(0.1, 10))
def test_units_of_the_data_do_not_matter(pair, unit):
    x, x_hat = pair
    value = scaled_squared_error(x, x_hat, 2.0)
    assert value.item() >= 0
    torch.testing.assert_close(scaled_squared_error(unit * x, unit * x_hat, 2 * unit**2), value)
    torch.testing.assert_close(scaled_squared_error(x_hat, x, 2.0), value)


def test_best_constant_costs_one_half():
    scale = X.var(dim=0, correction=0).sum()
    assert scaled_squared_error(X + 100, (X + 100).mean(dim=0).expand_as(X), scale).item() == pytest.approx(0.5)


# --- all of them ----------------------------------------------------------------------------------


@law
@given(predictions())
def test_gradients_are_finite(pair):
    z, prediction = (x.float().requires_grad_() for x in pair)
    loss = explained_variance(z, prediction) + scaled_squared_error(z, prediction, 3.0)
    loss = loss + density_ratio(z[:, 0], prediction[:, 0]) + discrimination(z[:, 0], prediction[:, 0])
    loss.backward()
    assert z.grad.isfinite().all()
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize(
    "function",
    [
        explained_variance,
        lambda x, y: scaled_squared_error(x, y, 2.0),
        lambda x, y: density_ratio(x[:, 0], y[:, 0]),
        lambda x, y: discrimination(x[:, 0], y[:, 0]),
    ],
)
def test_no_rows_and_finite_differences(function):
    empty = torch.empty(0, 3, requires_grad=True)
    value = function(empty, empty)
    value.backward()
    assert value.item() == 0
    torch.autograd.gradcheck(function, (X.clone().requires_grad_(), X_HAT.clone().requires_grad_()))


def test_single_row_explains_nothing():
    z = torch.randn(1, 3, requires_grad=True)
    value = explained_variance(z, torch.randn(1, 3))
    value.backward()
    assert value.item() == 0
    assert (z.grad == 0).all()


def test_user_errors():
    with pytest.raises(ValueError, match="z and prediction must be two matrices whose rows are paired"):
        explained_variance(X, X_HAT[:3])
    with pytest.raises(ValueError, match="explained_variance needs z and prediction of equal width, got 3 and 2 col"):
        explained_variance(X, X_HAT[:, :2])
    with pytest.raises(ValueError, match="x and x_hat must be two matrices whose rows are paired"):
        scaled_squared_error(X, X_HAT[:3], 1.0)
    with pytest.raises(ValueError, match="scaled_squared_error needs x and x_hat of equal width"):
        scaled_squared_error(X, X_HAT[:, :2], 1.0)
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        scaled_squared_error(X, X_HAT, 0.0)
    for function in (density_ratio, discrimination):
        with pytest.raises(ValueError, match=r"two vectors of one length.*got shapes \(6, 1\) and \(6, 1\)"):
            function(X[:, :1], X_HAT[:, :1])
        with pytest.raises(ValueError, match=r"got shapes \(6,\) and \(5,\)"):
            function(X[:, 0], X_HAT[:5, 0])
