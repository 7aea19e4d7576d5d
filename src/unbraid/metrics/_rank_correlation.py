"""Whether two weights of cells rank the cell types alike."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from unbraid._messages import check_range, check_whole
from unbraid.metrics._lookup import values_of
from unbraid.metrics._resampling import N_BOOTSTRAP, percentiles
from unbraid.metrics._result import Result

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

MOST_EXACT = 8  # types; 8! = 40,320 permutations


@dataclass(frozen=True, kw_only=True)
class RankCorrelation(Result):
    """What :func:`weight_rank_correlation` found.

    Attributes
    ----------
    rho
        Spearman's correlation of the mean weights of the cell types.
    interval
        Bootstrap interval, over cell types and the cells within them.
    cell_interval
        Bootstrap interval over the cells within the types, for these very types.
    chance
        Mean correlation when the types of one weight are permuted: 0.
    p_value
        Share of permutations of the types with a correlation at least as far from 0.
    is_exact
        Whether these were all permutations.
    rho_cells
        Spearman's correlation over cells.
    rho_within
        Spearman's correlation over cells, of the ranks within their types: what is left beside the types.
    rho_cells_interval, rho_within_interval
        Bootstrap intervals over cells.
    n_types, n_obs
        Number of types and of cells.
    n_dropped
        Number of cells left out: a weight or the type missing, or of a type with too few cells.
    means
        Mean weights `a`, `b`, their ranks, and number of cells `n` of every type.
    confidence
        Level of the intervals.
    n_permutations
        Number of permutations behind `p_value`.
    """

    _measure = "weight_rank_correlation"
    rho: float
    interval: tuple[float, float]
    cell_interval: tuple[float, float]
    chance: float
    p_value: float
    is_exact: bool
    rho_cells: float
    rho_cells_interval: tuple[float, float]
    rho_within: float
    rho_within_interval: tuple[float, float]
    n_types: int
    n_obs: int
    n_dropped: int
    means: pd.DataFrame
    confidence: float
    n_permutations: int

    def _flat(self, name: str) -> dict:
        if name == "means":  # a table of its own
            return {}
        return super()._flat(name)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"rank correlation {self.rho:z.2f} [{low:z.2f}, {high:z.2f}] over {self.n_types} types, chance 0 "
            f"(p = {self.p_value:.2g}); over cells {self.rho_cells:z.2f} (n = {self.n_obs:,})"
        )

    __repr__ = __str__


def weight_rank_correlation(
    a: ArrayLike | str,
    b: ArrayLike | str,
    *,
    groups: ArrayLike | str,
    data: AnnData | MuData | None = None,
    min_obs: int = 1,
    n_permutations: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RankCorrelation:
    r"""Whether two weights of cells rank the cell types alike.

    For instance how much a cell owes to RNA by its specific codes (:func:`unbraid.tl.modality_weights`) against its
    RNA weight of weighted nearest neighbours, as in [1]_.

    Parameters
    ----------
    a, b
        A weight of each cell: `n_obs` numbers, or a column of `data.obs`. Cells without one of them are left out.
    groups
        Cell types: `n_obs` labels, or a column of `data.obs`.
    data
        AnnData or MuData with the columns; in a MuData also `"rna:column"`.
    min_obs
        Types with fewer cells are left out.
    n_permutations
        Number of permutations of the types. With at most 8 types all are used instead.
    confidence
        Level of the intervals.
    seed
        Seed of permutations and bootstrap. Global random state is neither used nor changed.

    Returns
    -------
    Correlation, intervals, p-value, and the means of the types.

    Raises
    ------
    KeyError
        A column is not there.
    ValueError
        Lengths differ, a weight is infinite or no number, fewer than three types are left, or an option is out of
        range.

    Notes
    -----
    With :math:`R_l, R_l^*` the ranks of the :math:`L` types by their means, :math:`(L + 1) / 2` on average,

    .. math::

        \rho = \frac{\sum_l (R_l - \frac{L + 1}{2}) (R_l^* - \frac{L + 1}{2})}
                    {\sqrt{\sum_l (R_l - \frac{L + 1}{2})^2 \sum_l (R_l^* - \frac{L + 1}{2})^2}} .

    ([1]_ prints :math:`L (L + 1) / 2`, the sum of the ranks, for their mean.) Types with equal means share their mean
    rank. If all are equal the correlation is NaN.

    Few types make a wide interval: `interval` resamples types and then cells within each, and answers what other
    types would give; `cell_interval` keeps the types, and is the uncertainty of their means. The p-value permutes the
    types of one weight, two-sided. The order of the cells plays no part.

    References
    ----------
    .. [1] IndiSeek, section 4 and appendix A.1.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> a, b = [3, 1, 4, 2, 5], [2, 1, 5, 3, 4]
    >>> ub.metrics.weight_rank_correlation(a, b, groups=list("BCDEF")).rho
    0.8
    """
    check_whole("min_obs", min_obs, 1)
    check_whole("n_permutations", n_permutations, 1)
    check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")
    permutation_rng, bootstrap_rng = np.random.default_rng(seed).spawn(2)
    x, codes, types, n_dropped = _read(a, b, groups, data, min_obs)
    n_types, n = len(types), len(x)
    if n_types < 3:
        raise ValueError(f"{n_types} types of cells have both weights; a rank correlation needs at least 3.")

    counts = np.bincount(codes)
    means = np.stack([np.bincount(codes, column) for column in x.T], axis=1) / counts[:, None]
    rho = _spearman(means.T[:1], means.T[1:])[0]
    null, is_exact = _null(means, n_permutations, permutation_rng)
    n_as_far = np.sum(np.abs(null) >= abs(rho) - 1e-12)
    p_value = n_as_far / len(null) if is_exact else (1 + n_as_far) / (1 + len(null))  # all hold the true one

    within = np.stack([_ranks_within(column, codes) for column in x.T])
    over_types, over_cells, cells, cells_within = _bootstrap(x, codes, counts, within, bootstrap_rng)
    table = pd.DataFrame(means, index=pd.Index(types, name="type"), columns=["a", "b"])
    table["rank_a"], table["rank_b"], table["n"] = rankdata(means[:, 0]), rankdata(means[:, 1]), counts
    interval = lambda values: percentiles(values[np.isfinite(values)], confidence)
    return RankCorrelation(
        rho=float(rho),
        interval=interval(over_types),
        cell_interval=interval(over_cells),
        chance=0.0,
        p_value=float(p_value) if np.isfinite(rho) else np.nan,
        is_exact=is_exact,
        rho_cells=float(_spearman(x.T[:1], x.T[1:])[0]),
        rho_cells_interval=interval(cells),
        rho_within=float(_correlation(within[:1], within[1:])[0]),
        rho_within_interval=interval(cells_within),
        n_types=n_types,
        n_obs=n,
        n_dropped=n_dropped,
        means=table,
        confidence=confidence,
        n_permutations=len(null),
    )


def _read(a, b, groups, data, min_obs: int) -> tuple[NDArray, NDArray, list, int]:
    """Weights `(n, 2)`, type codes, names of the types, and how many cells were left out; cells in canonical order."""
    given = {"a": a, "b": b, "groups": groups}
    if data is None:
        for name, value in given.items():
            if isinstance(value, str):
                raise ValueError(f"{name}={value!r} names a column, but there is no data: pass data, or the values.")
        n = np.shape(a)[0] if np.ndim(a) else 0
    else:
        n = data.n_obs
    home = np.empty((n, 1)) if data is None else data
    columns = {}
    for name, value in given.items():
        if data is None and np.ndim(value) == 1 and len(value) != n:
            raise ValueError(f"{name} has {len(value)} values, but a has {n}.")
        columns[name] = values_of(home, value, name, n)
    weights = []
    for name in ("a", "b"):
        try:
            weights.append(columns[name].astype(float).to_numpy())
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be numbers, not {columns[name].dtype}.") from error
        if np.isinf(weights[-1]).any():
            raise ValueError(f"{name}: {int(np.isinf(weights[-1]).sum())} of {n} weights are infinite.")
    x = np.stack(weights, axis=1)
    keep = ~np.isnan(x).any(axis=1) & columns["groups"].notna().to_numpy()
    x, labels = x[keep], pd.Categorical(columns["groups"][keep]).remove_unused_categories()
    codes = labels.codes.astype(int)
    frequent = np.bincount(codes, minlength=len(labels.categories)) >= min_obs
    x, codes = x[frequent[codes]], codes[frequent[codes]]
    types = [label for label, is_frequent in zip(labels.categories, frequent, strict=True) if is_frequent]
    codes = np.unique(codes, return_inverse=True)[1]
    order = np.lexsort((x[:, 1], x[:, 0], codes))
    return x[order], codes[order], types, n - len(x)


def _correlation(a: NDArray, b: NDArray) -> NDArray:
    """Of rows; NaN where one is constant."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)), -1, 1)


