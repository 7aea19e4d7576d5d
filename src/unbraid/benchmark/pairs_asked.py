"""Which pairs to ask for: those that a model suggests beside as many at random, round by round.

Run it with::

    python -m unbraid.benchmark.pairs_asked --seeds 3 --out asked.csv

Data are :func:`unbraid.data.simulate.two_factors`. DL2 is trained with a few random pairs of training cells, then asks
for more (:func:`unbraid.tl.suggest_pairs`, on the training cells), the true classes answer, and it is trained anew with
all pairs, and so on; ``random`` adds as many pairs drawn at random. Accuracy (ACC) of the clusters of test cells with the
task's classes, of DL2 and of whitening by the same must-links and k-means on principal components (``RCA``); ``must`` is
the number of must-links. Data, pairs and model share a seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unbraid import pp, tl
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.benchmark.pairs import METHODS, closed_form, cluster_row, fit
from unbraid.data import read_pairs, simulate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

    from unbraid.model.base import SplitModel

STRATEGIES = ("suggested", "random")


def ask(model: SplitModel, mdata: MuData, strategy: str, n: int, rng: np.random.Generator) -> None:
    """Add ``n`` answered pairs of training cells to ``obsp["pairs"]``."""
    train = mdata[(mdata.obs["split"] == "train").to_numpy()].copy()
    if strategy == "suggested":
        asked = tl.suggest_pairs(model, n, mdata=train)
        first, second = asked["first"].to_numpy(), asked["second"].to_numpy()
    else:
        known = train.obsp["pairs"].toarray() != 0
        a, b = np.triu_indices(train.n_obs, 1)
        chosen = rng.choice(np.flatnonzero(~known[a, b]), n, replace=False)
        first, second = train.obs_names[a[chosen]], train.obs_names[b[chosen]]
    task = mdata.obs["y_task"].astype(str)
    pp.add_pairs(mdata, first, second, task[first].to_numpy() == task[second].to_numpy())


def main(argv: Sequence[str] | None = None) -> None:
    """Ask, train and judge in turn and print the table; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-obs", type=int, default=4_000)
    parser.add_argument("--start", type=int, default=100, help="random pairs to begin with")
    parser.add_argument("--questions", type=int, default=50, help="of every round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600, help="of every training, about")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        seed, rng = row["seed"], np.random.default_rng([row["seed"], 1])
        mdata = simulate.two_factors(row["n_obs"], seed=seed)
        mdata.obs["known"] = mdata.obs["y_task"].where(mdata.obs["split"] == "train")
        pp.pairs_from_labels(mdata, "known", n_pairs=row["start"], seed=seed)
        model = None
        for k in range(row["rounds"] + 1):
            if model is not None:
                ask(model, mdata, row["strategy"], row["questions"], rng)
            model = fit(mdata, METHODS["DL2"], row["steps"], seed, 10)
            pairs = read_pairs(mdata, "pairs")
            found = cluster_row(model.predict_cluster(), None, mdata, seed)
            whitened = cluster_row(closed_form(mdata, "PCA, RCA + k-means", 10, seed), None, mdata, seed)
            counts = {"asked": k * row["questions"], "pairs": float(len(pairs)), "must": float(len(pairs.must))}
            yield {**row, **counts, "ACC": found["ACC"], "NMI": found["NMI"], "RCA": whitened["ACC"]}

    fixed = {name: getattr(arguments, name) for name in ("n_obs", "start", "questions", "rounds", "steps")}
    asked = [{**fixed, "strategy": name, "seed": s} for s in range(arguments.seeds) for name in arguments.strategies]
    table = run_missing(asked, run, arguments.out)
    print(to_markdown(mean_and_deviation(table.drop(columns=list(fixed)), ["strategy", "asked"])))


if __name__ == "__main__":
    main()
