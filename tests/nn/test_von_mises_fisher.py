import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_1samp, ks_2samp, vonmises_fisher

from unbraid.nn import _von_mises_fisher
from unbraid.nn._von_mises_fisher import sample_von_mises_fisher
from unbraid.objectives import bessel_ratio


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def directions(n, d, seed=0):
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator(seed)), dim=1)


# --- distribution ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "kappa"),
    [(2, 0.5), (2, 1e4), (3, 1.0), (5, 10.0), (32, 1e4), (100, 1.0), (100, 1000.0), (2000, 10.0), (2000, 1e4)],
)
def test_mean_is_the_bessel_ratio_times_the_mean_direction(d, kappa):
    n = 10_000 if d < 1000 else 1000
    mu = directions(1, d).expand(n, d)
    z = sample_von_mises_fisher(mu, kappa, generator=generator(1))
    along = (z * mu).sum(dim=1).double()
    across = z - along[:, None].float() * mu
    ratio = bessel_ratio(d, kappa)
    assert abs(along.mean().item() - ratio) < 4 * along.std().item() / math.sqrt(n) + 1e-6
    # what lies across is isotropic: its mean vanishes with sqrt(n)
    assert across.mean(dim=0).norm().item() < 1.5 * math.sqrt(max(d - 1, 8) / (d - 1) * (1 - ratio**2) / n) + 1e-6


def test_published_setting():
    mu = directions(1, 100).expand(4000, 100)
    z = sample_von_mises_fisher(mu, 1000.0, generator=generator())
    assert (z * mu).sum(dim=1).mean().item() == pytest.approx(0.9517, abs=3e-4)


@pytest.mark.parametrize("proposals", [1, 8])
@pytest.mark.parametrize(("d", "kappa"), [(2, 3.0), (2, 1000.0), (3, 1.0), (4, 10.0), (30, 50.0), (100, 1000.0)])
def test_distribution_against_scipy(monkeypatch, d, kappa, proposals):
    # one proposal a round sends every rejected sample through the loop again
    monkeypatch.setattr(_von_mises_fisher, "PROPOSALS", proposals)
    mu, other = directions(2, d, seed=3)
    z = sample_von_mises_fisher(mu.expand(4000, d), kappa, generator=generator(4)).numpy()
    theirs = vonmises_fisher(mu.double().numpy() / np.linalg.norm(mu.double().numpy()), kappa).rvs(4000, random_state=5)
    assert ks_2samp(z @ mu.numpy(), theirs @ mu.numpy()).pvalue > 0.01
    assert ks_2samp(z @ other.numpy(), theirs @ other.numpy()).pvalue > 0.01


def test_distribution_on_the_ordinary_sphere():
    # d = 3: <z, mu> has the distribution function (e^{kappa w} - e^{-kappa}) / (e^kappa - e^{-kappa})
    mu = directions(1, 3).expand(20_000, 3)
    w = (sample_von_mises_fisher(mu, 2.0, generator=generator()) * mu).sum(dim=1).numpy()
    cdf = lambda w: (np.exp(2 * w) - np.exp(-2)) / (np.exp(2) - np.exp(-2))
    assert ks_1samp(w, cdf).pvalue > 0.01


def test_no_concentration_is_uniform():
    z = sample_von_mises_fisher(directions(1, 3).expand(20_000, 3), 0.0, generator=generator())
    for coordinate in z.numpy().T:  # Archimedes
        assert ks_1samp(coordinate, lambda x: (1 + x) / 2).pvalue > 0.01


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("tilt", [0.0, 1e-8, 1e-3])
def test_means_along_the_first_axis(sign, tilt):
    mu = torch.zeros(5000, 10)
    mu[:, 0], mu[:, 1] = sign, tilt
    mu.requires_grad_()
    z = sample_von_mises_fisher(mu, 20.0, generator=generator())
    along = (z * mu).sum(dim=1)
    assert along.mean().item() == pytest.approx(bessel_ratio(10, 20.0), abs=0.01)
    assert (z[:, 1:].mean(dim=0).abs() < 0.02).all()
    z[:, 2].sum().backward()
    assert mu.grad.abs().max() < 10  # a reflection of a fixed pole has a gradient of 1 / tilt


