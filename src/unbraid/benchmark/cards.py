"""Scorecards of several tools' embeddings of one CITE-seq data set.

Needs the extra ``baselines``. Run it with::

    python -m unbraid.benchmark.cards --data citeseq.h5mu --labels cell_type
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
import scanpy as sc
import torch

from unbraid import pl
from unbraid.metrics import scorecard
from unbraid.model import DisentangledSSL, LinearSplit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mudata import MuData

Keys = tuple[str | dict[str, str], str | dict[str, str] | None]
SHARED_FACTOR = 0.1  # of the variance that a factor explains of one modality, it must explain of the other
N_LATENT = 20
N_NEIGHBORS = 20
N_FEATURES = 1_000  # most variable genes that MOFA+ is given


def linear_split(mdata: MuData, seed: int) -> Keys:
    """The closed form."""
    return _ours(mdata, LinearSplit, {}, seed)


def disentangled_ssl(mdata: MuData, seed: int) -> Keys:
    """With the defaults of the model."""
    return _ours(mdata, DisentangledSSL, {"n_shared": N_LATENT, "n_specific": N_LATENT}, seed)


def _ours(mdata: MuData, model_class: type, options: dict[str, Any], seed: int) -> Keys:
    model_class.setup_mudata(mdata)
    torch.manual_seed(seed)
    model = model_class(mdata, **options)
    model.train(seed=seed, progress_bar=False)
    model.write_latent(mdata)
    return "Z_c", "Z_s"


def totalvi(mdata: MuData, seed: int) -> Keys:
    """scvi-tools' totalVI: one latent per cell."""
    import scvi

    scvi.settings.seed = seed
    names = {"rna_layer": "rna", "protein_layer": "prot"}
    scvi.model.TOTALVI.setup_mudata(mdata, rna_layer=None, protein_layer=None, modalities=names)
    model = scvi.model.TOTALVI(mdata, n_latent=N_LATENT)
    model.train(max_epochs=60, enable_progress_bar=False)
    mdata.obsm["X_totalVI"] = model.get_latent_representation()
    return "X_totalVI", None


def mofa(mdata: MuData, seed: int) -> Keys:
    """MOFA+ on log-normalised values; a factor that explains one modality alone is specific to it."""
    from mofapy2.run.entry_point import entry_point

    views = {name: _log_normalised(mdata, name) for name in mdata.mod}
    views = {name: x[:, np.argsort(-x.var(0))[:N_FEATURES]] for name, x in views.items()}
    views = {name: x - x.mean(0) for name, x in views.items()}
    program = entry_point()
    program.set_data_options(scale_views=True)
    program.set_data_matrix(
        [[x] for x in views.values()], views_names=list(views), samples_names=[list(mdata.obs_names)]
    )
    program.set_model_options(factors=N_LATENT, spikeslab_weights=False, ard_weights=True)
    program.set_train_options(iter=50, convergence_mode="fast", seed=seed, quiet=True)
    program.build()
    program.run()
    factors = program.model.nodes["Z"].getExpectation()
    explained = np.stack(
        [((factors.T @ x) ** 2).sum(1) / (factors**2).sum(0) / (x**2).sum() for x in views.values()]
    )  # of the variance of a modality, by each factor
    shared = explained.min(0) >= SHARED_FACTOR * explained.max(0)
    mdata.obsm["X_mofa_shared"] = factors[:, shared]
    specific = {}
    for k, name in enumerate(views):
        own = ~shared & (explained.argmax(0) == k)
        if own.any():
            mdata.obsm[f"X_mofa_{name}"] = factors[:, own]
            specific[name] = f"X_mofa_{name}"
    print(f"MOFA+: {shared.sum()} shared factors, {(~shared).sum()} specific ones", flush=True)
    return "X_mofa_shared", specific or None


