import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unbraid.objectives import alignment, info_nce

law = settings(deadline=None, max_examples=30, derandomize=True)

A = torch.tensor(
    [
        [0.346, 0.822, 0.33, -1.303],
        [0.905, 0.446, -0.537, 0.581],
        [0.365, 0.294, 0.028, 0.547],
        [-0.736, -0.163, -0.482, 0.599],
        [0.04, -0.292, -0.782, -0.257],
        [0.008, -0.276, 1.294, 1.007],
    ],
    dtype=torch.float64,
)
B = torch.tensor(
    [
        [-2.711, -1.889, -0.175, -0.422],
        [0.214, 0.217, 2.118, -1.112],
        [-0.378, 2.043, 0.647, 0.663],
        [-0.514, -1.648, 0.167, 0.109],
        [-1.227, -0.683, -0.072, -0.945],
        [-0.098, 0.095, 0.036, -0.506],
    ],
    dtype=torch.float64,
)


@st.composite
def views(draw, min_n=1):
    """Two paired matrices on a coarse grid, so that zeros, ties and equal rows are common."""
    shape = (draw(st.integers(min_n, 8)), draw(st.integers(1, 5)))
    grid = hnp.arrays("int64", shape, elements=st.integers(-12, 12))
    return torch.from_numpy(draw(grid)).double() / 4, torch.from_numpy(draw(grid)).double() / 4


@st.composite
def grouped_views(draw):
    a, b = draw(views())
    return a, b, torch.tensor(draw(st.lists(st.integers(0, 3), min_size=len(a), max_size=len(a))))


temperatures = st.floats(0.05, 5)


# --- values ---------------------------------------------------------------------------------------


def test_known_values():
    # -1/n sum_i log [ exp(<a_i, b_i> / tau) / sum_j exp(<a_i, b_j> / tau) ], computed apart, tau = 0.2
    close = {"rel": 1e-12}
    assert info_nce(A, B, temperature=0.2, symmetric=False).item() == pytest.approx(3.044240011061453, **close)
    assert info_nce(B, A, temperature=0.2, symmetric=False).item() == pytest.approx(3.3474165176722956, **close)
    assert info_nce(A, B, temperature=0.2).item() == pytest.approx(3.1958282643668743, **close)
    plain = info_nce(A, B, temperature=0.2, symmetric=False, normalize=False)
    assert plain.item() == pytest.approx(8.657661194230593, **close)


def test_first_step_of_disentangled_ssl():
    # info_nce - beta * mean_i <mu1_i, mu2_i>, with z = mu, tau = 0.2 and beta = 2
    assert alignment(A, B).item() == pytest.approx(-0.043303948848366663, rel=1e-12)
    loss = info_nce(A, B, temperature=0.2) - 2.0 * alignment(A, B)
    assert loss.item() == pytest.approx(3.2824361620636076, rel=1e-12)


def test_is_the_stacked_form_with_same_view_pairs_masked():
    # all 2n rows as anchors, as in SupCon; the rows of the anchor's own view are taken out of the denominator
    n = len(A)
    z = torch.nn.functional.normalize(torch.cat([A, B]), dim=1)
    other_view = (torch.arange(2 * n) < n)[:, None] != (torch.arange(2 * n) < n)
    positive = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    logits = z @ z.T / 0.07
    log_denominator = torch.where(other_view, logits.exp(), 0.0).sum(1).log()
    stacked = (log_denominator - logits[torch.arange(2 * n), positive]).mean()
    assert info_nce(A, B).item() == pytest.approx(stacked.item(), rel=1e-10)


def test_chance_is_log_n():
    same = torch.ones(64, 3)
    assert info_nce(same, same).item() == pytest.approx(math.log(64), rel=1e-6)


