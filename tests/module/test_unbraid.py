"""Parts of Unbraid: candidates for the shared code and their judge, the joint code, codes of the residual."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from unbraid.module import Peers
from unbraid.module._canonical import MAX_PAIRS, AdditiveEncoder, CanonicalCandidate, held_out_information
from unbraid.module._specific import MAX_SPECIFIC, ResidualCode, held_out_r2, residual_axes
from unbraid.objectives import canonical_log_ratio, nce_bound


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# --- encoders -------------------------------------------------------------------------------------


def encoder(**terms):
    return AdditiveEncoder(5, 4, n_hidden=8, n_layers=2, **terms)


@pytest.mark.parametrize("network", [True, False])
def test_an_encoder_begins_as_the_linear_map_that_it_was_given(network):
    f, x, canonical = encoder(linear=True, network=network), torch.randn(20, 5), torch.randn(5, 3)
    drawn = f.network(x / 2) if network else torch.zeros(20, 4)
    f.start(canonical, torch.randn(5, 5), 2.0)
    torch.testing.assert_close(f(x)[:, :3], x @ canonical)
    torch.testing.assert_close(f(x)[:, 3], drawn[:, 3])
    if not network:
        assert not list(f.parameters())
        return
    assert drawn[:, 3].std() > 0.01
    f(x).square().sum().backward()  # and leaves it by either term
    assert (f.change.grad[:, :3].abs().sum(dim=0) > 0).all()
    assert (f.network.layers[-1].weight.grad.abs().sum(dim=1) > 0).all()


def test_the_formula_of_an_encoder():
    f, x = encoder(linear=True, network=True), torch.randn(20, 5)
    canonical, whitener = torch.randn(5, 4), torch.randn(5, 5)
    f.start(canonical, whitener, 3.0)
    for parameter in f.parameters():
        torch.nn.init.normal_(parameter)
    expected = x @ (canonical + 0.1 * whitener @ f.change) + f.network(x / 3)
    torch.testing.assert_close(f(x), expected)


def test_an_encoder_without_a_linear_map_is_its_network():
    f, x = encoder(linear=False, network=True), torch.randn(20, 5)
    f.start(torch.randn(5, 3), torch.randn(5, 5), 2.0)
    torch.testing.assert_close(f(x), f.network(x / 2))


# --- the judge ------------------------------------------------------------------------------------


def simulated(rho, n, n_modalities=2, seed=0):
    """Codes of a one-factor model, whose correlation between any two modalities is rho, and masks."""
    rng, rho = np.random.default_rng(seed), np.asarray(rho)
    factor = rng.standard_normal((n, len(rho)))
    noise = rng.standard_normal((n_modalities, n, len(rho)))
    values = np.sqrt(rho) * factor + np.sqrt(1 - rho) * noise
    names = "abc"[:n_modalities]
    codes = {m: torch.as_tensor(x, dtype=torch.float32) for m, x in zip(names, values, strict=True)}
    return codes, {m: torch.ones(n, dtype=torch.bool) for m in names}


def judged(codes, mask, groups=None, n_kept=None):
    sizes = dict.fromkeys(codes, 1)
    candidate = CanonicalCandidate(sizes, next(iter(codes.values())).shape[1], linear=True, network=False)
    candidate.judge(codes, mask, Peers(groups), n_kept=n_kept)
    return candidate


PLANTED = np.array([0, 0.8, 0, 0, 0, 0.4, 0, 0.6, 0, 0, 0, 0])


def test_the_planted_dimensions_are_kept_and_hardly_any_other():
    wrong = 0
    for seed in range(10):
        kept = judged(*simulated(PLANTED, 400, seed=seed)).kept.numpy()
        assert kept[PLANTED > 0].all()
        wrong += kept[PLANTED == 0].any()
    assert wrong <= 3  # of ten at a level of 5 %


def test_of_independent_codes_but_the_best_dimension_is_kept():
    more = 0
    for seed in range(10):
        candidate = judged(*simulated(np.zeros(12), 400, seed=seed))
        assert candidate.kept.any()
        more += int(candidate.correlation.max() > candidate.threshold)
        if candidate.correlation.max() <= candidate.threshold:
            assert candidate.kept.tolist() == [j == candidate.correlation.argmax() for j in range(12)]
        assert candidate.information < 0.05
    assert more <= 3


def test_what_is_noted_of_the_held_out_cells():
    codes, mask = simulated(PLANTED, 500, n_modalities=3)
    candidate = judged(codes, mask)
    expected = np.mean(
        [[np.corrcoef(codes[m][:, j], codes[n][:, j])[0, 1] for j in range(12)] for m, n in combinations(codes, 2)],
        axis=0,
    )
    np.testing.assert_allclose(candidate.correlation, expected.clip(0, 1), atol=1e-5)
    assert torch.equal(candidate.kept, candidate.correlation > candidate.threshold)
    torch.testing.assert_close(candidate.kept_correlation, candidate.correlation[[1, 5, 7]])
    # the largest of twelve, mean over three pairs: its standard error is 1 / sqrt(3 n)
    assert 1.5 / np.sqrt(1500) < candidate.threshold < 5 / np.sqrt(1500)


def test_the_number_of_dimensions_may_be_given():
    data = simulated(PLANTED, 400)
    for n_kept, dimensions in ((1, [1]), (2, [1, 7]), (3, [1, 5, 7])):
        assert judged(*data, n_kept=n_kept).kept.nonzero().flatten().tolist() == dimensions
    assert judged(*data, n_kept=50).kept.all()


def test_information_rises_with_the_correlation_up_to_what_there_is():
    found = [judged(*simulated([rho] * 3, 800)) for rho in (0.1, 0.3, 0.5, 0.7, 0.9)]
    values = [candidate.information.item() for candidate in found]
    assert values == sorted(values)
    for rho, candidate in list(zip((0.1, 0.3, 0.5, 0.7), found, strict=False)):
        truth = -1.5 * np.log1p(-(rho**2))
        assert candidate.information.item() == pytest.approx(truth, abs=4 * candidate.information_error.item())
        assert 0 < candidate.information_error < 0.05


@pytest.mark.parametrize("n", [20, 100, 2_000])
def test_information_ends_at_the_logarithm_of_the_cells(n):
    candidate = judged(*simulated([0.999] * 10, n))
    limit = np.log(min(n, MAX_PAIRS))
    assert 0.9 * limit < candidate.information <= limit + 1e-5


def test_scores_that_are_too_sure_are_mended_by_a_temperature():
    codes, mask = simulated([0.6] * 4, 400)
    heavy = {m: z * (1 + 5 * (torch.arange(400) % 10 == 0))[:, None] for m, z in codes.items()}
    candidate = judged(heavy, mask)
    a, b = (z - z.mean(dim=0) for z in heavy.values())
    assert nce_bound(canonical_log_ratio(a, b, candidate.correlation)) < -1
    assert candidate.information > 0.2


@pytest.mark.parametrize("n_modalities", [2, 3])
def test_what_batches_have_in_common_is_no_information(n_modalities):
    codes, mask = simulated(np.zeros(4), 600, n_modalities)
    groups = torch.arange(600) % 3
    shifted = {m: z + 3 * groups[:, None] * torch.tensor([1.0, -1.0, 0.0, 0.0]) for m, z in codes.items()}
    pooled, within = judged(shifted, mask), judged(shifted, mask, groups)
    assert pooled.information > 0.6
    assert pooled.kept[:2].all()
    assert within.information < 0.05
    assert within.kept.sum() == 1
    # and what is shared within batches is found all the same
    codes, mask = simulated(PLANTED, 600, n_modalities)
    truth = judged(codes, mask, groups)
    shifted = {m: z + 3 * groups[:, None] for m, z in codes.items()}
    torch.testing.assert_close(judged(shifted, mask, groups).correlation, truth.correlation, atol=1e-4, rtol=1e-3)
    assert truth.kept[[1, 5, 7]].all()


def test_cells_without_a_pair_do_not_take_part():
    codes, mask = simulated(PLANTED, 300)
    expected = judged({m: z[:200] for m, z in codes.items()}, {m: x[:200] for m, x in mask.items()})
    codes["b"][200:], mask["b"][200:] = 1e6, False
    found = judged(codes, mask)
    for name in ("correlation", "kept", "threshold", "information", "information_error"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_pairs_change_nothing(n):
    candidate = judged(*simulated(PLANTED, n))
    assert not candidate.kept.any()
    assert candidate.information == 0


def test_constant_codes_have_no_correlation():
    candidate = judged({m: torch.full((50, 3), 0.1) for m in "ab"}, simulated(PLANTED, 50)[1])
    assert (candidate.correlation == 0).all()
    assert candidate.information == pytest.approx(0, abs=1e-5)
    assert candidate.information_error.isfinite()


def test_judging_is_repeatable_and_leaves_the_random_state_alone():
    data = simulated(PLANTED, 1_000)
    before = torch.get_rng_state()
    first = judged(*data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again = judged(*data)
    assert again.information == first.information
    assert again.threshold == first.threshold


# --- the joint code -------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [s for k in (1, 2, 3) for s in combinations("abc", k)])
def test_the_joint_code_is_the_mean_of_the_factor_given_the_codes(present):
    rho = np.array([0.9, 0.5, 0.05])
    codes, mask = simulated(rho, 6, 3)
    candidate = CanonicalCandidate(dict.fromkeys("abc", 2), 5, linear=True, network=False)
    candidate.kept[[0, 2, 3]] = True
    candidate.correlation[[0, 2, 3]] = torch.as_tensor(rho, dtype=torch.float32)
    mask = {m: x & (m in present) for m, x in mask.items()}
    joint = candidate.joint({m: z * (m in present) for m, z in codes.items()}, mask)
    for j, r in enumerate(rho):
        covariance = (1 - r) * np.eye(len(present)) + r  # of the codes; with the factor they covary by sqrt(r)
        weights = np.linalg.solve(covariance, np.full(len(present), np.sqrt(r)))
        expected = sum(w * codes[m][:, j].numpy() for w, m in zip(weights, present, strict=True))
        np.testing.assert_allclose(joint[:, j], expected, rtol=1e-4, atol=1e-5)


def test_the_joint_code_takes_every_cell_by_itself():
    codes, mask = simulated([0.7, 0.3], 8, 3)
    mask["b"][::2], mask["c"][::3] = False, False
    codes = {m: z * mask[m][:, None] for m, z in codes.items()}
    candidate = judged(*simulated([0.7, 0.3], 300, 3), n_kept=2)
    whole = candidate.joint(codes, mask)
    for i in range(8):
        here = [m for m in codes if mask[m][i]]
        alone = candidate.joint({m: codes[m][[i]] for m in here}, {m: mask[m][[i]] for m in here})
        torch.testing.assert_close(whole[[i]], alone)


# --- specific codes -------------------------------------------------------------------------------


def code(p=6, k=3, n_condition=2, scale=2.0):
    """A code whose axes are orthogonal with variances 4, 1, 0.25, ..."""
    axes = torch.linalg.qr(torch.randn(p, p)).Q[:, :k] / torch.tensor([2.0, 1.0, 0.5])[:k]
    return ResidualCode(axes, scale, n_condition, n_hidden=8, n_layers=2)


def test_a_specific_code_begins_linear_and_comes_back():
    network, c = code(), torch.randn(40, 2)
    r = torch.randn(40, 3) @ torch.linalg.pinv(network.axes)
    torch.testing.assert_close(network(r, c), r @ network.axes)
    torch.testing.assert_close(network.restore(network(r, c), c), r)
    # of other residuals, what lies along the axes
    r = torch.randn(40, 6)
    along = network.axes.double().numpy()
    expected = r.numpy() @ along @ np.linalg.pinv(along)
    np.testing.assert_allclose(network.restore(network(r, c), c).detach(), expected, atol=1e-5)


def test_the_formula_of_a_specific_code():
    network, r, c = code(), torch.randn(40, 6), torch.randn(40, 2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    z = network(r, c)
    torch.testing.assert_close(z, r @ network.axes + network.encoder(torch.cat([r / 2, c], dim=1)))
    back = z @ network.back + 2 * network.decoder(torch.cat([z, c], dim=1))
    torch.testing.assert_close(network.restore(z, c), back)


def test_standardizing_a_code_changes_no_restored_residual():
    network, r, c = code(), 5 + torch.randn(40, 6), torch.randn(40, 2)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        z = network(r, c)
        before = network.restore(z, c)
        for _ in range(2):  # once more changes nothing
            network.standardize(network(r, c))
            found = network(r, c)
            torch.testing.assert_close(found, (z - z.mean(dim=0)) / z.std(dim=0, correction=0), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(network.restore(found, c), before, rtol=1e-4, atol=1e-4)


def test_standardizing_by_no_spread_or_no_cells():
    network = code()
    for z in (torch.zeros(0, 3), torch.randn(1, 3)):
        network.standardize(z)
        assert (network.center == 0).all()
        assert (network.spread == 1).all()
    network.standardize(torch.full((5, 3), 7.0))
    assert (network.center == 7).all()
    assert (network.spread == 1).all()


# --- axes of the residual -------------------------------------------------------------------------


def rotated(values, p, seed=1):
    """Columns turned into p features."""
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((p, p)))[0][: values.shape[1]]
    return values @ axes


@pytest.mark.parametrize("spread", [np.array([10, 5, 2, 1, 0.5, 0.2]), np.geomspace(100, 1, 9)])
def test_all_directions_of_a_residual_that_tell_nothing_of_the_condition_are_kept(spread):
    rng = np.random.default_rng(0)
    private, c = rng.standard_normal((1_500, len(spread))), rng.standard_normal((1_500, 3))
    residual = rotated(private * np.sqrt(spread), 20)
    axes = residual_axes(residual, c, mean_variance=2.0)
    assert axes.shape == (20, len(spread))
    # these are all of the private latents
    assert LinearRegression().fit(residual @ axes, private).score(residual @ axes, private) > 0.9999


def test_weak_directions_that_are_functions_of_the_condition_are_left_out():
    rng = np.random.default_rng(0)
    private, c = rng.standard_normal((1_500, 3)), rng.standard_normal((1_500, 4))
    errors = 0.15 * np.concatenate([np.sin(2 * c), c**2 - 1], axis=1)  # of a regression on c
    residual = rotated(np.concatenate([private, errors], axis=1), 20)
    axes = residual_axes(residual, c, mean_variance=1.0)
    assert axes.shape == (20, 3)
    assert LinearRegression().fit(residual @ axes, private).score(residual @ axes, private) > 0.98
    # the same directions are kept where they are no such functions
    other = rng.standard_normal((1_500, 4))
    assert residual_axes(residual, other, mean_variance=1.0).shape[1] == 11


def test_axes_whiten():
    residual = rotated(np.random.default_rng(0).standard_normal((500, 4)) * [3, 2, 1, 0.5], 7) + 4
    axes = residual_axes(residual, np.zeros((500, 1)), 1.0, n_specific=4)
    np.testing.assert_allclose(np.cov((residual @ axes).T, bias=True), np.eye(4), atol=1e-9)


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (5, 5), (50, 7)])
def test_the_number_of_axes_may_be_given(asked, given):
    rng = np.random.default_rng(0)
    residual, c = rng.standard_normal((300, 7)), rng.standard_normal((300, 2))
    assert residual_axes(residual, c, 1.0, n_specific=asked).shape == (7, given)


def test_axes_of_rounding_errors_are_not_blown_up():
    residual = 1e-12 * np.random.default_rng(0).standard_normal((200, 5))
    for n_specific in (None, 3):
        axes = residual_axes(residual, np.zeros((200, 2)), 1.0, n_specific)
        assert axes.shape == (5, n_specific or 1)
        assert (axes == 0).all()
    assert np.isfinite(residual_axes(np.zeros((200, 5)), np.zeros((200, 2)), 0.0)).all()


def test_there_are_at_most_fifty_axes():
    rng = np.random.default_rng(0)
    residual, c = rng.standard_normal((600, 80)), rng.standard_normal((600, 2))
    assert residual_axes(residual, c, 1.0).shape == (80, MAX_SPECIFIC)


def test_axes_of_very_few_cells():
    rng = np.random.default_rng(0)
    for n in (2, 5, 50):
        axes = residual_axes(rng.standard_normal((n, 8)), rng.standard_normal((n, 2)), 1.0)
        assert 1 <= axes.shape[1] <= 8
        assert np.isfinite(axes).all()


def test_held_out_r2_sees_what_is_not_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((3_000, 2)) * [1, 1000]
    c = np.stack([z[:, 0] ** 2, np.sin(z[:, 1] / 500)], axis=1)
    assert held_out_r2(z, c) > 0.9
    assert held_out_r2(z, rng.standard_normal((3_000, 2))) < 0.02
    assert held_out_r2(z, c + rng.standard_normal(c.shape) * c.std(axis=0)) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_more_held_out_pairs_make_the_bound_surer_and_no_larger(n_groups):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4_000, 2, generator=generator)
    b = 0.9 * a + 0.19**0.5 * torch.randn(4_000, 2, generator=generator)
    groups = None if n_groups == 1 else torch.arange(4_000) % n_groups
    found = {}
    for n in (300, 800, 2_000, 4_000):
        part = None if groups is None else groups[:n]
        value, terms = held_out_information(a[:n], b[:n], part, torch.ones(2, dtype=torch.bool))
        assert float(value) == pytest.approx(float(terms.mean()))
        found[n] = float(value), float(terms.std()) / len(terms) ** 0.5, len(terms)
    assert [length for _, _, length in found.values()] == [300, 800, 1_600, 3_200]
    assert found[4_000][1] == pytest.approx(found[800][1] / 2, rel=0.1)
    information = -np.log(0.19)  # of two dimensions that correlate at 0.9
    assert abs(found[4_000][0] - found[800][0]) < 3 * found[800][1]
    assert information - 0.2 < found[4_000][0] < information + 3 * found[4_000][1]
