"""Cells per second of training: every contrastive method on counts, and DisentangledSSL against its released recipe.

Run it with::

    python -m unbraid.benchmark.training_speed --out speed.csv

``methods``: sparse counts of 2,000 genes beside 25 proteins, batches of 512, and the networks of
``contrastive-table``. Epochs of every stage are timed by themselves, the first one left out. Beside the seconds of the
clock stand those of the processor, which a busy machine does not stretch.

``recipe``: DisentangledSSL's simulation, 100 dense features per modality, with the networks, widths and batch of the
released code. ``released`` is a plain PyTorch loop as that code has it: a loader that collates single samples,
augmentation in a loop over samples, samplers that redraw until all are accepted, an optimiser per step. ``vectorised``
is the same with an augmentation of the whole batch, and ``ready`` takes its batches as tensors as well. They run in
turn with ``unbraid``, so that a machine whose speed drifts does not decide.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

from unbraid import model as models
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.contrastive_table import METHODS, NETWORKS
from unbraid.data import simulate
from unbraid.model import DisentangledSSL
from unbraid.objectives import info_nce

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mudata import MuData
    from torch import Tensor

N_LATENT = 16
BATCH_SIZE = {"FactorCL": 128}  # of a step; its critics score all pairs of a batch
TIMED = [name for name in METHODS if METHODS[name].model and not METHODS[name].whiten and "linear" not in name]
RECIPES = ("released", "vectorised", "ready", "unbraid")
RECIPE_BATCH, RECIPE_WIDTH, KAPPA, TEMPERATURE, BETA, LAMBDA = 256, 100, 1000.0, 0.07, 1.0, 0.1


class EpochTimer(Callback):
    """Steps and seconds, of the clock and of the processor, of every epoch, by stage."""

    def __init__(self) -> None:
        self.epochs: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
        self._start, self._steps = clocks(), 0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self._start, self._steps = clocks(), 0

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count the step."""
        self._steps += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop it."""
        self.epochs[pl_module.stage.name].append((self._steps, *(clocks() - self._start)))

    def speeds(self, batch_size: int) -> dict[str, dict[str, float]]:
        """By stage, over all epochs but the first.

        Parameters
        ----------
        batch_size
            Cells of a step.
        """
        totals = {stage: np.sum(epochs[1:], axis=0) for stage, epochs in self.epochs.items()}
        return {stage: speed(batch_size * total[0], total[1:]) for stage, total in totals.items()}


def clocks() -> np.ndarray:
    """Seconds of the clock and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def speed(n: int, seconds: np.ndarray) -> dict[str, float]:
    """Columns of a row: cells over both kinds of seconds.

    Parameters
    ----------
    n
        Number of cells, over all epochs.
    seconds
        Difference of :func:`clocks`.
    """
    return {"cells/s": n / seconds[0], "cells/CPU s": n / seconds[1]}


def timed_training(
    model: Any, *, batch_size: int, epochs: int, steps: int | None = None
) -> dict[str, dict[str, float]]:
    """Speed of every stage of a model that has not been trained.

    Parameters
    ----------
    model
        The model.
    batch_size
        Cells of a step; all steps are full.
    epochs
        Timed ones, after one that is not.
    steps
        Of an epoch at most.
    """
    timer = EpochTimer()
    model.train(
        epochs + 1,
        batch_size=batch_size,
        train_size=1.0,
        early_stopping=False,
        seed=0,
        progress_bar=False,
        accelerator="cpu",
        callbacks=[timer],
        datasplitter_kwargs={"drop_last": True},
        **({} if steps is None else {"limit_train_batches": steps}),
    )
    return timer.speeds(batch_size)


def method_rows(mdata: MuData, name: str, *, batch_size: int, epochs: int, steps: int | None) -> Iterator[dict]:
    """One row per stage of a method.

    Parameters
    ----------
    mdata
        Counts.
    name
        Key of the table's methods.
    batch_size, epochs, steps
        See :func:`timed_training`.
    """
    method = METHODS[name]
    model_class = getattr(models, method.model)
    model_class.setup_mudata(mdata)
    if method.model == "LinearSplit":
        model, start = model_class(mdata), clocks()
        model.train(train_size=1.0, seed=0)
        yield {"stage": "all of it", "batch_size": mdata.n_obs, **speed(mdata.n_obs, clocks() - start)}
        return
    widths = {"n_shared": N_LATENT} | ({} if method.model in ("CLIP", "CoMM") else {"n_specific": N_LATENT})
    batch_size = min(batch_size, BATCH_SIZE.get(name, batch_size))
    torch.manual_seed(0)
    model = model_class(mdata, **{**NETWORKS, **widths, **method.options})
    for stage, found in timed_training(model, batch_size=batch_size, epochs=epochs, steps=steps).items():
        yield {"stage": stage, "batch_size": batch_size, **found}


