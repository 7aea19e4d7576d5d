"""What `unbraid.metrics.dependence` promises."""

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from mudata import MuData
from scipy.spatial.distance import cdist

from unbraid.metrics import _dependence as internals
from unbraid.metrics._dependence import dependence
from unbraid.metrics._pairs import orders, read_pairs

FAST = {"n_permutations": 99, "max_obs": None}


def naive_corrected(x, y):
    """Székely and Rizzo (2014), definition 2 and eq. 3.2, term by term."""

    def u_centred(z):
        d = cdist(z, z)
        n = len(d)
        out = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    out[i, j] = d[i, j] - d[i].sum() / (n - 2) - d[:, j].sum() / (n - 2) + d.sum() / ((n - 1) * (n - 2))
        return out

    a, b = u_centred(x), u_centred(y)
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def distances(*sides):
    return [cdist(x, x) for x in sides]


# ---- numbers


A = np.array(
    [
        [-1.179, 1.852],
        [-0.33, 1.062],
        [-0.829, -0.249],
        [-1.689, -1.909],
        [-0.976, -0.078],
        [0.798, 2.426],
        [-1.032, 1.009],
    ]
)
B = np.array(
    [
        [-0.604, -0.153, -1.481],
        [-1.479, -0.778, -1.193],
        [-0.004, -0.703, 1.251],
        [0.153, 0.165, 1.137],
        [0.518, -0.037, -0.091],
        [-0.121, 1.077, 0.783],
        [0.366, 0.799, -0.545],
    ]
)


def test_statistics_equal_values_computed_elsewhere():
    assert internals.hsic_biased(A, B, 1.0, 1.5) == pytest.approx(0.057815459009149466, rel=1e-10)
    kernels = [
        internals.centred(internals.gaussian_kernel(d, s)) for d, s in zip(distances(A, B), (1.0, 1.5), strict=True)
    ]
    assert internals._cosine(*kernels) == pytest.approx(0.6534418175275128, rel=1e-10)
    corrected, biased = internals._distance_correlations(*distances(A, B))
    assert biased == pytest.approx(0.7771742729388372, rel=1e-10)
    assert corrected == pytest.approx(naive_corrected(A, B), rel=1e-10)


def test_permuted_statistics_are_those_of_permuted_rows(rng):
    """The compiled sums against both statistics computed afresh from permuted data."""
    a, b = rng.normal(size=(2, 40, 3))
    pairs = read_pairs(a, b, None, None, None, 8)
    d = distances(pairs.a, pairs.b)
    kernels = [internals.centred(internals.gaussian_kernel(x, 2.0)) for x in d]
    null = internals._null(pairs, d, kernels, 5, np.random.default_rng(3))
    for row, order in zip(null, orders(pairs, np.random.default_rng(3)), strict=False):
        expected = internals._distance_correlations(*distances(pairs.a, pairs.b[order]))
        again = internals.centred(internals.gaussian_kernel(cdist(pairs.b[order], pairs.b[order]), 2.0))
        np.testing.assert_allclose(row, [*expected, internals._cosine(kernels[0], again)], atol=1e-5)


def test_sums_without_a_block_are_those_of_the_rest(rng):
    x, y = distances(*rng.normal(size=(2, 30, 2)))
    block = np.arange(30) % 4
    member = np.eye(4)[block]
    n_kept = 30 - member.sum(axis=0)
    found = internals._corrected(*internals._sums_without(x, y, member), n_kept)
    for k in range(4):
        place = np.ix_(block != k, block != k)
        rest = internals._sums(np.vdot(x[place], y[place]), x[place].sum(1), y[place].sum(1))
        assert found[k] == pytest.approx(internals._corrected(*rest, n_kept[k]), rel=1e-8)


# ---- what it finds


@pytest.mark.parametrize(
    "of",
    [lambda a, e: a + e, lambda a, e: a**2 + e, lambda a, e: np.where(a > 0, 3 * a * e, e)],
    ids=["linear", "square", "variance"],
)
def test_dependence_of_several_kinds_is_found(rng, of):
    a, noise = rng.normal(size=(2, 400, 2))
    found = dependence(a, of(a, noise), **FAST)
    assert min(found.distance_correlation_p_value, found.hsic_p_value) == 0.01
    low, high = found.distance_correlation_interval
    assert low < found.distance_correlation < high


def test_p_values_of_independent_sides_are_uniform():
    p = []
    for seed in range(100):
        a, b = np.random.default_rng(seed).normal(size=(2, 30, 2))
        found = dependence(a, b, n_permutations=19, seed=seed)
        p.append((found.distance_correlation_p_value, found.hsic_p_value))
    share = (np.array(p) <= 0.1).mean(axis=0)
    assert (share < 0.2).all()
    assert (share > 0.02).all()
    assert abs(np.mean(p) - 0.525) < 0.1


def test_dependence_through_strata_is_chance_within_them(rng):
    stratum = rng.integers(5, size=400)
    a, b = rng.normal(size=(2, 400, 2)) + stratum[:, None]
    free, within = dependence(a, b, **FAST), dependence(a, b, strata=stratum, **FAST)
    assert free.distance_correlation_p_value == free.hsic_p_value == 0.01
    assert within.distance_correlation_p_value > 0.05
    assert within.hsic_p_value > 0.05
    assert within.distance_correlation == free.distance_correlation
    assert (within.n_strata, within.permuted) == (5, "observations within strata")
    b[:, 0] += 0.5 * a[:, 0]
    assert dependence(a, b, strata=stratum, **FAST).distance_correlation_p_value == 0.01


