"""What `unbraid.metrics.frechet_distance` and `unbraid.metrics.diff_fd` promise."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.linalg import sqrtm
from sklearn.covariance import LedoitWolf

from unbraid.metrics import _frechet
from unbraid.metrics._diff_fd import diff_fd
from unbraid.metrics._frechet import frechet_distance

A = [
    [0.022, 0.509],
    [0.091, -0.354],
    [0.028, 1.052],
    [-0.183, -0.762],
    [-0.97, -0.222],
    [-0.75, 1.881],
    [-1.179, -1.082],
    [-0.306, 0.65],
    [-0.268, -0.958],
    [-0.807, -0.351],
    [0.973, -0.978],
    [-0.091, -0.613],
]
B = [
    [1.325, 1.397],
    [-0.465, 3.387],
    [1.19, 0.491],
    [0.106, 0.74],
    [1.032, 1.595],
    [1.006, 1.484],
    [-0.61, 0.248],
    [-0.007, 1.165],
    [1.458, -0.466],
    [0.832, 1.725],
]
QUICK = {"n_permutations": 0, "n_bootstrap": 0}


def with_moments(mean, cov, n=50, seed=0):
    """A sample that has exactly this mean and this covariance."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return mean + x @ np.linalg.cholesky(cov).T


REFERENCE = with_moments([-0.862, -2.033, 1.41], [[3.946, 0.501, 0.368], [0.501, 2.442, 0.747], [0.368, 0.747, 0.903]])
TEST = with_moments([0.186, -1.523, 2.343], [[7.545, -0.521, 3.655], [-0.521, 2.947, -1.726], [3.655, -1.726, 3.379]])
COUNTERFACTUAL = with_moments(
    [-0.594, -1.464, 0.553], [[1.315, -1.162, -1.139], [-1.162, 3.255, 0.864], [-1.139, 0.864, 5.262]]
)


# ---- the distance


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (REFERENCE, TEST, 5.525751955479474),
        (REFERENCE, COUNTERFACTUAL, 4.922900617645938),
        (TEST, COUNTERFACTUAL, 11.102040941804123),
        (A, B, 2.4556468601144106),
    ],
)
def test_distance_between_gaussians(x, y, expected):
    result = frechet_distance(x, y, **QUICK)
    assert result.distance == pytest.approx(expected, rel=1e-6)
    assert (result.n_x, result.n_y, result.n_dropped, result.n_features) == (len(x), len(y), 0, np.shape(x)[1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), d=st.integers(1, 6))
def test_distance_is_that_of_the_textbook_and_symmetric(seed, d):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, d)) @ rng.normal(size=(d, d)), 1 + rng.normal(size=(25, d))
    s_x, s_y = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s_x + s_y - 2 * sqrtm(s_x @ s_y).real)
    assert frechet_distance(x, y, **QUICK).distance == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(y, x, **QUICK).distance == pytest.approx(expected, abs=1e-6)


def test_constant_features_and_few_rows_do_not_crash(rng):
    x, y = rng.normal(size=(20, 5)), rng.normal(size=(20, 5))
    x[:, 0], y[:, 0] = 3, 5
    x[:, 1] = 0
    result = frechet_distance(x, y, n_permutations=5, n_bootstrap=5)
    rest = frechet_distance(x[:, 2:], y[:, 2:], **QUICK)
    assert result.distance == pytest.approx(rest.distance + 4 + y[:, 1].var(ddof=1) + y[:, 1].mean() ** 2)
    assert frechet_distance(np.ones((3, 2)), np.zeros((4, 2)), n_permutations=5).distance == pytest.approx(2)
    assert np.isfinite(frechet_distance(rng.normal(size=(4, 30)), rng.normal(size=(4, 30))).distance)


def test_the_distance_to_itself_is_zero(rng):
    x = rng.normal(size=(40, 6))
    result = frechet_distance(x, x)
    assert result.distance == pytest.approx(0, abs=1e-6)
    assert result.interval[0] == 0
    assert result.p_value > 0.5


