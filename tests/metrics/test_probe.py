"""What `unbraid.metrics.probe` promises."""

import dataclasses
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mudata import MuData
from scipy import sparse
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from unbraid.metrics import ProbeResult, probe
from unbraid.metrics import _probe_design as internals


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def two_gaussians(rng, n, distance=2.0, d=4):
    """The best possible accuracy is Phi(distance / 2)."""
    y = rng.integers(2, size=n)
    x = rng.normal(size=(n, d))
    x[:, 0] += distance * y
    return x, y


@pytest.fixture
def annotated(rng):
    """RNA of cells 0-99, protein of cells 20-119; the label is in both, donor in the MuData."""
    label = np.array(["B", "T"])[np.arange(120) % 2]
    z = rng.normal(size=(120, 3)) + 3 * (label == "T")[:, None]
    names = [f"cell{i}" for i in range(120)]
    rna, prot = (
        AnnData(z[rows].astype(np.float32), obs=pd.DataFrame({"cell_type": label[rows]}, index=names[rows]))
        for rows in (slice(0, 100), slice(20, 120))
    )
    prot.obs["passage"] = np.where(prot.obs["cell_type"] == "T", 2, 1)
    rna.obsm["Z_s"], prot.obsm["Z_s"] = z[:100], z[20:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"rna": rna, "prot": prot})
    mdata.obs = pd.DataFrame({"donor": [f"d{i % 11}" for i in range(120)], "label": label}, index=names).loc[
        mdata.obs_names
    ]
    mdata.obsm["Z_c"] = z[[int(name[4:]) for name in mdata.obs_names]]
    return mdata


# ---- the score


def test_score_reaches_the_bayes_rate(rng):
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


def test_interval_covers_the_true_score():
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


def test_confidence_widens_the_intervals(rng):
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


def test_a_signal_in_more_features_than_observations_is_significant(rng):
    x, y = two_gaussians(rng, 100, distance=4, d=200)
    assert probe(x, y).p_value == 1 / 101


def test_without_permutations_chance_is_theoretical(rng):
    x, y = two_gaussians(rng, 100)
    classes, number = probe(x, y, n_permutations=0), probe(x, x[:, 0], n_permutations=0)
    assert (classes.chance, number.chance) == (0.5, 0.0)
    assert np.isnan([classes.p_value, *classes.chance_interval]).all()
    assert "p =" not in str(classes)


def test_boosting_on_many_rows_is_permuted_on_a_subset(rng, monkeypatch):
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


# ---- what is left out


def test_unlabelled_and_missing_rows_are_left_out_and_counted(rng):
    x, y = two_gaussians(rng, 200)
    labels = np.where(y == 1, "T", "B").astype(object)
    complete = probe(x[30:], labels[30:])
    labels[:10] = None
    labels[10:20] = np.nan
    x[15:30] = np.nan
    result = probe(x, labels)
    assert (result.n_obs, result.n_dropped) == (170, 30)
    assert dataclasses.replace(result, n_dropped=0) == complete
    number = np.where(np.arange(200) < 30, np.nan, rng.normal(size=200))
    assert probe(x, number).n_dropped == 30


