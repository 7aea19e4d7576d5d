"""What is lost when a fraction of the cells lacks a modality: from a file to probes of the codes.

Run it with::

    python -m unbraid.benchmark.missing_modality --data citeseq.h5mu --modality prot --label cell_type
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

from unbraid.metrics import probe
from unbraid.model import CLIP, DisentangledSSL, LinearSplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODELS: dict[type, dict[str, Any]] = {
    LinearSplit: {},
    CLIP: {"n_shared": 16},
    DisentangledSSL: {"n_shared": 16, "n_specific": 16},
}


def without(mdata: mudata.MuData, modality: str, fraction: float, seed: int) -> mudata.MuData:
    """A copy in which a random fraction of the modality's cells lacks it.

    Parameters
    ----------
    mdata
        The data.
    modality
        The modality to thin out.
    fraction
        Of its cells.
    seed
        Seed of the choice.
    """
    adata = mdata.mod[modality]
    keep = np.sort(np.random.default_rng(seed).permutation(adata.n_obs)[round(fraction * adata.n_obs) :])
    mods = {name: (adata[keep] if name == modality else mdata.mod[name]).copy() for name in mdata.mod}
    thinned = mudata.MuData(mods, obs=mdata.obs[[]].copy())
    for column in mdata.obs:
        thinned.obs[column] = mdata.obs[column].reindex(thinned.obs_names)
    return thinned


def rows(mdata: mudata.MuData, modality: str, label: str, fraction: float, seed: int) -> Iterator[dict[str, Any]]:
    """Train every model on data with the given fraction missing, and probe the codes; one row per model.

    Parameters
    ----------
    mdata
        Fully paired data.
    modality
        The modality that is thinned out.
    label
        ``obs`` column to probe; missing and ``"unknown"`` labels are left out.
    fraction
        Fraction of cells without the modality.
    seed
        Seed of choice, weights and training.
    """
    data = without(mdata, modality, fraction, seed)
    labels = data.obs[label].astype("object").where(~data.obs[label].isin(["unknown", "undefined"]))
    labels = labels.astype("category")
    has = data.obs_names.isin(data.mod[modality].obs_names)
    other = next(name for name in data.mod if name != modality)
    for model_class, options in MODELS.items():
        model_class.setup_mudata(data)
        torch.manual_seed(seed)
        start = time.perf_counter()
        model = model_class(data, **options)
        model.train(seed=seed, progress_bar=False)
        seconds = time.perf_counter() - start
        model.write_latent()
        score = lambda code, y: probe(code, y, n_permutations=0, seed=0).score
        z = data.obsm["Z_c"]
        row = {"model": model_class.__name__, "missing": fraction, "seed": seed, "seconds": seconds}
        row["Z_c, all cells"] = score(z, labels)
        row["Z_c, cells without"] = score(z[~has], labels[~has]) if fraction else np.nan
        for name in (other, modality) if "specific" in model.module.kinds else ():
            adata = data.mod[name]
            row[f"Z_s {name}"] = score(adata.obsm["Z_s"], labels.reindex(adata.obs_names))
        yield row


def main(argv: Sequence[str] | None = None) -> None:
    """Print means and standard deviations over seeds.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a fully paired MuData (.h5mu)")
    parser.add_argument("--modality", default="prot")
    parser.add_argument("--label", default="cell_type")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("missing_modality.csv"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    mdata = mudata.read_h5mu(arguments.data)
    found = []
    for seed in range(arguments.seeds):
        for fraction in arguments.fractions:
            for row in rows(mdata, arguments.modality, arguments.label, fraction, seed):
                found.append(row)
                pd.DataFrame(found).to_csv(arguments.out, index=False)
    table = pd.DataFrame(found).drop(columns="seed").groupby(["model", "missing"], sort=False).agg(["mean", "std"])
    print(table.round(3).T.to_string())


if __name__ == "__main__":
    main()
