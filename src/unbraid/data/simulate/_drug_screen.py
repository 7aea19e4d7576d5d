"""A drug screen: molecules, profiles of treated wells, replicates and plates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import check_whole
from unbraid.data.simulate._common import assemble, cell_names

if TYPE_CHECKING:
    from mudata import MuData

N_ACTIVITY, N_CHEMISTRY, N_STATE = 6, 6, 4
DENSITY = 0.15  # of the fingerprint
PARTS = {"train": 0.7, "val": 0.1, "test": 0.2}


def drug_screen(
    n_compounds: int = 300,
    n_replicates: int = 3,
    *,
    n_cell_lines: int = 2,
    n_bits: int = 256,
    n_features: int = 100,
    compounds_per_plate: int = 60,
    controls_per_plate: int = 4,
    activity_share: float = 0.25,
    state_share: float = 0.25,
    plate_share: float = 0.25,
    line_specificity: float = 0.3,
    confounding: float = 0.5,
    seed: int = 0,
) -> MuData:
    r"""Wells of a drug screen: the fingerprint of a molecule, and what cells look like that were treated with it.

    Of compound k, :math:`c_k \sim \mathcal N(0, I_6)` is what it does to cells, which its structure tells, and
    :math:`m_k \sim \mathcal N(0, I_6)` what else there is to its structure. Its fingerprint has bit j where
    :math:`(c_k A_j + m_k B_j) / \sqrt 2` is among the highest 15 % of compounds. The profile of a well w with compound k
    on plate p with cell line l is

    .. math::

        x_w = \sqrt{a}\, c_k L_l + \sqrt{b}\, s_w M + \sqrt{d}\, u_p + \sqrt{1 - a - b - d}\; \epsilon_w ,

    with the state of the well's cells :math:`s_w \sim \mathcal N(0, I_4)`, an offset :math:`u_p` of the plate, and noise.
    Loadings L are the same for all cell lines but for a share h of their variance. Untreated wells have
    :math:`c = 0` and no molecule.

    Every compound is on ``n_replicates`` plates of every cell line, always with the same other compounds. Libraries put
    what is chemically alike side by side: which compounds share a plate follows :math:`m_{k1}` with correlation
    ``confounding``, so that structure tells the plate, and the plate's offset, which is no effect of the compound.

    Parameters
    ----------
    n_compounds, n_replicates, n_cell_lines
        At least 10, 1 and 1. There are ``n_compounds * n_replicates * n_cell_lines`` treated wells.
    n_bits, n_features
        Of the fingerprint and of the profile.
    compounds_per_plate, controls_per_plate
        Treated and untreated wells of a plate, the former at most.
    activity_share, state_share, plate_share
        :math:`a`, :math:`b` and :math:`d`: shares of the variance of treated wells, together less than 1.
    line_specificity
        :math:`h`, from 0 to 1.
    confounding
        From 0 to 1.
    seed
        Seed of NumPy's default generator.

    Returns
    -------
    MuData with modalities ``molecule``, ``(n_treated, n_bits)``, 0 and 1, and ``phenotype``, ``(n_obs, n_features)``, both
    float32. ``obs`` has ``compound`` (missing for untreated wells), ``cell_line``, ``plate``, ``replicate``, and
    ``split``: ``train`` (70 % of the compounds, and the untreated wells), ``val`` or ``test``. The truth:

    - ``obsm["true_shared"]``: :math:`c` of the well's compound, ``(n_obs, 6)``;
    - ``mod["molecule"].obsm["true_specific"]``: :math:`m`; ``mod["phenotype"].obsm["true_specific"]``: :math:`s`;
    - ``uns["simulation"]``: recipe and parameters.

    Raises
    ------
    ValueError
        If a number is too small, or a share is out of its range.

    Examples
    --------
    >>> mdata = ub.data.simulate.drug_screen(seed=0)
    >>> mdata["molecule"].n_obs, mdata["phenotype"].n_obs, mdata.obs["plate"].nunique()
    (1800, 1920, 30)
    """
    sizes = {
        "n_compounds": n_compounds, "n_replicates": n_replicates, "n_cell_lines": n_cell_lines, "n_bits": n_bits,
        "n_features": n_features, "compounds_per_plate": compounds_per_plate, "controls_per_plate": controls_per_plate,
    }  # fmt: skip
    for name, value in sizes.items():
        check_whole(name, value, {"n_compounds": 10, "compounds_per_plate": 2, "controls_per_plate": 0}.get(name, 1))
    shares = {"activity_share": activity_share, "state_share": state_share, "plate_share": plate_share}
    if not (min(shares.values()) >= 0 and sum(shares.values()) < 1):
        raise ValueError(f"{', '.join(shares)} must not be negative and sum to less than 1, got {shares}.")
    for name, value in {"line_specificity": line_specificity, "confounding": confounding}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be from 0 to 1, got {value}.")
    compound_rng, plate_rng, well_rng = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(3))

    activity = compound_rng.standard_normal((n_compounds, N_ACTIVITY))
    chemistry = compound_rng.standard_normal((n_compounds, N_CHEMISTRY))
    bits = np.hstack([activity, chemistry]) @ compound_rng.standard_normal((N_ACTIVITY + N_CHEMISTRY, n_bits))
    bits = bits > np.quantile(bits, 1 - DENSITY, axis=0)
    order = compound_rng.permutation(n_compounds)
    cuts = np.round(np.cumsum(list(PARTS.values()))[:-1] * n_compounds).astype(int)
    part = np.empty(n_compounds, dtype=object)
    for name, members in zip(PARTS, np.split(order, cuts), strict=True):
        part[members] = name

    # which compounds share a plate: blocks along a direction that structure tells in part
    place = confounding * chemistry[:, 0]
    place = place + np.sqrt(1 - confounding**2) * plate_rng.standard_normal(n_compounds)
    n_blocks = -(-n_compounds // compounds_per_plate)
    block = np.argsort(np.argsort(place)) * n_blocks // n_compounds
    runs = n_cell_lines * n_replicates
    plate_of = lambda run, blocks: run * n_blocks + blocks
    treated = np.tile(np.arange(n_compounds), runs)
    run = np.repeat(np.arange(runs), n_compounds)
    control_plate = np.repeat(np.arange(runs * n_blocks), controls_per_plate)
    compound = np.concatenate([treated, np.full(len(control_plate), -1)])
    plate = np.concatenate([plate_of(run, block[treated]), control_plate])
    n_obs, run = len(compound), plate // n_blocks
    line = run // n_replicates

    scaled = lambda x: x / np.sqrt(np.mean(np.sum(x**2, axis=-2)))  # to a mean variance of 1
    common = scaled(plate_rng.standard_normal((N_ACTIVITY, n_features)))
    own = scaled(plate_rng.standard_normal((n_cell_lines, N_ACTIVITY, n_features)))
    loadings = np.sqrt(1 - line_specificity) * common + np.sqrt(line_specificity) * own
    offset = plate_rng.standard_normal((runs * n_blocks, n_features))
    state, noise = well_rng.standard_normal((n_obs, N_STATE)), well_rng.standard_normal((n_obs, n_features))
    is_treated = compound >= 0
    shared = np.where(is_treated[:, None], activity[compound], 0.0)
    x = np.sqrt(state_share) * state @ scaled(well_rng.standard_normal((N_STATE, n_features)))
    for k in range(n_cell_lines):
        x[line == k] += np.sqrt(activity_share) * shared[line == k] @ loadings[k]
    x += np.sqrt(plate_share) * offset[plate] + np.sqrt(1 - sum(shares.values())) * noise

    names = cell_names(n_obs).str.replace("cell", "well")
    obs = pd.DataFrame(
        {
            "compound": pd.Categorical.from_codes(compound, [f"compound_{k}" for k in range(n_compounds)]),
            "cell_line": pd.Categorical.from_codes(line, [f"line_{k}" for k in range(n_cell_lines)]),
            "plate": pd.Categorical.from_codes(plate, [f"plate_{k}" for k in range(runs * n_blocks)]),
            "replicate": pd.Categorical.from_codes(run % n_replicates, [str(k) for k in range(n_replicates)]),
            "split": pd.Categorical(np.where(is_treated, part[compound], "train"), categories=list(PARTS)),
        },
        index=names,
    )
    molecule = AnnData(
        bits[treated].astype(np.float32),
        obs=pd.DataFrame(index=names[is_treated]),
        var=pd.DataFrame(index=[f"bit_{j}" for j in range(n_bits)]),
        obsm={"true_specific": chemistry[treated].astype(np.float32)},
    )
    phenotype = AnnData(
        x.astype(np.float32),
        obs=pd.DataFrame(index=names),
        var=pd.DataFrame(index=[f"feature_{j}" for j in range(n_features)]),
        obsm={"true_specific": state.astype(np.float32)},
    )
    parameters = {**sizes, **shares, "line_specificity": line_specificity, "confounding": confounding, "seed": seed}
    simulation = {"recipe": "drug_screen", "parameters": parameters}
    return assemble({"molecule": molecule, "phenotype": phenotype}, obs, shared=shared, simulation=simulation)
