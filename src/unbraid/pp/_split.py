"""Training, validation and test cells, kept in ``obs``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unbraid._messages import suggest
from unbraid.pp._molecular_groups import GROUPINGS, molecular_groups

if TYPE_CHECKING:
    from mudata import MuData
    from numpy.typing import NDArray


def split(
    mdata: MuData,
    by: str | None = None,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    key_added: str = "split",
    seed: int = 0,
    smiles: str = "smiles",
    similarity: float = 0.6,
) -> None:
    """Divide cells into ``train``, ``val`` and ``test``, and write it to ``mdata.obs[key_added]``.

    Parameters
    ----------
    mdata
        The cells.
    by
        Column of ``mdata.obs`` whose values stay together, such as donor or molecule: none of them is
        on two sides. Fractions are then of the values, and hold for the cells as closely as the sizes
        of the groups allow.

        Where there is no such column, ``"compound"``, ``"scaffold"`` and ``"cluster"`` are made from the SMILES of
        the cells by :func:`molecular_groups`: no molecule is on two sides, whatever SMILES or salt it is given as, and
        no scaffold or cluster of similar molecules. A compound without rings has no scaffold, and is a group of its
        own.
    fractions
        Of training, validation and test.
    key_added
        Column to write, for ``model.train(split_key=...)``.
    seed
        Seed of the order.
    smiles
        Column of SMILES, in ``mdata.obs`` or in ``obs`` of modalities; of several, the first that has a value counts.
    similarity
        Of clusters, see :func:`molecular_groups`.

    Raises
    ------
    KeyError
        If ``by`` is no column, or there are no SMILES to make it from.
    ValueError
        If fractions are negative or do not sum to 1, if values are missing in ``by``, if there are
        fewer groups than parts, or if SMILES are missing or invalid.

    See Also
    --------
    molecular_groups : the groups, to resample by.

    Examples
    --------
    >>> ub.pp.split(mdata, by="donor")  # doctest: +SKIP
    >>> ub.pp.split(mdata, by="scaffold", smiles="SMILES")  # doctest: +SKIP
    """
    if min(fractions) < 0 or not np.isclose(sum(fractions), 1.0):
        raise ValueError(f"`fractions` must be non-negative and sum to 1, got {fractions}.")
    groups = np.arange(mdata.n_obs) if by is None else _groups(mdata, by, smiles, similarity)
    if pd.isna(groups).any():
        raise ValueError(f"`by`: {int(pd.isna(groups).sum())} cells have no value in {by!r}; fill them in first.")
    codes, _ = pd.factorize(groups, sort=True)
    sizes = np.bincount(codes)
    n_parts = sum(fraction > 0 for fraction in fractions)
    if len(sizes) < n_parts:
        raise ValueError(f"`by`: {len(sizes)} groups cannot fill {n_parts} parts.")
    # groups in random order, each to the part that lacks most of its share
    part_of_group = np.empty(len(sizes), dtype=int)
    if by is None:
        cuts = np.round(np.cumsum(fractions)[:-1] * len(sizes)).astype(int)
        for part, members in enumerate(np.split(np.random.default_rng(seed).permutation(len(sizes)), cuts)):
            part_of_group[members] = part
    else:
        missing = np.array(fractions) * len(codes)
        for group in np.random.default_rng(seed).permutation(len(sizes)):
            part_of_group[group] = part = int(missing.argmax())
            missing[part] -= sizes[group]
    names = np.array(["train", "val", "test"])
    mdata.obs[key_added] = pd.Categorical(names[part_of_group[codes]], categories=list(names))


def _groups(mdata: MuData, by: str, smiles: str, similarity: float) -> NDArray:
    if by in mdata.obs:
        return mdata.obs[by].to_numpy()
    if by not in GROUPINGS:
        raise KeyError(f"`by`: no obs column {by!r} in the MuData. {suggest(by, mdata.obs.columns)}")
    tables = [mdata.obs, *(adata.obs for adata in mdata.mod.values())]
    columns = [table[smiles].astype(object).reindex(mdata.obs_names) for table in tables if smiles in table]
    if not columns:
        raise KeyError(
            f"`by`: no obs column {by!r} in the MuData, and no SMILES to make it from: `smiles` is {smiles!r}. "
            f"{suggest(smiles, dict.fromkeys(column for table in tables for column in table))}"
        )
    values = columns[0]
    for column in columns[1:]:
        values = values.where(values.notna(), column)
    return molecular_groups(values, by, similarity=similarity).to_numpy()
