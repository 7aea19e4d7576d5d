import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unbraid.objectives._club import club, gaussian_nll, nce_bound, nce_club

law = settings(deadline=None, max_examples=30, derandomize=True)

Z = torch.tensor(
    [[-0.652, -0.175], [1.664, 0.659], [-1.641, -0.005], [-0.623, 0.149], [-1.608, 0.242], [0.235, 1.576]],
    dtype=torch.float64,
)
MEAN = torch.tensor(
    [[0.317, 0.511], [-1.493, 2.253], [-1.916, 1.102], [-0.33, -0.881], [-0.656, -0.672], [0.38, -0.11]],
    dtype=torch.float64,
)
LOG_VARIANCE = torch.tensor(
    [[0.741, -0.915], [-0.002, -0.446], [0.388, -1.059], [-0.172, 0.105], [-0.742, 0.493], [0.089, 0.503]],
    dtype=torch.float64,
)
PERMUTATION = torch.tensor([2, 0, 5, 1, 3, 4])
GROUPS = torch.tensor([0, 1, 0, 4, 1, 0])


def grid(shape):
    return hnp.arrays("int64", shape, elements=st.integers(-12, 12)).map(lambda x: torch.from_numpy(x).double() / 4)


@st.composite
def gaussians(draw):
    """A latent, its predicted mean and log-variance, and groups, on a coarse grid."""
    shape = (draw(st.integers(1, 8)), draw(st.integers(1, 4)))
    groups = draw(st.lists(st.integers(0, 3), min_size=shape[0], max_size=shape[0]))
    return draw(grid(shape)), draw(grid(shape)), draw(grid(shape)) / 2, torch.tensor(groups)


@st.composite
def scored(draw):
    n = draw(st.integers(1, 8))
    return draw(grid((n, n))), torch.tensor(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))


def log_density(z, mean, log_variance):
    """log q(z_j | c_i), all pairs, by the density itself."""
    gaussian = torch.distributions.Normal(mean[:, None], (log_variance / 2).exp()[:, None])
    return gaussian.log_prob(z[None]).sum(dim=2)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # mean_i [log q(z_i | c_i) - mean_j log q(z_j | c_i)] and its versions, computed apart
        ({}, -0.030780175087197215),
        ({"negatives": "others"}, -0.03693621010463621),
        ({"negatives": "permuted", "permutation": PERMUTATION}, 0.2321877374640522),
    ],
)
def test_known_values(options, expected):
    assert club(Z, MEAN, LOG_VARIANCE, **options).item() == pytest.approx(expected, rel=1e-10)


def test_known_likelihood():
    # the density's full negative logarithm is 3.784...; the constant d / 2 log(2 pi) is left out
    constant = math.log(2 * math.pi)
    assert gaussian_nll(Z, MEAN, LOG_VARIANCE).item() == pytest.approx(3.7841122366188404 - constant, rel=1e-12)


def test_all_is_mean_over_all_pairs_of_densities():
    q = log_density(Z, MEAN, LOG_VARIANCE)
    expected = (q.diagonal() - q.mean(dim=1)).mean()
    torch.testing.assert_close(club(Z, MEAN, LOG_VARIANCE), expected)
    # the same numbers through the critic: scores[i, j] of a_i = z_i and b_j = c_j
    torch.testing.assert_close(nce_club(q.T), expected)


def test_bounds_the_mutual_information_of_gaussians():
    # z = r c + sqrt(1 - r^2) noise; with the true q the bound is r^2 / (1 - r^2), the truth -log(1 - r^2) / 2
    r, n = 0.6, 200_000
    torch.manual_seed(0)
    c, noise = torch.randn(2, n, 1, dtype=torch.float64)
    z = r * c + math.sqrt(1 - r**2) * noise
    log_variance = torch.full_like(c, math.log(1 - r**2))
    assert club(z, r * c, log_variance).item() == pytest.approx(r**2 / (1 - r**2), rel=0.02)
    # the true q has the entropy of the noise for its likelihood
    assert gaussian_nll(z, r * c, log_variance).item() == pytest.approx((1 + math.log(1 - r**2)) / 2, abs=0.02)


