"""Clusters that pairs of cells ask for: DL2, CMVAE and the constrained clustering baselines, by pairs, weights and noise.

Run it with::

    python -m unbraid.benchmark.pairs --fraction 0.1 --seeds 3 --out tenth.csv
    python -m unbraid.benchmark.pairs --methods DL2 --must-link-weights 0 0.01 0.1 1 --out lambda.csv
    python -m unbraid.benchmark.pairs --methods DL2 --noise 0.2 --out noise.csv
    python -m unbraid.benchmark.pairs --methods DL2 --noise 0.2 --trusted --out trusted.csv

Data are :func:`unbraid.data.simulate.two_factors`: two shared factors of ten classes, of which pairs of training cells
name one, the task's. Accuracy (ACC), NMI and ARI of the clusters of test cells with the task's classes, NMI with those
of the other factor, number of clusters that are used; accuracy of k-means on the code that is clustered. Probes: accuracy
of logistic regression on test cells, from the part of the shared code that is the task's (``t``), the rest (``r``), both
(``z``), the specific codes (``w``, mean over modalities) and all of a modality's (``u``), of the task (``T``) and of the
other factor (``R``); by chance .1. ``drawn``: from samples of the posteriors, which are what the decoders see.
Generation: how often a classifier of real data finds both classes in a modality decoded from another one's shared code
(``cross``, the product of both, as DL2 reports), and how often all modalities of a new cell agree (``joint``). Data and
model share a seed.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from unbraid import model as models
from unbraid import pp, tl
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.contrastive_table import probe_accuracy
from unbraid.benchmark.generative import translated
from unbraid.data import simulate
from unbraid.metrics import clustering, coherence
from unbraid.model.base import GenerativeModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

    from unbraid.model.base import SplitModel


@dataclass(frozen=True)
class Method:
    """A model with the options of one line of the table."""

    model: str
    options: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "DL2": Method("DL2"),
    "DL2 without z_r (DL)": Method("DL2", {"n_residual": 0}),
    "DL2, common cause (DL2*)": Method("DL2", {"must_link": "common_cause"}),
    "DL2, must-links only": Method("DL2", {"cannot_link_weight": 0.0}),
    "DL2, cannot-links only": Method("DL2", {"must_link_weight": 0.0}),
    "DL2, clusters by gradient": Method("DL2", {"place_clusters": False}),
    "DL2, coupled": Method("DL2", {"coupled": True}),
    "DL2, swap and own scales": Method("DL2", {"swap": True, "likelihood_scale": "own"}),
    "CMVAE": Method("CMVAE"),
    "CMVAE, clusters by gradient": Method("CMVAE", {"place_clusters": False}),
    "MMVAE+": Method("MMVAEPlus"),
    "VaDE": Method("VaDE"),
    "DC-GMM": Method("DCGMM"),
    "SDEC": Method("SDEC"),
    "C-IDEC": Method("CIDEC"),
    "VolMaxDCC": Method("VolMaxDCC"),
}
CLOSED = ("k-means", "constrained k-means", "RCA + k-means", "PCA, RCA + k-means")
N_LATENT = 8
N_COMPONENTS = 30


def add_pairs(mdata: MuData, fraction: float, noise: float, seed: int, key: str = "y_task") -> None:
    """Pairs of training cells, as many as ``fraction`` of all cells, labelled by the task's classes."""
    mdata.obs["known"] = mdata.obs[key].where(mdata.obs["split"] == "train")
    pp.pairs_from_labels(mdata, "known", fraction=fraction, noise=noise, seed=seed)


def fit(
    mdata: MuData,
    method: Method,
    steps: int,
    seed: int,
    n_clusters: int,
    *,
    n_latent: int = N_LATENT,
    lr: float = 2e-3,
    setup: dict[str, Any] | None = None,
    **options: Any,
) -> SplitModel:
    """Train a method on the training cells and, if it takes pairs, on theirs.

    Parameters
    ----------
    mdata
        Data with ``obs["split"]`` and ``obsp["pairs"]``.
    method
        Which.
    steps
        Of all stages together, about, with batches of 128; where there are two, the first has two fifths.
    seed
        Of weights and training.
    n_clusters
        Number of clusters.
    n_latent
        Dimensions of every part of the latent; of a shared latent without parts, twice as many.
    lr
        Learning rate.
    setup
        Of ``setup_mudata``, in addition.
    **options
        Of the model, in addition.
    """
    model_class = getattr(models, method.model)
    vae = issubclass(model_class, GenerativeModel)
    model_class.setup_mudata(mdata, **({"pairs_key": "pairs"} if model_class._takes_pairs else {}), **(setup or {}))
    sizes = {"n_hidden": 128} | ({"n_specific": n_latent} if vae else {})
    sizes |= {"n_task": n_latent, "n_residual": n_latent} if method.model == "DL2" else {"n_shared": 2 * n_latent}
    sizes |= {} if method.model == "MMVAEPlus" else {"n_clusters": n_clusters}
    torch.manual_seed(seed)
    model = model_class(mdata, **{**sizes, **method.options, **options})
    names = [stage.name for stage in model.module.stages]
    shares = [0.4, 0.6] if len(names) == 2 else [1.0]
    epochs = steps * 128 / (mdata.obs["split"] == "train").sum()
    model.train(
        max_epochs={name: max(1, round(share * epochs)) for name, share in zip(names, shares, strict=True)},
        batch_size=128, lr=lr, split_key="split", early_stopping=False, seed=seed, progress_bar=False,
        accelerator="cpu",
    )  # fmt: skip
    return model


