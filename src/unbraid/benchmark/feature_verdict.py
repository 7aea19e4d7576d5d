"""Whether verdicts on features keep their false discovery rate, and what they find: counts with planted features.

Run it with::

    python -m unbraid.benchmark.feature_verdict
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from unbraid.data import simulate
from unbraid.model import LinearSplit
from unbraid.pp import split_counts
from unbraid.tl import feature_verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import mudata

ALPHA = 0.05
CARRIES = {"shared": ("shared", "both"), "specific": ("specific", "both")}


def true_codes(mdata: mudata.MuData, seed: int) -> mudata.MuData:
    """The simulated factors themselves: every error is then the verdict's."""
    for name, adata in mdata.mod.items():
        adata.obsm["Z_c"] = mdata.obsm["true_shared"][mdata.obs_names.get_indexer(adata.obs_names)]
        adata.obsm["Z_s"] = mdata.mod[name].obsm["true_specific"]
    return mdata


def true_codes_and_depth(mdata: mudata.MuData, seed: int) -> mudata.MuData:
    """The factors, with a modality's depth in its shared code: depths correlate, and are not biology."""
    true_codes(mdata, seed)
    for name, adata in mdata.mod.items():
        depth = mdata.obs[f"depth_{name}"].to_numpy()[mdata.obs_names.get_indexer(adata.obs_names)]
        adata.obsm["Z_c"] = np.c_[adata.obsm["Z_c"], np.log(depth)]
    return mdata


def linear_codes(mdata: mudata.MuData, seed: int, layer: str | None = None) -> mudata.MuData:
    """Codes of LinearSplit from the same counts: specific codes have seen each feature's own noise."""
    LinearSplit.setup_mudata(mdata, batch_key="batch", layers=dict.fromkeys(mdata.mod, layer) if layer else None)
    model = LinearSplit(mdata)
    model.train(seed=seed)
    return model.write_latent()


def linear_codes_of_half(mdata: mudata.MuData, seed: int) -> mudata.MuData:
    """Counts split: LinearSplit sees one half, and the other half is judged."""
    split_counts(mdata, seed=seed)
    linear_codes(mdata, seed, layer="train_counts")
    for adata in mdata.mod.values():
        adata.X = adata.layers["test_counts"]
    return mdata


CODES: dict[str, Callable[..., Any]] = {
    "true factors": true_codes,
    "true factors, depth in Z_c": true_codes_and_depth,
    "LinearSplit": linear_codes,
    "LinearSplit, counts split": linear_codes_of_half,
}


def rows(n_obs: int, n_genes: int, seed: int) -> Iterator[dict[str, Any]]:
    """Judge one simulated data set with every kind of code; one row per kind and modality.

    Parameters
    ----------
    n_obs, n_genes
        Size of the data set.
    seed
        Seed of data and verdicts.
    """
    for name, codes in CODES.items():
        data = codes(simulate.citeseq(n_obs, n_genes=n_genes, seed=seed), seed)
        start = time.perf_counter()
        table = feature_verdict(data, batch="batch", alpha=ALPHA, seed=seed, inplace=False)
        seconds = time.perf_counter() - start
        for modality in data.mod:
            verdict = table.loc[modality, "verdict"].to_numpy().astype(str)
            truth = data.mod[modality].var["truth"].to_numpy().astype(str)
            row = {"codes": name, "modality": modality, "seed": seed, "seconds": seconds}
            for kind, carriers in CARRIES.items():
                called, is_true = np.isin(verdict, carriers), np.isin(truth, carriers)
                row[f"false {kind}"] = (called & ~is_true).sum() / max(called.sum(), 1)
                row[f"{kind} found"] = (called & is_true).sum() / is_true.sum()
            row["noise called otherwise"] = (verdict[truth == "noise"] != "noise").mean()
            row["verdict right"] = (verdict == truth).mean()
            yield row


def markdown(found: pd.DataFrame) -> str:
    """Means over data sets with their standard errors, in per cent.

    Parameters
    ----------
    found
        Rows of :func:`rows`.
    """
    grouped = found.drop(columns=["seed", "seconds"]).groupby(["codes", "modality"], sort=False)
    mean, error = 100 * grouped.mean(), 100 * grouped.sem()
    head = ["codes", "modality", *mean.columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for index in mean.index:
        cells = [f"{mean.loc[index, c]:.1f} ± {error.loc[index, c]:.1f}" for c in mean]
        lines.append("| " + " | ".join([*index, *cells]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print false discovery rate and power, in per cent, over simulated data sets.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("feature_verdict.md"))
    arguments = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning)
    found: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        found += rows(arguments.cells, arguments.genes, seed)
        table = markdown(pd.DataFrame(found))
        title = f"{seed + 1} data sets of {arguments.cells:,} cells, {arguments.genes} genes and 30 proteins; per cent"
        arguments.out.write_text(f"{title}\n\n{table}\n", encoding="utf-8")
    print(title, table, sep="\n\n")


if __name__ == "__main__":
    main()
