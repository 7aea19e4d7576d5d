"""DisentangledSSL's simulation (Wang et al. 2025, figures 4, 7 and 8), next to the published figures.

Run it with::

    python -m unbraid.benchmark.disentangled_ssl --n-obs 30000 --seeds 2 --out rows.csv

One row per model and setting: DisentangledSSL by beta (step 1), and by lambda at one beta (step 2); its rivals JointOpt
and FOCAL, trained as long as step 1, by a (``weight``) and lambda; LinearSplit. Every row has the accuracy of a
logistic probe of the three labels from the modalities' shared codes side by side (``[Z_c]``) and from both specific
ones (``Z_s1``, ``Z_s2``). By chance .5.

Published numbers are means over 3 seeds at n = 90,000 (50 + 30 epochs), read off the figures: those of ``[Z_c]`` to
about 0.003, those of ``Z_s1`` more roughly.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.contrastive_table import LABELS
from unbraid.data import simulate
from unbraid.model import FOCAL, DisentangledSSL, JointOpt, LinearSplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from mudata import MuData

    from unbraid.model.base import ContrastiveModel

MODALITIES = ("x1", "x2")
GRID = ("beta", "weight", "lambda")
# the comparison's FOCAL has no hinge, and both have three layers whatever DisentangledSSL has
RIVALS: dict[str, tuple[type[ContrastiveModel], dict[str, Any]]] = {
    "JointOpt": (JointOpt, {"preset": "official"}),
    "FOCAL": (FOCAL, {"preset": "official", "hinge": False}),
}

# Figure 4a: accuracy of [Z_c] on (Y_c, Y_s1, Y_s2) by beta.
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
# Figure 4b: where the curves of Z_s1 lie, and their lowest and highest (Y_c, Y_s1). Of their points lambda = 0 alone
# is named. Keys: the model, and whether lambda is above 0.
PUBLISHED_SPECIFIC = {
    ("DisentangledSSL", False): ("beta 0.1", (0.670, 0.740), (0.670, 0.740)),
    ("DisentangledSSL", True): ("beta 0.1", (0.558, 0.671), (0.585, 0.741)),
    ("JointOpt", False): ("the end of its curve", (0.71, 0.75), (0.71, 0.75)),
    ("JointOpt", True): ("the best, a 0.01 to 0.1", (0.538, 0.593), (0.543, 0.630)),
    ("FOCAL", False): ("the best of all", (0.683, 0.630), (0.726, 0.727)),
    ("FOCAL", True): ("the best of all", (0.683, 0.630), (0.726, 0.727)),
}


def probes(codes: dict[str, np.ndarray], mdata: MuData) -> dict[str, float]:
    """The paper's probe: logistic regression (200 iterations) on training embeddings, accuracy on test ones.

    Parameters
    ----------
    codes
        Embeddings ``(n_obs, d)`` by name.
    mdata
        A simulation with ``obs["split"]`` and the three labels.

    Returns
    -------
    Accuracies, ``"[Z_c]: Y_c"`` and so on.
    """
    train = (mdata.obs["split"] == "train").to_numpy()
    scores = {}
    for code, z in codes.items():
        for label, column in LABELS.items():
            y = mdata.obs[column].astype(int).to_numpy()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # 200 iterations are the paper's, converged or not
                probe = LogisticRegression(max_iter=200).fit(z[train], y[train])
            scores[f"{code}: {label}"] = float(probe.score(z[~train], y[~train]))
    return scores


def linear_codes(mdata: MuData, seed: int) -> dict[str, np.ndarray]:
    """Codes of the linear split: ``Z_c1``, ``Z_s1`` of the first modality, ``Z_c2``, ``Z_s2`` of the second.

    Parameters
    ----------
    mdata
        A simulation.
    seed
        Of training.
    """
    LinearSplit.setup_mudata(mdata, modalities=list(MODALITIES))
    model = LinearSplit(mdata, input_transform="identity")
    model.train(split_key="split", seed=seed)
    # the probe's L2 penalty needs features of one scale
    train = (mdata.obs["split"] == "train").to_numpy()
    codes = {}
    for k, m in enumerate(MODALITIES, start=1):
        for name, kind in {f"Z_c{k}": "shared", f"Z_s{k}": "specific"}.items():
            z = model.get_latent_representation(kind=kind, modality=m)
            codes[name] = z / z[train].std(axis=0)
    return codes


def fit(
    model_class: type[ContrastiveModel],
    mdata: MuData,
    epochs: int | dict[str, int],
    seed: int,
    *,
    frozen: ContrastiveModel | None = None,
    **options: Any,
) -> tuple[ContrastiveModel, float]:
    """Build and train a neural model as the paper does: shared codes of 100 dimensions, batches of 256.

    Parameters
    ----------
    model_class
        Its class.
    mdata
        A simulation.
    epochs
        Of every stage, or per stage.
    seed
        Of weights and training.
    frozen
        Where the shared encoders come from; None for new ones.
    **options
        Of the model.

    Returns
    -------
    The model, and the seconds that it took.
    """
    start = time.perf_counter()
    model_class.setup_mudata(mdata, modalities=list(MODALITIES))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(mdata, n_shared=100, input_transform="identity", **options)
    if frozen is not None:
        model.module.shared_encoders.load_state_dict(frozen.module.shared_encoders.state_dict())
    model.train(
        max_epochs=epochs,
        batch_size=256,
        split_key="split",
        early_stopping=False,
        seed=seed,
        progress_bar=False,
        datasplitter_kwargs={"drop_last": True},
    )
    return model, time.perf_counter() - start


class Runner:
    """Fits and probes what a row asks for; consecutive rows of one step 1 share it.

    Parameters
    ----------
    mdata
        The simulation.
    preset
        Of DisentangledSSL: ``"official"`` (two layers) or ``"paper"`` (three).
    epochs
        Of step 1, which are also the rivals', and of step 2; the paper has 50 and 30.
    """

    def __init__(self, mdata: MuData, preset: str, epochs: tuple[int, int]) -> None:
        self.mdata, self.preset, self.epochs = mdata, preset, epochs
        self.step_1 = lru_cache(maxsize=1)(self._step_1)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The finished row; its seconds are those of its own training, without step 1 in step 2.

        Parameters
        ----------
        row
            One of :func:`rows`.
        """
        if row["model"] == "LinearSplit":
            start = time.perf_counter()
            codes = linear_codes(self.mdata, row["seed"])
            seconds = time.perf_counter() - start
            shared = [codes.pop("Z_c1"), codes.pop("Z_c2")]
        else:
            model, seconds = self._fit(row)
            shared = [model.get_unnormalized_shared(m) for m in MODALITIES]
            codes = {
                f"Z_s{k}": model.get_latent_representation(kind="specific", modality=m)
                for k, m in enumerate(MODALITIES, start=1)
                if model.module.n_specific
            }
        yield {**row, **probes({"[Z_c]": np.hstack(shared), **codes}, self.mdata), "seconds": seconds}

    def _fit(self, row: dict[str, Any]) -> tuple[ContrastiveModel, float]:
        seed, beta, lambda_ = row["seed"], row["beta"], row["lambda"]
        if row["model"] in RIVALS:
            model_class, options = RIVALS[row["model"]]
            options = {"n_specific": 100, "specific_weight": row["weight"], "lambda_": lambda_, **options}
            return fit(model_class, self.mdata, self.epochs[0], seed, **options)
        if math.isnan(lambda_):
            return self.step_1(beta, seed)
        options = {"n_specific": 100, "preset": self.preset, "beta": beta, "lambda_": lambda_}
        epochs = {"shared": 0, "specific": self.epochs[1]}
        return fit(DisentangledSSL, self.mdata, epochs, seed, frozen=self.step_1(beta, seed)[0], **options)

    def _step_1(self, beta: float, seed: int) -> tuple[ContrastiveModel, float]:
        return fit(DisentangledSSL, self.mdata, self.epochs[0], seed, n_specific=0, preset=self.preset, beta=beta)