def test_shrinkage(rng):
    x, y = rng.normal(size=(15, 10)), rng.normal(size=(15, 10))
    s_x, s_y = (LedoitWolf().fit(each).covariance_ for each in (x, y))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s_x + s_y - 2 * sqrtm(s_x @ s_y).real)
    shrunk = frechet_distance(x, y, shrinkage="ledoit_wolf", **QUICK)
    assert shrunk.distance == pytest.approx(expected)
    plain = frechet_distance(x, y, **QUICK).distance
    assert shrunk.distance < plain > frechet_distance(x, y, shrinkage="oas", **QUICK).distance


# ---- bias, chance, interval


def test_samples_of_one_population_are_at_chance():
    p = []
    for repeat in range(20):
        rng = np.random.default_rng(repeat)
        result = frechet_distance(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)), n_permutations=19, n_bootstrap=0)
        p.append(result.p_value)
        assert result.chance > 0.1
    assert abs(np.mean(p) - 0.525) < 3.5 * np.sqrt(1 / 12 / 20)
    shifted = frechet_distance(rng.normal(size=(40, 4)), 1 + rng.normal(size=(40, 4)), n_bootstrap=0)
    assert shifted.p_value == 1 / 101
    assert shifted.distance > 3 * shifted.chance


def test_interval_and_extrapolation_are_of_the_populations():
    truth = 0.3**2 + 6 * 0.3**2  # N(0, 1) and N(.3, 1.3^2) in six dimensions, shifted along one
    covered, plain, extrapolated = 0, [], []
    for repeat in range(25):
        rng = np.random.default_rng(repeat)
        x, y = rng.normal(size=(120, 6)), 1.3 * rng.normal(size=(120, 6))
        y[:, 0] += 0.3
        result = frechet_distance(x, y, extrapolate=True, n_permutations=0, n_bootstrap=60)
        low, high = result.interval
        covered += low <= truth <= high
        plain.append(result.distance)
        extrapolated.append(result.extrapolated)
    error = np.std(extrapolated) / 5
    assert covered >= 20
    assert abs(np.mean(extrapolated) - truth) < 3.5 * error
    assert np.mean(plain) - truth > 3.5 * error


def test_groups_are_what_is_drawn_and_permuted(rng):
    donor = np.repeat(np.arange(8), 25)
    x, y = (3 * rng.normal(size=(8, 2))[donor] + rng.normal(size=(200, 2)) for _ in range(2))
    naive = frechet_distance(x, y, n_bootstrap=100)
    grouped = frechet_distance(x, y, x_groups=donor, y_groups=donor, n_bootstrap=100)
    assert grouped.distance == naive.distance
    assert (naive.n_groups, grouped.n_groups) == (None, 16)
    assert naive.p_value < 0.05 < grouped.p_value
    assert np.diff(grouped.interval) > 2 * np.diff(naive.interval)


def test_energy_distance_is_that_of_a_loop(rng, monkeypatch):
    x, y = rng.normal(size=(50, 3)), rng.normal(size=(40, 3)) ** 2
    mean = lambda pairs: np.mean([np.linalg.norm(a - b) for a, b in pairs])
    between = mean([(a, b) for a in x for b in y])
    within = [mean([(each[i], each[j]) for i in range(len(each)) for j in range(i)]) for each in (x, y)]
    assert frechet_distance(x, y, **QUICK).energy_distance == pytest.approx(2 * between - sum(within))
    monkeypatch.setattr(_frechet, "ENERGY_OBS", 20)
    assert frechet_distance(x, y, **QUICK).energy_distance != pytest.approx(2 * between - sum(within))


def test_energy_distance_sees_what_gaussians_do_not(rng):
    x, y = rng.normal(size=(1000, 1)), rng.choice([-1.0, 1.0], size=(1000, 1))
    result = frechet_distance(x, y, **QUICK)
    assert result.distance < 0.02
    assert result.energy_distance > 0.1


