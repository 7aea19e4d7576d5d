"""IndiSeek and its two variants: their formulas, their stages, and what they separate."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData
from sklearn.linear_model import LinearRegression
from torch import nn
from torch.nn.functional import normalize

import unbraid as ub
from unbraid.nn import LikelihoodDecoder
from unbraid.objectives import club, info_nce, orthogonality

QUIET = {"progress_bar": False, "accelerator": "cpu", "early_stopping": False, "seed": 0}


def gaussian(n=64, n_modalities=2, seed=0):
    """Continuous modalities off centre."""
    rng = np.random.default_rng(seed)
    names = pd.DataFrame(index=[f"cell_{i}" for i in range(n)])
    shared = rng.normal(size=(n, 2))
    mod = {
        m: AnnData((shared @ rng.normal(size=(2, 6)) + rng.normal(size=(n, 6)) + 3).astype("float32"), obs=names.copy())
        for m in ("a", "b", "c")[:n_modalities]
    }
    return MuData(mod)


def build(cls, mdata, seed=0, setup=None, **options):
    cls.setup_mudata(mdata, **(setup or {}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls(mdata, **{"n_shared": 4, "n_specific": 3, "n_hidden": 16, **options})


def batch_of(model, n=64):
    return model.adata_manager.create_torch_dataset()[np.arange(n)]


def stage_0(model):
    """Let the model fit what follows the shared stage, without training."""
    model.train(max_epochs={stage.name: 0 for stage in model.module.stages}, train_size=1.0, **QUIET)


def codes(model, batch):
    """Standardised shared codes and specific codes, by hand."""
    module, inputs = model.module, model.module.inputs(batch)
    shared = {m: normalize(module.shared_encoders[m](inputs[m]), dim=1) for m in inputs}
    shared = {m: (c - c.mean(dim=0)) / c.std(dim=0, correction=0) for m, c in shared.items()}
    return inputs, shared, {m: module.specific_encoders[m](inputs[m]) for m in inputs}


@pytest.mark.parametrize("cross_modal", [True, False])
@pytest.mark.parametrize("second_moment", ["centered", "raw"])
def test_step_2_is_club_plus_the_scaled_reconstruction(cross_modal, second_moment):
    model = build(
        ub.model.IndiSeek,
        gaussian(),
        lambda_=0.7,
        cross_modal=cross_modal,
        second_moment=second_moment,
        input_transform="identity",
        independence_options={"club": {"standardize": False}},
    )
    stage_0(model)
    batch, module = batch_of(model), model.module
    inputs, shared, specific = codes(model, batch)
    other = {"a": shared["b"], "b": shared["a"]}
    expected = 0.0
    for m, x in inputs.items():
        given = other[m] if cross_modal else shared[m]
        expected = expected + club(specific[m], *module.independence[m].penalties["club"].posterior(given))
        x_hat = module.decoders[m](torch.cat([specific[m], shared[m]], dim=1))
        centre = x.mean(dim=0) if second_moment == "centered" else 0.0
        moment = ((x - centre) ** 2).sum(dim=1).mean()
        expected = expected + 0.7 / (2 * moment) * ((x_hat - x) ** 2).sum(dim=1).mean()
    torch.testing.assert_close(module.loss(batch, "specific").loss, expected, rtol=1e-4, atol=1e-4)


def test_counts_are_decoded_under_their_likelihood(make_mdata):
    model = build(ub.model.IndiSeek, make_mdata(), independence=None, lambda_=1.0, setup={"batch_key": "batch"})
    module = model.module
    assert all(isinstance(module.decoders[m], LikelihoodDecoder) for m in ("rna", "prot"))
    assert module.decoders["rna"].n_covariates == 2  # decoders are told the batch
    stage_0(model)
    assert (module.information_scale > 1).all()
    model.train(max_epochs={"shared": 1, "specific": 30}, lr=0.01, batch_size=32, **QUIET)
    losses = model.history["specific/reconstruction_train"].iloc[:, 0]
    assert losses.iloc[-1] < losses.iloc[0]
    squared = build(ub.model.IndiSeek, make_mdata(), reconstruction="squared_error")
    assert not any(isinstance(squared.module.decoders[m], LikelihoodDecoder) for m in ("rna", "prot"))


def test_size_factors_of_any_scale_give_one_reconstruction(make_mdata):
    losses = []
    for scale in (1.0, 1e-3):
        mdata = make_mdata()
        for adata in mdata.mod.values():
            adata.obs["size"] = scale * (1 + np.asarray(adata.X.sum(axis=1)).ravel())
        setup = {"size_factor_key": {"rna": "size", "prot": "size"}}
        model = build(ub.model.IndiSeek, mdata, independence=None, setup=setup)
        stage_0(model)
        losses.append(model.module.loss(batch_of(model, 60), "specific").loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


def test_factorized_cl_is_club_plus_half_lambda_times_the_contrast():
    model = build(
        ub.model.FactorizedCL, gaussian(), lambda_=0.6, critic_temperature=0.2,
        independence_options={"club": {"standardize": False}},
    )  # fmt: skip
    stage_0(model)
    batch, module = batch_of(model), model.module
    inputs, shared, specific = codes(model, batch)
    expected = 0.0
    for m, x in inputs.items():
        expected = expected + club(specific[m], *module.independence[m].penalties["club"].posterior(shared[m]))
        u = module.code_projections[m](torch.cat([specific[m], shared[m]], dim=1))
        expected = expected + 0.3 * info_nce(u, module.input_projections[m](x), temperature=0.2)
    torch.testing.assert_close(module.loss(batch, "specific").loss, expected, rtol=1e-4, atol=1e-4)


def test_info_disen_is_orthogonal_to_its_own_code_and_completes_the_other_one():
    model = build(ub.model.InfoDisen, gaussian(), lambda_=0.6, critic_temperature=0.2)
    stage_0(model)
    batch, module = batch_of(model), model.module
    inputs, shared, specific = codes(model, batch)
    other = {"a": shared["b"], "b": shared["a"]}
    expected = 0.0
    for m, x in inputs.items():
        expected = expected + orthogonality(specific[m], shared[m], divide_by_batch=True)
        u = module.code_projections[m](torch.cat([specific[m], other[m]], dim=1))
        expected = expected + 0.3 * info_nce(u, module.input_projections[m](x), temperature=0.2)
    torch.testing.assert_close(module.loss(batch, "specific").loss, expected, rtol=1e-4, atol=1e-4)


def test_step_2_leaves_shared_encoders_and_the_loss_leaves_the_penaltys_network_alone():
    model = build(ub.model.IndiSeek, gaussian())
    model.train(max_epochs={"shared": 1, "specific": 0}, batch_size=32, **QUIET)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    model.train(max_epochs={"shared": 0, "specific": 2}, batch_size=32, train_size=1.0, **QUIET)
    moved = {
        name.split(".")[0] for name, value in model.module.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {"specific_encoders", "decoders", "independence"} <= moved
    assert "shared_encoders" not in moved


def test_without_a_penalty_there_is_no_inner_loop_and_a_residual_gets_a_stage():
    stages = {
        choice: [(s.name, s.inner is not None) for s in build(ub.model.IndiSeek, gaussian(), independence=choice).module.stages]
        for choice in (None, "hsic", "club", "residual")
    }  # fmt: skip
    assert stages[None] == stages["hsic"] == [("shared", False), ("specific", False)]
    assert stages["club"] == [("shared", False), ("specific", True)]
    assert stages["residual"] == [("shared", False), ("residual", False), ("specific", False)]


def test_more_modalities_and_absent_ones(make_mdata):
    for choice in ("club", "residual", {"adversarial": 1.0, "hsic": 0.5}):
        mdata = make_mdata(modalities=("rna", "prot", "atac"), missing=0.3)
        model = build(ub.model.IndiSeek, mdata, independence=choice, setup={"batch_key": "batch"})
        model.train(max_epochs=1, batch_size=32, **QUIET)
        model.write_latent()
        for m in mdata.mod:
            assert np.isfinite(mdata[m].obsm["Z_s"]).all()


def test_new_batches_are_read_and_start_without_an_effect(make_mdata):
    mdata = make_mdata()
    model = build(ub.model.IndiSeek, mdata, setup={"batch_key": "batch"})
    model.train(max_epochs=1, batch_size=32, **QUIET)
    query = make_mdata(seed=1)
    query.obs["batch"] = "new"
    other = ub.model.IndiSeek.load_query_data(query, model)
    weights = [m.module.decoders["rna"].network.layers[0].weight for m in (model, other)]
    torch.testing.assert_close(weights[1][:, : weights[0].shape[1]], weights[0])
    assert not weights[1][:, weights[0].shape[1] :].any()
    other.train(max_epochs=1, batch_size=32, **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_": -1.0}, "`lambda_` cannot be negative"),
        ({"club": "nce", "independence": "hsic"}, "`club='nce'` belongs to"),
        ({"club": "gauss"}, "`club` must be one of"),
        ({"independence": "clubb"}, "Did you mean 'club'"),
        ({"preset": "official"}, "`preset` is one of"),
        ({"reconstruction": "mse"}, "`reconstruction` must be one of"),
        ({"second_moment": "third"}, "`second_moment` must be one of"),
        ({"decoders": {"a": "resnet"}}, "Decoder of modality 'a'"),
        ({"independence_options": {"club": {"log_variance": "bounded"}}}, "log_variance"),
        ({"shared_objective": "cca"}, "`shared_objective` must be one of"),
    ],
)
def test_odd_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(ub.model.IndiSeek, gaussian(), **options)


# ---- what is separated ------------------------------------------------------------------------


class Oracle(nn.Module):
    def forward(self, x):
        return x[:, :2]


@pytest.mark.parametrize("independence", ["club", "predictability", "density_ratio", "residual"])
def test_the_specific_code_holds_what_is_independent_of_the_shared_one(independence):
    """Setting 2 of the paper: x3 and x4 are functions of the shared code, x5 and x6 are private."""
    mdata = ub.data.simulate.indiseek(2, 4_400, seed=0)
    mdata["oracle"].obs["measured"] = np.arange(mdata.n_obs) % 1000 < 2
    model = build(
        ub.model.IndiSeek,
        mdata,
        setup={"mask_keys": {"oracle": "measured"}},
        n_shared=2,
        n_hidden=64,
        n_layers=2,
        encoders={"x": Oracle(), "oracle": nn.Identity()},
        shared_objective="deep_cca",
        input_transform="identity",
        lambda_=1.0,
        cross_modal=False,
        independence=independence,
    )
    epochs = {"shared": 0, "specific": 10} | ({"residual": 10} if independence == "residual" else {})
    model.train(max_epochs=epochs, batch_size=128, split_key="split", lr=2e-3, **QUIET)
    test = (mdata.obs["split"] == "test").to_numpy()
    z = model.get_latent_representation(kind="specific", modality="x")
    x = mdata["x"].X
    r2 = [LinearRegression().fit(z[~test], x[~test, j]).score(z[test], x[test, j]) for j in range(6)]
    assert min(r2[4:]) > 0.6
    assert max(r2[:4]) < 0.2
