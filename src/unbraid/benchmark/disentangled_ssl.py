"""DisentangledSSL's simulation (Wang et al. 2025, section 3.1, figures 4a and 4b), next to the published figures.

Run it with::

    python -m unbraid.benchmark.disentangled_ssl --n-obs 30000 --seeds 2

Published numbers are means over 3 seeds at n = 90,000 (50 + 30 epochs), read off the figures to about 0.003.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression

from unbraid.data import simulate
from unbraid.model import DisentangledSSL, LinearSplit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

LABELS = ("y_shared", "y_specific_x1", "y_specific_x2")

# Figure 4a: accuracy of [Z_c1, Z_c2] on (Y_c, Y_s1, Y_s2) by beta.
PUBLISHED_SHARED = {
    0.001: (0.783, 0.674, 0.680),
    0.01: (0.783, 0.673, 0.679),
    0.1: (0.778, 0.668, 0.676),
    0.5: (0.767, 0.651, 0.658),
    1.0: (0.756, 0.641, 0.645),
    5.0: (0.719, 0.614, 0.627),
    10.0: (0.709, 0.607, 0.610),
    50.0: (0.690, 0.596, 0.585),
    100.0: (0.683, 0.587, 0.577),
    300.0: (0.589, 0.504, 0.516),
    500.0: (0.572, 0.504, 0.514),
    1000.0: (0.564, 0.504, 0.514),
}
# Figure 4b, beta = 0.1: (Y_c, Y_s1) of Z_s1 along descending lambda; only the end, lambda = 0, is named.
PUBLISHED_SPECIFIC = {
    "largest lambda": (0.561, 0.671),
    "smallest lambda above 0": (0.585, 0.741),
    "lambda 0": (0.670, 0.740),
}


def probe_accuracy(z: np.ndarray, mdata: MuData) -> dict[str, float]:
    """The paper's probe: logistic regression (200 iterations) on training embeddings, accuracy on test ones.

    Parameters
    ----------
    z
        Embedding ``(n_obs, n_latent)``.
    mdata
        A simulation with ``obs["split"]`` and the three labels.
    """
    train = (mdata.obs["split"] == "train").to_numpy()
    scores = {}
    for label in LABELS:
        y = mdata.obs[label].astype(int).to_numpy()
        scores[label] = LogisticRegression(max_iter=200).fit(z[train], y[train]).score(z[~train], y[~train])
    return scores


def linear_rows(mdata: MuData, seed: int) -> list[dict[str, Any]]:
    """The linear split, its shared code once as the paper concatenates it and once as the cell's joint code."""
    LinearSplit.setup_mudata(mdata, modalities=["x1", "x2"])
    start = time.perf_counter()
    model = LinearSplit(mdata, input_transform="identity")
    model.train(split_key="split", seed=seed)
    row = {"model": "LinearSplit", "seed": seed, "seconds": time.perf_counter() - start}
    shared = [model.get_latent_representation(kind="shared", modality=m) for m in ("x1", "x2")]
    codes = {
        "[Z_c1, Z_c2]": np.hstack(shared),
        "Z_c": model.get_latent_representation(),
        "Z_s1": model.get_latent_representation(kind="specific", modality="x1"),
        "Z_s2": model.get_latent_representation(kind="specific", modality="x2"),
    }
    # an L2 penalty needs features of one scale
    train = (mdata.obs["split"] == "train").to_numpy()
    return [{**row, "code": name, **probe_accuracy(z / z[train].std(axis=0), mdata)} for name, z in codes.items()]


def _train(model: DisentangledSSL, epochs: dict[str, int], seed: int) -> None:
    model.train(
        max_epochs=epochs,
        batch_size=256,
        split_key="split",
        early_stopping=False,
        seed=seed,
        progress_bar=False,
        datasplitter_kwargs={"drop_last": True},
    )


