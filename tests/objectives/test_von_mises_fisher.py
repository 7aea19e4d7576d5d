import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive
from scipy.stats import vonmises_fisher

from unbraid.objectives import alignment, bessel_ratio, vmf_kl, vmf_log_normalizer

law = settings(deadline=None, max_examples=30, derandomize=True)

THREE = [[0.272849, -0.755028, -0.596227]], [[-0.75305, 0.555301, 0.352925]]
FIVE = (
    [[-0.227153, 0.540973, 0.1964, -0.387208, 0.683555]],
    [[-0.303642, -0.321216, -0.773262, 0.444235, -0.096658]],
)


def directions(seed, n, d):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mu", "kappa", "expected"),
    [
        # kappa A_d(kappa) (1 - <mu1, mu2>), computed apart
        (THREE, 1.0, 0.5744698768611204),
        (THREE, 10.0, 16.516441292502606),
        (THREE, 1000.0, 1833.3249750705354),
        (FIVE, 1.0, 0.290770204132137),
        (FIVE, 10.0, 12.124058330922335),
        (FIVE, 1000.0, 1491.7589292790633),
    ],
)
def test_known_divergences(mu, kappa, expected):
    mu1, mu2 = (torch.tensor(m, dtype=torch.float64) for m in mu)
    assert vmf_kl(mu1, mu2, kappa).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("d", "kappa", "ratio", "log_normalizer"),
    [
        # I_{d/2}(kappa) / I_{d/2-1}(kappa) and log [kappa^{d/2-1} / ((2 pi)^{d/2} I_{d/2-1}(kappa))], computed apart
        (3, 1.0, 0.3130352854993313, -2.6924636085404874),
        (5, 10.0, 0.8111111060218429, -8.965223433691962),
        (32, 1.0, 0.031221327335361006, 8.874828201999215),
        (32, 1000.0, 0.9846124812052, -921.3044585722289),
        (50, 1000.0, 0.9757881217173646, -875.4999785614667),
        (100, 1.0, 0.00999901979633546, 86.63110271838157),
        (100, 10.0, 0.09903802650645796, 86.13852257746368),
        (100, 1000.0, 0.9517008547076367, -747.8402933876202),
    ],
)
def test_known_bessel_functions(d, kappa, ratio, log_normalizer):
    assert bessel_ratio(d, kappa) == pytest.approx(ratio, rel=1e-12)
    assert vmf_log_normalizer(d, kappa) == pytest.approx(log_normalizer, rel=1e-12)


def test_weight_that_disentangled_ssl_absorbs_in_beta():
    for d, weight in [(32, 984.6), (100, 951.7), (300, 861.6)]:
        assert 1000 * bessel_ratio(d, 1000.0) == pytest.approx(weight, abs=0.05)


@pytest.mark.parametrize("kappa", [0.0, 1e-8, 0.3, 7.0, 300.0, 1e4, 1e5])
@pytest.mark.parametrize("d", [2, 3, 4, 11, 64])
def test_bessel_functions_where_scipy_can(d, kappa):
    upper, lower = ive(d / 2, kappa), ive(d / 2 - 1, kappa)
    if upper > 1e-300:
        assert bessel_ratio(d, kappa) == pytest.approx(upper / lower, rel=1e-11)
        log_normalizer = (d / 2 - 1) * math.log(kappa) - d / 2 * math.log(2 * math.pi) - math.log(lower) - kappa
        assert vmf_log_normalizer(d, kappa) == pytest.approx(log_normalizer, rel=1e-11)
    else:  # the uniform distribution: A_d ~ kappa / d, C_d ~ 1 / area of the sphere
        area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
        assert bessel_ratio(d, kappa) == pytest.approx(kappa / d)
        assert vmf_log_normalizer(d, kappa) == pytest.approx(-area)


def test_bessel_functions_where_scipy_underflows():
    assert ive(1000, 10.0) == 0
    # leading terms of I_v(k) = (k/2)^v / v! (1 + (k^2/4) / (v+1) + (k^2/4)^2 / (2 (v+1)(v+2)) + ...)
    series = lambda v: sum(25.0**j / math.factorial(j) / math.prod(v + i for i in range(1, j + 1)) for j in range(8))
    assert bessel_ratio(2000, 10.0) == pytest.approx(5 / 1000 * series(1000) / series(999), rel=1e-13)
    log_bessel = 999 * math.log(5) - math.lgamma(1000) + math.log(series(999))
    expected = 999 * math.log(10) - 1000 * math.log(2 * math.pi) - log_bessel
    assert vmf_log_normalizer(2000, 10.0) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("d", "kappa"), [(2, 5.0), (3, 0.5), (10, 30.0), (100, 1000.0)])