def rows(
    seeds: int,
    *,
    betas: Sequence[float],
    lambdas: Sequence[float],
    beta_of_step_2: float,
    rivals: Sequence[str],
    weights: Sequence[float],
    rival_lambdas: Sequence[float],
) -> Iterator[dict[str, Any]]:
    """The models and settings of all seeds, seeds outermost; NaN where a model has no such setting.

    Parameters
    ----------
    seeds
        Their number; LinearSplit has one.
    betas
        Of step 1.
    lambdas
        Of step 2, which starts from the step-1 encoders of the same seed.
    beta_of_step_2
        Added to ``betas`` where there is a step 2 and it is not one of them.
    rivals
        Names of :data:`RIVALS`.
    weights, rival_lambdas
        Their grid.
    """
    grid = []
    for beta in dict.fromkeys([*betas, *[beta_of_step_2] * bool(lambdas)]):
        grid.append({"model": "DisentangledSSL", "beta": beta})
        if beta == beta_of_step_2:
            grid += [{**grid[-1], "lambda": lambda_} for lambda_ in lambdas]
    for rival in rivals:
        grid += [
            {"model": rival, "weight": weight, "lambda": lambda_} for weight in weights for lambda_ in rival_lambdas
        ]
    for seed in range(seeds):
        for point in [{"model": "LinearSplit"}] * (seed == 0) + grid:
            yield {**dict.fromkeys(("model", *GRID), math.nan), **point, "seed": seed}


