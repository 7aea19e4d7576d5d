"""Calibration of :func:`unbraid.metrics.mutual_information` on distributions whose mutual information is known.

Run it with::

    python -m unbraid.benchmark.mutual_information --repeats 20 --n-obs 2000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from unbraid.metrics._mutual_information import mutual_information
from unbraid.metrics._pointwise import ESTIMATORS, NEURAL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

CLOSED_FORM = tuple(name for name in ESTIMATORS if name not in NEURAL)


def gaussian(
    n: int, rng: np.random.Generator, *, d: int, n_dependent: int, correlation: float, warped: bool = False
) -> tuple[NDArray, NDArray, float]:
    """Correlated pairs of dimensions beside independent ones; -k/2 log(1 - r^2) nats, whatever monotone map follows.

    Parameters
    ----------
    n
        Number of observations.
    rng
        Source of the draws.
    d
        Dimensions of either side.
    n_dependent
        How many of them are correlated, one with one.
    correlation
        Of these.
    warped
        Cube one side and exponentiate the other.
    """
    a, b = rng.normal(size=(2, n, d))
    b[:, :n_dependent] = correlation * a[:, :n_dependent] + np.sqrt(1 - correlation**2) * b[:, :n_dependent]
    nats = -n_dependent / 2 * np.log1p(-(correlation**2))
    return (a**3, np.exp(b), nats) if warped else (a, b, nats)


def quadratic(
    n: int, rng: np.random.Generator, *, d: int, n_dependent: int, correlation: float
) -> tuple[NDArray, NDArray, float]:
    """Dimensions of one side correlated with squares of the other's, so that nothing linear is shared.

    Parameters
    ----------
    n
        Number of observations.
    rng
        Source of the draws.
    d
        Dimensions of either side.
    n_dependent
        How many of them depend on a square.
    correlation
        With it.
    """
    a, b = rng.normal(size=(2, n, d))
    square = (b[:, :n_dependent] ** 2 - 1) / np.sqrt(2)
    a[:, :n_dependent] = correlation * square + np.sqrt(1 - correlation**2) * a[:, :n_dependent]
    # I = h(a) - h(a | b), the first by quadrature
    grid, nodes = np.linspace(-12, 40, 20_001), (np.arange(4000) + 0.5) / 4000 * 12 - 6
    weights = np.exp(-(nodes**2) / 2)
    weights /= weights.sum()
    noise = np.sqrt(1 - correlation**2)
    density = np.zeros(len(grid))
    for node, weight in zip(nodes, weights, strict=True):
        mean = correlation * (node**2 - 1) / np.sqrt(2)
        density += weight * np.exp(-(((grid - mean) / noise) ** 2) / 2)
    density /= noise * np.sqrt(2 * np.pi)
    entropy = -np.sum(density * np.log(np.maximum(density, 1e-300))) * (grid[1] - grid[0])
    return a, b, n_dependent * (entropy - np.log(2 * np.pi * np.e * noise**2) / 2)


def sign_product(n: int, rng: np.random.Generator, *, d: int) -> tuple[NDArray, NDArray, float]:
    """The sign of a dimension is the exclusive or of two signs of the other side: log 2 nats.

    Parameters
    ----------
    n
        Number of observations.
    rng
        Source of the draws.
    d
        Dimensions of either side.
    """
    a, b = rng.normal(size=(2, n, d))
    b[:, 0] = np.abs(b[:, 0]) * np.sign(a[:, 0] * a[:, 1])
    return a, b, np.log(2)


def clusters(n: int, rng: np.random.Generator, *, d: int, n_clusters: int) -> tuple[NDArray, NDArray, float]:
    """Far clusters that are the same on both sides and nothing else: log(n_clusters) nats, to a good approximation.

    Parameters
    ----------
    n
        Number of observations.
    rng
        Source of the draws.
    d
        Dimensions of either side.
    n_clusters
        Of equal weight.
    """
    label = rng.integers(n_clusters, size=n)
    a, b = (6 * rng.normal(size=(n_clusters, d))[label] + rng.normal(size=(n, d)) for _ in range(2))
    return a, b, np.log(n_clusters)


def through_batch(
    n: int, rng: np.random.Generator, *, d: int, n_batches: int
) -> tuple[NDArray, NDArray, float, NDArray]:
    """Both sides shifted by batch and independent within: 0 nats given the batch.

    Parameters
    ----------
    n
        Number of observations.
    rng
        Source of the draws.
    d
        Dimensions of either side.
    n_batches
        Number of batches.
    """
    batch = rng.integers(n_batches, size=n)
    a, b = (2 * rng.normal(size=(n_batches, d))[batch] + rng.normal(size=(n, d)) for _ in range(2))
    return a, b, 0.0, batch


CASES: dict[str, tuple[Callable, dict[str, Any]]] = {
    "independent, d = 8": (gaussian, {"d": 8, "n_dependent": 0, "correlation": 0.0}),
    "independent, d = 32": (gaussian, {"d": 32, "n_dependent": 0, "correlation": 0.0}),
    "Gaussian, d = 2, 2 of r = .5": (gaussian, {"d": 2, "n_dependent": 2, "correlation": 0.5}),
    "Gaussian, d = 8, 4 of r = .3": (gaussian, {"d": 8, "n_dependent": 4, "correlation": 0.3}),
    "Gaussian, d = 16, 4 of r = .3": (gaussian, {"d": 16, "n_dependent": 4, "correlation": 0.3}),
    "Gaussian, d = 16, 4 of r = .7": (gaussian, {"d": 16, "n_dependent": 4, "correlation": 0.7}),
    "Gaussian, d = 16, 8 of r = .9": (gaussian, {"d": 16, "n_dependent": 8, "correlation": 0.9}),
    "Gaussian, d = 32, 16 of r = .5": (gaussian, {"d": 32, "n_dependent": 16, "correlation": 0.5}),
    "sparse, d = 32, 2 of r = .8": (gaussian, {"d": 32, "n_dependent": 2, "correlation": 0.8}),
    "warped, d = 16, 4 of r = .7": (gaussian, {"d": 16, "n_dependent": 4, "correlation": 0.7, "warped": True}),
    "quadratic, d = 8, 3 of r = .5": (quadratic, {"d": 8, "n_dependent": 3, "correlation": 0.5}),
    "quadratic, d = 8, 3 of r = .9": (quadratic, {"d": 8, "n_dependent": 3, "correlation": 0.9}),
    "exclusive or, d = 8": (sign_product, {"d": 8}),
    "6 clusters, d = 8": (clusters, {"d": 8, "n_clusters": 6}),
    "through batch, given batch, d = 8": (through_batch, {"d": 8, "n_batches": 8}),
}


def rows(case: str, n: int, seed: int, estimators: tuple[str, ...]) -> dict[str, Any]:
    """One estimate on one draw.

    Parameters
    ----------
    case
        Key of `CASES`.
    n
        Number of observations.
    seed
        Of the draw and of the estimate.
    estimators
        The panel.
    """
    draw, options = CASES[case]
    a, b, truth, *strata = draw(n, np.random.default_rng(seed), **options)
    start = time.perf_counter()
    found = mutual_information(a, b, strata=strata[0] if strata else None, estimators=estimators, n_null=0, seed=seed)
    seconds = time.perf_counter() - start
    low, high = found.interval
    chosen = found.panel.loc[found.estimator]
    return {
        "case": case,
        "seed": seed,
        "panel": "closed forms" if set(estimators) <= set(CLOSED_FORM) else "all",
        "truth": truth,
        "nats": found.nats,
        "refused": found.refused is not None,
        "holds": np.nan if found.refused else low <= truth,
        "covers": np.nan if found.refused else low <= truth <= high,
        "extrapolated": chosen["extrapolated"],
        "seconds": seconds,
        **found.panel["nats"].to_dict(),
    }


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Means over repeats, by case and panel.

    Parameters
    ----------
    found
        What :func:`rows` returned, one row each.
    """
    by = found.groupby(["case", "panel"], sort=False)
    table = by[["truth", "nats"]].mean()
    table["bias"] = table["nats"] - table["truth"]
    table["sd"] = by["nats"].std()
    table["bound holds"], table["interval covers"] = by["holds"].mean(), by["covers"].mean()
    table["extrapolated"], table["refused"] = by["extrapolated"].mean(), by["refused"].mean()
    for name in ESTIMATORS:
        if name in found:
            table[name] = by[name].mean()
    table["seconds"], table["repeats"] = by["seconds"].mean(), by.size()
    return table.reset_index()


def to_markdown(table: pd.DataFrame) -> str:
    """A pipe table.

    Parameters
    ----------
    table
        Numbers are shown with two decimals.
    """
    shown = lambda x: x if isinstance(x, str) else "" if pd.isna(x) else f"{x:z.2f}" if isinstance(x, float) else f"{x}"
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + " --- |" * table.shape[1]]
    lines += ["| " + " | ".join(map(shown, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the calibration table as Markdown.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-obs", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--neural-repeats", type=int, default=2, help="of which so many with neural critics")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--out", type=Path, default=None, help="write every estimate to this .csv")
    arguments = parser.parse_args(argv)
    found = []
    with threadpool_limits(1):
        for seed in range(arguments.repeats):
            for case in arguments.cases:
                found.append(rows(case, arguments.n_obs, seed, CLOSED_FORM))
                if seed < arguments.neural_repeats:
                    found.append(rows(case, arguments.n_obs, seed, ESTIMATORS))
                if arguments.out is not None:
                    pd.DataFrame(found).to_csv(arguments.out, index=False)
    table = summary(pd.DataFrame(found))
    print(f"n = {arguments.n_obs:,}, nats\n\n{to_markdown(table)}")


if __name__ == "__main__":
    main()
