"""Run the stages of a module, one after the other."""

from __future__ import annotations

import logging
import signal
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

from unbraid._compat import parse_device_args
from unbraid.train._callbacks import BestWeights, EpochCheckpoint, StageProgress
from unbraid.train._plan import StagedPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unbraid.data import MultimodalDataModule
    from unbraid.module import SplitModule, Stage


# what Lightning says of choices that are ours: frozen parts, one worker, no logger
_QUIET = (".*does not have many workers.*", ".*in eval mode at the start of training.*", ".*treespec.*", ".*tensorboardX.*")


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
        If ``checkpoint_dir`` holds a run and ``resume`` is not set, or holds another run.
    """
    folder = _checkpoint_folder(options, module, stages, epochs, datamodule)
    accelerator, devices, device = parse_device_args(options.accelerator, options.devices, return_device="torch")
    history: dict[str, pd.DataFrame] = {}
    required = {name: p.requires_grad for name, p in module.named_parameters()}
    # the user's random state is the user's
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=gpus), _quiet_lightning():
            for number, stage in enumerate(stages, 1):
                rows = _run_stage(
                    module, stage, number, len(stages), epochs[stage.name], datamodule, options, folder, accelerator, devices
                )
                for name, values in rows.items():
                    index, column = zip(*values, strict=True)
                    frame = pd.DataFrame({name: column}, index=pd.Index(index, name="epoch"))
                    history[f"{stage.name}/{name}"] = frame
    finally:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(required[name])
            parameter.grad = None
        module.eval()
        module.to(device)
    return history


def _run_stage(
    module: SplitModule,
    stage: Stage,
    number: int,
    n_stages: int,
    max_epochs: int,
    datamodule: MultimodalDataModule,
    options: RunOptions,
    folder: Path | None,
    accelerator: str,
    devices: Any,
) -> dict[str, list]:
    plan = StagedPlan(module, stage, max_epochs=max_epochs, seed=options.seed * 101 + number)
    finished, last = (folder / f"{stage.name}.{end}" for end in ("finished", "ckpt")) if folder else (None, None)
    if finished is not None and finished.exists():
        state = torch.load(finished, map_location="cpu", weights_only=True)
        module.load_state_dict(state["module"])
        plan.rows = state["rows"]
        return plan.history()
    if max_epochs == 0:
        return {}
    trained = {id(p) for p in module.parameters_of(stage.parts + (stage.inner.parts if stage.inner else ()))}
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in trained)

    given = dict(options.trainer_options or {})
    callbacks = list(given.pop("callbacks", None) or [])  # a copy: the user's list stays as it is
    has_validation = len(datamodule.parts["validation"]) > 0
    if options.early_stopping and has_validation:
        callbacks.append(BestWeights("validation_loss"))
        callbacks.append(
            EarlyStopping(
                "validation_loss",
                patience=options.patience,
                min_delta=options.min_delta,
                check_on_train_epoch_end=True,
                check_finite=True,
            )
        )
    if options.progress_bar:
        callbacks.append(StageProgress(number, n_stages))
    if last is not None:
        callbacks.append(EpochCheckpoint(last))
    defaults = {
        "logger": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": 1,
        "benchmark": True,
    }
    trainer = Trainer(
        **{**defaults, **given},
        accelerator=accelerator,
        devices=devices,
        strategy=options.strategy,
        max_epochs=max_epochs,
        callbacks=callbacks,
        enable_checkpointing=last is not None or any("Checkpoint" in type(c).__name__ for c in callbacks),
        enable_progress_bar=False,
        use_distributed_sampler=False,  # the block sampler takes its own share
    )
    with _keyboard_interrupt():
        trainer.fit(plan, datamodule=datamodule, ckpt_path=str(last) if last is not None and last.exists() else None)
    bad = [row for row in plan.rows if row.get("loss_train") != row.get("loss_train")]
    if bad:
        raise FloatingPointError(
            f"Stage {stage.name!r}: the loss became NaN in epoch {bad[0]['epoch']}. "
            "Lower `lr`, or check the scale of the inputs (`input_transform`)."
        )
    if finished is not None and trainer.is_global_zero:
        torch.save({"module": module.state_dict(), "rows": plan.rows}, finished)
        last.unlink(missing_ok=True)
    return plan.history()


def _checkpoint_folder(options, module, stages, epochs, datamodule) -> Path | None:
    """The folder of a run's checkpoints, after checking that it belongs to this run."""
    if options.checkpoint_dir is None:
        if options.resume:
            raise ValueError("`resume=True` needs the `checkpoint_dir` of the interrupted run.")
        return None
    folder = Path(options.checkpoint_dir)
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "run.pt"
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    run = {
        "stages": [(stage.name, epochs[stage.name], stage.lr) for stage in stages],
        "seed": options.seed,
        "n_train": len(datamodule.parts["train"]),
        "batch_size": datamodule.batch_size,
        "shapes": shapes,
    }
    if not note.exists():
        torch.save(run, note)
    elif not options.resume:
        raise ValueError(f"{folder} already holds a run. Pass `resume=True` to go on with it, or another folder.")
    elif differing := [key for key, value in torch.load(note, weights_only=True).items() if run[key] != value]:
        raise ValueError(f"{folder} holds another run: {', '.join(differing)} differ from this one.")
    return folder


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
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch")]
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
