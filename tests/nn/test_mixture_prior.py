import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from unbraid.nn import MixturePrior, Prior, ProductPrior


def filled(family: str = "laplace", n_latent: int = 2, n_components: int = 3) -> MixturePrior:
    torch.manual_seed(0)
    prior = MixturePrior(n_latent, n_components, family, scale=0.7)
    prior.logits.data = torch.tensor([0.0, 1.0, -1.0])
    prior.means.data *= 3
    return prior


@pytest.mark.parametrize(("family", "reference"), [("laplace", stats.laplace), ("normal", stats.norm)])
def test_density_against_scipy(family, reference):
    prior, z = filled(family), torch.randn(5, 2)
    weights = np.exp([0.0, 1.0, -1.0]) / np.exp([0.0, 1.0, -1.0]).sum()
    each = np.stack([reference.logpdf(z.numpy(), m, 0.7).sum(1) for m in prior.means.detach().numpy()], axis=1)
    np.testing.assert_allclose(
        prior.log_density(z).detach(), logsumexp(each + np.log(weights), axis=1), rtol=1e-4, atol=1e-5
    )
    probabilities = prior.log_probabilities(z).exp().detach()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_the_published_term_is_the_log_density():
    """sum_c q(c|z) [log pi_c + log p(z|c) - log q(c|z)] with q(c|z) = p(c|z)."""
    prior, z = filled(), torch.randn(6, 2)
    q = prior.log_probabilities(z)
    term = (q.exp() * (prior.log_joint(z) - q)).sum(1)
    torch.testing.assert_close(term, prior.log_density(z))


def test_samples_have_the_mean_of_the_mixture():
    prior = filled()
    torch.manual_seed(1)
    sample = prior.sample(20_000).detach()
    assert sample.shape == (20_000, 2)
    np.testing.assert_allclose(sample.mean(0), prior.mean.detach(), atol=0.05)


def test_place_finds_clusters_and_their_shares():
    torch.manual_seed(0)
    centers = torch.tensor([[6.0, 0.0], [-6.0, 0.0], [0.0, 6.0]])
    z = torch.cat([c + 0.1 * torch.randn(n, 2) for c, n in zip(centers, (500, 300, 200), strict=True)])
    prior = filled()
    prior.place(z)
    order = torch.cdist(centers, prior.means).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(prior.means[order], centers, atol=0.05, rtol=0)
    torch.testing.assert_close(prior.log_weights[order].exp(), torch.tensor([0.5, 0.3, 0.2]), atol=0.01, rtol=0)


def test_pairs_tell_what_a_cluster_may_vary_in():
    torch.manual_seed(0)
    side, nuisance = torch.randint(3, (900,)), 8 * torch.randn(900)
    z = torch.stack([4.0 * side + 0.3 * torch.randn(900), nuisance], dim=1)
    differences = torch.stack([0.4 * torch.randn(50), 11 * torch.randn(50)], dim=1)
    prior = filled()
    prior.place(z)
    assert prior.means[:, 0].max() - prior.means[:, 0].min() < 6  # k-means cut along the nuisance
    prior.place(z, differences)
    torch.testing.assert_close(prior.means[:, 0].sort().values, torch.tensor([0.0, 4.0, 8.0]), atol=0.1, rtol=0)
    prior.place(z, differences[:3])  # too few to tell
    assert prior.means[:, 0].max() - prior.means[:, 0].min() < 6


def test_place_leaves_the_prior_alone_with_fewer_codes_than_components():
    prior = filled()
    before = prior.means.clone()
    prior.place(torch.randn(2, 2))
    torch.testing.assert_close(prior.means, before, atol=0, rtol=0)


def test_a_component_left_out_is_never_drawn_and_has_no_probability():
    prior = filled()
    prior.kept[1] = False
    z = prior.means[1:2].detach() + torch.randn(50, 2)
    assert (prior.log_probabilities(z)[:, 1].exp() == 0).all()
    assert prior.log_weights.exp().sum().item() == pytest.approx(1)
    prior.log_density(z).sum().backward()
    assert torch.isfinite(prior.logits.grad).all()
    assert prior.logits.grad[1] == 0
    prior.place(torch.randn(100, 2))
    assert not prior.kept[1]


def test_product_of_priors():
    parts = [filled(), Prior(3, "normal", 2.0)]
    prior, z = ProductPrior(parts, [2, 3]), torch.randn(4, 5)
    torch.testing.assert_close(prior.log_density(z), parts[0].log_density(z[:, :2]) + parts[1].log_density(z[:, 2:]))
    assert prior.sample(7).shape == (7, 5)
    torch.testing.assert_close(prior.mean, torch.cat([parts[0].mean, torch.zeros(3)]))
