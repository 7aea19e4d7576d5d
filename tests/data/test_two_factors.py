"""Two shared factors: their shares, their independence, and what can be read."""

import numpy as np
import pytest
from scipy.stats import chi2_contingency
from sklearn.linear_model import LinearRegression, LogisticRegression

from unbraid.data.simulate._two_factors import two_factors

SHARES = {"task_share": 0.3, "residual_share": 0.2, "specific_share": 0.1}


@pytest.fixture(scope="module")
def data():
    return two_factors()


def explained(target, values):
    """Share of the variance of all columns that a linear map of ``target`` explains."""
    residual = values - LinearRegression().fit(target, values).predict(target)
    return 1 - residual.var(axis=0).sum() / values.var(axis=0).sum()


def test_shapes_and_names():
    mdata = two_factors(200, modalities=2, n_task=3, n_residual=5, n_features=7)
    assert list(mdata.mod) == ["x1", "x2"]
    assert mdata["x1"].shape == (200, 7)
    assert mdata["x1"].X.dtype == np.float32
    assert sorted(mdata.obs["y_task"].cat.categories) == ["task_0", "task_1", "task_2"]
    assert mdata.obs["y_residual"].nunique() == 5
    assert mdata["x2"].obsm["true_specific"].shape == (200, 4)
    assert mdata.obs["split"].value_counts().to_dict() == {"train": 160, "test": 40}
    assert mdata.uns["simulation"]["recipe"] == "two_factors"
    assert mdata.uns["simulation"]["parameters"]["n_residual"] == 5


def test_truth_in_obsm_is_the_truth_in_obs(data):
    for name in ("task", "residual"):
        codes = data.obs[f"y_{name}"].cat.codes.to_numpy()
        np.testing.assert_array_equal(data.obsm[f"true_{name}"], np.eye(10)[codes])
    both = np.concatenate([data.obsm["true_task"], data.obsm["true_residual"]], axis=1)
    np.testing.assert_array_equal(data.obsm["true_shared"], both)


def test_every_factor_has_its_share_of_the_variance():
    mdata = two_factors(20_000, **SHARES)
    for modality in mdata.mod.values():
        # a mean variance of 1: exact for the classes, the Gaussians' is sampled
        assert modality.X.var(axis=0).mean() == pytest.approx(1, abs=0.02)
        truth = {"task_share": mdata.obsm["true_task"], "residual_share": mdata.obsm["true_residual"]}
        truth["specific_share"] = modality.obsm["true_specific"]
        for name, values in truth.items():
            assert explained(values, modality.X) == pytest.approx(SHARES[name], abs=0.015), name
        everything = np.concatenate(list(truth.values()), axis=1)
        assert explained(everything, modality.X) == pytest.approx(0.6, abs=0.01)


def test_factors_are_independent_and_uniform(data):
    table = np.histogram2d(data.obs["y_task"].cat.codes, data.obs["y_residual"].cat.codes, bins=10)[0]
    assert chi2_contingency(table).pvalue > 0.001
    assert np.abs(table.sum(axis=0) - 1_000).max() < 5 * 30
    assert np.abs(table.sum(axis=1) - 1_000).max() < 5 * 30
    specific = np.concatenate([data[m].obsm["true_specific"] for m in data.mod], axis=1)
    correlations = np.corrcoef(np.concatenate([specific, data.obsm["true_shared"]], axis=1).T)[:12]
    assert np.abs(correlations[:, 12:]).max() < 0.05
    np.testing.assert_allclose(correlations[:, :12], np.eye(12), atol=0.05)


@pytest.mark.parametrize("nonlinear", [False, True])
def test_modalities_share_the_two_classes_and_nothing_else(nonlinear):
    mdata = two_factors(4_000, n_task=3, n_residual=3, nonlinear=nonlinear)
    pairs = mdata.obs["y_task"].cat.codes.to_numpy() * 3 + mdata.obs["y_residual"].cat.codes.to_numpy()
    within, raw = [], []
    for modality in mdata.mod.values():
        means = np.stack([modality.X[pairs == pair].mean(axis=0) for pair in range(9)])
        within.append(modality.X - means[pairs])
        raw.append(modality.X)
    assert np.abs(np.corrcoef(np.hstack(raw[:2]).T)[:24, 24:]).max() > 0.25
    assert np.abs(np.corrcoef(np.hstack(within[:2]).T)[:24, 24:]).max() < 5 / np.sqrt(4_000)


