import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn.functional import softplus

from unbraid.nn import Posterior, PosteriorEncoder, product_of_experts, subsets

law = settings(deadline=None, max_examples=30, derandomize=True)

MU = torch.tensor([[-0.802, -1.324], [-0.248, 0.42], [1.136, 0.11]], dtype=torch.float64)
LOG_VARIANCE = torch.tensor([[-0.553, -0.785], [0.749, 1.635], [0.273, -1.233]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# --- posteriors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "reference"), [("normal", stats.norm), ("laplace", stats.laplace)])
def test_posterior_is_a_distribution(family, reference):
    mean, scale = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64) + 0.2
    posterior = Posterior(mean, scale, family)
    z = torch.randn(4, 5, 3, dtype=torch.float64)
    np.testing.assert_allclose(posterior.log_density(z), reference(mean, scale).logpdf(z).sum(-1), rtol=1e-10)
    sample = posterior.sample(4_000)
    assert sample.shape == (4_000, 5, 3)
    for i, j in [(0, 0), (4, 2)]:
        assert stats.kstest(sample[:, i, j], reference(mean[i, j], scale[i, j]).cdf).pvalue > 0.001


def test_samples_are_reparameterised_and_detaching_stops_the_gradient():
    mean, scale = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    posterior = Posterior(mean, scale)
    sample = posterior.sample(5)
    sample.sum().backward()
    torch.testing.assert_close(mean.grad, torch.full((2, 3), 5.0))
    torch.testing.assert_close(scale.grad, sample.detach().sum(0))  # z = 0 + 1 * noise
    detached = Posterior(mean, scale, "laplace").detached()
    assert detached.family == "laplace"
    assert not detached.log_density(torch.ones(2, 3)).requires_grad


# --- encoders ---------------------------------------------------------------------------------------


def encoder(**options):
    return PosteriorEncoder(nn.Linear(4, 6), 6, {"z": 2, "w": 3}, **options).double()


def test_the_head_holds_means_and_scales_one_latent_after_the_other():
    network, x = encoder(family="laplace"), torch.randn(7, 4, dtype=torch.float64)
    output = network(x)
    torch.testing.assert_close(output, network.head(network.network(x)))
    found = network.posteriors(output)
    assert list(found) == ["z", "w"]
    assert found["z"].family == found["w"].family == "laplace"
    torch.testing.assert_close(found["z"].mean, output[:, :2])
    torch.testing.assert_close(found["z"].scale, softplus(output[:, 2:4]) + 1e-6)
    torch.testing.assert_close(found["w"].mean, output[:, 4:7])
    torch.testing.assert_close(found["w"].scale, softplus(output[:, 7:]) + 1e-6)
    # any batch shape
    torch.testing.assert_close(network.posteriors(output[None].expand(2, 7, 10))["w"].mean[1], found["w"].mean)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("softplus", lambda s: np.log1p(np.exp(s))),
        ("softmax", lambda s: 3 * np.exp(s) / np.exp(s).sum(-1, keepdims=True)),
        ("exp", lambda s: np.sqrt(np.exp(s))),
    ],
)
def test_scales(form, expected):
    network, x = encoder(scale=form), torch.randn(50, 4, dtype=torch.float64)
    output = network(x)
    scale = network.posteriors(output)["w"].scale.detach()
    np.testing.assert_allclose(scale, expected(output[:, 7:].detach().numpy()), rtol=1e-4, atol=2e-6)
    if form == "softmax":  # of constant sum, the number of dimensions
        np.testing.assert_allclose(scale.sum(1), 3.0, rtol=1e-5)


@pytest.mark.parametrize("form", ["softplus", "softmax", "exp"])
@pytest.mark.parametrize("raw", [-300.0, 300.0])
def test_scales_of_extreme_outputs_are_positive_with_finite_densities(form, raw):
    network = encoder(scale=form)
    output = torch.zeros(1, 10, dtype=torch.float64)
    output[0, 2] = raw
    posterior = network.posteriors(output)["z"]
    assert (posterior.scale > 0).all()
    assert posterior.log_density(posterior.sample(10)).isfinite().all()


