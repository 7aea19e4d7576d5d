"""Unbraid beside its rivals where the truth is not linear, on CITE-seq counts, and on a drug screen.

Run it with::

    python -m unbraid.benchmark.flagship --seeds 5 --out nonlinear.csv
    python -m unbraid.benchmark.flagship --n-obs 500 1000 1500 --methods LinearSplit Unbraid CLIP --out small.csv
    python -m unbraid.benchmark.flagship --batch-size 512 128 32 --methods Unbraid --out batches.csv
    python -m unbraid.benchmark.flagship --data citeseq.h5mu --label cell_type --seeds 5 --out cells.csv
    python -m unbraid.benchmark.flagship --data citeseq.h5mu --label cell_type --missing 0.33 --out missing.csv
    python -m unbraid.benchmark.flagship --data screen.h5mu --modalities mol atg --group scaffold --out drugs.csv

Networks of the rivals and steps are those of :mod:`unbraid.benchmark.contrastive_table`. Simulation
(:func:`~unbraid.data.simulate.nonlinear`): data and model share a seed; held-out R2 of a network that reads the true
shared latent (``c``) and the specific one (``s``) from the codes of the first modality. With fewer than 4,000 cells all
are for training, and the network has 2,000 further ones to learn from and 2,000 to be read off. Data: retrieval among 1,000
test cells (all of a smaller test set) in both directions, mean; share of the variance of a modality's leading 50
principal components that a ridge regression on its shared code, its specific code and both explains; R2 of the *other*
modality's shared code from the specific one (leak); and balanced accuracy of the label from the codes. Each of these also
by a small network (``MLP``), which sees what is not linear. Unbraid and LinearSplit retrieve by likelihood ratio, the others by cosine. ``totalVI`` and ``MOFA+`` (CITE-seq without ``--missing``)
have one code of both modalities, which stands for either's shared one, and retrieve nothing; MOFA+ is given all cells.
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
import torch
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from unbraid._messages import suggest
from unbraid.benchmark._embeddings import mofa_codes, totalvi_codes
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.contrastive_table import METHODS, codes_of, fit, load_cells, probe_row
from unbraid.data import simulate
from unbraid.metrics import retrieval
from unbraid.model import LinearSplit, Unbraid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

    from unbraid.model.base import SplitModel

DEFAULT_METHODS = [
    "LinearSplit", "Unbraid", "CLIP", "CLIP deep CCA", "DisentangledSSL", "JointOpt", "FOCAL", "IndiSeek",
    "IndiSeek residual",
]  # fmt: skip
MAX_TARGETS = 1_000
FEW_CELLS = 4_000  # of the simulation; from fewer probes learn little
NETWORK = {"hidden_layer_sizes": (64, 64), "early_stopping": True, "max_iter": 100, "random_state": 0}  # of probes
N_JOINT = 32  # dimensions of totalVI and MOFA+, as many as the rivals' two codes of a modality

# codes of the cells by methods of other packages: data, steps, seed
JOINT = {
    "totalVI": lambda mdata, steps, seed: totalvi_codes(mdata, n_latent=N_JOINT, steps=steps, seed=seed),
    "MOFA+": lambda mdata, steps, seed: mofa_codes(mdata, n_factors=N_JOINT, seed=seed),
}


def true_r2(z: np.ndarray, y: np.ndarray, train: np.ndarray) -> float:
    """Held-out R2 of a two-layer network, mean over the columns of ``y``.

    Parameters
    ----------
    z
        Code ``(n_obs, d)``.
    y
        True latent ``(n_obs, k)``.
    train
        Which rows the network learns from.
    """
    z = StandardScaler().fit(z[train]).transform(z)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(MLPRegressor(**NETWORK).fit(z[train], y[train]).score(z[~train], y[~train]))


def load_simulation(n_obs: int, *, noise: float, missing: float, seed: int) -> MuData:
    """Non-linear mixtures with ``obs["split"]`` for models and ``obs["probe"]`` for what reads their codes.

    Parameters
    ----------
    n_obs
        Cells, a fifth for testing; if fewer than 4,000, all are for training, and 4,000 more are for the probes.
    noise, missing, seed
        Of :func:`~unbraid.data.simulate.nonlinear`.
    """
    n_more = FEW_CELLS if n_obs < FEW_CELLS else 0
    mdata = simulate.nonlinear(n_obs + n_more, noise=noise, missing=missing, seed=seed)
    mdata.obs["probe"] = mdata.obs["split"].astype(str)
    if n_more:
        number = np.arange(mdata.n_obs) - n_obs
        mdata.obs["split"] = pd.Categorical(np.where(number < 0, "train", "test"))
        mdata.obs["probe"] = np.where(number < 0, "none", np.where(number < n_more // 2, "train", "test"))
    return mdata


def simulation_row(model: SplitModel, mdata: MuData) -> dict[str, float]:
    """What the codes of the first modality hold of the true latents, on the cells that have it.

    Parameters
    ----------
    model
        A fitted model.
    mdata
        Its data; probes learn from the cells with ``obs["probe"] == "train"`` and are read off the ``"test"`` ones.
    """
    codes, first = codes_of(model, mdata), next(iter(mdata.mod))
    cells = mdata.obs_names.get_indexer(mdata[first].obs_names)
    part = mdata.obs["probe"].to_numpy()[cells]
    judged, train = part != "none", part == "train"
    truth = {"c": mdata.obsm["true_shared"][cells], "s": mdata[first].obsm["true_specific"]}
    row = {}
    for key in ("Z_c", "Z_s"):
        if (z := codes.get(f"{first}:{key}")) is not None:
            row |= {f"{key}: {name}": true_r2(z[judged], y[judged], train[judged]) for name, y in truth.items()}
            row[f"{key} dimensions"] = z.shape[1]
    return row


def data_row(
    codes: dict[str, np.ndarray],
    mdata: MuData,
    targets: dict[str, np.ndarray],
    model: SplitModel | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Retrieval, explained variance, leak and label on test cells that have both modalities.

    Parameters
    ----------
    codes
        Of :func:`~unbraid.benchmark.contrastive_table.codes_of`.
    mdata
        Data of two modalities with ``obs["split"]``.
    targets
        Per modality, its leading principal components, ``(n_obs, k)``; NaN for cells without it.
    model
        The fitted model, to retrieve with.
    seed
        Of the cells to retrieve.
    """
    m, n = mdata.mod
    rows = {a: mdata[a].obs_names.get_indexer(mdata.obs_names) for a in (m, n)}
    whole = {}
    for a in (m, n):
        for key in ("Z_c", "Z_s"):
            if f"{a}:{key}" in codes:  # of the modality's cells; NaN for the others
                values = np.full((mdata.n_obs, codes[f"{a}:{key}"].shape[1]), np.nan, dtype=np.float32)
                values[rows[a] >= 0] = codes[f"{a}:{key}"][rows[a][rows[a] >= 0]]
                whole[a, key] = values
    paired = (rows[m] >= 0) & (rows[n] >= 0)
    train, test = (paired & (mdata.obs["split"] == part).to_numpy() for part in ("train", "test"))
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(test))[:MAX_TARGETS]
    row: dict[str, float] = {} if model is None else _retrieved(model, mdata, whole, chosen)
    for a, b in ((m, n), (n, m)):
        both = {"Z_c": whole[a, "Z_c"]}
        if (a, "Z_s") in whole:
            both |= {"Z_s": whole[a, "Z_s"], "both": np.hstack([whole[a, "Z_c"], whole[a, "Z_s"]])}
            row |= _explained(f"{a} Z_s: {b} Z_c", both["Z_s"], whole[b, "Z_c"], train, test)
        for name, z in both.items():
            row |= _explained(f"{a} from {name}", z, targets[a], train, test)
    if "label" in mdata.obs:
        complete = mdata[np.flatnonzero(paired)].copy()
        known = {key: _rows_of(mdata, key, z, paired) for key, z in codes.items()}
        row |= probe_row(known, complete, "cells")
        judged = {"Z_c": known["Z_c"]} | {f"Z_s {a}": known[f"{a}:Z_s"] for a in (m, n) if f"{a}:Z_s" in known}
        row |= {f"label in {code} (MLP)": _network_accuracy(z, complete.obs) for code, z in judged.items()}
    return row