def test_documented_accuracies_of_logistic_regression(data):
    for mdata, expected in ((data, (0.97, 0.98)), (two_factors(nonlinear=True), (0.87, 0.86))):
        train = (mdata.obs["split"] == "train").to_numpy()
        for name, accuracy in zip(("y_task", "y_residual"), expected, strict=True):
            y = mdata.obs[name].astype(str).to_numpy()
            model = LogisticRegression(max_iter=100).fit(mdata["x1"].X[train], y[train])
            assert model.score(mdata["x1"].X[~train], y[~train]) == pytest.approx(accuracy, abs=0.01)


def test_the_network_keeps_the_factors_and_loses_nothing(data):
    options = {"specific_share": 0.0, "task_share": 0.5, "residual_share": 0.5 - 1e-12}
    plain, mixed = (two_factors(2_000, nonlinear=nonlinear, **options) for nonlinear in (False, True))
    assert plain.obs.equals(mixed.obs)
    for m in plain.mod:
        np.testing.assert_array_equal(plain[m].obsm["true_specific"], mixed[m].obsm["true_specific"])
    values = mixed["x1"].X.astype(float)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values.var(axis=0), 1, atol=1e-5)
    # a row for each of the 100 pairs of classes, and no two alike
    pairs = plain.obs["y_task"].cat.codes.to_numpy() * 10 + plain.obs["y_residual"].cat.codes.to_numpy()
    assert len(np.unique(pairs)) == 100
    rows = np.stack([values[pairs == pair].mean(axis=0) for pair in range(100)])
    np.testing.assert_allclose(values, rows[pairs], atol=1e-4)
    distances = np.linalg.norm(rows[:, None] - rows, axis=2) + 10 * np.eye(100)
    assert distances.min() > 0.5
    # the sum of a part for each class before, more than that after
    assert explained(plain.obsm["true_shared"], plain["x1"].X) > 0.999999
    assert explained(mixed.obsm["true_shared"], values) < 0.9


def test_noise_comes_after_the_network():
    plain, mixed = (two_factors(500, nonlinear=nonlinear) for nonlinear in (False, True))
    quiet_shares = dict.fromkeys(SHARES, (1 - 1e-12) / 3)
    quiet = [two_factors(500, nonlinear=nonlinear, **quiet_shares) for nonlinear in (False, True)]
    for name in plain.mod:
        noise = [
            one[name].X - np.sqrt(0.75) * silent[name].X for one, silent in zip((plain, mixed), quiet, strict=True)
        ]
        np.testing.assert_allclose(noise[0], noise[1], atol=1e-4)
        assert noise[0].std() == pytest.approx(0.5, abs=0.02)


def test_missing_cells_are_absent_and_all_else_is_unchanged():
    whole, part = two_factors(300), two_factors(300, missing=0.6)
    assert list(part.obs_names) == list(whole.obs_names)
    assert part.obs.equals(whole.obs)
    np.testing.assert_array_equal(part.obsm["true_task"], whole.obsm["true_task"])
    for name in whole.mod:
        assert part[name].n_obs == 240
        np.testing.assert_array_equal(part[name].X, whole[name][part[name].obs_names].X)


def test_the_seed_decides():
    one, same, other = (two_factors(100, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one["x1"].X, same["x1"].X)
    assert not np.array_equal(one["x1"].X, other["x1"].X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_obs": 1}, "`n_obs` must be a whole number of at least 2"),
        ({"modalities": 1}, "`modalities` must be a whole number of at least 2"),
        ({"n_task": 1}, "`n_task` must be"),
        ({"n_residual": 1.5}, "`n_residual` must be"),
        ({"n_features": 0}, "`n_features` must be"),
        ({"task_share": 0.5}, "together more than 0 and less than 1, got 0.5, 0.25 and 0.25"),
        ({"task_share": -0.1}, "must be at least 0"),
        ({"task_share": 0, "residual_share": 0, "specific_share": 0}, "together more than 0"),
        ({"task_share": float("nan")}, "must be at least 0"),
        ({"missing": 3.5}, "`missing` must be"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        two_factors(**{"n_obs": 20, **options})