# --- products ---------------------------------------------------------------------------------------


def experts(n=1):
    return Posterior(MU.unsqueeze(1).expand(3, n, 2), (LOG_VARIANCE / 2).exp().unsqueeze(1).expand(3, n, 2))


@pytest.mark.parametrize(
    ("prior", "mean", "variance"),
    [
        # computed apart
        (False, [-0.21763885035245073, -0.4199100006276815], [0.3364293210709706, 0.17185473342214083]),
        (True, [-0.1628509992418021, -0.35832939753669624], [0.25173745873920755, 0.14665190873981226]),
    ],
)
def test_known_products(prior, mean, variance):
    product = product_of_experts(experts(), torch.ones(3, 1, dtype=torch.bool), torch.tensor([prior]))
    np.testing.assert_allclose(product.mean[0], mean, rtol=1e-12)
    np.testing.assert_allclose(product.scale[0] ** 2, variance, rtol=1e-12)


@law
@given(st.lists(st.tuples(*[st.booleans()] * 4), min_size=1, max_size=6))
def test_product_of_every_row_is_proportional_to_the_product_of_densities(rows):
    present, prior = torch.tensor([row[:3] for row in rows]).T, torch.tensor([row[3] for row in rows])
    given = experts(len(rows))
    # what stands in for absent experts changes nothing
    odd = Posterior(
        given.mean.masked_fill(~present.unsqueeze(-1), 1e6), given.scale.masked_fill(~present.unsqueeze(-1), 7.0)
    )
    product = product_of_experts(odd, present, prior)
    points = torch.tensor([[0.0, 0.0], [1.0, -0.5], [-0.7, 2.0]], dtype=torch.float64)
    for i, (*members, with_prior) in enumerate(rows):
        densities = [Posterior(MU[m], (LOG_VARIANCE[m] / 2).exp()).log_density(points) for m in range(3) if members[m]]
        if with_prior or not any(members):
            densities.append(Posterior(torch.zeros(2), torch.ones(2)).log_density(points))
        ratio = Posterior(product.mean[i], product.scale[i]).log_density(points) - sum(densities)
        torch.testing.assert_close(ratio, ratio[:1].expand(3))


def test_many_products_at_once():
    member = torch.tensor([[[True], [False], [True]], [[False], [False], [False]]])  # (2, 3, 1)
    product = product_of_experts(experts(), member, torch.tensor([[False], [False]]))
    assert product.mean.shape == product.scale.shape == (2, 1, 2)
    torch.testing.assert_close(product.mean[1], torch.zeros(1, 2).double())
    torch.testing.assert_close(product.scale[1], torch.ones(1, 2).double())
    precision = (-LOG_VARIANCE[[0, 2]]).exp()
    torch.testing.assert_close(product.scale[0, 0], precision.sum(0) ** -0.5)
    torch.testing.assert_close(product.mean[0, 0], (precision * MU[[0, 2]]).sum(0) / precision.sum(0))


def test_absent_experts_get_no_gradient():
    mean = MU.clone().unsqueeze(1).requires_grad_()
    product = product_of_experts(
        Posterior(mean, experts().scale), torch.tensor([[True], [False], [True]]), torch.tensor([True])
    )
    product.mean.sum().backward()
    assert (mean.grad[1] == 0).all()
    assert (mean.grad[[0, 2]] > 0).all()


def test_products_of_other_families_are_refused():
    with pytest.raises(ValueError, match="normal posteriors only"):
        product_of_experts(
            Posterior(MU[:, None], MU[:, None].exp(), "laplace"), torch.ones(3, 1).bool(), torch.tensor([True])
        )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_subsets_are_all_of_them_smallest_first(n):
    found = subsets(n)
    assert found.shape == (2**n - 1, n)
    assert found.dtype == torch.bool
    assert len({tuple(row) for row in found.tolist()}) == 2**n - 1
    sizes = found.sum(1)
    assert sizes.min() == 1
    assert (sizes.diff() >= 0).all()
    assert torch.bincount(sizes).tolist()[1:] == [math.comb(n, k) for k in range(1, n + 1)]
