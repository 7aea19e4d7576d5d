import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.metrics import dependence
from unbraid.nn._residual import CrossFittedResidual

law = settings(deadline=None, max_examples=15, derandomize=True)


def corrected_distance_correlation(a, b):
    return dependence(a, b, n_permutations=1).distance_correlation


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def fit(regression, x, c, *, steps, batch_size=None, lr=3e-3):
    index = torch.arange(len(x))
    optimizer = torch.optim.Adam(regression.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch_size,)) if batch_size else slice(None)
        loss = regression.loss(x[rows], c[rows], index[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return regression


def randomized(*sizes, **options):
    """A regression that is no longer constant."""
    regression = CrossFittedResidual(*sizes, **{"n_hidden": 8, **options})
    for parameter in regression.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return regression


# --- what is left -----------------------------------------------------------------------------------


def dependent_data(n):
    """Four features that depend on the code in mean or in scale, and the noise in each."""
    c, noise = torch.randn(n, 2), torch.randn(n, 4)
    mean = torch.stack([torch.zeros(n), c[:, 0] * c[:, 1], torch.sin(2 * c[:, 0]), 3 * c[:, 0] - 2 * c[:, 1]], dim=1)
    scale = torch.stack([torch.exp(0.7 * c[:, 0]), *[torch.tensor(s).expand(n) for s in (0.5, 0.3, 0.5)]], dim=1)
    return c, noise, mean + scale * noise


@pytest.fixture(scope="module")
def fitted():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        c, noise, x = dependent_data(4000)
        new = dependent_data(2000)
        regression = fit(CrossFittedResidual(2, 4, n_hidden=64), x, c, steps=400, batch_size=200, lr=8e-3)
        seen = regression(x, c, torch.arange(4000))
        found = {"seen": (c, noise, x, seen), "new": (*new, regression(new[2], new[0]))}
        regression.earn(x, c, torch.arange(4000))
        return found | {"earned": regression.earned.tolist()}


@pytest.mark.parametrize("cells", ["seen", "new"])
@pytest.mark.parametrize(
    ("feature", "before", "mean_scale"), [(0, 0.05, 1.0), (1, 0.05, 0.5), (2, 0.1, 0.3), (3, 0.5, 0.5)]
)
def test_residual_is_the_noise(fitted, cells, feature, before, mean_scale):
    c, noise, x, residual = (part[:1000].double().numpy() for part in fitted[cells])
    column = slice(feature, feature + 1)
    assert np.corrcoef(residual[:, feature], noise[:, feature])[0, 1] ** 2 > 0.9
    assert residual[:, feature].std() == pytest.approx(mean_scale, rel=0.1)
    # unbiased squared distance correlation with the code: 0 if independent
    assert corrected_distance_correlation(x[:, column], c) > before
    assert abs(corrected_distance_correlation(residual[:, column], c)) < 0.015


def test_what_depends_on_the_code_earns_its_regression(fitted):
    mean, scale = fitted["earned"]
    assert mean == [0, 1, 1, 1]
    assert scale[0] == 1
    assert scale[3] == 0  # the third varies with the code by what is left of a sine


def test_what_does_not_depend_on_the_code_stays_as_it_is():
    x, c, index = 2 + 3 * torch.randn(300, 6), torch.randn(300, 4), torch.arange(300)
    regression = fit(CrossFittedResidual(4, 6, n_hidden=32), x, c, steps=200)
    before = regression(x, c)
    regression.earn(x, c, index)
    assert regression.earned.sum() <= 1
    constant = regression.earned.sum(dim=0) == 0
    expected = (x - regression.data_scale.center)[:, constant]
    torch.testing.assert_close(regression(x, c)[:, constant], expected)
    torch.testing.assert_close(regression(x, c, index)[:, constant], expected)
    torch.testing.assert_close(regression.restore(regression(x, c), c), x)
    assert (before - regression(x, c))[:, constant].abs().mean() > 0.1


def test_copies_of_a_cell_earn_nothing():
    x, c = torch.randn(40, 5), torch.randn(40, 3)
    regression = randomized(3, 5)
    regression.earn(x, c, torch.arange(40))
    once = regression.earned.clone()
    regression.earn(x.repeat(25, 1), c.repeat(25, 1), torch.arange(40).repeat(25))
    assert torch.equal(regression.earned, once)
    regression.earn(x[:0], c[:0], torch.arange(0))
    assert not regression.earned.any()


def test_cross_fitting_does_not_shrink_the_residual():
    # nothing to be learned, few cells and many weights: regressors learn the cells by heart
    n = 150
    c, x = torch.randn(n, 5), torch.randn(n, 2)
    regression = fit(CrossFittedResidual(5, 2, n_hidden=64, scale=False), x, c, steps=150)
    ratio = lambda residual: (residual.var() / x.var()).item()
    assert ratio(regression(x, c, torch.arange(n))) > 1
    assert ratio(regression(x, c)) < 0.6  # two of three regressors have seen each cell
    new_c, new_x = torch.randn(n, 5), torch.randn(n, 2)
    assert ratio(regression(new_x, new_c)) > 1


@pytest.mark.parametrize("scale", [True, False])
def test_what_the_code_determines_leaves_nothing(scale):
    # the first feature has no noise, so its residual would be nothing but error of regression
    c = torch.randn(600, 2)
    x = torch.stack([2 * c[:, 0] - c[:, 1], c[:, 0] + torch.randn(600)], dim=1)
    regression = fit(CrossFittedResidual(2, 2, n_hidden=16, scale=scale), x, c, steps=300, batch_size=200, lr=0.02)
    for residual in (regression(x, c, torch.arange(600)), regression(x, c)):
        assert (residual[:, 0] == 0).all()
        assert residual[:, 1].std().item() == pytest.approx(1, abs=0.15)


def test_linear_dependence_goes_first():
    c = torch.randn(1000, 3)
    x = c @ torch.randn(3, 2)
    for n_layers in (1, 3):
        net = CrossFittedResidual(3, 2, n_hidden=16, n_layers=n_layers, scale=False)
        residual = fit(net, x, c, steps=80, lr=0.05)(x, c)
        assert residual.var() < 0.02 * x.var()


# --- who learns from whom -----------------------------------------------------------------------------


def test_a_regressor_never_sees_its_own_fold():
    regression = randomized(2, 3).eval()  # no running moments
    x, c, index = torch.randn(40, 3), torch.randn(40, 2), torch.arange(40)
    fold = regression.fold_of(index)

    def gradients(x):
        regression.zero_grad()
        regression.loss(x, c, index).backward()
        return [p.grad.clone() for p in regression.parameters()]

    for k in range(3):
        other = x.clone()
        other[fold == k] += 5.0
        for before, after in zip(gradients(x), gradients(other), strict=True):
            torch.testing.assert_close(before[k], after[k])
            for j in {0, 1, 2} - {k}:
                assert not torch.allclose(before[j], after[j])


def test_loss_is_squared_error_plus_the_likelihood_of_held_out_residuals():
    regression = randomized(2, 3).eval()
    x, c, index = torch.randn(7, 3), torch.randn(7, 2), torch.arange(7)
    means, raw = regression.mean(c), regression.log_scale(c)
    terms = []
    for i, fold in enumerate(regression.fold_of(index)):
        held_out = x[i] - means[fold, i]
        for k in range(3):
            if k != fold:
                log_scale = 4 * torch.tanh(raw[k, i] / 4)
                density = torch.distributions.Normal(0.0, log_scale.exp()).log_prob(held_out)
                terms.append((x[i] - means[k, i]) ** 2 - density - np.log(2 * np.pi) / 2)
    torch.testing.assert_close(regression.loss(x, c, index), torch.stack(terms).mean())


def test_scale_does_not_change_what_the_mean_learns():
    x, c, index = torch.randn(30, 3), torch.randn(30, 2), torch.arange(30)
    with_scale = randomized(2, 3)
    without = copy.deepcopy(with_scale)
    without.log_scale = None
    for regression in (with_scale, without):
        regression.loss(x, c, index).backward()
    for ours, plain in zip(with_scale.mean.parameters(), without.mean.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad)
    assert all(p.grad.any() for p in with_scale.log_scale.parameters())


def test_residual_of_a_cell_is_its_own_regressors():
    regression = randomized(2, 3)
    x, c, index = torch.randn(9, 3), torch.randn(9, 2), torch.arange(100, 109)
    means, log_scales = regression.mean(c), 4 * torch.tanh(regression.log_scale(c) / 4)
    fold, row = regression.fold_of(index), torch.arange(9)
    torch.testing.assert_close(regression(x, c, index), (x - means[fold, row]) * torch.exp(-log_scales[fold, row]))
    torch.testing.assert_close(regression(x, c), (x - means.mean(0)) * torch.exp(-log_scales.mean(0)))


def test_gradients_go_where_they_should():
    regression = randomized(2, 3)
    x, c = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    regression(x, c, torch.arange(6)).sum().backward()
    assert (x.grad != 0).all()
    assert c.grad is None
    assert all(p.grad is None for p in regression.parameters())
    x.grad = None
    regression.loss(x, c, torch.arange(6)).backward()
    assert x.grad is None
    assert c.grad is None
    assert all(p.grad.isfinite().all() and p.grad.any() for p in regression.parameters())


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_restore_is_the_way_back(scale, offset):
    regression, c = randomized(2, 3, scale=scale), torch.randn(40, 2)
    x = (torch.randn(40, 3) + c[:, :1]) * torch.tensor([1.0, 20.0, 0.05]) + offset
    for _ in range(3):  # running moments
        regression.loss(x, c, torch.arange(40))
    assert (regression.unexplained > 0.01).all()
    residual = regression(x, c)
    torch.testing.assert_close(regression.restore(residual, c), x, rtol=1e-4, atol=1e-4)
    # the mean residual is that of the mean regression
    mean = regression.restore(torch.zeros(40, 3), c)
    torch.testing.assert_close(regression(mean, c), torch.zeros(40, 3), rtol=0, atol=1e-4)


def test_restore_takes_what_is_explained_from_the_mean():
    regression, c, x = randomized(2, 3), torch.randn(10, 2), torch.randn(10, 3)
    regression.unexplained[1] = 0.005
    residual = regression(x, c)
    assert (residual[:, 1] == 0).all()
    back = regression.restore(residual, c)
    torch.testing.assert_close(back[:, ::2], x[:, ::2])
    torch.testing.assert_close(back[:, 1], regression.restore(torch.zeros(10, 3), c)[:, 1])
    assert regression.restore(residual[:0], c[:0]).shape == (0, 3)


def test_restore_lets_gradients_through_to_the_residual_alone():
    regression = randomized(2, 3)
    residual, c = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    regression.restore(residual, c).sum().backward()
    assert (residual.grad != 0).all()
    assert c.grad is None
    assert all(p.grad is None for p in regression.parameters())


# --- folds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_folds", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, 5, 1024, 2**33])
def test_folds_are_balanced_for_every_stride(n_folds, stride):
    fold = CrossFittedResidual(1, 1, n_folds=n_folds).fold_of(torch.arange(6000) * stride)
    counts = torch.bincount(fold, minlength=n_folds)
    assert len(counts) == n_folds
    expected = 6000 / n_folds
    assert (counts - expected).abs().max() < 5 * expected**0.5
    # neighbours are as good as independent
    assert (fold[1:] == fold[:-1]).float().mean().item() == pytest.approx(1 / n_folds, abs=0.04)


@law
@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=20), st.integers(2, 7), st.randoms())
def test_fold_depends_on_the_number_alone(index, n_folds, random):
    regression = CrossFittedResidual(1, 1, n_folds=n_folds)
    fold = regression.fold_of(torch.tensor(index))
    assert ((fold >= 0) & (fold < n_folds)).all()
    order = random.sample(range(len(index)), len(index))
    assert torch.equal(regression.fold_of(torch.tensor(index)[order]), fold[order])