def _spearman(a: NDArray, b: NDArray) -> NDArray:
    return _correlation(rankdata(a, axis=1), rankdata(b, axis=1))


def _null(means: NDArray, n_permutations: int, rng: np.random.Generator) -> tuple[NDArray, bool]:
    rank_a, rank_b = rankdata(means[:, 0]), rankdata(means[:, 1])
    n_types = len(means)
    is_exact = n_types <= MOST_EXACT
    if is_exact:
        orders = np.array(list(permutations(range(n_types))))
    else:
        orders = rng.permuted(np.tile(np.arange(n_types), (n_permutations, 1)), axis=1)
    return _correlation(rank_a[None], rank_b[orders]), is_exact


def _ranks_within(values: NDArray, codes: NDArray) -> NDArray:
    """Ranks within types, centred and scaled to (-1/2, 1/2); a type's only cell has 0."""
    counts = np.bincount(codes)
    ranks = rankdata(codes * (len(values) + 1.0) + rankdata(values))  # types one after the other
    first = np.cumsum(counts) - counts
    return (ranks - first[codes] - (counts[codes] + 1) / 2) / counts[codes]


def _bootstrap(
    x: NDArray, codes: NDArray, counts: NDArray, within: NDArray, rng: np.random.Generator
) -> tuple[NDArray, ...]:
    """Correlations over types with types and cells resampled, over types with cells resampled, and over cells."""
    n, n_types = len(x), len(counts)
    first = np.cumsum(counts) - counts
    ranks = rankdata(x, axis=0)
    moments = lambda v: np.stack([v[:, 0], v[:, 1], v[:, 0] ** 2, v[:, 1] ** 2, v[:, 0] * v[:, 1]], axis=1)
    of_cells, of_cells_within = moments(ranks / n - 0.5), moments(within.T)
    means, sums, sums_within = (
        np.empty((N_BOOTSTRAP, 2, n_types)),
        np.empty((N_BOOTSTRAP, 5)),
        np.empty((N_BOOTSTRAP, 5)),
    )
    for k in range(N_BOOTSTRAP):
        times = np.bincount(first[codes] + (rng.random(n) * counts[codes]).astype(int), minlength=n).astype(float)
        means[k] = (np.add.reduceat(times[:, None] * x, first) / counts[:, None]).T  # cells within their types
        sums_within[k] = times @ of_cells_within
        sums[k] = np.bincount(rng.integers(n, size=n), minlength=n) @ of_cells
    chosen = np.take_along_axis(means, rng.integers(n_types, size=(N_BOOTSTRAP, 1, n_types)), axis=2)
    over_types, over_cells = (_spearman(m[:, 0], m[:, 1]) for m in (chosen, means))
    return over_types, over_cells, _correlation_of_sums(sums, n), _correlation_of_sums(sums_within, n)


def _correlation_of_sums(sums: NDArray, n: int) -> NDArray:
    """Of sums of a, b, a^2, b^2 and a b over n."""
    a, b, aa, bb, ab = sums.T / n
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((ab - a * b) / np.sqrt((aa - a**2) * (bb - b**2)), -1, 1)
