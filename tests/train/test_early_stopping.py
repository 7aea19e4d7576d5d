import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_toys import Scripted, Toy, batches, cells, changed, citeseq_model, fit, weights

from unbraid.module import Stage

FIRST = [Stage("first", ("first",), lr=1e-2)]
ONE_BATCH = {"n_validation": 10}  # one validation batch, so the script counts epochs


def run(script, *, epochs=12, trainer_options=None, **options):
    module = Scripted(script)
    history = fit(module, batches(**ONE_BATCH), epochs=epochs, stages=FIRST, trainer_options=trainer_options, **options)
    return module, history


@pytest.mark.parametrize(("patience", "n_epochs", "best"), [(1, 3, 1), (2, 7, 4), (3, 8, 4), (50, 12, 9)])
def test_a_stage_waits_as_long_as_told_and_goes_back_to_its_best_epoch(patience, n_epochs, best):
    script = [5, 4, 4.5, 4.2 if patience == 1 else 3.9, 3, 3.1, 3.2, 3.3, 3.4, 2.5, 2.6, 2.7]
    module, history = run(script, patience=patience)
    assert history["first/validation_loss"]["validation_loss"].tolist() == pytest.approx(script[:n_epochs])
    assert len(history["first/train_loss"]) == len(history["first/lr"]) == n_epochs
    # batch norm's buffers go back too
    assert changed(weights(module), module.at_validation[best]) == []
    assert "first.1.running_mean" in changed(weights(module), module.at_validation[best - 1])


def test_small_improvements_do_not_count_but_the_best_weights_are_the_best():
    script = [5, 4.95, 4.9, 4.85, 1, 1]
    module, history = run(script, patience=2, min_delta=0.5, epochs=6)
    assert len(history["first/train_loss"]) == 3
    assert changed(weights(module), module.at_validation[2]) == []


def test_without_early_stopping_all_epochs_run_and_the_last_weights_stay():
    module, history = run([5, 1, 2, 3, 4, 5], epochs=6, early_stopping=False, patience=1)
    assert len(history["first/train_loss"]) == 6
    assert changed(weights(module), module.at_validation[5]) == []
    assert "first.0.weight" in changed(weights(module), module.at_validation[1])


def test_without_validation_cells_all_epochs_run():
    history = fit(Toy(), batches(n_validation=0), epochs=4, patience=1)
    assert len(history["first/train_loss"]) == len(history["second/train_loss"]) == 4


def test_every_stage_waits_for_itself():
    module = Scripted([5, 4, 4.5, 4.5] + [9, 8, 8.5, 7, 7.5, 7.5])
    history = fit(module, batches(**ONE_BATCH), epochs=12, patience=2)
    assert len(history["first/train_loss"]) == 4
    assert len(history["second/train_loss"]) == 6
    first, second = module.at_validation[1], module.at_validation[7]
    assert [name for name in changed(weights(module), first) if name.startswith("first.")] == []
    assert changed(weights(module), second) == []


def test_the_best_epoch_of_a_real_run():
    # many parameters, few noisy cells: validation soon gets worse
    module, datamodule = Toy(dropout=0.0), batches(cells(60, noise=3.0))
    stages = [Stage("first", ("first",), lr=0.05), Stage("second", ("second", "offset"), lr=0.05)]
    history = fit(module, datamodule, epochs=40, stages=stages, patience=3)
    with torch.no_grad():
        loss = module.loss(datamodule.dataset[datamodule.parts["validation"]], "second").loss.item()
    curve = history["second/validation_loss"]["validation_loss"]
    assert loss == pytest.approx(curve.min(), rel=1e-6)
    assert curve.iloc[-1] > curve.min()
    for stage in ("first", "second"):
        values = history[f"{stage}/validation_loss"]["validation_loss"].to_numpy()
        assert len(values) < 40
        assert len(values) - 1 - np.argmin(values) == 3


def test_options_of_a_model():
    model = citeseq_model("DisentangledSSL", n_specific=3)
    model.train(
        {"shared": 4, "specific": 4},
        validation_size=0.3,
        early_stopping_patience=1,
        early_stopping_min_delta=1e9,  # nothing is an improvement but the first
        seed=0,
        accelerator="cpu",
        progress_bar=False,
    )
    assert len(model.history["shared/train_loss"]) == len(model.history["specific/train_loss"]) == 2


