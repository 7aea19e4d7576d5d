"""What `unbraid.metrics.reconstruction_gain` promises."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from sklearn.metrics import mean_poisson_deviance

from unbraid.metrics import _reconstruction as internals
from unbraid.metrics._reconstruction import reconstruction_gain

FAST = {"decoder": "linear", "n_splits": 2}


@pytest.fixture
def parts():
    """Half of the variance from either code, but for noise."""
    rng = np.random.default_rng(0)
    shared, specific = rng.normal(size=(2, 400, 3))
    x = np.concatenate([shared, specific], axis=1) @ rng.normal(size=(6, 40)) + 0.1 * rng.normal(size=(400, 40))
    return x, shared, specific


def test_gain_of_given_predictions():
    x = np.array([[-0.007, 1.046, 0.742], [0.724, 1.619, -1.206], [-0.627, -1.321, -0.108], [0.999, -0.022, 0.496], [-1.911, 0.147, -0.907], [1.775, 0.887, 0.949]])  # fmt: skip
    shared = np.array([[-0.053, 1.536, 1.268], [0.448, 1.221, -1.298], [-1.111, -1.796, -0.335], [0.416, 0.591, -0.781], [-1.252, -0.353, -1.344], [0.694, 0.772, 0.751]])  # fmt: skip
    specific = np.array([[0.146, 0.619, 0.817], [2.18, 1.946, -1.665], [0.135, -1.424, 0.367], [1.489, -0.335, -1.048], [-2.189, 0.588, -1.211], [2.126, 1.671, 0.514]])  # fmt: skip
    both = np.array([[0.362, 1.533, 1.066], [1.074, 1.948, -0.53], [-0.571, -1.32, 0.073], [0.727, -0.488, 0.231], [-1.799, 0.289, -1.368], [1.21, 0.792, 0.893]])  # fmt: skip
    null = internals._null(x, np.ones(6), "normal")
    predictions = [null[None], shared, specific, both]
    losses = [internals._loss(x, np.arange(6), lambda r, p=p: p[r % len(p)], "normal").sum() for p in predictions]
    found = {name: value[0] for name, value in internals._gains(np.array([losses])).items()}
    expected = {"shared": 0.6806063702175768, "specific": 0.5820899567243614, "both": 0.8804279257853322}
    expected |= {"gain": 0.1998215555677555, "gain_over_mean": 0.24907976231436324}
    assert found == pytest.approx(expected)


def test_poisson_loss_is_the_deviance():
    rng = np.random.default_rng(0)
    x, mean = rng.poisson(2.0, size=(20, 3)).astype(float), rng.gamma(2.0, size=(20, 3))
    loss = internals._loss(sparse.csr_array(x), np.arange(20), lambda r: mean[r], "poisson")
    assert loss.sum() == pytest.approx(60 * mean_poisson_deviance(x.ravel(), mean.ravel()))


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_codes_that_divide_a_modality_gain_from_each_other(parts, decoder):
    x, shared, specific = parts
    result = reconstruction_gain(x, shared, specific, decoder=decoder, n_splits=2, max_epochs=60)
    assert result.both > (0.99 if decoder == "linear" else 0.85)
    assert result.gain == pytest.approx(result.both - max(result.shared, result.specific))
    assert result.gain_over_mean == pytest.approx(result.both - (result.shared + result.specific) / 2)
    assert result.interval[0] < result.gain < result.interval[1]
    assert result.gain > 0.3
    assert (result.n_obs, result.n_train, result.n_dropped, result.n_features) == (400, 200, 0, 40)


def test_codes_that_hold_the_same_gain_nothing(parts):
    x, shared, _ = parts
    result = reconstruction_gain(x, shared, shared @ np.array([[1, 2, 0], [0, 1, 1], [1, 0, 1]]), **FAST)
    assert abs(result.gain) < 0.01
    assert result.shared > 0.3


def test_a_bad_first_pass_does_not_stop_the_decoder_of_few_observations():
    rng = np.random.default_rng(1)
    code = rng.standard_t(2.5, size=(400, 60))
    x = code @ rng.normal(0.2, 0.1, size=(60, 900)) + 2 * rng.normal(size=(400, 900))  # one factor moves all features
    split = np.where(np.arange(400) < 320, "train", "test")
    data = AnnData(x.astype(np.float32), obs=pd.DataFrame({"split": split}, index=[f"cell{k}" for k in range(400)]))
    data.obsm["Z_c"], data.obsm["Z_s"] = code[:, :20], code[:, 20:]
    found = [reconstruction_gain("X", "Z_c", "Z_s", data=data, split_key="split", seed=s).both for s in range(6)]
    assert min(found) > 0.5


def test_codes_without_information_explain_nothing(parts):
    x, shared, _ = parts
    result = reconstruction_gain(x, shared, np.random.default_rng(5).normal(size=(400, 3)), **FAST)
    assert -0.05 < result.specific < 0.02
    assert result.gain < 0.01


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
def test_counts_explained_up_to_their_noise(decoder):
    rng = np.random.default_rng(0)
    shared, specific = rng.normal(size=(2, 800, 1))
    mean = np.exp(0.7 * (shared + specific * [1, -1])) * rng.lognormal(0, 0.5, size=(800, 1))
    mean = np.repeat(mean, 10, axis=1)
    x = rng.poisson(mean)
    result = reconstruction_gain(sparse.csr_matrix(x), shared, specific, decoder=decoder, n_splits=2, max_epochs=100)
    assert (result.likelihood, result.metric) == ("poisson", "deviance_explained")
    assert result.n_obs + result.n_dropped == 800
    assert result.n_dropped == (x.sum(1) == 0).sum()
    assert result.specific > 0.2  # what is left of the two halves once the total is known
    assert result.shared < 0.05  # moves all features alike, as depth does


def test_missing_rows_groups_and_names(parts):
    x, shared, specific = parts
    names = [f"c{i}" for i in range(400)]
    first, second = (AnnData(v, obs=pd.DataFrame(index=n)) for v, n in ((x[:350], names[:350]), (x[50:], names[50:])))
    first.obsm["Z_c"], first.obsm["Z_s"], second.obsm["Z_c"] = shared[:350], specific[:350], shared[50:]
    mdata = MuData({"rna": first, "prot": second})
    row = [int(name[1:]) for name in mdata.obs_names]
    mdata.obs["donor"] = [f"d{i % 20}" for i in row]
    mdata.obs["split"] = np.where(np.array(row) % 4 == 0, "test", "train")
    own = reconstruction_gain("rna", "Z_c", "Z_s", data=mdata, groups="donor", **FAST)
    assert (own.n_obs, own.n_dropped, own.n_groups) == (350, 0, 20)
    other = reconstruction_gain("rna", "prot:Z_c", "Z_s", data=mdata, **FAST)
    assert (other.n_obs, other.n_dropped) == (300, 50)
    assert other.both > 0.99
    split = reconstruction_gain("rna", "Z_c", "Z_s", data=mdata, split_key="split", decoder="linear")
    assert (split.n_obs, split.n_train) == (sum(i % 4 == 0 for i in range(350)), sum(i % 4 != 0 for i in range(350)))
    assert split.both > 0.99
    assert "n = 350 in 20 groups" in str(own)
    assert own.to_frame().loc[0, "both_low"] == own.both_interval[0]


def test_seed_decides_and_global_state_is_left_alone(parts):
    x, shared, specific = parts
    before = torch.get_rng_state().clone()
    results = [reconstruction_gain(x, shared, specific, n_splits=2, max_epochs=2, seed=s).gain for s in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert results[0] == results[1] != results[2]


def test_constant_features_and_dimensions_do_no_harm(parts):
    x, shared, specific = parts
    x = np.c_[x, np.ones(400)]
    result = reconstruction_gain(x, np.c_[shared, np.full(400, 7.0)], specific, **FAST)
    assert result.both > 0.99


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": "rna"}, ValueError, "no data"),
        ({"shared": np.zeros((5, 2))}, ValueError, "shared has 5 rows"),
        ({"shared": np.full((400, 2), np.inf)}, ValueError, "shared: 400 of 400 rows are infinite"),
        ({"x": np.ones((400, 3)) * 0.5}, ValueError, "constant"),
        ({"likelihood": "poisson"}, ValueError, "negative values"),
        ({"likelihood": "gamma"}, ValueError, "likelihood must be one of"),
        ({"decoder": "tree"}, ValueError, "decoder must be one of"),
        ({"n_splits": 1}, ValueError, "n_splits"),
        ({"groups": ["a"] * 400}, ValueError, "1 groups cannot fill"),
        ({"split_key": "split"}, ValueError, "no data"),
        ({"x": "rna", "data": AnnData(np.ones((400, 2)))}, KeyError, "must be 'X'"),
    ],
)
def test_bad_input(parts, arguments, error, message):
    given = dict(zip(("x", "shared", "specific"), parts, strict=True))
    with pytest.raises(error, match=message):
        reconstruction_gain(**(given | FAST | arguments))
