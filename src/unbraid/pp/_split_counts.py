"""Counts in two independent parts, one to learn from and one to judge by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from unbraid._messages import check_range, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mudata import MuData


def split_counts(
    mdata: MuData,
    modalities: Sequence[str] | None = None,
    *,
    layers: Mapping[str, str] | None = None,
    fraction: float = 0.5,
    keys_added: tuple[str, str] = ("train_counts", "test_counts"),
    seed: int = 0,
) -> None:
    r"""Split every count at random into two layers, which add up to it (count splitting, or binomial thinning).

    A code learned from counts has seen their noise, and explains it on held-out cells too. Of a Poisson count
    :math:`x`, the parts :math:`x_1 \sim \mathrm{Binomial}(x, f)` and :math:`x - x_1` are independent given the rate
    [1]_: what a code learned from the one explains of the other is not noise. Of overdispersed counts the parts share
    what exceeds Poisson noise.

    Parameters
    ----------
    mdata
        The counts. Values in `X` or a layer stay as they are.
    modalities
        Those to split; all by default.
    layers
        By modality, the layer of the counts; ``X`` by default.
    fraction
        Of every count that goes to the first part.
    keys_added
        Layers to write, the first part and the second.
    seed
        Of the split.

    Raises
    ------
    KeyError
        There is no such modality or layer.
    ValueError
        The values are no counts, or `fraction` is not between 0 and 1.

    References
    ----------
    .. [1] Neufeld et al. (2024), Inference after latent variable estimation for single-cell RNA sequencing data.
       Biostatistics 25, 270-287.

    Examples
    --------
    >>> ub.pp.split_counts(mdata)  # doctest: +SKIP
    >>> ub.model.LinearSplit.setup_mudata(mdata, layers={"rna": "train_counts", "prot": "train_counts"})
    ... # doctest: +SKIP
    >>> ub.tl.feature_verdict(mdata, layers={"rna": "test_counts", "prot": "test_counts"})  # doctest: +SKIP
    """
    check_range("fraction", fraction, 0 < fraction < 1, "between 0 and 1")
    rng = np.random.default_rng(seed)
    parts = {}
    for name in mdata.mod if modalities is None else modalities:
        if name not in mdata.mod:
            raise KeyError(f"modalities: no modality {name!r}. {suggest(name, mdata.mod)}")
        adata, layer = mdata.mod[name], (layers or {}).get(name)
        if layer is not None and layer not in adata.layers:
            raise KeyError(f"layers: no layer {layer!r} in modality {name!r}. {suggest(layer, adata.layers)}")
        values = adata.X if layer is None else adata.layers[layer]
        numbers = values.data if sparse.issparse(values) else np.asarray(values)
        if numbers.size and (numbers.min() < 0 or (numbers != np.round(numbers)).any()):
            raise ValueError(f"Modality {name!r} has values that are no counts: name the layer that holds them.")
        half = drawn = rng.binomial(numbers.astype(np.int64), fraction).astype(numbers.dtype)
        if sparse.issparse(values):
            half = values.copy()
            half.data = drawn
        parts[name] = half, values - half
    for name, pair in parts.items():
        for key, part in zip(keys_added, pair, strict=True):
            mdata.mod[name].layers[key] = part
