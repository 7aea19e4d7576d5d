"""Two independent factors that modalities share, of which a task asks for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import check_whole
from unbraid.data.simulate._assays import labels, presence
from unbraid.data.simulate._classes import _centroids
from unbraid.data.simulate._common import assemble, cell_names, reference_split, split_column

if TYPE_CHECKING:
    from mudata import MuData

N_SPECIFIC = 4
GAIN = 2.0  # of both layers of the mixing
BIAS_SD = 0.5


def two_factors(
    n_obs: int = 10_000,
    *,
    modalities: int = 3,
    n_task: int = 10,
    n_residual: int = 10,
    n_features: int = 24,
    task_share: float = 0.25,
    residual_share: float = 0.25,
    specific_share: float = 0.25,
    nonlinear: bool = False,
    missing: float = 0.0,
    seed: int = 0,
) -> MuData:
    r"""Two independent classes that all modalities share, task and residual, beside a Gaussian of each modality's own.

    What DDMNISTMM (:func:`~unbraid.data.datasets.ddmnist`) is in images. With :math:`t` one of ``n_task`` and
    :math:`r` one of ``n_residual`` classes, :math:`s_m \sim \mathcal N(0, I_4)` for each modality, all independent and
    the classes uniform, centroids :math:`u^m_t, v^m_r`, loadings :math:`L_m` and
    :math:`\epsilon_m \sim \mathcal N(0, I)`,

    .. math::

        x_m = f_m\big( \sqrt{a}\, u^m_t + \sqrt{b}\, v^m_r + \sqrt{c}\, s_m L_m \big) + \sqrt{1 - a - b - c}\;
        \epsilon_m ,

    where :math:`a` is ``task_share``, :math:`b` ``residual_share`` and :math:`c` ``specific_share``. Centroids and
    loadings are drawn from :math:`\mathcal N(0, I)`; centroids are centred over the classes, and each of the three
    terms is scaled to a mean variance of its share. By default :math:`f_m` does nothing. With ``nonlinear`` it is a
    random network, scaled such that the features have mean 0 and variance :math:`a + b + c` over the ``n_obs`` cells:

    .. math:: f_m(y) \propto \tanh\big( 2 \tanh( 2 \, y \, W_1^m / \sqrt{a + b + c} + b_1^m ) \, W_2^m + b_2^m \big) ,

    with random orthogonal :math:`W` and :math:`b_1, b_2 \sim \mathcal N(0, 0.5^2)`.

    Parameters
    ----------
    n_obs
        Number of cells.
    modalities
        Number of modalities, at least 2: ``x1``, ``x2``, ...
    n_task, n_residual
        Classes, at least 2.
    n_features
        Features of each modality.
    task_share, residual_share, specific_share
        :math:`a`, :math:`b` and :math:`c`, together more than 0 and less than 1; the rest is noise.
    nonlinear
        Whether the factors pass through a random network.
    missing
        Share of the cells that lack one modality, at most 1, spread evenly over the modalities. No cell lacks two.
    seed
        Seed of NumPy's default generator. ``nonlinear`` and ``missing`` change neither factors nor noise.

    Returns
    -------
    MuData with modalities ``x1``, ``x2``, ..., each ``(n_obs of m, n_features)`` float32. The truth:

    - ``obs["y_task"]`` and ``obs["y_residual"]``: classes, categorical;
    - ``obsm["true_task"]`` and ``obsm["true_residual"]``: the same as 0 and 1, a column per class;
      ``obsm["true_shared"]``: both side by side;
    - ``mod[m].obsm["true_specific"]``: :math:`s_m`, ``(n_obs of m, 4)``;
    - ``obs["split"]``: ``train`` (80 %) or ``test``;
    - ``mod[m].var["truth"]``: ``both``;
    - ``uns["simulation"]``: recipe and parameters.

    Raises
    ------
    ValueError
        If a number is too small, or a share is out of its range.

    Notes
    -----
    Both classes are shared, so what modalities have in common does not say which of them is the task; with the
    defaults the two differ in name only. A label, or pairs of cells that do or do not belong together, must say it.

    With the defaults and ``seed=0``, fitted on the training split and judged on the test split, logistic regression on
    one modality (``x1``) reads the task at .97 and the residual class at .98, on the three side by side both at 1.00.
    The best that can be done with ``x1``, Bayes' rule with the true parameters, is .99 for both. Ridge regression
    explains .71 of the variance of :math:`s_1`. The canonical correlations of two modalities fall from .82 to .14 over
    the 18 dimensions that they share (9 of each class, as centroids are centred) and are at most .04 in the others.
    k-means with ten clusters in those 18 dimensions of ``x1`` and ``x2`` happens on the residual class: its adjusted
    Rand index is .81 with that and .06 with the task.

    With ``nonlinear`` logistic regression on ``x1`` reads the task at .87 and the residual class at .86, on all three
    at 1.00, a network with two hidden layers of 256 on ``x1`` both at .89; ridge regression explains .54 of
    :math:`s_1`. The canonical correlations fall from .69 to .07, and the ten clusters mix the classes (.34 and .32).

    Examples
    --------
    >>> mdata = ub.data.simulate.two_factors(n_obs=1_000, missing=0.3)
    >>> mdata.obs["y_task"].nunique(), mdata.obs["y_residual"].nunique(), mdata["x1"].n_obs
    (10, 10, 900)
    """
    minimum = {"n_obs": 2, "modalities": 2, "n_task": 2, "n_residual": 2, "n_features": 1}
    sizes = {"n_obs": n_obs, "modalities": modalities, "n_task": n_task, "n_residual": n_residual}
    sizes["n_features"] = n_features
    for name, value in sizes.items():
        check_whole(name, value, minimum[name])
    shares = {"task_share": task_share, "residual_share": residual_share, "specific_share": specific_share}
    signal_share = sum(shares.values())
    if not (min(shares.values()) >= 0 and 0 < signal_share < 1):
        raise ValueError(
            "`task_share`, `residual_share` and `specific_share` must be at least 0 and together more than 0 and less "
            f"than 1, got {task_share}, {residual_share} and {specific_share}."
        )
    streams = np.random.SeedSequence(seed).spawn(2 + modalities)
    cell_rng, absence_rng, *modality_rngs = map(np.random.default_rng, streams)
    modality_names = [f"x{m}" for m in range(1, modalities + 1)]
    names = cell_names(n_obs)
    present = presence(dict.fromkeys(modality_names, missing / modalities), n_obs, absence_rng)
    task, residual = cell_rng.integers(n_task, size=n_obs), cell_rng.integers(n_residual, size=n_obs)
    obs = pd.DataFrame(
        {"y_task": labels("task", task, n_task), "y_residual": labels("residual", residual, n_residual)}, index=names
    )
    mod = {}
    for name, rng in zip(modality_names, modality_rngs, strict=True):
        u, v = _centroids(rng, n_task, n_features), _centroids(rng, n_residual, n_features)
        loadings = rng.standard_normal((N_SPECIFIC, n_features))
        loadings /= np.sqrt(np.mean(np.sum(loadings**2, axis=0)))
        specific, noise = rng.standard_normal((n_obs, N_SPECIFIC)), rng.standard_normal((n_obs, n_features))
        x = np.sqrt(task_share) * u[task] + np.sqrt(residual_share) * v[residual]
        x += np.sqrt(specific_share) * specific @ loadings
        if nonlinear:
            x = np.sqrt(signal_share) * _mixed(x / np.sqrt(signal_share), rng)
        x += np.sqrt(1 - signal_share) * noise
        here = present[name]
        mod[name] = AnnData(
            x[here].astype(np.float32),
            obs=pd.DataFrame(index=names[here]),
            var=pd.DataFrame(
                {"truth": pd.Categorical(["both"] * n_features)}, index=[f"{name}_{j}" for j in range(n_features)]
            ),
            obsm={"true_specific": specific[here].astype(np.float32)},
        )
    obs["split"] = split_column(reference_split(n_obs))
    parameters = {**sizes, **shares, "nonlinear": nonlinear, "missing": missing, "seed": seed}
    shared = np.concatenate([np.eye(n_task)[task], np.eye(n_residual)[residual]], axis=1)
    mdata = assemble(mod, obs, shared=shared, simulation={"recipe": "two_factors", "parameters": parameters})
    parts = np.split(mdata.obsm["true_shared"], [n_task], axis=1)
    mdata.obsm["true_task"], mdata.obsm["true_residual"] = (part.copy() for part in parts)
    return mdata


def _mixed(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two layers of a random network, which loses nothing, and features of mean 0 and variance 1."""
    n_features = values.shape[1]
    for _ in range(2):
        weights = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0]
        values = np.tanh(GAIN * values @ weights + BIAS_SD * rng.standard_normal(n_features))
    values = values - values.mean(axis=0)
    return values / values.std(axis=0)
