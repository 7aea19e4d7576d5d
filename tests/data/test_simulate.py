"""The simulators keep their recipes, and the truth stays with the rows it is about."""

from __future__ import annotations

import warnings

import mudata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_predict

from unbraid.data import simulate

SIMULATORS = {
    "disentangled_ssl": lambda seed=0: simulate.disentangled_ssl(200, seed=seed),
    "disentangled_ssl_mixed": lambda seed=0: simulate.disentangled_ssl_mixed(200, seed=seed),
    **{f"indiseek_{k}": lambda seed=0, k=k: simulate.indiseek(k, 110, seed=seed) for k in (1, 2, 3, 4, 5)},
    "citeseq": lambda seed=0: simulate.citeseq(
        150, n_genes=60, n_proteins=12, n_peaks=40, missing={"rna": 0.3, "prot": 0.2}, seed=seed
    ),
    "nonlinear": lambda seed=0: simulate.nonlinear(120, modalities=3, missing=0.4, seed=seed),
    "two_factors": lambda seed=0: simulate.two_factors(120, missing=0.4, seed=seed),
}
every_simulator = pytest.mark.parametrize("make", SIMULATORS.values(), ids=SIMULATORS.keys())


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def dense(x) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def assert_same(a: mudata.MuData, b: mudata.MuData) -> None:
    assert list(a.mod) == list(b.mod)
    assert a.obs.equals(b.obs)
    np.testing.assert_array_equal(a.obsm["true_shared"], b.obsm["true_shared"])
    for name in a.mod:
        x, y = a[name], b[name]
        assert list(x.obs_names) == list(y.obs_names)
        assert x.var.equals(y.var)
        np.testing.assert_array_equal(dense(x.X), dense(y.X))
        for key in x.obsm:
            np.testing.assert_array_equal(x.obsm[key], y.obsm[key])


# --- what all of them promise ---------------------------------------------------------------------------------------


@every_simulator
def test_same_seed_same_data(make):
    assert_same(make(), make())


@every_simulator
def test_another_seed_other_data(make):
    assert not np.array_equal(make(0).obsm["true_shared"], make(1).obsm["true_shared"])


@every_simulator
def test_global_random_states_are_left_alone(make):
    state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    make()
    after = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(state[1], after[1])
    assert state[2:] == after[2:]
    assert torch.equal(torch_state, torch.get_rng_state())


