"""The simulation of DisentangledSSL."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import check_whole
from unbraid.data.simulate._common import assemble, cell_names, random_label, reference_split, split_column

if TYPE_CHECKING:
    from mudata import MuData

N_LATENT = 50
N_PURE = 15
LABEL_SEEDS = {"y_specific_x1": 0, "y_shared": 1, "y_specific_x2": 2}


def disentangled_ssl(n_obs: int = 90_000, *, noise: float = 0.0, seed: int = 0) -> MuData:
    r"""Two linear mixtures of a shared and a private Gaussian, with labels on each of the three latents.

    The recipe of the released DisentangledSSL code (paper: section 3.1 and appendix H.1). With row vectors,

    .. math::

        z_c, z_s^1, z_s^2 \sim \mathcal{N}(0, \tfrac12 I_{50}), \qquad
        T_m \sim \mathcal{U}(-1, 1)^{100 \times 100}, \qquad
        x_m = [z_s^m, z_c] \, T_m + \sigma \epsilon_m .

    Each latent :math:`v` has a binary label :math:`y = 1[s \ge \operatorname{median}(s)]` with
    :math:`s = f(v) + 0.1 \epsilon`, where :math:`f` is an untrained network Linear(50, 100), ReLU, Linear(100, 1)
    with Xavier-uniform weights and PyTorch's default biases.

    Parameters
    ----------
    n_obs
        Number of paired observations; the paper has 90,000.
    noise
        Standard deviation :math:`\sigma` of independent Gaussian noise on every feature, training and test. The published
        data have none.
    seed
        Seed of the latents, the mixing matrices and the noise. The published data are ``seed=0``.

    Returns
    -------
    MuData with modalities ``x1`` and ``x2``, each ``(n_obs, 100)`` float32, and the truth:

    - ``obsm["true_shared"]``: :math:`z_c`, ``(n_obs, 50)``;
    - ``mod[m].obsm["true_specific"]``: :math:`z_s^m`, ``(n_obs, 50)``;
    - ``obs["y_shared"]``, ``obs["y_specific_x1"]``, ``obs["y_specific_x2"]``: 0 or 1, balanced;
    - ``obs["split"]``: ``train`` (80 %) or ``test``;
    - ``mod[m].var["truth"]``: ``both`` for every feature, since all are mixtures;
    - ``uns["simulation"]``: recipe, parameters and the matrices :math:`T_m` under ``mixing``.

    Notes
    -----
    One NumPy stream draws, in this order, :math:`z_c, z_s^1, z_s^2, T_1, T_2` and the noise :math:`\epsilon` of the
    labels of :math:`z_s^1, z_c, z_s^2`; it is the stream that ``np.random.seed(seed)`` would start. The label
    networks always have torch seeds 0, 1, 2 in that label order, and the split always torch seed 0, so that
    another ``seed`` changes the data but neither the label functions nor which rows are for testing. The caller's
    random states are left as they were.

    The mixing is square, so without noise each modality determines its latents. The noise and feature dropout that the
    paper adds belong to training, not to the data. With ``noise`` none does, and the canonical correlations of the
    modalities, 50 ones without it, fall. The labels are not linear in the latents: a logistic
    probe of the true latent reaches about .80 for :math:`z_c`, .835 for :math:`z_s^1` and .82 for :math:`z_s^2`, not 1.
    """
    return _simulate("disentangled_ssl", n_obs, seed, n_pure=0, noise=noise)


def disentangled_ssl_mixed(n_obs: int = 90_000, *, seed: int = 0) -> MuData:
    r"""As :func:`disentangled_ssl`, but 15 of the 50 shared dimensions are observed unmixed.

    The mixed-entanglement variant (paper: appendix H.1, Figure 9). With
    :math:`z_c = [z_c^{mix}, z_c^{pure}]` of 35 and 15 dimensions and :math:`T_m` of shape ``(85, 85)``,

    .. math::

        x_m = \big[ [z_s^m, z_c^{mix}] \, T_m, \; z_c^{pure} \big] .

    Parameters
    ----------
    n_obs
        Number of paired observations; the paper has 90,000.
    seed
        Seed of the latents, the mixing matrices and the label noise.

    Returns
    -------
    MuData as from :func:`disentangled_ssl`. ``mod[m].var["truth"]`` is ``both`` for the 85 mixed features and
    ``shared`` for the last 15, which hold the same values in both modalities.

    Notes
    -----
    This variant is not part of the released code: order of draws, labels (on all 50 dimensions of :math:`z_c`) and
    split are those of :func:`disentangled_ssl`.
    """
    return _simulate("disentangled_ssl_mixed", n_obs, seed, n_pure=N_PURE)


def _simulate(recipe: str, n_obs: int, seed: int, *, n_pure: int, noise: float = 0.0) -> MuData:
    check_whole("n_obs", n_obs, 2)
    if not 0 <= noise < math.inf:
        raise ValueError(f"`noise` must be a number from 0 on, got {noise!r}.")
    names = cell_names(n_obs)
    n_mixed = N_LATENT - n_pure

    rng = np.random.RandomState(seed)  # the published data come from the legacy stream
    covariance = 0.5 * np.eye(N_LATENT)
    shared, specific_1, specific_2 = (
        rng.multivariate_normal(np.zeros(N_LATENT), covariance, size=n_obs) for _ in range(3)
    )
    specific = {"x1": specific_1, "x2": specific_2}

    of_features = np.random.default_rng([seed, 1])  # not the published stream, which ends with the labels
    mod, mixing = {}, {}
    for name, private in specific.items():
        entangled = np.concatenate([private, shared[:, :n_mixed]], axis=1)
        mixing[name] = rng.uniform(-1.0, 1.0, (entangled.shape[1], entangled.shape[1]))
        observed = np.concatenate([entangled @ mixing[name], shared[:, n_mixed:]], axis=1)
        if noise:
            observed = observed + noise * of_features.normal(size=observed.shape)
        truth = ["both"] * entangled.shape[1] + ["shared"] * n_pure
        mod[name] = AnnData(
            observed.astype(np.float32),
            obs=pd.DataFrame(index=names),
            var=pd.DataFrame({"truth": pd.Categorical(truth)}, index=[f"{name}_{j}" for j in range(observed.shape[1])]),
            obsm={"true_specific": private.astype(np.float32)},
        )

    latents = {"y_specific_x1": specific_1, "y_shared": shared, "y_specific_x2": specific_2}
    labels = {key: random_label(latents[key], rng, torch_seed=torch_seed) for key, torch_seed in LABEL_SEEDS.items()}
    obs = pd.DataFrame({**labels, "split": split_column(reference_split(n_obs))}, index=names)
    parameters = {"n_obs": n_obs, "seed": seed} | ({"noise": noise} if noise else {})
    simulation = {"recipe": recipe, "parameters": parameters, "mixing": mixing}
    return assemble(mod, obs, shared=shared, simulation=simulation)