def test_density_and_divergence_against_scipy(d, kappa):
    mu1, mu2 = directions(0, 2, d)
    first, second = vonmises_fisher(mu1, kappa), vonmises_fisher(mu2, kappa)
    x = first.rvs(4000, random_state=1)
    log_ratio = first.logpdf(x) - second.logpdf(x)

    np.testing.assert_allclose(vmf_log_normalizer(d, kappa) + kappa * x @ mu1, first.logpdf(x), rtol=1e-9)
    kl = vmf_kl(torch.from_numpy(mu1[None]), torch.from_numpy(mu2[None]), kappa).item()
    assert abs(kl - log_ratio.mean()) < 4 * log_ratio.std() / math.sqrt(len(x))
    # entropy = -log C - kappa A
    entropy = -vmf_log_normalizer(d, kappa) - kappa * bessel_ratio(d, kappa)
    assert entropy == pytest.approx(first.entropy(), rel=1e-9)


# --- laws -----------------------------------------------------------------------------------------


@law
@given(st.integers(2, 3000), st.floats(0, 1e5))
def test_ratio_is_a_length_and_solves_its_recurrence(d, kappa):
    ratio = bessel_ratio(d, kappa)
    # bounds of Amos (1974), which also order the dimensions
    low = kappa / (d / 2 + math.hypot(d / 2, kappa))
    high = kappa / (d / 2 - 1 + math.hypot(d / 2, kappa)) if kappa else 0
    assert low * (1 - 1e-12) <= ratio <= min(high * (1 + 1e-12), 1)
    assert ratio == pytest.approx(kappa / (d + kappa * bessel_ratio(d + 2, kappa)), rel=1e-12)


@law
@given(st.integers(2, 300), st.floats(0.1, 1e4))
def test_log_normalizer_falls_by_the_ratio(d, kappa):
    # d log C_d / d kappa = -A_d
    step = 1e-3 * kappa
    slope = (vmf_log_normalizer(d, kappa + step) - vmf_log_normalizer(d, kappa - step)) / (2 * step)
    assert slope == pytest.approx(-bessel_ratio(d, kappa), rel=1e-4)


@law
@given(st.integers(2, 50), st.floats(0, 1e4), st.integers(0, 1000))
def test_divergence_is_a_decreasing_function_of_alignment(d, kappa, seed):
    mu1, mu2 = (torch.from_numpy(m) for m in np.split(directions(seed, 12, d), 2))
    kl = vmf_kl(mu1, mu2, kappa)
    assert kl.shape == (6,)
    assert (kl >= 0).all()
    torch.testing.assert_close(kl.mean(), kappa * bessel_ratio(d, kappa) * (1 - alignment(mu1, mu2)))
    torch.testing.assert_close(vmf_kl(mu2, mu1, kappa), kl)
    torch.testing.assert_close(vmf_kl(3 * mu1, 0.5 * mu2, kappa), kl)
    torch.testing.assert_close(vmf_kl(mu1.float(), mu1.float(), kappa), torch.zeros(6))


# --- edges ----------------------------------------------------------------------------------------


def test_divergence_keeps_its_digits_between_close_directions():
    # one minus a float32 cosine would be 0 here
    angle = 1e-4
    mu1, mu2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(angle), math.sin(angle)]])
    expected = 1000 * bessel_ratio(2, 1000.0) * angle**2 / 2
    assert vmf_kl(mu1, mu2, 1000.0).item() == pytest.approx(expected, rel=1e-3)


def test_gradients():
    mu1 = torch.tensor(FIVE[0], dtype=torch.float64, requires_grad=True)
    mu2 = torch.tensor(FIVE[1], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda a, b: vmf_kl(a, b, 10.0), (mu1, mu2))
    vmf_kl(mu1, mu1, 10.0).sum().backward()
    assert mu1.grad.isfinite().all()


def test_user_errors():
    mu = torch.eye(3)
    with pytest.raises(ValueError, match="concentration must be finite and not negative, got -1"):
        vmf_kl(mu, mu, -1.0)
    with pytest.raises(ValueError, match="concentration must be finite"):
        vmf_log_normalizer(3, math.inf)
    with pytest.raises(ValueError, match="dimension must be at least 2"):
        bessel_ratio(1, 1.0)
    with pytest.raises(ValueError, match="rows are paired"):
        vmf_kl(mu, mu[:2], 1.0)
    with pytest.raises(ValueError, match="equal width"):
        vmf_kl(mu, mu[:, :2], 1.0)
