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

Setting = Literal[1, 2, 3, 4, 5]
DISCRETE_VALUES = np.array([-np.sqrt(7) / 2, -1, -0.5, 0.5, 1, np.sqrt(7) / 2])  # mean 0, variance 1
SPREAD = 0.7  # setting 5: the logarithm of x_5's standard deviation is so many times x_1


def indiseek(setting: Setting, n_obs: int = 11_000, *, seed: int = 0) -> MuData:
    r"""Six coordinates, of which some are determined by a given shared code and the others are independent of it.

    The four settings of the IndiSeek paper (section 1.1 and appendix A.2), and one of our own. Setting 1 has
    :math:`x \sim \mathcal{N}(0, I_6)` and, with :math:`u = (x_1, x_2)` and entrywise functions, the shared code

    .. math::

        c = 0.5 \, u + 0.2 \sin u + 0.2 \, u^3 .

    Setting 2 has :math:`x_1, x_2, x_5, x_6 \sim \mathcal{N}(0, 1)`,

    .. math::

        x_3 = 0.2 \, (x_1 + x_2), \qquad x_4 = x_1 x_2, \qquad c = (x_1, x_2) .

    Settings 3 and 4 are settings 1 and 2 with the private coordinates (:math:`x_3, \dots, x_6`, respectively
    :math:`x_5, x_6`) uniform on :math:`\{\pm\sqrt7/2, \pm1, \pm1/2\}`, which has mean 0 and variance 1.

    Setting 5, which the paper does not have, is setting 2 with a private coordinate whose *variance* depends on the
    code: with :math:`\varepsilon_5, \varepsilon_6 \sim \mathcal{N}(0, 1)`,

    .. math::

        x_5 = \varepsilon_5 \exp(0.7 \, x_1), \qquad x_6 = \varepsilon_6 .

    The mean of :math:`x_5` given the code is 0, so what removes means alone leaves the dependence in.

    Parameters
    ----------
    setting
        Which of the five.
    n_obs
        Number of observations. Ten elevenths, rounded down, are for training: of 11,000 these are the paper's
        10,000, with 1,000 for testing.
    seed
        Seed of NumPy's default generator. All settings share :math:`x_1, x_2` under one seed; setting 5 has the
        private draws of setting 2 as its :math:`\varepsilon`.

    Returns
    -------
    MuData with modality ``x``, the six coordinates, and modality ``oracle``, the code :math:`c`, both float32. The
    paper has no second modality: its oracle code plays that part here. The truth:

    - ``obsm["true_shared"]``: :math:`c`, ``(n_obs, 2)``;
    - ``mod["x"].obsm["true_specific"]``: the private coordinates, ``(n_obs, 4)`` or ``(n_obs, 2)``; in setting 5
      :math:`(\varepsilon_5, \varepsilon_6)`, *not* :math:`x_5`;
    - ``mod["x"].var["ideal_importance"]``: share of the importance that an ideal specific code gives to the
      coordinate (see Notes for setting 5), also as a vector in ``uns["simulation"]["ideal_importance"]``;
    - ``var["truth"]`` of each modality: ``shared``, ``specific``, or ``both`` (:math:`x_5` of setting 5);
    - ``obs["split"]``: ``train`` or ``test``;
    - ``uns["simulation"]``: recipe and parameters.

    Notes
    -----
    In setting 5 masking importance misjudges. A specific code that is independent of the code and complete must carry
    :math:`\varepsilon_5 = x_5 \exp(-0.7 \, x_1)`, and with it depends on :math:`x_1`. For
    :math:`(\varepsilon_5, \varepsilon_6)` itself, setting a coordinate to 0 changes the output by
    :math:`\mathbb{E}(e^{0.7 x_1} - 1)^2 = e^{0.98} - 2 e^{0.245} + 1 = 1.11` on average for :math:`x_1`, and by 1 for
    :math:`x_5` and :math:`x_6`: these shares are ``ideal_importance``, with only .64 on :math:`x_5, x_6`. Another
    scale of the two codes, another mask or other points give other shares. Judge by independence of the code and by
    how well :math:`\varepsilon` can be read.
    """
    if setting not in get_args(Setting):
        raise ValueError(f"`setting` must be one of {', '.join(map(str, get_args(Setting)))}, got {setting!r}.")
    check_whole("n_obs", n_obs, 2)
    rng = np.random.default_rng(seed)
    names = cell_names(n_obs)

    first = rng.standard_normal((n_obs, 2))
    n_private = 4 if setting in (1, 3) else 2
    if setting in (1, 2, 5):
        private = rng.standard_normal((n_obs, n_private))
    else:
        private = rng.choice(DISCRETE_VALUES, size=(n_obs, n_private))
    if setting in (1, 3):
        code = 0.5 * first + 0.2 * np.sin(first) + 0.2 * first**3
        x = np.concatenate([first, private], axis=1)
    else:
        code = first
        redundant = np.stack([0.2 * first.sum(axis=1), first.prod(axis=1)], axis=1)
        spread = np.exp(SPREAD * first[:, :1]) if setting == 5 else 1.0
        x = np.concatenate([first, redundant, private[:, :1] * spread, private[:, 1:]], axis=1)

    is_private = np.arange(6) >= 6 - n_private
    truth = np.where(is_private, "specific", "shared")
    change = is_private.astype(float)  # of the ideal code's output when a coordinate is set to 0
    if setting == 5:
        truth[4] = "both"
        change[0] = np.exp(2 * SPREAD**2) - 2 * np.exp(SPREAD**2 / 2) + 1
    importance = change / change.sum()
    var = pd.DataFrame(
        {"truth": pd.Categorical(truth), "ideal_importance": importance},
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