def test_log_n_minus_loss_bounds_the_mutual_information():
    # a pair of Gaussians with correlation rho has -log(1 - rho^2) / 2 nats; the critic here is the exact log ratio,
    # which leaves InfoNCE below the truth, and close to it
    rho, n = 0.9, 2000
    torch.manual_seed(0)
    x, noise = torch.randn(2, n, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    r = rho / (1 - rho**2)
    # r x_i y_j - rho r (x_i^2 + y_j^2) / 2; what depends on the anchor alone cancels
    a = torch.stack([r * x, torch.ones_like(x)], dim=1)
    b = torch.stack([y, -rho * r * y.square() / 2], dim=1)
    bound = math.log(n) - info_nce(a, b, temperature=1.0, normalize=False, symmetric=False).item()
    assert bound == pytest.approx(-math.log(1 - rho**2) / 2, abs=0.05)


# --- laws -----------------------------------------------------------------------------------------


@law
@given(views(), temperatures)
def test_bounds(pair, tau):
    loss = info_nce(*pair, temperature=tau).item()
    assert -1e-12 <= loss <= math.log(len(pair[0])) + 2 / tau + 1e-9
    assert -1 - 1e-12 <= alignment(*pair).item() <= 1 + 1e-12


@law
@given(views(), temperatures)
def test_symmetry(pair, tau):
    a, b = pair
    both = info_nce(a, b, temperature=tau)
    torch.testing.assert_close(info_nce(b, a, temperature=tau), both)
    one = info_nce(a, b, temperature=tau, symmetric=False)
    other = info_nce(b, a, temperature=tau, symmetric=False)
    torch.testing.assert_close((one + other) / 2, both)
    torch.testing.assert_close(alignment(a, b), alignment(b, a))


@law
@given(grouped_views(), st.randoms(use_true_random=False))
def test_order_of_pairs_does_not_matter(grouped, random):
    a, b, groups = grouped
    order = torch.tensor(random.sample(range(len(a)), len(a)))
    torch.testing.assert_close(info_nce(a[order], b[order]), info_nce(a, b))
    torch.testing.assert_close(info_nce(a[order], b[order], groups=groups[order]), info_nce(a, b, groups=groups))
    torch.testing.assert_close(alignment(a[order], b[order]), alignment(a, b))


@law
@given(views(), temperatures, st.floats(0.1, 100))
def test_scale(pair, tau, scale):
    a, b = pair
    torch.testing.assert_close(info_nce(scale * a, b, temperature=tau), info_nce(a, b, temperature=tau))
    torch.testing.assert_close(alignment(scale * a, b), alignment(a, b))
    # without normalisation the temperature is nothing but a scale
    torch.testing.assert_close(
        info_nce(a / tau, b, temperature=1.0, normalize=False), info_nce(a, b, temperature=tau, normalize=False)
    )


@law
@given(grouped_views())
def test_groups_are_the_weighted_mean_of_their_losses(grouped):
    a, b, groups = grouped
    apart = sum(
        (groups == g).sum() / len(a) * info_nce(a[groups == g], b[groups == g]) for g in groups.unique().tolist()
    )
    torch.testing.assert_close(info_nce(a, b, groups=groups), apart, rtol=1e-7, atol=1e-9)


@law
@given(views())
def test_one_group_is_no_group(pair):
    one = torch.full((len(pair[0]),), 3)
    assert torch.equal(info_nce(*pair, groups=one), info_nce(*pair))


@law
@given(grouped_views())
def test_gradients_are_finite(grouped):
    a, b, groups = grouped
    a, b = a.float().requires_grad_(), b.float().requires_grad_()
    (info_nce(a, b, groups=groups) + info_nce(a, b) + alignment(a, b)).backward()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()
    assert (a.grad[(a == 0).all(dim=1)] == 0).all()


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, "alone"])
@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_tell_apart(n, groups):
    a = torch.randn(n, 3, requires_grad=True)
    b = torch.randn(n, 3, requires_grad=True)
    loss = info_nce(a, b, groups=groups and torch.arange(n))
    loss.backward()
    assert loss.item() == 0
    assert (a.grad == 0).all()
    assert (b.grad == 0).all()


def test_alone_in_its_group():
    a = A.clone().requires_grad_()
    groups = torch.tensor([0, 0, 1, 0, 2, 0])
    info_nce(a, B, groups=groups).backward()
    assert (a.grad[[2, 4]] == 0).all()
    assert (a.grad[[0, 1, 3, 5]] != 0).any(dim=1).all()
    assert info_nce(A, B, groups=torch.arange(6)).item() == 0