def published(model: str, beta: float, lambda_: float) -> str:
    """What the figures show there, in words; empty where they show nothing.

    Parameters
    ----------
    model
        Its name.
    beta, lambda_
        NaN where the model has no such setting.
    """
    if math.isnan(lambda_):
        if beta not in PUBLISHED_SHARED:
            return ""
        named = zip(LABELS, PUBLISHED_SHARED[beta], strict=True)
        return "[Z_c]: " + ", ".join(f"{label} {value:.3f}" for label, value in named)
    where, low, high = PUBLISHED_SPECIFIC[model, lambda_ > 0]
    shared, specific = (f"{a:.3f}" if a == b else f"{a:.3f} to {b:.3f}" for a, b in zip(low, high, strict=True))
    return f"Z_s1 ({where}): Y_c {shared}, Y_s1 {specific}"


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds beside what is published, one line per model and setting.

    Parameters
    ----------
    table
        Finished rows.
    """
    named = zip(table["model"], table["beta"], table["lambda"], strict=True)
    settings = {column: table[column].map("{:g}".format).replace("nan", "") for column in GRID}
    texts = table.drop(columns=["n_obs", "preset", "epochs"], errors="ignore").assign(
        **settings, published=[published(*names) for names in named]
    )
    lines = mean_and_deviation(texts, ["model", *GRID, "published"])
    return lines[[column for column in lines if column != "published"] + ["published"]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the grid and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-obs", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds; the data are those of seed 0")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.1, 1.0, 10.0, 100.0, 1000.0, 0.001])
    parser.add_argument("--lambdas", type=float, nargs="*", default=[0.0, 0.1, 10.0], help="of step 2")
    parser.add_argument("--beta-of-step-2", type=float, default=0.1)
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=list(RIVALS))
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1, 1.0, 10.0], help="the rivals' a")
    parser.add_argument("--rival-lambdas", type=float, nargs="+", default=[0.0, 0.1, 10.0])
    parser.add_argument("--epochs", type=int, nargs=2, default=[50, 30], help="of step 1 and the rivals, and of step 2")
    parser.add_argument("--preset", default="official", choices=["official", "paper"], help="of DisentangledSSL")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)

    epochs = tuple(arguments.epochs)
    size = {"n_obs": arguments.n_obs, "preset": arguments.preset, "epochs": "+".join(map(str, epochs))}
    asked = rows(
        arguments.seeds,
        betas=arguments.betas,
        lambdas=arguments.lambdas,
        beta_of_step_2=arguments.beta_of_step_2,
        rivals=arguments.rivals,
        weights=arguments.weights,
        rival_lambdas=arguments.rival_lambdas,
    )
    run = Runner(simulate.disentangled_ssl(arguments.n_obs, seed=0), arguments.preset, epochs)
    print(to_markdown(summary(run_missing([{**size, **row} for row in asked], run, arguments.out))))


if __name__ == "__main__":
    main()
