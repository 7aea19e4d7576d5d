"""IndiSeek's CITE-seq experiment (section 4, appendix A.3): cell types ranked by what RNA says of them.

Run it with::

    python -m unbraid.benchmark.citeseq_ranks --data citeseq.h5mu --label cell_type

Without ``--data`` it takes the paper's bone-marrow cells (:func:`unbraid.data.datasets.bone_marrow_citeseq`). Models
are trained on one half of the cells and judged on the other: in which modality's specific code do a cell's 10 nearest
neighbours have its label (theta), and does the mean theta rank the cell types as the mean RNA weight of the weighted
nearest neighbours does? k-means on specific and on all codes goes beside it. The published .910 is of the bone-marrow
cells with 27 types (one run, lambda 10); it is no mark for other cells.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData
from sklearn.decomposition import PCA

from unbraid import model as models_
from unbraid._messages import suggest
from unbraid.benchmark.mutual_information import to_markdown
from unbraid.data import datasets
from unbraid.metrics import clustering, weight_rank_correlation
from unbraid.tl import modality_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mudata import MuData

    from unbraid.model.base import SplitModel

TRAIN_SHARE = 15_000 / 30_672
PUBLISHED = {"IndiSeek": 0.910}  # figure 4, lambda = 10, one run
NETWORK = {"n_shared": 50, "n_specific": 50, "n_layers": 5, "n_hidden": 50, "weight_decay": 1e-4}
# Options of the constructor; lambda is the best of the paper's figure 5 where it is in it.
METHODS: dict[str, dict[str, Any]] = {
    "LinearSplit": {},
    "DisentangledSSL": {**NETWORK},
    "IndiSeek": {**NETWORK, "lambda_": 10.0},
    "InfoDisen": {**NETWORK, "lambda_": 1.0},
    "FactorizedCL": {**NETWORK, "lambda_": 0.1},
}
NO_LABEL = ("unknown", "undefined", "unassigned")


def prepare(
    mdata: MuData,
    label: str,
    *,
    rna: str = "rna",
    prot: str = "prot",
    train_share: float = TRAIN_SHARE,
    n_genes: int = 2_000,
    n_components: int | None = 200,
    seed: int = 0,
) -> MuData:
    """The paper's inputs: principal components of RNA and centred log-ratios of proteins, fitted on training cells.

    RNA: counts per 10,000, log(1 + x), the most variable genes of the training cells, each scaled by its mean and
    standard deviation there and clipped at 10, then principal components. Proteins: log-ratios within the cell as
    Seurat computes them, log(1 + x / g) with g the exponential of the mean of log(1 + x), centred by the means of the
    training cells.

    Parameters
    ----------
    mdata
        Raw counts. Cells that lack a modality are left out.
    label
        ``obs`` column of the cell type.
    rna, prot
        Names of the modalities.
    train_share
        Share of the cells that models are trained on.
    n_genes
        Number of variable genes.
    n_components
        Number of principal components; None keeps the scaled genes (appendix A.3.1).
    seed
        Seed of the division of the cells.

    Returns
    -------
    MuData with the modalities ``rna`` and ``prot``, dense float32, and ``obs`` columns ``split`` (``train``, ``test``)
    and the label, missing where it is unknown. ``obsm["X_pca"]`` of each modality is what the weighted nearest
    neighbours see, 30 and at most 18 components of all cells, as in Seurat's vignette.

    Raises
    ------
    KeyError
        If a modality or the label is not there.
    ValueError
        If a modality holds no counts, or fewer than 20 cells have both.
    """
    for name in (rna, prot):
        if name not in mdata.mod:
            raise KeyError(f"No modality {name!r} in the MuData. {suggest(name, mdata.mod)}")
    if label not in mdata.obs:
        raise KeyError(f"No column {label!r} in mdata.obs. {suggest(label, mdata.obs)}")
    cells = mdata.obs_names[mdata.obs_names.isin(mdata[rna].obs_names) & mdata.obs_names.isin(mdata[prot].obs_names)]
    if len(cells) < 20:
        raise ValueError(f"Only {len(cells)} cells have both {rna!r} and {prot!r}; the experiment needs at least 20.")
    counts = {name: mdata[name][cells].X for name in (rna, prot)}
    for name, x in counts.items():
        values = x.data if sp.issparse(x) else np.asarray(x)
        if values.size and (values.min() < 0 or (values != np.round(values)).any()):
            raise ValueError(f"Modality {name!r} must hold raw counts in X, but there is {_no_count(values):g}.")
    order = np.random.default_rng(seed).permutation(len(cells))
    is_train = np.zeros(len(cells), dtype=bool)
    is_train[order[: round(train_share * len(cells))]] = True

    genes = _scaled_genes(counts[rna], is_train, n_genes)
    inputs = {"rna": genes if n_components is None else _components(genes, is_train, n_components)}
    ratios = _log_ratios(counts[prot])
    inputs["prot"] = ratios - ratios[is_train].mean(axis=0)
    spread = ratios.std(axis=0)
    everyone = np.ones(len(cells), dtype=bool)
    pca = {
        "rna": _components(_scaled_genes(counts[rna], everyone, n_genes), everyone, 30),
        "prot": _components((ratios - ratios.mean(axis=0)) / np.where(spread > 0, spread, 1), everyone, 18),
    }
    modalities = {}
    for name, x in inputs.items():
        var = pd.DataFrame(index=[f"{name}_{j}" for j in range(x.shape[1])])
        modalities[name] = AnnData(x.astype(np.float32), pd.DataFrame(index=cells), var, obsm={"X_pca": pca[name]})
    prepared = mudata.MuData(modalities)
    labels = mdata.obs.loc[cells, label].astype("object")
    prepared.obs[label] = labels.where(~labels.isin(NO_LABEL)).astype("category").reindex(prepared.obs_names)
    split = pd.Series(np.where(is_train, "train", "test"), index=cells)
    prepared.obs["split"] = split.reindex(prepared.obs_names).astype("category")
    return prepared


def builders(
    methods: Sequence[str],
    *,
    epochs: int,
    learning_rate: float,
    lambdas: Sequence[float] | None = None,
    batch_size: int = 128,
) -> dict[str, Callable[[MuData, int], SplitModel]]:
    """Functions that train a model on the training cells, by name.

    Parameters
    ----------
    methods
        Names in ``METHODS``.
    epochs
        Of every stage.
    learning_rate
        Of the networks.
    lambdas
        Values of ``lambda_`` for every method that has one; None for the one in ``METHODS``.
    batch_size
        Cells of a step.
    """
    found = {}
    for method in methods:
        options = METHODS[method]
        for lambda_ in lambdas if lambdas and options else [None]:
            name = method if lambda_ is None else f"{method}, lambda {lambda_:g}"
            given = {"lr": learning_rate} if options else {}
            given |= {} if lambda_ is None else {"lambda_": lambda_}
            found[name] = partial(
                _fit, method=method, options={**options, **given}, epochs=epochs, batch_size=batch_size
            )
    return found


def _fit(mdata: MuData, seed: int, *, method: str, options: dict[str, Any], epochs: int, batch_size: int) -> SplitModel:
    model_class = getattr(models_, method)
    model_class.setup_mudata(mdata, likelihoods=dict.fromkeys(mdata.mod, "normal"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(mdata, **options)
    training = {"batch_size": batch_size, "split_key": "split", "early_stopping": False, "progress_bar": False}
    model.train(epochs, seed=seed, **training)
    return model


def rank_rows(
    mdata: MuData,
    models: Mapping[str, SplitModel | Callable[[MuData, int], SplitModel]],
    label: str,
    *,
    weights: Sequence[float] | pd.Series,
    n_neighbors: int = 10,
    min_cells: int = 1,
    n_clusterings: int = 3,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    r"""Judge the codes of test cells, one row per model.

    With :math:`b_m` the share of the neighbours in :math:`Z_m` (Euclidean, among test cells, without the cell itself)
    that have the cell's label, :math:`\theta = \log \frac{k b_{RNA} + 1}{k b_{ADT} + 1}` (:math:`k` = 10): the paper's
    log-ratio, with the 1 that keeps it finite where no neighbour has the label.

    Parameters
    ----------
    mdata
        What :func:`prepare` returned.
    models
        By name, trained models or functions of the data and the seed that return one.
    label
        ``obs`` column of the cell type; cells without one are not judged.
    weights
        Weight of RNA of each cell, in the order of ``mdata.obs``; the means of the types over *all* cells are what the
        types are ranked by, as in the paper.
    n_neighbors
        Number of neighbours.
    min_cells
        Types with fewer test cells are left out of the ranks.
    n_clusterings
        Number of k-means from different seeds, averaged; 0 for none.
    seed
        Seed of models, k-means and intervals.
    """
    test = np.flatnonzero((mdata.obs["split"] == "test").to_numpy())
    labels = mdata.obs[label].iloc[test]
    types = mdata.obs[label].astype("object")
    of_type = pd.Series(np.asarray(weights, dtype=float), index=mdata.obs_names).groupby(types).mean()
    reference = labels.astype("object").map(of_type).astype(float).to_numpy()
    for name, model in models.items():
        start = time.perf_counter()
        if not hasattr(model, "get_latent_representation"):
            model = model(mdata, seed)
        row = {"method": name, "seed": seed, "seconds": time.perf_counter() - start}
        codes = {
            (kind, m): model.get_latent_representation(mdata, kind, m, indices=test)
            for kind in ("shared", "specific")
            for m in ("rna", "prot")
        }
        theta = _theta(codes, labels, n_neighbors)
        found = weight_rank_correlation(theta, reference, groups=labels, min_obs=min_cells, seed=seed)
        row |= {"rho": found.rho, "low": found.interval[0], "high": found.interval[1], "p": found.p_value}
        row |= {"n_types": found.n_types, "n_test": found.n_obs}
        judged = {
            "Z rna": codes["specific", "rna"],
            "Z prot": codes["specific", "prot"],
            "all": np.hstack([*codes.values()]),
        }
        for key, z in judged.items() if n_clusterings else ():
            agreement = clustering(z, labels, n_seeds=n_clusterings, n_permutations=0, seed=seed)
            row |= {f"ARI {key}": agreement.ari, f"NMI {key}": agreement.nmi}
        yield row


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds (standard deviation in brackets), the published correlation beside ours.

    Parameters
    ----------
    rows
        What :func:`rank_rows` yields.
    """
    by = rows.groupby("method", sort=False)
    table = {"method": [], "rho": [], "rho published (bone marrow)": []}
    measures = [column for column in rows if column.startswith(("ARI", "NMI"))]
    for name, group in by:
        table["method"].append(name)
        table["rho"].append(_mean(group["rho"]))
        published = PUBLISHED.get(str(name).split(",")[0])
        table["rho published (bone marrow)"].append("" if published is None else f"{published:.3f}")
        for column in [*measures, "seconds"]:
            table.setdefault(column, []).append(_mean(group[column], digits=0 if column == "seconds" else 3))
    return pd.DataFrame(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, judge, write every row to a CSV as it comes, and print the table as Markdown.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    available = [name for name in METHODS if hasattr(models_, name)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="raw counts (.h5mu); the bone-marrow cells by default")
    parser.add_argument("--label", default="cell_type_l2", help="obs column of the cell type")
    parser.add_argument("--rna", default="rna", help="name of the modality")
    parser.add_argument("--prot", default="prot", help="name of the modality")
    parser.add_argument("--weights", help="obs column with the weight of RNA; computed by default (needs muon)")
    parser.add_argument("--methods", nargs="+", default=available, choices=available)
    parser.add_argument("--lambdas", type=float, nargs="+", help="for every method that has one; its own by default")
    parser.add_argument("--epochs", type=int, default=20, help="of every stage; the paper has 2000")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the paper has 1e-4")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds; the cells are divided once")
    parser.add_argument("--all-genes", action="store_true", help="variable genes themselves, as in appendix A.3.1")
    parser.add_argument("--min-cells", type=int, default=1, help="leave out types with fewer test cells")
    parser.add_argument("--clusterings", type=int, default=3, help="number of k-means per code; 0 for none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("citeseq_ranks.csv"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)

    mdata = datasets.bone_marrow_citeseq() if arguments.data is None else mudata.read_h5mu(arguments.data)
    prepared = prepare(
        mdata,
        arguments.label,
        rna=arguments.rna,
        prot=arguments.prot,
        n_components=None if arguments.all_genes else 200,
    )
    if arguments.weights is not None:
        if arguments.weights not in mdata.obs:
            raise KeyError(f"--weights: no column {arguments.weights!r}. {suggest(arguments.weights, mdata.obs)}")
        weights = mdata.obs[arguments.weights].reindex(prepared.obs_names)
    else:
        weights = modality_weights(prepared, method="wnn", specific="X_pca", inplace=False)["wnn:rna"]
    trained = builders(
        arguments.methods,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        lambdas=arguments.lambdas,
    )
    found: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        options = {"min_cells": arguments.min_cells, "n_clusterings": arguments.clusterings, "seed": seed}
        for row in rank_rows(prepared, trained, arguments.label, weights=weights, **options):
            found.append(row)
            pd.DataFrame(found).to_csv(arguments.out, index=False)
    rows = pd.DataFrame(found)
    n_train = int((prepared.obs["split"] == "train").sum())
    print(
        f"{n_train:,} training and {rows['n_test'].iloc[0]:,} labelled test cells, {rows['n_types'].iloc[0]} types, "
        f"{arguments.epochs} epochs; mean (sd) over {arguments.seeds} seeds\n\n{to_markdown(summary(rows))}"
    )


# ---- helpers ------------------------------------------------------------------------------


def _theta(codes: Mapping[tuple[str, str], np.ndarray], labels: pd.Series, n_neighbors: int) -> np.ndarray:
    parts = {}
    for m in ("rna", "prot"):
        parts[m] = AnnData(obs=pd.DataFrame(index=labels.index), obsm={"Z_s": codes["specific", m]})
    cells = mudata.MuData(parts)
    table = modality_weights(
        cells,
        labels=labels.reindex(cells.obs_names),
        modalities=["rna", "prot"],
        n_neighbors=n_neighbors,
        inplace=False,
    )
    return table["theta"].reindex(labels.index).to_numpy()


def _scaled_genes(counts: Any, is_train: np.ndarray, n_genes: int) -> np.ndarray:
    adata = AnnData(sp.csr_matrix(counts, dtype=np.float32))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    x = adata.X
    if x.shape[1] > n_genes:
        chosen = sc.pp.highly_variable_genes(adata[is_train].copy(), n_top_genes=n_genes, inplace=False)
        x = x[:, chosen["highly_variable"].to_numpy()]
    x = x.toarray()
    mean, deviation = x[is_train].mean(axis=0), x[is_train].std(axis=0, ddof=1)
    return np.minimum((x - mean) / np.where(deviation > 0, deviation, 1), 10).astype(np.float32)


def _log_ratios(counts: Any) -> np.ndarray:
    x = (counts.toarray() if sp.issparse(counts) else np.asarray(counts)).astype(np.float64)
    return np.log1p(x / np.exp(np.log1p(x).mean(axis=1, keepdims=True)))


def _components(x: np.ndarray, is_train: np.ndarray, n_components: int) -> np.ndarray:
    n_components = min(n_components, x.shape[1], int(is_train.sum()) - 1)
    return PCA(n_components, svd_solver="covariance_eigh").fit(x[is_train]).transform(x).astype(np.float32)


def _no_count(values: np.ndarray) -> float:
    return float(values[(values < 0) | (values != np.round(values))][0])


def _mean(values: pd.Series, digits: int = 3) -> str:
    spread = f" ({values.std():.{digits}f})" if len(values) > 1 else ""
    return f"{values.mean():z.{digits}f}{spread}"


if __name__ == "__main__":
    main()
