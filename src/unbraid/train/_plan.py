"""One Lightning plan for every method: one stage of training."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi.module.base import LossOutput

    from unbraid.module import SplitModule, Stage


class StagedPlan(LightningModule):
    """Optimise the parts of a module that a stage names, and nothing else.

    The plan knows stages, not methods: it asks ``module.loss(batch, stage)`` for the loss with its
    terms by name and, if the stage has an inner loop, ``module.inner_loss(batch, stage)``.

    Losses are summed on the device and read once per epoch. Random numbers of an epoch depend on
    ``(seed, epoch)`` only, so an interrupted run that is resumed from a checkpoint gives the numbers
    of an uninterrupted one; validation sees the same random numbers in every epoch.

    Parameters
    ----------
    module
        What is trained.
    stage
        The stage.
    max_epochs
        Epochs of the stage, for the schedule.
    seed
        Seed of the stage.

    Attributes
    ----------
    rows
        One dictionary per finished epoch: ``epoch``, ``lr``, and ``<term>_train`` and
        ``<term>_validation`` of every term; part of checkpoints.
    """

    def __init__(self, module: SplitModule, stage: Stage, *, max_epochs: int, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module, self.stage, self.max_epochs, self.seed = module, stage, max_epochs, seed
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, Any] = {}
        self._inner_batches: Iterator | None = None

    # ---- optimisers -----------------------------------------------------------------------

    def configure_optimizers(self):
        """Adam (AdamW with a weight decay) for the stage's parts, Adam for its inner loop."""
        stage = self.stage
        adam = torch.optim.AdamW if stage.weight_decay else torch.optim.Adam
        outer = adam(self._parameters_of(stage.parts), lr=stage.lr, weight_decay=stage.weight_decay)
        optimizers = [outer]
        if stage.inner is not None:
            optimizers.append(torch.optim.Adam(self._parameters_of(stage.inner.parts), lr=stage.inner.lr))
        if stage.schedule == "constant":
            return optimizers
        return optimizers, [torch.optim.lr_scheduler.CosineAnnealingLR(outer, T_max=self.max_epochs)]

    def _parameters_of(self, parts: tuple[str, ...]) -> list[torch.nn.Parameter]:
        return list(self.module.parameters_of(parts))

    # ---- steps ----------------------------------------------------------------------------

    def training_step(self, batch: dict, batch_idx: int) -> None:
        """Inner steps, if any, then one step on the stage's loss."""
        optimizers = self.optimizers()
        inner = self.stage.inner
        outer_optimizer = optimizers[0] if inner else optimizers
        if inner:
            for _ in range(inner.n_steps):
                inner_loss = self.module.inner_loss(self._inner_batch(batch), self.stage.name)
                self._step(optimizers[1], inner_loss, None)
            self._add("train", "inner_loss", inner_loss.detach(), len(batch["index"]))
        # the auxiliary network is a constant of the outer step
        with self._frozen(inner.parts if inner else ()):
            output = self.module.loss(batch, self.stage.name)
            loss = output.loss
            if not loss.requires_grad:  # a batch without a pair: still touch every parameter, for DDP
                loss = loss + sum(p.sum() for p in self._parameters_of(self.stage.parts)) * 0.0
            self._step(outer_optimizer, loss, self.stage.gradient_clip)
        self._add_output("train", output)

    def _step(self, optimizer, loss: torch.Tensor, clip: float | None) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        if clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=clip, gradient_clip_algorithm="norm")
        optimizer.step()

    @contextmanager
    def _frozen(self, parts: tuple[str, ...]):
        parameters = self._parameters_of(parts)
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _inner_batch(self, batch: dict) -> dict:
        if not self.stage.inner.fresh_batches:
            return batch
        if self._inner_batches is None:
            self._inner_batches = self._cycle()
        return self.transfer_batch_to_device(next(self._inner_batches), self.device, 0)

    def _cycle(self) -> Iterator[dict]:
        loader, epoch = self.trainer.datamodule.inner_dataloader(), self.current_epoch * 1000
        while True:
            loader.sampler.set_epoch(epoch)
            yield from loader
            epoch += 1

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """The stage's loss on validation cells."""
        self._add_output("validation", self.module.loss(batch, self.stage.name))

    # ---- bookkeeping ----------------------------------------------------------------------

    def _add_output(self, part: str, output: LossOutput) -> None:
        self._add(part, "loss", output.loss.detach(), output.n_obs_minibatch)
        for name, value in output.extra_metrics.items():
            self._add(part, name, value, output.n_obs_minibatch)

    def _add(self, part: str, name: str, value: torch.Tensor, n_obs: int) -> None:
        total, weight = self._sums[part].get(name, (0.0, 0))
        self._sums[part][name] = (total + value * n_obs, weight + n_obs)

    def _means(self, part: str) -> dict[str, float]:
        """Means over the epoch and over all processes, read from the device once."""
        sums = self._sums.pop(part, {})
        if not sums:
            return {}
        stacked = torch.stack([torch.as_tensor(v, device=self.device, dtype=torch.float32) for v, _ in sums.values()])
        weights = torch.tensor([w for _, w in sums.values()], device=self.device, dtype=torch.float32)
        if self.trainer.world_size > 1:
            stacked, weights = (self.trainer.strategy.reduce(t, reduce_op="sum") for t in (stacked, weights))
        return {f"{name}_{part}": value for name, value in zip(sums, (stacked / weights).tolist(), strict=True)}

    def _seed(self, epoch: int) -> None:
        torch.manual_seed((self.seed * 1_000_003 + epoch * 1_009 + self.global_rank) % 2**63)

    def on_train_epoch_start(self) -> None:
        """Seed the epoch; frozen parts stay in evaluation mode."""
        self._sums["train"] = {}
        self._inner_batches = None
        self._seed(self.current_epoch + 1)
        self.module.eval()
        for part in self.stage.parts + (self.stage.inner.parts if self.stage.inner else ()):
            if isinstance(child := getattr(self.module, part), torch.nn.Module):
                child.train()

    def on_validation_epoch_start(self) -> None:
        """The same random numbers for every validation."""
        self._sums["validation"] = {}
        self._seed(0)

    def on_validation_epoch_end(self) -> None:
        """Log the validation means under Lightning, for early stopping and loggers."""
        self._validation_means = self._means("validation")
        self.log_dict(self._renamed(self._validation_means))

    def on_train_epoch_end(self) -> None:
        """Write the epoch's row and move the schedule."""
        optimizers = self.optimizers()
        lr = (optimizers[0] if isinstance(optimizers, list) else optimizers).param_groups[0]["lr"]
        means = self._means("train")
        self.log_dict(self._renamed(means))
        self.rows.append({"epoch": self.current_epoch, "lr": lr, **means, **getattr(self, "_validation_means", {})})
        self._validation_means = {}
        for callback in self.trainer.callbacks:
            if hasattr(callback, "on_row"):
                callback.on_row(self.rows[-1])
        if (schedule := self.lr_schedulers()) is not None:
            schedule.step()

    @staticmethod
    def _renamed(means: dict[str, float]) -> dict[str, float]:
        # scvi-tools calls the two totals train_loss and validation_loss
        names = {"loss_train": "train_loss", "loss_validation": "validation_loss"}
        return {names.get(name, name): value for name, value in means.items()}

    def history(self) -> dict[str, list]:
        """Rows as columns: per column, ``(epoch, value)`` pairs."""
        columns = defaultdict(list)
        for row in self.rows:
            for name, value in self._renamed(row).items():
                if name != "epoch":
                    columns[name].append((row["epoch"], value))
        return dict(columns)

    def get_extra_state(self) -> dict:
        """Rows are part of the state: they survive checkpoints and spawned processes."""
        return {"rows": list(self.rows)}

    def set_extra_state(self, state: dict) -> None:
        """Take up the rows of an interrupted or spawned run."""
        self.rows = list(state["rows"])