def test_known_scores():
    scores = torch.tensor([[2.0, 0.0, 1.0], [1.0, 3.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    assert nce_club(scores).item() == pytest.approx(9 / 3 - 11 / 9, rel=1e-12)
    e = math.exp
    # the sum runs down the columns: over a, for a fixed b
    columns = [math.log(e(2) + e(1) + 1), math.log(1 + e(3) + 1), math.log(e(1) + 1 + e(4))]
    assert nce_bound(scores).item() == pytest.approx((9 - sum(columns)) / 3 + math.log(3), rel=1e-12)


def test_critics_bound_the_mutual_information():
    # with the exact log ratio as critic the one stays below the truth and the other above
    r, n = 0.6, 1000
    torch.manual_seed(0)
    c, noise = torch.randn(2, n, dtype=torch.float64)
    z = r * c + math.sqrt(1 - r**2) * noise
    scores = (r * z[:, None] * c - r**2 * (z[:, None] ** 2 + c**2) / 2) / (1 - r**2)
    truth = -math.log(1 - r**2) / 2
    assert nce_bound(scores).item() == pytest.approx(truth, abs=0.03)
    assert nce_club(scores).item() == pytest.approx(r**2 / (1 - r**2), abs=0.06)


# --- laws -----------------------------------------------------------------------------------------


@law
@given(gaussians())
def test_naive_double_loop(case):
    z, mean, log_variance, groups = case
    q = log_density(z, mean, log_variance).tolist()
    n = len(z)
    for negatives in ("all", "others"):
        expected = 0.0
        for i in range(n):
            pool = [j for j in range(n) if groups[j] == groups[i] and (negatives == "all" or j != i)]
            if pool:
                expected += (q[i][i] - sum(q[i][j] for j in pool) / len(pool)) / n
        value = club(z, mean, log_variance, negatives=negatives, groups=groups).item()
        assert value == pytest.approx(expected, rel=1e-8, abs=1e-8)


@law
@given(scored())
def test_naive_critic_loop(case):
    scores, groups = case
    n = len(scores)
    penalty = bound = 0.0
    for j in range(n):
        pool = [scores[i, j].item() for i in range(n) if groups[i] == groups[j]]
        own = scores[j, j].item()
        penalty += (own - sum(pool) / len(pool)) / n
        bound += (own - math.log(sum(map(math.exp, pool)) / len(pool))) / n
    assert nce_club(scores, groups=groups).item() == pytest.approx(penalty, rel=1e-9, abs=1e-9)
    assert nce_bound(scores, groups=groups).item() == pytest.approx(bound, rel=1e-9, abs=1e-9)


@law
@given(scored())
def test_bounds_of_the_critic(case):
    scores, groups = case
    assert nce_bound(scores).item() <= math.log(len(scores)) + 1e-12
    # by Jensen's inequality log mean exp is at least the mean
    assert nce_bound(scores, groups=groups) <= nce_club(scores, groups=groups) + 1e-12


@law
@given(gaussians(), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(case, random):
    z, mean, log_variance, groups = case
    order = torch.tensor(random.sample(range(len(z)), len(z)))
    for options in ({}, {"negatives": "others"}):
        value = club(z, mean, log_variance, groups=groups, **options)
        moved = club(z[order], mean[order], log_variance[order], groups=groups[order], **options)
        torch.testing.assert_close(moved, value, rtol=1e-9, atol=1e-9)
    q = log_density(z, mean, log_variance)
    for critic in (nce_club, nce_bound):
        value = critic(q, groups=groups)
        torch.testing.assert_close(critic(q[order][:, order], groups=groups[order]), value, rtol=1e-9, atol=1e-9)


@law
@given(gaussians(), st.floats(0.1, 10), st.floats(-10, 10))
def test_units_of_z_do_not_matter_to_a_free_gaussian(case, scale, shift):
    z, mean, log_variance, _ = case
    moved = club(scale * z + shift, scale * mean + shift, log_variance + 2 * math.log(scale))
    torch.testing.assert_close(moved, club(z, mean, log_variance), rtol=1e-7, atol=1e-7)


@law
@given(gaussians())
def test_groups_are_the_weighted_mean_of_their_values(case):
    z, mean, log_variance, groups = case
    for negatives in ("all", "others"):
        apart = sum(
            part.double().mean() * club(z[part], mean[part], log_variance[part], negatives=negatives)
            for part in (groups == g for g in groups.unique())
        )
        together = club(z, mean, log_variance, negatives=negatives, groups=groups)
        torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


@law
@given(gaussians())
def test_gradients_are_finite(case):
    z, mean, log_variance, groups = case
    leaves = [x.float().requires_grad_() for x in (z, mean, log_variance)]
    loss = club(*leaves) + club(*leaves, negatives="others", groups=groups) + gaussian_nll(*leaves)
    loss = loss + club(*leaves, negatives="permuted", permutation=torch.arange(len(z)).flip(0))
    loss.backward()
    assert all(x.grad.isfinite().all() for x in leaves)


def test_a_group_offset_costs_nothing():
    # what z and the condition share is the batch alone: seen across batches, invisible within
    torch.manual_seed(0)
    batch = torch.arange(400) % 4
    z = batch[:, None] + 0.1 * torch.randn(400, 1)
    mean = batch[:, None].float()
    log_variance = torch.zeros(400, 1)
    assert club(z, mean, log_variance) > 1
    assert abs(club(z, mean, log_variance, groups=batch).item()) < 1e-6


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, "alone"])
@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_tell_apart(n, groups):
    groups = groups and torch.arange(n)
    leaves = [torch.randn(n, 3, requires_grad=True) for _ in range(3)]
    scores = torch.randn(n, n, requires_grad=True)
    losses = [club(*leaves, negatives=negatives, groups=groups) for negatives in ("all", "others")]
    losses += [nce_club(scores, groups=groups), nce_bound(scores, groups=groups)]
    losses.append(club(*leaves, negatives="permuted", permutation=torch.arange(n)))
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0] * 5
    assert all((x.grad == 0).all() for x in [*leaves, scores])


def test_likelihood_of_no_rows():
    z = torch.empty(0, 3, requires_grad=True)
    loss = gaussian_nll(z, z, z)
    loss.backward()
    assert loss.item() == 0


def test_alone_in_its_group():
    leaves = [x.clone().requires_grad_() for x in (Z, MEAN, LOG_VARIANCE)]
    club(*leaves, groups=GROUPS).backward()
    for x in leaves:
        assert (x.grad[3] == 0).all()
        assert (x.grad[[0, 1, 2, 4, 5]] != 0).any(dim=1).all()


def test_identity_permutation_is_no_contrast():
    assert club(Z, MEAN, LOG_VARIANCE, negatives="permuted", permutation=torch.arange(6)).item() == 0


def test_large_means_are_no_danger_to_single_precision():
    # moments about 0 would lose all digits: 1e4^2 has a rounding error of 4
    value = club(Z.float() + 1e4, MEAN.float() + 1e4, LOG_VARIANCE.float())
    assert value.item() == pytest.approx(-0.030780175087197215, abs=5e-3)


def test_memory_grows_with_n_times_d():
    # an (n, n) matrix would take 40 GB
    z = torch.randn(100_000, 2)
    assert club(z, z, torch.zeros_like(z), groups=torch.arange(100_000) % 7).item() == pytest.approx(2, rel=0.02)


def test_gradients_agree_with_finite_differences():
    leaves = [x.clone().requires_grad_() for x in (Z, MEAN, LOG_VARIANCE)]
    for options in ({}, {"groups": GROUPS}, {"negatives": "permuted", "permutation": PERMUTATION}):
        torch.autograd.gradcheck(lambda *x, options=options: club(*x, **options), leaves)
    torch.autograd.gradcheck(gaussian_nll, leaves)
    scores = log_density(Z, MEAN, LOG_VARIANCE).requires_grad_()
    for critic in (nce_club, nce_bound):
        torch.autograd.gradcheck(lambda x, critic=critic: critic(x, groups=GROUPS), scores)


def test_user_errors():
    with pytest.raises(ValueError, match="z and mean must be two matrices whose rows are paired"):
        club(Z, MEAN[:3], LOG_VARIANCE)
    with pytest.raises(ValueError, match="needs z and mean of equal width, got 2 and 1 columns"):
        gaussian_nll(Z, MEAN[:, :1], LOG_VARIANCE)
    with pytest.raises(ValueError, match=r"log_variance must have the shape of z, \(6, 2\), got \(2,\)"):
        club(Z, MEAN, torch.zeros(2))
    with pytest.raises(ValueError, match="negatives must be one of 'all', 'others', 'permuted'"):
        club(Z, MEAN, LOG_VARIANCE, negatives="some")
    with pytest.raises(ValueError, match="needs a permutation"):
        club(Z, MEAN, LOG_VARIANCE, negatives="permuted")
    with pytest.raises(ValueError, match="it alone, needs a permutation"):
        club(Z, MEAN, LOG_VARIANCE, permutation=PERMUTATION)
    with pytest.raises(ValueError, match=r"permutation must have one entry per row, shape \(6,\), got \(5,\)"):
        club(Z, MEAN, LOG_VARIANCE, negatives="permuted", permutation=PERMUTATION[:5])
    with pytest.raises(ValueError, match="takes no groups"):
        club(Z, MEAN, LOG_VARIANCE, negatives="permuted", permutation=PERMUTATION, groups=GROUPS)
    for call in (lambda groups: club(Z, MEAN, LOG_VARIANCE, groups=groups), lambda g: nce_bound(Z @ Z.T, groups=g)):
        with pytest.raises(ValueError, match=r"groups must have one entry per row, shape \(6,\)"):
            call(GROUPS[:2])
    with pytest.raises(ValueError, match=r"scores must be a square matrix.*got shape \(6, 2\)"):
        nce_club(Z)
