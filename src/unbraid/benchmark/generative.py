"""Generative models where the shared signal is weak: what z and w hold, and what is generated from them.

Run it with::

    python -m unbraid.benchmark.generative --seeds 5 --out generative.csv

Data are :func:`unbraid.data.simulate.classes`: 10 shared classes, 5 % of the variance, and 4 classes of each of three
modalities' own. The ablation is that of tables 1 and 2 of IDMVAE. Probes: accuracy on test cells of logistic regression
on standardised posterior means, mean over modalities, of the shared class (``s``, chance .10) and the modality's own
(``p``, .25); and the same on samples of the posteriors (``drawn``), which tell what the decoder gets: standardised means
also tell what lies far below the posterior's noise.
Coherence: how often a classifier of real data finds in what is generated the class of the cell that z (``s``) or w
(``p``) came from, the other latent being drawn from its prior; with both from one modality (``self``), z from another
(``cross``); and how often all modalities of a new cell agree (``joint``). Data and model share a seed.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from unbraid import model as models
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.contrastive_table import probe_accuracy
from unbraid.data import simulate
from unbraid.metrics import coherence
from unbraid.model.base import GenerativeModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

    from unbraid.model.base import SplitModel


@dataclass(frozen=True)
class Method:
    """A model with the options of one line of the table."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)


# beta 1 and eight dimensions for all; the weights are IDMVAE's for PolyMNIST
_idmvae = {"beta": 1.0, "prior_scale": 1.0, "cross_information_weight": 80.0, "augmentation_weight": 20.0}
METHODS = {
    "LinearSplit": Method("LinearSplit"),
    "CLIP": Method("CLIP"),
    "MMVAE": Method("MMVAE"),
    "MoPoE-VAE": Method("MoPoEVAE"),
    "DMVAE": Method("DMVAE"),
    "MMVAE+": Method("MMVAEPlus"),
    "IDMVAE": Method("IDMVAE", _idmvae),
    "IDMVAE without CrossMI": Method("IDMVAE", {**_idmvae, "cross_information_weight": 0.0}),
    "IDMVAE without GenAug": Method("IDMVAE", {**_idmvae, "augmentation_weight": 0.0}),
    "IDMVAE with CrossMI 10, GenAug 5": Method(
        "IDMVAE", {**_idmvae, "cross_information_weight": 10.0, "augmentation_weight": 5.0}
    ),
    "IDMVAE, own scales": Method("IDMVAE", {**_idmvae, "likelihood_scale": "own"}),
    "IDMVAE, diffusion added": Method("IDMVAE", {**_idmvae, "diffusion": "additive"}),
    "IDMVAE, diffusion in place": Method("IDMVAE", {**_idmvae, "diffusion": "replace"}),
    "IDMVAE, diffusion detached": Method("IDMVAE", {**_idmvae, "diffusion": "detached"}),
    "SwapVAE": Method("SwapVAE"),
    "SwapVAE without diffusion": Method("SwapVAE", {"diffusion": None}),
    "SwapVAE without GenAug": Method("SwapVAE", {"augmentation_weight": 0.0}),
    "SwapVAE with HSIC": Method("SwapVAE", {"independence": "hsic"}),
}
N_LATENT = 8


def fit(mdata: MuData, name: str, steps: int, seed: int) -> SplitModel:
    """Train a method on the training cells.

    Parameters
    ----------
    mdata
        Data of :func:`~unbraid.data.simulate.classes`.
    name
        Key of :data:`METHODS`.
    steps
        Of every stage, about, with batches of 128.
    seed
        Of weights and training.
    """
    method = METHODS[name]
    model_class = getattr(models, method.model)
    model_class.setup_mudata(mdata)
    if name == "LinearSplit":
        model = model_class(mdata)
        model.train(split_key="split", seed=seed)
        return model
    sizes = {"n_shared": N_LATENT, "n_hidden": 128}
    if method.model not in ("CLIP", "MMVAE", "MoPoEVAE"):
        sizes["n_specific"] = N_LATENT
    torch.manual_seed(seed)
    model = model_class(mdata, **sizes, **method.options)
    epochs = max(1, round(steps * 128 / (mdata.obs["split"] == "train").sum()))
    model.train(
        max_epochs=epochs, batch_size=128, lr=2e-3, split_key="split", early_stopping=False, seed=seed,
        progress_bar=False, accelerator="cpu",
    )  # fmt: skip
    return model


