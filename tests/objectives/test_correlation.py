import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unbraid.objectives._correlation import barlow_twins, canonical_correlation, vicreg

law = settings(deadline=None, max_examples=30, derandomize=True)
KINDS = ["trace", "trace_squared", "eckart_young"]
WHITENED = ["trace", "trace_squared"]
LOSSES = {
    **{kind: (lambda a, b, kind=kind: canonical_correlation(a, b, kind=kind)) for kind in KINDS},
    "vicreg": vicreg,
    "barlow_twins": barlow_twins,
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@st.composite
def views(draw, max_n=9, same_width=True):
    """Two paired matrices on a coarse grid: constant columns, equal rows and fewer rows than columns are common."""
    n, width = draw(st.integers(1, max_n)), draw(st.integers(1, 4))
    other = width if same_width else draw(st.integers(1, 4))
    matrix = lambda d: hnp.arrays("int64", (n, d), elements=st.integers(-8, 8))
    return torch.from_numpy(draw(matrix(width))).double() / 4, torch.from_numpy(draw(matrix(other))).double() / 4


def correlated(n=4000, rho=(0.9, 0.5, 0.0), seed=0, dtype=torch.float64):
    """Columns of unit variance whose pairs have the correlations ``rho``."""
    generator = torch.Generator().manual_seed(seed)
    rho = torch.tensor(rho, dtype=dtype)
    a, noise = torch.randn(2, n, len(rho), dtype=dtype, generator=generator)
    return a, rho * a + (1 - rho.square()).sqrt() * noise


def mixed(x, seed):
    generator = torch.Generator().manual_seed(seed)
    return x @ torch.randn(x.shape[1], x.shape[1], dtype=x.dtype, generator=generator) + seed


def rotation(d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator)).Q


def naive_correlations(a, b, ridge):
    """Singular values of S11^-1/2 S12 S22^-1/2, by eigendecompositions."""
    a, b = (x.numpy() - x.numpy().mean(axis=0) for x in (a, b))

    def inverse_root(x):
        s = x.T @ x / len(x)
        values, vectors = np.linalg.eigh(s + ridge * np.trace(s) / len(s) * np.eye(len(s)))
        return vectors / np.sqrt(values) @ vectors.T

    return np.linalg.svd(inverse_root(a) @ (a.T @ b / len(a)) @ inverse_root(b), compute_uv=False)


# --- canonical correlation ------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize(("n", "widths"), [(50, (4, 4)), (50, (2, 5)), (6, (8, 5))])
def test_singular_values(n, widths, ridge):
    torch.manual_seed(0)
    a, b = (torch.randn(n, d, dtype=torch.float64) * torch.arange(1, d + 1) for d in widths)
    b[:, 0] += a[:, 0]
    rho = naive_correlations(a, b, ridge)
    assert canonical_correlation(a, b, ridge=ridge).item() == pytest.approx(-rho.sum(), rel=1e-9)
    squared = canonical_correlation(a, b, kind="trace_squared", ridge=ridge).item()
    assert squared == pytest.approx(-(rho**2).sum(), rel=1e-9)


def test_recovers_known_correlations():
    a, b = correlated()
    # whatever invertible map each view went through
    a, b = mixed(a, 1), mixed(b, 2)
    assert canonical_correlation(a, b, ridge=1e-6).item() == pytest.approx(-1.4, abs=0.05)
    assert canonical_correlation(a, b, kind="trace_squared", ridge=1e-6).item() == pytest.approx(-1.06, abs=0.05)


def test_eckart_young_is_its_formula():
    a, b = correlated(n=11)
    covariance = lambda x, y: torch.cov(torch.cat([x, y], dim=1).T)
    halves = [(torch.cov(a[start::2].T) + torch.cov(b[start::2].T)) / 2 for start in (0, 1)]
    expected = -2 * covariance(a, b)[:3, 3:].trace() + (halves[0] * halves[1]).sum()
    torch.testing.assert_close(canonical_correlation(a, b, kind="eckart_young"), expected)


