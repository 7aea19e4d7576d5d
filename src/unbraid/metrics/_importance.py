"""Which coordinates of the input a map depends on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import torch

from unbraid._messages import check_option, check_range, check_whole
from unbraid.metrics._resampling import bootstrap_sums
from unbraid.metrics._rows import codes_of, present_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

Draw = Literal["data", "uniform"]
Mask = Literal["zero", "mean", "permute"]

BLOCK_VALUES = 4_000_000  # numbers handed to the map at once


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskingImportance:
    """What :func:`masking_importance` found.

    Attributes
    ----------
    importance
        `(n_features,)`: share of each coordinate; the shares sum to 1. NaN if nothing changes the output.
    low, high
        `(n_features,)`: bootstrap interval of each share.
    change
        `(n_features,)`: mean squared change of the output, in units of the output.
    chance
        1 / n_features: the share of every coordinate if all counted alike.
    n_obs
        Number of points at which the map was taken.
    n_dropped
        Number of rows left out because they are missing.
    n_groups
        Number of groups, None without groups.
    feature_names
        Names of the coordinates.
    draw, mask
        How it was done.
    confidence
        Level of the intervals.
    """

    importance: NDArray
    low: NDArray
    high: NDArray
    change: NDArray
    chance: float
    n_obs: int
    n_dropped: int
    n_groups: int | None
    feature_names: list
    draw: Draw
    mask: Mask
    confidence: float

    def to_frame(self) -> pd.DataFrame:
        """Importance, interval and change, one row per coordinate; what holds for all is in `attrs`."""
        columns = ["importance", "low", "high", "change"]
        frame = pd.DataFrame({c: getattr(self, c) for c in columns}, index=pd.Index(self.feature_names, name="feature"))
        frame.attrs = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {*columns, "feature_names"}}
        return frame

    def __str__(self) -> str:
        order = np.argsort(-np.nan_to_num(self.importance), kind="stable")[:5]
        largest = ", ".join(
            f"{self.feature_names[j]} {self.importance[j]:.2f} [{self.low[j]:.2f}, {self.high[j]:.2f}]" for j in order
        )
        of = "" if self.n_groups is None else f" in {self.n_groups:,} groups"
        return (
            f"masking importance: {largest}{', ...' if len(self.importance) > 5 else ''}; "
            f"{self.chance:.2g} if all of {len(self.importance)} counted alike (n = {self.n_obs:,}{of})"
        )

    __repr__ = __str__


def masking_importance(
    encode: Callable[[NDArray], ArrayLike],
    x: ArrayLike,
    *,
    draw: Draw = "data",
    mask: Mask = "mean",
    low: float = -10.0,
    high: float = 10.0,
    n_draws: int = 1_000,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    max_obs: int | None = 5_000,
    seed: int = 0,
) -> MaskingImportance:
    r"""How much each coordinate of the input moves the output of a map, when it is masked.

    Parameters
    ----------
    encode
        Any map from `(n, n_features)` to `(n, n_latent)` or `(n,)` that treats rows one by one: a function of NumPy
        arrays, which may return a tensor, or a torch module in evaluation mode. It is given the dtype of `x` (float32
        or float64), a module that of its parameters.
    x
        `(n_obs, n_features)` array or DataFrame. With `draw="uniform"` only its number of columns counts. Rows that
        are NaN throughout are left out.
    draw
        Where the map is taken: at the rows of `x`, or at `n_draws` points drawn from the cube `[low, high]`, which is
        the original protocol [1]_. The cube is far from any data once coordinates depend on each other, and ranks
        inputs by how the map extrapolates.
    mask
        What a masked coordinate becomes: `"mean"` its mean over the points, `"zero"` 0, `"permute"` its value at another
        point.
    low, high, n_draws
        The cube and the number of points, for `draw="uniform"`.
    groups
        `n_obs` labels of donors or other units that the interval is to resample, for `draw="data"`.
    confidence
        Level of the intervals.
    max_obs
        Use a random subset of at most so many rows; None for all.
    seed
        Seed of draws, permutations and bootstrap. Global random state is neither used nor changed.

    Returns
    -------
    Share of each coordinate with its interval.

    Raises
    ------
    ValueError
        `x` is no matrix of numbers, infinite, NaN in a part of a row, or has fewer than two rows; `encode` returns
        another number of rows, or NaN; an option is unknown or out of range.

    Warns
    -----
    UserWarning
        Nothing changes the output, so that there are no shares.

    Notes
    -----
    With :math:`x_{i,-j}` the point :math:`x_i` whose coordinate :math:`j` is masked,

    .. math::

        \zeta(j) = \frac{1}{n} \sum_i \lVert \psi(x_i) - \psi(x_{i,-j}) \rVert^2, \qquad
        \hat\zeta(j) = \zeta(j) / \textstyle\sum_k \zeta(k),

    as in appendix A.1 of [1]_, where the masked value is not given. The interval is that of percentiles over 1,000 bootstrap
    samples of the points (or groups); the map is held fixed. A coordinate without effect has share 0 exactly, which is
    the null; `chance` is what all would have if they counted alike. The result does not depend on the order of rows,
    but for `"permute"` and for subsets.

    References
    ----------
    .. [1] IndiSeek, appendix A.1; after Robnik-Sikonja and Kononenko (2008), Explaining classifications for
       individual instances. IEEE Trans. Knowl. Data Eng. 20, 589-600.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> ub.metrics.masking_importance(lambda x: x[:, :2], x).importance[2]
    0.0
    """
    check_option("draw", draw, get_args(Draw))
    check_option("mask", mask, get_args(Mask))
    check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")
    check_range("low", low, low < high, f"below high = {high}")
    check_whole("n_draws", n_draws, 2)
    subset_rng, draw_rng, mask_rng, bootstrap_rng = np.random.default_rng(seed).spawn(4)
    names = [str(c) for c in x.columns] if isinstance(x, pd.DataFrame) else None
    x = _matrix(x)
    names = names or list(range(x.shape[1]))

    units, n_dropped = None, 0
    if draw == "uniform":
        if groups is not None:
            raise ValueError("groups belong to rows of x; they cannot be used with draw='uniform'.")
        x = draw_rng.uniform(low, high, size=(n_draws, x.shape[1])).astype(x.dtype)
    else:
        keep = present_rows(x, "x")
        n_dropped = int((~keep).sum())
        if groups is not None:
            groups = pd.Series(np.asarray(groups))
            if len(groups) != len(x):
                raise ValueError(f"groups has {len(groups)} values, but x has {len(x)} rows.")
            units = codes_of(groups[keep], "groups")
        x = x[keep]
        if max_obs is not None and len(x) > max_obs:
            rows = np.sort(subset_rng.choice(len(x), max_obs, replace=False))
            x = x[rows]
            units = None if units is None else np.unique(units[rows], return_inverse=True)[1]
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} rows with values; at least 2 are needed.")

    changes = _changes(encode, x, _masked(x, mask, mask_rng))
    change = changes.mean(axis=0)
    total = change.sum()
    if not total > 0:
        warnings.warn("No masked coordinate changes the output: the map is constant.", UserWarning, stacklevel=2)
    with np.errstate(invalid="ignore"):
        sums = bootstrap_sums(changes, units, bootstrap_rng)
        shares = sums / sums.sum(axis=1, keepdims=True)
    tail = (1 - confidence) / 2
    lower, upper = np.nanquantile(shares, [tail, 1 - tail], axis=0) if total > 0 else np.full((2, len(change)), np.nan)
    return MaskingImportance(
        importance=change / total if total > 0 else np.full(len(change), np.nan),
        low=lower,
        high=upper,
        change=change,
        chance=1 / len(change),
        n_obs=len(x),
        n_dropped=n_dropped,
        n_groups=None if units is None else int(units.max()) + 1,
        feature_names=names,
        draw=draw,
        mask=mask,
        confidence=confidence,
    )


def _matrix(x: ArrayLike) -> NDArray:
    try:
        x = np.asarray(x)
        x = x if x.dtype == np.float32 else x.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("x must be an array of numbers.") from error
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"x must have shape (n_obs, n_features), not {x.shape}.")
    return x


def _masked(x: NDArray, mask: Mask, rng: np.random.Generator) -> NDArray:
    """What each value becomes when it is masked."""
    if mask == "permute":
        return rng.permuted(x, axis=0)
    return np.broadcast_to(x.mean(axis=0) if mask == "mean" else np.zeros(x.shape[1], x.dtype), x.shape)


def _changes(encode: Callable[[NDArray], ArrayLike], x: NDArray, masked: NDArray) -> NDArray:
    """`(n, n_features)` squared changes; as many coordinates at once as fit into a block."""
    n, d = x.shape
    at_once = max(1, BLOCK_VALUES // x.size)
    n_rows = min(n, max(1, BLOCK_VALUES // d))
    changes = np.empty((n, d))
    for first in range(0, n, n_rows):
        rows = slice(first, min(first + n_rows, n))
        output = _encoded(encode, x[rows])
        for start in range(0, d, at_once):
            columns = range(start, min(start + at_once, d))
            copies = np.repeat(x[None, rows], len(columns), axis=0)
            for copy, j in zip(copies, columns, strict=True):
                copy[:, j] = masked[rows, j]
            moved = _encoded(encode, copies.reshape(-1, d)).reshape(len(columns), *output.shape)
            changes[rows, start : start + len(columns)] = ((moved - output) ** 2).sum(axis=2).T
    return changes


def _encoded(encode: Callable[[NDArray], ArrayLike], x: NDArray) -> NDArray:
    if isinstance(encode, torch.nn.Module):
        if encode.training:
            raise ValueError("encode is in training mode, where rows are not encoded one by one: call encode.eval().")
        like = next(encode.parameters(), torch.empty(0))
        with torch.no_grad():
            output = encode(torch.as_tensor(x, dtype=like.dtype, device=like.device))
    else:
        output = encode(x)
    if hasattr(output, "detach"):  # a tensor, on whichever device
        output = output.detach().cpu()
    output = np.asarray(output, dtype=np.float64)
    if output.ndim not in (1, 2) or len(output) != len(x):
        raise ValueError(f"encode returned shape {output.shape} for {len(x)} rows; it must return a row for each.")
    if not np.isfinite(output).all():
        raise ValueError("encode returned NaN or infinite values.")
    return output.reshape(len(x), -1)
