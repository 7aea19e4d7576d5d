import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture
from torch.distributions import Normal, kl_divergence

from unbraid.objectives import (
    clustering_divergence,
    link_log_probability,
    log_volume,
    mixture_divergence,
    mixture_log_joint,
    normal_kl,
    pair_distance,
    same_component,
    student_t_assignment,
    target_distribution,
)

law = settings(deadline=None, max_examples=30, derandomize=True)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def probabilities(n, k, sharpness=1.0):
    """Log probabilities, ``(n, k)``, that require a gradient through their logits."""
    return (sharpness * torch.randn(n, k, dtype=torch.float64)).log_softmax(1)


# --- assignments ------------------------------------------------------------------------------------


def test_student_t_and_its_target_by_the_papers_loops():
    z, centers = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    q, p = np.zeros((5, 4)), np.zeros((5, 4))
    for i in range(5):
        kernel = [1 / (1 + np.sum((z[i] - centers[c]).numpy() ** 2)) for c in range(4)]
        q[i] = np.array(kernel) / np.sum(kernel)
    frequency = q.sum(axis=0)
    for i in range(5):
        p[i] = [q[i, c] ** 2 / frequency[c] for c in range(4)]
        p[i] /= p[i].sum()
    log_q = student_t_assignment(z, centers)
    np.testing.assert_allclose(log_q.exp(), q, rtol=1e-12)
    np.testing.assert_allclose(target_distribution(log_q), p, rtol=1e-12)
    divergence = sum(p[i, c] * np.log(p[i, c] / q[i, c]) for i in range(5) for c in range(4)) / 5
    assert clustering_divergence(log_q).item() == pytest.approx(divergence, rel=1e-12)


def test_the_target_is_surer_and_gets_no_gradient():
    logits = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
    log_q = logits.log_softmax(1)
    target = target_distribution(log_q)
    assert not target.requires_grad
    entropy = lambda p: -(p * p.log()).sum(1).mean()
    assert entropy(target) < entropy(log_q.exp())
    # of a fixed target, cross entropy has the gradient q - p
    (gradient,) = torch.autograd.grad(clustering_divergence(log_q), logits)
    torch.testing.assert_close(gradient, (log_q.exp() - target).detach() / 50)


