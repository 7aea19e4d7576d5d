"""Training, validation and test cells, kept in ``obs``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unbraid._messages import suggest

if TYPE_CHECKING:
    from mudata import MuData


def split(
    mdata: MuData,
    by: str | None = None,
    *,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    key_added: str = "split",
    seed: int = 0,
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
    fractions
        Of training, validation and test.
    key_added
        Column to write, for ``model.train(split_key=...)``.
    seed
        Seed of the order.

    Raises
    ------
    KeyError
        If ``by`` is no column.
    ValueError
        If fractions are negative or do not sum to 1, if values are missing in ``by``, or if there are
        fewer groups than parts.
    """
    if min(fractions) < 0 or not np.isclose(sum(fractions), 1.0):
        raise ValueError(f"`fractions` must be non-negative and sum to 1, got {fractions}.")
    if by is not None and by not in mdata.obs:
        raise KeyError(f"`by`: no obs column {by!r} in the MuData. {suggest(by, mdata.obs.columns)}")
    groups = np.arange(mdata.n_obs) if by is None else mdata.obs[by].to_numpy()
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
