"""A shared and a specific Gaussian in each modality, mixed by a random network."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import check_whole
from unbraid.data.simulate._assays import presence
from unbraid.data.simulate._common import assemble, cell_names, random_label, reference_split, split_column

if TYPE_CHECKING:
    from mudata import MuData

BIAS_SD = 0.5
LEAK = 0.2  # slope of the leaky ReLU below 0


def nonlinear(
    n_obs: int = 8_000,
    *,
    modalities: int = 2,
    n_shared: int = 8,
    n_specific: int = 8,
    n_features: int = 60,
    n_hidden: int = 24,
    noise: float = 0.1,
    missing: float = 0.0,
    seed: int = 0,
) -> MuData:
    r"""Nonlinear mixtures of a shared and a specific Gaussian, one random network for each modality.

    With row vectors, :math:`z_c \sim \mathcal{N}(0, I)` of ``n_shared`` and, for each modality,
    :math:`z_m \sim \mathcal{N}(0, I)` of ``n_specific`` dimensions, all independent, and
    :math:`\epsilon_m \sim \mathcal{N}(0, I)`,

    .. math::

        h_m &= \operatorname{leaky}\big( \tanh([z_c, z_m] \, W_1^m + b_1^m) \, W_2^m + b_2^m \big), \\
        x_m &= h_m W_3^m + b_3^m + \sigma \epsilon_m ,

    where leaky is the leaky ReLU of slope 0.2 and :math:`\sigma` is ``noise``. Every :math:`W` has random orthonormal
    rows. :math:`W_1` is then scaled by the root of ``n_hidden / (n_shared + n_specific)``, so that the input of a tanh
    has variance 1 on average, and the columns of :math:`W_3` and :math:`b_3` such that each feature has mean 0 and
    variance 1 over the ``n_obs`` cells before the noise. :math:`b_1, b_2 \sim \mathcal{N}(0, 0.5^2)`.

    The labels are those of :func:`disentangled_ssl`: each latent's is the median split of an untrained network.

    Parameters
    ----------
    n_obs
        Number of cells.
    modalities
        Number of modalities, at least 2: ``x1``, ``x2``, ...
    n_shared, n_specific
        Dimensions of the shared latent and of each modality's specific latent.
    n_features
        Features of each modality, at least ``n_hidden``.
    n_hidden
        Width of both hidden layers, at least ``n_shared + n_specific``.
    noise
        Standard deviation of the noise, in units of a feature's own before the noise.
    missing
        Share of the cells that lack one modality, at most 1, spread evenly over the modalities (rounded down to whole
        cells for each) and at random over the cells. No cell lacks two.
    seed
        Seed of NumPy's default generator. The data of a cell do not change with ``missing``, nor those of a modality
        with the number of modalities; the first two layers do not change with ``n_obs``.

    Returns
    -------
    MuData with modalities ``x1``, ``x2``, ..., each ``(n_obs of m, n_features)`` float32. Cells that lack a modality
    are not in it. The truth:

    - ``obsm["true_shared"]``: :math:`z_c`, ``(n_obs, n_shared)``;
    - ``mod[m].obsm["true_specific"]``: :math:`z_m`, ``(n_obs of m, n_specific)``;
    - ``obs["y_shared"]``, ``obs["y_specific_x1"]``, ...: 0 or 1, balanced, also for cells that lack the modality;
    - ``obs["split"]``: ``train`` (80 %) or ``test``;
    - ``mod[m].var["truth"]``: ``both`` for every feature, since all are mixtures;
    - ``uns["simulation"]``: recipe, parameters and under ``mixing``, for each modality, ``weights_1`` to ``weights_3``
      and ``biases_1`` to ``biases_3``.

    Raises
    ------
    ValueError
        If a size is too small for the mixing to be injective, or ``noise`` or ``missing`` is out of its range.

    Notes
    -----
    Both activations are strictly increasing and every :math:`W` has full row rank, so without noise a modality
    determines its latents. As the modalities are independent given :math:`z_c`, what they share is :math:`z_c` and
    nothing else, and it is identifiable up to an invertible map. A specific code that is independent of :math:`z_c`
    and complete is identifiable only up to an invertible map that may differ with :math:`z_c`. Judge codes by
    regression or probes, nonlinear ones too, and not dimension by dimension.

    No linear map undoes the mixing. With the defaults, fitted on the training split and judged on the test split,
    ridge regression on :math:`x_1` explains .85 of the variance of :math:`z_c` and .85 of :math:`z_1`, a network with
    two hidden layers of 256 explains .92 and .91.

    The networks of the labels and the split are the same for every ``seed``.
    """
    minimum = {"n_obs": 2, "modalities": 2, "n_shared": 1, "n_specific": 1}
    sizes = {"n_obs": n_obs, "modalities": modalities, "n_shared": n_shared, "n_specific": n_specific}
    for name, value in sizes.items():
        check_whole(name, value, minimum[name])
    check_whole("n_hidden", n_hidden, n_shared + n_specific)
    check_whole("n_features", n_features, n_hidden)
    if not 0 <= noise < np.inf:
        raise ValueError(f"`noise` must be finite and not negative, got {noise!r}.")
    if not 0 <= missing <= 1:
        raise ValueError(f"`missing` must be between 0 and 1, got {missing!r}.")

    # One stream for each purpose, so that a change of one argument leaves the rest as it was.
    streams = np.random.SeedSequence(seed).spawn(2 + modalities)
    cell_rng, absence_rng, *modality_rngs = map(np.random.default_rng, streams)
    modality_names = [f"x{m}" for m in range(1, modalities + 1)]
    names = cell_names(n_obs)
    present = presence(dict.fromkeys(modality_names, missing / modalities), n_obs, absence_rng)

    shared = cell_rng.standard_normal((n_obs, n_shared))
    obs = pd.DataFrame({"y_shared": random_label(shared, cell_rng, torch_seed=0)}, index=names)

    mod, mixing = {}, {}
    for m, (name, rng) in enumerate(zip(modality_names, modality_rngs, strict=True), start=1):
        network = _random_network(rng, (n_shared + n_specific, n_hidden, n_hidden, n_features))
        specific = rng.standard_normal((n_obs, n_specific))
        signal, mixing[name] = _mix(np.concatenate([shared, specific], axis=1), network)
        observed = signal + noise * rng.standard_normal(signal.shape)
        obs[f"y_specific_{name}"] = random_label(specific, rng, torch_seed=m)

        here = present[name]
        mod[name] = AnnData(
            observed[here].astype(np.float32),
            obs=pd.DataFrame(index=names[here]),
            var=pd.DataFrame(
                {"truth": pd.Categorical(["both"] * n_features)}, index=[f"{name}_{j}" for j in range(n_features)]
            ),
            obsm={"true_specific": specific[here].astype(np.float32)},
        )

    obs["split"] = split_column(reference_split(n_obs))
    parameters = {**sizes, "n_features": n_features, "n_hidden": n_hidden}
    parameters |= {"noise": noise, "missing": missing, "seed": seed}
    simulation = {"recipe": "nonlinear", "parameters": parameters, "mixing": mixing}
    return assemble(mod, obs, shared=shared, simulation=simulation)


def _random_network(rng: np.random.Generator, widths: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """Weights with orthonormal rows, the first scaled to the width; :func:`_mix` sets the last layer's scale."""
    network = {}
    for layer, (n_in, n_out) in enumerate(pairwise(widths), start=1):
        network[f"weights_{layer}"] = np.linalg.qr(rng.standard_normal((n_out, n_in)))[0].T
        network[f"biases_{layer}"] = BIAS_SD * rng.standard_normal(n_out)
    network["weights_1"] *= np.sqrt(widths[1] / widths[0])
    return network


def _mix(latent: np.ndarray, network: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output of the network, and the network whose last layer gives that output mean 0 and variance 1."""
    hidden = np.tanh(latent @ network["weights_1"] + network["biases_1"])
    hidden = hidden @ network["weights_2"] + network["biases_2"]
    hidden = np.where(hidden > 0, hidden, LEAK * hidden)
    weights = network["weights_3"] / (hidden @ network["weights_3"]).std(axis=0)
    biases = -(hidden @ weights).mean(axis=0)
    return hidden @ weights + biases, {**network, "weights_3": weights, "biases_3": biases}
