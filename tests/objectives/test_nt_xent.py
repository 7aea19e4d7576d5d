import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unbraid.objectives._info_nce import info_nce
from unbraid.objectives._nt_xent import nt_xent

law = settings(deadline=None, max_examples=30, derandomize=True)
temperatures = st.floats(0.05, 5)


@st.composite
def grouped_views(draw):
    """Two paired matrices on a coarse grid and groups, so that zeros, ties and lone rows are common."""
    shape = (draw(st.integers(1, 7)), draw(st.integers(1, 4)))
    grid = hnp.arrays("int64", shape, elements=st.integers(-12, 12))
    groups = draw(st.lists(st.integers(0, 3), min_size=shape[0], max_size=shape[0]))
    a, b = (torch.from_numpy(draw(grid)).double() / 4 for _ in range(2))
    return a, b, torch.tensor(groups)


def naive(a, b, tau, groups):
    """The loss as it is written: anchor by anchor, each against all other rows of both views."""
    rows = [row / row.norm() if row.norm() > 0 else row for row in (*a, *b)]
    group = [*groups.tolist(), *groups.tolist()]
    n, total = len(a), 0.0
    for i in range(2 * n):
        scores = {j: (rows[i] @ rows[j]).item() / tau for j in range(2 * n) if j != i and group[j] == group[i]}
        total += math.log(sum(map(math.exp, scores.values()))) - scores[(i + n) % (2 * n)]
    return total / (2 * n)


def random_views(n=6, d=4):
    torch.manual_seed(0)
    return torch.randn(2, n, d, dtype=torch.float64)


# --- values and laws ------------------------------------------------------------------------------


@law
@given(grouped_views(), temperatures)
def test_naive_loop(views, tau):
    a, b, groups = views
    together = torch.zeros_like(groups)
    assert nt_xent(a, b, temperature=tau).item() == pytest.approx(naive(a, b, tau, together), rel=1e-9, abs=1e-9)
    apart = nt_xent(a, b, temperature=tau, groups=groups).item()
    assert apart == pytest.approx(naive(a, b, tau, groups), rel=1e-9, abs=1e-9)


def test_chance_is_log_of_all_other_rows():
    same = torch.ones(64, 3)
    assert nt_xent(same, same).item() == pytest.approx(math.log(127), rel=1e-6)


def test_default_temperature():
    a, b = random_views()
    assert torch.equal(nt_xent(a, b), nt_xent(a, b, temperature=0.1))


@law
@given(grouped_views(), temperatures)
def test_bounds(views, tau):
    a, b, groups = views
    loss = nt_xent(a, b, temperature=tau, groups=groups).item()
    assert -1e-12 <= loss <= math.log(2 * len(a) - 1) + 2 / tau + 1e-9
    # more negatives, never an easier task
    assert nt_xent(a, b, temperature=tau).item() >= info_nce(a, b, temperature=tau).item() - 1e-9


@law
@given(grouped_views(), st.floats(0.1, 100), st.randoms(use_true_random=False))
def test_order_roles_and_scale_do_not_matter(views, scale, random):
    a, b, groups = views
    loss = nt_xent(a, b, groups=groups)
    order = torch.tensor(random.sample(range(len(a)), len(a)))
    torch.testing.assert_close(nt_xent(a[order], b[order], groups=groups[order]), loss)
    torch.testing.assert_close(nt_xent(b, a, groups=groups), loss)
    torch.testing.assert_close(nt_xent(scale * a, b, groups=groups), loss)


@law
@given(grouped_views())
def test_gradients_are_finite(views):
    a, b, groups = views
    a, b = a.float().requires_grad_(), b.float().requires_grad_()
    (nt_xent(a, b, groups=groups) + nt_xent(a, b)).backward()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, "alone"])
@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_tell_apart(n, groups):
    a, b = torch.randn(n, 3, requires_grad=True), torch.randn(n, 3, requires_grad=True)
    loss = nt_xent(a, b, groups=groups and torch.arange(n))
    loss.backward()
    assert loss.item() == 0
    assert (a.grad == 0).all()
    assert (b.grad == 0).all()


def test_alone_in_its_group():
    a, b = random_views()
    a.requires_grad_()
    nt_xent(a, b, groups=torch.tensor([0, 0, 1, 0, 2, 0])).backward()
    assert (a.grad[[2, 4]] == 0).all()
    assert (a.grad[[0, 1, 3, 5]] != 0).any(dim=1).all()


def test_temperature_can_be_learned():
    a, b = random_views()
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda tau: nt_xent(a, b, temperature=tau), tau)


def test_gradients_agree_with_finite_differences():
    a, b = (x.clone().requires_grad_() for x in random_views())
    groups = torch.tensor([0, 0, 1, 1, 1, 2])
    torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.5, groups=groups), (a, b))


def test_user_errors():
    a, b = random_views()
    with pytest.raises(ValueError, match="a and b must be two matrices whose rows are paired"):
        nt_xent(a, b[:3])
    with pytest.raises(ValueError, match="nt_xent needs a and b of equal width, got 4 and 2 columns"):
        nt_xent(a, b[:, :2])
    with pytest.raises(ValueError, match=r"groups must have one entry per row, shape \(6,\)"):
        nt_xent(a, b, groups=torch.zeros(12))
    with pytest.raises(ValueError, match="temperature must be positive"):
        nt_xent(a, b, temperature=0.0)
