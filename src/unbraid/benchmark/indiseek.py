"""IndiSeek's simulations (figures 1-2, 6-17), and a fifth setting: which coordinates a specific code holds.

Run it with::

    unbraid bench run indiseek
    python -m unbraid.benchmark.indiseek --settings 2 --lambdas 0.1 --seeds 5 --out rows.csv

The oracle code c is given: a frozen encoder computes it from x. Two settings measure two things. An ideal specific code
of settings 1 to 4 depends on the private coordinates alone, so their share of the masking importance is 1. In setting 5
a good code is independent of c *because* it rescales x5 by x1, and its masking importance is bad by design: read the
independence and the R2 of the true private values instead.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from unbraid.benchmark._table import mean_and_deviation, to_markdown
from unbraid.data import simulate
from unbraid.metrics import dependence, masking_importance
from unbraid.model import FactorizedCL, IndiSeek, InfoDisen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

    from unbraid.model.base import ContrastiveModel

NETWORKS = {"n_layers": 5, "n_hidden": 100}  # of the paper, everywhere
CLUB = {"n_layers": 5, "n_hidden": 100}
# name -> model and its options; the penalties of our own stand in IndiSeek's place of CLUB
METHODS: dict[str, tuple[type[ContrastiveModel], dict[str, Any]]] = {
    "IndiSeek": (IndiSeek, {"independence_options": {"club": {**CLUB, "standardize": False}}}),
    "FactorizedCL": (FactorizedCL, {"independence_options": {"club": {**CLUB, "standardize": False}}}),
    "InfoDisen": (InfoDisen, {}),
    "predictability": (IndiSeek, {"independence": "predictability"}),
    "density_ratio": (IndiSeek, {"independence": "density_ratio"}),
    "residual": (IndiSeek, {"independence": "residual"}),
    # further ones, by name
    "standardized club": (IndiSeek, {"independence_options": {"club": CLUB}}),
    "free variance": (
        IndiSeek,
        {"independence_options": {"club": {**CLUB, "standardize": False, "log_variance": "free"}}},
    ),
    "nce_club": (IndiSeek, {"club": "nce"}),
    "hsic": (IndiSeek, {"independence": "hsic"}),
    "dcor": (IndiSeek, {"independence": "dcor"}),
    "adversarial": (IndiSeek, {"independence": "adversarial"}),
    "none": (IndiSeek, {"independence": None}),
}
PUBLISHED = ("IndiSeek", "FactorizedCL", "InfoDisen")
DEFAULT_METHODS = (*PUBLISHED, "standardized club", "predictability", "density_ratio", "residual")


class OracleCode(nn.Module):
    """The shared code of a setting, computed from the six coordinates."""

    def __init__(self, setting: int) -> None:
        super().__init__()
        self.setting = setting

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Code ``(n, 2)`` of coordinates ``(n, 6)``."""
        u = x[:, :2]
        return 0.5 * u + 0.2 * u.sin() + 0.2 * u**3 if self.setting in (1, 3) else u


def fit(
    name: str, mdata: MuData, setting: int, lambda_: float, *, epochs: int, seed: int, **options: Any
) -> ContrastiveModel:
    """One method on one data set, with the oracle code as its shared code.

    Parameters
    ----------
    name
        Key of :data:`METHODS`.
    mdata
        Of :func:`~unbraid.data.simulate.indiseek`.
    setting
        Its number.
    lambda_
        Weight of what is captured.
    epochs
        Epochs of the specific stage, at batch 128.
    seed
        Of weights and training.
    **options
        Further options of the model.
    """
    model_class, own = METHODS[name]
    # two modalities are the least there can be; the second one plays no part, since there is no second one here
    mdata["oracle"].obs["measured"] = np.arange(mdata.n_obs) % 1000 < 2
    model_class.setup_mudata(mdata, modalities=["x", "oracle"], mask_keys={"oracle": "measured"})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(
            mdata,
            n_shared=2,
            n_specific=10,
            encoders={"x": OracleCode(setting), "oracle": nn.Identity()},
            # a code in the plane, not on a circle
            shared_objective="deep_cca",
            input_transform="identity",
            lambda_=lambda_,
            **({"cross_modal": False} if model_class is IndiSeek else {}),
            **{**NETWORKS, "lr": 1e-3, **own, **options},
        )
    if model_class is InfoDisen:
        model.module.complete_other = False  # the oracle plays both modalities' shared code
    model.train(
        max_epochs={"shared": 0, "specific": epochs},
        batch_size=128,
        split_key="split",
        early_stopping=False,
        seed=seed,
        progress_bar=False,
        accelerator="cpu",
    )
    return model


