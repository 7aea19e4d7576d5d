"""The ablation of IDMVAE on PolyMNIST-Quadrant, small: what z and w hold, and what is generated from them.

Run it with::

    python -m unbraid.benchmark.generative_images --mnist mnist.npz --seeds 1 --out images.csv

Data are :func:`unbraid.data.datasets.polymnist_quadrant`: the digit is shared (``s``, chance .10), the quadrant is each
modality's own (``p``, .25). Rows are those of tables 1 and 2 of IDMVAE and their columns those of
:mod:`unbraid.benchmark.generative`. The paper probes samples of the posteriors (``drawn``).

The paper has 220,000 samples of five modalities of 64 pixels, residual networks on both sides and about 170,000 steps.
Here: fewer and smaller images of two modalities, of which ``real s`` says how well a network like the encoders reads
them; encoders of two strided convolutions, which learn in fewer steps, and perceptrons as decoders. The weights of
contrasts and the scale of the Laplace likelihood, .75, are the paper's, and so is the weight of the divergences *per
pixel*: beta is 2.5 for 64 pixels, and shrinks with their number. (With 2.5 itself w hardly learns anything, and with
the scale shrunk in place of beta the contrasts do not.) So contrasts weigh more beside the reconstruction than in the
paper, the more the smaller the images are. The data are those of seed 0.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import torch
from torch import nn

from unbraid import model as models
from unbraid._compat import parse_device_args
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.generative import Method, coherence_row, probe_row
from unbraid.data.datasets import polymnist_quadrant
from unbraid.model.base import GenerativeModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

    from unbraid.model.base import SplitModel

_idmvae = {"cross_information_weight": 80.0, "augmentation_weight": 20.0}
METHODS = {
    "LinearSplit": Method("LinearSplit"),
    "MMVAE": Method("MMVAE"),
    "MoPoE-VAE": Method("MoPoEVAE"),
    "DMVAE": Method("DMVAE"),
    "MMVAE+": Method("MMVAEPlus"),
    "IDMVAE": Method("IDMVAE", _idmvae),
    "IDMVAE without CrossMI": Method("IDMVAE", {**_idmvae, "cross_information_weight": 0.0}),
    "IDMVAE without GenAug": Method("IDMVAE", {**_idmvae, "augmentation_weight": 0.0}),
    "IDMVAE, diffusion added": Method("IDMVAE", {**_idmvae, "diffusion": "additive"}),
    "SwapVAE": Method("SwapVAE", _idmvae),
}
N_SHARED, N_SPECIFIC, N_HIDDEN, N_FILTERS = 16, 32, 256, 16
LIKELIHOOD_SCALE, BETA, PAPER_SIZE = 0.75, 2.5, 64


def load(mnist: Path, n_train: int, n_test: int, size: int, modalities: Sequence[str]) -> MuData:
    """Images with their labels under the names of :func:`unbraid.data.simulate.classes`.

    Parameters
    ----------
    mnist
        See :func:`~unbraid.data.datasets.polymnist_quadrant`.
    n_train, n_test
        Samples.
    size
        Height and width in pixels.
    modalities
        Which of the five, ``m0`` to ``m4``.
    """
    mdata = polymnist_quadrant(mnist, n_train=n_train, n_val=0, n_test=n_test, size=size)
    obs = mdata.obs[["split"]].assign(y_shared=mdata.obs["digit"].astype("category"))
    kept = {m: mdata[m] for m in modalities}
    for m, adata in kept.items():
        obs[f"y_specific_{m}"] = adata.obs["quadrant"].astype("category").loc[obs.index]
    small = mudata.MuData(kept)
    small.obs = obs.loc[small.obs_names]
    return small


def convolutions(shape: Sequence[int], n_out: int) -> nn.Sequential:
    """Two convolutions that halve height and width, and a linear layer.

    Parameters
    ----------
    shape
        ``(channels, height, width)``, the last two multiples of 4.
    n_out
        Features of the output.
    """
    channels, height, width = shape
    return nn.Sequential(
        nn.Unflatten(1, tuple(shape)),
        nn.Conv2d(channels, N_FILTERS, 5, stride=2, padding=2), nn.GroupNorm(1, N_FILTERS), nn.ReLU(),
        nn.Conv2d(N_FILTERS, 2 * N_FILTERS, 3, stride=2, padding=1), nn.GroupNorm(1, 2 * N_FILTERS), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * N_FILTERS * (height // 4) * (width // 4), n_out),
    )  # fmt: skip


class Reader:
    """A network that reads both labels of a modality's images.

    Parameters
    ----------
    x
        Training images, ``(n, n_features)``.
    labels
        ``{"s": (n,), "p": (n,)}`` of strings.
    shape
        Of an image.
    steps
        Adam steps of 128 images at 1e-3.
    device
        Of the network.
    """

    def __init__(
        self,
        x: np.ndarray,
        labels: dict[str, np.ndarray],
        shape: Sequence[int],
        *,
        steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.classes = {which: np.unique(values) for which, values in labels.items()}
        sizes = [len(values) for values in self.classes.values()]
        numbers = {which: np.searchsorted(self.classes[which], y) for which, y in labels.items()}
        codes = {which: torch.as_tensor(y, device=device) for which, y in numbers.items()}
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(convolutions(shape, N_HIDDEN), nn.ReLU(), nn.Linear(N_HIDDEN, sum(sizes)))
        self.network.to(device)
        self.sizes, self.device, x = sizes, device, torch.as_tensor(x, device=device)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,), generator=generator).to(device)
            found = dict(zip(codes, self.network(x[rows]).split(sizes, 1), strict=True))
            loss = sum(nn.functional.cross_entropy(found[which], codes[which][rows]) for which in codes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def predict(self, x: np.ndarray, which: str) -> np.ndarray:
        """Labels of images, the digit (``"s"``) or the quadrant (``"p"``)."""
        scores = dict(zip(self.classes, self._outputs(x, self.network).split(self.sizes, 1), strict=True))
        return self.classes[which][scores[which].argmax(1).numpy()]

    def features(self, x: np.ndarray) -> np.ndarray:
        """What the labels are read from, ``(n, n_hidden)``: in place of an Inception network's, for distances of images."""
        return self._outputs(x, self.network[:-1]).numpy()

    @torch.no_grad()
    def _outputs(self, x: np.ndarray, network: nn.Module) -> torch.Tensor:
        parts = torch.as_tensor(np.asarray(x, dtype=np.float32)).split(1_000)
        return torch.cat([network(part.to(self.device)).cpu() for part in parts])


