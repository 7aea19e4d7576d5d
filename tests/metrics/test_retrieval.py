"""What `unbraid.metrics.retrieval` promises."""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from mudata import MuData
from scipy import sparse

from unbraid.metrics import _retrieval_design as design
from unbraid.metrics._retrieval import retrieval

# similarity of ten profiles of five molecules to each molecule
SIMILARITY = np.array(
    [
        [0.01, -2.035, 0.603, 0.744, -0.31],
        [1.167, 1.71, 1.061, 0.708, 0.688],
        [-0.864, 1.764, -1.648, -0.332, -0.437],
        [-1.729, 0.69, 1.643, -0.34, -1.208],
        [-0.091, 1.654, 0.193, -0.003, -1.409],
        [0.501, 0.486, 2.141, 1.489, 0.689],
        [-1.642, -1.435, -1.098, 1.095, -0.787],
        [1.31, 0.244, 0.365, 1.551, 0.34],
        [-1.411, 2.452, 1.463, 1.523, 0.053],
        [-1.847, -1.507, -1.053, 0.882, 1.7],
    ]
)
MOLECULE = np.array([0, 0, 1, 1, 1, 2, 3, 3, 4, 4])
OF_MOLECULES = {"query_groups": MOLECULE, "target_groups": np.arange(5), "metric": "dot"}


def pairs(rng, n=120, d=4, noise=0.7):
    x = rng.normal(size=(n, d))
    return x, x + noise * rng.normal(size=(n, d))


def naive_ranks(query, target, stratum=None):
    """Cosine similarity, one query at a time."""
    ranks = []
    for i, q in enumerate(query):
        among = np.flatnonzero(stratum == stratum[i]) if stratum is not None else np.arange(len(target))
        s = [q @ target[j] / np.linalg.norm(q) / np.linalg.norm(target[j]) for j in among]
        ranks.append(1 + sum(each > s[list(among).index(i)] for each in s))
    return np.array(ranks)


# ---- scores


def test_profile_to_molecule():
    result = retrieval(SIMILARITY, np.eye(5), top=(1, 2, 3, 5), **OF_MOLECULES)
    assert result.ranks.tolist() == [3, 2, 1, 2, 1, 1, 1, 1, 4, 1]
    assert result.mrr == pytest.approx(0.7583333333333333)
    assert result.mrr_macro == pytest.approx(0.775)
    assert result.top == pytest.approx({1: 0.6, 2: 0.8, 3: 0.9, 5: 1.0})
    assert (result.n_queries, result.n_candidates, result.n_groups, result.n_dropped) == (10, 5, 5, 0)
    assert result.median_rank == 1


def test_molecule_to_profile_by_the_best_replicate():
    result = retrieval(np.eye(5), SIMILARITY, query_groups=np.arange(5), target_groups=MOLECULE, metric="dot")
    assert result.ranks.tolist() == [2, 2, 1, 1, 1]
    assert result.mrr == pytest.approx(0.8)
    assert result.top[1] == pytest.approx(0.6)


def test_replicates_averaged():
    result = retrieval(SIMILARITY, np.eye(5), query_replicates="average", **OF_MOLECULES)
    assert result.ranks.tolist() == [3, 1, 1, 1, 2]
    assert result.mrr == pytest.approx(0.7666666666666666)
    assert result.n_queries == 5
    there = retrieval(
        np.eye(5),
        SIMILARITY,
        query_groups=np.arange(5),
        target_groups=MOLECULE,
        target_replicates="average",
        metric="dot",
    )
    averaged = np.stack([SIMILARITY[MOLECULE == m].mean(axis=0) for m in range(5)]).T
    assert there.ranks.tolist() == (1 + (averaged > np.diag(averaged)[:, None]).sum(axis=1)).tolist()


def test_rows_of_the_target_may_repeat_a_molecule():
    """One embedding of the molecule for each of its profiles, as they come out of a model."""
    repeated = retrieval(SIMILARITY, np.eye(5)[MOLECULE], query_groups=MOLECULE, metric="dot")
    assert repeated == retrieval(SIMILARITY, np.eye(5), **OF_MOLECULES)
    averaged = {"query_groups": MOLECULE, "metric": "dot", "target_replicates": "average"}
    assert retrieval(SIMILARITY, np.eye(5)[MOLECULE], **averaged) == repeated