# ---- rows


def test_missing_rows_are_left_out(rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(25, 3))
    expected = frechet_distance(x[5:], y[:20], x_groups=np.arange(25) // 2)
    x[:5], y[20:] = np.nan, np.nan
    result = frechet_distance(x, y, x_groups=np.where(np.arange(30) < 5, None, (np.arange(30) - 5) // 2))
    assert result.n_dropped == 10
    assert dataclasses.replace(result, n_dropped=0) == expected


def test_equal_n_takes_as_many_of_both(rng):
    result = frechet_distance(rng.normal(size=(90, 2)), rng.normal(size=(30, 2)), equal_n=True, **QUICK)
    assert (result.n_x, result.n_y, result.n_dropped) == (30, 30, 60)


def test_features_are_extracted(rng):
    images, others = rng.normal(size=(20, 4, 4)), rng.normal(size=(20, 4, 4))
    result = frechet_distance(images, others, feature_extractor=lambda rows: rows.mean(axis=1))
    assert result == frechet_distance(images.mean(axis=1), others.mean(axis=1))
    counts, frame = sparse.csr_matrix(images[:, 0]), pd.DataFrame(others[:, 0])
    assert frechet_distance(counts, frame) == frechet_distance(images[:, 0], others[:, 0])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), grouped=st.booleans())
def test_order_of_rows_does_not_matter(seed, grouped):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(40, 3))
    i, j = rng.permutation(30), rng.permutation(40)
    group = rng.integers(5, size=30)
    options = {"equal_n": True, "n_permutations": 5, "n_bootstrap": 5}
    here, there = ({"x_groups": g, **options} if grouped else options for g in (group, group[i]))
    assert frechet_distance(x, y, **here) == frechet_distance(x[i], y[j], **there)


def test_same_seed_same_result_and_global_rng_undisturbed(rng):
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(40, 3))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (frechet_distance(x, y, extrapolate=True, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


X20 = np.random.default_rng(0).normal(size=(20, 3))


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X20, X20[:, :2], {}, "x has 3 features, but y has 2"),
        (X20, np.where(X20 == X20[4, 1], np.nan, X20), {}, "y: 1 of 20 rows are NaN in some"),
        (np.where(X20 == X20[4, 1], np.inf, X20), X20, {}, "x: 1 of 20 rows are infinite"),
        (X20[:1], X20, {}, "x has 1 rows; a covariance needs at least two"),
        (X20, X20[:, 0], {}, "y: The embedding must have shape"),
        (X20, X20, {"x_groups": np.arange(7)}, "x_groups has 7 values"),
        (X20, X20, {"y_groups": [None] * 20}, "20 of 20 observations have no group"),
        (X20, X20[:7], {"extrapolate": True}, "False for samples of fewer than 12 rows, there are 7"),
        (X20, X20, {"shrinkage": "strong"}, "shrinkage must be one of"),
        (X20, X20, {"n_bootstrap": -1}, "`n_bootstrap`"),
        (X20, X20, {"n_permutations": -1}, "`n_permutations`"),
        (X20, X20, {"confidence": 0}, "confidence must be between"),
    ],
)
def test_errors_name_what_is_wrong(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y, **options)


def test_result_reads_as_a_sentence():
    result = dataclasses.replace(frechet_distance(A, B), interval=(1.2, 3.44), chance=0.25, p_value=0.01)
    text = "Fréchet distance 2.46 (populations: [1.2, 3.44]), chance 0.25 (p = 0.01, n = 12 and 10, 2 features)"
    assert str(result) == text
    assert "extrapolated 2.1)" in str(dataclasses.replace(result, extrapolated=2.1))
    bare = frechet_distance(A, B, **QUICK)
    assert np.isnan([bare.chance, bare.p_value, *bare.interval]).all()
    row = result.to_frame()
    assert row.shape == (1, len(result.to_series()))
    assert (row["low"][0], row["high"][0]) == (1.2, 3.44)