# --- scales and edges -------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [True, False])
def test_units_do_not_matter(scale):
    x, c = torch.randn(60, 3), torch.randn(60, 2)
    regression = CrossFittedResidual(2, 3, n_hidden=8, scale=scale)
    other = copy.deepcopy(regression)
    fit(regression, x, c, steps=30, lr=0.01)
    fit(other, 1000 * x + 500, 0.01 * c - 3, steps=30, lr=0.01)
    ours, theirs = regression(x, c), other(1000 * x + 500, 0.01 * c - 3)
    torch.testing.assert_close(theirs / 1000, ours, atol=2e-3, rtol=1e-2)


def test_running_moments_are_those_of_all_batches():
    regression = CrossFittedResidual(2, 3, n_hidden=4)
    x, c = torch.randn(5, 16, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.randn(5, 1, 3), torch.randn(5, 16, 2)
    for i in range(5):
        regression.loss(x[i], c[i], torch.arange(16))
    pooled = x.reshape(80, 3)
    torch.testing.assert_close(regression.data_scale.center, pooled.mean(dim=0))
    torch.testing.assert_close(regression.data_scale.variance, pooled.var(dim=0, correction=0))
    before = copy.deepcopy(regression.state_dict())
    regression.eval().loss(x[0] + 9, c[0], torch.arange(16))
    regression(x[0] + 9, c[0])
    assert all(torch.equal(before[k], v) for k, v in regression.state_dict().items())


def test_rows_do_not_depend_on_their_company():
    regression = randomized(2, 3)
    x, c, index = torch.randn(8, 3), torch.randn(8, 2), torch.arange(8)
    whole = regression(x, c, index)
    order = torch.randperm(8)
    torch.testing.assert_close(regression(x[order], c[order], index[order]), whole[order])
    torch.testing.assert_close(regression(x[3:4], c[3:4], index[3:4]), whole[3:4])


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_rows_and_constant_columns(n, scale):
    regression = CrossFittedResidual(2, 3, n_hidden=4, scale=scale)
    x, c = torch.full((n, 3), 0.1), torch.full((n, 2), 1e6)
    for _ in range(3):
        loss = regression.loss(x, c, torch.arange(n))
        loss.backward()
        assert loss.isfinite()
        assert n or loss == 0
    assert all(p.grad.isfinite().all() for p in regression.parameters())
    for residual in (regression(x, c), regression(x, c, torch.arange(n))):
        assert residual.shape == (n, 3)
        assert residual.isfinite().all()


def test_small_residuals_are_not_blown_up_without_end():
    regression = CrossFittedResidual(1, 1, n_hidden=4)
    x, c = torch.randn(50, 1), torch.randn(50, 1)
    torch.nn.init.constant_(regression.log_scale.biases[-1], -1e3)
    torch.testing.assert_close(regression(x, c), x * np.exp(4))


def test_errors():
    with pytest.raises(ValueError, match="`n_folds` must be a whole number of at least 2, got 1"):
        CrossFittedResidual(2, 2, n_folds=1)
    with pytest.raises(ValueError, match="`n_layers` must be a whole number of at least 1, got 0"):
        CrossFittedResidual(2, 2, n_layers=0)
