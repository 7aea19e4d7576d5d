"""How often a scorecard is wrong, on data whose answers are known: ``python -m unbraid.benchmark.scorecard``.

Two modalities :math:`x_m = c W_m + s_m V_m + e` with orthogonal rows of :math:`W_m` and :math:`V_m`, so that the
posterior means of :math:`c` and :math:`s_m` are independent and every number of the card has a closed form. Into the
specific code of the first modality a leak of the second's shared code is planted.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from unbraid.metrics import scorecard
from unbraid.metrics._detectors import panel_whiten, plant

if TYPE_CHECKING:
    from collections.abc import Sequence

N_FEATURES = 40
MARGIN = 0.1  # nats; 0.05, the default, takes more than 1,000 cells to be shown


@dataclass(frozen=True)
class World:
    """One kind of data set."""

    name: str
    share: float = 0.6  # signal variance of the shared latent; 0: nothing shared
    family: str = "linear"
    leak: float = 0.0  # nats
    by_batch: bool = False  # what is shared, is shared by batch alone


WORLDS = [
    World("nothing shared", share=0.0),
    World("shared by batch alone", by_batch=True),
    *(
        World(f"{family} leak of {nats:g} nats", family=family, leak=nats)
        for family in ("linear", "quadratic", "gated")
        for nats in (0.1, 0.2, 0.4)
    ),
]


def simulate(world: World, n_obs: int, n_latent: int, seed: int) -> tuple[MuData, dict[str, float]]:
    """Data with codes, and what the card should say."""
    rng = np.random.default_rng(seed)
    batch = rng.integers(4, size=n_obs)
    # signal to noise such that the posterior mean of a latent of variance 1 has reliability `share`
    loud = np.sqrt((world.share or 0.6) / (1 - (world.share or 0.6)))
    is_shared = world.share > 0 and not world.by_batch
    common, center = rng.normal(size=(n_obs, n_latent)), rng.normal(size=(4, n_latent))
    bases, codes, modalities = {}, {}, {}
    for name in ("a", "b"):
        bases[name] = np.linalg.qr(rng.normal(size=(N_FEATURES, 2 * n_latent)))[0].T
        own = common if is_shared else rng.normal(size=common.shape)
        own = own + center[batch] * world.by_batch
        signal = loud * np.hstack([own, rng.normal(size=own.shape)]) @ bases[name]
        x = signal + rng.normal(size=signal.shape)
        posterior = x @ bases[name].T * loud / (loud**2 + 1)
        codes[name] = posterior[:, :n_latent], posterior[:, n_latent:]
        modalities[name] = AnnData(x.astype(np.float32))
        modalities[name].obs_names = [f"cell{i}" for i in range(n_obs)]
    if world.leak:
        own, other = panel_whiten(codes["a"][1]), panel_whiten(codes["b"][0])
        codes["a"] = codes["a"][0], plant(own, other, world.family, world.leak, 2, None, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData(modalities)
    for name, (shared, specific) in codes.items():
        mdata.mod[name].obsm["Z_c"], mdata.mod[name].obsm["Z_s"] = shared, specific
    mdata.obs["batch"] = pd.Categorical(batch.astype(str))
    return mdata, _truth(bases, loud, n_latent) if is_shared else {}


def _truth(bases: dict[str, np.ndarray], loud: float, n_latent: int) -> dict[str, float]:
    """Nats and shares of variance in the population, from the covariance of all latents, noises and features."""
    c = np.arange(n_latent)
    # columns: latents c, s_a, s_b, noise a, noise b; rows: what is observed
    mixing = {}
    for k, (name, basis) in enumerate(bases.items()):
        m = np.zeros((N_FEATURES, 3 * n_latent + 2 * N_FEATURES))
        m[:, c] = loud * basis[c].T
        m[:, n_latent * (k + 1) + c] = loud * basis[n_latent:].T
        m[:, 3 * n_latent + k * N_FEATURES + np.arange(N_FEATURES)] = np.eye(N_FEATURES)
        mixing[name] = m

    def explained(x: np.ndarray, *codes: np.ndarray) -> float:
        x, z = x / np.linalg.norm(x, axis=1, keepdims=True), np.vstack(codes)
        return float(np.trace(x @ z.T @ np.linalg.solve(z @ z.T, z @ x.T)) / len(x))

    truth = {"nats": -0.5 * n_latent * np.log(1 - (loud**2 / (loud**2 + 1)) ** 2)}
    for name, other in (("a", "b"), ("b", "a")):
        own = mixing[name]
        codes = bases[other][c] @ mixing[other], bases[name][n_latent:] @ own, bases[name][c] @ own
        steps = [explained(own, *codes[: k + 1]) for k in range(3)]
        for part, share in zip(("shared", "specific", "shared code only"), np.diff(steps, prepend=0), strict=True):
            truth[f"{part} of {name}"] = share
    return truth


def judge(seed: int, world: World, n_obs: int, n_latent: int) -> dict:
    """Verdicts of one card."""
    mdata, truth = simulate(world, n_obs, n_latent, seed)
    start = time.perf_counter()
    card = scorecard(
        mdata,
        batch="batch" if world.by_batch else None,
        estimators=("canonical", "quadratic"),
        margin=MARGIN,
        limits=world.share > 0 and not world.by_batch,
        progress=False,
        key_added=None,
        seed=seed,
    )
    table = card.table
    found = {"world": world.name, "seed": seed, "seconds": time.perf_counter() - start}
    tests = table[table["measure"].eq("mutual information")]
    of = tests["question"].eq("shared") & tests["condition"].eq("within batch" if world.by_batch else "all")
    found["shared"] = tests.loc[of, "verdict"].iloc[0]
    for code in ("a", "b"):
        of = (
            tests["question"].eq("specific")
            & tests["code"].eq(f"{code}:Z_s")
            & ~tests["against"].str.startswith("data")
        )
        found[f"specific {code}"] = tests.loc[of & tests["condition"].eq("all"), "verdict"].iloc[0]
    found["limit"] = table.loc[table["question"].eq("limit of detection"), "estimate"].max()
    if truth and not world.leak:
        budget = table[table["question"].eq("budget")]
        for row in budget[budget["unit"].str.startswith("share") & budget["low"].notna()].to_dict("records"):
            part = f"{row['measure']} of {row['code']}"
            found[f"{part}: covered"] = row["low"] <= truth[part] <= row["high"]
            found[f"{part}: error"] = row["estimate"] - truth[part]
        nats = budget[budget["unit"].eq("nats")].iloc[0]
        found["nats: covered"] = nats["low"] <= truth["nats"] <= nats["high"]
        found["nats: error"] = nats["estimate"] - truth["nats"]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the share of every verdict, and the coverage of the budget's intervals.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100, help="data sets of each kind of truth")
    parser.add_argument("--leak-repeats", type=int, default=20, help="data sets of each planted leak")
    parser.add_argument("--n-obs", type=int, default=1_000)
    parser.add_argument("--n-latent", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args(argv)
    worlds = [World("shared, no leak"), *WORLDS]
    rows = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for world in worlds:
            n = arguments.leak_repeats if world.leak else arguments.repeats
            one = partial(judge, world=world, n_obs=arguments.n_obs, n_latent=arguments.n_latent)
            rows += list(pool.map(one, range(n)))
            print(f"{world.name}: {n} cards", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    print(f"n = {arguments.n_obs}, {arguments.n_latent} dimensions; {table['seconds'].mean():.1f} s a card\n")
    for question in ("shared", "specific a", "specific b"):
        shares = pd.crosstab(table["world"], table[question], normalize="index").reindex([w.name for w in worlds])
        shares.insert(0, "n", table["world"].value_counts())
        print(f"verdict on {question}\n{shares.round(3).to_string()}\n")
    limits = table.groupby("world", sort=False)["limit"].describe()[["min", "50%", "max"]]
    print(f"limit of detection (nats)\n{limits.round(3).to_string()}\n")
    clean = table[table["world"].eq("shared, no leak")]
    for column in clean.columns[clean.columns.str.endswith(": covered")]:
        error = clean[column.replace("covered", "error")]
        print(
            f"{column.removesuffix(': covered')}: covered in {clean[column].astype(float).mean():.3f} of {len(clean)}, "
            f"error {error.mean():+.4f} (sd {error.std():.4f})"
        )


if __name__ == "__main__":
    main()
