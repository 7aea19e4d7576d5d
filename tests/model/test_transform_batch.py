"""Cells decoded as if they were of another batch."""

from __future__ import annotations

import mudata
import numpy as np
import pandas as pd
import pytest
import torch

import unbraid as ub

N_PROTEINS = 8


@pytest.fixture(scope="module")
def mosaic(make_mdata, remake):
    """Cells of three batches, of which the third has no protein."""
    mdata = make_mdata(60)
    batch = pd.Series(np.array(["a", "b", "c"])[np.arange(60) % 3], mdata.obs_names)
    measured = mdata["prot"][(batch[mdata["prot"].obs_names] != "c").to_numpy()].copy()
    mdata = remake(mdata, prot=measured)
    mdata.obs["lane"] = batch.reindex(mdata.obs_names).astype("category")
    return mdata


@pytest.fixture(scope="module")
def mosaic_model(mosaic):
    ub.model.SwapVAE.setup_mudata(mosaic, batch_key="lane")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ub.model.SwapVAE(mosaic, n_shared=3, n_specific=2, n_hidden=8, lr=0.02, diffusion=None)
    model.train(max_epochs=20, batch_size=32, progress_bar=False, accelerator="cpu", seed=0)
    return model


def in_batch(mdata, name):
    """The same cells, all of one batch."""
    changed = mdata.copy()
    changed.obs["lane"] = pd.Categorical([name] * changed.n_obs, categories=["a", "b", "c"])
    return changed


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, *given, **options: model.impute("prot", *given, **options),
        lambda model, *given, **options: model.translate("rna", "prot", *given, **options),
        lambda model, *given, **options: model.reconstruct("prot", *given, **options),
    ],
    ids=["impute", "translate", "reconstruct"],
)
def test_cells_are_decoded_as_the_batch_that_is_asked_for(ask, mosaic, mosaic_model):
    values = {name: ask(mosaic_model, transform_batch=name) for name in "ab"}
    assert np.nanmax(abs(values["a"] - values["b"])) > 1e-3
    for name, found in values.items():  # encoders do not see batches
        np.testing.assert_allclose(found, ask(mosaic_model, in_batch(mosaic, name)), rtol=1e-5)
    both = ask(mosaic_model, transform_batch=["b", "a"])
    np.testing.assert_allclose(both, (values["a"] + values["b"]) / 2, rtol=1e-4, atol=1e-5)


def test_cells_of_a_batch_without_the_modality_are_decoded_as_the_others(mosaic, mosaic_model):
    lane, found = mosaic.obs["lane"].to_numpy(), mosaic_model.impute("prot")
    for name in "ab":
        own = mosaic_model.impute("prot", transform_batch=name)
        np.testing.assert_allclose(found[lane == name], own[lane == name], rtol=1e-5)
    both = mosaic_model.impute("prot", transform_batch=["a", "b"])
    np.testing.assert_allclose(found[lane == "c"], both[lane == "c"], rtol=1e-4, atol=1e-5)
    rna = mosaic_model.impute("rna")[lane == "c"]  # all batches have it
    np.testing.assert_allclose(rna, mosaic_model.impute("rna", transform_batch="c")[lane == "c"], rtol=1e-5)


def test_draws_take_one_of_the_batches(mosaic, mosaic_model):
    calls = []
    watch = lambda _, given: calls.append(given[1])
    handle = mosaic_model.module.decoders["prot"].register_forward_pre_hook(watch)
    draws = mosaic_model.impute("prot", n_samples=40)
    handle.remove()
    chosen = torch.cat([part.view(40, -1, 3) for part in calls], dim=1)
    assert draws.shape == (40, 60, N_PROTEINS)
    assert (chosen.sum(-1) == 1).all()
    lane = mosaic.obs["lane"].cat.codes.to_numpy()
    for name in (0, 1):
        assert (chosen[:, lane == name, name] == 1).all()
    share = chosen[:, lane == 2].mean((0, 1))
    assert share[2] == 0
    assert abs(share[0] - 0.5) < 0.1


@pytest.mark.parametrize(
    ("asked", "message"),
    [("d", "There is no batch 'd'.*'a', 'b', 'c'"), (["a", "d"], "no batch 'd'"), ([], "no batch")],
)
def test_batches_that_do_not_exist_are_refused(mosaic_model, asked, message):
    with pytest.raises(ValueError, match=message):
        mosaic_model.impute("prot", transform_batch=asked)


def test_cells_of_a_new_batch_are_decoded_as_those_that_are_known(mosaic, mosaic_model):
    query = mudata.MuData({"rna": mosaic["rna"][:10].copy()})
    query.obs["lane"] = pd.Categorical(["new"] * 10)
    model = type(mosaic_model).load_query_data(query, mosaic_model)
    found = model.impute("prot")
    rna_only = mudata.MuData({"rna": mosaic["rna"][:10].copy()}, obs=in_batch(mosaic, "c").obs[:10])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, mosaic_model.impute("prot", rna_only), rtol=1e-4, atol=1e-4)


def test_which_batches_were_measured_is_saved(mosaic, mosaic_model, tmp_path):
    mosaic_model.save(tmp_path / "model", overwrite=True)
    loaded = type(mosaic_model).load(tmp_path / "model", mosaic)
    np.testing.assert_allclose(loaded.impute("prot"), mosaic_model.impute("prot"), rtol=1e-5)
