import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Laplace, Normal, kl_divergence

from unbraid.objectives import evidence_bound, mixture_log_density, normal_kl

law = settings(deadline=None, max_examples=30, derandomize=True)

# p(z) = N(0, 1), p(x | z) = N(a z, 0.5^2), q(z | x) = N(m, e^(2 l)): the log evidence is that of N(0, a^2 + 0.25)
X, NOISE = 1.3, 0.5
AT = {"m": 0.8, "l": math.log(0.6), "a": 0.8}
LOG_EVIDENCE = Normal(0.0, math.sqrt(AT["a"] ** 2 + NOISE**2)).log_prob(torch.tensor(X)).item()


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def toy(n_importance, n, *, detach):
    """Leaves, samples ``(K, n, 1)`` and log weights ``(K, n)`` of n independent estimates with parameters of their own."""
    leaves = {name: torch.full((n,), value, dtype=torch.float64, requires_grad=True) for name, value in AT.items()}
    scale = leaves["l"].exp()
    z = (leaves["m"] + scale * torch.randn(n_importance, n, dtype=torch.float64)).unsqueeze(-1)
    mean, scale = (leaves["m"].detach(), scale.detach()) if detach else (leaves["m"], scale)
    value = z.squeeze(-1)
    log_weights = (
        Normal(0.0, 1.0).log_prob(value)
        + Normal(leaves["a"] * value, NOISE).log_prob(torch.tensor(X, dtype=torch.float64))
        - Normal(mean, scale).log_prob(value)
    )
    return leaves, z, log_weights


def gradients(estimator, n_importance, n):
    """Gradient of every one of the n estimates, by parameter."""
    leaves, z, log_weights = toy(n_importance, n, detach=estimator != "iwae")
    if estimator == "unsquared":  # a wrong estimator that has been released
        bound = (torch.softmax(log_weights, 0).detach() * log_weights).sum(0)
    else:
        bound = evidence_bound(log_weights, estimator=estimator, samples=[z])
    bound.sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def z_score(a, b):
    return abs((a.mean() - b.mean()) / (a.var() / len(a) + b.var() / len(b)).sqrt()).item()


# --- bounds ---------------------------------------------------------------------------------------


def test_closed_values():
    weights = torch.tensor([[0.5, 1.5, 4.0], [2.0, 1.0, 0.25]], dtype=torch.float64)
    iwae = evidence_bound(weights.log(), estimator="iwae", dim=1)
    elbo = evidence_bound(weights.log(), estimator="elbo", dim=1)
    np.testing.assert_allclose(iwae, np.log([6 / 3, 3.25 / 3]), rtol=1e-12)
    np.testing.assert_allclose(elbo, np.log([3, 0.5]) / 3, rtol=1e-12)
    np.testing.assert_allclose(evidence_bound(weights.log(), dim=0), np.log([1.25, 1.25, 2.125]), rtol=1e-12)


@law
@given(st.lists(st.integers(-4000, 4000), min_size=1, max_size=8), st.integers(-30, 30))
def test_laws(grid, shift):
    log_weights = torch.tensor(grid, dtype=torch.float64) / 4
    iwae, elbo = (evidence_bound(log_weights, estimator=name) for name in ("iwae", "elbo"))
    # Jensen; no more than the largest weight; far weights neither overflow nor vanish
    assert elbo <= iwae + 1e-9
    assert iwae <= log_weights.max() + 1e-9
    for name, value in {"iwae": iwae, "elbo": elbo}.items():
        torch.testing.assert_close(evidence_bound(log_weights + shift, estimator=name), value + shift)
    samples = [torch.zeros(len(grid), 2, dtype=torch.float64)]
    torch.testing.assert_close(evidence_bound(log_weights, estimator="dreg", samples=samples), iwae)


def test_grows_with_the_samples_towards_the_log_evidence():
    bounds = {k: evidence_bound(toy(k, 40_000, detach=False)[2].detach()) for k in (1, 2, 8, 64)}
    means = [bound.mean().item() for bound in bounds.values()]
    errors = [bound.std().item() / 200 for bound in bounds.values()]
    for k in range(3):
        assert means[k + 1] - means[k] > 4 * math.hypot(errors[k], errors[k + 1])
    assert means[-1] < LOG_EVIDENCE
    assert means[-1] == pytest.approx(LOG_EVIDENCE, abs=0.01)
    # one sample: the ELBO, whose gap is the divergence of the posterior from the exact one
    precision = 1 + AT["a"] ** 2 / NOISE**2
    exact = Normal(AT["a"] * X / NOISE**2 / precision, precision**-0.5)
    gap = kl_divergence(Normal(AT["m"], math.exp(AT["l"])), exact).item()
    assert means[0] == pytest.approx(LOG_EVIDENCE - gap, abs=4 * errors[0])


# --- doubly reparameterised gradient ----------------------------------------------------------------


def test_dreg_has_the_expected_gradient_of_iwae():
    iwae, dreg, unsquared = (gradients(name, 8, 100_000) for name in ("iwae", "dreg", "unsquared"))
    for name in AT:
        assert z_score(iwae[name], dreg[name]) < 4, name
    # without the square of the weights: no unbiased estimate for the posterior, and the test would see it
    assert z_score(iwae["m"], unsquared["m"]) > 20
    assert z_score(iwae["l"], unsquared["l"]) > 20