# ---- counterfactuals


def test_differences_of_distances():
    result = diff_fd(REFERENCE, TEST, COUNTERFACTUAL, n_bootstrap=10)
    assert result.fd_reference_test == pytest.approx(5.525751955479474)
    assert result.fd_counterfactual_reference == pytest.approx(4.922900617645938)
    assert result.fd_counterfactual_test == pytest.approx(11.102040941804123)
    assert result.diff_fd_c == pytest.approx(-5.576288986324628)
    assert result.diff_fd_s == pytest.approx(0.6028513378335463)
    assert (result.n_reference, result.n_test, result.n_counterfactual, result.n_dropped) == (50, 50, 50, 0)
    assert result.diff_fd_c_interval[0] < result.diff_fd_c < result.diff_fd_c_interval[1]


@pytest.mark.parametrize("carrier", ["shared", "specific"])
def test_what_carries_nothing_is_zero_and_what_carries_all_is_the_distance(carrier):
    zero = covers_zero = covers_all = 0
    for repeat in range(20):
        rng = np.random.default_rng(repeat)
        reference, test, counterfactual = (rng.normal(size=(n, 4)) for n in (60, 90, 120))
        test[:, 0] += 1.5
        if carrier == "shared":  # the test set's shared part makes all the difference
            counterfactual[:, 0] += 1.5
        result = diff_fd(reference, test, counterfactual, n_bootstrap=60, seed=repeat)
        carries, idle = ("c", "s") if carrier == "shared" else ("s", "c")
        low, high = getattr(result, f"diff_fd_{idle}_interval")
        covers_zero += low <= 0 <= high
        zero += getattr(result, f"diff_fd_{idle}") / 20
        low, high = getattr(result, f"diff_fd_{carries}_interval")
        covers_all += low <= 1.5**2 <= high
        assert (result.n_reference, result.n_test, result.n_counterfactual, result.n_dropped) == (60, 60, 60, 90)
    assert abs(zero) < 0.25
    assert covers_zero >= 16
    assert covers_all >= 16


def test_diff_fd_of_groups_and_features(rng):
    donor = np.repeat(np.arange(6), 10)
    samples = [shift + 2 * rng.normal(size=(6, 3))[donor] + rng.normal(size=(60, 3)) for shift in (0, 1, 1)]
    naive = diff_fd(*samples, n_bootstrap=60)
    of_groups = {f"{name}_groups": donor for name in ("reference", "test", "counterfactual")}
    grouped = diff_fd(*samples, n_bootstrap=60, **of_groups)
    assert grouped.diff_fd_c == naive.diff_fd_c
    assert np.diff(grouped.diff_fd_c_interval) > 1.5 * np.diff(naive.diff_fd_c_interval)
    doubled = diff_fd(*samples, feature_extractor=lambda rows: 2 * rows, n_bootstrap=0)
    assert doubled.diff_fd_s == pytest.approx(4 * naive.diff_fd_s)
    order = rng.permutation(60)
    assert diff_fd(samples[0][order], *samples[1:], n_bootstrap=60) == naive
    with pytest.raises(ValueError, match="reference has 3 features, but counterfactual has 2"):
        diff_fd(*samples[:2], samples[2][:, :2])


def test_diff_fd_reads_as_a_sentence():
    result = diff_fd(REFERENCE, TEST, COUNTERFACTUAL, n_bootstrap=0)
    result = dataclasses.replace(result, diff_fd_c_interval=(-7, -4), diff_fd_s_interval=(-1, 2))
    assert str(result) == (
        "Diff-FD-c -5.58 [-7, -4], Diff-FD-s 0.603 [-1, 2], chance 0, reference to test 5.53 (n = 50, 50 and 50; 3 features)"
    )
    assert result.to_frame()["diff_fd_s_high"][0] == 2
