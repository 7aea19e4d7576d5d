"""Classes that modalities share beside classes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import check_whole
from unbraid.data.simulate._assays import labels, presence
from unbraid.data.simulate._common import assemble, cell_names, reference_split, split_column

if TYPE_CHECKING:
    from mudata import MuData


def classes(
    n_obs: int = 10_000,
    *,
    modalities: int = 3,
    n_shared: int = 10,
    n_specific: int = 4,
    n_features: int = 20,
    shared_share: float = 0.05,
    noise_share: float = 0.075,
    missing: float = 0.0,
    seed: int = 0,
) -> MuData:
    r"""A class that all modalities share, faintly, beside a class of each modality's own that is most of its variance.

    With :math:`c` one of ``n_shared`` classes and, for each modality, :math:`p_m` one of ``n_specific``, all uniform and
    independent, centroids :math:`u^m_c, v^m_p` and :math:`\epsilon_m \sim \mathcal N(0, I)`,

    .. math:: x_m = \sqrt{a}\, u^m_c + \sqrt{1 - a - b}\, v^m_{p_m} + \sqrt{b}\, \epsilon_m ,

    where :math:`a` is ``shared_share`` and :math:`b` ``noise_share``. Centroids are drawn from :math:`\mathcal N(0, I)`,
    centred over the classes and scaled to a mean square of 1, so that :math:`a` and :math:`b` are shares of the
    variance. What generative models learn when the shared signal is weak: to reconstruct, :math:`p_m` is worth more.

    Parameters
    ----------
    n_obs
        Number of cells.
    modalities
        Number of modalities, at least 2: ``x1``, ``x2``, ...
    n_shared, n_specific
        Classes, at least 2.
    n_features
        Features of each modality.
    shared_share, noise_share
        :math:`a` and :math:`b`, together less than 1.
    missing
        Share of the cells that lack one modality, at most 1, spread evenly over the modalities. No cell lacks two.
    seed
        Seed of NumPy's default generator.

    Returns
    -------
    MuData with modalities ``x1``, ``x2``, ..., each ``(n_obs of m, n_features)`` float32. The truth:

    - ``obs["y_shared"]`` and ``obs["y_specific_x1"]``, ...: classes, categorical;
    - ``obsm["true_shared"]`` and ``mod[m].obsm["true_specific"]``: the same as 0 and 1, a column per class;
    - ``obs["split"]``: ``train`` (80 %) or ``test``;
    - ``mod[m].var["truth"]``: ``both``;
    - ``uns["simulation"]``: recipe and parameters.

    Raises
    ------
    ValueError
        If a number is too small, or a share is out of its range.

    Notes
    -----
    Given a modality's own class, the optimal classifier of :math:`c` is linear, as all noise is isotropic. With the
    defaults and ``seed=0`` logistic regression on one modality reads :math:`c` at .93 and :math:`p_m` at 1.00.

    Examples
    --------
    >>> mdata = ub.data.simulate.classes(n_obs=1_000, missing=0.3)
    >>> mdata.obs["y_shared"].nunique(), mdata["x1"].n_obs
    (10, 900)
    """
    minimum = {"n_obs": 2, "modalities": 2, "n_shared": 2, "n_specific": 2, "n_features": 1}
    sizes = {"n_obs": n_obs, "modalities": modalities, "n_shared": n_shared, "n_specific": n_specific}
    sizes["n_features"] = n_features
    for name, value in sizes.items():
        check_whole(name, value, minimum[name])
    if not (shared_share >= 0 and noise_share >= 0 and shared_share + noise_share < 1):
        raise ValueError(
            "`shared_share` and `noise_share` must be at least 0 and together less than 1, got "
            f"{shared_share} and {noise_share}."
        )
    streams = np.random.SeedSequence(seed).spawn(2 + modalities)
    cell_rng, absence_rng, *modality_rngs = map(np.random.default_rng, streams)
    modality_names = [f"x{m}" for m in range(1, modalities + 1)]
    names = cell_names(n_obs)
    present = presence(dict.fromkeys(modality_names, missing / modalities), n_obs, absence_rng)
    shared = cell_rng.integers(n_shared, size=n_obs)
    obs = pd.DataFrame({"y_shared": labels("shared", shared, n_shared)}, index=names)
    mod = {}
    for name, rng in zip(modality_names, modality_rngs, strict=True):
        u, v = _centroids(rng, n_shared, n_features), _centroids(rng, n_specific, n_features)
        specific = rng.integers(n_specific, size=n_obs)
        x = np.sqrt(shared_share) * u[shared] + np.sqrt(1 - shared_share - noise_share) * v[specific]
        x += np.sqrt(noise_share) * rng.standard_normal(x.shape)
        obs[f"y_specific_{name}"] = labels("specific", specific, n_specific)
        here = present[name]
        mod[name] = AnnData(
            x[here].astype(np.float32),
            obs=pd.DataFrame(index=names[here]),
            var=pd.DataFrame(
                {"truth": pd.Categorical(["both"] * n_features)}, index=[f"{name}_{j}" for j in range(n_features)]
            ),
            obsm={"true_specific": np.eye(n_specific, dtype=np.float32)[specific[here]]},
        )
    obs["split"] = split_column(reference_split(n_obs))
    parameters = {**sizes, "shared_share": shared_share, "noise_share": noise_share, "missing": missing, "seed": seed}
    return assemble(
        mod, obs, shared=np.eye(n_shared)[shared], simulation={"recipe": "classes", "parameters": parameters}
    )


def _centroids(rng: np.random.Generator, n_classes: int, n_features: int) -> np.ndarray:
    """Centroids with mean 0 over the classes and mean square 1."""
    centroids = rng.standard_normal((n_classes, n_features))
    centroids -= centroids.mean(axis=0)
    return centroids / np.sqrt(np.mean(centroids**2))
