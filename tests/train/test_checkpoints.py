import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from train_toys import Critic, Toy, assert_same_history, batches, cells, changed, citeseq_model, fit, weights

from unbraid.module import Stage


class PowerCut(Exception):
    pass


class Cut(Callback):
    """Raise in a hook of a stage, in an epoch."""

    def __init__(self, stage, hook, epoch=None):
        def raise_there(trainer, plan, *args):
            if plan.stage.name == stage and epoch in (None, trainer.current_epoch):
                raise PowerCut

        setattr(self, hook, raise_there)


class Fresh(Critic):
    inner = replace(Critic.inner, fresh_batches=True)


class Stopping(Toy):
    """Both stages overfit soon, and stop early."""

    @property
    def stages(self):
        parts = {"first": ("first",), "second": ("second", "offset")}
        return [Stage(name, part, lr=0.05, schedule="cosine") for name, part in parts.items()]


def run(module, **options):
    return fit(module, batches(cells(60, noise=3.0)), epochs=25, patience=3, **options)


REFERENCE = {}


def uninterrupted(module_class):
    if module_class not in REFERENCE:
        module = module_class()
        REFERENCE[module_class] = module, run(module)
    return REFERENCE[module_class]


def interrupted(module_class, folder, cut):
    with pytest.raises(PowerCut):
        run(module_class(), checkpoint_dir=folder, trainer_options={"callbacks": [cut]})


@pytest.mark.parametrize(
    ("stage", "hook", "epoch"),
    [
        ("first", "on_train_epoch_start", 0),  # nothing saved yet but where the run began
        ("first", "on_train_epoch_start", 2),
        ("first", "on_train_batch_end", 2),
        ("first", "on_validation_end", 3),
        ("first", "on_train_end", None),  # stopped early, not yet marked as finished
        ("second", "on_train_epoch_start", 0),
        ("second", "on_train_batch_start", 3),
        ("second", "on_fit_end", None),
    ],
)
def test_resumed_as_if_never_interrupted(tmp_path, stage, hook, epoch):
    reference, history = uninterrupted(Stopping)
    assert all(len(history[f"{name}/train_loss"]) < 25 for name in ("first", "second"))  # both stop early
    interrupted(Stopping, tmp_path, Cut(stage, hook, epoch))
    resumed = Stopping(seed=7)
    assert_same_history(run(resumed, checkpoint_dir=tmp_path, resume=True), history)
    assert changed(weights(resumed), weights(reference)) == []


@pytest.mark.parametrize("epochs_after_the_best", [1, 2, 3])
def test_patience_and_best_weights_survive(tmp_path, epochs_after_the_best):
    reference, history = uninterrupted(Stopping)
    best = int(history["second/validation_loss"]["validation_loss"].argmin())
    interrupted(Stopping, tmp_path, Cut("second", "on_validation_end", best + epochs_after_the_best))
    resumed = Stopping(seed=7)
    assert_same_history(run(resumed, checkpoint_dir=tmp_path, resume=True), history)
    assert changed(weights(resumed), weights(reference)) == []


def test_order_with_workers(tmp_path):
    # a worker asks for its first batches at once, before the sampler would be told the epoch
    options = {"epochs": 2, "early_stopping": False, "stages": Toy().stages[:1]}
    reference, resumed = Toy(), Toy(seed=7)
    fit(reference, **options)
    cut = {"callbacks": [Cut("first", "on_train_epoch_start", 1)]}
    with pytest.raises(PowerCut):
        fit(Toy(), checkpoint_dir=tmp_path, trainer_options=cut, **options)
    fit(resumed, batches(num_workers=1), checkpoint_dir=tmp_path, resume=True, **options)
    assert changed(weights(resumed), weights(reference)) == []


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_inner_loop_survives(tmp_path, epoch):
    reference, history = uninterrupted(Fresh)
    interrupted(Fresh, tmp_path, Cut("first", "on_train_batch_end", epoch))
    resumed = Fresh(seed=7)
    assert_same_history(run(resumed, checkpoint_dir=tmp_path, resume=True), history)
    assert changed(weights(resumed), weights(reference)) == []


def test_interrupted_twice_and_without_early_stopping(tmp_path):
    options = {"epochs": 6, "early_stopping": False, "checkpoint_dir": tmp_path}
    reference = Toy()
    history = fit(reference, epochs=6, early_stopping=False)
    for number, cut in enumerate([Cut("first", "on_train_epoch_end", 5), Cut("second", "on_train_epoch_start", 4)]):
        with pytest.raises(PowerCut):
            fit(Toy(seed=number), resume=number > 0, trainer_options={"callbacks": [cut]}, **options)
    resumed = Toy(seed=7)
    assert_same_history(fit(resumed, resume=True, **options), history)
    assert changed(weights(resumed), weights(reference)) == []


def test_a_finished_run_is_only_read(tmp_path):
    reference = Toy()
    history = fit(reference, checkpoint_dir=tmp_path)

    class Untouched(Toy):
        def loss(self, batch, stage):
            raise AssertionError

    again = Untouched(seed=7)
    assert_same_history(fit(again, checkpoint_dir=tmp_path, resume=True), history)
    assert changed(weights(again), weights(reference)) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.finished", "run.pt", "second.finished"]


def test_resume_in_an_empty_folder_starts(tmp_path):
    reference, module = Toy(), Toy()
    fit(reference)
    fit(module, checkpoint_dir=tmp_path / "new" / "folder", resume=True)
    assert changed(weights(module), weights(reference)) == []


