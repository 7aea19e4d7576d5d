import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from train_toys import Critic, Toy, assert_same_history, batches, cells, changed, citeseq_model, fit, weights

from unbraid.module import Stage

QUANTITIES = {"train_loss", "fit_train", "size_train", "validation_loss", "fit_validation", "size_validation", "lr"}


def test_every_term_of_every_stage_has_a_frame():
    history = fit(Toy(), epochs={"first": 2, "second": 3}, early_stopping=False)
    assert set(history) == {f"{stage}/{quantity}" for stage in ("first", "second") for quantity in QUANTITIES}
    for key, frame in history.items():
        stage, quantity = key.split("/")
        assert list(frame.columns) == [quantity]
        assert frame.index.name == "epoch"
        assert frame.index.tolist() == list(range(2 if stage == "first" else 3))
        assert np.isfinite(frame[quantity]).all()


def test_without_validation_cells_there_is_no_validation_column():
    history = fit(Toy(), batches(n_validation=0), epochs=1)
    assert {key for key in history if key.startswith("first/")} == {
        f"first/{quantity}" for quantity in QUANTITIES if "validation" not in quantity
    }


def test_terms_of_a_model():
    model = citeseq_model("DisentangledSSL", n_specific=3)
    model.train(2, seed=0, accelerator="cpu", progress_bar=False)
    terms = {"shared": ("info_nce", "alignment"), "specific": ("specific_info_nce", "orthogonality")}
    expected = {f"{stage}/{q}" for stage in terms for q in ("lr", "train_loss", "validation_loss")}
    expected |= {f"{s}/{term}_{part}" for s in terms for term in terms[s] for part in ("train", "validation")}
    assert set(model.history) == expected
    assert {len(frame) for frame in model.history.values()} == {2}


def test_means_are_weighted_by_cells():
    seen = []

    class Watched(Critic):
        def loss(self, batch, stage):
            output = super().loss(batch, stage)
            part = "train" if self.first.training else "validation"
            seen.append((part, len(batch["index"]), output.loss.item(), output.extra_metrics["fit"].item()))
            return output

    # 31 training cells in batches of 11, 10 and 10; 9 validation cells with batches of 5 and 4
    module, datamodule = Watched(), batches(cells(40), n_train=31, batch_size=11)
    datamodule.batch_size = 11
    history = fit(module, datamodule, epochs=2, early_stopping=False)
    assert {n for part, n, *_ in seen if part == "train"} == {10, 11}
    for part in ("train", "validation"):
        n, loss, term = np.array([row for kind, *row in seen if kind == part]).reshape(2, -1, 3).transpose(2, 0, 1)
        for name, values in {f"{part}_loss": loss, f"fit_{part}": term}.items():
            mean = (n * values).sum(axis=1) / n.sum(axis=1)
            np.testing.assert_allclose(history[f"first/{name}"][name], mean, rtol=1e-5)
            if part == "train":  # the plain mean over batches is another number
                assert abs(values.mean(axis=1) - mean).max() > 1e-4


def test_the_validation_loss_is_that_of_the_weights_at_the_end_of_the_epoch():
    module, datamodule = Toy(), batches()
    history = fit(module, datamodule, epochs=3, early_stopping=False)
    with torch.no_grad():
        output = module.loss(datamodule.dataset[datamodule.parts["validation"]], "second")
    assert history["second/validation_loss"]["validation_loss"].iloc[-1] == pytest.approx(output.loss.item(), rel=1e-5)
    fits = history["second/fit_validation"]["fit_validation"]
    assert fits.iloc[-1] == pytest.approx(output.extra_metrics["fit"].item(), rel=1e-5)
    assert fits.iloc[-2] != pytest.approx(fits.iloc[-1], rel=1e-4)


@pytest.mark.parametrize("trainer_options", [{}, {"val_check_interval": 1}, {"check_val_every_n_epoch": 2}])
def test_validation_does_not_change_training(trainer_options):
    validated, plain = Toy(), Toy()
    with_validation = fit(validated, batches(), early_stopping=False, trainer_options=trainer_options)
    without = fit(plain, batches(n_validation=0), early_stopping=False)
    assert changed(weights(validated), weights(plain)) == []
    assert_same_history({key: with_validation[key] for key in without}, without)
    n_validations = 1 if "check_val_every_n_epoch" in trainer_options else 3
    assert len(with_validation["second/validation_loss"]) == n_validations


def test_a_term_may_be_a_number_or_hold_on_to_its_graph():
    class Careless(Toy):
        def loss(self, batch, stage):
            output = super().loss(batch, stage)
            output.extra_metrics.update(careless=self.first(batch["x"]["a"]).mean(), number=2.0)
            return output

    class Watch(Callback):
        def on_train_batch_end(self, trainer, plan, *args):  # an epoch of graphs would not fit into memory
            assert not any(total.requires_grad for total, _ in plan._sums["train"].values())

    history = fit(Careless(), epochs=2, stages=[Stage("first", ("first",))], trainer_options={"callbacks": [Watch()]})
    assert history["first/number_train"]["number_train"].tolist() == [2.0, 2.0]
    assert len(history["first/careless_train"]) == 2
