import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import multivariate_normal, norm

from unbraid.objectives import canonical_log_ratio

law = settings(deadline=None, max_examples=30, derandomize=True)
double = lambda x: torch.as_tensor(x, dtype=torch.float64)


@st.composite
def codes(draw):
    """Two codes on a coarse grid, and their correlations."""
    k, elements = draw(st.integers(0, 4)), st.integers(-12, 12)
    matrix = lambda: draw(hnp.arrays("int64", (draw(st.integers(0, 5)), k), elements=elements)) / 4
    rho = draw(hnp.arrays("int64", k, elements=st.integers(-19, 19))) / 20
    return double(matrix()), double(matrix()), double(rho)


def sample(rho, n, seed=0):
    """Pairs of standard normal codes that correlate by rho."""
    rng = np.random.default_rng(seed)
    a, noise = rng.standard_normal((2, n, len(rho)))
    return a, rho * a + np.sqrt(1 - rho**2) * noise


# --- values ---------------------------------------------------------------------------------------


@law
@given(codes())
def test_it_is_the_ratio_of_normal_densities(pair):
    a, b, rho = (x.numpy() for x in pair)
    expected = np.zeros((len(a), len(b)))
    for j, r in enumerate(rho):
        both = np.stack(np.broadcast_arrays(a[:, None, j], b[None, :, j]), axis=-1)
        joint = multivariate_normal([0, 0], [[1, r], [r, 1]]).logpdf(both).reshape(expected.shape)
        expected += joint - norm.logpdf(a[:, None, j]) - norm.logpdf(b[None, :, j])
    np.testing.assert_allclose(canonical_log_ratio(*pair).numpy(), expected, atol=1e-9)


def test_its_mean_over_pairs_is_the_mutual_information():
    rho = np.array([0.9, 0.6, -0.3, 0.0])
    n = 50_000
    a, b = sample(rho, n)
    ratio = torch.cat(
        [
            canonical_log_ratio(double(x), double(y), double(rho)).diagonal()
            for x, y in zip(a.reshape(500, 100, 4), b.reshape(500, 100, 4), strict=True)
        ]
    ).numpy()
    information = -0.5 * np.log1p(-(rho**2)).sum()
    assert ratio.mean() == pytest.approx(information, abs=4 * ratio.std() / np.sqrt(n))
    assert ratio.std() / np.sqrt(n) < 0.01 * information  # the test is about something


def test_it_ranks_partners_better_than_a_cosine():
    rho = np.array([0.95, 0.1, 0.1, 0.1, 0.1, 0.1])
    a, b = map(double, sample(rho, 300))
    found = lambda scores: (scores.argsort(dim=1, descending=True) == torch.arange(300)[:, None]).int().argmax(dim=1)
    cosine = torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T
    assert found(canonical_log_ratio(a, b, double(rho))).double().mean() < 0.5 * found(cosine).double().mean()


# --- laws -----------------------------------------------------------------------------------------


@law
@given(codes())
def test_roles_do_not_matter(pair):
    a, b, rho = pair
    torch.testing.assert_close(canonical_log_ratio(b, a, rho), canonical_log_ratio(a, b, rho).T)


@law
@given(codes(), st.randoms(use_true_random=False))
def test_dimensions_add_up_in_any_order(pair, random):
    a, b, rho = pair
    order = random.sample(range(len(rho)), len(rho))
    torch.testing.assert_close(canonical_log_ratio(a[:, order], b[:, order], rho[order]), canonical_log_ratio(*pair))
    parts = [canonical_log_ratio(a[:, [j]], b[:, [j]], rho[[j]]) for j in order]
    torch.testing.assert_close(sum(parts, torch.zeros(len(a), len(b)).double()), canonical_log_ratio(*pair))


@law
@given(codes())
def test_the_sign_of_a_dimension_belongs_to_its_correlation(pair):
    a, b, rho = pair
    torch.testing.assert_close(canonical_log_ratio(a, -b, -rho), canonical_log_ratio(a, b, rho))


@law
@given(codes())
def test_uncorrelated_dimensions_tell_nothing(pair):
    a, b, rho = pair
    assert not canonical_log_ratio(a, b, torch.zeros_like(rho)).any()


@law
@given(codes())
def test_gradients_are_finite_at_the_limit(pair):
    a, b, rho = (x.float().requires_grad_() for x in pair)
    canonical_log_ratio(a, b, rho.sign() * 2).sum().backward()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


# --- edges ----------------------------------------------------------------------------------------


def test_correlations_end_at_the_limit():
    a, b = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0)).double()
    for rho, bounded in (([1.0, -1.0], [0.999, -0.999]), ([7.0, 0.2], [0.999, 0.2])):
        torch.testing.assert_close(canonical_log_ratio(a, b, double(rho)), canonical_log_ratio(a, b, double(bounded)))
    torch.testing.assert_close(
        canonical_log_ratio(a, b, double([0.9, -0.9]), limit=0.5), canonical_log_ratio(a, b, double([0.5, -0.5]))
    )


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3,), (3,), (3,)), r"a and b must be matrices, got shapes \(3,\) and \(3,\)"),
        (((2, 3), (2, 4), (3,)), "a and b"),
        (((2, 3), (2, 3), (2,)), r"one entry per column, shape \(3,\), got \(2,\)"),
        (((2, 3), (2, 3), (3, 1)), r"one entry per column, shape \(3,\), got \(3, 1\)"),
    ],
)
def test_user_errors(shapes, message):
    with pytest.raises(ValueError, match=message):
        canonical_log_ratio(*(torch.zeros(shape) for shape in shapes))
