"""Proteins imputed from RNA, for cells without any: correlation, error, and coverage of intervals, beside totalVI.

Run it with::

    python -m unbraid.benchmark.imputation --data citeseq.h5mu --label cell_type --seeds 5 --out imputation.csv

A fifth of the cells lacks its proteins altogether, in training too. Models get counts (``nb``; proteins of totalVI are
its own mixture), the 2,000 genes that vary most, and impute the proteins of these cells. ``correlation``: of log(1 + x)
of expected and measured counts over cells, mean over proteins; ``error``: root mean square of their difference;
``coverage``: share of measured counts inside the 90 % posterior-predictive interval of 100 draws, and its mean
``width`` in log(1 + x). ``ridge`` regresses log(1 + x) on 50 principal components of log-normalised RNA. totalVI marks
cells without proteins by a batch of their own and imputes as if they were of the others; its intervals are those of
their own batch, whose background nothing was learned from.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import scanpy as sc
import torch
from sklearn.linear_model import RidgeCV

from unbraid import model as models
from unbraid.benchmark._embeddings import dense, fit_totalvi
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.contrastive_table import load_cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

NAMES = {
    "Unbraid": "Unbraid", "MMVAE": "MMVAE", "MoPoE-VAE": "MoPoEVAE", "DMVAE": "DMVAE", "MMVAE+": "MMVAEPlus",
    "IDMVAE": "IDMVAE", "SwapVAE": "SwapVAE",
}  # fmt: skip
METHODS = ["ridge", "totalVI", *NAMES]
N_LATENT, N_DRAWS, INTERVAL = 16, 100, 0.9
Imputed = tuple[np.ndarray, np.ndarray | None]  # expected counts, and draws with the draws first


def without_proteins(mdata: MuData) -> MuData:
    """The same cells, of which those of the test set have no proteins."""
    train = (mdata.obs["split"] == "train").to_numpy()
    return mudata.MuData({"rna": mdata["rna"].copy(), "prot": mdata["prot"][train].copy()})


def ridge(mdata: MuData, test: np.ndarray) -> Imputed:
    """Regression of log counts on principal components."""
    rna = mdata["rna"].copy()
    sc.pp.normalize_total(rna)
    sc.pp.log1p(rna)
    sc.pp.pca(rna, n_comps=50)
    z = rna.obsm["X_pca"]
    model = RidgeCV(np.logspace(-2, 4, 7)).fit(z[~test], np.log1p(dense(mdata["prot"].X)[~test]))
    return np.expm1(model.predict(z[test])).clip(min=0), None


def totalvi(mdata: MuData, test: np.ndarray, seed: int, steps: int) -> Imputed:
    """TotalVI with its defaults, the cells without proteins in a batch of their own."""
    prot = mdata["prot"].copy()
    prot.X = dense(prot.X)
    prot.X[test] = 0
    given = mudata.MuData({"rna": mdata["rna"], "prot": prot})
    batch = np.where(test, "none", "measured")
    model = fit_totalvi(given, n_latent=N_LATENT, steps=steps, seed=seed, batch=batch)
    cells = np.flatnonzero(test)
    _, expected = model.get_normalized_expression(
        indices=cells, n_samples=10, transform_batch=["measured"], include_protein_background=True, return_numpy=True
    )
    draws = model.posterior_predictive_sample(indices=cells, n_samples=N_DRAWS)["prot"]
    return expected, np.moveaxis(np.asarray(draws), 2, 0)


def ours(mdata: MuData, name: str, test: np.ndarray, seed: int, steps: int) -> Imputed:
    """A model of this package, to which the proteins of these cells are missing."""
    given = without_proteins(mdata)
    model_class = getattr(models, NAMES[name])
    model_class.setup_mudata(given)
    rows = given.obs_names.get_indexer(mdata.obs_names[test])
    if name == "Unbraid":
        model = model_class(given)
        model.train(seed=seed, progress_bar=False, accelerator="cpu")
        return model.impute("prot", indices=rows), None
    specific = {} if name in ("MMVAE", "MoPoE-VAE") else {"n_specific": N_LATENT}
    torch.manual_seed(seed)
    model = model_class(given, n_shared=N_LATENT, **specific)
    model.train(max_epochs=max(1, round(steps * 128 / given.n_obs)), seed=seed, progress_bar=False, accelerator="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model.impute("prot", indices=rows), model.impute("prot", indices=rows, n_samples=N_DRAWS)


def score(imputed: Imputed, measured: np.ndarray) -> dict[str, float]:
    """Correlation, error, and coverage and width of the interval."""
    expected, draws = imputed
    a, b = np.log1p(expected), np.log1p(measured)
    correlations = [np.corrcoef(a[:, j], b[:, j])[0, 1] if a[:, j].std() > 0 else 0.0 for j in range(a.shape[1])]
    row = {"correlation": float(np.mean(correlations)), "error": float(np.sqrt(np.mean((a - b) ** 2)))}
    if draws is not None:
        low, high = np.quantile(draws, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], axis=0)
        row["coverage"] = float(np.mean((measured >= low) & (measured <= high)))
        row["width"] = float(np.mean(np.log1p(high) - np.log1p(low)))
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and judge every method and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CITE-seq counts (.h5mu) with rna and prot")
    parser.add_argument("--label", default="cell_type", help="obs column; only to choose cells as elsewhere")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2_000, help="of every stage, about")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core
    mdata = load_cells(arguments.data, arguments.label)
    test = (mdata.obs["split"] == "test").to_numpy()
    measured = dense(mdata["prot"].X)[test]

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        start, name = time.process_time(), row["method"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name == "ridge":
                imputed = ridge(mdata, test)
            elif name == "totalVI":
                imputed = totalvi(mdata, test, row["seed"], arguments.steps)
            else:
                imputed = ours(mdata, name, test, row["seed"], arguments.steps)
        yield {**row, **score(imputed, measured), "CPU seconds": time.process_time() - start}

    fixed = {"data": arguments.data.stem, "steps": arguments.steps}
    asked = [{**fixed, "method": name, "seed": s} for s in range(arguments.seeds) for name in arguments.methods]
    table = run_missing(asked, run, arguments.out)
    print(to_markdown(mean_and_deviation(table.drop(columns=list(fixed)), ["method"])))


if __name__ == "__main__":
    main()
