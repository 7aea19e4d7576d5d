"""p-values hold for queries without a match, and confidences are right as often as they say."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.isotonic import IsotonicRegression

import unbraid as ub
from unbraid.tl._match_confidence import MatchConfidence, Outcomes

law = settings(deadline=None, max_examples=15, derandomize=True)


def outcomes_of(scores, match, groups=None, **changed):
    """What a search of all of ``(n, n_candidates)`` scores finds."""
    codes = np.argsort(-scores, axis=1)[:, :11]
    found = Outcomes.of(codes, np.take_along_axis(scores, codes, axis=1), match, scores.shape[1])
    return found if groups is None else Outcomes(**{**vars(found), "groups": groups})


def likelihood_ratios(n, n_candidates, seed):
    """Scores whose softmax is the posterior: Gaussian codes and queries with correlations, see the model Unbraid."""
    rng = np.random.default_rng(seed)
    rho = np.linspace(0.9, 0.3, 8)
    target, match = rng.normal(size=(n_candidates, 8)), rng.integers(n_candidates, size=n)
    query = rho * target[match] + np.sqrt(1 - rho**2) * rng.normal(size=(n, 8))
    weight = rho / (1 - rho**2)
    return query * weight @ target.T - target**2 @ (rho * weight) / 2, match


def cosines(n, n_candidates, seed, dim=16, noise=0.8):
    rng = np.random.default_rng(seed)
    target, match = rng.normal(size=(n_candidates, dim)), rng.integers(n_candidates, size=n)
    query = target[match] + noise * rng.normal(size=(n, dim))
    return target, query, match


# --- p-values -------------------------------------------------------------------------------------------------------


def test_p_values_are_counted_by_group():
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.7, 0.1], [0.3, 0.6, 0.2], [0.1, 0.2, 0.8]])
    judge = MatchConfidence.fit(outcomes_of(scores, np.array([0, 0, 1, 2])))
    # best others: .5 and .7 (half a vote each), .3, .2; three candidates where the null has two
    votes = {0.8: 0, 0.7: 0.5, 0.6: 0.5, 0.5: 1, 0.25: 2, 0.0: 3}
    expected = [min((1 + v) / (1 + 3) * 3 / 2, 1) for v in votes.values()]
    np.testing.assert_allclose(judge.p_values(np.array(list(votes))), expected)
    assert np.isnan(judge.p_values(np.array([np.nan]))).all()


def test_one_candidate_says_nothing():
    judge = MatchConfidence.fit(outcomes_of(np.array([[0.9], [0.8]]), np.array([0, 0])))
    assert judge.p_values(np.array([0.95, 0.1])).tolist() == [1, 1]


@pytest.mark.parametrize(("n_candidates", "n_replicates"), [(3, 1), (60, 1), (60, 4)])
def test_compounds_that_the_library_lacks_have_uniform_p_values(n_candidates, n_replicates):
    names = np.arange(n_candidates).astype(str)
    p = []
    for seed in range(400 if n_candidates == 3 else 60):
        rng = np.random.default_rng(seed)
        target, strangers = rng.normal(size=(n_candidates, 5)), rng.normal(size=(20, 5))
        # a compound's effect is the same in all its wells, which noise is not
        effects, strangers = (x + 0.7 * rng.normal(size=x.shape) for x in (target, strangers))
        wells = np.repeat(effects, n_replicates, axis=0)
        wells, strangers = (x + 0.2 * rng.normal(size=x.shape) for x in (wells, strangers))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few groups
            index = ub.tl.build_index(target, names=names).calibrate(wells, np.repeat(names, n_replicates))
        p.append(index.search(strangers, 1).p_values[:, 0])
    p = np.array(p)
    for level in (0.05, 0.1, 0.3, 0.5):
        shares = (p <= level).mean(axis=1)
        assert shares.mean() <= level + 2.5 * shares.std() / np.sqrt(len(p))
    if n_candidates == 60 and n_replicates == 1:
        assert np.quantile(p, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.05)  # and not much less


def test_matches_have_small_p_values():
    target, query, match = cosines(300, 300, 0, noise=0.3)
    index = ub.tl.build_index(target).calibrate(query[:150], match[:150].astype(str))
    assert np.median(index.search(query[150:], 1).p_values) < 0.02


# --- confidence -----------------------------------------------------------------------------------------------------


def calibration_error(p, is_match, n_bins=15):
    bins = np.array_split(np.argsort(p, kind="stable"), n_bins)
    return sum(abs(p[b].sum() - is_match[b].sum()) for b in bins) / len(p)


@pytest.mark.parametrize("n_candidates", [50, 1_000])
def test_held_out_hits_are_right_as_often_as_they_say(n_candidates):
    target, query, match = cosines(5_000, n_candidates, 1)
    names = np.arange(n_candidates).astype(str)
    index = ub.tl.build_index(target, names=names).calibrate(query[:1_000], names[match[:1_000]])
    taught, asked = index.search(query[:1_000]), index.search(query[1_000:])
    is_match = asked.codes == match[1_000:, None]

    curve = IsotonicRegression(out_of_bounds="clip")
    curve.fit(taught.scores.ravel(), (taught.codes == match[:1_000, None]).ravel())
    rivals = {
        "ours": asked.confidences,
        "softmax": softmax(asked.scores, axis=1),
        "curve of the score": curve.predict(asked.scores.ravel()).reshape(asked.scores.shape),
    }
    error = {name: calibration_error(p[:, 0], is_match[:, 0]) for name, p in rivals.items()}
    brier = {name: np.square(p[:, 0] - is_match[:, 0]).mean() for name, p in rivals.items()}
    assert error["ours"] < 0.04
    assert calibration_error(asked.confidences.ravel(), is_match.ravel()) < 0.01
    for rival in ("softmax", "curve of the score"):
        assert error["ours"] < 0.6 * error[rival]
        assert brier["ours"] < 0.95 * brier[rival]


def test_likelihood_ratios_are_taken_as_they_are():
    scores, match = likelihood_ratios(6_000, 200, 2)
    judge = MatchConfidence.fit(outcomes_of(scores[:4_000], match[:4_000]))
    assert judge.coefficients[0] == pytest.approx(1, abs=0.07)
    exact = np.sort(softmax(scores[4_000:], axis=1))[:, ::-1][:, :10]  # the posterior over all candidates
    found = judge.confidences(np.sort(scores[4_000:])[:, ::-1][:, :12])
    assert np.abs(found[:, :10] - exact).mean() < 0.01
    assert np.isnan(found[:, 10:]).all()


@law
@given(st.integers(0, 1_000), st.floats(0.1, 20), st.floats(-50, 50))
def test_units_of_the_scores_do_not_matter(seed, scale, shift):
    scores, match = likelihood_ratios(200, 40, seed)
    ranked = np.sort(scores)[:, ::-1]
    judge = MatchConfidence.fit(outcomes_of(scores, match))
    other = MatchConfidence.fit(outcomes_of(scale * scores + shift, match))
    expected = judge.confidences(ranked)
    np.testing.assert_allclose(other.confidences(scale * ranked + shift), expected, atol=1e-3)
    assert (np.diff(expected[:, :10]) <= 1e-12).all()
    assert (expected[:, :10].sum(axis=1) < 1).all()


def test_few_candidates_are_all_that_there_are():
    scores, match = likelihood_ratios(400, 6, 3)
    judge = MatchConfidence.fit(outcomes_of(scores, match, groups=np.arange(400)))
    np.testing.assert_allclose(judge.confidences(np.sort(scores)[:, ::-1]).sum(axis=1), 1)


def test_replicates_count_once():
    scores, match = likelihood_ratios(60, 40, 4)
    groups, ranked = np.arange(60), np.sort(scores)[:, ::-1]
    once = MatchConfidence.fit(outcomes_of(scores, match, groups))
    times = np.where(np.arange(60) < 30, 7, 1)
    many = MatchConfidence.fit(
        outcomes_of(*(np.repeat(x, times, axis=0) for x in (scores, match)), np.repeat(groups, times))
    )
    np.testing.assert_allclose(many.confidences(ranked), once.confidences(ranked), atol=1e-3)
    np.testing.assert_allclose(many.p_values(ranked), once.p_values(ranked))
    assert many.n_groups == 60


@pytest.mark.parametrize("noise", [0.0, 1e6])
def test_matches_that_are_always_or_never_found(noise):
    target, query, match = cosines(100, 100, 5, noise=noise)
    query = target[np.arange(100)] + noise * (query - target[match])
    names = np.arange(100).astype(str)
    found = ub.tl.build_index(target, names=names).calibrate(query, names).search(query).confidences
    assert np.isfinite(found).all()
    assert 0.9 < found[:, 0].min() < 1 if noise == 0 else found.max() < 0.2


def test_collapsed_codes_are_at_chance():
    names = np.arange(50).astype(str)
    index = ub.tl.build_index(np.ones((50, 3)), names=names).calibrate(np.ones((50, 3)), names)
    hits = index.search(np.ones((2, 3)))
    np.testing.assert_allclose(hits.confidences, 1 / 50, atol=0.002)
    assert hits.p_values.tolist() == [[1] * 10] * 2


def test_how_many_are_asked_for_does_not_matter():
    target, query, match = cosines(80, 80, 6)
    index = ub.tl.build_index(target).calibrate(query, match.astype(str))
    few, many = index.search(query, 3), index.search(query, 25)
    np.testing.assert_array_equal(few.confidences, many.confidences[:, :3])
    np.testing.assert_array_equal(few.p_values, many.p_values[:, :3])
    assert np.isnan(many.confidences[:, 10:]).all()
    assert np.isfinite(many.p_values).all()


def test_too_few_groups_give_no_confidence():
    target, query, match = cosines(400, 200, 7)
    match = match % 29
    index = ub.tl.build_index(target)
    with pytest.warns(UserWarning, match="of 29 groups with a known match, fewer than the 30"):
        hits = index.calibrate(query, match.astype(str)).search(query)
    assert np.isnan(hits.confidences).all()
    assert ((hits.p_values > 0) & (hits.p_values <= 1)).all()


def test_queries_of_unknown_match_teach_nothing():
    target, query, match = cosines(120, 60, 8)
    names = match.astype(str).astype(object)
    names[60:80], names[80:100] = None, "not in the library"
    missing = query.copy()
    missing[100:] = np.nan
    found = ub.tl.build_index(target).calibrate(missing, names).search(query)
    expected = ub.tl.build_index(target).calibrate(query[:60], names[:60]).search(query)
    np.testing.assert_array_equal(found.confidences, expected.confidences)
    np.testing.assert_array_equal(found.p_values, expected.p_values)
    with pytest.raises(ValueError, match="None of the 20 queries.*called such as '0', '1', '2'"):
        ub.tl.build_index(target).calibrate(query[80:100], names[80:100])