def principal_components(mdata: MuData) -> np.ndarray:
    """Principal components of cells, whose modalities lie side by side."""
    return PCA(N_COMPONENTS, svd_solver="covariance_eigh").fit_transform(np.hstack([mdata[m].X for m in mdata.mod]))


def trust(mdata: MuData, n_clusters: int, seed: int) -> None:
    """Leave out of ``obsp["pairs"]`` what :func:`unbraid.tl.trusted_pairs` does not trust."""
    found = tl.trusted_pairs(principal_components(mdata), mdata.obsp["pairs"], n_clusters, seed=seed)
    mdata.obsp["pairs"] = found.matrix(mdata.n_obs)


def closed_form(mdata: MuData, name: str, n_clusters: int, seed: int) -> np.ndarray:
    """Clusters of cells, whose modalities lie side by side, in closed form; k-means is fitted to the training cells."""
    x = principal_components(mdata) if name.startswith("PCA") else np.hstack([mdata[m].X for m in mdata.mod])
    if name == "constrained k-means":
        return tl.constrained_kmeans(x, mdata.obsp["pairs"], n_clusters, seed=seed)
    if "RCA" in name:
        x = tl.relevant_components(x, mdata.obsp["pairs"], n_components=n_clusters - 1)
    train = (mdata.obs["split"] == "train").to_numpy()
    return KMeans(n_clusters, n_init=10, random_state=seed).fit(x[train]).predict(x)


def cluster_row(found: np.ndarray, code: np.ndarray | None, mdata: MuData, seed: int) -> dict[str, float]:
    """How clusters of test cells agree with both factors."""
    test = (mdata.obs["split"] == "test").to_numpy()
    task, other = (mdata.obs[key][test] for key in ("y_task", "y_residual"))
    judged = clustering(None, task, clusters=found[test], n_permutations=0)
    row = {"ACC": judged.acc, "NMI": judged.nmi, "ARI": judged.ari}
    row["NMI other"] = clustering(None, other, clusters=found[test], n_permutations=0).nmi
    row["used"] = float(len(np.unique(found[test])))
    if code is not None:
        row["k-means ACC"] = clustering(code[test], task, n_seeds=1, n_permutations=0, seed=seed).acc
    return row


def probe_row(model: SplitModel, mdata: MuData, seed: int) -> dict[str, float]:
    """What the codes tell of both factors: posterior means, and of generative models also samples of the posteriors."""
    row = _probes(model, mdata)
    if isinstance(model, GenerativeModel):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            row |= {f"{name} drawn": score for name, score in _probes(model, mdata, give_mean=False).items()}
    return row


def _probes(model: SplitModel, mdata: MuData, **options: Any) -> dict[str, float]:
    kinds, read = model.module.kinds, partial(model.get_latent_representation, **options)
    shared = read()
    codes = {"t": [(mdata.obs, shared)]}
    if "task" in kinds:
        # of the same draw, as a cell's task and residual codes have separate ones otherwise
        n_task = model.module.n_task
        codes = {"t": [(mdata.obs, shared[:, :n_task])]}
        if "residual" in kinds:
            codes |= {"r": [(mdata.obs, shared[:, n_task:])], "z": [(mdata.obs, shared)]}
    if "specific" in kinds:
        having = {m: mdata.obs_names.get_indexer(adata.obs_names) for m, adata in mdata.mod.items()}
        own = {m: read(kind="specific", modality=m) for m in having}
        codes["w"] = [(mdata.obs.iloc[cells], own[m]) for m, cells in having.items()]
        codes["u"] = [(mdata.obs.iloc[cells], np.hstack([shared[cells], own[m]])) for m, cells in having.items()]
    return {
        f"{name}: {letter}": float(np.mean([probe_accuracy(z, obs[key], obs["split"]) for obs, z in of]))
        for name, of in codes.items()
        for letter, key in {"T": "y_task", "R": "y_residual"}.items()
    }