@pytest.mark.parametrize("center", [False, True])
def test_alignment_of_no_rows(center):
    a = torch.empty(0, 3, requires_grad=True)
    loss = alignment(a, a, center=center)
    loss.backward()
    assert loss.item() == 0


def test_temperature_can_be_learned():
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    info_nce(A, B, temperature=tau).backward()
    step = 1e-6
    slope = (info_nce(A, B, temperature=0.2 + step) - info_nce(A, B, temperature=0.2 - step)) / (2 * step)
    assert tau.grad.item() == pytest.approx(slope.item(), rel=1e-6)


def test_gradients_agree_with_finite_differences():
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    groups = torch.tensor([0, 0, 1, 1, 1, 2])
    torch.autograd.gradcheck(lambda a, b: info_nce(a, b, temperature=0.5, groups=groups), (a, b))
    torch.autograd.gradcheck(alignment, (a, b))
    torch.autograd.gradcheck(lambda a, b: alignment(a, b, center=True), (a, b))


def test_user_errors():
    with pytest.raises(ValueError, match="a and b must be two matrices whose rows are paired"):
        info_nce(A, B[:3])
    with pytest.raises(ValueError, match="equal width, got 4 and 2 columns"):
        info_nce(A, B[:, :2])
    with pytest.raises(ValueError, match="equal width, got 4 and 2 columns"):
        alignment(A, B[:, :2])
    with pytest.raises(ValueError, match=r"groups must have one entry per row, shape \(6,\)"):
        info_nce(A, B, groups=torch.zeros(5))
    with pytest.raises(ValueError, match="temperature must be positive"):
        info_nce(A, B, temperature=0)


# --- centred alignment ----------------------------------------------------------------------------


def test_centred_alignment_is_the_correlation_of_directions():
    u, v = (torch.nn.functional.normalize(x, dim=1) for x in (A, B))
    u, v = u - u.mean(dim=0), v - v.mean(dim=0)
    expected = torch.nn.functional.cosine_similarity(u.flatten(), v.flatten(), dim=0)
    torch.testing.assert_close(alignment(A, B, center=True), expected)


@law
@given(views(), st.floats(0.1, 100), st.randoms(use_true_random=False))
def test_laws_of_centred_alignment(pair, scale, random):
    a, b = pair
    value = alignment(a, b, center=True)
    assert -1 - 1e-12 <= value.item() <= 1 + 1e-12
    order = torch.tensor(random.sample(range(len(a)), len(a)))
    for same in (alignment(b, a, center=True), alignment(scale * a, b, center=True), -alignment(a, -b, center=True)):
        torch.testing.assert_close(same, value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alignment(a[order], b[order], center=True), value, rtol=1e-9, atol=1e-9)


@law
@given(views())
def test_gradients_of_centred_alignment_are_finite(pair):
    a, b = (x.float().requires_grad_() for x in pair)
    alignment(a, b, center=True).backward()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


def test_collapse_raises_the_published_alignment_alone():
    torch.manual_seed(0)
    a, b, point = torch.randn(50, 8), torch.randn(50, 8), 3 * torch.ones(8)
    published = [alignment(t * a + point, t * b + point).item() for t in (1.0, 0.1, 0.01)]
    centred = [alignment(t * a + point, t * b + point, center=True).item() for t in (1.0, 0.1, 0.01)]
    assert published[0] < published[1] < published[2]
    assert published[2] > 0.999
    assert max(map(abs, centred)) < 0.15
    assert alignment(0.01 * a + point, 0.01 * a + point, center=True).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_direction_has_no_centred_alignment(dtype):
    # lengths differ, directions only by rounding
    a = (
        torch.linspace(0.1, 7, 50, dtype=dtype)[:, None] * torch.tensor([0.1, 0.7, -0.3], dtype=dtype)
    ).requires_grad_()
    torch.manual_seed(0)
    b = torch.randn(50, 3, dtype=dtype, requires_grad=True)
    value = alignment(a, b, center=True)
    value.backward()
    assert value.item() == 0
    assert (a.grad == 0).all()
    assert (b.grad == 0).all()
