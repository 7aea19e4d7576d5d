import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unbraid.objectives import orthogonality

law = settings(deadline=None, max_examples=30, derandomize=True)
KINDS = ["rows", "columns", "correlation", "cosine"]
NORMS = ["rows", "columns", "correlation"]

Z = torch.tensor(
    [
        [2.041, -2.556, 0.418],
        [-0.568, -0.453, -0.216],
        [-2.02, -0.232, -0.865],
        [3.323, 0.226, -0.353],
        [-0.281, -0.668, -1.055],
        [-0.391, 0.482, -0.239],
        [0.958, -0.2, 0.024],
        [1.546, 0.545, -0.505],
    ],
    dtype=torch.float64,
)
C = torch.tensor(
    [
        [-0.183, 0.541],
        [1.935, -0.27],
        [-0.244, 1.002],
        [-0.886, -0.292],
        [0.883, 0.58],
        [0.092, 0.67],
        [-2.828, 1.021],
        [-0.96, -1.669],
    ],
    dtype=torch.float64,
)
C3 = torch.tensor(
    [
        [0.276, 0.701, -0.445],
        [-1.076, 0.026, -0.053],
        [1.406, 0.747, 0.194],
        [1.112, -0.206, -0.926],
        [0.584, 0.583, -0.215],
        [-0.783, 0.229, -2.494],
        [0.69, 0.491, -1.639],
        [0.061, -0.964, 0.757],
    ],
    dtype=torch.float64,
)


@st.composite
def latents(draw, same_width=False):
    """Two latents on a coarse grid, so that zero rows and constant columns are common."""
    n, width = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    other = width if same_width else draw(st.integers(1, 4))
    matrix = lambda d: hnp.arrays("int64", (n, d), elements=st.integers(-12, 12))
    return torch.from_numpy(draw(matrix(width))).double() / 4, torch.from_numpy(draw(matrix(other))).double() / 4


def rotation(d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # ||S^T C||_F after scaling to unit length: samples; dimensions; centred dimensions. Computed apart.
        ("rows", 3.9602301334188788),
        ("columns", 0.7052527090034254),
        ("correlation", 0.7756726440146886),
    ],
)
def test_known_norms(kind, expected):
    assert orthogonality(Z, C, kind=kind).item() == pytest.approx(expected, rel=1e-12)


def test_known_cosine():
    assert orthogonality(Z, C3, kind="cosine").item() == pytest.approx(0.04454862830640645, rel=1e-12)
    # mean |cos| = 0.5629503139778891, and max(0, x) = (|x| + x) / 2
    hinged = (0.5629503139778891 + 0.04454862830640645) / 2
    assert orthogonality(Z, C3, kind="cosine", hinge=True).item() == pytest.approx(hinged, rel=1e-12)


def test_default_is_the_released_code():
    assert torch.equal(orthogonality(Z, C), orthogonality(Z, C, kind="rows"))
    torch.testing.assert_close(orthogonality(Z, C, divide_by_batch=True), orthogonality(Z, C) / 8)


def test_correlation_is_the_cross_correlation_matrix():
    matrix = torch.corrcoef(torch.cat([Z, C], dim=1).T)[:3, 3:]
    torch.testing.assert_close(orthogonality(Z, C, kind="correlation"), matrix.square().sum().sqrt())


@pytest.mark.parametrize(("n", "independent", "identical"), [(128, 11.2, 17.0), (256, 16.1, 30.1), (1024, 32.1, 107.2)])
def test_rows_grows_with_the_batch(n, independent, identical):
    # standard Gaussian latents, d = 100: about sqrt(n), and sqrt(n + n (n - 1) / d)
    torch.manual_seed(0)
    z, c = torch.randn(2, n, 100)
    assert orthogonality(z, c).item() == pytest.approx(independent, abs=0.3)
    assert orthogonality(z, z).item() == pytest.approx(identical, rel=0.01)


def test_columns_does_not_grow_with_the_batch():
    torch.manual_seed(0)
    small, large = torch.randn(500, 5), torch.randn(5000, 5)
    assert orthogonality(large, large) / orthogonality(small, small) == pytest.approx(10, rel=0.01)
    for kind in ("columns", "correlation"):
        for z in (small, large):
            assert orthogonality(z, z, kind=kind).item() == pytest.approx(math.sqrt(5), rel=0.02)


def test_only_correlation_forgives_means():
    torch.manual_seed(0)
    z, c = torch.randn(2, 4000, 10) + 3
    assert orthogonality(z, c, kind="correlation").item() == pytest.approx(10 / math.sqrt(4000), rel=0.1)
    assert orthogonality(z, c, kind="columns") > 8
    assert orthogonality(z, c, divide_by_batch=True) > 0.8


# --- laws -----------------------------------------------------------------------------------------