def readers(mdata: MuData, steps: int, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, float]]:
    """Classifiers of the real training images as :func:`coherence_row` takes them, and their accuracy on test images."""
    train, test = ((mdata.obs["split"] == part).to_numpy() for part in ("train", "test"))
    found: dict[str, Any] = {"s": {}, "p": {}}
    right: dict[str, list[float]] = {"real s": [], "real p": []}
    for m, adata in mdata.mod.items():
        names = {"s": "y_shared", "p": f"y_specific_{m}"}
        labels = {which: mdata.obs[name].astype(str).to_numpy() for which, name in names.items()}
        reader = Reader(
            adata.X[train], {k: y[train] for k, y in labels.items()}, array_shape(mdata, m), steps=steps, device=device
        )
        for which, y in labels.items():
            found[which][m] = partial(reader.predict, which=which)
            right[f"real {which}"].append(float((found[which][m](adata.X[test]) == y[test]).mean()))
    return {**found, "p_named": {"p": found["p"]}}, {k: float(np.mean(v)) for k, v in right.items()}


def fit(
    mdata: MuData, method: Method, steps: int, seed: int, *, n_hidden: int, lr: float, accelerator: str = "cpu"
) -> SplitModel:
    """Train a method on the training images.

    Parameters
    ----------
    mdata
        See :func:`load`.
    method
        Model and options.
    steps
        Of every stage, about, of 128 samples.
    seed
        Of weights and training.
    n_hidden
        Width of the networks.
    lr
        Of Adam.
    accelerator
        As Lightning names them.
    """
    model_class = getattr(models, method.model)
    if method.model == "LinearSplit":
        model_class.setup_mudata(mdata)
        model = model_class(mdata)
        model.train(split_key="split", seed=seed)
        return model
    model_class.setup_mudata(mdata, likelihoods=dict.fromkeys(mdata.mod, "laplace"))
    shapes = {m: array_shape(mdata, m) for m in mdata.mod}
    torch.manual_seed(seed)
    encoders = {m: nn.Sequential(convolutions(shape, n_hidden), nn.ReLU()) for m, shape in shapes.items()}
    specific = {} if method.model in ("MMVAE", "MoPoEVAE") else {"n_specific": N_SPECIFIC}
    height = next(iter(shapes.values()))[1]
    fixed = {"n_hidden": n_hidden, "beta": BETA * (height / PAPER_SIZE) ** 2, "likelihood_scale": LIKELIHOOD_SCALE}
    model = model_class(mdata, n_shared=N_SHARED, **specific, encoders=encoders, **{**fixed, **method.options})
    epochs = max(1, round(steps * 128 / (mdata.obs["split"] == "train").sum()))
    model.train(
        max_epochs=epochs, batch_size=128, lr=lr, split_key="split", early_stopping=False, seed=seed,
        progress_bar=False, accelerator=accelerator,
    )  # fmt: skip
    return model


def array_shape(mdata: MuData, modality: str) -> tuple[int, ...]:
    """Shape of an image."""
    return tuple(int(n) for n in mdata[modality].uns["unbraid_array"]["shape"])


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
    parser.add_argument("--size", type=int, default=16, help="height and width of an image, a multiple of 4")
    parser.add_argument("--modalities", nargs="+", default=["m0", "m2"], choices=[f"m{k}" for k in range(5)])
    parser.add_argument("--steps", type=int, default=5_000, help="of every stage, about")
    parser.add_argument("--n-hidden", type=int, default=128, help="width of the networks")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--reader-steps", type=int, default=1_000, help="of the networks that read real images")
    parser.add_argument("--accelerator", default="cpu", help="as Lightning names them, such as gpu")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core
    mdata = load(arguments.mnist, arguments.n_train, arguments.n_test, arguments.size, arguments.modalities)
    device = parse_device_args(arguments.accelerator, "auto", return_device="torch")[2]
    classifiers, ceiling = readers(mdata, arguments.reader_steps, device)

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        start = time.process_time()
        options = {"n_hidden": arguments.n_hidden, "lr": arguments.lr, "accelerator": arguments.accelerator}
        model = fit(mdata, METHODS[row["method"]], arguments.steps, row["seed"], **options)
        seconds = time.process_time() - start
        found = ceiling | probe_row(model, mdata)
        if isinstance(model, GenerativeModel):
            found |= coherence_row(model, mdata, classifiers, row["seed"])
        yield {**row, **found, "CPU seconds": seconds}

    names = ("n_train", "n_test", "size", "steps", "n_hidden", "lr")
    fixed = {name: getattr(arguments, name) for name in names} | {"modalities": " ".join(arguments.modalities)}
    asked = [{**fixed, "method": name, "seed": s} for s in range(arguments.seeds) for name in arguments.methods]
    table = run_missing(asked, run, arguments.out)
    print(to_markdown(mean_and_deviation(table.drop(columns=list(fixed)), ["method"])))


if __name__ == "__main__":
    main()