def test_scores_are_those_of_a_loop(rng):
    x, y = pairs(rng)
    ranks = naive_ranks(x, y)
    result = retrieval(x, y, top=[1, 7])
    assert result.ranks.tolist() == ranks.tolist()
    assert result.top == pytest.approx({1: np.mean(ranks <= 1), 7: np.mean(ranks <= 7)})
    assert result.mrr == result.mrr_macro == pytest.approx(np.mean(1 / ranks))
    assert result.median_rank == np.median(ranks)
    assert result.foscttm == pytest.approx(np.mean((ranks - 1) / 119))
    assert (result.n_queries, result.n_candidates, result.n_groups, result.n_strata) == (120, 120, None, None)


def test_euclidean_distance_is_not_cosine(rng):
    x, y = pairs(rng)
    far = 1e4 + x, 1e4 + y
    distance = np.linalg.norm(x[:, None] - y[None], axis=2)
    ranks = 1 + (distance < np.diag(distance)[:, None]).sum(axis=1)
    assert retrieval(*far, metric="euclidean").ranks.tolist() == ranks.tolist()
    assert retrieval(x, y).ranks.tolist() != ranks.tolist()
    longer = x * rng.uniform(0.1, 10, size=(120, 1))
    assert retrieval(longer, y).ranks.tolist() == retrieval(x, y).ranks.tolist()


def test_blocks_do_not_matter(rng, monkeypatch):
    x, y = pairs(rng)
    molecule = rng.integers(30, size=120)
    whole = retrieval(x, y, query_groups=molecule)
    monkeypatch.setattr(design, "BLOCK", 500)
    assert retrieval(x, y, query_groups=molecule) == whole


# ---- ties and chance


def test_a_collapsed_embedding_is_exactly_at_chance(rng):
    stratum = np.repeat(["a", "b", "c"], [30, 20, 7])
    for options in ({}, {"strata": stratum}):
        result = retrieval(np.ones((57, 3)), rng.normal(size=(57, 1)) * np.ones(3), metric="euclidean", **options)
        collapsed = retrieval(rng.normal(size=(57, 3)), np.zeros((57, 3)), **options)
        assert collapsed.top == pytest.approx(collapsed.top_chance)
        assert collapsed.mrr == pytest.approx(collapsed.mrr_chance)
        assert collapsed.foscttm == pytest.approx(0.5)
        assert result.foscttm_chance == 0.5


def test_ties_are_the_average_over_ways_of_breaking_them():
    query = np.array([[1.0, 0], [1.0, 0], [1.0, 0], [0, 1.0]])
    target = np.array([[1.0, 0], [0.6, 0.8], [1.0, 0], [0, 1.0]])
    result = retrieval(query, target, top=(1, 2))
    assert result.ranks.tolist() == [1.5, 3, 1.5, 1]  # rows 0 and 2 are as close to either
    assert result.top == {1: (0.5 + 0 + 0.5 + 1) / 4, 2: 3 / 4}
    assert result.mrr == pytest.approx((0.75 + 1 / 3 + 0.75 + 1) / 4)


@pytest.mark.parametrize("k", [2, 5, 12])
def test_chance_is_that_of_uniform_ranks(rng, k):
    rank = np.arange(1, k + 1)
    result = retrieval(rng.normal(size=(k, 3)), rng.normal(size=(k, 3)))
    assert result.top_chance == pytest.approx({n: np.mean(rank <= n) for n in (1, 5, 10, 20, 30)})
    assert result.mrr_chance == result.mrr_macro_chance == pytest.approx(np.mean(1 / rank))
    assert result.median_rank_chance == np.median(rank) == (k + 1) / 2


