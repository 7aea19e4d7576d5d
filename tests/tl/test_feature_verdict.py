"""What `unbraid.tl.feature_verdict` promises."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from unbraid.data import simulate
from unbraid.tl import _feature_models as models
from unbraid.tl import feature_verdict


def with_true_codes(mdata):
    for name, adata in mdata.mod.items():
        adata.obsm["Z_c"] = mdata.obsm["true_shared"][mdata.obs_names.get_indexer(adata.obs_names)]
        adata.obsm["Z_s"] = mdata.mod[name].obsm["true_specific"]
    return mdata


@pytest.fixture(scope="module")
def citeseq():
    return with_true_codes(simulate.citeseq(1000, n_genes=120, n_proteins=20, missing={"prot": 0.1}, seed=0))


@pytest.fixture(scope="module")
def table(citeseq):
    return feature_verdict(citeseq, batch="batch", inplace=False, n_splits=3, n_permutations=30)


def truth_of(mdata):
    return pd.concat({m: mdata[m].var["truth"].astype(str) for m in mdata.mod})


def test_planted_features_are_told_apart(citeseq, table):
    verdict, truth = table["verdict"].astype(str), truth_of(citeseq)
    for kinds in (["shared", "both"], ["specific", "both"]):
        called, is_true = verdict.isin(kinds), truth.isin(kinds)
        assert (called & ~is_true).sum() <= 0.1 * called.sum()
        assert (called & is_true).sum() >= 0.7 * is_true.sum()
    mean = table.groupby(truth)[["shared", "specific", "both"]].mean()
    assert abs(mean.loc["noise"]).max() < 0.01
    assert mean.loc["shared", "shared"] > 0.1 > 0.01 > mean.loc["shared", "specific"]
    assert mean.loc["specific", "specific"] > 0.1 > 0.01 > mean.loc["specific", "shared"]
    assert mean.loc["both", "both"] > mean.loc["both", ["shared", "specific"]].max()


def test_result_is_written_where_scanpy_users_look(citeseq, table):
    mdata = citeseq.copy()
    assert feature_verdict(mdata, batch="batch", n_splits=3, n_permutations=30, key_added="v") is None
    for m in mdata.mod:
        var = mdata[m].var
        assert (var["v"] == table.loc[m, "verdict"]).all()
        for name in ("shared", "specific", "both"):
            for suffix in ("", "_se", "_fdr"):
                np.testing.assert_array_equal(var[f"v_{name}{suffix}"], table.loc[m, f"{name}{suffix}"])
    notes = mdata.uns["v"]["modalities"]["prot"]
    assert (notes["likelihood"], notes["n_obs"], notes["n_dropped"]) == ("poisson", 900, 0)
    assert mdata.uns["v"]["modalities"]["rna"]["n_dropped"] == 100
    assert notes["shared_code"] == "of the other modalities: rna"
    assert "v" not in citeseq["rna"].var


def test_shuffled_codes_find_nothing(citeseq):
    mdata, rng = citeseq.copy(), np.random.default_rng(0)
    for adata in mdata.mod.values():
        for key in ("Z_c", "Z_s"):
            adata.obsm[key] = rng.permutation(adata.obsm[key])
    found = feature_verdict(mdata, batch="batch", inplace=False, n_splits=2, n_permutations=20)
    assert (found["verdict"] == "noise").mean() > 0.95


def test_depth_in_a_code_is_not_shared():
    mdata = simulate.citeseq(1000, n_genes=80, n_proteins=20, depth_sd=0.6, depth_correlation=1.0, seed=1)
    with_true_codes(mdata)
    for m in mdata.mod:
        mdata[m].obsm["Z_c"] = np.log(mdata.obs[[f"depth_{m}"]].to_numpy())
    found = feature_verdict(mdata, specific=None, batch="batch", inplace=False, n_splits=2, n_permutations=20)
    assert (found["verdict"] == "noise").mean() > 0.95
    assert found["specific"].isna().all()


def test_order_of_cells_and_storage_do_not_matter(citeseq):
    options = {"batch": "batch", "inplace": False, "n_splits": 2, "n_permutations": 20}
    small = citeseq[:, :].copy()
    expected = feature_verdict(small, **options)
    order = np.random.default_rng(0).permutation(small.n_obs)
    moved = small[order].copy()
    moved.mod["rna"].X = moved["rna"].X.toarray()
    moved.mod["prot"].X = sparse.csc_matrix(moved["prot"].X)
    found = feature_verdict(moved, **options)
    assert (found["verdict"] == expected["verdict"]).all()
    np.testing.assert_allclose(found["both"], expected["both"], atol=1e-4)


def test_normal_values_and_constant_features():
    mdata = simulate.citeseq(300, n_genes=20, n_proteins=8, seed=0)
    rng = np.random.default_rng(0)
    c, s = rng.normal(size=(2, 300, 2))
    noise = rng.normal(size=(300, 8))
    noise[:, :2] += c
    noise[:, 2:4] += s
    noise[:, 7] = 3.0
    mdata.mod["prot"].X = noise
    for m in mdata.mod:
        mdata[m].obsm["Z_c"], mdata[m].obsm["Z_s"] = c, s
    found = feature_verdict(mdata, inplace=False, n_permutations=20).loc["prot"]
    assert list(found["verdict"].astype(str)[:4]) == ["shared"] * 2 + ["specific"] * 2
    assert np.allclose(found["shared"].iloc[:2], 0.5, atol=0.12)
    assert np.isnan(found["both"].iloc[7])
    assert found["verdict"].iloc[7] == "noise"
    assert found["both_fdr"].iloc[7] == 1


def test_joint_code_stands_in_with_a_warning(citeseq):
    mdata = citeseq.copy()
    del mdata.mod["rna"].obsm["Z_c"]
    mdata.obsm["Z_c"] = mdata.obsm["true_shared"]
    with pytest.warns(UserWarning, match="own noise may count as shared"):
        feature_verdict(mdata, n_splits=2, n_permutations=20)
    assert mdata.uns["verdict"]["modalities"]["prot"]["shared_code"].startswith("joint")
    assert mdata.uns["verdict"]["modalities"]["rna"]["shared_code"] == "of the other modalities: prot"


def test_groups_stay_on_one_side(citeseq):
    donors = np.arange(citeseq.n_obs) % 12
    found = feature_verdict(citeseq, groups=donors, inplace=False, n_splits=3, n_permutations=20)
    truth = truth_of(citeseq)
    assert (found["verdict"].astype(str) == truth).mean() > 0.75
    with pytest.raises(ValueError, match="cannot fill"):
        feature_verdict(citeseq, groups=donors % 2, inplace=False, n_splits=3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shared": "Z_x"}, KeyError, "Z_x"),
        ({"specific": "Z_x"}, KeyError, "Z_x"),
        ({"modalities": ["rna"]}, ValueError, "at least two"),
        ({"modalities": ["rna", "adt"]}, KeyError, "adt"),
        ({"layers": {"rna": "counts"}}, KeyError, "counts"),
        ({"layers": {"adt": "counts"}}, KeyError, "layers names"),
        ({"likelihoods": {"rna": "bernoulli"}}, ValueError, "other than 0 and 1"),
        ({"likelihoods": {"rna": "gamma"}}, ValueError, "must be one of"),
        ({"batch": "plate"}, KeyError, "plate"),
        ({"n_permutations": 5}, ValueError, "at least 20"),
        ({"alpha": 0}, ValueError, "alpha"),
        ({"degree": 3}, ValueError, "degree"),
    ],
)
def test_bad_input(citeseq, arguments, error, message):
    with pytest.raises(error, match=message):
        feature_verdict(citeseq, **({"inplace": False} | arguments))


# ---- the parts


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli", "normal"])
def test_fit_is_the_penalised_optimum(likelihood):
    rng = np.random.default_rng(0)
    z = np.c_[np.ones(400), rng.normal(size=(400, 3))]
    offset = 0.3 * rng.normal(size=400) if likelihood == "poisson" else np.zeros(400)
    eta = offset[:, None] + z @ rng.normal(scale=0.8, size=(4, 6))
    x = {"poisson": rng.poisson(np.exp(eta)), "bernoulli": rng.random(eta.shape) < 1 / (1 + np.exp(-eta))}.get(
        likelihood, eta + rng.normal(size=eta.shape)
    ) * 1.0
    penalty = np.repeat([[0.0], [5.0], [50.0], [1e6]], 6, axis=1)
    b = models.fit(x, offset, z, penalty, np.zeros((4, 6)), likelihood)
    gradient = z.T @ (models.mean_of(likelihood, offset[:, None] + z @ b) - x) + penalty * b
    curvature = models.variance_of(likelihood, x.mean(0)) * len(x) + penalty
    assert (gradient**2 / curvature).sum(0).max() < 0.05  # nats that are left to gain, roughly
    np.testing.assert_allclose(b[3], 0, atol=5e-3)


def test_beta_has_the_moments_of_all_permutations():
    rng = np.random.default_rng(0)
    n, d = 60, 3
    code = np.exp(rng.normal(size=(n, d)))  # heavy tails in both
    q = np.linalg.qr(code - code.mean(0))[0]
    e = rng.standard_t(3, size=n)
    e = (e - e.mean()) / np.linalg.norm(e - e.mean())
    r2 = np.array([((q[rng.permutation(n)].T @ e) ** 2).sum() for _ in range(40_000)])
    spread = ((q**2).sum(1) ** 2).sum()
    a, b = models.beta_parameters(n - 1, d, spread, np.array([(e**4).sum()]))
    assert (a / (a + b))[0] == pytest.approx(d / (n - 1))
    assert r2.mean() == pytest.approx(d / (n - 1), rel=0.03)
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    assert r2.var() == pytest.approx(variance[0], rel=0.06)


def test_whitened_blocks_are_orthonormal_in_the_training_cells():
    rng = np.random.default_rng(0)
    codes = [rng.normal(size=(200, 3)), np.c_[rng.normal(size=200), np.ones(200)]]
    weights, train = rng.gamma(3.0, size=200), np.arange(200) < 150
    blocks = models.whitened_blocks(np.ones((200, 1)), codes, weights, train)
    gram = (blocks.z[train] * weights[train, None]).T @ blocks.z[train] / 150
    np.testing.assert_allclose(gram, np.eye(5), atol=1e-8)
    assert list(blocks.block) == [0, 1, 1, 1, 2]  # the constant adds nothing


def test_common_effects_are_those_of_most_features():
    rng = np.random.default_rng(0)
    common = np.array([0.5, -0.3, 0.2])
    b = common[:, None] + 0.01 * rng.normal(size=(3, 40))
    b[:2, :18] += rng.normal(1.0, 1.0, size=(2, 18))
    found = models.common_effects(b, np.full(40, 1e4), np.array([1, 1, 0]))
    np.testing.assert_allclose(found, [0.5, -0.3, 0.0], atol=0.02)