# ---- the released recipe --------------------------------------------------------------------------------


class Recipe:
    """Both steps of DisentangledSSL as a plain PyTorch loop.

    Parameters
    ----------
    x
        Both modalities, ``(n, 100)`` each.
    kind
        ``"released"``, ``"vectorised"`` or ``"ready"``.
    """

    def __init__(self, x: Sequence[Tensor], kind: str) -> None:
        network = lambda n_in: nn.Sequential(nn.Linear(n_in, 512), nn.ReLU(), nn.Linear(512, RECIPE_WIDTH))
        n_features = x[0].shape[1]
        self.x, self.kind = list(x), kind
        self.shared = nn.ModuleList(network(n_features) for _ in x)
        self.specific = nn.ModuleList(network(n_features + RECIPE_WIDTH) for _ in x)
        self.optimizers = {
            "shared": torch.optim.Adam(self.shared.parameters(), lr=1e-4),
            "specific": torch.optim.Adam(self.specific.parameters(), lr=1e-4),
        }

    def batches(self) -> Iterator[Sequence[Tensor]]:
        """One epoch of full batches."""
        if self.kind != "ready":
            yield from DataLoader(TensorDataset(*self.x), batch_size=RECIPE_BATCH, shuffle=True, drop_last=True)
            return
        order = torch.randperm(len(self.x[0]))
        for rows in order.split(RECIPE_BATCH)[: len(order) // RECIPE_BATCH]:
            yield [x[rows] for x in self.x]

    def augment(self, x: Tensor) -> Tensor:
        """Noise, dropout of a tenth, or nothing, by sample."""
        if self.kind == "released":
            return torch.stack([_augmented(row) for row in x])
        choice = torch.randint(3, (len(x), 1))
        out = torch.rand_like(x).argsort(dim=1)[:, : x.shape[1] // 10]
        noisy, dropped = x + 0.01 * torch.randn_like(x), x.scatter(1, out, 0.0)
        return torch.where(choice == 0, noisy, torch.where(choice == 1, dropped, x))

    def epoch(self, stage: str) -> int:
        """Train a stage for an epoch; returns the number of samples."""
        n = 0
        for x in self.batches():
            views = [self.augment(part) for part in x]
            loss = self.shared_loss(views) if stage == "shared" else self.specific_loss(views)
            self.optimizers[stage].zero_grad()
            loss.backward()
            self.optimizers[stage].step()
            n += len(x[0])
        return n

    def shared_loss(self, views: Sequence[Tensor]) -> Tensor:
        """InfoNCE of posterior samples, less ``BETA`` times the alignment of their means."""
        mean = [normalize(f(x), dim=1) for f, x in zip(self.shared, views, strict=True)]
        sample = [_von_mises_fisher(mu) for mu in mean]
        return info_nce(*sample, temperature=TEMPERATURE) - BETA * (mean[0] * mean[1]).sum(dim=1).mean()

    def specific_loss(self, views: Sequence[Tensor]) -> Tensor:
        """InfoNCE between two views with the other modality's shared code beside, and the orthogonality of rows."""
        both, orthogonality = [], 0.0
        for view in (views, [self.augment(x) for x in views]):
            with torch.no_grad():
                c = [f(x) for f, x in zip(self.shared, view, strict=True)]
            s = [h(torch.cat([x, code], dim=1)) for h, x, code in zip(self.specific, view, c, strict=True)]
            both.append([torch.cat(pair, dim=1) for pair in zip(s, reversed(c), strict=True)])
            products = (normalize(a, dim=1).T @ normalize(b, dim=1) for a, b in zip(s, c, strict=True))
            orthogonality = orthogonality + sum(product.norm() for product in products)
        contrast = sum(info_nce(a, b, temperature=TEMPERATURE) for a, b in zip(*both, strict=True))
        return contrast + LAMBDA * orthogonality / 2


def _augmented(x: Tensor) -> Tensor:
    choice, x = int(torch.randint(3, ())), x.clone()
    if choice == 0:
        return x + 0.01 * torch.randn_like(x)
    if choice == 1:
        x[torch.randperm(len(x))[: len(x) // 10]] = 0.0
    return x


def _von_mises_fisher(mu: Tensor) -> Tensor:
    """Samples around unit vectors ``(n, d)``: Wood's rejection, all rows redrawn until each is accepted, a reflection."""
    n, d = mu.shape
    root = (4 * KAPPA**2 + (d - 1) ** 2) ** 0.5
    b = (root - 2 * KAPPA) / (d - 1)
    a = (d - 1 + 2 * KAPPA + root) / 4
    bound = 4 * a * b / (1 + b) - (d - 1) * np.log(d - 1)
    beta = torch.distributions.Beta(torch.tensor((d - 1) / 2), torch.tensor((d - 1) / 2))
    w, todo = torch.zeros(n), torch.ones(n, dtype=torch.bool)
    while todo.any():
        e = beta.sample((n,))
        t = 2 * a * b / (1 - (1 - b) * e)
        accepted = (d - 1) * t.log() - t + bound >= torch.rand(n).log()
        taken = accepted & todo
        w[taken] = ((1 - (1 + b) * e) / (1 - (1 - b) * e))[taken]
        todo = todo & ~accepted
    v = normalize(torch.randn(n, d - 1), dim=1)
    z = torch.cat([w[:, None], (1 - w**2).clamp(min=0).sqrt()[:, None] * v], dim=1)
    axis = normalize(torch.eye(1, d) - mu, dim=1)
    return z - 2 * (z * axis).sum(dim=1, keepdim=True) * axis


def recipe_rows(mdata: MuData, kind: str, epochs: int) -> Iterator[dict[str, Any]]:
    """One row per step of DisentangledSSL.

    Parameters
    ----------
    mdata
        The simulation.
    kind
        One of :data:`RECIPES`.
    epochs
        Timed ones, after one that is not.
    """
    if kind == "unbraid":
        DisentangledSSL.setup_mudata(mdata)
        torch.manual_seed(0)
        widths = {"n_shared": RECIPE_WIDTH, "n_specific": RECIPE_WIDTH}
        model = DisentangledSSL(
            mdata, **widths, preset="official", input_transform="identity", beta=BETA, lambda_=LAMBDA, kappa=KAPPA
        )
        speeds = timed_training(model, batch_size=RECIPE_BATCH, epochs=epochs)
    else:
        torch.manual_seed(0)
        recipe, speeds = Recipe([torch.as_tensor(adata.X) for adata in mdata.mod.values()], kind), {}
        for stage in ("shared", "specific"):
            recipe.epoch(stage)
            start = clocks()
            n = sum(recipe.epoch(stage) for _ in range(epochs))
            speeds[stage] = speed(n, clocks() - start)
    for stage, found in speeds.items():
        yield {"stage": stage, "batch_size": RECIPE_BATCH, **found}


def main(argv: Sequence[str] | None = None) -> None:
    """Time everything and print both tables; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["methods", "recipe"], choices=["methods", "recipe"])
    parser.add_argument("--methods", nargs="+", default=TIMED, choices=TIMED)
    parser.add_argument("--n-obs", type=int, default=20_000, help="cells of the methods")
    parser.add_argument("--n-genes", type=int, default=2_000)
    parser.add_argument("--batch-size", type=int, default=512, help="of the methods; FactorCL has 128 at most")
    parser.add_argument("--recipe-obs", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=1, help="timed epochs of every stage")
    parser.add_argument("--steps", type=int, help="steps of an epoch of the methods at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    names = [name for name in arguments.methods if hasattr(models, METHODS[name].model)]
    for name in set(arguments.methods) - set(names):
        print(f"{name}: unbraid.model has no {METHODS[name].model}, skipped.", file=sys.stderr)

    def run(data: dict[str, MuData], one: Callable[..., Iterator[dict]]) -> Callable[[dict], Iterator[dict]]:
        def timed(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
            for found in one(data["mdata"], row["method"]):
                yield {**row, **found, "load": os.getloadavg()[0]}

        return timed

    parts: dict[str, tuple[Callable[[], MuData], Callable[..., Iterator[dict]], Sequence[str]]] = {
        "methods": (
            lambda: simulate.citeseq(arguments.n_obs, n_genes=arguments.n_genes, n_proteins=25, seed=0),
            lambda mdata, name: method_rows(
                mdata, name, batch_size=arguments.batch_size, epochs=arguments.epochs, steps=arguments.steps
            ),
            names,
        ),
        "recipe": (
            lambda: simulate.disentangled_ssl(arguments.recipe_obs, seed=0),
            lambda mdata, kind: recipe_rows(mdata, kind, arguments.epochs),
            RECIPES,
        ),
    }
    for part in arguments.parts:
        make, one, kinds = parts[part]
        n_obs = arguments.n_obs if part == "methods" else arguments.recipe_obs
        asked = [
            {"part": part, "n_obs": n_obs, "threads": arguments.threads, "method": kind, "seed": repeat}
            for repeat in range(arguments.repeats)
            for kind in kinds
        ]
        table = run_missing(asked, run({"mdata": make()}, one), arguments.out)
        table = table.drop(columns=["n_obs", "threads"])
        lines = mean_and_deviation(table, ["part", "method", "stage", "batch_size"], digits=0)
        print(to_markdown(lines.rename(columns={"seeds": "repeats"})), end="\n\n")


if __name__ == "__main__":
    main()