# --- shape and precision --------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.0, 1.0, 1000.0, 1e4, 1e7])
@pytest.mark.parametrize("d", [2, 3, 100, 2000])
def test_samples_are_unit_vectors(d, kappa):
    z = sample_von_mises_fisher(directions(64, d), kappa, generator=generator())
    assert z.dtype == torch.float32
    assert z.isfinite().all()
    assert (z.double().norm(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(0, 4), (4,), (1, 4), (2, 3, 4)])
def test_any_leading_shape(shape):
    mu = torch.randn(shape, generator=generator())
    z = sample_von_mises_fisher(mu, 1e5)
    assert z.shape == mu.shape
    # so concentrated that each sample stays with its own mean, whatever the mean's length
    torch.testing.assert_close(z, torch.nn.functional.normalize(mu, dim=-1), atol=0.05, rtol=0)


def test_precision_follows_the_input():
    mu = directions(8, 16)
    assert sample_von_mises_fisher(mu.double(), 10.0).dtype == torch.float64
    z = sample_von_mises_fisher(mu.bfloat16(), 10.0)
    assert z.dtype == torch.float32
    assert (z.norm(dim=1) - 1).abs().max() < 1e-5


# --- randomness and gradients ---------------------------------------------------------------------


def test_randomness():
    mu = directions(32, 8)
    first = sample_von_mises_fisher(mu, 10.0, generator=generator(7))
    assert torch.equal(sample_von_mises_fisher(mu, 10.0, generator=generator(7)), first)
    assert not torch.equal(sample_von_mises_fisher(mu, 10.0, generator=generator(8)), first)

    torch.manual_seed(7)
    without = sample_von_mises_fisher(mu, 10.0)
    torch.manual_seed(7)
    sample_von_mises_fisher(mu, 10.0, generator=generator(8))  # leaves the global generator alone
    assert torch.equal(sample_von_mises_fisher(mu, 10.0), without)
    # rows with the same mean are different samples
    assert sample_von_mises_fisher(mu[:1].expand(32, 8), 10.0).unique(dim=0).shape == (32, 8)


def test_gradient_of_the_expectation():
    # d/dmu E<a, z> = A_d (a - <a, mu> mu) along the sphere, nothing along mu
    d, kappa, n = 6, 5.0, 40_000
    mu, a = directions(2, d, seed=1)
    mu = mu.clone().requires_grad_()
    (sample_von_mises_fisher(mu.expand(n, d), kappa, generator=generator()) @ a).mean().backward()
    expected = bessel_ratio(d, kappa) * (a - (a @ mu) * mu).detach()
    torch.testing.assert_close(mu.grad, expected, atol=0.02, rtol=0)
    assert abs((mu.grad @ mu).item()) < 1e-5


def test_gradient_reaches_the_mean_through_the_reflection_alone():
    mu = directions(4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda m: sample_von_mises_fisher(m, 10.0, generator=generator(3)), mu)
    assert not sample_von_mises_fisher(mu.detach(), 10.0).requires_grad
    # w is a constant: <z, mu> does not move with mu
    unit = torch.nn.functional.normalize(mu, dim=1)
    along = (sample_von_mises_fisher(unit, 10.0) * unit).sum()
    (gradient,) = torch.autograd.grad(along, mu)
    assert gradient.abs().max() < 1e-12


def test_user_errors():
    with pytest.raises(ValueError, match="concentration must be finite and not negative"):
        sample_von_mises_fisher(torch.ones(3, 4), -1.0)
    with pytest.raises(ValueError, match="at least 2 columns"):
        sample_von_mises_fisher(torch.ones(3, 1), 1.0)
