"""What `unbraid.metrics.probe` promises."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from unbraid.metrics import ProbeResult, probe
from unbraid.metrics import _probe_design as internals

# ---- the score


def test_score_reaches_the_bayes_rate(rng, two_gaussians):
    x, y = two_gaussians(rng, 2000)
    result = probe(x, y)
    bayes = norm.cdf(1)
    assert abs(result.score - bayes) < 3 * np.sqrt(bayes * (1 - bayes) / 2000)
    assert result.interval[0] < result.score < result.interval[1]
    assert result.p_value == 1 / 101
    assert result.metric == "balanced_accuracy"
    assert (result.n_obs, result.n_dropped, result.n_features, result.n_classes) == (2000, 0, 4, 2)


@pytest.mark.parametrize("kind", ["linear", "boosted"])
def test_r2_is_the_share_of_variance_that_is_signal(rng, kind):
    x = rng.normal(size=(2000, 3))
    y = 1e3 + 50 * (x[:, 0] + x[:, 1] + rng.normal(size=2000))
    result = probe(x, y, kind=kind, n_permutations=4)
    tolerance = 3 * 2 * np.sqrt(2 / 3) * (1 / 3) / np.sqrt(2000) + (0.04 if kind == "boosted" else 0)
    assert abs(result.score - 2 / 3) < tolerance
    assert result.metric == "r2"
    assert result.p_value == 0.2
    assert result.n_classes is None
    assert result.per_class is None


def test_predicting_the_training_mean_scores_zero():
    sample = internals.Sample(np.zeros((10, 1)), np.arange(10.0), None, None)
    fold = np.repeat([0, 1], 5)
    training_mean = np.repeat([7.0, 2.0], 5)
    assert internals.gains_of(sample, fold, training_mean).score() == 0


@pytest.mark.parametrize("kind", ["linear", "boosted"])
def test_noise_scores_chance(rng, kind):
    n_permutations = 39 if kind == "linear" else 5
    x = rng.normal(size=(300, 3))
    result = probe(x, np.repeat(["a", "b", "c"], 100), kind=kind, n_permutations=n_permutations)
    assert abs(result.chance - 1 / 3) < 0.04
    assert abs(result.score - 1 / 3) < 0.1
    assert result.p_value > 1.5 / (1 + n_permutations)
    result = probe(x, rng.normal(size=300), kind=kind, n_permutations=n_permutations)
    assert -0.1 < result.chance < 0.02
    assert result.p_value > 1.5 / (1 + n_permutations)


@pytest.mark.parametrize("kind", ["linear", "boosted"])
def test_always_guessing_the_majority_scores_chance(rng, kind):
    y = (np.arange(1000) < 950).astype(int)
    result = probe(rng.normal(size=(1000, 3)), y, kind=kind, n_permutations=4)
    assert abs(result.score - 0.5) < 0.12
    assert abs(result.chance - 0.5) < 0.07
    assert result.per_class[1] < 0.9  # a majority guess would have 1.0 here, and 0.0 of the other


def test_per_class_is_recall_and_averages_to_the_score(rng):
    y = np.repeat(["a", "b", "c"], 60)
    result = probe(rng.normal(size=(180, 2)) + 6 * (y == "a")[:, None], y, n_permutations=0)
    assert list(result.per_class) == ["a", "b", "c"]
    assert result.per_class["a"] > 0.95 > result.per_class["b"]
    assert np.mean(list(result.per_class.values())) == pytest.approx(result.score)


def test_xor_is_there_but_not_linearly(rng):
    x = rng.normal(size=(1000, 4))
    y = (x[:, 0] > 0) ^ (x[:, 1] > 0)
    linear, boosted = probe(x, y), probe(x, y, kind="boosted", n_permutations=4)
    assert abs(linear.score - 0.5) < 0.06
    assert boosted.score > 0.9
    assert boosted.p_value == 0.2
    assert list(boosted.per_class) == [False, True]


# ---- interval, chance and p-value


def test_interval_covers_the_true_score(two_gaussians):
    truth = norm.cdf(0.75) - 0.003  # what a fit on 200 observations loses
    covered = 0
    for repeat in range(30):
        x, y = two_gaussians(np.random.default_rng(repeat), 300, distance=1.5, d=2)
        low, high = probe(x, y, n_permutations=0, n_splits=3).interval
        covered += low <= truth <= high
    assert covered >= 25  # 28.5 expected of 30


def test_interval_counts_groups_not_observations(rng):
    """A hundred copies of ten observations are ten observations."""
    groups = np.repeat(np.arange(30), 50)
    x = rng.normal(size=(30, 1))[groups]
    y = x[:, 0] + rng.normal(size=30)[groups]
    grouped, naive = (probe(x, y, groups=g, n_permutations=0).interval for g in (groups, None))
    assert grouped[1] - grouped[0] > 2 * (naive[1] - naive[0])


def test_interval_is_the_bootstrap_of_observations(rng):
    """Rows that share a cell of the tables must be drawn as the observations they stand for."""
    sample = internals.Sample(np.zeros((200, 1)), rng.integers(3, size=200), ["a", "b", "c"], None)
    gains = internals.gains_of(sample, np.zeros(200, int), rng.integers(3, size=200))
    one_each = internals.bootstrap_interval(gains, np.arange(200), 0.9, np.random.default_rng(1))
    assert internals.bootstrap_interval(gains, None, 0.9, np.random.default_rng(1)) == pytest.approx(one_each)


def test_confidence_widens_the_intervals(rng, two_gaussians):
    x, y = two_gaussians(rng, 200)
    narrow, wide = probe(x, y, confidence=0.5), probe(x, y, confidence=0.99)
    for name in ("interval", "chance_interval"):
        assert np.diff(getattr(narrow, name)) < np.diff(getattr(wide, name))


@pytest.mark.parametrize("numeric", [False, True])
def test_p_value_is_uniform_without_information(rng, numeric):
    def p_value():
        y = rng.normal(size=60) if numeric else rng.integers(2, size=60)
        return probe(rng.normal(size=(60, 3)), y, n_permutations=19, n_splits=3).p_value

    p = [p_value() for _ in range(25)]
    assert abs(np.mean(p) - 0.525) < 3.5 * np.sqrt(1 / 12 / 25)
    assert np.mean(np.array(p) <= 0.1) < 0.3


@pytest.mark.parametrize(("n", "d"), [(300, 4), (60, 90)])
def test_the_quick_null_of_classes_is_that_of_logistic_regression(rng, n, d):
    sample = internals.Sample(rng.normal(size=(n, d)), rng.integers(2, size=n), [0, 1], None)
    fold = internals.fold_of(sample, 5, seed=0)
    orders = list(itertools.islice(internals.permutations(sample.y, None, rng), 30))
    quick = np.array(list(internals._discriminant_scores(sample, fold, iter(orders))))
    moved = (dataclasses.replace(sample, y=sample.y[order]) for order in orders)
    with threadpool_limits(1):
        slow = np.array(
            [
                internals.gains_of(m, fold, internals.out_of_fold(m.x, m.y, fold[order], internals._logistic)).score()
                for m, order in zip(moved, orders, strict=True)
            ]
        )
    assert abs(quick.mean() - slow.mean()) < 3 * slow.std() / np.sqrt(15)
    assert 0.6 < quick.std() / slow.std() < 1.6
    assert np.corrcoef(quick, slow)[0, 1] > 0.5


def test_a_signal_in_more_features_than_observations_is_significant(rng, two_gaussians):
    x, y = two_gaussians(rng, 100, distance=4, d=200)
    assert probe(x, y).p_value == 1 / 101


def test_without_permutations_chance_is_theoretical(rng, two_gaussians):
    x, y = two_gaussians(rng, 100)
    classes, number = probe(x, y, n_permutations=0), probe(x, x[:, 0], n_permutations=0)
    assert (classes.chance, number.chance) == (0.5, 0.0)
    assert np.isnan([classes.p_value, *classes.chance_interval]).all()
    assert "p =" not in str(classes)


def test_boosting_on_many_rows_is_permuted_on_a_subset(rng, monkeypatch, two_gaussians):
    monkeypatch.setattr(internals, "BOOSTED_NULL_OBS", 150)
    x, y = two_gaussians(rng, 400, distance=3)
    result = probe(x, y, groups=np.arange(400) // 4, kind="boosted", n_permutations=4)
    assert result.n_obs == 400
    assert result.p_value == 0.2


# ---- groups


def test_groups_block_leakage(rng):
    """Each donor has its own place and a random label: seen donors are recognised, new ones are not."""
    donor = np.repeat(np.arange(40), 15)
    x = 5 * rng.normal(size=(40, 60))[donor] + rng.normal(size=(600, 60))
    y = rng.permutation(np.arange(40) % 2)[donor]
    assert probe(x, y, n_permutations=9).score > 0.95
    grouped = probe(x, y, groups=donor)
    assert abs(grouped.score - 0.5) < 0.25
    assert grouped.p_value > 0.05
    assert grouped.n_groups == 40
    age = rng.normal(size=40)[donor]
    assert probe(x, age, n_permutations=9).score > 0.9
    assert probe(x, age, groups=donor).p_value > 0.05


def test_no_group_is_on_both_sides(rng):
    groups = rng.integers(30, size=300)
    for y, classes in (
        (rng.integers(2, size=300), [0, 1]),
        ((np.arange(30) % 2)[groups], [0, 1]),
        (rng.normal(size=300), None),
    ):
        sample = internals.Sample(rng.normal(size=(300, 2)), y, classes, groups)
        fold = internals.fold_of(sample, 5, seed=0)
        for order in [np.arange(300), *itertools.islice(internals.permutations(y, groups, rng), 3)]:
            moved = fold if classes is None else fold[order]
            assert all(len(set(moved[groups == g])) == 1 for g in range(30))
        assert set(fold) == set(range(5))


def test_a_target_that_is_constant_within_groups_moves_with_whole_groups(rng):
    groups = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    y = np.array([0, 0, 0, 1, 1, 1])[groups]
    for order in itertools.islice(internals.permutations(y, groups, rng), 20):
        by_group = [set(y[order][groups == g]) for g in range(6)]
        assert all(len(values) == 1 for values in by_group)
        assert sum(values == {1} for values in by_group) == 3


def test_a_target_that_varies_within_groups_stays_in_its_group_or_swaps_whole(rng):
    groups = rng.permutation(np.repeat(np.arange(5), [4, 6, 6, 6, 9]))
    y = rng.normal(size=31)
    givers = set()
    for order in itertools.islice(internals.permutations(y, groups, rng), 30):
        assert sorted(order) == list(range(31))
        for g in range(5):
            (giver,) = set(groups[order][groups == g])
            assert giver == g if g in (0, 4) else giver in (1, 2, 3)
            givers.add((g, giver))
    assert len(givers) == 2 + 9


def test_composition_of_groups_is_not_information(rng):
    """Donors differ in place and in composition, but within a donor there is nothing to read."""
    donor = np.repeat(np.arange(12), np.arange(20, 44, 2))  # of different sizes, so that they do not swap
    composition = np.linspace(0.1, 0.9, 12)[donor]
    y = rng.random(len(donor)) < composition
    x = 6 * composition[:, None] + rng.normal(size=(len(donor), 2))
    assert probe(x, y).p_value == 1 / 101
    grouped = probe(x, y, groups=donor)
    assert grouped.chance > 0.6
    assert abs(grouped.score - grouped.chance) < 0.06
    assert grouped.p_value > 0.02


def test_targets_that_cannot_be_permuted_are_warned_of(rng):
    groups = np.repeat(np.arange(6), [10, 20, 30, 40, 50, 60])
    y = groups % 2
    y[0] = 1
    with pytest.warns(UserWarning, match="cannot be permuted"):
        probe(rng.normal(size=(210, 2)), y, groups=groups, n_splits=3)


# ---- invariances


@pytest.mark.parametrize("kind", ["linear", "boosted"])
def test_same_seed_same_result_and_global_rng_undisturbed(rng, kind, two_gaussians):
    x, y = two_gaussians(rng, 120, distance=1)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (probe(x, y, kind=kind, n_permutations=2, n_splits=3, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("numeric", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_order_of_observations_does_not_matter(rng, numeric, grouped):
    x = rng.integers(3, size=(150, 12)).astype(float)  # with ties
    y = x[:, 0] + rng.normal(size=150) if numeric else np.array(["a", "b"])[rng.integers(2, size=150)]
    groups = rng.integers(20, size=150) if grouped else None
    order = rng.permutation(150)
    shuffled = probe(x[order], y[order], groups=groups[order] if grouped else None, n_permutations=9, max_obs=140)
    assert shuffled == probe(x, y, groups=groups, n_permutations=9, max_obs=140)


def test_input_is_not_changed(rng, two_gaussians):
    x, y = two_gaussians(rng, 60)
    x_before, y_before = x.copy(), y.copy()
    probe(x, y, n_permutations=3)
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(y, y_before)


@settings(max_examples=8, deadline=None)
@given(
    shift=arrays(float, 4, elements=st.floats(-100, 100)),
    scale=arrays(float, 4, elements=st.floats(0.01, 100)),
    numeric=st.booleans(),
)
def test_location_and_scale_of_features_do_not_matter(shift, scale, numeric, two_gaussians):
    x, y = two_gaussians(np.random.default_rng(0), 80)
    if numeric:
        y = x[:, 0] + np.sin(np.arange(80))
    here, there = (probe(z, y, n_permutations=5) for z in (x, shift + scale * x))
    assert there.score == pytest.approx(here.score, abs=1e-6 if numeric else 2 / 80)
    assert there.chance == pytest.approx(here.chance, abs=1e-6 if numeric else 2 / 80)


# ---- the result


def test_result_reads_as_a_sentence():
    result = ProbeResult(
        score=0.834,
        metric="balanced_accuracy",
        interval=(0.81, 0.85),
        chance=0.33,
        chance_interval=(0.3, 0.36),
        p_value=0.01,
        n_obs=1200,
        n_dropped=0,
        n_groups=None,
        n_features=8,
        n_classes=3,
        per_class={"a": 1.0, "b": 0.5, "c": 1.0},
        kind="linear",
        confidence=0.95,
        n_permutations=99,
    )
    assert repr(result) == "balanced accuracy 0.83 [0.81, 0.85], chance 0.33 (p = 0.01, n = 1,200, 3 classes)"
    number = dataclasses.replace(result, metric="r2", n_classes=None, per_class=None, n_groups=24, chance=-0.001)
    assert str(number) == "R2 0.83 [0.81, 0.85], chance 0.00 (p = 0.01, n = 1,200 in 24 groups)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.score = 1.0


def test_result_is_one_flat_row(rng, two_gaussians):
    x, y = two_gaussians(rng, 60)
    result = probe(x, np.array(["B", "T"])[y], n_permutations=3)
    row = result.to_series()
    assert (row["low"], row["high"]) == result.interval
    assert (row["chance_low"], row["chance_high"]) == result.chance_interval
    assert row["recall:T"] == result.per_class["T"]
    frame = result.to_frame()
    assert frame.shape == (1, len(row))
    assert frame["score"].dtype == float
    assert frame["n_obs"].dtype.kind == "i"
