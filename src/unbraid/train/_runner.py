"""Run the stages of a module, one after the other."""

from __future__ import annotations

import json
import logging
import signal
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only

from unbraid._compat import parse_device_args
from unbraid.train._callbacks import BestWeights, EpochCheckpoint, StageEarlyStopping, StageProgress
from unbraid.train._plan import StagedPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unbraid.data import MultimodalDataModule
    from unbraid.module import SplitModule, Stage


# what Lightning says of choices that are ours: frozen parts, one worker, no logger, no validation, means over all
# processes
_QUIET = (
    ".*does not have many workers.*",
    ".*in eval mode at the start of training.*",
    ".*treespec.*",
    ".*tensorboardX.*",
    ".*length of `list` across ranks is zero.*",
    ".*sync_dist=True.*",
    ".*across ranks is zero.*",
)


@dataclass(frozen=True)
class RunOptions:
    """How stages are run, whichever they are.

    Attributes
    ----------
    seed
        Seed of order, views and posterior samples.
    early_stopping
        Stop a stage when the validation loss has not improved for ``patience`` epochs, and go back to
        the weights of its best epoch.
    patience
        Epochs to wait.
    min_delta
        Smallest improvement that counts.
    accelerator, devices, strategy
        As in Lightning; ``"auto"`` takes one GPU if there is one.
    checkpoint_dir
        Folder that receives the state of training after every epoch.
    resume
        Go on from that folder.
    progress_bar
        Show progress.
    trainer_options
        Further options of :class:`lightning.pytorch.Trainer`.
    """

    seed: int
    early_stopping: bool = True
    patience: int = 10
    min_delta: float = 0.0
    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    strategy: Any = "auto"
    checkpoint_dir: str | Path | None = None
    resume: bool = False
    progress_bar: bool = True
    trainer_options: dict[str, Any] | None = None


def run_stages(
    module: SplitModule,
    stages: Sequence[Stage],
    epochs: dict[str, int],
    datamodule: MultimodalDataModule,
    options: RunOptions,
) -> dict[str, pd.DataFrame]:
    """Train a module stage by stage.

    Parameters
    ----------
    module
        Trained in place; afterwards in evaluation mode with every ``requires_grad`` as before.
    stages
        In order.
    epochs
        Epochs of every stage, by name.
    datamodule
        Batches.
    options
        Everything else.

    Returns
    -------
    History: per ``"<stage>/<quantity>"`` a data frame with one column, indexed by epoch.

    Raises
    ------
    ValueError
        If ``checkpoint_dir`` holds a run and ``resume`` is not set, or holds another run; or if all that a
        stage trains is frozen.
    FloatingPointError
        If the loss becomes NaN.
    """
    for stage in stages:
        parameters = list(module.parameters_of(stage.parts))  # none: an earlier stage builds them
        if epochs[stage.name] and parameters and not any(p.requires_grad for p in parameters):
            raise ValueError(
                f"Stage {stage.name!r} has nothing to train: no parameter of {', '.join(stage.parts)} requires a "
                f"gradient. Leave it out by `max_epochs={{{stage.name!r}: 0}}`."
            )
    accelerator, devices, device = parse_device_args(options.accelerator, options.devices, return_device="torch")
    folder = _checkpoint_folder(options, module, stages, epochs, datamodule)
    machine = {"accelerator": accelerator, "devices": devices}
    history: dict[str, pd.DataFrame] = {}
    try:
        with _random_state_of_the_user(), _quiet_lightning():
            for number, stage in enumerate(stages, 1):
                place = number, len(stages)
                rows = _run_stage(module, stage, place, epochs[stage.name], datamodule, options, folder, machine)
                for name, values in rows.items():
                    index, column = zip(*values, strict=True)
                    frame = pd.DataFrame({name: column}, index=pd.Index(index, name="epoch"))
                    history[f"{stage.name}/{name}"] = frame
    finally:
        module.eval()
        module.to(device)
    return history


