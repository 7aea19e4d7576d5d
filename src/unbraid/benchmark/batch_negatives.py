"""Whether batch-aware negatives keep batch out of the shared code, on cells of two batches.

Run it with::

    python -m unbraid.benchmark.batch_negatives --seeds 5 --out rows.csv

Both modalities show the batch, so that it is shared information: an InfoNCE whose negatives come from all batches is
paid for encoding it, one whose negatives come from the cell's own batch is not. Not being paid is not being made to
forget, so each kind of negatives is also tried on encoders that are told the batch and on inputs that are centred
within batch, with log-normalised values. Measured on held-out cells: balanced accuracy of a probe of batch (by chance
.5, linear and boosted) and of cell type from the joint code, and how often a cell's RNA finds its own proteins first,
or among the first ten, of all held-out cells of its batch.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.data import simulate
from unbraid.metrics import probe, retrieval
from unbraid.model import CLIP, LinearSplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

    from unbraid.model.base import SplitModel

# name -> what is compared, and whether inputs are centred within batch; None is LinearSplit, which centres by itself
METHODS: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "all": ({"negatives": "all"}, False),
    "batch": ({"negatives": "batch"}, False),
    "all, encoders told": ({"negatives": "all", "encode_covariates": True}, False),
    "batch, encoders told": ({"negatives": "batch", "encode_covariates": True}, False),
    "all, centred": ({"negatives": "all"}, True),
    "batch, centred": ({"negatives": "batch"}, True),
    # correlations have no negatives, so that the option says nothing to them
    "batch, deep CCA": ({"negatives": "batch", "shared_objective": "deep_cca"}, False),
    "batch, deep CCA, centred": ({"negatives": "batch", "shared_objective": "deep_cca"}, True),
    "LinearSplit": (None, False),
}
TRAIN_SHARE = 0.7
OPTIONS = {"n_shared": 16, "n_hidden": 256, "lr": 1e-3}


def load(n_obs: int, batch_strength: float, seed: int) -> MuData:
    """Cells of two batches; ``obsm["centered"]`` holds log-normalised counts less the mean of the batch.

    Parameters
    ----------
    n_obs
        Number of cells.
    batch_strength
        Of :func:`~unbraid.data.simulate.citeseq`.
    seed
        Of data and division.
    """
    mdata = simulate.citeseq(n_obs, n_batches=2, batch_strength=batch_strength, seed=seed)
    order = np.random.default_rng(seed).permutation(n_obs)
    is_train = np.isin(np.arange(n_obs), order[: round(TRAIN_SHARE * n_obs)])
    mdata.obs["split"] = np.where(is_train, "train", "test")
    batch = mdata.obs["batch"].to_numpy()
    for adata in mdata.mod.values():
        x = adata.X.toarray() if sp.issparse(adata.X) else np.array(adata.X)
        total = x.sum(axis=1, keepdims=True)
        x = np.log1p(x / np.maximum(total, 1) * np.median(total))
        for name in np.unique(batch):
            x[batch == name] -= x[(batch == name) & is_train].mean(axis=0)
        adata.obsm["centered"] = x.astype(np.float32)
    return mdata


def fit(mdata: MuData, name: str, *, epochs: int, seed: int) -> SplitModel:
    """Train a variant on the training cells.

    Parameters
    ----------
    mdata
        Of :func:`load`.
    name
        Key of :data:`METHODS`.
    epochs
        At batches of 256 cells.
    seed
        Of weights and training.
    """
    options, centred = METHODS[name]
    layers = dict.fromkeys(mdata.mod, "obsm:centered") if centred else None
    if options is None:
        LinearSplit.setup_mudata(mdata, layers=layers, batch_key="batch")
        model = LinearSplit(mdata)
        model.train(split_key="split", seed=seed)
        return model
    CLIP.setup_mudata(mdata, layers=layers, batch_key="batch")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(mdata, **OPTIONS, **options)
    model.train(
        epochs,
        batch_size=256,
        split_key="split",
        early_stopping=False,
        seed=seed,
        progress_bar=False,
        datasplitter_kwargs={"drop_last": True},
    )
    return model


def measure(model: SplitModel, mdata: MuData, seed: int) -> dict[str, float]:
    """What the shared code of held-out cells holds.

    Parameters
    ----------
    model
        A fitted model.
    mdata
        Its data.
    seed
        Of probes.
    """
    test = np.flatnonzero((mdata.obs["split"] == "test").to_numpy())
    obs = mdata.obs.iloc[test]
    joint = model.get_latent_representation(indices=test)
    rna, prot = (model.get_latent_representation(modality=m, indices=test) for m in ("rna", "prot"))
    options = {"n_permutations": 0, "seed": seed}
    found = retrieval(rna, prot, strata=obs["batch"].to_numpy(), top=(1, 10), seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "batch, linear": probe(joint, obs["batch"].to_numpy(), **options).score,
            "batch, boosted": probe(joint, obs["batch"].to_numpy(), kind="boosted", **options).score,
            "cell type": probe(joint, obs["cell_type"].to_numpy(), **options).score,
            "found first": found.top[1],
            "found among 10": found.top[10],
            "candidates": found.n_candidates,
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and measure every variant and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5, help="each of data, weights and training")
    parser.add_argument("--n-obs", type=int, default=4_000)
    parser.add_argument("--batch-strength", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        mdata = load(row["n_obs"], row["batch_strength"], row["seed"])
        start = time.process_time()
        model = fit(mdata, row["method"], epochs=row["epochs"], seed=row["seed"])
        seconds = time.process_time() - start
        yield {**row, **measure(model, mdata, row["seed"]), "CPU seconds": seconds}

    shared = {"n_obs": arguments.n_obs, "batch_strength": arguments.batch_strength, "epochs": arguments.epochs}
    asked = [{**shared, "method": name, "seed": seed} for seed in range(arguments.seeds) for name in arguments.methods]
    table = run_missing(asked, run, arguments.out).drop(columns=list(shared))
    print(to_markdown(mean_and_deviation(table, ["method"])))


if __name__ == "__main__":
    main()
