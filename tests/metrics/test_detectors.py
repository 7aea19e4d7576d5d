"""Level and power of the panel of independence tests, and the limit of detection."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from unbraid.metrics._detectors import Panel, cauchy_combination, detection_limits, normal_scores, panel_whiten, plant


def p_values(make, n_repeats=60):
    found = []
    for seed in range(n_repeats):
        a, b, strata = make(np.random.default_rng(seed))
        found.append(Panel(b, strata, seed=seed).test(a)[0])
    return np.array(found)


def test_the_level_is_kept():
    p = p_values(lambda rng: (rng.standard_t(3, size=(200, 5)), rng.normal(size=(200, 4)), None))
    assert (p < 0.05).mean() <= 0.15  # 0.06 in 600 repeats; a level of 0.05 gives at most 0.117 in 99 of 100
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_one_variable_may_have_strata():
    rng = np.random.default_rng(0)
    a, strata = rng.normal(size=(400, 1)), rng.integers(3, size=400)
    assert Panel(a + rng.normal(size=(400, 1)), strata, seed=0).test(a)[0] < 0.01
    assert Panel(rng.normal(size=(400, 1)), strata, seed=0).test(a)[0] > 0.05


def test_what_strata_share_is_not_dependence_within_them():
    def batches(rng):
        strata = rng.integers(3, size=200)
        a, b = rng.normal(size=(2, 200, 3)) + rng.normal(size=(2, 3, 3))[:, strata]
        return a, b, strata

    assert (p_values(batches) < 0.05).mean() <= 0.12
    without = p_values(lambda rng: (*batches(rng)[:2], None), n_repeats=10)
    assert (without < 0.05).all()


@pytest.mark.parametrize(
    ("dependence", "detector"),
    [
        (lambda b: b, "linear"),
        (lambda b: b**2, "quadratic in b"),
        (lambda b: np.sign(b[:, ::-1]) * b, "quadratic in b"),
    ],
)
def test_each_kind_of_dependence_has_its_detector(dependence, detector):
    rng = np.random.default_rng(0)
    b = rng.normal(size=(800, 3))
    a = 0.5 * stats.zscore(dependence(b)) + rng.normal(size=b.shape)
    p, by_detector = Panel(b, seed=0).test(a)
    assert p < 1e-3
    assert by_detector[detector] < 1e-3


def test_scale_rotation_and_monotone_maps_do_not_hide_a_leak():
    rng = np.random.default_rng(0)
    b = rng.normal(size=(500, 3))
    a = np.hstack([rng.normal(size=(500, 5)), b[:, :1] + rng.normal(size=(500, 1))])
    faint = a * [1, 1, 1, 1, 1, 1e-3]  # a small variance is no excuse
    assert Panel(b, seed=0).test(faint)[0] < 1e-4
    assert Panel(np.exp(b), seed=0).test(faint)[0] < 1e-4


def test_the_combined_p_value_is_bounded_by_the_panel():
    assert cauchy_combination(np.full(5, 0.3)) == pytest.approx(0.3)
    assert cauchy_combination(np.array([1e-8, 0.5, 0.5])) == pytest.approx(3e-8, rel=0.01)


def test_planted_leaks_have_the_stated_strength():
    """A Gaussian leak of I nats over two dimensions: the canonical correlations say so."""
    rng = np.random.default_rng(0)
    a, b = (panel_whiten(x) for x in rng.normal(size=(2, 50_000, 4)))
    planted = plant(a, b, "linear", 0.6, 2, None, rng)
    qa, qb = (np.linalg.qr(x - x.mean(0))[0] for x in (planted, b))
    r = np.linalg.svd(qa.T @ qb, compute_uv=False)
    assert -0.5 * np.log(1 - r**2).sum() == pytest.approx(0.6, abs=0.02)
    assert planted.var(0) == pytest.approx(np.ones(4), abs=0.03)
    for family in ("quadratic", "gated"):
        qa = np.linalg.qr(plant(a, b, family, 0.6, 2, None, rng))[0]
        assert np.linalg.svd(qa.T @ qb, compute_uv=False).max() < 0.05  # invisible to correlation


def test_limits_fall_with_the_number_of_observations():
    rng = np.random.default_rng(0)
    few, many = (
        detection_limits(rng.normal(size=(n, 4)), rng.normal(size=(n, 4)), n_repeats=10, seed=0).set_index("family")
        for n in (150, 1200)
    )
    assert (many["nats"] < few["nats"]).all()
    assert many.loc["linear", "nats"] <= many.loc["quadratic", "nats"]
    assert (many["power"] >= 0.9).all()


def test_scores_of_ties_and_constants():
    assert normal_scores(np.array([[1.0], [2.0], [2.0], [3.0]]))[:, 0] == pytest.approx(
        stats.norm.ppf([0.125, 0.5, 0.5, 0.875])
    )
    rng = np.random.default_rng(0)
    constant = np.hstack([rng.normal(size=(200, 2)), np.ones((200, 1))])
    p, _ = Panel(rng.normal(size=(200, 2)), seed=0).test(constant)
    assert 0 < p <= 1