def test_groups_are_permuted_whole_where_a_side_is_constant_in_them(rng):
    """Rows of a molecule repeat it: permuting rows would find dependence of a chance resemblance of molecules."""
    p_free, p_whole = [], []
    group = np.repeat(np.arange(12), 6)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a = rng.normal(size=(12, 2))[group]
        b = rng.normal(size=(12, 2))[group] + 0.3 * rng.normal(size=(72, 2))
        p_free.append(dependence(a, b, n_permutations=49).hsic_p_value)
        found = dependence(a, b, groups=group, n_permutations=49)
        p_whole.append(found.hsic_p_value)
    assert found.permuted == "whole groups of a"
    assert found.n_groups == 12
    assert np.mean(np.array(p_free) <= 0.05) > 0.4
    assert np.mean(np.array(p_whole) <= 0.05) <= 0.2


def test_groups_else_keep_their_rows(rng):
    donor = rng.integers(6, size=300)
    a, b = rng.normal(size=(2, 300, 2)) + 2 * rng.normal(size=(2, 6, 2))[:, donor]
    found = dependence(a, b, groups=donor, **FAST)
    assert found.permuted == "observations within groups"
    assert found.distance_correlation_p_value > 0.05


# ---- laws


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_laws(seed, scale, shift):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 25, 2))
    b += a
    found = dependence(a, b, n_permutations=9)
    swapped, moved = dependence(b, a, n_permutations=0), dependence(shift + scale * a, b, n_permutations=0)
    for name in ("distance_correlation", "distance_correlation_biased", "cka"):
        value = getattr(found, name)
        assert value <= 1 + 1e-9
        assert getattr(swapped, name) == pytest.approx(value)
        assert getattr(moved, name) == pytest.approx(value, abs=1e-6)
    order = rng.permutation(25)
    assert dependence(a[order], b[order], n_permutations=9) == found


def test_of_itself_it_is_one(rng):
    a = rng.normal(size=(50, 3))
    found = dependence(a, a, n_permutations=9)
    np.testing.assert_allclose([found.distance_correlation, found.distance_correlation_biased, found.cka], 1)


def test_same_seed_same_result_and_global_rng_undisturbed(rng):
    a, b = rng.normal(size=(2, 60, 2))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, same, other = (dependence(a, b, n_permutations=19, max_obs=50, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one.n_obs == 50
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_a_constant_side_depends_on_nothing(rng):
    found = dependence(np.ones((20, 2)), rng.normal(size=(20, 2)), n_permutations=9)
    assert (found.distance_correlation, found.cka, found.hsic_p_value) == (0, 0, 1)


# ---- input


def test_mudata_is_read_by_key_and_missing_rows_are_left_out(rng):
    names = np.array([f"cell{i}" for i in range(40)])
    a, b = rng.normal(size=(30, 2)), rng.normal(size=(30, 3))
    rna = AnnData(np.zeros((30, 1)), obsm={"Z_c": a})
    prot = AnnData(np.zeros((30, 1)), obsm={"Z_s": b})
    rna.obs_names, prot.obs_names = names[:30], names[10:]
    mdata = MuData({"rna": rna, "prot": prot})
    mdata.obs["batch"], mdata.obs["type"] = np.arange(40) % 2, np.arange(40) // 4 % 3
    found = dependence("rna:Z_c", "prot:Z_s", data=mdata, strata=["batch", "type"], n_permutations=9)
    assert (found.n_obs, found.n_dropped, found.n_strata, found.n_features) == (20, 20, 6, (2, 3))
    expected = dependence(a[10:], b[:20], n_permutations=0)
    assert found.distance_correlation == pytest.approx(expected.distance_correlation)
    with_missing = np.vstack([a, np.full((2, 2), np.nan)])
    assert dependence(with_missing, rng.normal(size=(32, 1))[:, 0], n_permutations=0).n_dropped == 2


X = np.random.default_rng(1).normal(size=(20, 2))


def with_value(value):
    x = X.copy()
    x[3, 0] = value
    return x


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (X, X[:19], {}, "a has 20 rows, but b has 19"),
        (X, with_value(np.nan), {}, "1 of 20 rows of b are NaN in some features"),
        (with_value(np.inf), X, {}, "1 of 20 rows of a are infinite"),
        (X[:7], X[:7], {}, "7 observations have both a and b; at least 8"),
        ("Z_c", X, {}, "a='Z_c' names an embedding, but there is no data"),
        (X, X, {"data": X}, "data must be an AnnData or MuData"),
        (AnnData(X), X, {}, "a must be an array or a key"),
        (X, X.astype(str).astype(object) + "x", {}, "b: The embedding must be an array of numbers"),
        (X, X, {"strata": "batch"}, "strata='batch' names a column"),
        (X, X, {"strata": np.ones(3)}, "strata has 3 values"),
        (X, X, {"strata": [None, *"ab" * 9, "a"]}, "1 of 20 observations have no stratum"),
        (X, X, {"groups": [None, *"ab" * 9, "a"]}, "1 of 20 observations have no group"),
        (X, X, {"n_permutations": -1}, "n_permutations must be"),
        (X, X, {"confidence": 95}, "confidence must be between 0 and 1"),
        (X, X, {"max_obs": 7}, "max_obs must be at least 8"),
    ],
)
def test_errors_name_what_is_wrong(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        dependence(a, b, **options)


def test_the_result_reads_as_a_sentence_and_as_a_row(rng):
    found = dependence(X, X + rng.normal(size=X.shape), n_permutations=19)
    assert "squared distance correlation 0." in str(found)
    assert "n = 20, permuted: observations)" in str(found)
    row = found.to_series()
    assert (row["cka_low"], row["cka_high"]) == found.cka_interval
    assert row["distance_correlation_null_high"] == found.distance_correlation_null[1]
    assert (row["n_features_a"], row["n_features_b"]) == (2, 2)