def measure(model: ContrastiveModel, mdata: MuData, seed: int) -> dict[str, float]:
    """What the specific code of ``x`` holds, on held-out cells.

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
    x, c = mdata["x"].X, mdata.obsm["true_shared"]
    private = mdata["x"].obsm["true_specific"]
    model.to_device("cpu")  # where the batches are made
    module = model.module

    def encode(values: np.ndarray) -> np.ndarray:
        n = len(values)
        batch = {
            "x": {"x": torch.as_tensor(values), "oracle": torch.zeros(n, 2)},
            "mask": {"x": torch.ones(n, dtype=torch.bool), "oracle": torch.zeros(n, dtype=torch.bool)},
            "size_factor": {},
            "batch": torch.zeros(n, dtype=torch.long),
            "categorical": torch.zeros(n, 0, dtype=torch.long),
            "continuous": torch.zeros(n, 0),
            "index": torch.arange(n),
        }
        with torch.inference_mode():
            return module.encode(batch).specific["x"].numpy()

    z = encode(x)
    ideal = mdata["x"].var["truth"].to_numpy() == "specific"
    importance = masking_importance(encode, x[~train], mask="zero", seed=seed).importance
    uniform = masking_importance(encode, x, draw="uniform", mask="zero", n_draws=1000, seed=seed).importance
    test = dependence(z[~train], c[~train], n_permutations=199, seed=seed)
    row = {
        "importance": importance[ideal].sum(),
        "importance_uniform": uniform[ideal].sum(),
        "dcor": test.distance_correlation_biased,
        "dcor_null": test.distance_correlation_biased_null,
        "p": test.distance_correlation_p_value,
        "r2_private": r2(z, private, train, linear=True),
        "r2_private_nonlinear": r2(z, private, train),
        "r2_shared": r2(z, c, train),
        "sd": float(z.std(axis=0).mean()),
    }
    row |= {f"importance_x{j + 1}": value for j, value in enumerate(importance)}
    return row | {f"r2_x{j + 1}": r2(z, x[:, [j]], train) for j in range(6)}


def r2(z: np.ndarray, y: np.ndarray, train: np.ndarray, *, linear: bool = False) -> float:
    """Held-out R2, mean over the columns of ``y``, of a linear or a kernel ridge regression on ``z``."""
    z = StandardScaler().fit(z[train]).transform(z)
    if linear:
        regression = LinearRegression()
    else:
        kernel = Nystroem(gamma=0.5 / z.shape[1], n_components=300, random_state=0)
        regression = make_pipeline(kernel, Ridge(1e-2))
    return float(regression.fit(z[train], y[train]).score(z[~train], y[~train]))


def rows(settings: Sequence[int], methods: Sequence[str], lambdas: Sequence[float], seeds: Sequence[int], epochs: int):
    """All combinations, one row each as it comes; seeds outermost, so that early rows already cover the grid."""
    for seed in seeds:
        for setting in settings:
            for name in methods:
                for lambda_ in lambdas:
                    yield {"setting": setting, "method": name, "lambda": lambda_, "seed": seed, "epochs": epochs}


def run_row(row: dict[str, Any]) -> dict[str, Any]:
    """Fit and measure one combination."""
    mdata = simulate.indiseek(row["setting"], seed=row["seed"])
    start = time.perf_counter()
    model = fit(row["method"], mdata, row["setting"], row["lambda"], epochs=row["epochs"], seed=row["seed"])
    seconds = time.perf_counter() - start
    return {**row, **measure(model, mdata, row["seed"]), "seconds": seconds}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, one line per setting, method and lambda."""
    shown = ["importance", "importance_uniform", "dcor", "dcor_null", "r2_private", "r2_shared", "seconds"]
    by = ["setting", "method", "lambda"]
    return mean_and_deviation(table[[*by, "seed", *shown]], by)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid and print it; rows already in ``--out`` are not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, nargs="+", default=[1, 2, 5])
    parser.add_argument("--methods", nargs="+", default=list(DEFAULT_METHODS), choices=list(METHODS))
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.01, 0.1, 1.0, 10.0])
    parser.add_argument("--seeds", type=int, default=5, help="Number of seeds; data and model share one.")
    parser.add_argument("--epochs", type=int, default=13, help="13 are 1,000 steps.")
    parser.add_argument("--out", type=Path, help="CSV of all rows.")
    parser.add_argument("--full", action="store_true", help="The paper's 50 runs of settings 1-4, 25 epochs.")
    arguments = parser.parse_args(argv)
    if arguments.full:
        arguments.settings, arguments.seeds, arguments.epochs = [1, 2, 3, 4, 5], 50, 25
    torch.set_num_threads(1)  # networks of this size are faster on one core
    done = pd.read_csv(arguments.out) if arguments.out is not None and arguments.out.exists() else pd.DataFrame()
    key = ["setting", "method", "lambda", "seed", "epochs"]
    known = set(map(tuple, done[key].to_numpy().tolist())) if len(done) else set()
    results = done.to_dict("records")
    todo = rows(arguments.settings, arguments.methods, arguments.lambdas, range(arguments.seeds), arguments.epochs)
    for row in todo:
        if tuple(row[k] for k in key) in known:
            continue
        results.append(run_row(row))
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in results[-1].items()}, flush=True)
        if arguments.out is not None:
            pd.DataFrame(results).to_csv(arguments.out, index=False)
    print(to_markdown(summary(pd.DataFrame(results))))


if __name__ == "__main__":
    main()
