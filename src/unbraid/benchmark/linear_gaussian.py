r"""What a split of linear-Gaussian data can reach: closed forms on DisentangledSSL's mixing matrices.

Run it with::

    python -m unbraid.benchmark.linear_gaussian --seeds 5

The modalities are :math:`x_m = A_m c + B_m s_m + \sigma \varepsilon_m` with the matrices of
:func:`unbraid.data.simulate.disentangled_ssl`, whose features have variance 17 on average. Numbers are population
values: share of the variance of :math:`c` or :math:`s_1` (mean over coordinates) that the best linear map from a code
explains. No cells are drawn but for the last table, where a second copy of one latent competes with another latent.

- ``noise``: ideal canonical codes, by the noise of the data;
- ``fit``: canonical codes of clean data (no noise) fitted to disturbed views, with a ridge, or without whitening;
- ``beta``: the optimum of information less beta times superfluous information, data of noise .3;
- ``copies``: three choices of code by four measures of what is shared.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from unbraid.benchmark._table import mean_and_deviation, to_markdown
from unbraid.data import simulate
from unbraid.module._canonical import MAX_PAIRS, held_out_information

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NOISES = (0.0, 0.01, 0.1, 0.3, 1.0)
BETAS = (0.0, 0.1, 1.0, 10.0, 100.0)
BETA_NOISE = 0.3
VIEW_NOISE, VIEW_DROPPED = 0.01, 0.1  # DisentangledSSL's views: noise, features set to zero, or neither
COPIES = {"c_1": (0,), "c_1 and its copy": (0, 1), "c_1 and c_2": (0, 2)}
CORRELATIONS = (0.9, 0.6)  # of c_1 and c_2


@dataclass(frozen=True)
class Population:
    """Latents and modalities as linear maps of independent sources of unit variance, one column per source.

    A covariance is then a product of two of these matrices, and what a code explains is a projection on its rows.

    Attributes
    ----------
    shared, specific
        :math:`c` and, per modality, :math:`s_m`.
    modalities
        Per modality, :math:`x_m`.
    specific_maps
        Per modality, :math:`B_m`, ``(d, k)``.
    """

    shared: NDArray
    specific: tuple[NDArray, NDArray]
    modalities: tuple[NDArray, NDArray]
    specific_maps: tuple[NDArray, NDArray]


def population(mixing: Sequence[NDArray], noise: float) -> Population:
    r"""The simulation with noise of standard deviation ``noise`` on every feature.

    Parameters
    ----------
    mixing
        Per modality, :math:`T_m` with :math:`x_m = [s_m, c] T_m`, ``(2k, d)``.
    noise
        :math:`\sigma`, in the units of the features.
    """
    k, d = len(mixing[0]) // 2, mixing[0].shape[1]
    sources = np.eye(3 * k + 2 * d)
    s_1, c, s_2 = (np.sqrt(0.5) * sources[k * i : k * (i + 1)] for i in range(3))
    errors = np.split(noise * sources[3 * k :], 2)
    x = tuple(T.T @ np.vstack([s, c]) + e for T, s, e in zip(mixing, (s_1, s_2), errors, strict=True))
    return Population(c, (s_1, s_2), x, tuple(T[:k].T for T in mixing))


def explained(target: NDArray, code: NDArray) -> float:
    """Share of the target's variance that the best linear map from the code explains.

    Parameters
    ----------
    target, code
        Linear maps of the sources, ``(n, sources)``.
    """
    _, length, basis = np.linalg.svd(code, full_matrices=False)
    basis = basis[length > 1e-9 * length.max(initial=0.0)]  # the rest is rounding
    return float(((target @ basis.T) ** 2).sum() / (target**2).sum())


def canonical_maps(view_1: NDArray, view_2: NDArray, n: int) -> tuple[NDArray, NDArray, NDArray]:
    """Canonical maps of two views, ``(n, d)`` each, and the correlations.

    Parameters
    ----------
    view_1, view_2
        Linear maps of the sources, ``(d, sources)``.
    n
        Variates wanted.
    """
    (q_1, r_1), (q_2, r_2) = (np.linalg.qr(view.T) for view in (view_1, view_2))
    left, rho, right = np.linalg.svd(q_1.T @ q_2)
    return np.linalg.solve(r_1, left[:, :n]).T, np.linalg.solve(r_2, right[:n].T).T, np.minimum(rho[:n], 1.0)


def disturbed(x: NDArray, *, noise: float = 0.0, dropped: float = 0.0, share: float = 1.0) -> tuple[NDArray, float]:
    r"""Covariance of random views of a modality, and the factor of its covariance with the other modality's views.

    With probability ``share`` each, noise is added or exactly :math:`h = q d` of :math:`d` features become zero,
    whichever is asked for. A feature survives with :math:`p_1 = 1 - q`, two of them with
    :math:`p_2 = p_1 (d - h - 1) / (d - 1)`, so the latter makes :math:`p_2 \Sigma + (p_1 - p_2) \,\mathrm{diag}\,
    \Sigma` of a covariance :math:`\Sigma`, and :math:`p_1` of the mean given a cell.

    Parameters
    ----------
    x
        The modality as a linear map of the sources, ``(d, sources)``.
    noise
        Standard deviation.
    dropped
        :math:`q`.
    share
        Probability of each.
    """
    covariance, d = x @ x.T, len(x)
    p_1 = 1 - dropped
    p_2 = p_1 * (d - round(dropped * d) - 1) / (d - 1)
    by_dropout = (p_2 - 1) * covariance + (p_1 - p_2) * np.diag(np.diag(covariance))
    return covariance + share * (noise**2 * np.eye(d) + by_dropout), 1 - share * dropped


def fitted_to(data: Population, **disturbance: float) -> list[NDArray]:
    """Maps of all canonical codes that are fitted to disturbed views, one map per modality.

    Parameters
    ----------
    data
        The clean data.
    **disturbance
        Of :func:`disturbed`.
    """
    views = []
    for i, x in enumerate(data.modalities):
        covariance, factor = disturbed(x, **disturbance)
        # what the view has beyond a shrunken modality is independent of the other view
        rest = np.linalg.eigh(covariance - factor**2 * x @ x.T)
        own = rest.eigenvectors * np.sqrt(np.maximum(rest.eigenvalues, 0.0))
        views.append(np.hstack([factor * x, *(own if i == j else np.zeros_like(own) for j in range(2))]))
    return list(canonical_maps(*views, len(data.shared))[:2])


def shares(data: Population, codes: Sequence[NDArray]) -> dict[str, float]:
    """What is explained of the shared and of the first specific latent by the codes of modalities.

    Parameters
    ----------
    data
        The data.
    codes
        Shared code of each modality, paired dimension by dimension.
    """
    codes = [code / np.linalg.norm(code, axis=1, keepdims=True) for code in codes]
    # the joint code is the sum up to a factor for each dimension, which a linear map does not see
    asked = {"z_1": codes[0], "[z_1, z_2]": np.vstack(codes), "joint": sum(codes)}
    found = {
        f"{latent} from {name}": explained(target, code)
        for name, code in asked.items()
        for latent, target in {"c": data.shared, "s_1": data.specific[0]}.items()
    }
    return {**found, "1 - correlation": float(((codes[0] - codes[1]) ** 2).sum() / 2 / len(codes[0]))}


def noise_row(mixing: Sequence[NDArray], noise: float) -> dict[str, float]:
    """Ideal codes of data with noise.

    Parameters
    ----------
    mixing, noise
        Of :func:`population`.
    """
    data = population(mixing, noise)
    x_1, x_2 = data.modalities
    *maps, rho = canonical_maps(x_1, x_2, len(data.shared))
    codes = [w @ x for w, x in zip(maps, data.modalities, strict=True)]
    row = {"nats": float(-0.5 * np.log1p(-(rho**2)).sum()) if noise else np.nan}  # without noise there is no end
    row |= {"median correlation": float(np.median(rho)), "least": float(rho.min())}
    row |= {"c from x_1, x_2": explained(data.shared, np.vstack([x_1, x_2]))}
    row |= {"s_1 from x_1": explained(data.specific[0], x_1), **shares(data, codes)}
    row["s_1 from z_1 - z_2"] = explained(data.specific[0], codes[0] - codes[1]) if noise else 0.0
    clean = [_free_of(b) @ x for b, x in zip(data.specific_maps, data.modalities, strict=True)]
    row |= {"c from x_1 free of s_1": explained(data.shared, clean[0])}
    row |= {"c from both free": explained(data.shared, np.vstack(clean))}
    residual = x_1 - (x_1 @ codes[0].T) @ np.linalg.solve(codes[0] @ codes[0].T, codes[0])
    return row | {"s_1 from r_1": explained(data.specific[0], residual), "c from r_1": explained(data.shared, residual)}


def _free_of(directions: NDArray) -> NDArray:
    """Rows that are orthogonal to the columns."""
    return np.linalg.svd(directions)[0][:, directions.shape[1] :].T


def fit_rows(mixing: Sequence[NDArray]) -> list[dict[str, object]]:
    """Codes of clean data by maps that were fitted to something else.

    Parameters
    ----------
    mixing
        Of :func:`population`.
    """
    data = population(mixing, 0.0)
    x_1, x_2 = data.modalities
    variance = (x_1**2).sum() / len(x_1)
    third = 1 / 3
    left, _, right = np.linalg.svd(x_1 @ x_2.T)
    k = len(data.shared)
    fits = {
        "clean data": fitted_to(data),
        "views: all three": fitted_to(data, noise=VIEW_NOISE, dropped=VIEW_DROPPED, share=third),
        "views: noise alone": fitted_to(data, noise=VIEW_NOISE, share=third),
        "views: dropped features alone": fitted_to(data, dropped=VIEW_DROPPED, share=third),
        **{f"ridge {r:g}": fitted_to(data, noise=np.sqrt(r * variance)) for r in (1e-6, 1e-4, 1e-2)},
        "no whitening (PLS)": [left[:, :k].T, right[:k]],
    }
    return [
        {"fitted to": name, **shares(data, [w @ x for w, x in zip(maps, data.modalities, strict=True)])}
        for name, maps in fits.items()
    ]


def beta_row(mixing: Sequence[NDArray], beta: float) -> dict[str, float]:
    r"""The code :math:`t` that maximises :math:`I(t; x_2) - \beta I(t; x_1 | x_2)`.

    It is :math:`z_j` plus noise, dimension by dimension (Chechik et al. 2005), of signal-to-noise ratio
    :math:`u_j = (1 - (1 + \beta)(1 - \rho_j^2)) / (\beta (1 - \rho_j^2))`, and nothing where that is negative.

    Parameters
    ----------
    mixing
        Of :func:`population`.
    beta
        :math:`\beta`.
    """
    data = population(mixing, BETA_NOISE)
    maps, _, rho = canonical_maps(*data.modalities, len(data.shared))
    code, unshared = maps @ data.modalities[0], 1 - rho**2
    with np.errstate(divide="ignore"):
        ratio = np.maximum(1 - (1 + beta) * unshared, 0.0) / (beta * unshared)
    kept = np.sqrt(1 / (1 + 1 / ratio[ratio > 0]))  # correlation of t and z; 1 without beta
    noisy = np.hstack([kept[:, None] * code[ratio > 0], np.diag(np.sqrt(1 - kept**2))])
    widened = lambda target: np.hstack([target, np.zeros((len(target), noisy.shape[1] - target.shape[1]))])
    informative = -0.5 * np.log1p(-((kept * rho[ratio > 0]) ** 2)).sum()
    return {
        "dimensions": float((ratio > 0).sum()),
        "nats of x_2": float(informative),
        "c from t": explained(widened(data.shared), noisy),
        "s_1 from t": explained(widened(data.specific[0]), noisy),
    }


def copies_rows(seed: int, n_batches: int = 20) -> list[dict[str, object]]:
    r"""Two shared latents of correlation .9 and .6, and the second Hermite function of the first as a third dimension.

    The function :math:`(c_1^2 - 1) / \sqrt 2` has unit variance and correlates by :math:`.9^2`, uncorrelated with
    both latents: to correlations it is a dimension like any other, and it tells nothing new.

    Parameters
    ----------
    seed
        Of the cells.
    n_batches
        Batches of 800 pairs, over which the bound is averaged.
    """
    first, second = CORRELATIONS
    rho = np.array([first, first**2, second])
    true = {(0,): [first], (0, 1): [first], (0, 2): [first, second]}
    nats = lambda r: float(-0.5 * np.log1p(-(np.asarray(r) ** 2)).sum())
    rng = np.random.default_rng(seed)
    bounds = dict.fromkeys(COPIES, 0.0)
    for _ in range(n_batches):
        a = rng.standard_normal((MAX_PAIRS, 2))
        b = np.array(CORRELATIONS) * a + np.sqrt(1 - np.square(CORRELATIONS)) * rng.standard_normal((MAX_PAIRS, 2))
        a, b = (np.stack([x[:, 0], (x[:, 0] ** 2 - 1) / np.sqrt(2), x[:, 1]], axis=1) for x in (a, b))
        for name, chosen in COPIES.items():
            part = [torch.from_numpy(x[:, list(chosen)]) for x in (a, b)]
            bounds[name] += float(held_out_information(*part, None, torch.from_numpy(rho[list(chosen)]))[0]) / n_batches
    return [
        {
            "code": name,
            "sum of correlations": float(rho[list(chosen)].sum()),
            "Gaussian information": nats(rho[list(chosen)]),
            "InfoNCE of the ratio": bounds[name],
            "information": nats(true[chosen]),
        }
        for name, chosen in COPIES.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the four tables, mean and standard deviation over seeds.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of the mixing matrices, and of the pairs")
    parser.add_argument("--n-obs", type=int, default=2, help="of the simulation, whose stream the matrices share")
    arguments = parser.parse_args(argv)

    tables = {"noise": [], "fit": [], "beta": [], "copies": []}
    for seed in range(arguments.seeds):
        simulated = simulate.disentangled_ssl(arguments.n_obs, seed=seed).uns["simulation"]["mixing"]
        mixing = [simulated[m] for m in ("x1", "x2")]
        tables["noise"] += [{"noise": f"{s:g}", "seed": seed, **noise_row(mixing, s)} for s in NOISES]
        tables["fit"] += [{"seed": seed, **row} for row in fit_rows(mixing)]
        tables["beta"] += [{"beta": f"{beta:g}", "seed": seed, **beta_row(mixing, beta)} for beta in BETAS]
        tables["copies"] += [{"seed": seed, **row} for row in copies_rows(seed)]
    for (name, rows), by in zip(tables.items(), ("noise", "fitted to", "beta", "code"), strict=True):
        print(f"\n{name}\n\n{to_markdown(mean_and_deviation(pd.DataFrame(rows), [by]))}")


if __name__ == "__main__":
    main()