def test_eckart_young_is_unbiased_and_least_at_the_canonical_variates():
    a, b = correlated(n=40_000)
    root = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64).sqrt()
    least = canonical_correlation(a * root, b * root, kind="eckart_young").item()
    assert least == pytest.approx(-1.06, abs=0.03)
    for worse in (root * 1.2, root * 0.8, root.flip(0)):
        assert canonical_correlation(a * worse, b * worse, kind="eckart_young").item() > least + 0.02
    # batches of 5 have on average the value of all rows
    batches = (a * root)[:10_000].split(5), (b * root)[:10_000].split(5)
    small = [canonical_correlation(x, y, kind="eckart_young") for x, y in zip(*batches, strict=True)]
    standard_error = torch.stack(small).std().item() / len(small) ** 0.5
    assert standard_error < 0.06
    assert torch.stack(small).mean().item() == pytest.approx(-1.06, abs=3 * standard_error)


@pytest.mark.parametrize("kind", WHITENED)
@law
@given(views(same_width=False), st.floats(1e-3, 1e3))
def test_bounds_symmetry_and_scale(kind, pair, scale):
    a, b = pair
    loss = canonical_correlation(a, b, kind=kind)
    assert -min(a.shape[1], b.shape[1]) - 1e-9 <= loss.item() <= 1e-12
    torch.testing.assert_close(canonical_correlation(b, a, kind=kind), loss)
    torch.testing.assert_close(canonical_correlation(scale * a, b, kind=kind), loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(canonical_correlation(a, -b - 3, kind=kind), loss, rtol=1e-6, atol=1e-7)


@law
@given(views(), st.randoms(use_true_random=False), st.integers(0, 100))
def test_order_and_rotations_do_not_matter(pair, random, seed):
    a, b = pair
    order = torch.tensor(random.sample(range(len(a)), len(a)))
    turn = rotation(a.shape[1], seed)
    for kind in WHITENED:
        value = canonical_correlation(a, b, kind=kind)
        torch.testing.assert_close(canonical_correlation(a[order], b[order], kind=kind), value, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(canonical_correlation(a @ turn, b, kind=kind), value, rtol=1e-6, atol=1e-7)
    # nothing is whitened, so that both views have to turn together
    value = canonical_correlation(a, b, kind="eckart_young")
    turned = canonical_correlation(a @ turn, b @ turn, kind="eckart_young")
    torch.testing.assert_close(turned, value, rtol=1e-7, atol=1e-7)


def test_equal_singular_values_have_a_stable_gradient():
    # identical views: all correlations coincide, where a gradient through eigenvectors divides by 0
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(64, 4, dtype=torch.float64)).Q
    for dtype in (torch.float32, torch.float64):
        a = q.to(dtype).requires_grad_()
        canonical_correlation(a, q.to(dtype)).backward()
        assert a.grad.isfinite().all()
        assert a.grad.norm() < 10


def test_few_rows_correlate_by_chance():
    torch.manual_seed(0)
    a, b = torch.randn(2, 8, 20)
    assert canonical_correlation(a, b).item() < -6
    assert canonical_correlation(a, b).isfinite()


# --- VICReg and Barlow twins ----------------------------------------------------------------------


def test_vicreg_is_its_formula():
    a, b = correlated(n=12)
    a, b = 0.5 * mixed(a, 1), 0.5 * mixed(b, 2)
    n, d = a.shape
    expected = 25 * sum(((a[i] - b[i]) ** 2).sum() for i in range(n)) / n
    for x in (a, b):
        matrix = np.cov(x.numpy().T, ddof=1)
        expected += 25 * sum(max(0, 1 - math.sqrt(matrix[k, k] + 1e-4)) for k in range(d)) / d
        expected += sum(matrix[k, m] ** 2 for k in range(d) for m in range(d) if k != m) / d
    assert vicreg(a, b).item() == pytest.approx(expected.item(), rel=1e-10)


def test_parts_of_vicreg():
    a = 0.3 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -2.0]], dtype=torch.float64)
    b = a.roll(1, 0)
    off = {"invariance": 0.0, "variance": 0.0, "covariance": 0.0}
    parts = [vicreg(a, b, **{**off, part: 1.0}) for part in off]
    assert all(part > 0 for part in parts)
    torch.testing.assert_close(vicreg(a, b), 25 * parts[0] + 25 * parts[1] + parts[2])


