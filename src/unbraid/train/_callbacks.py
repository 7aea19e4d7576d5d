"""What happens around epochs: progress, best weights, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import Trainer

    from unbraid.train._plan import StagedPlan


class StageProgress(Callback):
    """One bar per stage: stage, epoch, and the terms.

    Parameters
    ----------
    number, n_stages
        The stage's place among all.
    """

    def __init__(self, number: int, n_stages: int) -> None:
        self.number, self.n_stages = number, n_stages
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, plan: StagedPlan) -> None:
        """Open the bar."""
        if trainer.is_global_zero:
            label = f"{plan.stage.name} ({self.number}/{self.n_stages})"
            self._bar = tqdm(total=plan.max_epochs, initial=trainer.current_epoch, desc=label, unit="epoch")

    def on_row(self, row: dict[str, float]) -> None:
        """Show an epoch's means (the plan calls this when it has them)."""
        if self._bar is not None:
            terms = {name: f"{value:.3f}" for name, value in row.items() if name not in ("epoch", "lr")}
            self._bar.set_postfix(terms, refresh=False)
            self._bar.update()

    def on_train_end(self, trainer: Trainer, plan: StagedPlan) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: Trainer, plan: StagedPlan, exception: BaseException) -> None:
        """Close the bar."""
        self.on_train_end(trainer, plan)


class BestWeights(Callback):
    """Leave the trained parts with the weights of the best validation loss.

    Parameters
    ----------
    monitor
        Logged quantity, to be minimised.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best, self.epoch, self.weights = float("inf"), -1, None

    def _parts(self, plan: StagedPlan) -> list[torch.Tensor]:
        parts = [getattr(plan.module, part) for part in plan.stage.parts]
        tensors = (
            [part] if isinstance(part, torch.Tensor) else [*part.parameters(), *part.buffers()] for part in parts
        )
        return [tensor.detach() for group in tensors for tensor in group]

    def on_validation_end(self, trainer: Trainer, plan: StagedPlan) -> None:
        """Keep the weights if they are the best so far."""
        if trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics.get(self.monitor, float("nan")))
        if value < self.best:
            self.best, self.epoch = value, trainer.current_epoch
            self.weights = [tensor.cpu().clone() for tensor in self._parts(plan)]

    def on_train_end(self, trainer: Trainer, plan: StagedPlan) -> None:
        """Put the best weights back."""
        if self.weights is not None:
            for tensor, best in zip(self._parts(plan), self.weights, strict=True):
                tensor.copy_(best)

    def on_fit_end(self, trainer: Trainer, plan: StagedPlan) -> None:
        """Put them back also where a resumed run finds its last epoch done, and does not train."""
        self.on_train_end(trainer, plan)

    def state_dict(self) -> dict:
        """Survive a resumed run."""
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up an interrupted run."""
        self.best, self.epoch, self.weights = (state_dict[key] for key in ("best", "epoch", "weights"))


class StageEarlyStopping(EarlyStopping):
    """Early stopping that a resumed run remembers.

    Patience counts validations, a value that is not finite is no improvement, and nothing is said.
    """

    def __init__(self, monitor: str, *, patience: int, min_delta: float) -> None:
        super().__init__(
            monitor, patience=patience, min_delta=min_delta, check_finite=False, check_on_train_epoch_end=False
        )

    def on_fit_start(self, trainer: Trainer, plan: StagedPlan) -> None:
        """Train no further if the interrupted run had already come to a stop."""
        if self.stopped_epoch > 0:
            trainer.should_stop = True


class EpochCheckpoint(Checkpoint):
    """Save the whole state of training after every ``every`` epochs, over the last one.

    Parameters
    ----------
    path
        File to write.
    every
        Epochs between two saves.
    """

    def __init__(self, path: Path, every: int = 1) -> None:
        self.path, self.every = path, every

    def on_train_epoch_end(self, trainer: Trainer, plan: StagedPlan) -> None:
        """Save; Lightning runs checkpoints after all other callbacks."""
        if (trainer.current_epoch + 1) % self.every == 0:
            trainer.save_checkpoint(self.path)
