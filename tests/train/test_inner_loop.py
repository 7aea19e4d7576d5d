from dataclasses import replace

import numpy as np
import pytest
import torch
from train_toys import N_A, N_B, Critic, batches, cells, changed, fit, weights

from unbraid.data import BlockSampler


class Watched(Critic):
    """Notes, at every call of a loss in training, what is called on which cells, and the weights."""

    def __init__(self, inner, seed=0):
        super().__init__(seed)
        self.inner, self.steps = inner, []

    def note(self, kind, batch):
        if self.first.training:
            needs = self.critic.weight.requires_grad, self.first[0].weight.requires_grad
            self.steps.append((kind, batch["index"].tolist(), needs, weights(self)))

    def on_inner_loss(self, batch, stage):
        self.note("inner", batch)

    def on_loss(self, batch, stage):
        self.note("outer", batch)


def watch(epochs=2, **inner):
    module = Watched(replace(Critic.inner, **inner))
    fit(module, epochs=epochs, early_stopping=False)
    return module.steps


@pytest.mark.parametrize("n_steps", [1, 4])
def test_the_critic_changes_so_many_times_per_step_and_only_then(n_steps):
    steps = watch(n_steps=n_steps)
    assert [kind for kind, *_ in steps] == (["inner"] * n_steps + ["outer"]) * 6
    for (kind, _, needs, before), (_, _, _, after) in zip(steps[:-1], steps[1:], strict=True):
        names = {name.split(".")[0] for name in changed(before, after) if "running" not in name and "num_" not in name}
        # an inner step changes the critic and not the encoder, an outer step the encoder and not the critic
        assert names == ({"critic"} if kind == "inner" else {"first"})
        assert needs == ((True, False) if kind == "inner" else (False, True))


def test_an_inner_step_takes_the_batch_of_the_outer_one_unless_told_otherwise():
    steps = watch(n_steps=2)
    for start in range(0, len(steps), 3):
        one, two, outer = (cells for _, cells, *_ in steps[start : start + 3])
        assert one == two == outer


def test_fresh_batches_are_other_training_cells():
    steps = watch(n_steps=4, fresh_batches=True)
    training = set(range(40))
    for start in range(0, len(steps), 5):
        *inner, outer = (cells for _, cells, *_ in steps[start : start + 5])
        drawn = [tuple(cells) for cells in inner]
        assert len(set(drawn)) == 4
        assert outer not in inner
        assert all(set(cells) <= training and len(cells) in (13, 14) for cells in inner)
    # three batches are a pass over the cells, and every pass has another order
    drawn = [cells for kind, cells, *_ in steps if kind == "inner"]
    passes = [sum(drawn[start : start + 3], []) for start in range(0, 24, 3)]
    assert all(set(cells) == training for cells in passes)
    assert len({tuple(cells) for cells in passes}) == 8


@pytest.mark.parametrize("keep_optimizer", [True, False])
def test_training_is_what_plain_torch_does(keep_optimizer):
    trained = Critic()
    fit(trained, epochs=3, early_stopping=False)

    module, datamodule = Critic(), batches()
    module.eval()
    module.first.train()
    outer = torch.optim.Adam(module.first.parameters(), lr=1e-2)
    inner = torch.optim.Adam(module.critic.parameters(), lr=1e-2)
    sampler = BlockSampler(datamodule.parts["train"], 16, shuffle=True, seed=0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for block in sampler:
            batch = datamodule.dataset[block]
            if not keep_optimizer:
                inner = torch.optim.Adam(module.critic.parameters(), lr=1e-2)
            for _ in range(3):
                inner.zero_grad()
                module.inner_loss(batch, "first").backward()
                inner.step()
            outer.zero_grad()  # also of what the inner steps left there
            module.loss(batch, "first").loss.backward()
            outer.step()
    if keep_optimizer:
        torch.testing.assert_close(weights(trained), weights(module), rtol=1e-4, atol=1e-6)
    else:  # the inner optimiser persists: forgetting its moments gives another critic
        assert (trained.critic.weight - module.critic.weight).abs().max() > 1e-3


def test_the_critic_becomes_the_regression():
    dataset = cells(200, noise=1.0)
    module = Critic()
    inner = replace(Critic.inner, n_steps=10, lr=0.1)
    stages = [replace(module.stages[0], lr=0.0, inner=inner)]
    # one batch of all training cells, so that the fit has a closed form
    datamodule = batches(dataset, n_train=150, batch_size=150)
    history = fit(module, datamodule, epochs=30, stages=stages, early_stopping=False)
    a = np.c_[dataset.a[:150].numpy(), np.ones(150)]
    coefficients, residual, *_ = np.linalg.lstsq(a, dataset.b[:150].numpy(), rcond=None)
    np.testing.assert_allclose(module.critic.weight.detach().numpy(), coefficients[:N_A].T, atol=2e-3)
    np.testing.assert_allclose(module.critic.bias.detach().numpy(), coefficients[N_A], atol=2e-3)
    # what history says of it is the last inner loss, here the residual and the encoder's own term
    with torch.no_grad():
        own = module.train().first(dataset.a[:150]).square().mean().item()
    reported = history["first/inner_loss_train"]["inner_loss_train"].iloc[-1]
    assert reported == pytest.approx(residual.sum() / (150 * N_B) + own, rel=1e-4)
    assert "first/inner_loss_validation" not in history
