"""Every contrastive method beside LinearSplit, on the simulations of two papers or on CITE-seq counts.

Run it with::

    python -m unbraid.benchmark.contrastive_table --seeds 3 --out simulation.csv
    python -m unbraid.benchmark.contrastive_table --indiseek 2 --seeds 5 --out setting2.csv
    python -m unbraid.benchmark.contrastive_table --data citeseq.h5mu --label cell_type --out cells.csv

All networks have two layers and 256 hidden units, and every stage about 1,000 steps at a learning rate of 1e-3. Data
and their division are the same for all seeds, which are those of weights and training.

DisentangledSSL's simulation: accuracy of a logistic probe, on cells that neither the model nor the probe has seen, of the
labels of the true shared latent (``Y_c``) and of the specific ones (``Y_s1``, ``Y_s2``): from the modalities' shared
codes side by side (``[Z_c]``), the joint one (``Z_c``), and the specific code of the first modality (``Z_s1``). By chance
.5; the row ``truth`` has the true latents. IndiSeek's simulations: the second modality is the code c, and methods learn
both codes from the two; the specific code of x by the measures of :mod:`unbraid.benchmark.indiseek`, and R2 of c from
the joint code. Cells: balanced accuracy of a probe of the cell type. All: leak (nats) and coverage (share of a
modality's variance that its codes explain) by the scorecard, on a sample of held-out cells.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unbraid import model as models
from unbraid._messages import suggest
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.indiseek import measure, r2
from unbraid.data import simulate
from unbraid.metrics import scorecard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

    from unbraid.model.base import SplitModel

NETWORKS = {"n_hidden": 256, "n_layers": 2, "lr": 1e-3}
N_LATENT = {"simulation": 50, "indiseek": 10, "cells": 16}
TRAIN_SHARE = 0.8
NO_LABEL = ("unknown", "undefined", "unassigned", "unmatched")
LABELS = {"Y_c": "y_shared", "Y_s1": "y_specific_x1", "Y_s2": "y_specific_x2"}
# of the nats that leak; quadratic ones are slow for wide codes, and the simulation is linear
ESTIMATORS = {"simulation": ("canonical",), **dict.fromkeys(("indiseek", "cells"), ("canonical", "quadratic"))}
DEEP_CCA = {"shared_objective": "deep_cca"}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A model of the table.

    Attributes
    ----------
    model
        Name in :mod:`unbraid.model`; empty for the true latents of a simulation.
    options
        Of the model, beside those of all.
    batch_size
        Cells of a step.
    whiten
        Whether the inputs are whitened first; the simulation only.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 256
    whiten: bool = False


METHODS = {
    "truth": Method(model=""),
    "LinearSplit": Method(model="LinearSplit"),
    "Unbraid": Method(model="Unbraid"),
    "CLIP": Method(model="CLIP"),
    # correlations of a batch take more cells than a contrast does
    "CLIP deep CCA": Method(model="CLIP", options=DEEP_CCA, batch_size=512),
    "DisentangledSSL": Method(model="DisentangledSSL"),
    "DisentangledSSL deep CCA": Method(
        model="DisentangledSSL",
        options={**DEEP_CCA, "augmentation": None, "independence": "predictability"},
        batch_size=512,
    ),
    "JointOpt": Method(model="JointOpt"),
    "FOCAL": Method(model="FOCAL"),
    # its critics score all pairs of a batch
    "FactorCL": Method(model="FactorCL", options={"critic_n_hidden": 64}, batch_size=128),
    "CoMM": Method(model="CoMM"),
    "IndiSeek": Method(model="IndiSeek"),
    "FactorizedCL": Method(model="FactorizedCL"),
    "InfoDisen": Method(model="InfoDisen"),
    "IndiSeek predictability": Method(model="IndiSeek", options={"independence": "predictability"}),
    "IndiSeek residual": Method(model="IndiSeek", options={"independence": "residual"}),
    # further ones, by name
    "DisentangledSSL normalized": Method(model="DisentangledSSL", options={"normalize_codes": True}),
    "CLIP deep CCA linear": Method(model="CLIP", options={**DEEP_CCA, "n_layers": 1}, batch_size=512),
    "CLIP deep CCA linear whitened": Method(
        model="CLIP", options={**DEEP_CCA, "n_layers": 1}, batch_size=512, whiten=True
    ),
    "CLIP deep CCA whitened": Method(model="CLIP", options=DEEP_CCA, batch_size=512, whiten=True),
    "CLIP whitened": Method(model="CLIP", batch_size=512, whiten=True),
}
DEFAULT_METHODS = list(METHODS)[: list(METHODS).index("IndiSeek residual") + 1]


def load_simulation(n_obs: int, noise: float = 0.0) -> MuData:
    """The simulation of the released code, and its inputs whitened in ``obsm["whitened"]``.

    Parameters
    ----------
    n_obs
        Number of observations, of which a fifth are for testing.
    noise
        Standard deviation of that on the features.
    """
    mdata = simulate.disentangled_ssl(n_obs, noise=noise, seed=0)
    train = (mdata.obs["split"] == "train").to_numpy()
    for adata in mdata.mod.values():
        x = adata.X.astype(np.float64)
        mean = x[train].mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(x[train], rowvar=False))
        # the symmetric square root stays nearest to the features
        adata.obsm["whitened"] = ((x - mean) @ (vectors / np.sqrt(values)) @ vectors.T).astype(np.float32)
    return mdata


def load_cells(path: Path, label: str | None, *, rna: str = "rna", prot: str = "prot", n_genes: int = 2_000) -> MuData:
    """Cells with both modalities, the genes that vary most among training cells, and ``obs["split"]``.

    Parameters
    ----------
    path
        File with raw counts.
    label
        ``obs`` column of the cell type; types with fewer than 10 cells count as unknown. None: there is none.
    rna, prot
        Names of the modalities.
    n_genes
        Number of genes.

    Raises
    ------
    KeyError
        If a modality or the label is not there.
    """
    given = mudata.read_h5mu(path)
    for name in (rna, prot):
        if name not in given.mod:
            raise KeyError(f"No modality {name!r} in the MuData. {suggest(name, given.mod)}")
    if label is not None and label not in given.obs:
        raise KeyError(f"No column {label!r} in mdata.obs. {suggest(label, given.obs)}")
    cells = given[rna].obs_names.intersection(given[prot].obs_names)
    is_train = np.zeros(len(cells), dtype=bool)
    is_train[np.random.default_rng(0).permutation(len(cells))[: round(TRAIN_SHARE * len(cells))]] = True

    varying = np.ones(given[rna].n_vars, dtype=bool)
    if n_genes < len(varying):
        genes = AnnData(given[rna][cells[is_train]].X.copy())
        sc.pp.normalize_total(genes, target_sum=1e4)
        sc.pp.log1p(genes)
        sc.pp.highly_variable_genes(genes, n_top_genes=n_genes)
        varying = genes.var["highly_variable"].to_numpy()
    chosen = {"rna": given[rna][cells][:, varying], "prot": given[prot][cells]}
    mdata = mudata.MuData(
        {
            name: AnnData(part.X.copy(), pd.DataFrame(index=cells), pd.DataFrame(index=name + ":" + part.var_names))
            for name, part in chosen.items()
        }
    )
    if label is not None:
        labels = given.obs.loc[cells, label].astype("object")
        n_cells = labels.map(labels.value_counts())
        mdata.obs["label"] = labels.where(~labels.isin(NO_LABEL) & (n_cells >= 10)).astype("category")
    mdata.obs["split"] = pd.Categorical(np.where(is_train, "train", "test"))
    return mdata


def fit(mdata: MuData, name: str, *, data: str, steps: int, seed: int, batch_size: int | None = None) -> SplitModel:
    """Train a method on the training cells.

    Parameters
    ----------
    mdata
        Data with ``obs["split"]``.
    name
        Key of :data:`METHODS`.
    data
        ``"simulation"``, ``"indiseek"`` or ``"cells"``.
    steps
        Of every stage, about.
    seed
        Of weights and training.
    batch_size
        Cells of a step; None for the method's own.
    """
    method = METHODS[name]
    model_class = getattr(models, method.model)
    layers = dict.fromkeys(mdata.mod, "obsm:whitened") if method.whiten else None
    model_class.setup_mudata(mdata, layers=layers)
    inputs = {} if data == "cells" else {"input_transform": "identity"}
    if method.model in ("LinearSplit", "Unbraid"):  # as they are out of the box
        model = model_class(mdata, **inputs, **method.options)
        model.train(split_key="split", batch_size=batch_size, seed=seed, progress_bar=False)
        return model
    batch_size, widths = batch_size or method.batch_size, {"n_shared": N_LATENT[data]}
    if method.model not in ("CLIP", "CoMM"):
        widths["n_specific"] = N_LATENT[data]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(mdata, **{**NETWORKS, **widths, **inputs, **method.options})
    per_epoch = max(1, int((mdata.obs["split"] == "train").sum()) // batch_size)
    model.train(
        max(1, round(steps / per_epoch)),
        batch_size=batch_size,
        split_key="split",
        early_stopping=False,
        seed=seed,
        progress_bar=False,
        datasplitter_kwargs={"drop_last": True},
    )
    return model


def codes_of(model: SplitModel | None, mdata: MuData) -> dict[str, np.ndarray]:
    """Codes of all cells: ``Z_c`` of the cell, and ``Z_c`` and ``Z_s`` of the modalities, ``"x1:Z_c"`` and so on.

    Parameters
    ----------
    model
        None for the truth.
    mdata
        Its data.
    """
    if model is None:
        codes = {"Z_c": mdata.obsm["true_shared"]}
        for m, adata in mdata.mod.items():
            codes |= {f"{m}:Z_c": mdata.obsm["true_shared"], f"{m}:Z_s": adata.obsm["true_specific"]}
        return codes
    codes = {"Z_c": model.get_latent_representation()}
    for kind, key in {"shared": "Z_c", "specific": "Z_s"}.items():
        if kind in model.module.kinds:
            codes |= {f"{m}:{key}": model.get_latent_representation(kind=kind, modality=m) for m in mdata.mod}
    return codes


def probe_accuracy(z: np.ndarray, y: pd.Series, split: pd.Series, *, balanced: bool = False) -> float:
    """Accuracy on test cells of logistic regression (200 iterations) on standardised training codes.

    Parameters
    ----------
    z
        Codes ``(n_obs, d)``.
    y
        Labels; cells without one are left out.
    split
        ``train`` and ``test``.
    balanced
        Weight classes equally, in the fit and in the score.
    """
    y, known = y.astype("object").to_numpy(), y.notna().to_numpy()
    train, test = (known & (split == part).to_numpy() for part in ("train", "test"))
    classifier = LogisticRegression(max_iter=200, class_weight="balanced" if balanced else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 200 iterations are the paper's, converged or not
        probe = make_pipeline(StandardScaler(), classifier).fit(z[train], y[train].astype(str))
    truth, predicted = y[test].astype(str), probe.predict(z[test])
    return float(balanced_accuracy_score(truth, predicted) if balanced else np.mean(truth == predicted))


def probe_row(codes: dict[str, np.ndarray], mdata: MuData, data: str) -> dict[str, float]:
    """What the labels say.

    Parameters
    ----------
    codes
        Of :func:`codes_of`.
    mdata
        Data with labels and ``obs["split"]``.
    data
        ``"simulation"`` or ``"cells"``.
    """
    split = mdata.obs["split"]
    if data == "cells":
        judged = {"Z_c": codes["Z_c"]} | {f"Z_s {m}": codes[f"{m}:Z_s"] for m in mdata.mod if f"{m}:Z_s" in codes}
        if "label" not in mdata.obs:
            return {}
        labels = mdata.obs["label"]
        row = {f"label in {code}": probe_accuracy(z, labels, split, balanced=True) for code, z in judged.items()}
        return row | {"chance": 1 / labels.nunique()}
    first = next(iter(mdata.mod))
    side_by_side = np.hstack([codes[f"{m}:Z_c"] for m in mdata.mod])
    asked = [("[Z_c]", side_by_side, label) for label in LABELS] + [("Z_c", codes["Z_c"], label) for label in LABELS]
    if f"{first}:Z_s" in codes:
        asked += [("Z_s1", codes[f"{first}:Z_s"], label) for label in ("Y_s1", "Y_c")]
    return {f"{code}: {label}": probe_accuracy(z, mdata.obs[LABELS[label]], split) for code, z, label in asked}


def indiseek_row(model: SplitModel, mdata: MuData, seed: int) -> dict[str, float]:
    """What the codes of one of IndiSeek's settings hold.

    Parameters
    ----------
    model
        A fitted model.
    mdata
        Its data.
    seed
        Of draws and permutations.
    """
    train = (mdata.obs["split"] == "train").to_numpy()
    row = {"Z_c: R2 of c": r2(model.get_latent_representation(), mdata.obsm["true_shared"], train)}
    if "specific" not in model.module.kinds:
        return row
    found = measure(model, mdata, seed)
    names = {"importance": "importance", "dcor": "dCor(Z_s, c)", "dcor_null": "null", "r2_shared": "Z_s: R2 of c"}
    names |= {"r2_private": "Z_s: R2 private", "r2_private_nonlinear": "nonlinear"}
    return row | {shown: float(found[name]) for name, shown in names.items()}


def card_row(codes: dict[str, np.ndarray], mdata: MuData, data: str, max_obs: int) -> dict[str, Any]:
    """Leak into every specific code and coverage of every modality, with the card's words.

    The leak is the larger one of those of the other modality's shared code and of its data.

    Parameters
    ----------
    codes
        Of :func:`codes_of`.
    mdata
        Data with ``obs["split"]``.
    data
        ``"simulation"``, ``"indiseek"`` or ``"cells"``.
    max_obs
        Test cells that the card sees.
    """
    names = list(mdata.mod)
    for m, adata in mdata.mod.items():
        for key in ("Z_c", "Z_s"):
            if f"{m}:{key}" in codes:
                adata.obsm[key] = codes[f"{m}:{key}"]
    has_specific = f"{names[0]}:Z_s" in codes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        card = scorecard(
            mdata,
            "Z_c",
            "Z_s" if has_specific else None,
            split_key="split",
            estimators=ESTIMATORS[data],
            limits=False,
            max_obs=max_obs,
            key_added=None,
            progress=False,
        )
    table, row = card.table, {}
    for m in names:
        if has_specific:
            leaks = table[table["question"].eq("specific") & table["condition"].eq("all")]
            worst = leaks[leaks["code"].str.startswith(m)].sort_values("estimate").iloc[-1]
            row |= {f"leak {m}": float(worst["estimate"]), f"leak {m} is": worst["verdict"]}
        covered = table[table["question"].eq("complete") & table["against"].eq(m)]
        found = covered[covered["code"].eq("both")] if has_specific else covered
        word = found["verdict"].iloc[0].replace("no ceiling", "")  # the word for values that are no counts
        row |= {f"coverage {m}": float(found["estimate"].iloc[0]), f"coverage {m} is": word}
    return row


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, with the card's words; one line per method.

    Parameters
    ----------
    table
        Finished rows.
    """
    by = ["method"]
    lines = mean_and_deviation(table.drop(columns=["n_obs", "steps"], errors="ignore"), by).set_index(by)
    for column in [column for column in table if column.endswith(" is")]:
        words = table.dropna(subset=column).groupby(by, sort=False)[column].agg(lambda w: "/".join(sorted(set(w))))
        value = lines[column.removesuffix(" is")]
        lines[column.removesuffix(" is")] = (value + " " + words.reindex(lines.index).fillna("")).str.strip()
    measured = table.groupby(by, sort=False).mean(numeric_only=True)
    if "[Z_c]: Y_c" in measured and "truth" in measured.index:
        above = measured["[Z_c]: Y_c"] - 0.5
        lines.insert(2, "of the truth", (above / above["truth"]).map("{:.2f}".format))
    return lines.reset_index()


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and judge every method and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CITE-seq counts (.h5mu) in place of the simulation")
    parser.add_argument("--indiseek", type=int, choices=range(1, 6), help="IndiSeek's setting in place of it")
    parser.add_argument("--label", default="cell_type", help="obs column of the cell type; 'none' if there is none")
    parser.add_argument("--methods", nargs="+", default=DEFAULT_METHODS, choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n-obs", type=int, default=10_000, help="of the simulation")
    parser.add_argument("--noise", type=float, default=0.0, help="on the simulation's features, standard deviation")
    parser.add_argument("--steps", type=int, default=1_000, help="of every stage, about")
    parser.add_argument("--card-obs", type=int, default=2_000, help="cells that a scorecard sees")
    parser.add_argument("--no-card", action="store_true")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core

    if arguments.data is not None and arguments.indiseek is not None:
        parser.error("--data and --indiseek are two data sets: give one of them.")
    data = "cells" if arguments.data is not None else "simulation" if arguments.indiseek is None else "indiseek"
    label = None if arguments.label == "none" else arguments.label
    if data == "indiseek":
        mdata, source = simulate.indiseek(arguments.indiseek), f"indiseek {arguments.indiseek}"
    elif data == "cells":
        mdata, source = load_cells(arguments.data, label), arguments.data.stem
    else:
        mdata = load_simulation(arguments.n_obs, arguments.noise)
        source = f"simulation, noise {arguments.noise:g}" if arguments.noise else "simulation"
    names = []
    for name in arguments.methods:
        if METHODS[name].model and not hasattr(models, METHODS[name].model):
            print(f"{name}: unbraid.model has no {METHODS[name].model}, skipped.", file=sys.stderr)
        elif data == "simulation" or not (METHODS[name].whiten or name == "truth"):
            names.append(name)

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        fresh = mdata.copy()
        start = time.process_time()
        if row["method"] == "truth":
            model = None
        else:
            model = fit(fresh, row["method"], data=data, steps=arguments.steps, seed=row["seed"])
        seconds = time.process_time() - start
        codes = codes_of(model, fresh)
        judged = indiseek_row(model, fresh, row["seed"]) if data == "indiseek" else probe_row(codes, fresh, data)
        result = {**row, **judged}
        if not arguments.no_card:
            result |= card_row(codes, fresh, data, arguments.card_obs)
        yield {**result, "CPU seconds": seconds}

    asked = [
        {"data": source, "n_obs": mdata.n_obs, "steps": arguments.steps, "method": name, "seed": seed}
        for seed in range(arguments.seeds)
        for name in names
        if seed == 0 or name != "truth"
    ]
    print(to_markdown(summary(run_missing(asked, run, arguments.out))))


if __name__ == "__main__":
    main()
