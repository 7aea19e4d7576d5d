"""One Lightning plan for every method: one stage of training."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningModule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi.module.base import LossOutput
    from torch.utils.data import DataLoader

    from unbraid.data import MultimodalDataModule
    from unbraid.module import SplitModule, Stage

PARTS = ("train", "validation")


class StagedPlan(LightningModule):
    """Optimise the parts of a module that a stage names, and nothing else.

    The plan knows stages, not methods: it asks ``module.loss(batch, stage)`` for the loss with its
    terms by name and, if the stage has an inner loop, ``module.inner_loss(batch, stage)``.

    Losses are summed on the device and read once per epoch. Random numbers of a step depend on
    ``(seed, epoch, step)`` only, so an interrupted run that is resumed from a checkpoint gives the
    numbers of an uninterrupted one; validation sees the same random numbers in every epoch.

    Parameters
    ----------
    module
        What is trained.
    stage
        The stage.
    datamodule
        Batches.
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

    def __init__(
        self, module: SplitModule, stage: Stage, datamodule: MultimodalDataModule, *, max_epochs: int, seed: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module, self.stage, self.datamodule = module, stage, datamodule
        self.max_epochs, self.seed = max_epochs, seed
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, Any] = {}
        self._inner_batches: Iterator | None = None

    # ---- optimisers -----------------------------------------------------------------------

    def configure_optimizers(self):
        """Adam (AdamW with a weight decay) for the stage's parts, Adam for its inner loop."""
        stage = self.stage
        adam = torch.optim.AdamW if stage.weight_decay else torch.optim.Adam
        # plain numbers: a checkpoint with NumPy's cannot be read back
        lr, weight_decay = float(stage.lr), float(stage.weight_decay)
        fused = self.device.type in ("cpu", "cuda")  # one pass over the weights instead of eight
        outer = adam(self._parameters_of(stage.parts), lr=lr, weight_decay=weight_decay, fused=fused)
        optimizers = [outer]
        if stage.inner is not None:
            optimizers.append(
                torch.optim.Adam(self._parameters_of(stage.inner.parts), lr=float(stage.inner.lr), fused=fused)
            )
        if stage.schedule == "constant":
            return optimizers
        return optimizers, [torch.optim.lr_scheduler.CosineAnnealingLR(outer, T_max=self.max_epochs)]

    def _parameters_of(self, parts: tuple[str, ...]) -> list[torch.nn.Parameter]:
        return list(self.module.parameters_of(parts))

    # ---- batches --------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        """Training batches in the order of the epoch that comes next."""
        loader = self.datamodule.train_dataloader()
        # Lightning draws the first order of a resumed run before it tells the sampler the epoch
        loader.sampler.set_epoch(len(self.rows))
        return loader

    def val_dataloader(self) -> DataLoader | list:
        """Validation batches."""
        return self.datamodule.val_dataloader()

    def _inner_batch(self, batch: dict) -> dict:
        if not self.stage.inner.fresh_batches:
            return batch
        if self._inner_batches is None:
            self._inner_batches = self._cycle()
        return self.transfer_batch_to_device(next(self._inner_batches), self.device, 0)

    def _cycle(self) -> Iterator[dict]:
        loader, epoch = self.datamodule.inner_dataloader(), self.current_epoch * 1000
        while True:
            loader.sampler.set_epoch(epoch)
            yield from loader
            epoch += 1

    # ---- steps ----------------------------------------------------------------------------

    def training_step(self, batch: dict, batch_idx: int) -> None:
        """Inner steps, if any, then one step on the stage's loss."""
        self._seed(self.current_epoch + 1, batch_idx)
        optimizers = self.optimizers()
        stage, inner = self.stage, self.stage.inner
        outer_optimizer = optimizers[0] if inner else optimizers
        if inner:
            with self._constant(stage.parts):
                for _ in range(inner.n_steps):
                    inner_loss = self.module.inner_loss(self._inner_batch(batch), stage.name)
                    self._step(optimizers[1], inner_loss)
            self._add("train", "inner_loss", inner_loss, len(batch["index"]))
        with self._constant(inner.parts if inner else ()):
            output = self.module.loss(batch, stage.name)
            self._step(outer_optimizer, output.loss, stage.gradient_clip)
        self._add_output("train", output)

    def _step(self, optimizer, loss: torch.Tensor, clip: float | None = None) -> None:
        if self.trainer.world_size > 1 or not loss.requires_grad:
            # a batch without a pair leaves parameters out, for whose gradients other processes wait
            loss = loss + 0.0 * sum(p.sum() for p in self.module.parameters() if p.requires_grad)
        optimizer.zero_grad()
        self.manual_backward(loss)
        if clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=clip, gradient_clip_algorithm="norm")
        optimizer.step()

    @contextmanager
    def _constant(self, parts: tuple[str, ...]):
        """Compute no gradients of what the other loop trains; processes that wait for them drop them unused."""
        parameters = [p for p in self._parameters_of(parts) if p.requires_grad and self.trainer.world_size == 1]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """The stage's loss on validation cells, with the same random numbers in every epoch."""
        self._seed(0, batch_idx)
        self._add_output("validation", self.module.loss(batch, self.stage.name))

    # ---- bookkeeping ----------------------------------------------------------------------

    def _add_output(self, part: str, output: LossOutput) -> None:
        self._add(part, "loss", output.loss, output.n_obs_minibatch)
        for name, value in output.extra_metrics.items():
            self._add(part, name, value, output.n_obs_minibatch)

    def _add(self, part: str, name: str, value: torch.Tensor, n_obs: int) -> None:
        total, weight = self._sums[part].get(name, (0.0, 0))
        self._sums[part][name] = (total + torch.as_tensor(value).detach() * n_obs, weight + n_obs)

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

    def _validation_of_all(self) -> dict[str, float]:
        """What the module makes of all validation cells at once."""
        cells = lambda part: (
            self.transfer_batch_to_device(batch, self.device, 0) for batch in self.datamodule.whole_dataloader(part)
        )
        found = self.module.validate_stage(self.stage.name, cells("train"), cells("validation"))
        return {f"{name}_validation": float(value) for name, value in found.items()}

    def _seed(self, epoch: int, step: int) -> None:
        sequence = np.random.SeedSequence([self.seed, epoch, step, self.global_rank])
        seed = int(sequence.generate_state(1, np.uint64)[0])
        # not torch.manual_seed: it formats a traceback for GPUs that are not in use, which takes as long as a step
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            getattr(torch, self.device.type).manual_seed(seed)

    def on_train_epoch_start(self) -> None:
        """Only what is trained is in training mode."""
        self._sums["train"] = {}
        self._inner_batches = None
        self.module.eval()
        for part in self.stage.parts + (self.stage.inner.parts if self.stage.inner else ()):
            if isinstance(child := getattr(self.module, part), torch.nn.Module):
                child.train()

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the last validation."""
        self._sums["validation"] = {}

    def on_validation_epoch_end(self) -> None:
        """Log the validation means under Lightning, for early stopping and loggers."""
        self._validation_means = self._means("validation") | self._validation_of_all()
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
                callback.on_row(self._renamed(self.rows[-1]))
        if self.nan_row is not None:
            self.trainer.should_stop = True
        if (schedule := self.lr_schedulers()) is not None:
            schedule.step()

    @property
    def nan_row(self) -> dict[str, float] | None:
        """The first row with a loss that is not a number, if there is one."""
        return next((row for row in self.rows if any(isnan(row.get(f"loss_{part}", 0.0)) for part in PARTS)), None)

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
