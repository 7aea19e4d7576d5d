"""HSIC and distance correlation: what holds for both, and the numbers of each."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unbraid.objectives._distance_correlation import distance_correlation
from unbraid.objectives._kernel import hsic

law = settings(deadline=None, max_examples=30, derandomize=True)

A = torch.tensor(
    [[-1.179, 1.852], [-0.33, 1.062], [-0.829, -0.249], [-1.689, -1.909], [-0.976, -0.078], [0.798, 2.426],
     [-1.032, 1.009]],
    dtype=torch.float64,
)  # fmt: skip
B = torch.tensor(
    [[-0.604, -0.153, -1.481], [-1.479, -0.778, -1.193], [-0.004, -0.703, 1.251], [0.153, 0.165, 1.137],
     [0.518, -0.037, -0.091], [-0.121, 1.077, 0.783], [0.366, 0.799, -0.545]],
    dtype=torch.float64,
)  # fmt: skip

PENALTIES = {
    "alignment": hsic,
    "hsic": lambda a, b: hsic(a, b, bandwidth=0.8, normalize=False),
    "squared": distance_correlation,
    "root": lambda a, b: distance_correlation(a, b, squared=False),
}
RELATIVE = ["alignment", "squared", "root"]
every = pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES.keys())


@st.composite
def latents(draw):
    """Two latents on a coarse grid, so that equal rows and constant latents are common."""
    n = draw(st.integers(1, 8))
    matrix = lambda: hnp.arrays("int64", (n, draw(st.integers(1, 3))), elements=st.integers(-3, 3))
    return torch.from_numpy(draw(matrix())).double() / 2, torch.from_numpy(draw(matrix())).double() / 2


def rotation(d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q


# --- values ---------------------------------------------------------------------------------------


def test_known_hsic():
    assert hsic(A, B, bandwidth=(1.0, 1.5), normalize=False).item() == pytest.approx(0.057815459009149466, rel=1e-10)
    assert hsic(A, B, bandwidth=(1.0, 1.5)).item() == pytest.approx(0.6534418175275128, rel=1e-10)


def test_known_distance_correlation():
    assert distance_correlation(A, B).item() == pytest.approx(0.6039998505180103, rel=1e-10)
    assert distance_correlation(A, B, squared=False).item() == pytest.approx(0.7771742729388372, rel=1e-10)


def test_hsic_is_the_trace_formula():
    def kernel(x, s):
        return np.array([[math.exp(-((p - q) ** 2).sum() / (2 * s**2)) for q in x] for p in x])

    n = len(A)
    h = np.eye(n) - 1 / n
    expected = np.trace(kernel(A.numpy(), 2**0.5) @ h @ kernel(B.numpy(), 3**0.5) @ h) / n**2
    # the bandwidth taken by default is the root of the width
    assert hsic(A, B, normalize=False).item() == pytest.approx(expected, rel=1e-10)
    assert hsic(A, B, bandwidth=1.0).item() == pytest.approx(hsic(A, B, bandwidth=(1.0, 1.0)).item(), rel=1e-12)
    assert hsic(A, B, bandwidth=1.0).item() != pytest.approx(hsic(A, B, bandwidth=1.5).item(), rel=1e-2)


def test_sees_what_correlation_does_not():
    # b = a^2: uncorrelated, fully dependent; and its re-pairing, independent
    torch.manual_seed(0)
    a = torch.randn(400, 1)
    b = (a.square() - 1) / 2**0.5
    shuffled = b[torch.randperm(400)]
    for penalty, dependent, independent in [(hsic, 0.2, 0.02), (distance_correlation, 0.2, 0.03)]:
        assert penalty(a, b) > dependent
        assert penalty(a, shuffled) < independent


# --- laws -----------------------------------------------------------------------------------------


@every
@law
@given(latents())
def test_bounds_and_symmetry(penalty, pair):
    a, b = pair
    value = penalty(a, b)
    assert -1e-12 <= value.item() <= 1 + 1e-12
    torch.testing.assert_close(penalty(b, a), value)


@pytest.mark.parametrize("name", RELATIVE)
@law
@given(latents())
def test_a_latent_depends_on_itself(name, pair):
    a, _ = pair
    constant = bool((a == a[0]).all())
    assert PENALTIES[name](a, a).item() == pytest.approx(0 if constant else 1, abs=1e-9)


@every
@law
@given(latents(), st.randoms(use_true_random=False), st.integers(0, 100))
def test_order_rotation_and_shift_do_not_matter(penalty, pair, random, seed):
    a, b = pair
    value = penalty(a, b)
    order = torch.tensor(random.sample(range(len(a)), len(a)))
    torch.testing.assert_close(penalty(a[order], b[order]), value, rtol=1e-6, atol=1e-6)
    if (a == a[0]).all():
        return  # rounding makes a rotated constant vary
    turned = a @ rotation(a.shape[1], seed) + seed
    torch.testing.assert_close(penalty(turned, b), value, rtol=1e-5, atol=1e-5)


@law
@given(latents(), st.floats(0.01, 100))
def test_scale(pair, scale):
    a, b = pair
    torch.testing.assert_close(distance_correlation(scale * a, b), distance_correlation(a, b), rtol=1e-6, atol=1e-9)
    # for HSIC the bandwidth is in units of the latent
    scaled = hsic(scale * a, b, bandwidth=(scale, 1.0))
    torch.testing.assert_close(scaled, hsic(a, b, bandwidth=1.0), rtol=1e-6, atol=1e-9)


@law
@given(latents())
def test_gradients_are_finite(pair):
    a, b = (x.float().requires_grad_() for x in pair)
    sum(penalty(a, b) for penalty in PENALTIES.values()).backward()
    assert a.grad.isfinite().all()
    assert b.grad.isfinite().all()


# --- edges ----------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_constant_latent(penalty, n, dtype):
    constant = torch.full((n, 3), 0.1, dtype=dtype, requires_grad=True)
    other = torch.randn(n, 2, dtype=dtype, requires_grad=True)
    loss = penalty(constant, other)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == 0
    assert (constant.grad == 0).all()
    assert (other.grad == 0).all()


def test_root_of_nothing_has_no_gradient():
    # every a meets every b: independent to the last digit
    a = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)[:, None].requires_grad_()
    b = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)[:, None]
    loss = distance_correlation(a, b, squared=False)
    loss.backward()
    assert loss.item() == 0
    assert (a.grad == 0).all()


@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-8])
def test_shrinking_hides_nothing(scale):
    # in single precision exp(-1e-8) is 1: the kernels of a shrunk latent must not be rounded to a constant
    a, b = A.float() * scale, B.float()
    reference = hsic(A * 1e-3, B).item()
    assert hsic(a, b).item() == pytest.approx(reference, rel=2e-3)
    assert distance_correlation(a, b).item() == pytest.approx(0.6039998505180103, rel=1e-4)
    assert hsic(a, b, normalize=False).item() < 2 * scale**2


@every
def test_gradients_agree_with_finite_differences(penalty):
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    torch.autograd.gradcheck(penalty, (a, b))


def test_user_errors():
    for penalty in PENALTIES.values():
        with pytest.raises(ValueError, match="a and b must be two matrices whose rows are paired"):
            penalty(A, B[:3])
    for bandwidth in (0.0, (1.0, -1.0), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="bandwidth must be a positive number, or one for each of a and b"):
            hsic(A, B, bandwidth=bandwidth)
