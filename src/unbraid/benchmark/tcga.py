"""What codes of tumours tell of a label: accuracy, area under the ROC curve and majority rate, as IDMVAE's tables 4 and 7.

Run it with one of::

    python -m unbraid.benchmark.tcga --data FINAL --out tcga.csv
    python -m unbraid.benchmark.tcga --data breast.h5mu --label subtype --steps 300 --out breast.csv

``--data`` are files for :func:`unbraid.data.datasets.tcga_mortality`, split anew by every seed, or a MuData with a label in
``obs``, whose own ``split`` is kept. As in the paper a logistic regression is fitted on the standardised
codes (posterior means) of every modality, and their log-odds are averaged: of z, of w, and of both side by side.
Networks and weights are the paper's for TCGA: 16 + 32 dimensions, width 128, beta 2.5, Adam at 5e-4. IDMVAE chose
weights and epochs on validation data, and other epochs for every row of its ablation; here all train equally long.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import torch
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from unbraid import model as models
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.generative import Method
from unbraid.data.datasets import tcga_mortality

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from mudata import MuData

    from unbraid.model.base import SplitModel

_vae = {"beta": 2.5, "n_hidden": 128}
_idmvae = {"preset": "tcga", "n_hidden": 128}
METHODS = {
    "LinearSplit": Method("LinearSplit"),
    "DisentangledSSL": Method("DisentangledSSL"),
    "MMVAE": Method("MMVAE", _vae),
    "MoPoE-VAE": Method("MoPoEVAE", _vae),
    "DMVAE": Method("DMVAE", _vae),
    "MMVAE+": Method("MMVAEPlus", _vae),
    "IDMVAE": Method("IDMVAE", _idmvae),
    "IDMVAE without CrossMI": Method("IDMVAE", {**_idmvae, "cross_information_weight": 0.0}),
    "IDMVAE without GenAug": Method("IDMVAE", {**_idmvae, "augmentation_weight": 0.0}),
    "IDMVAE, diffusion added": Method("IDMVAE", {**_idmvae, "diffusion": "additive"}),
    "SwapVAE": Method("SwapVAE", {"n_hidden": 128}),
}
N_SHARED, N_SPECIFIC = 16, 32


def fit(mdata: MuData, method: Method, steps: int, seed: int) -> SplitModel:
    """Train a method on the training rows.

    Parameters
    ----------
    mdata
        With ``obs["split"]``.
    method
        Model and options.
    steps
        Of every stage, about, with batches of 128.
    seed
        Of weights and training.
    """
    model_class = getattr(models, method.model)
    generative = issubclass(model_class, models.base.GenerativeModel)
    model_class.setup_mudata(mdata, **({"likelihoods": dict.fromkeys(mdata.mod, "laplace")} if generative else {}))
    if method.model == "LinearSplit":
        model = model_class(mdata)
        model.train(split_key="split", seed=seed)
        return model
    specific = {} if method.model in ("MMVAE", "MoPoEVAE") else {"n_specific": N_SPECIFIC}
    torch.manual_seed(seed)
    model = model_class(mdata, n_shared=N_SHARED, **specific, **method.options)
    n_train = int((mdata.obs["split"] == "train").sum())
    epochs = max(1, round(steps * min(128, n_train) / n_train))
    model.train(
        max_epochs=epochs, batch_size=min(128, n_train), lr=5e-4, split_key="split", early_stopping=False, seed=seed,
        progress_bar=False, accelerator="cpu",
    )  # fmt: skip
    return model


def codes_of(model: SplitModel, mdata: MuData) -> dict[str, dict[str, np.ndarray]]:
    """Codes by kind and modality, NaN for rows that lack the modality."""
    kinds = {"z": "shared", "w": "specific"}
    found = {
        name: {m: model.get_latent_representation(kind=kind, modality=m) for m in mdata.mod}
        for name, kind in kinds.items()
        if kind in model.module.kinds
    }
    if len(found) == 2:
        found["z, w"] = {m: np.hstack([found["z"][m], found["w"][m]]) for m in mdata.mod}
    return found


def inputs_of(mdata: MuData) -> dict[str, np.ndarray]:
    """The features themselves, NaN for rows that lack the modality."""
    return {m: adata.to_df().reindex(mdata.obs_names).to_numpy() for m, adata in mdata.mod.items()}


def score(codes: dict[str, np.ndarray], label: pd.Series, split: pd.Series) -> dict[str, float]:
    """Accuracy and area under the curve on test rows, from the mean of the modalities' log-odds.

    Parameters
    ----------
    codes
        By modality, ``(n_obs, d)``; rows of NaN are left out of a modality.
    label
        Classes; rows without one are left out.
    split
        ``train`` and ``test``.
    """
    y, known = label.astype("object").to_numpy(), label.notna().to_numpy()
    train, test = (known & (split == part).to_numpy() for part in ("train", "test"))
    classes = np.unique(y[train].astype(str))
    logits = np.zeros((test.sum(), len(classes)))
    count = np.zeros((test.sum(), 1))
    for z in codes.values():
        there = ~np.isnan(z).any(axis=1)
        rows = train & there
        if not (test & there).any():
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000)).fit(z[rows], y[rows].astype(str))
        seen = there[test]
        found = probe.decision_function(z[test & there])
        found = np.column_stack([np.zeros(len(found)), found]) if found.ndim == 1 else log_softmax(found, axis=1)
        columns = np.searchsorted(classes, probe.classes_)
        logits[np.ix_(seen, columns)] += found
        count[seen] += 1
    chance = softmax(logits / np.maximum(count, 1), axis=1)
    truth = y[test].astype(str)
    auroc = roc_auc_score(truth, chance[:, 1]) if len(classes) == 2 else roc_auc_score(truth, chance, multi_class="ovr")
    return {"accuracy": float((classes[chance.argmax(1)] == truth).mean()), "AUROC": float(auroc)}


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and judge every method and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="the prepared TCGA (a folder or an .npz), or an .h5mu with `split` in obs",
    )
    parser.add_argument("--label", default="mortality_1yr", help="obs column")
    parser.add_argument("--modalities", nargs="+", default=["mrna", "mirna"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3_500, help="of every stage, about")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core

    def load(seed: int) -> MuData:
        if arguments.data.suffix != ".h5mu":
            return tcga_mortality(arguments.data, modalities=arguments.modalities, seed=seed)
        whole = mudata.read_h5mu(arguments.data)
        mdata = mudata.MuData({m: whole[m] for m in arguments.modalities})
        mdata.obs[["split", arguments.label]] = whole.obs[["split", arguments.label]].loc[mdata.obs_names]
        return mdata

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        mdata = load(row["seed"])
        label, split = mdata.obs[arguments.label], mdata.obs["split"]
        start = time.process_time()
        if row["method"] == "features":
            found = {"z": inputs_of(mdata)}
        else:
            found = codes_of(fit(mdata, METHODS[row["method"]], arguments.steps, row["seed"]), mdata)
        seconds = time.process_time() - start
        result = {"majority": float(label[split == "test"].value_counts(normalize=True).max())}
        for name, codes in found.items():
            result |= {f"{name}: {measure}": value for measure, value in score(codes, label, split).items()}
        yield {**row, **result, "CPU seconds": seconds}

    fixed = {"data": arguments.data.stem, "label": arguments.label, "modalities": " ".join(arguments.modalities)}
    fixed["steps"] = arguments.steps
    methods = ["features", *arguments.methods]
    asked = [{**fixed, "method": name, "seed": s} for s in range(arguments.seeds) for name in methods]
    table = run_missing(asked, run, arguments.out)
    print(to_markdown(mean_and_deviation(table.drop(columns=list(fixed)), ["method"])))


if __name__ == "__main__":
    main()