def test_rare_classes_are_left_out_by_name(rng):
    x, y = two_gaussians(rng, 100)
    labels = np.array(["B", "T"])[y].astype(object)
    labels[:3] = "mast"
    with pytest.warns(UserWarning, match=r"n_splits = 5 observations are left out: mast \(3\)") as record:
        result = probe(x, labels)
    assert record[0].filename == __file__
    assert (result.n_obs, result.n_dropped, result.n_classes) == (97, 3, 2)
    assert probe(x, labels, n_splits=3).n_classes == 3
    labels[:40] = "mast"  # many, but of two donors
    with pytest.warns(UserWarning, match=r"5 groups are left out: mast \(2\)"):
        probe(x, labels, groups=np.arange(100) // 20 * 100 + np.where(np.arange(100) < 40, 0, np.arange(100) % 10))


def test_max_obs_limits_the_observations(rng):
    x, y = two_gaussians(rng, 500)
    result = probe(x, y, max_obs=120)
    assert (result.n_obs, result.n_dropped) == (120, 0)
    assert probe(x, y, max_obs=5000) == probe(x, y)


# ---- task


@pytest.mark.parametrize(
    ("target", "metric"),
    [
        (np.arange(120) % 2 == 0, "balanced_accuracy"),
        (np.arange(120) % 20, "balanced_accuracy"),
        (np.arange(120) % 21, "r2"),
        (np.arange(120) % 2.0, "r2"),
        (np.array(["a", "b"])[np.arange(120) % 2], "balanced_accuracy"),
        (["a", "b", None] * 40, "balanced_accuracy"),
        ([0.5, 1.5, None] * 40, "r2"),
        (pd.Series([1, 2, None] * 40, dtype="Int64"), "balanced_accuracy"),
        (pd.Series([True, False, None] * 40, dtype="boolean"), "balanced_accuracy"),
        (pd.Series([0.5, 2, None] * 40, dtype="Float64"), "r2"),
        (pd.Categorical([1.5, 2.5] * 60, categories=[1.5, 2.5, 3.5]), "balanced_accuracy"),
        (pd.Index(["a", "b"] * 60), "balanced_accuracy"),
    ],
)
def test_auto_tells_classes_from_numbers(rng, target, metric):
    assert probe(rng.normal(size=(120, 2)), target, n_splits=2, n_permutations=0).metric == metric


def test_task_overrules_auto(rng):
    x, y = rng.normal(size=(60, 2)), np.arange(60) % 3
    assert probe(x, y, task="regression", n_permutations=0).metric == "r2"
    assert probe(x, y.astype(float), task="classification", n_permutations=0).n_classes == 3


# ---- AnnData and MuData


def test_anndata_is_read_by_key(annotated):
    adata = annotated["rna"]
    expected = probe(adata.obsm["Z_s"], adata.obs["cell_type"].to_numpy())
    assert probe(adata, "cell_type", use_rep="Z_s") == expected
    assert probe(adata, adata.obs["cell_type"].to_numpy(), use_rep="Z_s") == expected
    in_x = probe(adata, "cell_type", use_rep="X")
    adata.X = sparse.csr_matrix(adata.X)
    assert probe(adata, "cell_type", use_rep="X") == in_x


def test_mudata_is_read_by_key(annotated):
    result = probe(annotated, "label", use_rep="Z_c", groups="donor", n_splits=3)
    assert (result.n_obs, result.n_dropped, result.n_groups) == (120, 0, 11)
    assert result.score > 0.9


def test_a_colon_reaches_into_a_modality(annotated):
    result = probe(annotated, "label", use_rep="rna:Z_s")
    assert (result.n_obs, result.n_dropped) == (100, 20)
    assert result.score > 0.9
    both = probe(annotated, "prot:cell_type", use_rep="rna:Z_s", groups="donor")
    assert (both.n_obs, both.n_dropped) == (80, 40)
    assert both.score > 0.9
    assert probe(annotated, "prot:passage", use_rep="rna:X").metric == "balanced_accuracy"  # integers remain such
    annotated["rna"].X = sparse.csr_matrix(annotated["rna"].X)
    assert probe(annotated, "label", use_rep="rna:X").n_obs == 100


def test_a_series_in_another_order_is_aligned(annotated, rng):
    adata = annotated["rna"]
    shuffled = adata.obs["cell_type"].iloc[rng.permutation(100)]
    assert probe(adata, shuffled, use_rep="Z_s") == probe(adata, "cell_type", use_rep="Z_s")
    frame = pd.DataFrame(adata.obsm["Z_s"], index=adata.obs_names)
    assert probe(frame, shuffled) == probe(adata, "cell_type", use_rep="Z_s")


@pytest.mark.parametrize(
    ("of", "target", "options", "message"),
    [
        ("rna", "cell_typ", {"use_rep": "Z_s"}, "'cell_typ' is not in data.obs. Did you mean 'cell_type'?"),
        (
            "rna",
            "cell_type",
            {"use_rep": "Z_p"},
            "'Z_p' is not in data.obsm. Did you mean 'Z_s'? There is: 'Z_s', 'X'.",
        ),
        ("rna", "cell_type", {"use_rep": "Z_s", "groups": "donor"}, "'donor' is not in data.obs."),
        (None, "cell_type", {"use_rep": "Z_c"}, "data['rna'].obs, not in data.obs: write 'rna:cell_type'"),
        (None, "label", {"use_rep": "Z_s"}, "data['rna'].obsm, not in data.obsm: write 'rna:Z_s'"),
        (None, "label", {"use_rep": "X"}, "no X of its own: write 'rna:X'"),
        (None, "rna:celltype", {"use_rep": "Z_c"}, "'celltype' is not in data['rna'].obs. Did you mean 'cell_type'?"),
        (None, "label", {"use_rep": "rma:Z_s"}, "Did you mean 'rna:Z_s'? There is: 'Z_c', 'rna:Z_s'"),
    ],
)
def test_an_unknown_key_is_answered_with_those_that_are_there(annotated, of, target, options, message):
    with pytest.raises(KeyError) as error:
        probe(annotated[of] if of else annotated, target, **options)
    assert message in error.value.args[0]


# ---- errors


def with_value(value, columns=slice(None)):
    x = np.random.default_rng(0).normal(size=(20, 3))
    x[4, columns] = value
    return x


X20 = with_value(0)
Y20 = np.arange(20) % 2


@pytest.mark.parametrize(
    ("data", "target", "options", "message"),
    [
        (with_value(np.nan, 1), Y20, {}, "1 of 20 rows of the embedding are NaN in some features"),
        (with_value(np.inf, 1), Y20, {}, "1 of 20 rows of the embedding are infinite"),
        (X20, np.where(Y20 == 0, np.inf, Y20), {}, "10 of 20 targets are infinite"),
        (X20, Y20[:19], {}, "target has 19 values, but the embedding has 20 rows"),
        (X20, Y20, {"groups": Y20[:9]}, "groups has 9 values"),
        (X20, Y20, {"groups": np.where(Y20, 1.0, np.nan)}, "10 of 20 observations have no group"),
        (X20, np.ones(20), {}, r"constant \(1\)"),
        (X20, np.ones(20, dtype=int), {}, "needs two classes of at least n_splits = 5 observations, but 1 of 1"),
        (X20, np.arange(20) // 17, {}, r"but 1 of 2 classes have so many; too few: 1 \(3\)"),
        (X20, [str(i) for i in range(20)], {}, "and 10 more"),
        (X20, Y20, {"groups": Y20}, "at least n_splits = 5 groups"),
        (X20[:9], np.arange(9.0), {}, "9 observations have both .* at least 10"),
        (X20, np.arange(20.0), {"groups": Y20}, "2 groups have both .* at least 5"),
        (np.full((20, 3), np.nan), np.arange(20.0), {}, "0 observations"),
        (X20[:, 0], Y20, {}, r"shape \(n_obs, n_features\), not \(20,\)"),
        (X20[:, :0], Y20, {}, "shape"),
        (X20.astype(str).astype(object) + "x", Y20, {}, "array of numbers"),
        (X20, np.stack([Y20, Y20], axis=1), {}, "target must have one dimension, not 2"),
        (X20, "cell_type", {}, "target='cell_type' names a column of obs, but data is an array"),
        (X20, Y20, {"use_rep": "Z"}, "data is the embedding itself"),
        (AnnData(X20), Y20, {}, "Name the embedding with use_rep; there is X"),
        (X20, ["a", "b"] * 10, {"task": "regression"}, "cannot be taken for numbers"),
        (X20, pd.date_range("2020", periods=20), {}, "neither classes nor numbers"),
        (X20, Y20, {"kind": "quadratic"}, "kind must be one of 'linear', 'boosted', not 'quadratic'"),
        (X20, Y20, {"task": "ranking"}, "task must be one of"),
        (X20, Y20, {"n_splits": 1}, "n_splits must be at least 2, not 1"),
        (X20, Y20, {"n_permutations": -1}, "n_permutations must be"),
        (X20, Y20, {"confidence": 95}, "confidence must be between 0 and 1, not 95"),
        (X20, Y20, {"max_obs": 3}, "max_obs must be at least twice n_splits"),
    ],
)
def test_errors_name_what_is_wrong(data, target, options, message):
    with pytest.raises(ValueError, match=message):
        probe(data, target, **options)


# ---- invariances


@pytest.mark.parametrize("kind", ["linear", "boosted"])
def test_same_seed_same_result_and_global_rng_undisturbed(rng, kind):
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


def test_input_is_not_changed(rng):
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
def test_location_and_scale_of_features_do_not_matter(shift, scale, numeric):
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


def test_result_is_one_flat_row(rng):
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
