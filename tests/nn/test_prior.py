import math

import numpy as np
import pytest
import torch
from scipy import stats

from unbraid.nn import DiffusionPrior, Prior


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(("family", "reference"), [("normal", stats.norm), ("laplace", stats.laplace)])
def test_prior(family, reference):
    prior = Prior(3, family, 0.7)
    z = torch.randn(2, 4, 3)
    np.testing.assert_allclose(prior.log_density(z), reference(0, 0.7).logpdf(z).sum(-1), rtol=1e-5)
    sample = prior.sample(3_000)
    assert sample.shape == (3_000, 3)
    assert stats.kstest(sample[:, 1], reference(0, 0.7).cdf).pvalue > 0.001
    assert not list(prior.parameters())  # fixed


# --- diffusion ----------------------------------------------------------------------------------------

CENTER = torch.tensor([[3.5, 1.0], [0.5, 1.0]])  # of two far clusters, of standard deviation 0.3
SPREAD = 0.3


def clusters(n):
    return CENTER[torch.randint(2, (n,))] + SPREAD * torch.randn(n, 2)


def exact_log_density(z):
    each = torch.distributions.Normal(CENTER, SPREAD).log_prob(z.unsqueeze(1)).sum(-1)
    return each.logsumexp(1) - math.log(2)


@pytest.fixture(scope="module")
def fitted():
    """A diffusion model of the clusters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prior = DiffusionPrior(2, n_hidden=64, n_steps=200)
        prior.standardize(clusters(5_000))
        optimizer = torch.optim.Adam(prior.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
        for _ in range(400):
            optimizer.zero_grad()
            prior.loss(clusters(256)).backward()
            optimizer.step()
            schedule.step()
    return prior.requires_grad_(False)


def test_samples_fall_into_both_clusters_evenly(fitted):
    sample = fitted.sample(2_000, 50)
    assert sample.shape == (2_000, 2)
    distance = torch.cdist(sample, CENTER)
    near = distance < 4 * SPREAD
    assert (near.float().mean(0) - 0.5).abs().max() < 0.06
    assert near.any(1).float().mean() > 0.9  # few lie between
    inside = sample[near[:, 0]]
    torch.testing.assert_close(inside.mean(0), CENTER[0], atol=0.1, rtol=0)
    torch.testing.assert_close(inside.std(0), torch.full((2,), SPREAD), atol=0.15, rtol=0)


def test_density_is_a_lower_bound_that_knows_the_clusters(fitted):
    z = clusters(20_000)
    gap = exact_log_density(z) - fitted.log_density(z)
    error = (gap.std() / math.sqrt(len(z))).item()
    assert -4 * error < gap.mean().item() < 0.6
    # a normal distribution of the same moments is worse
    normal = torch.distributions.Normal(z.mean(0), z.std(0)).log_prob(z).sum(1)
    assert fitted.log_density(z).mean() > normal.mean() + 0.3
    between = fitted.log_density(torch.tensor([[2.0, 1.0]]).expand(2_000, 2)).mean()
    assert between < fitted.log_density(CENTER.repeat(1_000, 1)).mean() - 1


def test_density_follows_the_scale(fitted):
    # z' = a z + b has the density of z less log |a| per dimension
    scale, shift = torch.tensor([3.0, 0.1]), torch.tensor([-2.0, 7.0])
    other = DiffusionPrior(2, n_hidden=64, n_steps=200)
    other.load_state_dict(fitted.state_dict())
    other.center.mul_(scale).add_(shift)
    other.spread.mul_(scale)
    z = clusters(300)
    torch.manual_seed(1)
    before = fitted.log_density(z)
    torch.manual_seed(1)
    after = other.log_density(z * scale + shift)
    torch.testing.assert_close(after, before - scale.log().sum(), atol=1e-3, rtol=1e-3)
    torch.manual_seed(1)
    before = fitted.sample(5, 10)
    torch.manual_seed(1)
    torch.testing.assert_close(other.sample(5, 10), before * scale + shift, atol=1e-4, rtol=1e-4)


def test_density_has_any_batch_shape(fitted):
    z = clusters(12)
    torch.manual_seed(1)
    flat = fitted.log_density(z)
    torch.manual_seed(1)
    torch.testing.assert_close(fitted.log_density(z.view(3, 4, 2)), flat.view(3, 4))


def test_standardizing_notes_moments_and_survives_constant_columns():
    prior = DiffusionPrior(3, n_hidden=8, n_steps=10)
    z = torch.tensor([[1.0, 5.0, 2.0], [3.0, 5.0, 0.0]])
    prior.standardize(z)
    assert prior.center.tolist() == [2.0, 5.0, 1.0]
    np.testing.assert_allclose(prior.spread, [1.0, 1e-6, 1.0])
    assert prior.loss(z).isfinite()
    assert {"center", "spread", "signal"} <= set(prior.state_dict())  # saved with the weights


@pytest.mark.parametrize("n_steps", [1, 7, 10, 30])
def test_a_perfect_network_samples_the_data(n_steps):
    # one point: the denoiser knows it whatever it sees, and every number of steps must end there
    prior = DiffusionPrior(2, n_hidden=8, n_steps=10)
    prior.forward = lambda noisy, step: torch.tensor([[1.0, -2.0]]).expand_as(noisy)
    torch.testing.assert_close(prior.sample(4, n_steps), torch.tensor([[1.0, -2.0]]).expand(4, 2))


def test_ddim_moves_noise_to_a_normal_distribution():
    # with the exact denoiser of N(0, s^2), samples have that deviation: the deterministic path is affine in the noise
    prior, sd = DiffusionPrior(1, n_hidden=8, n_steps=1_000), 0.5
    a = prior.signal
    prior.forward = lambda z, t: z * (a[t].sqrt() * sd**2 / (a[t] * sd**2 + 1 - a[t])).unsqueeze(1)
    assert prior.sample(20_000, 500).std().item() == pytest.approx(sd, rel=0.03)
