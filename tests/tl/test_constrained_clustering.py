"""``ub.tl.constrained_kmeans`` and ``ub.tl.relevant_components``."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from unbraid.data import Pairs
from unbraid.pp import pairs_from_labels
from unbraid.tl import _constrained_kmeans, constrained_kmeans, relevant_components

NONE = Pairs([], [])


def accuracy(labels, clusters):
    table = np.zeros((labels.max() + 1, clusters.max() + 1))
    np.add.at(table, (labels, clusters), 1)
    return table[linear_sum_assignment(-table)].sum() / len(labels)


def objective(x, clusters, pairs, weight):
    """As in the docstring, a cell and a pair at a time; infinite if a must-link is broken."""
    if any(clusters[a] != clusters[b] for a, b in pairs.must):
        return np.inf
    centres = {c: x[clusters == c].mean(axis=0) for c in set(clusters.tolist())}
    squares = sum(float(((x[i] - centres[c]) ** 2).sum()) for i, c in enumerate(clusters.tolist()))
    return squares + weight * sum(clusters[a] == clusters[b] for a, b in pairs.cannot)


@pytest.mark.filterwarnings("ignore:.*cannot-links join cells that must-links chain")
def test_the_best_of_all_clusterings_is_found_nearly_always():
    n_exact = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, weight = rng.normal(size=(6, 1 + seed % 2)), (0.0, 0.3, 2.0, 50.0)[seed % 4]
        chosen = np.array(list(combinations(range(6), 2)))[rng.permutation(15)[: rng.integers(7)]]
        n_must = min(seed % 3, len(chosen))
        pairs = Pairs(chosen[:n_must], chosen[n_must:])
        found = constrained_kmeans(x, pairs, 2, weight=weight)
        assert found.dtype == np.int64
        every = (np.array(c) for c in product((0, 1), repeat=6) if 0 < sum(c) and c[0] == 0)
        best = min(objective(x, c, pairs, weight) for c in every)
        n_exact += objective(x, found, pairs, weight) <= best + 1e-9
    assert n_exact >= 34  # two cells of a cannot-link that must swap are beyond a search by single moves


@pytest.mark.parametrize("seed", range(3))
def test_no_step_raises_the_objective(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    x, n = rng.normal(size=(120, 3)), 120
    labels = rng.integers(4, size=n)
    chosen = np.array(list(combinations(range(n), 2)))[rng.choice(n * (n - 1) // 2, 400, replace=False)]
    chosen = chosen[(labels[chosen[:, 0]] != labels[chosen[:, 1]]) | (rng.random(400) < 0.3)]
    same = labels[chosen[:, 0]] == labels[chosen[:, 1]]
    pairs, weight = Pairs(chosen[same], chosen[~same]), 3.0
    points = _constrained_kmeans._Points.of(x, pairs)

    def value(max_sweeps, max_iter):
        monkeypatch.setattr(_constrained_kmeans, "MAX_SWEEPS", max_sweeps)
        start = points.x[np.random.default_rng(seed).choice(len(points.x), 4, replace=False)]
        reported, clusters = _constrained_kmeans._descend(points, start, weight, max_iter)
        assert reported == pytest.approx(objective(x, clusters[points.of_cell], pairs, weight))
        return reported

    # each of these runs is the one before it and a step more
    for values in ([value(1, k) for k in range(1, 30)], [value(20, k) for k in range(1, 10)]):
        assert (np.diff(values) <= 1e-9).all()
        assert values[-1] < values[0]


def test_without_pairs_it_is_kmeans():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)) + 6 * np.eye(2)[rng.integers(2, size=200)]
    found = constrained_kmeans(x, NONE, 3)
    assert objective(x, found, NONE, 0) == pytest.approx(KMeans(3, n_init=20, random_state=0).fit(x).inertia_)


def test_must_links_hold_and_cannot_links_do_as_the_weight_says():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 2))
    chosen = rng.permutation(60).reshape(-1, 2)
    pairs = Pairs(chosen[:10], chosen[10:])
    violated = lambda weight: int(np.equal(*constrained_kmeans(x, pairs, 2, weight=weight)[pairs.cannot].T).sum())
    found = constrained_kmeans(x, pairs, 2)
    assert (found[pairs.must[:, 0]] == found[pairs.must[:, 1]]).all()
    assert violated(0) > violated(1.0) > violated(1e6) == 0


def test_pairs_choose_among_two_ways_to_divide():
    rng = np.random.default_rng(0)
    a, b = rng.integers(2, size=(2, 200))
    x = np.stack([4.0 * a, 5.0 * b], axis=1) + rng.normal(size=(200, 2)) * 0.5  # b is farther apart
    adata = AnnData(np.zeros((200, 1)), obs=pd.DataFrame({"a": a}, index=map(str, range(200))), obsm={"Z": x})
    pairs_from_labels(adata, "a", fraction=1)
    plain = constrained_kmeans(x, NONE, 2)
    found = constrained_kmeans(adata, "pairs", 2, use_rep="Z")
    assert accuracy(b, plain) == 1
    assert accuracy(a, found) == 1
    np.testing.assert_array_equal(found, constrained_kmeans(x, adata.obsp["pairs"], 2))


def test_contradictions_are_told():
    x = np.array([[0.0], [1.0], [5.0], [6.0]])
    with pytest.warns(UserWarning, match="1 of 2 cannot-links join cells that must-links chain"):
        found = constrained_kmeans(x, Pairs([[0, 1], [1, 2]], [[0, 2], [0, 3]]), 2)
    assert found[0] == found[1] == found[2] != found[3]


# ---- relevant components -----------------------------------------------------------------------------


def two_factors(seed, n_obs=3000, n_classes=10, n_features=24, modalities=3):
    """Two classes that are a quarter of the variance each, beside classes of each modality (.4) and noise (.1)."""
    rng = np.random.default_rng(seed)

    def centroids(k):
        c = rng.standard_normal((k, n_features))
        c -= c.mean(axis=0)
        return c / np.sqrt(np.mean(c**2))

    left, right = rng.integers(n_classes, size=(2, n_obs))
    x = [
        np.sqrt(0.25) * (centroids(n_classes)[left] + centroids(n_classes)[right])
        + np.sqrt(0.4) * centroids(4)[rng.integers(4, size=n_obs)]
        + np.sqrt(0.1) * rng.standard_normal((n_obs, n_features))
        for _ in range(modalities)
    ]
    return np.concatenate(x, axis=1), left, right


@pytest.mark.parametrize("seed", range(2))
def test_a_tenth_of_pairs_per_cell_says_which_factor_is_meant(seed):
    x, left, right = two_factors(seed)
    obs = pd.DataFrame({"left": left, "right": right}, index=[f"cell{i}" for i in range(len(x))])
    adata = AnnData(x, obs=obs)
    kmeans = KMeans(10, n_init=5, random_state=0)
    assert accuracy(left, kmeans.fit_predict(x)) < 0.7
    for key, labels in (("left", left), ("right", right)):
        pairs_from_labels(adata, key, fraction=0.1)
        z = relevant_components(adata, "pairs", use_rep="X", n_components=9)
        assert z.shape == (3000, 9)
        assert z.dtype == np.float32
        assert accuracy(labels, kmeans.fit_predict(z)) > 0.98


def chunklets(seed=0, n=60, d=4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    labels = rng.integers(8, size=n)
    chain = [(a, b) for k in range(8) for a, b in zip(*(np.flatnonzero(labels == k)[s] for s in (slice(-1), slice(1, None))), strict=True)]  # fmt: skip
    return x, labels, Pairs(chain, [])


def within_covariance(x, labels):
    deviations = np.concatenate([x[labels == k] - x[labels == k].mean(axis=0) for k in np.unique(labels)])
    return deviations.T @ deviations / (len(x) - len(np.unique(labels)))


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_whitening_is_the_inverse_root_of_the_covariance_within(shrinkage):
    x, labels, pairs = chunklets()
    c = within_covariance(x, labels)
    c = (1 - shrinkage) * c + shrinkage * np.trace(c) / 4 * np.eye(4)
    expected = (x - x.mean(axis=0)) @ np.linalg.inv(sqrtm(c).real)
    np.testing.assert_allclose(relevant_components(x, pairs, shrinkage=shrinkage), expected, atol=1e-5)


def test_components_are_those_of_linear_discriminant_analysis():
    # with all labels known, total over within and between over within have the same directions
    x, labels, pairs = chunklets()
    z = relevant_components(x, pairs, n_components=3, shrinkage=0.0)
    expected = LinearDiscriminantAnalysis(solver="eigen").fit(x, labels).transform(x)[:, :3]
    correlation = np.abs(np.corrcoef(z.T, expected.T)[:3, 3:])
    np.testing.assert_allclose(correlation.diagonal(), 1, atol=1e-5)
    np.testing.assert_allclose(within_covariance(z.astype(float), labels), np.eye(3), atol=1e-5)
    total = np.cov(z.T)
    assert np.abs(total - np.diag(total.diagonal())).max() < 1e-4
    assert (np.diff(total.diagonal()) < 0).all()


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.integers(0, 1000))
def test_units_do_not_matter_without_shrinkage(seed):
    x, _, pairs = chunklets(seed)
    mixed = x @ np.random.default_rng(seed + 1).normal(size=(4, 4)) + 7
    z, other = (relevant_components(data, pairs, n_components=2, shrinkage=0.0) for data in (x, mixed))
    np.testing.assert_allclose(np.abs(z), np.abs(other), atol=1e-3)


# ---- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [lambda *args: constrained_kmeans(*args, 2), relevant_components])
def test_wrong_data_and_pairs(function):
    x, pairs = np.random.default_rng(0).normal(size=(10, 2)), Pairs([[0, 1], [2, 3], [4, 5]], [])
    absent = x.copy()
    absent[3] = np.nan
    with pytest.raises(ValueError, match="1 of 10 cells have no embedding"):
        function(absent, pairs)
    with pytest.raises(ValueError, match="but there are 10 cells"):
        function(x, Pairs([[0, 10]], []))
    with pytest.raises(ValueError, match="a matrix of 11 cells, but the embedding has 10 rows"):
        function(x, pairs.matrix(11))
    with pytest.raises(ValueError, match="names a key of obsp, but data is an array"):
        function(x, "pairs")
    with pytest.raises(ValueError, match="Name the embedding with use_rep"):
        function(AnnData(x, obsp={"pairs": pairs.matrix(10)}), "pairs")


def test_wrong_numbers():
    x, pairs = np.random.default_rng(0).normal(size=(6, 3)), Pairs([[0, 1], [1, 2]], [])
    for n_clusters, message in ((1, "n_clusters"), (5, "`n_clusters` is 5, but must-links chain the 6 cells to 4")):
        with pytest.raises(ValueError, match=message):
            constrained_kmeans(x, pairs, n_clusters)
    assert len(set(constrained_kmeans(x, pairs, 4))) == 4
    for options in ({"weight": -1.0}, {"n_init": 0}, {"max_iter": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            constrained_kmeans(x, pairs, 2, **options)
    for options in ({"n_components": 4}, {"n_components": 0}, {"shrinkage": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            relevant_components(x, pairs, **options)
    with pytest.raises(ValueError, match="no must-links"):
        relevant_components(x, Pairs([], [[0, 1]]))
    with pytest.raises(ValueError, match="singular"):  # two must-links, three features
        relevant_components(x, pairs, shrinkage=0.0)