def test_the_target_balances_clusters():
    """Of two clusters that are equally near, the smaller one gets the cell."""
    q = torch.tensor([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 2 + [[0.5, 0.5]])
    target = target_distribution(q.log())
    assert target[-1, 1] > target[-1, 0]


@law
@given(st.integers(1, 8), st.integers(2, 5), st.floats(0.1, 40.0))
def test_the_clustering_divergence_is_never_negative(n, k, sharpness):
    assert clustering_divergence(probabilities(n, k, sharpness)).item() >= -1e-12


def test_a_code_far_off_still_has_a_gradient():
    z = torch.tensor([[1e6, 0.0]], requires_grad=True)
    log_q = student_t_assignment(z, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert log_q.isfinite().all()
    clustering_divergence(log_q, torch.tensor([[1.0, 0.0]])).backward()
    assert z.grad.isfinite().all()


# --- pairs ------------------------------------------------------------------------------------------


def test_pair_distance():
    a, b = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    assert pair_distance(a, b).item() == 13.0  # mean of 25 and 1
    assert pair_distance(a, b, margin=9.0).item() == 5.0  # mean of 9 and 1
    for margin in (None, 9.0):
        a.grad = None
        pair_distance(a.requires_grad_(), b, margin=margin).backward()
        expected = torch.tensor([[-3.0, -4.0] if margin is None else [0.0, 0.0], [0.0, -1.0]])
        torch.testing.assert_close(a.grad, expected)
    assert pair_distance(a[:0], b[:0]).item() == 0
    with pytest.raises(ValueError, match="first and second must be two matrices whose rows are paired"):
        pair_distance(a, b[:1])
    with pytest.raises(ValueError, match="`margin` must be positive"):
        pair_distance(a, b, margin=0.0)


def test_link_probability_is_the_bilinear_form():
    p, q = probabilities(6, 3), probabilities(6, 3)
    compatibility = torch.randn(3, 3, dtype=torch.float64)
    expected = [p[i].exp() @ torch.sigmoid(compatibility) @ q[i].exp() for i in range(6)]
    torch.testing.assert_close(link_log_probability(p, q, compatibility).exp(), torch.stack(expected))
    unlinked = link_log_probability(p, q, -compatibility).exp()
    torch.testing.assert_close(link_log_probability(p, q, compatibility).exp() + unlinked, torch.ones_like(unlinked))
    perfect = 200 * torch.eye(3, dtype=torch.float64) - 100  # B = I
    torch.testing.assert_close(link_log_probability(p, q, perfect), same_component(p, q))


def test_link_probability_has_a_gradient_where_it_rounds_to_one_and_to_nothing():
    """A clamped logarithm has none there: a pair that is surely wrong would teach nothing."""
    logits = torch.tensor([[60.0, -60.0]], requires_grad=True)
    sure, compatibility = logits.log_softmax(1), 400 * torch.eye(2) - 200
    other = torch.tensor([[-60.0, 60.0]]).log_softmax(1)
    for first, second, b in ((sure, other, compatibility), (sure, sure, -compatibility)):
        loss = -link_log_probability(first, second, b)
        assert loss.isfinite().all()
        assert loss.item() > 50
        (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0.1


# --- volume -----------------------------------------------------------------------------------------


def test_log_volume_by_numpy():
    f = probabilities(20, 3).exp()
    expected = np.linalg.slogdet(f.numpy().T @ f.numpy() / 20 + 1e-5 * np.eye(3))[1]
    assert log_volume(f).item() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="`ridge` must be positive"):
        log_volume(f, ridge=0.0)


@law
@given(st.integers(2, 5), st.integers(1, 4))
def test_sure_and_equal_clusters_have_the_largest_volume(k, times):
    largest = torch.eye(k, dtype=torch.float64).repeat(times, 1)
    assert log_volume(largest).item() == pytest.approx(k * np.log(1 / k + 1e-5))
    assert log_volume(probabilities(k * times, k, 3.0).exp()) <= log_volume(largest)


def test_an_empty_cluster_has_a_finite_volume():
    f = torch.tensor([[0.5, 0.5, 0.0]] * 4, requires_grad=True)
    log_volume(f).backward()
    assert f.grad.isfinite().all()


# --- mixture ----------------------------------------------------------------------------------------


def test_mixture_log_joint_by_scipy_and_sklearn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)) + 4 * rng.integers(2, size=(40, 1))
    mixture = GaussianMixture(2, covariance_type="diag", random_state=0).fit(x)
    weights, means, scales = (
        torch.as_tensor(a) for a in (np.log(mixture.weights_), mixture.means_, mixture.covariances_**0.5)
    )
    found = mixture_log_joint(torch.as_tensor(x), weights, means, scales)
    for c in range(2):
        density = multivariate_normal(mixture.means_[c], np.diag(mixture.covariances_[c]))
        np.testing.assert_allclose(found[:, c], density.logpdf(x) + weights[c].item(), rtol=1e-10)
    np.testing.assert_allclose(found.logsumexp(1), mixture.score_samples(x), rtol=1e-10)
    np.testing.assert_allclose(found.softmax(1), mixture.predict_proba(x), rtol=1e-8, atol=1e-12)


def test_mixture_divergence_by_torch_and_as_published():
    n, k, d = 6, 3, 4
    mean, scale = torch.randn(n, d).double(), torch.rand(n, d).double() + 0.2
    means, scales = torch.randn(k, d).double(), torch.rand(k, d).double() + 0.2
    weights, g = probabilities(1, k)[0], probabilities(n, k)
    found = mixture_divergence(mean, scale, g, weights, means, scales)
    published = torch.zeros(n).double()
    for i in range(n):
        expected = 0.0
        for c in range(k):
            divergence = kl_divergence(Normal(mean[i], scale[i]), Normal(means[c], scales[c])).sum()
            expected = expected + g[i, c].exp() * (divergence + g[i, c] - weights[c])
            # equation 12 of VaDE, its signs turned, and without the 2 pi that cancels
            inside = (
                scales[c].square().log() + (scale[i] / scales[c]).square() + ((mean[i] - means[c]) / scales[c]).square()
            )
            published[i] += g[i, c].exp() * (inside.sum() / 2 - weights[c] + g[i, c])
        published[i] -= (1 + scale[i].square().log()).sum() / 2
        torch.testing.assert_close(found[i], expected)
    torch.testing.assert_close(found, published)


@law
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_mixture_divergence_is_never_negative_and_that_of_a_normal_for_one_component(n, k, d):
    mean, scale = torch.randn(n, d).double(), torch.rand(n, d).double() + 0.1
    means, scales = torch.randn(k, d).double(), torch.rand(k, d).double() + 0.1
    assert (mixture_divergence(mean, scale, probabilities(n, k), probabilities(1, k)[0], means, scales) >= -1e-10).all()
    one = mixture_divergence(mean, scale, torch.zeros(n, 1), torch.zeros(1), torch.zeros(1, d), torch.full((1, d), 2.0))
    torch.testing.assert_close(one, normal_kl(mean, scale, 2.0))