def probe_row(model: SplitModel, mdata: MuData) -> dict[str, float]:
    """Accuracy of probes of both codes, and of samples of generative models, for both classes, mean over modalities."""
    row = {}
    given = {"": True} | ({" drawn": False} if isinstance(model, GenerativeModel) else {})
    for (kind, code), (suffix, mean) in product((("shared", "z"), ("specific", "w")), given.items()):
        if kind in model.module.kinds:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                read = partial(model.get_latent_representation, kind=kind, give_mean=mean)
                found = {m: read(modality=m) for m in mdata.mod}
            for name in ("s", "p"):
                label = lambda m, name=name: mdata.obs["y_shared" if name == "s" else f"y_specific_{m}"]
                scores = [probe_accuracy(z, label(m), mdata.obs["split"]) for m, z in found.items()]
                row[f"{code}{suffix}: {name}"] = float(np.mean(scores))
    return row


def translated(model: GenerativeModel, cells: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Expected values of every modality, from a sample of every other one's shared latent, by both their names."""
    translate = partial(model.translate, n_samples=1, give_mean=True, indices=cells)
    return {(a, b): translate(a, b)[0] for a, b in permutations(model.modalities, 2)}


def coherence_row(model: GenerativeModel, mdata: MuData, classifiers: dict, seed: int) -> dict[str, float]:
    """Coherence of what is generated from test cells, and of new cells."""
    test = np.flatnonzero(mdata.obs["split"] == "test")
    shared = mdata.obs["y_shared"].to_numpy()[test]
    own = {m: mdata.obs[f"y_specific_{m}"].to_numpy()[test] for m in mdata.mod}
    row = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = lambda m, use: model.reconstruct(m, use=use, n_samples=1, give_mean=True, indices=test)[0]
        find = lambda *asked, which: float(coherence(*asked, classifiers[which]).table["coherence"].iloc[0])
        row["self s"] = find({(m, m): drawn(m, "shared") for m in mdata.mod}, shared, which="s")
        if "specific" in model.module.kinds:
            row["self p"] = find({(m, m): drawn(m, "specific") for m in mdata.mod}, {"p": own}, which="p_named")
        row["cross s"] = find(translated(model, test), shared, which="s")
        new = model.sample(len(test), give_mean=True)
    found = coherence(None, None, classifiers["s"], unconditional={m: new[m].X for m in mdata.mod}).table
    return row | {"joint": float(found["coherence"].iloc[0]), "joint by chance": float(found["chance"].iloc[0])}


def real_classifiers(mdata: MuData) -> tuple[dict[str, Any], dict[str, float]]:
    """Classifiers of the real training cells, and their accuracy on test cells."""
    train, test = ((mdata.obs["split"] == part).to_numpy() for part in ("train", "test"))
    found, accuracy = {}, {}
    for which in ("s", "p"):
        label = lambda m, which=which: (
            mdata.obs["y_shared" if which == "s" else f"y_specific_{m}"].astype(str).to_numpy()
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[which] = {
                m: LogisticRegression(max_iter=500).fit(a.X[train], label(m)[train]) for m, a in mdata.mod.items()
            }
        scores = [found[which][m].score(a.X[test], label(m)[test]) for m, a in mdata.mod.items()]
        accuracy[which] = float(np.mean(scores))
    return {**found, "p_named": {"p": found["p"]}}, accuracy


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and judge every method and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n-obs", type=int, default=10_000)
    parser.add_argument("--missing", type=float, default=0.0, help="share of cells that lack one modality")
    parser.add_argument("--steps", type=int, default=1_500, help="of every stage, about")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        mdata = simulate.classes(arguments.n_obs, missing=arguments.missing, seed=row["seed"])
        whole = simulate.classes(arguments.n_obs, seed=row["seed"]) if arguments.missing else mdata
        classifiers, ceiling = real_classifiers(whole)
        start = time.process_time()
        model = fit(mdata, row["method"], arguments.steps, row["seed"])
        seconds = time.process_time() - start
        found = {f"real {which}": value for which, value in ceiling.items()} | probe_row(model, mdata)
        if isinstance(model, GenerativeModel):
            found |= coherence_row(model, mdata, classifiers, row["seed"])
        yield {**row, **found, "CPU seconds": seconds}

    fixed = {"n_obs": arguments.n_obs, "missing": arguments.missing, "steps": arguments.steps}
    asked = [{**fixed, "method": name, "seed": s} for s in range(arguments.seeds) for name in arguments.methods]
    table = run_missing(asked, run, arguments.out)
    print(to_markdown(mean_and_deviation(table.drop(columns=list(fixed)), ["method"])))


if __name__ == "__main__":
    main()
