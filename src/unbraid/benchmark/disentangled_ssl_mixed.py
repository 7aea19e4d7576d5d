"""DisentangledSSL where a part of what is shared is observed unmixed (Wang et al. 2025, appendix H.1, figure 9).

Run it with::

    python -m unbraid.benchmark.disentangled_ssl_mixed --n-obs 20000 --seeds 1 --out rows.csv

The last 15 of 100 features are the same in both modalities; the others mix what is shared with what is specific. Noise
and dropout touch the mixed ones only. One row per beta of step 1, and one of LinearSplit: the accuracy of a logistic
probe of the three labels from the shared code of the first modality (``Z_c1``), by chance .5. Of DisentangledSSL also
the weight ratio of both shared encoders: with W the weights ``(n_hidden, 100)`` of the first layer and G = W^T W, the
mean of the diagonal of G over the unmixed features, divided by its mean over the mixed ones. New weights have 1.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.disentangled_ssl import MODALITIES, fit, linear_codes, probes
from unbraid.data import simulate
from unbraid.model import DisentangledSSL
from unbraid.nn import NoiseDropout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

N_MIXED = 85
# The text and figure 9a: at small beta, at the maximum, and where the code has collapsed; the first and the last beta
# are our choice.
PUBLISHED_RATIO = {0.001: "about 20", 10.0: "nearly 80", 1000.0: "1"}


class MixedNoiseDropout(nn.Module):
    """Noise or dropout on the mixed features, the first 85; the others stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.augment = NoiseDropout(noise_std=0.01, dropout=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One view of ``x``, shape ``(n, n_features)``."""
        return torch.cat([self.augment(x[:, :N_MIXED]), x[:, N_MIXED:]], dim=1)


def weight_ratio(weight: torch.Tensor) -> float:
    """How much larger the squared weights of unmixed features are than those of mixed ones.

    Parameters
    ----------
    weight
        Of a first linear layer, ``(n_hidden, n_features)``, the mixed features first.
    """
    norms = weight.detach().square().sum(dim=0)  # the diagonal of W^T W
    return float(norms[N_MIXED:].mean() / norms[:N_MIXED].mean())


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds beside the published ratio, one line per model and beta.

    Parameters
    ----------
    table
        Finished rows.
    """
    texts = table.drop(columns=["n_obs", "epochs"], errors="ignore").assign(
        beta=table["beta"].map("{:g}".format).replace("nan", ""),
        published=table["beta"].map(PUBLISHED_RATIO).fillna(""),
    )
    lines = mean_and_deviation(texts, ["model", "beta", "published"])
    lines["ratio published"] = lines.pop("published")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-obs", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds; the data are those of seed 0")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.001, 0.1, 1.0, 10.0, 100.0, 1000.0])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    mdata = simulate.disentangled_ssl_mixed(arguments.n_obs, seed=0)

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if row["model"] == "LinearSplit":
            start = time.perf_counter()
            z, ratios = linear_codes(mdata, row["seed"])["Z_c1"], {}
            seconds = time.perf_counter() - start
        else:
            options = {"preset": "official", "beta": row["beta"], "augmentation": MixedNoiseDropout()}
            model, seconds = fit(DisentangledSSL, mdata, row["epochs"], row["seed"], n_specific=0, **options)
            z = model.get_unnormalized_shared(MODALITIES[0])
            encoders = model.module.shared_encoders
            ratios = {f"ratio {m}": weight_ratio(encoders[m].layers[0].weight) for m in MODALITIES}
        yield {**row, **probes({"Z_c1": z}, mdata), **ratios, "seconds": seconds}

    asked = [
        {"n_obs": arguments.n_obs, "epochs": arguments.epochs, "model": model, "beta": beta, "seed": seed}
        for seed in range(arguments.seeds)
        for model, beta in [("LinearSplit", math.nan), *(("DisentangledSSL", beta) for beta in arguments.betas)]
        if seed == 0 or model != "LinearSplit"
    ]
    print(to_markdown(summary(run_missing(asked, run, arguments.out))))


if __name__ == "__main__":
    main()
