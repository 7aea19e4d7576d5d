"""Unbraid saved and loaded, trained further, resumed, and given new data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import unbraid as ub

QUIET = {"seed": 0, "accelerator": "cpu", "progress_bar": False}


def assert_same_report(found, expected):
    assert str(found) == str(expected)
    pd.testing.assert_frame_equal(found.candidates, expected.candidates)
    np.testing.assert_array_equal(found.correlations, expected.correlations)
    assert (found.threshold, found.interval) == (expected.threshold, expected.interval)


@pytest.mark.parametrize("which", ["neural", "counts"])
def test_saved_and_loaded_it_is_the_same(which, request, tmp_path, latents, assert_same):
    model = request.getfixturevalue(which)
    model.save(tmp_path / "model")
    loaded = ub.model.Unbraid.load(tmp_path / "model", model.adata)
    assert_same(latents(loaded), latents(model))
    assert_same_report(loaded.report(), model.report())
    m, n = model.modalities[:2]
    for ask in (
        lambda x: x.reconstruct(m),
        lambda x: x.translate(m, n),
        lambda x: x.impute(m),
        lambda x: x.get_retrieval_representation(n, role="target"),
    ):
        np.testing.assert_array_equal(ask(loaded), ask(model))


def test_training_goes_on(folded, trained, latents):
    epochs, training = (
        {"shared": 2, "scratch": 0, "residual": 1, "specific": 1},
        {"batch_size": 64, "validation_size": 0.3},
    )
    model = trained(folded(400), None, epochs, training, lr=0.01)
    before, start = model.reconstruct("a"), model.module.linear.encoders["a"].linear_start.clone()
    information = model.report().candidates["information"]
    model.train(epochs, **training, **QUIET)
    assert torch.equal(model.module.linear.encoders["a"].linear_start, start)
    after = model.report().candidates["information"]
    assert after["linear"] == information["linear"]
    assert after["shared"] > information["shared"]  # two epochs were too few
    assert len(model.history["shared/train_loss"]) == 4
    assert all(np.isfinite(z).all() for z in latents(model).values())
    assert np.abs(model.reconstruct("a") - before).max() > 1e-3
    assert np.square(model.reconstruct("a") - model.adata["a"].X).mean() < 0.01


def test_query_data(counts, make_mdata, tmp_path, latents, assert_same):
    mdata = make_mdata(90, ("rna", "prot", "atac"), missing={"atac": 0.3}, seed=8)
    model = ub.model.Unbraid.load_query_data(mdata.copy(), counts)
    assert_same(latents(model), latents(counts, mdata), atol=1e-5)
    assert_same_report(model.report(), counts.report())
    mdata.obs["batch"] = "new"
    counts.save(tmp_path / "model")
    model = ub.model.Unbraid.load_query_data(mdata, tmp_path / "model")
    assert all(np.isfinite(z).all() for z in latents(model).values())
    model.train(1, batch_size=32, validation_size=0.6, **QUIET)
    assert all(np.isfinite(z).all() for z in latents(model).values())
    assert np.isfinite(model.reconstruct("rna")).all()


class PowerCut(Exception):
    pass


class Cut(Callback):
    """Raise in a hook of a stage, in an epoch."""

    def __init__(self, stage, hook, epoch):
        def raise_there(trainer, plan, *args):
            if plan.stage.name == stage and trainer.current_epoch == epoch:
                raise PowerCut

        setattr(self, hook, raise_there)


RESUMED = {"max_epochs": 2, "batch_size": 60, "validation_size": 0.4, **QUIET}


@pytest.fixture(scope="module")
def uninterrupted(folded, build):
    model = build(folded(200), lr=0.01)
    model.train(**RESUMED)
    return model


@pytest.mark.parametrize(
    ("stage", "hook", "epoch"),
    [
        ("shared", "on_train_batch_end", 1),
        ("scratch", "on_train_epoch_start", 0),
        ("residual", "on_train_batch_end", 1),
        ("specific", "on_train_epoch_start", 0),  # the residuals at hand are gone
        ("specific", "on_train_batch_end", 1),
    ],
)
def test_resumed_as_if_never_interrupted(
    uninterrupted, tmp_path, stage, hook, epoch, folded, build, latents, assert_same
):
    broken, resumed = (build(folded(200), lr=0.01) for _ in range(2))
    with pytest.raises(PowerCut):
        broken.train(**RESUMED, checkpoint_dir=str(tmp_path), callbacks=[Cut(stage, hook, epoch)])
    resumed.train(**RESUMED, checkpoint_dir=str(tmp_path), resume=True)
    assert_same(latents(resumed), latents(uninterrupted), rtol=1e-3, atol=1e-3)
    assert str(resumed.report()) == str(uninterrupted.report())
    for name, frame in uninterrupted.history.items():
        np.testing.assert_allclose(resumed.history[name], frame, rtol=1e-3, atol=1e-4, err_msg=name)