@every_simulator
def test_result_does_not_depend_on_global_random_states(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        first = make()
    assert_same(first, make())


@every_simulator
def test_cells_keep_their_order_and_names_are_unique(make):
    mdata = make()
    assert list(mdata.obs_names) == [f"cell_{i}" for i in range(mdata.n_obs)]
    assert mdata.var_names.is_unique
    for adata in mdata.mod.values():
        assert adata.X.dtype == np.float32
        assert "truth" in adata.var
        assert not adata.layers


@every_simulator
def test_no_warning_and_no_option_left_behind(make):
    def options() -> dict:
        if not hasattr(mudata, "set_options"):  # mudata 0.4
            return {}
        with mudata.set_options() as current:
            return dict(current)

    before = options()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        make()
    assert options() == before


@every_simulator
def test_truth_survives_writing(make, tmp_path):
    mdata = make()
    mdata.write_h5mu(tmp_path / "simulated.h5mu")
    back = mudata.read_h5mu(tmp_path / "simulated.h5mu")
    assert back.uns["simulation"]["recipe"] == mdata.uns["simulation"]["recipe"]
    rows = mdata.obs_names.get_indexer(back.obs_names)  # mudata 0.3 may change the order on reading
    np.testing.assert_array_equal(back.obsm["true_shared"], mdata.obsm["true_shared"][rows])
    for column in mdata.obs:
        assert list(back.obs[column]) == list(mdata.obs[column].array[rows])


@pytest.mark.parametrize("n_obs", [0, 1.5, "many", None])
@pytest.mark.parametrize(
    "make",
    [simulate.disentangled_ssl, simulate.citeseq, simulate.nonlinear, lambda n_obs: simulate.indiseek(1, n_obs)],
)
def test_a_bad_number_of_cells_is_named(make, n_obs):
    with pytest.raises(ValueError, match="`n_obs` must be a whole number"):
        make(n_obs)


# --- DisentangledSSL ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dssl() -> mudata.MuData:
    return simulate.disentangled_ssl(9_000)


def latents(mdata: mudata.MuData) -> dict[str, np.ndarray]:
    return {"shared": mdata.obsm["true_shared"], **{m: mdata[m].obsm["true_specific"] for m in mdata.mod}}


def test_dssl_latents_are_independent_gaussians_of_variance_one_half(dssl):
    z = np.concatenate(list(latents(dssl).values()), axis=1)
    covariance = np.cov(z.T)
    np.testing.assert_allclose(np.diag(covariance), 0.5, atol=0.04)
    assert np.diag(covariance).mean() == pytest.approx(0.5, abs=0.005)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.04


def test_dssl_observations_are_the_private_then_shared_mixture(dssl):
    for name in ("x1", "x2"):
        mixing = dssl.uns["simulation"]["mixing"][name]
        assert mixing.shape == (100, 100)
        assert np.abs(mixing).max() <= 1
        z = np.concatenate([dssl[name].obsm["true_specific"], dssl.obsm["true_shared"]], axis=1)
        np.testing.assert_allclose(dssl[name].X, z @ mixing, atol=2e-5)
        assert (dssl[name].var["truth"] == "both").all()


def test_dssl_noise_is_added_to_the_same_features():
    clean, noisy = (simulate.disentangled_ssl(20_000, noise=noise, seed=0) for noise in (0.0, 1.0))
    added = {m: noisy[m].X - clean[m].X for m in clean.mod}
    for values in added.values():
        assert values.std(axis=0) == pytest.approx(np.ones(100), abs=0.03)
        assert np.abs(np.corrcoef(values.T) - np.eye(100)).max() < 0.04
    assert np.abs(np.corrcoef(added["x1"].ravel(), added["x2"].ravel())[0, 1]) < 0.004
    assert noisy.obs.equals(clean.obs)
    assert noisy.uns["simulation"]["parameters"]["noise"] == 1.0
    # canonical correlations: of the population, by its covariance, and of the sample
    mixing = noisy.uns["simulation"]["mixing"]
    within = {m: 0.5 * w.T @ w + np.eye(100) for m, w in mixing.items()}
    white = {m: np.linalg.inv(np.linalg.cholesky(c)) for m, c in within.items()}
    between = 0.5 * mixing["x1"][50:].T @ mixing["x2"][50:]
    expected = np.linalg.svd(white["x1"] @ between @ white["x2"].T, compute_uv=False)[:50]
    q = {m: np.linalg.qr(noisy[m].X - noisy[m].X.mean(axis=0))[0] for m in noisy.mod}
    found = np.linalg.svd(q["x1"].T @ q["x2"], compute_uv=False)[:50]
    assert expected[0] < 0.99
    np.testing.assert_allclose(found[:40], expected[:40], atol=0.02)
    with pytest.raises(ValueError, match="`noise` must be a number from 0 on"):
        simulate.disentangled_ssl(100, noise=-1.0)


def test_dssl_draws_in_the_order_of_the_reference():
    mdata = simulate.disentangled_ssl(1_000, seed=3)
    rng = np.random.RandomState(3)
    for drawn in (mdata.obsm["true_shared"], mdata["x1"].obsm["true_specific"], mdata["x2"].obsm["true_specific"]):
        expected = rng.multivariate_normal(np.zeros(50), 0.5 * np.eye(50), size=1_000)
        np.testing.assert_array_equal(drawn, expected.astype(np.float32))
    for name in ("x1", "x2"):
        np.testing.assert_array_equal(mdata.uns["simulation"]["mixing"][name], rng.uniform(-1, 1, (100, 100)))
    # First labels that the released code gives for this seed and size.
    assert "".join(map(str, mdata.obs["y_specific_x1"][:24])) == "100000000011011111110001"
    assert "".join(map(str, mdata.obs["y_shared"][:24])) == "001111011011001010110111"


def test_dssl_labels_are_exactly_balanced(dssl):
    for column in ("y_shared", "y_specific_x1", "y_specific_x2"):
        assert dssl.obs[column].value_counts().to_dict() == {0: 4_500, 1: 4_500}


def test_dssl_split_is_the_reference_split_and_the_same_for_every_seed(dssl):
    train, test = torch.utils.data.random_split(range(9_000), [7_200, 1_800], torch.Generator().manual_seed(0))
    is_train = (dssl.obs["split"] == "train").to_numpy()
    assert set(np.flatnonzero(is_train)) == set(train.indices)
    assert set(np.flatnonzero(~is_train)) == set(test.indices)
    small = [simulate.disentangled_ssl(50, seed=seed).obs["split"].tolist() for seed in (0, 1)]
    assert small[0] == small[1]


@pytest.mark.parametrize(
    ("latent", "own", "low", "high"),
    [("shared", "y_shared", 0.77, 0.84), ("x1", "y_specific_x1", 0.80, 0.88), ("x2", "y_specific_x2", 0.78, 0.86)],
)
def test_dssl_probes_of_true_latents_reach_their_label_only(dssl, latent, own, low, high):
    z = latents(dssl)[latent]
    train = (dssl.obs["split"] == "train").to_numpy()
    for column in ("y_shared", "y_specific_x1", "y_specific_x2"):
        y = dssl.obs[column].to_numpy()
        accuracy = LogisticRegression(max_iter=200).fit(z[train], y[train]).score(z[~train], y[~train])
        if column == own:
            assert low < accuracy < high
        else:
            assert accuracy == pytest.approx(0.5, abs=0.03)


def test_dssl_mixed_leaves_fifteen_shared_dimensions_unmixed():
    mdata = simulate.disentangled_ssl_mixed(500)
    shared = mdata.obsm["true_shared"]
    for name in ("x1", "x2"):
        adata, mixing = mdata[name], mdata.uns["simulation"]["mixing"][name]
        assert adata.shape == (500, 100)
        assert mixing.shape == (85, 85)
        z = np.concatenate([adata.obsm["true_specific"], shared[:, :35]], axis=1)
        np.testing.assert_allclose(adata.X[:, :85], z @ mixing, atol=2e-5)
        np.testing.assert_array_equal(adata.X[:, 85:], shared[:, 35:])
        assert adata.var["truth"].tolist() == ["both"] * 85 + ["shared"] * 15
    np.testing.assert_array_equal(shared, simulate.disentangled_ssl(500).obsm["true_shared"])


# --- IndiSeek -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [1, 3])
def test_indiseek_1_and_3_have_the_smooth_code_of_the_first_two_coordinates(setting):
    mdata = simulate.indiseek(setting, 2_200)
    x = mdata["x"].X.astype(np.float64)
    u = x[:, :2]
    np.testing.assert_allclose(mdata["oracle"].X, 0.5 * u + 0.2 * np.sin(u) + 0.2 * u**3, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mdata["x"].obsm["true_specific"], mdata["x"].X[:, 2:])
    np.testing.assert_allclose(mdata.uns["simulation"]["ideal_importance"], [0, 0, 0.25, 0.25, 0.25, 0.25])
    assert mdata["x"].var["truth"].tolist() == ["shared"] * 2 + ["specific"] * 4


@pytest.mark.parametrize("setting", [2, 4])
def test_indiseek_2_and_4_have_two_redundant_coordinates(setting):
    mdata = simulate.indiseek(setting, 2_200)
    x = mdata["x"].X
    np.testing.assert_array_equal(mdata["oracle"].X, x[:, :2])
    np.testing.assert_allclose(x[:, 2], 0.2 * (x[:, 0] + x[:, 1]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(x[:, 3], x[:, 0] * x[:, 1], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(mdata["x"].obsm["true_specific"], x[:, 4:])
    np.testing.assert_allclose(mdata["x"].var["ideal_importance"], [0, 0, 0, 0, 0.5, 0.5])
    assert mdata["x"].var["truth"].tolist() == ["shared"] * 4 + ["specific"] * 2


@pytest.mark.parametrize("setting", [1, 2, 3, 4])
def test_indiseek_privates_have_unit_variance_and_are_discrete_in_3_and_4(setting):
    mdata = simulate.indiseek(setting)
    private = mdata["x"].obsm["true_specific"]
    np.testing.assert_allclose(private.mean(axis=0), 0, atol=0.04)
    np.testing.assert_allclose(private.var(axis=0), 1, atol=0.05)
    if setting in (3, 4):
        values, counts = np.unique(private, return_counts=True)
        np.testing.assert_allclose(values, [-np.sqrt(7) / 2, -1, -0.5, 0.5, 1, np.sqrt(7) / 2], rtol=1e-6)
        np.testing.assert_allclose(counts / private.size, 1 / 6, atol=0.01)
    else:
        assert len(np.unique(private)) > 10_000


def test_indiseek_shares_the_code_between_modality_and_truth_and_splits_ten_to_one():
    mdata = simulate.indiseek(1)
    np.testing.assert_array_equal(mdata["oracle"].X, mdata.obsm["true_shared"])
    assert mdata.obs["split"].value_counts().to_dict() == {"train": 10_000, "test": 1_000}
    assert simulate.indiseek(1, 110).obs["split"].value_counts().to_dict() == {"train": 100, "test": 10}


def test_indiseek_5_hides_the_code_in_the_variance_of_a_coordinate():
    mdata, like = simulate.indiseek(5, seed=4), simulate.indiseek(2, seed=4)
    x, noise = mdata["x"].X.astype(np.float64), mdata["x"].obsm["true_specific"]
    np.testing.assert_array_equal(x[:, :4], like["x"].X[:, :4])
    np.testing.assert_array_equal(noise, like["x"].X[:, 4:])
    np.testing.assert_array_equal(mdata["oracle"].X, x[:, :2])
    np.testing.assert_allclose(x[:, 4], noise[:, 0] * np.exp(0.7 * x[:, 0]), rtol=1e-5)
    np.testing.assert_array_equal(x[:, 5], noise[:, 1])
    # no dependence of the mean, a plain one of the spread
    assert abs(np.corrcoef(x[:, 4], x[:, 0])[0, 1]) < 0.05
    slope = np.polyfit(x[:, 0], np.log(np.abs(x[:, 4])), 1)[0]
    assert slope == pytest.approx(0.7, abs=0.03)
    assert mdata["x"].var["truth"].tolist() == ["shared"] * 4 + ["both", "specific"]


def test_indiseek_5_gives_the_importance_that_its_own_truth_has():
    mdata = simulate.indiseek(5, 110_000)
    ideal = lambda x: np.stack([x[:, 4] * np.exp(-0.7 * x[:, 0]), x[:, 5]], axis=1)
    x = mdata["x"].X.astype(np.float64)
    np.testing.assert_allclose(ideal(x), mdata["x"].obsm["true_specific"], rtol=1e-4, atol=1e-6)
    change = []
    for j in range(6):
        masked = x.copy()
        masked[:, j] = 0
        change.append(((ideal(x) - ideal(masked)) ** 2).sum(axis=1).mean())
    np.testing.assert_allclose(mdata["x"].var["ideal_importance"], change / np.sum(change), atol=0.01)
    assert mdata["x"].var["ideal_importance"].iloc[4:].sum() == pytest.approx(0.643, abs=0.001)


@pytest.mark.parametrize("setting", [0, 6, "1"])
def test_indiseek_refuses_other_settings(setting):
    with pytest.raises(ValueError, match="`setting` must be one of 1, 2, 3, 4, 5, got"):
        simulate.indiseek(setting)


# --- nonlinear ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed() -> mudata.MuData:
    return simulate.nonlinear(4_000)


def test_nonlinear_has_the_shapes_that_were_asked_for(mixed):
    assert list(mixed.mod) == ["x1", "x2"]
    assert mixed.obsm["true_shared"].shape == (4_000, 8)
    mdata = simulate.nonlinear(50, modalities=3, n_shared=2, n_specific=3, n_hidden=5, n_features=7)
    assert list(mdata.mod) == ["x1", "x2", "x3"]
    assert mdata.obsm["true_shared"].shape == (50, 2)
    for adata in mdata.mod.values():
        assert adata.shape == (50, 7)
        assert adata.obsm["true_specific"].shape == (50, 3)
        assert adata.obsm["true_specific"].dtype == np.float32
        assert adata.var["truth"].tolist() == ["both"] * 7


def test_nonlinear_follows_its_formula_with_features_of_unit_variance():
    mdata = simulate.nonlinear(300, n_shared=3, n_specific=2, n_hidden=6, n_features=9, noise=0)
    for name, adata in mdata.mod.items():
        w = mdata.uns["simulation"]["mixing"][name]
        v = np.concatenate([mdata.obsm["true_shared"], adata.obsm["true_specific"]], axis=1)
        hidden = np.tanh(v @ w["weights_1"] + w["biases_1"]) @ w["weights_2"] + w["biases_2"]
        hidden = np.maximum(hidden, 0.2 * hidden)
        np.testing.assert_allclose(adata.X, hidden @ w["weights_3"] + w["biases_3"], atol=1e-5)
        np.testing.assert_allclose(adata.X.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(adata.X.std(axis=0), 1, atol=1e-5)


def test_nonlinear_mixing_without_noise_can_be_inverted(mixed):
    clean = simulate.nonlinear(4_000, noise=0)
    for name, adata in clean.mod.items():
        w = clean.uns["simulation"]["mixing"][name]
        hidden = (adata.X - w["biases_3"]) @ np.linalg.pinv(w["weights_3"])
        hidden = np.where(hidden > 0, hidden, hidden / 0.2)
        hidden = np.arctanh(np.clip((hidden - w["biases_2"]) @ np.linalg.inv(w["weights_2"]), -1 + 1e-6, 1 - 1e-6))
        v = (hidden - w["biases_1"]) @ np.linalg.pinv(w["weights_1"])
        truth = np.concatenate([clean.obsm["true_shared"], adata.obsm["true_specific"]], axis=1)
        np.testing.assert_allclose(v, truth, atol=0.05)  # float32 at the flat end of tanh
        np.testing.assert_array_equal(adata.obsm["true_specific"], mixed[name].obsm["true_specific"])


def test_nonlinear_noise_is_as_large_as_asked_and_independent():
    clean, noisy = (simulate.nonlinear(3_000, noise=noise) for noise in (0, 0.3))
    residuals = {m: noisy[m].X - clean[m].X for m in clean.mod}
    for name, residual in residuals.items():
        np.testing.assert_allclose(residual.std(axis=0), 0.3, rtol=0.08)
        assert abs(np.corrcoef(residual.ravel(), clean[name].X.ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(residuals["x1"].ravel(), residuals["x2"].ravel())[0, 1]) < 0.01


def test_nonlinear_latents_are_standard_normal_and_independent():
    mdata = simulate.nonlinear(4_000, modalities=3)
    z = np.concatenate(list(latents(mdata).values()), axis=1)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.07)
    np.testing.assert_allclose(np.cov(z.T), np.eye(32), atol=0.1)
    np.testing.assert_allclose(np.corrcoef((z**2).T), np.eye(32), atol=0.1)


def test_nonlinear_modalities_have_networks_of_their_own(mixed):
    first, second = mixed.uns["simulation"]["mixing"].values()
    assert all(not np.allclose(first[key], second[key]) for key in first)
    np.testing.assert_allclose(first["weights_1"] @ first["weights_1"].T, 24 / 16 * np.eye(16), atol=1e-12)
    np.testing.assert_allclose(first["weights_2"] @ first["weights_2"].T, np.eye(24), atol=1e-12)


def test_nonlinear_labels_are_balanced_and_belong_to_their_latent(mixed):
    z = latents(mixed)
    train = (mixed.obs["split"] == "train").to_numpy()
    assert train.sum() == 3_200
    for column, own in (("y_shared", "shared"), ("y_specific_x1", "x1"), ("y_specific_x2", "x2")):
        y = mixed.obs[column].to_numpy()
        assert y.sum() == 2_000
        for name, latent in z.items():
            accuracy = LogisticRegression().fit(latent[train], y[train]).score(latent[~train], y[~train])
            if name == own:
                assert accuracy > 0.7
            else:
                assert accuracy == pytest.approx(0.5, abs=0.06)


def test_nonlinear_modality_holds_its_own_latents_and_not_another_modalitys(mixed):
    truth = latents(mixed)
    for name, other in (("x1", "x2"), ("x2", "x1")):
        r2 = {
            key: 1 - ((z - cross_val_predict(Ridge(), mixed[name].X, z, cv=3)) ** 2).mean() / z.var()
            for key, z in truth.items()
        }
        assert 0.6 < r2["shared"] < 0.95  # not linear
        assert 0.6 < r2[name] < 0.95
        assert r2[other] < 0.02


@pytest.mark.parametrize(("modalities", "missing"), [(2, 0.5), (2, 1.0), (3, 0.4), (3, 1.0)])
def test_nonlinear_missing_cells_are_absent_and_all_else_is_unchanged(modalities, missing):
    arguments = {"n_obs": 120, "modalities": modalities}
    whole = simulate.nonlinear(**arguments)
    mdata = simulate.nonlinear(**arguments, missing=missing)
    n_absent = np.zeros(120)
    for name, adata in mdata.mod.items():
        assert adata.n_obs == 120 - 120 * missing / modalities
        n_absent += ~whole.obs_names.isin(adata.obs_names)
        np.testing.assert_array_equal(adata.X, whole[name][adata.obs_names].X)
        np.testing.assert_array_equal(adata.obsm["true_specific"], whole[name][adata.obs_names].obsm["true_specific"])
    assert n_absent.max() == 1
    assert n_absent.sum() == 120 * missing
    assert mdata.obs.equals(whole.obs)
    np.testing.assert_array_equal(mdata.obsm["true_shared"], whole.obsm["true_shared"])


def test_nonlinear_third_modality_changes_neither_of_the_others():
    two, three = (simulate.nonlinear(40, modalities=m) for m in (2, 3))
    for name in ("x1", "x2"):
        np.testing.assert_array_equal(two[name].X, three[name].X)
        assert two.obs[f"y_specific_{name}"].equals(three.obs[f"y_specific_{name}"])


def test_nonlinear_network_does_not_change_with_the_number_of_cells(mixed):
    few = simulate.nonlinear(30).uns["simulation"]["mixing"]["x1"]
    many = mixed.uns["simulation"]["mixing"]["x1"]
    for key in ("weights_1", "biases_1", "weights_2", "biases_2"):
        np.testing.assert_array_equal(few[key], many[key])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_obs": 1}, "`n_obs` must be a whole number of at least 2"),
        ({"modalities": 1}, "`modalities` must be a whole number of at least 2"),
        ({"n_shared": 0}, "`n_shared` must be a whole number of at least 1"),
        ({"n_specific": 0}, "`n_specific` must be a whole number of at least 1"),
        ({"n_hidden": 15}, "`n_hidden` must be a whole number of at least 16"),
        ({"n_features": 23}, "`n_features` must be a whole number of at least 24"),
        ({"noise": -0.1}, "`noise` must be finite and not negative"),
        ({"noise": float("nan")}, "`noise`"),
        ({"missing": 1.1}, "`missing` must be between 0 and 1"),
        ({"missing": -0.1}, "`missing`"),
    ],
)
def test_nonlinear_names_a_bad_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate.nonlinear(**{"n_obs": 20, **arguments})
