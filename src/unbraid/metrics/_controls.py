"""Data on which the answer is known: pairs at random, and halves of one modality's counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from unbraid._messages import suggest
from unbraid.metrics._lookup import values_of
from unbraid.metrics._resampling import permutations_within

if TYPE_CHECKING:
    from collections.abc import Sequence


def negative_control(mdata: MuData, *, within: str | None = None, seed: int = 0) -> MuData:
    """The same data with observations paired at random, so that the modalities share nothing.

    Parameters
    ----------
    mdata
        Is not changed.
    within
        Column of ``mdata.obs``: pair within its values, so that they share this and nothing else.
    seed
        Of the pairing.

    Returns
    -------
    New MuData with the same modalities and ``obs`` of the MuData. The first modality stays; the rows of each other
    are dealt to other observations among those that have it. ``obsm`` of the modalities is left behind.

    Raises
    ------
    KeyError
        ``within`` is no column.
    """
    rng = np.random.default_rng(seed)
    strata = None
    if within is not None:
        strata = np.unique(values_of(mdata, within, "within", mdata.n_obs).astype(str), return_inverse=True)[1]
    modalities = {}
    for k, (name, adata) in enumerate(mdata.mod.items()):
        order = np.arange(adata.n_obs)
        if k:
            position = np.asarray(mdata.obsmap[name]).ravel().astype(int) - 1
            row = np.empty(adata.n_obs, dtype=int)
            row[position[position >= 0]] = np.flatnonzero(position >= 0)
            own = None if strata is None else np.unique(strata[row], return_inverse=True)[1]
            order = next(permutations_within(own, adata.n_obs, rng))
        dealt = AnnData(adata.X[order], var=adata.var.copy(), layers={key: v[order] for key, v in adata.layers.items()})
        dealt.obs_names = adata.obs_names
        modalities[name] = dealt
    return _with_columns(MuData(modalities), mdata)


def positive_control(
    mdata: MuData, modality: str, *, names: Sequence[str] = ("first", "second"), layer: str | None = None, seed: int = 0
) -> MuData:
    r"""Two pseudo-modalities made of the halves of one modality's counts, so that they share all but noise.

    Every count :math:`x` is split into :math:`x_1 \sim \mathrm{Binomial}(x, \tfrac12)` and :math:`x - x_1`. Of
    Poisson counts the halves are independent given the rate: what is specific to one of them is noise.

    Parameters
    ----------
    mdata
        Is not changed.
    modality
        Whose counts to split.
    names
        Of the pseudo-modalities.
    layer
        Of the counts; ``X`` by default.
    seed
        Of the split.

    Returns
    -------
    New MuData of two modalities with the observations that have `modality`.

    Raises
    ------
    KeyError
        There is no such modality or layer.
    ValueError
        The values are no counts.
    """
    if modality not in mdata.mod:
        raise KeyError(f"modality: no {modality!r}. {suggest(modality, mdata.mod)}")
    adata = mdata.mod[modality]
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"layer: no {layer!r} in modality {modality!r}. {suggest(layer, adata.layers)}")
    counts = sparse.csr_array(adata.X if layer is None else adata.layers[layer]).astype(np.float32)
    if (counts.data < 0).any() or (counts.data != np.round(counts.data)).any():
        raise ValueError(f"Modality {modality!r} has values that are no counts: name the layer that holds them.")
    half = counts.copy()
    half.data = np.random.default_rng(seed).binomial(counts.data.astype(np.int64), 0.5).astype(np.float32)
    halves = {}
    for name, part in zip(names, (half, counts - half), strict=True):
        matrix = sparse.csr_matrix(part)
        matrix.eliminate_zeros()
        halves[name] = AnnData(matrix, obs=adata.obs[[]].copy(), var=adata.var[[]].copy())
        halves[name].var_names = [f"{name}:{feature}" for feature in adata.var_names]
    return _with_columns(MuData(halves), mdata)


def _with_columns(control: MuData, mdata: MuData) -> MuData:
    for column in mdata.obs:
        control.obs[column] = mdata.obs[column].reindex(control.obs_names)
    return control
