"""What `unbraid.metrics.clustering` promises."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from unbraid.metrics import _clustering as internals
from unbraid.metrics._clustering import clustering

LABELS = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3]
CLUSTERS = [1, 1, 0, 0, 0, 2, 3, 3, 3, 1, 2, 2]
MORE_CLUSTERS = [0, 0, 4, 1, 1, 1, 2, 2, 3, 3, 5, 5]


def blobs(rng, n=150, distance=8.0, n_classes=3):
    y = np.arange(n) % n_classes
    centres = distance * np.eye(n_classes, 4)
    return centres[y] + rng.normal(size=(n, 4)), np.array(["B", "NK", "T", "mono"])[y]


# ---- the measures


def test_agreement_of_given_clusters():
    result = clustering(None, LABELS, clusters=CLUSTERS)
    assert result.acc == pytest.approx(0.75)
    assert result.nmi == pytest.approx(0.6417674045582445)
    assert result.ari == pytest.approx(0.35874439461883406)
    assert (result.method, result.n_clusters, result.n_classes, result.n_obs) == ("given", (4,), 4, 12)
    assert result.clusters.tolist() == CLUSTERS


def test_surplus_clusters_stay_unmatched():
    result = clustering(None, LABELS, clusters=MORE_CLUSTERS)
    assert result.acc == pytest.approx(0.75)
    assert result.n_clusters == (6,)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_measures_are_those_of_scikit_learn(data):
    n = data.draw(st.integers(4, 40))
    partition = st.lists(st.integers(0, 4), min_size=n, max_size=n)
    a, b = np.array(data.draw(partition)), np.array(data.draw(partition))
    table = internals._table(a, b)
    accuracy, nmi, ari = internals._agreement(table)
    assert ari == pytest.approx(adjusted_rand_score(a, b))
    assert nmi == pytest.approx(normalized_mutual_info_score(a, b), abs=1e-9)
    renamed = np.array([3, 0, 4, 1, 2])[a]
    assert internals._agreement(internals._table(renamed, b)) == pytest.approx((accuracy, nmi, ari))
    assert internals._agreement(table.T) == pytest.approx((accuracy, nmi, ari))
    assert np.bincount(a).max() / n >= accuracy / 5
    assert max(table.max() / n, 1 / n) <= accuracy <= 1


@pytest.mark.parametrize("method", ["kmeans", "gmm", "leiden"])
def test_separate_classes_are_found(rng, method):
    x, y = blobs(rng)
    result = clustering(x, y, method=method, n_seeds=2)
    assert (result.acc, result.nmi, result.ari) == pytest.approx((1, 1, 1))
    assert result.n_clusters == (3, 3)
    assert result.method == method
    assert adjusted_rand_score(result.clusters, y) == 1
    assert result.acc_p_value == result.ari_p_value == 1 / 101


def test_leiden_searches_the_resolution(rng):
    x = rng.normal(size=(300, 3))  # without clusters: any number can be asked for
    for n_clusters in (4, 9):
        assert clustering(x, np.arange(300) % 2, method="leiden", n_clusters=n_clusters, n_seeds=1).n_clusters == (
            n_clusters,
        )
    far = np.concatenate([blobs(rng, n=30, n_classes=1)[0] + 1000 * k for k in range(5)])
    with pytest.warns(UserWarning, match="No resolution of leiden gave 2 clusters; the nearest number, 5,") as record:
        clustering(far, np.arange(150) % 2, method="leiden", n_seeds=1)
    assert record[0].filename == __file__


def test_number_of_clusters(rng):
    x, y = blobs(rng)
    result = clustering(x, y, n_clusters=6, n_seeds=2)
    assert result.n_clusters == (6, 6)
    assert result.acc < 0.8
    assert result.nmi < 0.9


def test_seeds_spread(rng):
    x, y = rng.uniform(size=(200, 6)), np.arange(200) % 8
    result = clustering(x, y, n_seeds=4)
    assert len(set(result.ari_seeds)) > 1
    assert result.ari == pytest.approx(np.mean(result.ari_seeds))
    assert result.to_series()["acc_sd"] == pytest.approx(np.std(result.acc_seeds, ddof=1))
    assert np.isnan(clustering(x, y, n_seeds=1).to_series()["acc_sd"])


# ---- chance and interval


def test_noise_is_at_chance(monkeypatch):
    monkeypatch.setattr(internals, "N_BOOTSTRAP", 10)
    p, ari = [], []
    for repeat in range(20):
        rng = np.random.default_rng(repeat)
        result = clustering(rng.normal(size=(60, 2)), np.arange(60) % 3, n_seeds=1, n_permutations=19)
        p.append(result.nmi_p_value)
        ari.append(result.ari)
        assert abs(result.ari_chance) < 0.02
        assert 0.33 < result.acc_chance < 0.5
        assert 0.005 < result.nmi_chance < 0.08
    assert abs(np.mean(p) - 0.525) < 3.5 * np.sqrt(1 / 12 / 20)
    assert abs(np.mean(ari)) < 0.02


def test_interval_is_a_bootstrap_of_observations(rng):
    a, y = rng.integers(3, size=90), np.arange(90) % 3
    a = np.where(rng.random(90) < 0.6, y, a)
    result = clustering(None, y, clusters=a)
    draws = rng.integers(90, size=(500, 90))
    values = np.array([adjusted_rand_score(a[d], y[d]) for d in draws])
    assert result.ari_interval == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.25 * values.std())
    assert result.acc_interval[0] < result.acc < result.acc_interval[1]
    narrow = clustering(None, y, clusters=a, confidence=0.5)
    assert np.diff(narrow.ari_interval) < np.diff(result.ari_interval)


def test_interval_counts_groups_not_observations(rng):
    donor = np.repeat(np.arange(15), 20)
    y = np.arange(300) % 2
    right = rng.random(15)[donor] < 0.6
    a = np.where(right, y, rng.integers(2, size=300))
    naive, grouped = (clustering(None, y, clusters=a, groups=g) for g in (None, donor))
    assert np.diff(grouped.acc_interval) > 1.5 * np.diff(naive.acc_interval)
    assert (naive.n_groups, grouped.n_groups) == (None, 15)


def test_labels_of_donors_move_with_donors(rng):
    """Clusters that are donors agree with the donors' disease no more than they do with any other choice of donors."""
    donor = np.repeat(np.arange(8), 25)
    disease = (donor < 4).astype(int)
    naive, grouped = (clustering(None, disease, clusters=donor, groups=g) for g in (None, donor))
    assert naive.nmi_p_value == 1 / 101
    assert grouped.nmi_p_value > 0.9


