"""Seconds per epoch of the generative models, beside PyPI's ``multivae`` in the same run.

Run it where ``multivae`` is installed too, which is no dependency of this package::

    pip install multivae
    python -m unbraid.benchmark.multivae_speed --out speed.csv

Same data (10,000 cells, three modalities of 100 features), encoders and decoders (two hidden layers of 128, built by the
same code), likelihoods (normal, scale 1), one sample, batches of 128, Adam, one thread. Both train with their own
trainer; epochs are timed by themselves, without validation and the first one left out, and the two take turns.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import torch
from anndata import AnnData
from torch import nn

from unbraid import model as models
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.training_speed import EpochTimer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

N_OBS, N_FEATURES, N_MODALITIES = 10_000, 100, 3
N_LATENT, N_HIDDEN, BATCH_SIZE, LEARNING_RATE = 16, 128, 128, 1e-3
MODELS = {"MMVAE": "MMVAE", "MMVAE+": "MMVAEPlus", "DMVAE": "DMVAE", "MoPoE-VAE": "MoPoEVAE"}
WITHOUT_SPECIFIC = ("MMVAE", "MoPoE-VAE")


def arrays() -> dict[str, np.ndarray]:
    """Values of the modalities."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(N_OBS, 8))
    mixed = lambda: z @ rng.normal(size=(8, N_FEATURES)) + rng.normal(size=(N_OBS, N_FEATURES))
    return {f"m{i}": mixed().astype(np.float32) for i in range(N_MODALITIES)}


def hidden(n_in: int) -> list[nn.Module]:
    """Two hidden layers."""
    return [nn.Linear(n_in, N_HIDDEN), nn.ReLU(), nn.Linear(N_HIDDEN, N_HIDDEN), nn.ReLU()]


def time_ours(name: str, data: dict[str, np.ndarray], epochs: int) -> list[float]:
    """Seconds of every epoch of ours.

    Parameters
    ----------
    name
        Key of :data:`MODELS`.
    data
        See :func:`arrays`.
    epochs
        How many.
    """
    mdata = mudata.MuData({m: AnnData(x) for m, x in data.items()})
    model_class = getattr(models, MODELS[name])
    model_class.setup_mudata(mdata)
    n_specific = 0 if name in WITHOUT_SPECIFIC else N_LATENT
    model = model_class(
        mdata,
        n_shared=N_LATENT,
        encoders={m: nn.Sequential(*hidden(N_FEATURES)) for m in data},
        decoders={m: nn.Sequential(*hidden(N_LATENT + n_specific), nn.Linear(N_HIDDEN, N_FEATURES)) for m in data},
        likelihood_scale=1.0,
        posterior="normal",
        **({"n_specific": n_specific} if n_specific else {}),
    )
    timer = EpochTimer()
    model.train(
        max_epochs=epochs, batch_size=BATCH_SIZE, lr=LEARNING_RATE, train_size=1.0, early_stopping=False,
        progress_bar=False, accelerator="cpu", callbacks=[timer],
    )  # fmt: skip
    return [seconds for _, seconds, _ in timer.epochs["vae"]]


def time_theirs(name: str, data: dict[str, np.ndarray], epochs: int) -> list[float]:
    """Seconds of every epoch of ``multivae``.

    Parameters
    ----------
    name, data, epochs
        As for :func:`time_ours`.
    """
    import multivae.models as peers
    from multivae.data.datasets import MultimodalBaseDataset
    from multivae.models.nn import BaseMultilatentEncoder
    from multivae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder

    logging.getLogger("multivae").setLevel(logging.ERROR)
    n_specific = 0 if name in WITHOUT_SPECIFIC else N_LATENT

    class Encoder(BaseMultilatentEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.latent_dim, self.style_dim = N_LATENT, n_specific
            self.network = nn.Sequential(*hidden(N_FEATURES))
            names = ["embedding", "log_covariance"]
            self.heads = nn.ModuleDict({head: nn.Linear(N_HIDDEN, N_LATENT) for head in names})
            if n_specific:
                self.heads.update({f"style_{head}": nn.Linear(N_HIDDEN, n_specific) for head in names})

        def forward(self, x):
            found = self.network(x)
            return ModelOutput(**{head: layer(found) for head, layer in self.heads.items()})

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.latent_dim = N_LATENT + n_specific
            self.network = nn.Sequential(*hidden(self.latent_dim), nn.Linear(N_HIDDEN, N_FEATURES))

        def forward(self, z):
            return ModelOutput(reconstruction=self.network(z))

    class Timed(BaseTrainer):
        def train_step(self, epoch):
            start = time.perf_counter()
            found = super().train_step(epoch)
            seconds.append(time.perf_counter() - start)
            return found

    seconds: list[float] = []
    options: dict[str, Any] = {"MMVAE": {"K": 1}, "MMVAE+": {"K": 1, "modalities_specific_dim": N_LATENT}}.get(name, {})
    if name == "DMVAE":
        options = {"modalities_specific_dim": dict.fromkeys(data, N_LATENT)}
    kind = {"MMVAE+": "MMVAEPlus", "MoPoE-VAE": "MoPoE"}.get(name, name)
    config = getattr(peers, f"{kind}Config")(
        n_modalities=len(data), latent_dim=N_LATENT, input_dims=dict.fromkeys(data, (N_FEATURES,)),
        decoders_dist=dict.fromkeys(data, "normal"),
        decoder_dist_params={m: {"scale": 1.0} for m in data}, **options,
    )  # fmt: skip
    if hasattr(config, "prior_and_posterior_dist"):
        config.prior_and_posterior_dist = "normal"
    model = getattr(peers, kind)(config, {m: Encoder() for m in data}, {m: Decoder() for m in data})
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder, per_device_train_batch_size=BATCH_SIZE, num_epochs=epochs, learning_rate=LEARNING_RATE
        )
        dataset = MultimodalBaseDataset({m: torch.as_tensor(x) for m, x in data.items()})
        Timed(model, dataset, training_config=settings).train()
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Time both and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    try:
        import multivae  # noqa: F401
    except ImportError as error:
        parser.error(f"multivae cannot be imported ({error}). Run `pip install multivae` in an environment of its own.")
    torch.set_num_threads(1)
    data = arrays()

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        seconds = {
            "unbraid": time_ours(row["model"], data, arguments.epochs)[1:],
            "multivae": time_theirs(row["model"], data, arguments.epochs)[1:],
        }
        medians = {f"{name} s/epoch": float(np.median(values)) for name, values in seconds.items()}
        yield {**row, **medians, "ratio": medians["multivae s/epoch"] / medians["unbraid s/epoch"]}

    asked = [
        {"epochs": arguments.epochs, "model": name, "seed": repeat}
        for repeat in range(arguments.repeats)
        for name in arguments.models
    ]
    table = run_missing(asked, run, arguments.out)
    print(to_markdown(mean_and_deviation(table.drop(columns="epochs"), ["model"])))


if __name__ == "__main__":
    main()