def test_dreg_is_quieter_than_iwae():
    def noise(name, n_importance):
        gradient = gradients(name, n_importance, 4_000)["m"]
        return (gradient.std() / gradient.mean().abs()).item()

    assert noise("dreg", 64) < 0.5 * noise("iwae", 64)
    # relative to the gradient itself one gets worse with K and the other does not
    assert noise("iwae", 64) > 1.5 * noise("iwae", 2)
    assert noise("dreg", 64) < 1.1 * noise("dreg", 2)


def test_dreg_weights_are_squared_for_samples_and_plain_for_the_model():
    leaves, z, log_weights = toy(5, 7, detach=True)
    weights = torch.softmax(log_weights, 0).detach()
    through_z = torch.autograd.grad(log_weights.sum(), z, retain_graph=True)[0].squeeze(-1)
    through_a = (X - leaves["a"] * z.squeeze(-1)) * z.squeeze(-1) / NOISE**2
    evidence_bound(log_weights, estimator="dreg", samples=[z]).sum().backward()
    torch.testing.assert_close(leaves["m"].grad, (weights.square() * through_z).sum(0))
    torch.testing.assert_close(leaves["a"].grad, (weights * through_a.detach()).sum(0))


def test_samples_without_gradient_need_no_hook():
    log_weights = torch.tensor([0.0, 1.0], requires_grad=True)
    evidence_bound(log_weights, estimator="dreg", samples=[torch.zeros(2, 3)]).backward()
    torch.testing.assert_close(log_weights.grad, torch.softmax(torch.tensor([0.0, 1.0]), 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "vae"}, r"`estimator` must be one of 'elbo', 'iwae', 'dreg', not 'vae'"),
        ({"estimator": "dreg"}, r"needs the `samples`.*\(3, 2\).*got \[\]"),
        ({"estimator": "dreg", "samples": [torch.zeros(3, 2)]}, r"one more dimension; got \[\(3, 2\)\]"),
        ({"estimator": "dreg", "samples": [torch.zeros(3, 2, 1), torch.zeros(2, 2, 1)]}, r"\(2, 2, 1\)"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        evidence_bound(torch.zeros(3, 2), **options)


# --- mixtures ---------------------------------------------------------------------------------------

MU = torch.tensor([[-0.802, -1.324], [-0.248, 0.42], [1.136, 0.11]], dtype=torch.float64)
LOG_VARIANCE = torch.tensor([[-0.553, -0.785], [0.749, 1.635], [0.273, -1.233]], dtype=torch.float64)
Z = torch.tensor([[-0.958, 1.6], [0.203, -1.732], [-0.084, -1.163], [-0.629, -0.488]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # log of the mean of three densities, computed apart
        (Normal, [-4.354427517676361, -3.082933804015016, -2.5274085146522003, -2.584256882868277]),
        (Laplace, [-4.395024157945645, -3.418098090672366, -2.727711340121348, -2.8111520405102954]),
    ],
)
def test_known_mixtures(family, expected):
    densities = family(MU[:, None], (LOG_VARIANCE / 2).exp()[:, None]).log_prob(Z).sum(-1)
    everyone = torch.ones(3, 1, dtype=torch.bool)
    np.testing.assert_allclose(mixture_log_density(densities, everyone), expected, rtol=1e-12)
    np.testing.assert_allclose(mixture_log_density(densities.T, everyone.T, dim=1), expected, rtol=1e-12)


def test_absent_experts_do_not_count():
    densities = torch.tensor([[0.2, 0.4, 1.0], [0.6, math.nan, 2.0], [7.0, 0.1, math.inf]], dtype=torch.float64).log()
    present = torch.tensor([[True, True, False], [True, False, False], [False, True, False]])
    found = mixture_log_density(densities, present)
    np.testing.assert_allclose(found[:2].exp(), [0.4, 0.25], rtol=1e-12)
    assert found[2] == -math.inf
    # one expert alone is itself, and an expert that excludes the point halves the density
    assert mixture_log_density(torch.tensor([-3.0, 5.0]), torch.tensor([True, False])).item() == -3.0
    halved = mixture_log_density(torch.tensor([-3.0, -math.inf]), torch.tensor([True, True]))
    assert halved.item() == pytest.approx(-3.0 - math.log(2))


def test_no_gradient_reaches_absent_experts():
    densities = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[True, True, True], [False, True, True]])
    mixture_log_density(densities, present).sum().backward()
    assert densities.grad.tolist() == [[1.0, 0.5, 0.5], [0.0, 0.5, 0.5]]


# --- divergence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior_scale", [1.0, math.log(2), torch.tensor([0.5, 2.0], dtype=torch.float64)])
def test_divergence_is_that_of_torch_and_of_monte_carlo(prior_scale):
    scale = (LOG_VARIANCE / 2).exp()
    prior = Normal(torch.zeros(2, dtype=torch.float64), prior_scale)
    found = normal_kl(MU, scale, prior_scale)
    torch.testing.assert_close(found, kl_divergence(Normal(MU, scale), prior).sum(-1))
    sample = Normal(MU, scale).sample((40_000,))
    ratio = (Normal(MU, scale).log_prob(sample) - prior.log_prob(sample)).sum(-1)
    assert ((found - ratio.mean(0)).abs() < 4 * ratio.std(0) / 200).all()


def test_divergence_from_itself_is_0():
    assert normal_kl(torch.zeros(3, 4), torch.full((3, 4), 0.7), 0.7).tolist() == [0.0, 0.0, 0.0]