def test_chance_over_strata_is_that_of_their_queries():
    size = np.array([3, 8, 20])
    stratum = np.repeat(np.arange(3), size)
    x = np.random.default_rng(0).normal(size=(31, 3))
    result = retrieval(x, x, strata=stratum)
    of_query = size[stratum]
    assert result.n_strata == 3
    assert result.n_candidates == pytest.approx(of_query.mean())
    assert result.top_chance[5] == pytest.approx(np.mean(np.minimum(5, of_query) / of_query))
    harmonic = [sum(1 / r for r in range(1, k + 1)) / k for k in of_query]
    assert result.mrr_chance == pytest.approx(np.mean(harmonic))
    ranks = np.concatenate([np.tile(np.arange(1, k + 1), 480 // k * k) for k in size])  # each size k times, 480 ranks
    assert result.median_rank_chance == np.median(ranks)


def test_random_embeddings_score_chance(rng):
    result = retrieval(rng.normal(size=(400, 5)), rng.normal(size=(400, 5)))
    assert abs(result.foscttm - 0.5) < 4 / np.sqrt(12 * 400)
    assert result.mrr_interval[0] < result.mrr_chance < result.mrr_interval[1]
    assert abs(result.median_rank - 200.5) < 4 * 400 * 0.5 / np.sqrt(400)


# ---- strata


def test_candidates_are_of_the_stratum(rng):
    x, y = pairs(rng)
    stratum = rng.integers(4, size=120)
    result = retrieval(x, y, strata=stratum)
    assert result.ranks.tolist() == naive_ranks(x, y, stratum).tolist()


def test_a_stratum_is_not_a_match(rng):
    """An embedding that holds the batch alone is good globally and at chance within batches."""
    batch = np.repeat(np.arange(10), 20)
    x = 5 * rng.normal(size=(10, 4))[batch]
    globally, within = (retrieval(x, x, strata=s) for s in (None, batch))
    assert globally.mrr > 5 * globally.mrr_chance
    assert within.mrr == pytest.approx(within.mrr_chance)


def test_molecules_of_a_cell_line_are_its_candidates():
    """Of a target without rows per cell line."""
    line = np.array(["A", "B"])[[0, 1, 0, 0, 1, 0, 0, 1, 1, 1]]
    expected = []
    for i in range(10):
        among = np.unique(MOLECULE[line == line[i]])
        expected.append(1 + (SIMILARITY[i, among] > SIMILARITY[i, MOLECULE[i]]).sum())
    separate = retrieval(SIMILARITY, np.eye(5), strata=line, **OF_MOLECULES)
    assert separate.ranks.tolist() == expected
    assert retrieval(SIMILARITY, np.eye(5)[MOLECULE], query_groups=MOLECULE, strata=line, metric="dot") == separate
    averaged = retrieval(SIMILARITY, np.eye(5), strata=line, query_replicates="average", **OF_MOLECULES)
    assert averaged.n_queries == len(set(zip(MOLECULE, line, strict=True)))


def test_a_single_candidate_is_no_choice(rng):
    x, y = pairs(rng, n=21)
    stratum = np.repeat(["a", "b", "alone"], [10, 10, 1])
    result = retrieval(x, y, strata=stratum)
    assert (result.n_queries, result.n_dropped, result.n_strata) == (20, 1, 2)
    assert np.isnan(result.ranks[20])


# ---- what is left out, subsets, intervals


def test_missing_rows_are_neither_asked_nor_found(rng):
    x, y = pairs(rng)
    x[:10], y[5:15] = np.nan, np.nan
    result = retrieval(x, y)
    assert (result.n_queries, result.n_candidates, result.n_dropped) == (105, 105, 15)
    assert result == dataclasses.replace(retrieval(x[15:], y[15:]), n_dropped=15)
    assert np.isnan(result.ranks[:15]).all()
    molecule = np.arange(120) // 4
    grouped = retrieval(x, y, query_groups=molecule)
    assert (grouped.n_queries, grouped.n_candidates) == (108, 29)  # molecule 2 has no target
    assert grouped.n_dropped == 12


def test_max_obs_limits_the_queries_and_not_the_candidates(rng):
    x, y = pairs(rng, n=300)
    result = retrieval(x, y, max_obs=100)
    whole = retrieval(x, y)
    assert (result.n_queries, result.n_candidates, result.n_dropped) == (100, 300, 0)
    asked = ~np.isnan(result.ranks)
    assert (result.ranks[asked] == whole.ranks[asked]).all()
    assert retrieval(x, y, max_obs=1000) == whole


def test_interval_covers_the_true_score():
    """The share of queries with the right candidate first is a known probability: a coin of 0.7 per query."""
    covered = 0
    for repeat in range(40):
        rng = np.random.default_rng(repeat)
        right = rng.random(80) < 0.7
        x = np.eye(80)
        y = np.where(right[:, None], x, -x)
        low, high = retrieval(x, y, top=(1,)).top_interval[1]
        covered += low <= 0.7 <= high
    assert covered >= 35


def test_interval_counts_groups_not_rows(rng):
    donor = np.repeat(np.arange(12), 20)
    noise = rng.uniform(0, 3, size=12)[donor, None]
    x = rng.normal(size=(240, 4))
    y = x + noise * rng.normal(size=(240, 4))
    grouped, naive = retrieval(x, y, groups=donor), retrieval(x, y)
    assert grouped.mrr == pytest.approx(naive.mrr)
    assert np.diff(grouped.mrr_interval) > 1.5 * np.diff(naive.mrr_interval)
    assert (grouped.n_groups, naive.n_groups) == (12, None)
    assert grouped.mrr_macro == pytest.approx(np.mean([(1 / grouped.ranks[donor == d]).mean() for d in range(12)]))


def test_interval_is_a_bootstrap_of_queries(rng):
    x, y = pairs(rng, n=60)
    result = retrieval(x, y)
    draws = rng.integers(60, size=(4000, 60))
    for interval, values in (
        (result.mrr_interval, (1 / result.ranks)[draws].mean(axis=1)),
        (result.median_rank_interval, np.median(result.ranks[draws], axis=1)),
    ):
        assert interval == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.25 * values.std() + 0.01)


# ---- AnnData and MuData


@pytest.fixture
def mdata(rng):
    """RNA of cells 0-59, protein of cells 10-69."""
    x, y = pairs(rng, n=70, noise=0.3)
    names = [f"cell{i}" for i in range(70)]
    rna, prot = (AnnData(np.zeros((60, 1), np.float32), obs=pd.DataFrame(index=n)) for n in (names[:60], names[10:]))
    rna.obsm["Z_c"], prot.obsm["Z_c"] = x[:60], y[10:]
    rna.obs["batch"] = np.arange(60) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"rna": rna, "prot": prot})
    mdata.obs["donor"] = [f"d{int(name[4:]) % 7}" for name in mdata.obs_names]
    return mdata