def test_barlow_twins_is_its_formula():
    a, b = correlated(n=12)
    matrix = np.corrcoef(a.numpy().T, b.numpy().T)[:3, 3:]
    expected = ((1 - matrix.diagonal()) ** 2).sum()
    expected += 5e-3 * (np.sum(matrix**2) - np.sum(matrix.diagonal() ** 2))
    assert barlow_twins(a, b).item() == pytest.approx(expected, rel=1e-10)


@law
@given(views(), st.integers(0, 100))
def test_barlow_twins_bounds_and_scale(pair, seed):
    a, b = pair
    d = a.shape[1]
    loss = barlow_twins(a, b)
    assert -1e-12 <= loss.item() <= 4 * d + 5e-3 * d * (d - 1) + 1e-9
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(d, dtype=torch.float64, generator=generator) * 10 + 0.1
    # scaling first: a constant column plus a shift need not be a multiple of another
    torch.testing.assert_close(barlow_twins(a * scale, b), loss, rtol=1e-7, atol=1e-7)


@law
@given(views(), st.randoms(use_true_random=False))
def test_order_and_roles_do_not_matter(pair, random):
    a, b = pair
    order = torch.tensor(random.sample(range(len(a)), len(a)))
    for loss in (vicreg, barlow_twins):
        value = loss(a, b)
        assert value.item() >= -1e-12
        torch.testing.assert_close(loss(b, a), value)
        torch.testing.assert_close(loss(a[order], b[order]), value, rtol=1e-7, atol=1e-9)


def test_collapse_costs():
    a, b = torch.full((6, 3), 0.1), torch.full((6, 3), 0.1)
    assert vicreg(a, b).item() == pytest.approx(50 * (1 - 0.01), rel=1e-5)
    assert barlow_twins(a, b).item() == 3


# --- all of them ----------------------------------------------------------------------------------


@law
@given(views())
def test_gradients_are_finite(pair):
    for loss in LOSSES.values():
        a, b = (x.float().requires_grad_() for x in pair)
        loss(a, b).backward()
        assert a.grad.isfinite().all()
        assert b.grad.isfinite().all()


@every
@pytest.mark.parametrize("n", [0, 1])
def test_nothing_can_be_said_of_a_row(loss, n):
    a = torch.randn(n, 3, requires_grad=True)
    value = loss(a, a.detach())
    value.backward()
    assert value.item() == 0
    assert (a.grad == 0).all()


@pytest.mark.parametrize("n", [2, 3])
def test_eckart_young_needs_two_halves(n):
    a = torch.randn(n, 2, requires_grad=True)
    value = canonical_correlation(a, a, kind="eckart_young")
    value.backward()
    assert value.item() == 0
    assert (a.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", WHITENED)
def test_constant_view_has_no_correlation(kind, dtype):
    a = torch.full((7, 3), 0.1, dtype=dtype, requires_grad=True)
    b = torch.randn(7, 2, dtype=dtype, requires_grad=True)
    loss = canonical_correlation(a, b, kind=kind)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == 0
    assert (a.grad == 0).all()
    assert b.grad.isfinite().all()


@every
def test_gradients_agree_with_finite_differences(loss):
    a, b = (0.5 * x.clone() for x in correlated(n=8, rho=(0.9, 0.2)))
    torch.autograd.gradcheck(loss, (a.requires_grad_(), b.requires_grad_()))


def test_user_errors():
    a, b = correlated(n=8)
    for loss in LOSSES.values():
        with pytest.raises(ValueError, match="a and b must be two matrices whose rows are paired"):
            loss(a, b[:3])
    for name in ("eckart_young", "vicreg", "barlow_twins"):
        with pytest.raises(ValueError, match="needs a and b of equal width, got 3 and 2 columns"):
            LOSSES[name](a, b[:, :2])
    with pytest.raises(ValueError, match="kind must be one of 'trace', 'trace_squared', 'eckart_young'"):
        canonical_correlation(a, b, kind="mcca")
    with pytest.raises(ValueError, match="ridge must be positive"):
        canonical_correlation(a, b, ridge=0.0)
