import math
import random

import numpy as np
import pytest
import torch
from scvi.module.base import LossOutput
from train_toys import Toy, batches, changed, citeseq_model, fit, weights

from unbraid.data import BlockSampler
from unbraid.module import Stage

# --- what a stage trains ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "prefixes"), [("first", ("first.",)), ("second", ("second.", "offset"))])
def test_a_stage_changes_its_parts_and_nothing_else(name, prefixes):
    module = Toy()
    before = weights(module)
    fit(module, stages=[stage for stage in module.stages if stage.name == name])
    # every tensor of the parts, batch norm's buffers included; nothing of the frozen ones, whose buffers would
    # move with the first batch that they see in training mode
    assert changed(before, weights(module)) == [key for key in before if key.startswith(prefixes)]


def test_frozen_parts_are_in_evaluation_mode_and_need_no_gradient():
    seen = []

    class Watched(Toy):
        def on_loss(self, batch, stage):
            modes = tuple(part.training for part in (self.first, self.first[3], self.second, self.second[1]))
            needs = tuple(all(p.requires_grad for p in part.parameters()) for part in (self.first, self.second))
            seen.append((stage, modes, needs, self.offset.requires_grad))

    module = Watched()
    fit(module, epochs=2, early_stopping=False)
    assert set(seen) == {
        ("first", (True, True, False, False), (True, False), False),
        ("first", (False,) * 4, (True, False), False),  # validation
        ("second", (False, False, True, True), (False, True), True),
        ("second", (False,) * 4, (False, True), True),
    }


def test_afterwards_everything_is_as_before():
    module = Toy()
    module.second[0].weight.requires_grad_(False)
    before = weights(module)
    fit(module, batches(n_validation=0))
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["second.0.weight"]
    assert not any(part.training for part in module.modules())
    assert all(p.grad is None for p in module.parameters())
    # what the user froze stays frozen, although the stage trains the part around it
    assert "second.0.weight" not in changed(before, weights(module))
    assert "second.4.bias" in changed(before, weights(module))


# --- how it trains ----------------------------------------------------------------------------------


def by_hand(stages, epochs):
    """The stages in plain torch, for a module without randomness."""
    module, datamodule = Toy(dropout=0.0), batches()
    for stage in stages:
        module.eval()
        for part in stage.parts:
            if part != "offset":
                getattr(module, part).train()
        parameters = list(module.parameters_of(stage.parts))
        adam = torch.optim.AdamW if stage.weight_decay else torch.optim.Adam
        optimizer = adam(parameters, lr=stage.lr, weight_decay=stage.weight_decay)
        sampler = BlockSampler(datamodule.parts["train"], 16, shuffle=True, seed=0)
        for epoch in range(epochs):
            if stage.schedule == "cosine":
                optimizer.param_groups[0]["lr"] = stage.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
            sampler.set_epoch(epoch)
            for block in sampler:
                optimizer.zero_grad()
                module.loss(datamodule.dataset[block], stage.name).loss.backward()
                if stage.gradient_clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, stage.gradient_clip)
                optimizer.step()
    return weights(module)


FIRST, SECOND = ("first",), ("second", "offset")


@pytest.mark.parametrize(
    "stages",
    [
        [Stage("first", FIRST, lr=1e-2), Stage("second", SECOND, lr=3e-3)],
        [Stage("first", FIRST, lr=1e-2, schedule="cosine"), Stage("second", SECOND, lr=3e-3, schedule="cosine")],
        [Stage("first", FIRST, lr=1e-2, weight_decay=0.5), Stage("second", SECOND, lr=3e-3)],
        [Stage("first", FIRST, lr=1e-2, gradient_clip=0.05), Stage("second", SECOND, lr=3e-3, gradient_clip=1e-9)],
    ],
    ids=["constant", "cosine", "weight decay", "clipped"],
)
def test_training_is_what_plain_torch_does(stages):
    module = Toy(dropout=0.0)
    fit(module, epochs=3, stages=stages, early_stopping=False)
    expected = by_hand(stages, 3)
    torch.testing.assert_close(weights(module), expected, rtol=1e-4, atol=1e-6)
    # and the options matter at this precision
    plain = [Stage("first", FIRST, lr=1e-2), Stage("second", SECOND, lr=3e-3)]
    if stages != plain:
        assert (by_hand(plain, 3)["first.0.weight"] - expected["first.0.weight"]).abs().max() > 1e-3