def test_mudata_is_read_by_key(mdata):
    result = retrieval("rna:Z_c", "prot:Z_c", data=mdata, groups="donor")
    x, y = mdata["rna"].obsm["Z_c"][10:], mdata["prot"].obsm["Z_c"][:50]
    assert (result.n_queries, result.n_candidates, result.n_dropped, result.n_groups) == (50, 50, 20, 7)
    assert result.mrr == pytest.approx(retrieval(x, y).mrr)
    within = retrieval("rna:Z_c", "prot:Z_c", data=mdata, strata="donor")
    assert within.n_strata == 7
    with pytest.raises(KeyError, match="Did you mean 'Z_c'"):
        retrieval("rna:Zc", "prot:Z_c", data=mdata)
    with pytest.raises(KeyError, match="'donr' is not in data.obs"):
        retrieval("rna:Z_c", "prot:Z_c", data=mdata, strata="donr")


def test_sparse_and_frames_are_read(rng):
    x, y = pairs(rng)
    expected = retrieval(x, y)
    assert retrieval(sparse.csr_matrix(x), pd.DataFrame(y)) == expected


# ---- errors

X20 = np.random.default_rng(0).normal(size=(20, 3))


def with_value(value):
    x = X20.copy()
    x[4, 1] = value
    return x


