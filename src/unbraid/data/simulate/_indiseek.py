"""The simulations of IndiSeek."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import check_whole
from unbraid.data.simulate._common import assemble, cell_names, split_column

if TYPE_CHECKING:
    from mudata import MuData

Setting = Literal[1, 2, 3, 4]
DISCRETE_VALUES = np.array([-np.sqrt(7) / 2, -1, -0.5, 0.5, 1, np.sqrt(7) / 2])  # mean 0, variance 1


def indiseek(setting: Setting, n_obs: int = 11_000, *, seed: int = 0) -> MuData:
    r"""Six coordinates, of which some are determined by a given shared code and the others are independent of it.

    The four settings of the IndiSeek paper (section 1.1 and appendix A.2). Setting 1 has
    :math:`x \sim \mathcal{N}(0, I_6)` and, with :math:`u = (x_1, x_2)` and entrywise functions, the shared code

    .. math::

        c = 0.5 \, u + 0.2 \sin u + 0.2 \, u^3 .

    Setting 2 has :math:`x_1, x_2, x_5, x_6 \sim \mathcal{N}(0, 1)`,

    .. math::

        x_3 = 0.2 \, (x_1 + x_2), \qquad x_4 = x_1 x_2, \qquad c = (x_1, x_2) .

    Settings 3 and 4 are settings 1 and 2 with the private coordinates (:math:`x_3, \dots, x_6`, respectively
    :math:`x_5, x_6`) uniform on :math:`\{\pm\sqrt7/2, \pm1, \pm1/2\}`, which has mean 0 and variance 1.

    Parameters
    ----------
    setting
        Which of the four.
    n_obs
        Number of observations. Ten elevenths, rounded down, are for training: of 11,000 these are the paper's
        10,000, with 1,000 for testing.
    seed
        Seed of NumPy's default generator. Settings 1 and 3, as well as 2 and 4, share :math:`x_1, x_2` under one
        seed.

    Returns
    -------
    MuData with modality ``x``, the six coordinates, and modality ``oracle``, the code :math:`c`, both float32. The
    paper has no second modality: its oracle code plays that part here. The truth:

    - ``obsm["true_shared"]``: :math:`c`, ``(n_obs, 2)``;
    - ``mod["x"].obsm["true_specific"]``: the private coordinates, ``(n_obs, 4)`` or ``(n_obs, 2)``;
    - ``mod["x"].var["ideal_importance"]``: share of the importance that an ideal specific code gives to the
      coordinate, also as a vector in ``uns["simulation"]["ideal_importance"]``;
    - ``var["truth"]`` of each modality: ``shared`` or ``specific``;
    - ``obs["split"]``: ``train`` or ``test``;
    - ``uns["simulation"]``: recipe and parameters.
    """
    if setting not in get_args(Setting):
        raise ValueError(f"`setting` must be one of {', '.join(map(str, get_args(Setting)))}, got {setting!r}.")
    check_whole("n_obs", n_obs, 2)
    rng = np.random.default_rng(seed)
    names = cell_names(n_obs)

    first = rng.standard_normal((n_obs, 2))
    n_private = 4 if setting in (1, 3) else 2
    if setting in (1, 2):
        private = rng.standard_normal((n_obs, n_private))
    else:
        private = rng.choice(DISCRETE_VALUES, size=(n_obs, n_private))
    if setting in (1, 3):
        code = 0.5 * first + 0.2 * np.sin(first) + 0.2 * first**3
        x = np.concatenate([first, private], axis=1)
    else:
        code = first
        redundant = np.stack([0.2 * first.sum(axis=1), first.prod(axis=1)], axis=1)
        x = np.concatenate([first, redundant, private], axis=1)

    is_private = np.arange(6) >= 6 - n_private
    importance = is_private / n_private
    var = pd.DataFrame(
        {"truth": pd.Categorical(np.where(is_private, "specific", "shared")), "ideal_importance": importance},
        index=[f"x_{j}" for j in range(1, 7)],
    )
    oracle_var = pd.DataFrame({"truth": pd.Categorical(["shared", "shared"])}, index=["c_1", "c_2"])
    mod = {
        "x": AnnData(
            x.astype(np.float32),
            obs=pd.DataFrame(index=names),
            var=var,
            obsm={"true_specific": private.astype(np.float32)},
        ),
        "oracle": AnnData(code.astype(np.float32), obs=pd.DataFrame(index=names), var=oracle_var),
    }
    obs = pd.DataFrame({"split": split_column(np.arange(n_obs) < 10 * n_obs // 11)}, index=names)
    simulation = {
        "recipe": "indiseek",
        "parameters": {"setting": int(setting), "n_obs": n_obs, "seed": seed},
        "ideal_importance": importance,
    }
    return assemble(mod, obs, shared=code, simulation=simulation)