def test_validation_every_other_epoch():
    module, history = run([5, 4, 4.5, 4.5], epochs=12, patience=2, trainer_options={"check_val_every_n_epoch": 2})
    # patience counts validations: the fourth comes after epoch 7
    assert len(history["first/train_loss"]) == 8
    assert history["first/validation_loss"].index.tolist() == [1, 3, 5, 7]
    assert changed(weights(module), module.at_validation[1]) == []


def test_untrained_weights_are_not_the_best():
    # the sanity check validates before training
    module, history = run([0.1, 5, 4, 3], epochs=3, trainer_options={"num_sanity_val_steps": 1})
    assert history["first/validation_loss"]["validation_loss"].tolist() == [5, 4, 3]
    assert changed(weights(module), module.at_validation[3]) == []


def test_an_infinite_loss_is_no_improvement():
    module, history = run([math.inf, 4, math.inf, 3, math.inf, math.inf, 1], epochs=12, patience=2)
    assert len(history["first/train_loss"]) == 6
    assert changed(weights(module), module.at_validation[3]) == []


# ---- stages that stop in their own way ------------------------------------------------------------

SCRIPT = [5, 4, 4.5, 6, 3, 7, 8, 9]


def stage(mode):
    return [replace(FIRST[0], early_stopping=mode)]


@pytest.mark.parametrize(("mode", "n_epochs", "left"), [("stop", 3, 1), ("best", 8, 4), ("never", 8, 7)])
def test_a_stage_may_run_to_its_end(mode, n_epochs, left):
    module = Scripted(SCRIPT)
    history = fit(module, batches(**ONE_BATCH), epochs=8, stages=stage(mode), patience=1)
    assert history["first/validation_loss"]["validation_loss"].tolist() == pytest.approx(SCRIPT[:n_epochs])
    assert changed(weights(module), module.at_validation[left]) == []
    assert changed(weights(module), module.at_validation[left - 1]) != []


@pytest.mark.parametrize("mode", ["stop", "best", "never"])
def test_no_mode_stops_a_user_who_has_none(mode):
    module = Scripted(SCRIPT)
    fit(module, batches(**ONE_BATCH), epochs=8, stages=stage(mode), patience=1, early_stopping=False)
    assert changed(weights(module), module.at_validation[7]) == []


class Judged(Scripted):
    """All validation cells at once say the opposite of what the validation batches say."""

    def __init__(self, script, key):
        super().__init__(script)
        self.key, self.seen = key, []

    def validate_stage(self, stage, train, validation):
        self.seen.append([sorted(i for batch in part for i in batch["index"].tolist()) for part in (train, validation)])
        assert not self.first.training
        assert not torch.is_grad_enabled()
        return {self.key: -self.script[len(self.at_validation) - 1]}


@pytest.mark.parametrize(("mode", "n_epochs", "left"), [("stop", 3, 0), ("best", 8, 7)])
def test_a_loss_of_all_validation_cells_leads(mode, n_epochs, left):
    module = Judged(SCRIPT, "loss")
    history = fit(module, batches(**ONE_BATCH), epochs=8, stages=stage(mode), patience=2)
    found = history["first/validation_loss"]["validation_loss"]
    assert found.tolist() == pytest.approx([-value for value in SCRIPT[:n_epochs]])
    assert changed(weights(module), module.at_validation[left]) == []
    assert module.seen == [[list(range(40)), list(range(40, 50))]] * n_epochs


def test_any_other_quantity_of_all_validation_cells_is_but_noted():
    module = Judged(SCRIPT, "information")
    history = fit(module, batches(**ONE_BATCH), epochs=8, stages=stage("stop"), patience=1)
    assert history["first/information_validation"]["information_validation"].tolist() == [-5, -4, -4.5]
    assert history["first/validation_loss"]["validation_loss"].tolist() == [5, 4, 4.5]
    assert changed(weights(module), module.at_validation[1]) == []