@law
@given(latents(same_width=True))
def test_bounds(pair):
    n, d = pair[0].shape
    for kind, low, high in [("rows", 0, n), ("columns", 0, d), ("correlation", 0, d), ("cosine", -1, 1)]:
        assert low - 1e-9 <= orthogonality(*pair, kind=kind).item() <= high + 1e-9
    assert -1e-9 <= orthogonality(*pair, kind="cosine", hinge=True).item() <= 1 + 1e-9
    assert orthogonality(*pair, kind="cosine", hinge=True) >= orthogonality(*pair, kind="cosine")


@law
@given(latents(), st.randoms(use_true_random=False))
def test_neither_order_nor_roles_matter(pair, random):
    z, c = pair
    order = torch.tensor(random.sample(range(len(z)), len(z)))
    for kind in NORMS:
        value = orthogonality(z, c, kind=kind)
        torch.testing.assert_close(orthogonality(c, z, kind=kind), value)
        torch.testing.assert_close(orthogonality(z[order], c[order], kind=kind), value, rtol=1e-7, atol=1e-9)


@law
@given(latents(), st.integers(0, 1000))
def test_rows_ignores_rotations(pair, seed):
    z, c = pair
    turned = orthogonality(z @ rotation(z.shape[1], seed), c @ rotation(c.shape[1], seed + 1))
    torch.testing.assert_close(turned, orthogonality(z, c), rtol=1e-7, atol=1e-7)


@law
@given(latents(), st.integers(0, 1000))
def test_scales_do_not_matter(pair, seed):
    z, c = pair
    generator = torch.Generator().manual_seed(seed)
    scale = lambda size: torch.rand(size, dtype=torch.float64, generator=generator) * 10 + 0.1
    per_row, per_column = scale(len(z))[:, None], scale(z.shape[1]) * -1
    torch.testing.assert_close(orthogonality(per_row * z, c), orthogonality(z, c))
    for kind in ("columns", "correlation"):
        value = orthogonality(z, c, kind=kind)
        torch.testing.assert_close(orthogonality(per_column * z, c, kind=kind), value)
    shifted = orthogonality(z + per_column, c, kind="correlation")
    torch.testing.assert_close(shifted, orthogonality(z, c, kind="correlation"), rtol=1e-6, atol=1e-6)


@law
@given(latents(same_width=True))
def test_gradients_are_finite(pair):
    z, c = (x.float().requires_grad_() for x in pair)
    sum(orthogonality(z, c, kind=kind) for kind in KINDS).backward()
    assert z.grad.isfinite().all()
    assert c.grad.isfinite().all()


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NORMS)
def test_no_gradient_at_exact_orthogonality(kind):
    z = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], requires_grad=True)
    c = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], requires_grad=True)
    loss = orthogonality(z, c, kind=kind)
    loss.backward()
    assert loss.item() == 0
    assert (z.grad == 0).all()
    assert (c.grad == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_latent(kind):
    z = torch.zeros(5, 3, requires_grad=True)
    loss = orthogonality(z, torch.randn(5, 3), kind=kind)
    loss.backward()
    assert loss.item() == 0
    assert (z.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_column_has_no_correlation(dtype):
    # 0.1 is not a binary fraction: its mean over 7 rows need not be 0.1 again
    torch.manual_seed(0)
    z, c = torch.randn(2, 7, 3, dtype=dtype)
    constant = torch.cat([z, torch.full((7, 1), 0.1, dtype=dtype)], dim=1).requires_grad_()
    loss = orthogonality(constant, c, kind="correlation")
    loss.backward()
    torch.testing.assert_close(loss, orthogonality(z, c, kind="correlation"))
    assert (constant.grad[:, 3] == 0).all()
    assert constant.grad[:, :3].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows(kind):
    z = torch.empty(0, 3, requires_grad=True)
    loss = orthogonality(z, torch.empty(0, 3), kind=kind, divide_by_batch=kind == "rows")
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind):
    z, c = Z.clone().requires_grad_(), C3.clone().requires_grad_()
    torch.autograd.gradcheck(lambda z, c: orthogonality(z, c, kind=kind), (z, c))


def test_user_errors():
    with pytest.raises(ValueError, match="specific and shared must be two matrices whose rows are paired"):
        orthogonality(Z, C[:3])
    with pytest.raises(ValueError, match="kind='cosine' needs specific and shared of equal width, got 3 and 2 columns"):
        orthogonality(Z, C, kind="cosine")
    with pytest.raises(ValueError, match="kind must be"):
        orthogonality(Z, C, kind="frobenius")
    with pytest.raises(ValueError, match="divide_by_batch belongs to kind='rows'"):
        orthogonality(Z, C, kind="columns", divide_by_batch=True)
    with pytest.raises(ValueError, match="hinge belongs to kind='cosine'"):
        orthogonality(Z, C, hinge=True)