def _rows_of(mdata: MuData, key: str, z: np.ndarray, paired: np.ndarray) -> np.ndarray:
    if ":" not in key:
        return z[paired]
    position = mdata[key.split(":")[0]].obs_names.get_indexer(mdata.obs_names)
    return z[position[paired]]


def _retrieved(model: SplitModel, mdata: MuData, whole: dict, chosen: np.ndarray) -> dict[str, float]:
    """Top-1, top-10 and mean reciprocal rank, mean of both directions."""
    results = []
    for a, b in (model.modalities, model.modalities[::-1]):
        if isinstance(model, LinearSplit | Unbraid):
            query = model.get_retrieval_representation(a, indices=chosen)
            target, metric = model.get_retrieval_representation(b, role="target", indices=chosen), "dot"
        else:
            query, target, metric = whole[a, "Z_c"][chosen], whole[b, "Z_c"][chosen], "cosine"
        found = retrieval(query, target, metric=metric, top=(1, 10))
        results.append({"top-1": found.top[1], "top-10": found.top[10], "MRR": found.mrr})
    return {name: float(np.mean([result[name] for result in results])) for name in results[0]}


def _explained(name: str, z: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Share of the variance of test cells, all columns together, that a ridge regression and a network explain."""
    z, scale = StandardScaler().fit(z[train]).transform(z), y[train].std()
    total, found = ((y[test] - y[train].mean(axis=0)) ** 2).sum(), {}
    for label, regression in {name: Ridge(1.0), f"{name} (MLP)": MLPRegressor(**NETWORK)}.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predicted = regression.fit(z[train], y[train] / scale).predict(z[test]) * scale
        found[label] = float(1 - ((y[test] - predicted.reshape(y[test].shape)) ** 2).sum() / total)
    return found


def _network_accuracy(z: np.ndarray, obs: pd.DataFrame) -> float:
    """Balanced accuracy of the label on test cells by a network in which all classes weigh alike."""
    label, known = obs["label"].astype("object"), obs["label"].notna()
    train, test = (known & (obs["split"] == part) for part in ("train", "test"))
    z = StandardScaler().fit(z[train]).transform(z)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = MLPClassifier(**NETWORK).fit(
            z[train], label[train], sample_weight=compute_sample_weight("balanced", label[train])
        )
        return float(balanced_accuracy_score(label[test], network.predict(z[test])))


def load_screen(path: Path, modalities: Sequence[str], group: str | None) -> MuData:
    """Two modalities of a screen, the rest of the columns dropped; whole groups (scaffolds) are test ones.

    Parameters
    ----------
    path
        MuData file.
    modalities
        Names; ``"a+b"`` puts two side by side as one.
    group
        ``obs`` column, of which a quarter of the groups but no very large one are for testing; None draws single ones.

    Raises
    ------
    KeyError
        If a modality or the column is not there.
    """
    given = mudata.read_h5mu(path)
    mod = {}
    for name in modalities:
        parts = name.split("+")
        for part in parts:
            if part not in given.mod:
                raise KeyError(f"No modality {part!r} in the MuData. {suggest(part, given.mod)}")
        dense = [np.asarray(p.toarray() if hasattr(p := given[part].X, "toarray") else p) for part in parts]
        x = np.hstack(dense).astype(np.float32)
        x = x[:, np.isfinite(x).all(axis=0) & (x.std(axis=0) > 0)]
        names = [f"{name}:{k}" for k in range(x.shape[1])]
        mod[name] = AnnData(x, pd.DataFrame(index=given[parts[0]].obs_names), pd.DataFrame(index=names))
    mdata = mudata.MuData(mod)
    labels = np.arange(mdata.n_obs).astype(str)
    if group is not None:
        obs = [frame for frame in (given.obs, *(given[m].obs for m in given.mod)) if group in frame]
        if not obs:
            raise KeyError(f"No column {group!r} in obs. {suggest(group, given.obs)}")
        labels = obs[0].loc[mdata.obs_names, group].astype(str).to_numpy()
    names, count = np.unique(labels, return_counts=True)
    order = np.random.default_rng(0).permutation(len(names))
    small = order[count[order] < max(0.04 * mdata.n_obs, 2)]
    test = names[small[np.cumsum(count[small]) <= 0.25 * mdata.n_obs]]
    mdata.obs["split"] = pd.Categorical(np.where(np.isin(labels, test), "test", "train"))
    return mdata


def without(mdata: MuData, modality: str, share: float, seed: int) -> MuData:
    """Cells of which a share, train and test alike, lack a modality."""
    lacking = np.random.default_rng(seed).random(mdata.n_obs) < share
    mod = {m: (a[~lacking].copy() if m == modality else a.copy()) for m, a in mdata.mod.items()}
    result = mudata.MuData(mod)
    for column in ("split", "label"):
        if column in mdata.obs:
            result.obs[column] = mdata.obs[column].reindex(result.obs_names)
    return result


def principal_targets(mdata: MuData) -> dict[str, np.ndarray]:
    """Leading 50 principal components of what models see of every modality, fitted to training cells.

    Parameters
    ----------
    mdata
        The data; left as they are.
    """
    given = mdata.copy()
    LinearSplit.setup_mudata(given)  # for its input transforms, which are everyone's
    model = LinearSplit(given)
    dataset = model.adata_manager.create_torch_dataset()
    train, targets = (mdata.obs["split"] == "train").to_numpy(), {}
    batch = dataset[np.arange(mdata.n_obs)]
    inputs = model.module.inputs(batch)
    for m, x in inputs.items():
        has = batch["mask"][m].numpy()
        values = np.full((mdata.n_obs, min(50, x.shape[1])), np.nan, dtype=np.float32)
        components = PCA(values.shape[1], random_state=0).fit(x.numpy()[train & has])
        values[has] = components.transform(x.numpy()[has])
        targets[m] = values
    return targets


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and judge every method and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="MuData file (.h5mu) in place of the simulation")
    parser.add_argument("--label", help="obs column of the cell type: the file holds CITE-seq counts")
    parser.add_argument("--modalities", nargs=2, help="of a file without a label; 'a+b' puts two side by side")
    parser.add_argument("--group", help="obs column of groups that stay together in the split")
    parser.add_argument("--missing", type=float, default=0.0, help="share of cells without the second modality")
    parser.add_argument("--methods", nargs="+", default=DEFAULT_METHODS, choices=[*METHODS, *JOINT])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n-obs", type=int, nargs="+", default=[8_000], help="of the simulation")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[None], help="cells of a step of every method")
    parser.add_argument("--noise", type=float, default=0.1, help="of the simulation")
    parser.add_argument("--steps", type=int, default=1_000, help="of every stage of the rivals, about")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core
    if arguments.data is not None and not (arguments.label or arguments.modalities):
        parser.error("--data needs --label (CITE-seq) or --modalities (a screen)")
    kind = "simulation" if arguments.data is None else "cells" if arguments.label else "screen"
    if (kind != "cells" or arguments.missing) and not set(JOINT).isdisjoint(arguments.methods):
        parser.error(f"{' and '.join(JOINT)} are for CITE-seq counts of which none are missing.")

    def load(seed: int, n_obs: int | None) -> MuData:
        if kind == "simulation":
            return load_simulation(n_obs, noise=arguments.noise, missing=arguments.missing, seed=seed)
        if kind == "cells":
            mdata = load_cells(arguments.data, arguments.label)
        else:
            mdata = load_screen(arguments.data, arguments.modalities, arguments.group)
        return without(mdata, list(mdata.mod)[1], arguments.missing, seed) if arguments.missing else mdata

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        mdata = load(row["seed"], row.get("n_obs"))
        start, name, model, codes = time.process_time(), row["method"], None, None
        if name in JOINT:
            codes = JOINT[name](mdata, arguments.steps, row["seed"])
        else:  # the input transforms of the simulation, and the widths of its codes
            options = {
                "steps": arguments.steps,
                "seed": row["seed"],
                "batch_size": row["batch_size"] if row["batch_size"] != "default" else None,
            }
            model = fit(mdata, name, data="cells", **options)
        seconds = time.process_time() - start
        if kind == "simulation":
            found = simulation_row(model, mdata)
        else:
            codes = codes or codes_of(model, mdata)
            found = data_row(codes, mdata, principal_targets(mdata), model, row["seed"])
        if isinstance(model, Unbraid):
            found["chosen"] = model.report().chosen
        yield {**row, **found, "CPU seconds": seconds}

    source = kind if arguments.data is None else arguments.data.stem
    fixed = {"data": source, "missing": arguments.missing, "steps": arguments.steps}
    if kind == "simulation":
        fixed["noise"] = arguments.noise
    sizes = [{"n_obs": n} for n in arguments.n_obs] if kind == "simulation" else [{}]
    asked = [
        {**fixed, **size, "batch_size": batch_size or "default", "method": name, "seed": seed}  # a file has no None
        for size in sizes
        for batch_size in arguments.batch_size
        for seed in range(arguments.seeds)
        for name in arguments.methods
    ]
    table = run_missing(asked, run, arguments.out)
    by = [c for c in ("n_obs", "batch_size") if c in table and table[c].nunique() > 1] + ["method"]
    left_out = [c for c in [*fixed, "n_obs", "batch_size", "chosen"] if c not in by]
    print(to_markdown(mean_and_deviation(table.drop(columns=left_out, errors="ignore"), by)))


if __name__ == "__main__":
    main()