def test_a_clipped_gradient_has_the_largest_norm_allowed():
    norms = []

    class Watched(Toy):
        def on_loss(self, batch, stage):  # the gradient of the step before is still there
            gradients = [p.grad for p in self.first.parameters() if p.grad is not None]
            if gradients and self.first.training:
                norms.append(torch.stack([g.norm() for g in gradients]).norm().item())

    fit(Watched(), stages=[Stage("first", FIRST, gradient_clip=0.05)])
    assert len(norms) >= 6
    assert max(norms) == pytest.approx(0.05, rel=1e-3)
    norms.clear()
    fit(Watched(), stages=[Stage("first", FIRST)])
    assert min(norms) > 0.06


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_schedule(schedule):
    module = Toy()
    history = fit(module, epochs=20, stages=[Stage("first", FIRST, lr=0.01, schedule=schedule)], early_stopping=False)
    rates = history["first/lr"]["lr"].to_numpy()
    if schedule == "constant":
        assert (rates == 0.01).all()
    else:
        np.testing.assert_allclose(rates, 0.005 * (1 + np.cos(np.pi * np.arange(20) / 20)), rtol=1e-9)
        assert rates[-1] < 0.01 * 0.01


def test_every_stage_has_its_own_epochs_and_rate():
    model = citeseq_model("DisentangledSSL", n_specific=3, schedule="constant")
    model.train(
        {"shared": 2, "specific": 3},
        lr={"shared": 0.02, "specific": 0.003},
        seed=0,
        accelerator="cpu",
        progress_bar=False,
    )
    assert model.history["shared/lr"]["lr"].tolist() == [0.02] * 2
    assert model.history["specific/lr"]["lr"].tolist() == [0.003] * 3


def test_no_epochs_skip_a_stage():
    module = Toy()
    before = weights(module)
    history = fit(module, epochs={"first": 0, "second": 1})
    assert {key.split("/")[0] for key in history} == {"second"}
    assert {name.split(".")[0] for name in changed(before, weights(module))} == {"second", "offset"}
    assert fit(module, epochs=0) == {}


def test_a_loss_without_gradient_changes_nothing():
    class Unpaired(Toy):
        def loss(self, batch, stage):
            return LossOutput(loss=torch.zeros(()), n_obs_minibatch=len(batch["index"]))

    module = Unpaired()
    before = weights(module)
    history = fit(module, epochs=1)
    assert history["first/train_loss"]["train_loss"].tolist() == [0.0]
    assert changed(before, weights(module)) == []


def test_a_stage_without_anything_to_train_is_refused_before_training():
    module = Toy()
    module.second.requires_grad_(False)
    module.offset.requires_grad_(False)
    before = weights(module)
    with pytest.raises(ValueError, match=r"Stage 'second' has nothing to train: .*second, offset.*\{'second': 0\}"):
        fit(module)
    assert changed(before, weights(module)) == []
    fit(module, epochs={"first": 1, "second": 0})


# --- random numbers ---------------------------------------------------------------------------------


def test_same_seed_same_weights():
    one, other, third = Toy(), Toy(), Toy()
    fit(one, seed=3)
    torch.manual_seed(11)  # no part of it
    fit(other, seed=3)
    fit(third, seed=4)
    assert changed(weights(one), weights(other)) == []
    assert "first.0.weight" in changed(weights(one), weights(third))


def test_stages_epochs_and_steps_draw_different_numbers():
    draws = []

    class Drawing(Toy):
        def on_loss(self, batch, stage):
            draws.append((stage, self.first.training or self.second.training, torch.rand(()).item()))

    fit(Drawing(), epochs=3, early_stopping=False)
    training = [value for _, is_training, value in draws if is_training]
    assert len(training) == len(set(training)) == 2 * 3 * 3
    # validation: two batches, the same numbers in every epoch
    for stage in ("first", "second"):
        values = [value for name, is_training, value in draws if name == stage and not is_training]
        assert len(values) == 6
        assert len(set(values)) == 2
        assert values[:2] == values[2:4] == values[4:]


def test_the_random_state_is_the_users():
    torch.manual_seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    fit(Toy())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.initial_seed() == 5
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


# --- losses that explode ----------------------------------------------------------------------------


class Exploding(Toy):
    """The training (or validation) loss of stage "second" is NaN from its third epoch on."""

    def __init__(self, in_training):
        super().__init__()
        self.in_training, self.calls = in_training, 0

    def loss(self, batch, stage):
        output = super().loss(batch, stage)
        if stage == "second" and self.second.training == self.in_training:
            self.calls += 1
        steps = 3 if self.in_training else 2
        factor = torch.nan if self.calls > 2 * steps else 1.0
        return LossOutput(loss=output.loss * factor, n_obs_minibatch=output.n_obs_minibatch)


@pytest.mark.parametrize("in_training", [True, False])
@pytest.mark.parametrize("early_stopping", [True, False])
def test_nan_stops_training_and_names_the_stage(in_training, early_stopping):
    module = Exploding(in_training)
    module.second[0].weight.requires_grad_(False)
    state = torch.get_rng_state()
    with pytest.raises(FloatingPointError, match=r"Stage 'second': the loss became NaN in epoch 2\. .*`lr`"):
        fit(module, epochs=50, early_stopping=early_stopping, patience=50)
    assert module.calls <= 3 * 3  # at once, not after all epochs
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["second.0.weight"]
    assert not module.second.training