def test_without_permutations_there_is_no_chance(rng):
    result = clustering(None, LABELS, clusters=CLUSTERS, n_permutations=0)
    assert np.isnan([result.acc_chance, result.ari_p_value]).all()


# ---- what is left out, sources


def test_missing_rows_labels_and_clusters_are_left_out(rng):
    x, y = blobs(rng)
    expected = clustering(x[20:], y[20:])
    x[:10] = np.nan
    y = y.astype(object)
    y[10:20] = None
    result = clustering(x, y)
    assert (result.n_obs, result.n_dropped) == (130, 20)
    assert dataclasses.replace(result, n_dropped=0) == expected
    assert (result.clusters == -1).tolist() == [True] * 20 + [False] * 130
    given = clustering(None, LABELS, clusters=[None, None, *CLUSTERS[2:]])
    assert (given.n_obs, given.n_dropped) == (10, 2)


def test_anndata_is_read_by_key(rng):
    x, y = blobs(rng)
    obs = pd.DataFrame({"type": y, "found": y, "donor": np.arange(150) // 10}, index=[f"cell{i}" for i in range(150)])
    adata = AnnData(np.zeros((150, 1)), obs=obs)
    adata.obsm["Z_c"] = x
    expected = clustering(x, y, groups=np.arange(150) // 10)
    assert clustering(adata, "type", use_rep="Z_c", groups="donor") == expected
    assert clustering(adata, "type", clusters="found").acc == 1
    with pytest.raises(KeyError, match="'typ' is not in data.obs. Did you mean 'type'"):
        clustering(adata, "typ", use_rep="Z_c")


@pytest.mark.parametrize("method", ["kmeans", "gmm", "leiden"])
def test_constant_and_collapsed_features_do_not_crash(rng, method):
    x, y = blobs(rng, n=60)
    x[:, 3] = 7
    assert clustering(x, y, method=method, n_seeds=1).acc == 1
    if method == "kmeans":  # one point is one cluster
        with pytest.warns(UserWarning, match="distinct clusters"):
            result = clustering(np.ones((60, 2)), y, n_seeds=1)
        assert (result.n_clusters, result.nmi, result.ari) == ((1,), 0, 0)


X20 = np.random.default_rng(0).normal(size=(20, 3))
Y20 = np.arange(20) % 2


@pytest.mark.parametrize(
    ("data", "labels", "options", "message"),
    [
        (np.where(X20 == X20[4, 1], np.nan, X20), Y20, {}, "The embedding: 1 of 20 rows are NaN in some"),
        (np.where(X20 == X20[4, 1], np.inf, X20), Y20, {}, "1 of 20 rows are infinite"),
        (X20, Y20[:7], {}, "labels has 7 values"),
        (X20, np.ones(20), {}, "compared with classes, but there are 1"),
        (X20, [None] * 20, {}, "but there are 0"),
        (X20, Y20, {"n_clusters": 21}, "n_clusters must be at most the number of observations, 20, not 21"),
        (X20, Y20, {"n_clusters": 0}, "`n_clusters`"),
        (X20, Y20, {"groups": [None] * 20}, "have no group"),
        (X20, Y20, {"method": "louvain"}, "method must be one of"),
        (X20, Y20, {"n_seeds": 0}, "`n_seeds`"),
        (X20, Y20, {"n_permutations": -1}, "`n_permutations`"),
        (X20, Y20, {"n_neighbors": 1}, "`n_neighbors`"),
        (X20, Y20, {"confidence": 2}, "confidence must be"),
        (None, Y20, {}, "nothing to cluster"),
        (AnnData(X20), Y20, {"use_rep": "X", "clusters": Y20}, "either use_rep"),
    ],
)
def test_errors_name_what_is_wrong(data, labels, options, message):
    with pytest.raises(ValueError, match=message):
        clustering(data, labels, **options)


# ---- invariances


@pytest.mark.parametrize("method", ["kmeans", "gmm", "leiden"])
def test_order_of_observations_does_not_matter(rng, method):
    x, y = blobs(rng, n=90, distance=2)
    donor, order = rng.integers(6, size=90), rng.permutation(90)
    here = clustering(x, y, method=method, n_seeds=2, groups=donor)
    there = clustering(x[order], y[order], method=method, n_seeds=2, groups=donor[order])
    assert here == there
    assert (here.clusters[order] == there.clusters).all()


@pytest.mark.parametrize("method", ["kmeans", "gmm", "leiden"])
def test_same_seed_same_result_and_global_rng_undisturbed(rng, method):
    x, y = blobs(rng, n=90, distance=1)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (clustering(x, y, method=method, n_seeds=2, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


# ---- the result


def test_result_reads_as_a_sentence():
    result = clustering(None, LABELS, clusters=CLUSTERS)
    fixed = {f"{name}_interval": (0.25, 0.875) for name in internals.MEASURES}
    fixed |= {f"{name}_chance": -0.001 for name in internals.MEASURES}
    assert str(dataclasses.replace(result, **fixed)) == (
        "ACC 0.75 [0.25, 0.88], chance 0.00; NMI 0.64 [0.25, 0.88], chance 0.00; ARI 0.36 [0.25, 0.88], chance 0.00 "
        "(n = 12, given, 4 clusters, 4 classes)"
    )
    several = dataclasses.replace(result, n_clusters=(4, 6), method="leiden", n_groups=3)
    assert "(n = 12 in 3 groups, leiden, 4-6 clusters, 4 classes, 2 seeds)" in str(several)


def test_result_is_one_flat_row():
    result = clustering(None, LABELS, clusters=CLUSTERS)
    row = result.to_series()
    assert (row["nmi_low"], row["nmi_high"]) == result.nmi_interval
    assert (row["n_clusters"], row["n_seeds"]) == (4, 1)
    assert result.to_frame().shape == (1, len(row))
    assert "clusters" not in row.index