def _run_stage(
    module: SplitModule,
    stage: Stage,
    place: tuple[int, int],
    max_epochs: int,
    datamodule: MultimodalDataModule,
    options: RunOptions,
    folder: Path | None,
    machine: dict[str, Any],
) -> dict[str, list]:
    plan = StagedPlan(module, stage, datamodule, max_epochs=max_epochs, seed=options.seed * 101 + place[0])
    finished, last = (folder / f"{stage.name}.{end}" for end in ("finished", "ckpt")) if folder else (None, None)
    if finished is not None and finished.exists():
        state = torch.load(finished, map_location="cpu", weights_only=True)
        module.load_state_dict(state["module"])
        plan.rows = state["rows"]
        return plan.history()
    if max_epochs == 0:
        _end_stage(module, stage, datamodule)
        return {}

    given = dict(options.trainer_options or {})
    callbacks = given.pop("callbacks", None) or []
    callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)  # the user's list stays as it is
    if options.early_stopping and stage.early_stopping != "never" and len(datamodule.parts["validation"]) > 0:
        callbacks.append(BestWeights("validation_loss"))
        if stage.early_stopping == "stop":
            stop = StageEarlyStopping("validation_loss", patience=options.patience, min_delta=options.min_delta)
            callbacks.append(stop)
    if options.progress_bar:
        callbacks.append(StageProgress(*place))
    if last is not None:
        callbacks.append(EpochCheckpoint(last))
    defaults = {
        "logger": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1,
        "log_every_n_steps": 1,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
    }
    trainer = Trainer(
        **{**defaults, **given},
        **machine,
        strategy=options.strategy,
        max_epochs=max_epochs,
        callbacks=callbacks,
        enable_progress_bar=False,
        use_distributed_sampler=False,  # the block sampler takes its own share
    )
    with _only_trained(module, stage), _keyboard_interrupt():
        trainer.fit(plan, ckpt_path=str(last) if last is not None and last.exists() else None)
    if plan.nan_row is not None:
        raise FloatingPointError(
            f"Stage {stage.name!r}: the loss became NaN in epoch {plan.nan_row['epoch']}. "
            "Lower `lr`, or check the scale of the inputs (`input_transform`)."
        )
    if isinstance(trainer.strategy, SingleDeviceStrategy):  # which leaves the module on the CPU
        module.to(trainer.strategy.root_device)
    _end_stage(module, stage, datamodule)
    if finished is not None and trainer.is_global_zero:
        _save({"module": module.state_dict(), "rows": plan.rows}, finished)
        last.unlink(missing_ok=True)
    return plan.history()


def _end_stage(module: SplitModule, stage: Stage, datamodule: MultimodalDataModule) -> None:
    """Let the module fit what the stage leaves open, on all training cells and without gradients."""
    module.eval()
    batches = (move_data_to_device(batch, module.device) for batch in datamodule.whole_dataloader())
    with torch.no_grad():
        module.end_stage(stage.name, batches)


def resumed_seed(folder: str | Path) -> int | None:
    """Seed of the run in a checkpoint folder; None if there is no run.

    Parameters
    ----------
    folder
        ``checkpoint_dir`` of the run.
    """
    note = Path(folder) / "run.pt"
    return torch.load(note, map_location="cpu", weights_only=True)["run"]["seed"] if note.exists() else None


def _checkpoint_folder(options, module, stages, epochs, datamodule) -> Path | None:
    """The folder of a run's checkpoints, after checking that it belongs to this run."""
    if options.checkpoint_dir is None:
        if options.resume:
            raise ValueError("`resume=True` needs the `checkpoint_dir` of the interrupted run.")
        return None
    folder = Path(options.checkpoint_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if rank_zero_only.rank != 0:  # the first process answers for all
        return folder
    run = {
        "stages": [{**asdict(stage), "max_epochs": epochs[stage.name]} for stage in stages],
        "early stopping": (options.early_stopping, options.patience, options.min_delta),
        "seed": options.seed,
        "batch size": datamodule.batch_size,
        "cells": {part: (len(cells), crc32(cells.tobytes())) for part, cells in datamodule.parts.items()},
        "shapes of weights": {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()},
    }
    run = json.loads(json.dumps(run, default=float))  # plain numbers, also of the user's NumPy ones
    note = folder / "run.pt"
    if note.exists() and options.resume:
        there = torch.load(note, map_location="cpu", weights_only=True)
        if differing := {key: there["run"].get(key) for key, value in run.items() if there["run"].get(key) != value}:
            words = [f"{k} ({v} there, {run[k]} here)" if isinstance(v, int) else k for k, v in differing.items()]
            raise ValueError(f"{folder} holds another run, with other {', '.join(words)}.")
        module.load_state_dict(there["module"])  # where the run began, if it did not come to its first checkpoint
        return folder
    if note.exists() and any(path.suffix in (".ckpt", ".finished") for path in folder.iterdir()):
        raise ValueError(f"{folder} already holds a run. Pass `resume=True` to go on with it, or another folder.")
    _save({"run": run, "module": module.state_dict()}, note)
    return folder


def _save(state: dict, path: Path) -> None:
    """Save all or nothing."""
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


@contextmanager
def _only_trained(module: SplitModule, stage: Stage):
    """Freeze all but what the stage trains; what the user has frozen stays frozen."""
    required = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    trained = {id(p) for p in module.parameters_of(stage.parts + (stage.inner.parts if stage.inner else ()))}
    for parameter, requires_grad in required:
        parameter.requires_grad_(requires_grad and id(parameter) in trained)
    try:
        yield
    finally:
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None


@contextmanager
def _random_state_of_the_user():
    """Give torch's random state back as it was; GPUs that are not in use yet are not asked for theirs."""
    in_use = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if in_use else []):
            yield
    finally:
        if torch.cuda.is_initialized() and not in_use:
            torch.cuda.manual_seed_all(torch.initial_seed())


@contextmanager
def _keyboard_interrupt():
    """Lightning answers Ctrl-C with ``sys.exit`` and ignores every later one; give back what Python does."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _quiet_lightning():
    """Keep Lightning's lines about devices and its hints about loaders out of the user's notebook."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "lightning.fabric")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _QUIET:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
