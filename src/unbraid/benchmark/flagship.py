"""Unbraid beside its rivals where the truth is not linear, on CITE-seq counts, and on a drug screen.

Run it with::

    python -m unbraid.benchmark.flagship --seeds 5 --out nonlinear.csv
    python -m unbraid.benchmark.flagship --data citeseq.h5mu --label cell_type --seeds 5 --out cells.csv
    python -m unbraid.benchmark.flagship --data citeseq.h5mu --label cell_type --missing 0.33 --out missing.csv
    python -m unbraid.benchmark.flagship --data screen.h5mu --modalities mol atg --group scaffold --out drugs.csv

Networks of the rivals and steps are those of :mod:`unbraid.benchmark.contrastive_table`. Simulation
(:func:`~unbraid.data.simulate.nonlinear`): data and model share a seed; held-out R2 of a network that reads the true
shared latent (``c``) and the specific one (``s``) from the codes of the first modality. Data: retrieval among 1,000
test cells (all of a smaller test set) in both directions, mean; share of the variance of a modality's leading 50
principal components that a ridge regression on its shared code, its specific code and both explains; R2 of the *other*
modality's shared code from the specific one (leak); and balanced accuracy of the label from the codes. Unbraid and
LinearSplit retrieve by likelihood ratio, the others by cosine. ``totalVI`` and ``MOFA+`` (CITE-seq without ``--missing``)
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
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

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
    network = MLPRegressor(hidden_layer_sizes=(64, 64), early_stopping=True, max_iter=100, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(network.fit(z[train], y[train]).score(z[~train], y[~train]))


def simulation_row(model: SplitModel, mdata: MuData) -> dict[str, float]:
    """What the codes of the first modality hold of the true latents."""
    codes, train = codes_of(model, mdata), (mdata.obs["split"] == "train").to_numpy()
    first = next(iter(mdata.mod))
    truth = {"c": mdata.obsm["true_shared"], "s": mdata[first].obsm["true_specific"]}
    row = {}
    for key in ("Z_c", "Z_s"):
        if (z := codes.get(f"{first}:{key}")) is not None:
            row |= {f"{key}: {name}": true_r2(z, y, train) for name, y in truth.items()}
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
            row[f"{a} Z_s: {b} Z_c"] = _ridge_r2(both["Z_s"], whole[b, "Z_c"], train, test)
        row |= {f"{a} from {name}": _ridge_r2(z, targets[a], train, test) for name, z in both.items()}
    if "label" in mdata.obs:
        complete = mdata[np.flatnonzero(paired)].copy()
        row |= probe_row({key: _rows_of(mdata, key, z, paired) for key, z in codes.items()}, complete, "cells")
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


def _ridge_r2(z: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Share of the variance of test cells, all columns together, that a ridge regression explains."""
    z = StandardScaler().fit(z[train]).transform(z)
    error = y[test] - Ridge(1.0).fit(z[train], y[train]).predict(z[test])
    return float(1 - (error**2).sum() / ((y[test] - y[train].mean(axis=0)) ** 2).sum())


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
    parser.add_argument("--n-obs", type=int, default=8_000, help="of the simulation")
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

    def load(seed: int) -> MuData:
        if kind == "simulation":
            return simulate.nonlinear(arguments.n_obs, noise=arguments.noise, missing=arguments.missing, seed=seed)
        if kind == "cells":
            mdata = load_cells(arguments.data, arguments.label)
        else:
            mdata = load_screen(arguments.data, arguments.modalities, arguments.group)
        return without(mdata, list(mdata.mod)[1], arguments.missing, seed) if arguments.missing else mdata

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        mdata = load(row["seed"])
        start, name, model, codes = time.process_time(), row["method"], None, None
        if name in JOINT:
            codes = JOINT[name](mdata, arguments.steps, row["seed"])
        else:  # the input transforms of the simulation, and the widths of its codes
            model = fit(mdata, name, data="cells", steps=arguments.steps, seed=row["seed"])
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
        fixed |= {"n_obs": arguments.n_obs, "noise": arguments.noise}
    asked = [{**fixed, "method": name, "seed": s} for s in range(arguments.seeds) for name in arguments.methods]
    table = run_missing(asked, run, arguments.out)
    print(to_markdown(mean_and_deviation(table.drop(columns=[*fixed, "chosen"], errors="ignore"), ["method"])))


if __name__ == "__main__":
    main()