def wnn(mdata: MuData, seed: int) -> Keys:
    """Diffusion map of the weighted nearest neighbours of muon."""
    import muon

    for name, adata in mdata.mod.items():
        copy = sc.AnnData(_log_normalised(mdata, name), obs=adata.obs[[]])
        sc.pp.pca(copy, n_comps=min(30, adata.n_vars - 1), random_state=seed)
        adata.obsm["X_pca"] = copy.obsm["X_pca"]
        muon.pp.l2norm(adata, rep="X_pca")
        sc.pp.neighbors(adata, use_rep="X_pca", random_state=seed)
    muon.pp.neighbors(mdata, n_neighbors=N_NEIGHBORS, key_added="wnn", random_state=seed)
    graph = sc.AnnData(obs=mdata.obs[[]], obsp={"connectivities": mdata.obsp["wnn_connectivities"]})
    graph.uns["neighbors"] = {
        "connectivities_key": "connectivities",
        "params": {"method": "umap", "n_neighbors": N_NEIGHBORS},
    }
    sc.tl.diffmap(graph, n_comps=N_LATENT + 1, random_state=seed)
    mdata.obsm["X_wnn"] = graph.obsm["X_diffmap"][:, 1:]  # the first is constant
    return "X_wnn", None


EMBEDDINGS: dict[str, Callable[[MuData, int], Keys]] = {
    "LinearSplit": linear_split,
    "DisentangledSSL": disentangled_ssl,
    "totalVI": totalvi,
    "MOFA+": mofa,
    "WNN": wnn,
}


def _log_normalised(mdata: MuData, name: str) -> np.ndarray:
    adata = sc.AnnData(mdata.mod[name].X.astype(np.float64).copy())
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)


def summary(table: pd.DataFrame) -> dict[str, str]:
    """What of a card goes into one line."""
    row = {}
    of = lambda question, **equal: table[
        table["question"].eq(question) & np.logical_and.reduce([table[k].eq(v) for k, v in equal.items()] or [True])
    ]
    for condition in ("all", "within label"):
        found = of("shared", condition=condition, measure="mutual information").iloc[0]
        row[f"shared, {condition}"] = f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
    for found in of("specific", condition="all").itertuples():
        if not found.against.startswith("data"):
            row[f"leak into {found.code.split(':')[0]}"] = f"{found.estimate:.2f} {found.verdict}"
    for found in of("limit of detection").groupby("code")["estimate"].max().items():
        row[f"limit in {found[0].split(':')[0]}"] = f"{found[1]:.2g}"
    for found in of("complete").itertuples():
        if found.code == "both" or not row.get(f"explained of {found.against}"):
            row[f"explained of {found.against}"] = f"{found.estimate:.2f}"
    labels = of("label")
    row["label in shared"] = f"{labels.iloc[0].estimate:.2f}"
    for found in labels.itertuples():
        if found.code.endswith("Z_s") or "mofa_" in found.code and "shared" not in found.code:
            row[f"label in {found.code}"] = f"{found.estimate:.2f} ({found.null:.2f})"
    depth = of("nuisance")
    depth = depth[depth["against"].str.startswith("depth")]
    row["depth in shared"] = ", ".join(f"{v:.2f}" for v in depth[depth["code"].eq(depth["code"].iloc[0])]["estimate"])
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Write a card of every embedding and print one line each.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CITE-seq counts (.h5mu), modalities rna and prot")
    parser.add_argument("--labels", default="cell_type")
    parser.add_argument("--embeddings", nargs="+", default=list(EMBEDDINGS), choices=list(EMBEDDINGS))
    parser.add_argument("--max-obs", type=int, nargs="+", default=[4_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("cards"))
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(exist_ok=True)
    warnings.simplefilter("ignore")
    lines = {}
    for name in arguments.embeddings:
        mdata = mudata.read_h5mu(arguments.data)
        start = time.perf_counter()
        keys = EMBEDDINGS[name](mdata, arguments.seed)
        trained = time.perf_counter() - start
        for max_obs in arguments.max_obs:
            start = time.perf_counter()
            card = scorecard(
                mdata, *keys, labels=arguments.labels, max_obs=max_obs, seed=arguments.seed, progress=False
            )
            seconds = time.perf_counter() - start
            file = arguments.out / f"{name.rstrip('+')}_{max_obs}"
            card.table.to_csv(f"{file}.csv", index=False)
            pl.report(card, f"{file}.html", title=f"{name}, {arguments.data.stem}")
            lines[name, max_obs] = {**summary(card.table), "fit (s)": f"{trained:.0f}", "card (s)": f"{seconds:.0f}"}
            print(f"{name}, {max_obs}: fitted in {trained:.0f} s, card in {seconds:.0f} s", flush=True)
    print(pd.DataFrame(lines).fillna("").to_string())


if __name__ == "__main__":
    main()
