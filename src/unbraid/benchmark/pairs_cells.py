"""Cell types from a few annotated cells: DL2 and constrained clustering beside a classifier, and leiden without labels.

Run it with::

    python -m unbraid.benchmark.pairs_cells --data citeseq.h5mu --label cell_type --unlabelled unknown --out rows.csv

CITE-seq counts. A share of the annotated training cells is taken for annotated; methods that take pairs get all pairs of
these. Judged on held-out cells: accuracy (ACC) under the best matching of clusters to cell types, NMI and ARI, with as
many clusters as there are types. The classifier, logistic regression on the principal components of both modalities, has
the same annotated cells; its accuracy needs no matching. Leiden, at the resolution that gives as many clusters, on
totalVI and on muon's weighted nearest neighbours, and CMVAE have no labels; WNN sees all cells. The seed is that of the
split, of the annotated cells and of the model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import scanpy as sc
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression

from unbraid import pp, tl
from unbraid.benchmark._embeddings import dense, totalvi_codes
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.cards import wnn
from unbraid.benchmark.pairs import Method, fit
from unbraid.metrics import clustering

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

METHODS = {
    "DL2": Method("DL2"),
    "DL2, swap and own scales": Method("DL2", {"swap": True, "likelihood_scale": "own"}),
    "DC-GMM": Method("DCGMM"),
    "SDEC": Method("SDEC"),
    "C-IDEC": Method("CIDEC"),
    "VolMaxDCC": Method("VolMaxDCC"),
}
ON_CODES = ("constrained k-means", "RCA + k-means", "classifier")  # of principal components
WITHOUT_LABELS = ("leiden on totalVI", "leiden on WNN", "CMVAE")
N_COMPONENTS = {"rna": 30, "prot": 10}


def principal_components(mdata: MuData, seed: int) -> np.ndarray:
    """Principal components of both modalities, log-normalised and of equal total variance, side by side."""
    parts = []
    for m, n_components in N_COMPONENTS.items():
        adata = sc.AnnData(dense(mdata[m].X))
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        sc.pp.pca(adata, n_comps=min(n_components, adata.n_vars - 1), random_state=seed)
        x = adata.obsm["X_pca"]
        parts.append(x / np.sqrt(x.var(0).sum()))
    return np.hstack(parts)


def annotate(mdata: MuData, label: str, share: float, seed: int) -> int:
    """Write the annotation of a share of the annotated training cells to ``obs["known"]``, and all of their pairs.

    Returns the number of annotated cells.
    """
    rng = np.random.default_rng([seed, 1])
    there = (mdata.obs["split"] == "train") & mdata.obs[label].notna()
    chosen = rng.permutation(np.flatnonzero(there))[: round(share * there.sum())]
    known = np.zeros(mdata.n_obs, dtype=bool)
    known[chosen] = True
    mdata.obs["known"] = mdata.obs[label].where(known)
    pp.pairs_from_labels(mdata, "known", seed=seed)
    return len(chosen)


def clusters_of(mdata: MuData, name: str, n_clusters: int, steps: int, seed: int) -> np.ndarray:
    """Cluster, or predicted type, of every cell.

    Parameters
    ----------
    mdata
        Counts with ``obs["split"]``, ``obs["known"]`` and ``obsp["pairs"]``.
    name
        Of the method.
    n_clusters
        How many.
    steps, seed
        Of neural methods: steps of all stages together, about; seed of whatever is drawn.
    """
    if name in ON_CODES:
        x = principal_components(mdata, seed)
        if name == "constrained k-means":
            return tl.constrained_kmeans(x, mdata.obsp["pairs"], n_clusters, seed=seed)
        if name == "classifier":
            known = mdata.obs["known"].notna().to_numpy()
            reader = LogisticRegression(C=10.0, max_iter=2_000).fit(x[known] * 10, mdata.obs["known"][known])
            return reader.predict(x * 10)
        x = tl.relevant_components(x, mdata.obsp["pairs"], n_components=n_clusters - 1)
        return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(x)
    if name in ("leiden on totalVI", "leiden on WNN"):
        if name == "leiden on WNN":
            code = mdata.obsm[wnn(mdata, seed)[0]]
        else:
            code = totalvi_codes(mdata, n_latent=20, steps=steps, seed=seed)["Z_c"]
        anything = np.arange(len(code)) % 2  # classes are not looked at
        return clustering(code, anything, method="leiden", n_clusters=n_clusters, n_seeds=1, n_permutations=0).clusters
    method = METHODS.get(name) or Method("CMVAE")
    return fit(mdata, method, steps, seed, n_clusters).predict_cluster()


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and judge every method and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*WITHOUT_LABELS, *ON_CODES, *METHODS]
    parser.add_argument("--data", type=Path, required=True, help="CITE-seq counts (.h5mu) with rna and prot")
    parser.add_argument("--label", default="cell_type", help="obs column of the cell type")
    parser.add_argument("--unlabelled", nargs="*", default=[], help="its values that mean none")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.05, 0.2], help="of annotated cells")
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_000, help="of all stages together, about")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core
    source = mudata.read_h5mu(arguments.data)
    label = source.obs[arguments.label].astype(str)
    label = label.where(~label.isin([*arguments.unlabelled, "nan"])).astype("category")

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        mdata = source.copy()
        mdata.obs["type"] = label
        pp.split(mdata, fractions=(0.8, 0.0, 0.2), seed=row["seed"])
        n_known = annotate(mdata, "type", row["share"] or 0.01, row["seed"])
        start = time.process_time()
        found = clusters_of(mdata, row["method"], label.cat.categories.size, row["steps"], row["seed"])
        seconds = time.process_time() - start
        test = (mdata.obs["split"] == "test").to_numpy() & mdata.obs["type"].notna().to_numpy()
        types = mdata.obs["type"][test]
        judged = clustering(None, types, clusters=found[test], n_permutations=0)
        scores = {"ACC": judged.acc, "NMI": judged.nmi, "ARI": judged.ari}
        if row["method"] == "classifier":
            scores["ACC"] = float((found[test] == types.astype(str)).mean())
        used = float(len(np.unique(found[test])))
        yield {**row, "annotated": n_known if row["share"] else 0, **scores, "used": used, "CPU seconds": seconds}

    fixed = {"data": arguments.data.stem, "steps": arguments.steps}
    asked = [
        {**fixed, "method": name, "share": share, "seed": seed}
        for seed in range(arguments.seeds)
        for name in arguments.methods
        for share in ([0.0] if name in WITHOUT_LABELS else arguments.shares)
    ]
    table = run_missing(asked, run, arguments.out)
    print(to_markdown(mean_and_deviation(table.drop(columns=list(fixed)), ["method", "share"])))


if __name__ == "__main__":
    main()