@pytest.mark.parametrize(
    ("query", "target", "options", "message"),
    [
        (with_value(np.nan), X20, {}, "query: 1 of 20 rows are NaN in some features"),
        (X20, with_value(np.inf), {}, "target: 1 of 20 rows are infinite"),
        (X20, X20[:, :2], {}, "query has 3 features, but target has 2"),
        (X20, X20[:7], {}, "query has 20 rows and target 7. Row i of one must match"),
        (X20, X20[:7], {"query_groups": np.arange(20)}, "query_groups cannot stand for both: pass target_groups"),
        (X20, X20[:7], {"query_groups": np.arange(20), "target_groups": np.arange(7)}, "13 of 20 queries .* as 7"),
        (X20, X20, {"query_groups": [None, *"b" * 19]}, "1 of 20 observations have no group"),
        (X20, X20, {"strata": [None, *"b" * 19]}, "have no stratum"),
        (X20, X20, {"strata": np.arange(20)}, "None of 20 queries has two candidates .* single candidate"),
        (X20, X20, {"query_groups": np.zeros(20)}, "None of 20 queries has two candidates"),
        (X20 * np.nan, X20, {}, "None of 20 queries"),
        (X20, X20, {"groups": np.arange(3)}, "groups has 3 values"),
        (X20, "rna:Z_c", {}, "there is no data: pass data"),
        (AnnData(X20), X20, {}, "query must be an array or a key"),
        (X20[:, 0], X20, {}, "query: The embedding must have shape"),
        (X20, X20, {"metric": "manhattan"}, "metric must be one of"),
        (X20, X20, {"query_replicates": "best"}, "query_replicates must be one of 'each', 'average'"),
        (X20, X20, {"target_replicates": "each"}, "target_replicates must be one of"),
        (X20, X20, {"top": (0,)}, "`top` must be a whole number of at least 1"),
        (X20, X20, {"max_obs": 0}, "`max_obs`"),
        (X20, X20, {"confidence": 1}, "confidence must be between 0 and 1"),
    ],
)
def test_errors_name_what_is_wrong(query, target, options, message):
    with pytest.raises(ValueError, match=message):
        retrieval(query, target, **options)


# ---- invariances


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), grouped=st.booleans(), stratified=st.booleans(), ties=st.booleans())
def test_order_of_observations_does_not_matter(seed, grouped, stratified, ties):
    rng = np.random.default_rng(seed)
    x, y = pairs(rng, n=50)
    if ties:
        x, y = x.round(), y.round()
    order = rng.permutation(50)
    here, there = {}, {}
    for name, on, values in (("groups", grouped, rng.integers(8, size=50)), ("strata", stratified, np.arange(50) % 3)):
        if on:
            here[name], there[name] = values, values[order]
    a, b = retrieval(x, y, **here), retrieval(x[order], y[order], **there)
    assert a.to_series().drop(["metric", "n_groups", "n_strata"]).astype(float).to_numpy() == pytest.approx(
        b.to_series().drop(["metric", "n_groups", "n_strata"]).astype(float).to_numpy()
    )
    assert (a.ranks[order] == b.ranks).all()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(1e-3, 1e3),
    metric=st.sampled_from(["cosine", "euclidean", "dot"]),
    tau=st.floats(-3, 3),
)
def test_rotation_and_scale_do_not_matter(seed, scale, metric, tau):
    rng = np.random.default_rng(seed)
    x, y = pairs(rng, n=40)
    rotation = scale * np.linalg.qr(rng.normal(size=(4, 4)))[0]
    shift = tau if metric == "euclidean" else 0
    there = retrieval(x @ rotation + shift, y @ rotation + shift, metric=metric)
    assert (there.ranks == retrieval(x, y, metric=metric).ranks).all()


def test_same_seed_same_result_and_global_rng_undisturbed(rng):
    x, y = pairs(rng)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (retrieval(x, y, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_input_is_not_changed(rng):
    x, y = pairs(rng)
    before = x.copy(), y.copy()
    retrieval(x, y, metric="euclidean")
    retrieval(x, y, query_groups=np.arange(120) // 2, query_replicates="average", target_replicates="average")
    np.testing.assert_array_equal([x, y], before)


# ---- the result


def test_result_reads_as_a_sentence(rng):
    result = retrieval(SIMILARITY, np.eye(5), top=(1, 2), **OF_MOLECULES)
    low, high = result.mrr_interval
    assert str(result) == (
        f"MRR 0.76 [{low:.2f}, {high:.2f}], chance 0.46; top-1 0.60 (chance 0.2), top-2 0.80 (chance 0.4); "
        "median rank 1 of 5, FOSCTTM 0.17 (n = 10 in 5 groups)"
    )


def test_result_is_one_flat_row():
    result = retrieval(SIMILARITY, np.eye(5), **OF_MOLECULES)
    row = result.to_series()
    assert (row["top1"], row["top1_low"], row["top1_high"]) == (0.6, *result.top_interval[1])
    assert row["top1_chance"] == pytest.approx(0.2)
    assert (row["median_rank_low"], row["median_rank_high"]) == result.median_rank_interval
    frame = result.to_frame()
    assert frame.shape == (1, len(row))
    assert frame["mrr_macro_chance"].dtype == float