def test_numpy_numbers_do_not_spoil_checkpoints(tmp_path):
    stages = [replace(stage, lr=np.float64(0.01), weight_decay=np.float32(0.1)) for stage in Toy().stages]
    options = {"stages": stages, "min_delta": np.float32(0), "checkpoint_dir": tmp_path}
    with pytest.raises(PowerCut):
        fit(Toy(), trainer_options={"callbacks": [Cut("second", "on_train_epoch_start", 2)]}, **options)
    resumed, reference = Toy(seed=7), Toy()
    assert_same_history(fit(resumed, resume=True, **options), fit(reference, stages=stages))
    assert changed(weights(resumed), weights(reference)) == []


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    fit(Toy(), epochs=1, checkpoint_dir=tmp_path)
    module = Toy()
    with pytest.raises(ValueError, match="already holds a run. Pass `resume=True`"):
        fit(module, epochs=1, checkpoint_dir=tmp_path)
    assert changed(weights(module), weights(Toy())) == []


OTHER_RUNS = {
    "seed": {"seed": 1},
    "stages": {"epochs": 2},
    "early stopping": {"patience": 3},
    "batch size": {"datamodule": {"batch_size": 10}},
    "cells": {"datamodule": {"n_train": 39}},
    "shapes of weights": {"module": Critic},
}


@pytest.mark.parametrize("item", OTHER_RUNS)
def test_the_folder_of_another_run_is_refused(tmp_path, item):
    def run(module=Toy, datamodule=None, epochs=1, **options):
        module = module()
        stages = Toy.stages.fget(module)
        fit(module, batches(**(datamodule or {})), stages=stages, epochs=epochs, checkpoint_dir=tmp_path, **options)

    run()
    with pytest.raises(ValueError, match=rf"holds another run, with other {item}"):
        run(resume=True, **OTHER_RUNS[item])


def test_other_options_of_a_stage_are_another_run(tmp_path):
    fit(Toy(), epochs=1, checkpoint_dir=tmp_path)
    for change in ({"lr": 0.1}, {"weight_decay": 0.1}, {"gradient_clip": 1.0}, {"schedule": "cosine"}):
        stages = [replace(stage, **change) for stage in Toy().stages]
        with pytest.raises(ValueError, match="another run, with other stages"):
            fit(Toy(), epochs=1, stages=stages, checkpoint_dir=tmp_path, resume=True)


def test_the_message_gives_the_seed(tmp_path):
    fit(Toy(), epochs=1, checkpoint_dir=tmp_path, seed=12)
    with pytest.raises(ValueError, match=r"with other seed \(12 there, 13 here\)\."):
        fit(Toy(), epochs=1, checkpoint_dir=tmp_path, resume=True, seed=13)


def test_a_folder_in_which_nothing_has_been_trained_is_no_run(tmp_path):
    with pytest.raises(TypeError, match="no_such_option"):
        fit(Toy(), epochs=1, checkpoint_dir=tmp_path, trainer_options={"no_such_option": 1})
    fit(Toy(), epochs=2, checkpoint_dir=tmp_path)
    assert (tmp_path / "second.finished").exists()


def test_resume_needs_a_folder():
    with pytest.raises(ValueError, match="`resume=True` needs the `checkpoint_dir`"):
        fit(Toy(), resume=True)


def test_a_model_resumes(tmp_path):
    options = {"max_epochs": 3, "seed": 0, "accelerator": "cpu", "progress_bar": False, "validation_size": 0.3}
    reference = citeseq_model("DisentangledSSL", n_specific=3)
    reference.train(**options)
    broken = citeseq_model("DisentangledSSL", n_specific=3)
    with pytest.raises(PowerCut):
        broken.train(checkpoint_dir=str(tmp_path), callbacks=[Cut("specific", "on_train_batch_end", 1)], **options)
    resumed = citeseq_model("DisentangledSSL", n_specific=3, init=7)
    resumed.train(checkpoint_dir=str(tmp_path), resume=True, **options)
    assert_same_history(resumed.history, reference.history)
    for kind in ("shared", "specific"):
        one, other = (m.get_latent_representation(kind=kind, modality="rna") for m in (reference, resumed))
        np.testing.assert_array_equal(one, other)


def test_killed(tmp_path):
    """All three runs in processes of their own, so that nothing another test has done to this one can matter."""
    script = str(Path(__file__).with_name("kill_script.py"))
    process = subprocess.Popen([sys.executable, script, "slow", str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "second.ckpt").exists():
            assert process.poll() is None, "the script ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "second.finished").exists()
    for mode in ("resume", "whole"):
        subprocess.run([sys.executable, script, mode, str(tmp_path)], check=True)
    resumed, whole = (torch.load(tmp_path / f"{mode}.pt") for mode in ("resume", "whole"))
    assert resumed["history"] == whole["history"]
    assert changed(resumed["weights"], whole["weights"]) == []


def test_torn_files_are_never_read(tmp_path, monkeypatch):
    # the power fails in the middle of writing a stage's result
    save = torch.save

    def torn(state, path):
        Path(path).write_bytes(b"half a fi")
        raise PowerCut

    monkeypatch.setattr(
        torch, "save", lambda state, path: torn(state, path) if "first" in str(path) else save(state, path)
    )
    with pytest.raises(PowerCut):
        fit(Toy(), checkpoint_dir=tmp_path)
    monkeypatch.undo()
    resumed, reference = Toy(seed=7), Toy()
    assert_same_history(fit(resumed, checkpoint_dir=tmp_path, resume=True), fit(reference))
    assert changed(weights(resumed), weights(reference)) == []
