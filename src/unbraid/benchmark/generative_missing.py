"""What cells without proteins are good for: generative models that train on them beside the same on complete cells.

Run it with::

    python -m unbraid.benchmark.generative_missing --seeds 3 --out missing.csv

Data are counts of :func:`unbraid.data.simulate.citeseq` with five batches. A share of the cells has no protein, drawn at
random (``random``) or as whole batches (``batch``); test cells as well. A model trains on all training cells, or on the
complete ones alone (``complete``). ``cell type``: accuracy on test cells of a logistic probe of the joint shared code,
fitted on the codes of all training cells. ``correlation``: of log(1 + x) of imputed and true proteins of all test cells,
of which the model sees the RNA only, mean over proteins. Data and model share a seed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
import torch

from unbraid import model as models
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.contrastive_table import probe_accuracy
from unbraid.benchmark.generative import Method
from unbraid.benchmark.imputation import score
from unbraid.data import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

METHODS = {
    "SwapVAE": Method("SwapVAE", {"diffusion": None}),
    "MMVAE+": Method("MMVAEPlus"),
    "MoPoE-VAE": Method("MoPoEVAE"),
}
N_BATCHES, N_LATENT = 5, 8


def load(n_obs: int, share: float, pattern: str, seed: int) -> tuple[MuData, np.ndarray]:
    """Cells of which a share has no protein, and the proteins of all of them.

    Parameters
    ----------
    n_obs
        Number of cells.
    share
        Of cells without protein; by batch a multiple of a fifth.
    pattern
        ``random`` or ``batch``.
    seed
        Of data, split and pattern.
    """
    full = simulate.citeseq(n_obs, n_genes=300, n_proteins=30, n_batches=N_BATCHES, seed=seed)
    rng = np.random.default_rng(seed)
    if pattern == "batch":
        lacks = full.obs["batch"].cat.codes.to_numpy() < round(share * N_BATCHES)
    else:
        lacks = rng.permutation(n_obs) < round(share * n_obs)
    obs = full.obs[["batch", "cell_type"]].copy()
    obs["split"] = np.where(rng.random(n_obs) < 0.2, "test", "train")
    obs["complete"] = np.where((obs["split"] == "train") & ~lacks, "train", "test")
    given = mudata.MuData({"rna": full["rna"].copy(), "prot": full["prot"][~lacks].copy()})
    for column in obs:
        given.obs[column] = pd.Categorical(obs[column].reindex(given.obs_names))
    proteins = full["prot"].to_df().reindex(given.obs_names).to_numpy()
    return given, proteins


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and judge every method and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-obs", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=1_000, help="about, with batches of 128")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        mdata, proteins = load(arguments.n_obs, row["share"], row["pattern"], row["seed"])
        method, start = METHODS[row["method"]], time.process_time()
        model_class = getattr(models, method.model)
        model_class.setup_mudata(mdata, batch_key="batch")
        specific = {} if method.model == "MoPoEVAE" else {"n_specific": N_LATENT}
        torch.manual_seed(row["seed"])
        model = model_class(mdata, n_shared=N_LATENT, **specific, **method.options)
        split = "complete" if row["trains on"] == "complete" else "split"
        epochs = max(1, round(arguments.steps * 128 / (mdata.obs[split] == "train").sum()))
        model.train(
            max_epochs=epochs, split_key=split, early_stopping=False, seed=row["seed"], progress_bar=False,
            accelerator="cpu",
        )  # fmt: skip
        seconds = time.process_time() - start
        z = model.get_latent_representation()
        test = np.flatnonzero(mdata.obs["split"] == "test")
        found = {"cell type": probe_accuracy(z, mdata.obs["cell_type"], mdata.obs["split"])}
        found["correlation"] = score((model.impute("prot", indices=test), None), proteins[test])["correlation"]
        yield {**row, **found, "CPU seconds": seconds}

    fixed = {"n_obs": arguments.n_obs, "steps": arguments.steps}
    patterns = {
        share: [("none", "all")]
        if not share
        else [(pattern, trains) for pattern in ("random", "batch") for trains in ("all", "complete")]
        for share in arguments.shares
    }
    asked = [
        {**fixed, "method": name, "share": share, "pattern": pattern, "trains on": trains, "seed": seed}
        for seed in range(arguments.seeds)
        for name in arguments.methods
        for share in arguments.shares
        for pattern, trains in patterns[share]
    ]
    table = run_missing(asked, run, arguments.out)
    by = ["method", "pattern", "share", "trains on"]
    print(to_markdown(mean_and_deviation(table.drop(columns=list(fixed)), by)))


if __name__ == "__main__":
    main()