def linear_readers(mdata: MuData) -> dict[str, dict[str, LogisticRegression]]:
    """Classifiers of both factors from the real training cells of every modality."""
    found: dict[str, dict[str, LogisticRegression]] = {"y_task": {}, "y_residual": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for m, adata in mdata.mod.items():
            train = (mdata.obs["split"] == "train").reindex(adata.obs_names).to_numpy()
            for key, readers in found.items():
                y = mdata.obs[key].astype(str).reindex(adata.obs_names).to_numpy()
                readers[m] = LogisticRegression(max_iter=300).fit(adata.X[train], y[train])
    return found


class Generated(NamedTuple):
    """What a model makes of test cells: by modality of the shared code and decoded modality, and new cells by modality."""

    crossed: dict[tuple[str, str], np.ndarray]
    new: dict[str, np.ndarray]


def generate(model: GenerativeModel, mdata: MuData, seed: int) -> Generated:
    """Every modality decoded from every other one's shared code of the test cells, and as many new cells."""
    test = np.flatnonzero(mdata.obs["split"] == "test")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        crossed = translated(model, test)
        new = model.sample(len(test), give_mean=True)
    return Generated(crossed, {m: new[m].X for m in new.mod})


def coherence_row(generated: Generated, mdata: MuData, classifiers: dict) -> dict[str, float]:
    """Both classes in what is decoded from other modalities' shared codes, and in new cells."""
    test = (mdata.obs["split"] == "test").to_numpy()
    labels = {key: mdata.obs[key][test].astype(str).to_numpy() for key in classifiers}
    found = coherence(generated.crossed, labels, classifiers, unconditional=generated.new).table
    value = lambda kind: float(found.query("kind == @kind and attribute == 'product'")["coherence"].iloc[0])
    return {"cross": value("cross"), "joint": value("unconditional")}


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and judge every method and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*CLOSED, *METHODS]
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-obs", type=int, default=10_000)
    parser.add_argument("--fraction", type=float, nargs="+", default=[0.1], help="pairs per cell")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0], help="share of wrong pairs")
    parser.add_argument("--trusted", action="store_true", help="only the pairs of unbraid.tl.trusted_pairs")
    parser.add_argument("--must-link-weights", type=float, nargs="+", help="of DL2, lambda")
    parser.add_argument("--cannot-link-weights", type=float, nargs="+", help="of DL2, gamma")
    parser.add_argument("--nonlinear", action="store_true", help="factors pass through a random network")
    parser.add_argument("--missing", type=float, default=0.0, help="share of cells that lack one modality")
    parser.add_argument("--steps", type=int, default=1_000, help="of all stages together, about")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core
    weights = {"must-link weight": arguments.must_link_weights, "cannot-link weight": arguments.cannot_link_weights}

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        simulated = {"nonlinear": row["nonlinear"], "missing": row["missing"], "seed": row["seed"]}
        mdata = simulate.two_factors(row["n_obs"], **simulated)
        add_pairs(mdata, row["fraction"], row["noise"], row["seed"])
        start = time.process_time()
        if row["trusted"]:
            trust(mdata, 10, row["seed"])
        if row["method"] in CLOSED:
            found = closed_form(mdata, row["method"], 10, row["seed"])
            yield {**row, **cluster_row(found, None, mdata, row["seed"]), "CPU seconds": time.process_time() - start}
            return
        given = {name.replace("-", "_").replace(" ", "_"): row[name] for name in weights if not np.isnan(row[name])}
        model = fit(mdata, METHODS[row["method"]], row["steps"], row["seed"], 10, **given)
        seconds = time.process_time() - start
        code = model.get_latent_representation(kind="task" if "task" in model.module.kinds else "shared")
        row = {**row}
        if hasattr(model, "predict_cluster"):
            row |= cluster_row(model.predict_cluster(), code, mdata, row["seed"])
        row |= probe_row(model, mdata, row["seed"])
        if isinstance(model, GenerativeModel):
            row |= coherence_row(generate(model, mdata, row["seed"]), mdata, linear_readers(mdata))
        yield {**row, "CPU seconds": seconds}

    fixed = {key: getattr(arguments, key) for key in ("n_obs", "nonlinear", "missing", "trusted", "steps")}
    asked = [
        {**fixed, "method": name, "fraction": f, "noise": n, "must-link weight": a, "cannot-link weight": b, "seed": s}
        for s in range(arguments.seeds)
        for f in arguments.fraction
        for n in arguments.noise
        for a in weights["must-link weight"] or [np.nan]
        for b in weights["cannot-link weight"] or [np.nan]
        for name in arguments.methods
    ]
    table = run_missing(asked, run, arguments.out)
    by = ["method", *(c for c in ("fraction", "noise", *weights) if table[c].nunique() > 1)]
    left = table.drop(columns=[c for c in (*fixed, "fraction", "noise", *weights) if c not in by])
    print(to_markdown(mean_and_deviation(left, by)))


if __name__ == "__main__":
    main()