def neural_rows(
    mdata: MuData,
    seed: int,
    *,
    betas: tuple[float, ...],
    lambdas: tuple[float, ...],
    beta_of_step_2: float,
    preset: str,
    epochs: tuple[int, int],
):
    """DisentangledSSL over a grid of beta, and over lambda at one beta; yields rows as they come.

    Parameters
    ----------
    mdata
        The simulation.
    seed
        Seed of weights and training; the data stay the same.
    betas
        For step 1.
    lambdas
        For step 2, which starts from the step-1 encoders of the same seed.
    beta_of_step_2
        One of ``betas``.
    preset
        ``"official"`` (two layers) or ``"paper"`` (three).
    epochs
        Of step 1 and step 2; the paper has 50 and 30.
    """
    DisentangledSSL.setup_mudata(mdata, modalities=["x1", "x2"])
    settings = {"n_shared": 100, "preset": preset, "input_transform": "identity"}

    def build(**options: Any) -> DisentangledSSL:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return DisentangledSSL(mdata, **settings, **options)

    for beta in betas:
        start = time.perf_counter()
        model = build(n_specific=0, beta=beta)
        _train(model, {"shared": epochs[0]}, seed)
        seconds = time.perf_counter() - start
        z = np.hstack([model.get_unnormalized_shared(m) for m in ("x1", "x2")])
        row = {"model": "DisentangledSSL", "seed": seed, "beta": beta}
        yield {**row, "seconds": seconds, "code": "[Z_c1, Z_c2]", **probe_accuracy(z, mdata)}
        if beta != beta_of_step_2:
            continue
        for lambda_ in lambdas:
            start = time.perf_counter()
            full = build(n_specific=100, beta=beta, lambda_=lambda_)
            full.module.shared_encoders.load_state_dict(model.module.shared_encoders.state_dict())
            _train(full, {"shared": 0, "specific": epochs[1]}, seed)
            seconds = time.perf_counter() - start
            for m, name in {"x1": "Z_s1", "x2": "Z_s2"}.items():
                z = full.get_latent_representation(kind="specific", modality=m)
                yield {**row, "lambda": lambda_, "seconds": seconds, "code": name, **probe_accuracy(z, mdata)}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid, write every row to a CSV as it comes, and print the table.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-obs", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds; the data are those of seed 0")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1, 1.0, 10.0, 100.0, 1000.0, 0.001])
    parser.add_argument("--lambdas", type=float, nargs="*", default=[0.0, 0.1, 10.0])
    parser.add_argument("--beta-of-step-2", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, nargs=2, default=[50, 30])
    parser.add_argument("--preset", default="official", choices=["official", "paper"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("disentangled_ssl.csv"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)

    mdata = simulate.disentangled_ssl(arguments.n_obs, seed=0)
    rows = linear_rows(mdata, seed=0)
    for seed in range(arguments.seeds):
        for row in neural_rows(
            mdata,
            seed,
            betas=tuple(arguments.betas),
            lambdas=tuple(arguments.lambdas),
            beta_of_step_2=arguments.beta_of_step_2,
            preset=arguments.preset,
            epochs=tuple(arguments.epochs),
        ):
            rows.append(row)
            pd.DataFrame(rows).to_csv(arguments.out, index=False)
    print(summary(pd.DataFrame(rows)).to_string(index=False))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds beside the published figure, where there is one.

    Parameters
    ----------
    rows
        What :func:`main` writes.
    """
    for column in ("beta", "lambda"):
        if column not in rows:
            rows[column] = np.nan
    table = rows.groupby(["model", "code", "beta", "lambda"], dropna=False)[list(LABELS)].agg(["mean", "std"])
    table.columns = [f"{label} {statistic}" for label, statistic in table.columns]
    table = table.round(3).reset_index()
    shared = table["code"].eq("[Z_c1, Z_c2]") & table["model"].eq("DisentangledSSL")
    for k, label in enumerate(LABELS):
        published = table["beta"].map(lambda beta, k=k: PUBLISHED_SHARED.get(beta, (np.nan,) * 3)[k])
        table[f"{label} published"] = published.where(shared)
    return table


if __name__ == "__main__":
    main()
