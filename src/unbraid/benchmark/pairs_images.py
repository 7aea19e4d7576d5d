"""DL2 on DDMNISTMM, small: clusters of the left digit from pairs, and what is generated.

Run it with::

    python -m unbraid.benchmark.pairs_images --mnist mnist.npz --seeds 1 --out images.csv

Data are :func:`unbraid.data.datasets.ddmnist`: three modalities that share two digits, of which pairs of training
samples name the left one; a tenth as many pairs as samples, as in the paper. Columns are those of
:mod:`unbraid.benchmark.pairs`, classes are read off images by a network like the encoders (``real T``, ``real R``: its
accuracy on real test images). ``U-FD`` and ``C-FD`` are Fréchet distances of new images, and of images decoded from
another modality, from the real test images of the modality, by the last hidden layer of that network, mean over
modalities; the paper's FID is by an Inception network, on another scale. The paper has 60,000 samples of 56 pixels,
residual networks and 250 epochs, with latents of 32, 32 and 64 dimensions and a beta of 2.5; here images are smaller,
encoders two strided convolutions, decoders perceptrons, and training is short. The scale of the Laplace likelihood
shrinks with the number of pixels, so that divergences weigh as in the paper. The data are those of seed 0.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.generative_images import N_HIDDEN, Reader, array_shape, convolutions
from unbraid.benchmark.pairs import METHODS, Generated, add_pairs, cluster_row, coherence_row, fit, generate, probe_row
from unbraid.data.datasets import ddmnist
from unbraid.metrics import frechet_distance
from unbraid.model.base import GenerativeModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

N_LATENT = 16


def readers(mdata: MuData, steps: int) -> tuple[dict[str, Reader], dict[str, float]]:
    """Networks that read the digits of every modality's images, and their accuracy on test images."""
    train, test = ((mdata.obs["split"] == part).to_numpy() for part in ("train", "test"))
    labels = {key: mdata.obs[key].astype(str).to_numpy() for key in ("y_task", "y_residual")}
    found: dict[str, Reader] = {}
    right: dict[str, list[float]] = {"real T": [], "real R": []}
    for m, adata in mdata.mod.items():
        known = {key: y[train] for key, y in labels.items()}
        found[m] = Reader(adata.X[train], known, array_shape(mdata, m), steps=steps)
        for (key, y), name in zip(labels.items(), right, strict=True):
            right[name].append(float((found[m].predict(adata.X[test], key) == y[test]).mean()))
    return found, {name: float(np.mean(values)) for name, values in right.items()}


def distance_row(mdata: MuData, found: Generated, networks: dict[str, Reader]) -> dict[str, float]:
    """Fréchet distances of generated from real test images, by the features of the networks that read them."""
    test = (mdata.obs["split"] == "test").to_numpy()

    def distance(m: str, x: np.ndarray) -> float:
        options = {"feature_extractor": networks[m].features, "n_permutations": 0, "n_bootstrap": 0}
        return frechet_distance(mdata[m].X[test], x, **options).distance

    return {
        "U-FD": float(np.mean([distance(m, x) for m, x in found.new.items()])),
        "C-FD": float(np.mean([distance(m, x) for (_, m), x in found.crossed.items()])),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and judge every method and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="files of MNIST: a folder, or an .npz")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-train", type=int, default=20_000)
    parser.add_argument("--n-test", type=int, default=2_000)
    parser.add_argument("--size", type=int, default=28, help="height and width of an image, a multiple of 4")
    parser.add_argument("--fraction", type=float, default=0.1, help="pairs per sample")
    parser.add_argument("--beta", type=float, default=2.5)
    parser.add_argument("--likelihood-scale", type=float, help=".75 by default, times the share of the paper's pixels")
    parser.add_argument("--steps", type=int, default=2_000, help="of all stages together, about")
    parser.add_argument("--reader-steps", type=int, default=1_000, help="of the networks that read real images")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core
    mdata = ddmnist(arguments.mnist, n_train=arguments.n_train, n_val=0, n_test=arguments.n_test, size=arguments.size)
    mdata.obs["y_task"], mdata.obs["y_residual"] = mdata.obs["left"], mdata.obs["right"]
    networks, ceiling = readers(mdata, arguments.reader_steps)
    classifiers = {
        key: {m: partial(network.predict, which=key) for m, network in networks.items()}
        for key in ("y_task", "y_residual")
    }

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        add_pairs(mdata, row["fraction"], 0.0, row["seed"])
        method, shapes = METHODS[row["method"]], {m: array_shape(mdata, m) for m in mdata.mod}
        start = time.process_time()
        torch.manual_seed(row["seed"])
        encoders = {m: nn.Sequential(convolutions(shape, N_HIDDEN), nn.ReLU()) for m, shape in shapes.items()}
        options: dict[str, Any] = {"n_hidden": N_HIDDEN, "encoders": encoders}
        if method.model in ("DL2", "CMVAE", "MMVAEPlus"):
            options |= {"beta": row["beta"], "likelihood_scale": row["scale"]}
        options = {name: value for name, value in options.items() if name not in method.options}
        laplace = {"likelihoods": dict.fromkeys(mdata.mod, "laplace")}
        model = fit(mdata, method, row["steps"], row["seed"], 10, n_latent=N_LATENT, lr=1e-3, setup=laplace, **options)
        seconds = time.process_time() - start
        found = {**ceiling}
        if hasattr(model, "predict_cluster"):
            code = model.get_latent_representation(kind="task" if "task" in model.module.kinds else "shared")
            found |= cluster_row(model.predict_cluster(), code, mdata, row["seed"])
        found |= probe_row(model, mdata, row["seed"])
        if isinstance(model, GenerativeModel):
            generated = generate(model, mdata, row["seed"])
            found |= coherence_row(generated, mdata, classifiers) | distance_row(mdata, generated, networks)
        yield {**row, **found, "CPU seconds": seconds}

    fixed = {name: getattr(arguments, name) for name in ("n_train", "n_test", "size", "fraction", "beta", "steps")}
    fixed["scale"] = arguments.likelihood_scale or round(0.75 * (arguments.size / 56) ** 2, 4)
    asked = [{**fixed, "method": name, "seed": s} for s in range(arguments.seeds) for name in arguments.methods]
    table = run_missing(asked, run, arguments.out)
    print(to_markdown(mean_and_deviation(table.drop(columns=list(fixed)), ["method"])))


if __name__ == "__main__":
    main()
