"""What `unbraid.metrics.mutual_information` and its held-out scores promise."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import multivariate_normal, norm, rankdata

from unbraid.benchmark import mutual_information as calibration
from unbraid.metrics import _mutual_information as internals
from unbraid.metrics._bounds import Critic, Tabulated, donsker_varadhan, info_nce, smile
from unbraid.metrics._closed_form_critics import Directions, Regression
from unbraid.metrics._mutual_information import MutualInformationResult, mutual_information
from unbraid.metrics._pairs import read_pairs
from unbraid.metrics._pointwise import NormalScores, ceiling, held_out_scores

CLOSED = ("canonical", "ridge", "quadratic")
ONE = {"estimators": "canonical", "n_null": 0}


def scores(a, b, estimator, strata=None, seed=0, **options):
    fold = np.random.default_rng(seed).permutation(len(a)) % 5
    rng = np.random.default_rng(seed)
    return held_out_scores(a, b, estimator=estimator, fold=fold, strata=strata, rng=rng, seed=seed, **options)


def gaussian(n, rng, d=4, correlation=0.7, n_dependent=2):
    return calibration.gaussian(n, rng, d=d, n_dependent=n_dependent, correlation=correlation)


# ---- critics and bounds


def test_critics_are_log_likelihood_ratios(rng):
    a, b = rng.normal(size=(2, 6, 2))
    rho = np.array([0.6, 0.3])
    found = Directions(np.eye(2), np.eye(2), rho).critic(a, b).pairs(np.arange(6))
    for i in range(6):
        for j in range(6):
            expected = sum(
                multivariate_normal.logpdf([a[i, k], b[j, k]], cov=[[1, rho[k]], [rho[k], 1]])
                - norm.logpdf([a[i, k], b[j, k]]).sum()
                for k in range(2)
            )
            assert found[i, j] == pytest.approx(expected)
    noise = np.array([0.5, 0.8])
    found = Regression(np.eye(2), np.eye(2), noise).critic(a, b)
    expected = norm.logpdf(a[1], loc=b[4], scale=np.sqrt(noise)).sum() - norm.logpdf(a[1]).sum()
    assert found.pairs(np.arange(6))[1, 4] == pytest.approx(expected)
    np.testing.assert_allclose(found.own(), np.diagonal(found.pairs(np.arange(6))))


def naive_bounds(f, clip):
    m = len(f)
    own = np.diagonal(f)
    others = f[~np.eye(m, dtype=bool)]
    nce = [own[i] - (np.log(np.exp(f[i]).mean()) + np.log(np.exp(f[:, i]).mean())) / 2 for i in range(m)]
    dv = own - max(0, np.log(np.exp(others).mean()))
    return nce, dv, own - np.log(np.exp(np.clip(others, -clip, clip)).mean())


def test_bounds_equal_their_definitions(rng):
    f = 3 * rng.normal(size=(7, 7))
    for critic in (Tabulated(f), Critic(f, np.eye(7), np.zeros(7), np.zeros(7))):
        found = [info_nce(critic, [np.arange(7)]), donsker_varadhan(critic, [np.arange(7)])]
        found.append(smile(critic, [np.arange(7)], clip=2.0))
        np.testing.assert_allclose(found, naive_bounds(f, 2.0))
    rows = [np.array([0, 3, 4]), np.array([1, 2, 5, 6])]
    for some, found in zip(rows, [info_nce(Tabulated(f), rows)] * 2, strict=True):
        np.testing.assert_allclose(found[some], naive_bounds(f[np.ix_(some, some)], 2.0)[0])
    within = [np.exp(f[np.ix_(r, r)][~np.eye(len(r), dtype=bool)]).mean() for r in rows]
    expected = np.diagonal(f) - max(0, np.log(np.average(within, weights=[3, 4])))
    np.testing.assert_allclose(donsker_varadhan(Tabulated(f), rows), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 1e4), m=st.integers(1, 12))
def test_info_nce_never_exceeds_its_ceiling(seed, scale, m):
    f = scale * np.random.default_rng(seed).normal(size=(m, m))
    found = info_nce(Tabulated(f), [np.arange(m)])
    assert np.isfinite(found).all()
    assert (found <= np.log(m) + 1e-9).all()
    moved = info_nce(Tabulated(f + 5.0), [np.arange(m)])
    np.testing.assert_allclose(moved, found, atol=1e-6 * scale)


def test_ceiling_is_the_log_of_rows_compared():
    fold = np.array([0, 0, 0, 0, 1, 1])
    assert ceiling(fold, None) == pytest.approx((4 * np.log(4) + 2 * np.log(2)) / 6)
    assert ceiling(fold, np.array([0, 0, 1, 1, 0, 1])) == pytest.approx(4 * np.log(2) / 6)


def test_normal_scores_are_of_training_midranks(rng):
    x = np.round(rng.normal(size=(50, 2)), 1)  # with ties
    train = np.arange(40)
    found = NormalScores.of(x)(train)
    for k in range(2):
        expected = ndtri((rankdata(x[train, k]) - 0.5) / 40)
        np.testing.assert_allclose(found[train, k], expected)
        for i in range(40, 50):
            below = (x[train, k] < x[i, k]).sum() + (x[train, k] <= x[i, k]).sum()
            assert found[i, k] == pytest.approx(ndtri(np.clip(below, 1, 79) / 80))


# ---- held-out scores


@pytest.mark.parametrize(
    ("estimator", "d", "margin"), [("canonical", 4, 0.1), ("ridge", 4, 0.1), ("quadratic", 4, 0.15)]
)
def test_the_truth_of_a_gaussian_is_found(rng, estimator, d, margin):
    a, b, truth = gaussian(1500, rng, d)
    assert scores(a, b, estimator).mean() == pytest.approx(truth, abs=margin)


def test_a_strong_dependence_is_not_capped(rng):
    a, b, truth = gaussian(1000, rng, d=8, correlation=0.95, n_dependent=6)
    assert truth > np.log(200)
    assert scores(a, b, "canonical").mean() == pytest.approx(truth, rel=0.08)
    assert scores(a, b, "quadratic").mean() < np.log(200)


@pytest.mark.parametrize("estimator", CLOSED)
@pytest.mark.parametrize("d", [4, 24])
def test_independent_sides_score_nothing(estimator, d):
    means, z = [], []
    for seed in range(12):
        a, b = np.random.default_rng(seed).normal(size=(2, 300, d))
        found = scores(a, b, estimator, seed=seed)
        means.append(found.mean())
        z.append(found.mean() / max(found.std() / np.sqrt(300), 1e-12))
    assert np.mean(means) > -0.06
    assert np.mean(means) < 0.005
    assert np.sum(np.array(z) > 2) <= 1


def test_what_is_quadratic_is_seen_by_those_that_look(rng):
    a, b, truth = calibration.quadratic(1500, rng, d=4, n_dependent=2, correlation=0.8)
    assert abs(scores(a, b, "canonical").mean()) < 0.03
    for one, other in ((a, b), (b, a)):
        found = scores(one, other, "quadratic").mean()
        assert 0.4 * truth < found < truth


def test_a_product_of_signs_is_seen(rng):
    a, b, truth = calibration.sign_product(1500, rng, d=6)
    assert 0.08 < scores(a, b, "quadratic").mean() < truth


def test_monotone_maps_change_nothing_of_the_copula(rng):
    a, b, _ = gaussian(500, rng)
    np.testing.assert_allclose(scores(a**3, np.exp(b), "canonical"), scores(a, b, "canonical"))


@pytest.mark.parametrize("estimator", CLOSED)
def test_clusters_are_not_taken_for_gaussians(rng, estimator):
    """A Gaussian of the same correlations would have far more nats than the clusters have."""
    a, b, truth = calibration.clusters(1000, rng, d=4, n_clusters=5)
    assert 0.5 * truth < scores(a, b, estimator).mean() < 1.02 * truth


@pytest.mark.parametrize("estimator", [*CLOSED, "critic"])
def test_dependence_through_strata_is_none_given_them(rng, estimator):
    a, b, _, batch = calibration.through_batch(500, rng, d=3, n_batches=4)
    free, given_batch = scores(a, b, estimator).mean(), scores(a, b, estimator, strata=batch).mean()
    assert free > 0.1
    assert abs(given_batch) < 0.02


def test_dependence_within_strata_is_found_given_them(rng):
    a, b, _, batch = calibration.through_batch(1000, rng, d=3, n_batches=4)
    b[:, 0] = b[:, 0] - (b[:, 0] - 1.0) * 0 + 1.5 * (a[:, 0] - pd.Series(a[:, 0]).groupby(batch).transform("mean"))
    truth = 0.5 * np.log1p(1.5**2)
    for estimator in CLOSED:
        assert scores(a, b, estimator, strata=batch).mean() == pytest.approx(truth, abs=0.12)


def test_rows_of_tiny_strata_score_zero(rng):
    a, b, _ = gaussian(300, rng)
    strata = np.zeros(300, dtype=int)
    strata[:2], strata[2] = 1, 2
    found = scores(a, b, "canonical", strata=strata)
    np.testing.assert_array_equal(found[:3], 0)
    assert (found[3:] != 0).all()


@pytest.mark.parametrize("estimator", ["critic", "smile"])
def test_networks_see_what_is_neither_linear_nor_quadratic(rng, estimator):
    a, noise = rng.normal(size=(2, 300, 1))
    b = np.sin(3 * a) + 0.1 * noise
    found = scores(a, b, estimator).mean()
    assert found > 0.5
    assert found > 2 * scores(a, b, "quadratic").mean()


def test_degenerate_input_scores_zero(rng):
    a, b = rng.normal(size=(2, 60, 2))
    for estimator in (*CLOSED, "critic"):
        np.testing.assert_array_equal(scores(np.ones((60, 2)), b, estimator), 0)
    assert np.isfinite(scores(np.hstack([a, a, np.zeros((60, 1))]), a, "quadratic")).all()
    assert np.isfinite(scores(rng.normal(size=(60, 80)), b, "canonical")).all()
    with pytest.raises(ValueError, match="estimator must be one of 'canonical'"):
        scores(a, b, "cca")


def test_groups_stay_together_within_the_training_part():
    """Donors that differ on both sides look dependent to splits that ignore them."""
    rng = np.random.default_rng(4)
    donor = np.arange(600) % 15
    a, b = 2 * rng.normal(size=(2, 15, 3))[:, donor] + rng.normal(size=(2, 600, 3))
    rngs = [np.random.default_rng(0) for _ in range(2)]
    fold = donor % 5
    naive = held_out_scores(a, b, estimator="canonical", fold=fold, rng=rngs[0]).mean()
    grouped = held_out_scores(a, b, estimator="canonical", fold=fold, groups=donor, rng=rngs[1]).mean()
    assert naive < -0.05
    assert naive < grouped < 0.05


# ---- the panel


def test_the_headline_is_in_nats_with_interval_null_and_p_value(rng):
    a, b, truth = gaussian(500, rng)
    found = mutual_information(a, b, estimators=CLOSED, n_null=9)
    low, high = found.interval
    assert low < found.nats < high
    assert low < truth
    assert found.nats == pytest.approx(truth, abs=0.15)
    assert found.p_value == 0.1
    assert -0.1 < found.null < 0.03
    assert found.null_interval[1] < low
    assert (found.kind, found.refused, found.stable, found.n_obs, found.n_null) == ("lower bound", None, True, 500, 9)
    assert list(found.panel.index) == list(CLOSED)
    assert found.panel["certified"].all()
    assert found.panel.loc["quadratic", "ceiling"] == pytest.approx(np.log(100))
    assert np.isnan(found.panel.loc["canonical", "ceiling"])


def test_p_values_of_independent_sides_are_uniform():
    p = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        pairs = read_pairs(*rng.normal(size=(2, 80, 2)), None, None, None, 8)
        fold = internals.fold_of(pairs, 4, rng)
        observed = internals._scores(pairs, fold, ["canonical"], rng, 0)["canonical"].mean()
        p.append((1 + np.sum(internals._null(pairs, fold, ["canonical"], 9, rng) >= observed)) / 10)
    assert np.mean(np.array(p) <= 0.1) <= 0.2
    assert abs(np.mean(p) - 0.55) < 0.15


def test_choosing_among_estimators_does_not_raise_the_number(rng):
    """The estimator of a fold is chosen on the other folds, so noise is not picked."""
    fold = np.arange(4000) % 5
    noise = {str(k): rng.normal(size=4000) for k in range(20)}
    name, chosen = internals._selected(noise, list(noise), fold)
    assert name in noise
    assert abs(chosen.mean()) < 3 / np.sqrt(4000)
    noise["best"] = 1 + rng.normal(size=4000)
    name, chosen = internals._selected(noise, list(noise), fold)
    assert name == "best"
    np.testing.assert_array_equal(chosen, noise["best"])


def test_a_saturated_estimator_is_refused(rng):
    a = rng.normal(size=(400, 4))
    b = a + 0.02 * rng.normal(size=(400, 4))
    found = mutual_information(a, b, estimators="quadratic", n_null=0)
    assert np.isnan(found.nats)
    assert np.isnan(found.interval).all()
    assert "within 0.5 of the 4.38 that it can show" in found.refused
    assert found.panel.loc["quadratic", "nats"] > 3.8
    assert "no number" in str(found)
    assert "more than 4." in str(found) or "more than 3." in str(found)


def test_an_unstable_estimate_is_refused(rng):
    a, b, _ = gaussian(240, rng, d=20, correlation=0.55, n_dependent=12)
    found = mutual_information(a, b, estimators="canonical", n_null=0)
    row = found.panel.loc["canonical"]
    assert row["nats"] > 1.25 * row["nats_half"]
    assert not found.stable
    assert "between half of the observations and all of them" in found.refused
    assert np.isnan(found.nats)


def test_strata_make_it_conditional(rng):
    a, b, _, batch = calibration.through_batch(400, rng, d=2, n_batches=4)
    free = mutual_information(a, b, estimators=CLOSED, n_null=0)
    found = mutual_information(a, b, strata=batch, estimators=CLOSED, n_null=9)
    assert free.nats > 0.03
    assert abs(found.nats) < 0.03
    assert found.p_value > 0.1
    assert (found.conditional, found.n_strata) == (True, 4)
    assert "within 4 strata" in str(found)


def test_groups_are_on_one_side_and_widen_the_interval(rng):
    donor = rng.permutation(np.arange(400) % 20)
    effect = rng.normal(size=20)
    a = rng.normal(size=(400, 2))
    b = effect[donor][:, None] * a + 0.5 * rng.normal(size=(400, 2)) + a
    grouped, free = (mutual_information(a, b, groups=g, **ONE) for g in (donor, None))
    assert (grouped.n_groups, free.n_groups) == (20, None)
    assert np.ptp(grouped.interval) > 1.5 * np.ptp(free.interval)
    pairs = read_pairs(a, b, None, None, donor, 8)
    fold = internals.fold_of(pairs, 5, np.random.default_rng(0))
    assert len(np.unique(np.stack([fold, pairs.groups]), axis=1).T) == 20
    assert np.ptp(np.bincount(fold)) <= 20


def test_folds_spread_strata(rng):
    a, b = rng.normal(size=(2, 100, 1))
    strata = np.repeat([0, 1], [80, 20])
    pairs = read_pairs(a, b, None, strata, None, 8)
    fold = internals.fold_of(pairs, 5, np.random.default_rng(0))
    for k in range(5):
        np.testing.assert_array_equal(np.bincount(pairs.strata[fold == k]), [16, 4])


def test_order_of_observations_does_not_matter_but_the_seed_does(rng):
    a, b, _ = gaussian(200, rng)
    order = rng.permutation(200)
    options = {"estimators": ("canonical", "ridge"), "n_null": 3, "max_obs": 190}
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, same = (mutual_information(x, y, **options) for x, y in ((a, b), (a[order], b[order])))
    assert one.to_series().equals(same.to_series())
    assert mutual_information(a, b, **options, seed=1).nats != one.nats
    assert one.n_obs == 190
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_keys_and_missing_rows(rng):
    a, b, _ = gaussian(120, rng)
    a[:10] = np.nan
    adata = AnnData(np.zeros((120, 1)), obsm={"Z_c": a, "Z_s": b})
    adata.obs["batch"] = np.arange(120) % 2
    found = mutual_information("Z_c", "Z_s", data=adata, strata="batch", **ONE)
    assert (found.n_obs, found.n_dropped, found.n_features) == (110, 10, (4, 4))
    with pytest.raises(KeyError, match="'Z_d' is not in data.obsm. Did you mean"):
        mutual_information("Z_d", "Z_s", data=adata)


X = np.random.default_rng(1).normal(size=(100, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": "ksg"}, "estimators must be one of 'canonical'"),
        ({"estimators": ["smile"]}, "at least one besides 'smile'"),
        ({"n_splits": 1}, "n_splits must be at least 2"),
        ({"n_splits": 7}, "100 observations have both a and b; at least 112"),
        ({"n_null": -1}, "n_null must be 0 or more"),
        ({"confidence": 95}, "confidence must be between 0 and 1"),
        ({"max_obs": 10}, "max_obs must be at least 80"),
        ({"groups": np.arange(100) % 3}, "3 groups, but n_splits = 5"),
        ({"strata": np.arange(100) // 2}, "100 observations are in 50 strata"),
    ],
)
def test_errors_name_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        mutual_information(X, X, **options)


def test_the_result_reads_as_a_sentence_and_as_a_row():
    panel = pd.DataFrame({"nats": [1.25], "low": [1.1], "certified": [True]}, index=["canonical"])
    result = MutualInformationResult(
        nats=1.25,
        interval=(1.1, 1.4),
        p_value=0.05,
        null=-0.001,
        null_interval=(-0.01, 0.01),
        estimator="canonical",
        panel=panel,
        stable=True,
        refused=None,
        kind="lower bound",
        conditional=False,
        n_obs=2000,
        n_dropped=0,
        n_groups=24,
        n_strata=None,
        n_features=(8, 16),
        n_splits=5,
        n_null=19,
        confidence=0.95,
        seed=0,
    )
    assert str(result) == (
        "mutual information at least 1.25 nats [1.10, 1.40], canonical (p = 0.05, n = 2,000 in 24 groups)"
    )
    row = result.to_series()
    assert (row["low"], row["null_high"], row["nats:canonical"], row["n_features_b"]) == (1.1, 0.01, 1.25, 16)
    refused = dataclasses.replace(result, nats=np.nan, refused="it moves", n_groups=None, p_value=np.nan)
    assert repr(refused) == "mutual information: no number, it moves; more than 1.10 nats (n = 2,000)"


# ---- the benchmark


def test_the_truth_of_the_quadratic_case_is_right(rng):
    """Against the same integral by simulation: the mean log ratio of densities."""
    a, b, truth = calibration.quadratic(4000, rng, d=1, n_dependent=1, correlation=0.8)
    squares = 0.8 * (rng.normal(size=2000) ** 2 - 1) / np.sqrt(2)
    marginal = np.log(norm.pdf(a, loc=squares, scale=0.6).mean(axis=1))
    own = norm.logpdf(a[:, 0], loc=0.8 * (b[:, 0] ** 2 - 1) / np.sqrt(2), scale=0.6)
    assert (own - marginal).mean() == pytest.approx(truth, abs=0.04)


def test_the_calibration_table_is_printed(capsys, monkeypatch, tmp_path):
    arguments = "x --n-obs 100 --repeats 2 --neural-repeats 0 --out {}".format(tmp_path / "found.csv").split()
    monkeypatch.setattr("sys.argv", [*arguments, "--cases", "Gaussian, d = 2, 2 of r = .5"])
    calibration.main()
    printed = capsys.readouterr().out
    assert printed.startswith("n = 100, nats")
    assert "| Gaussian, d = 2, 2 of r = .5 | closed forms | 0.29 |" in printed
    assert len(pd.read_csv(tmp_path / "found.csv")) == 2
