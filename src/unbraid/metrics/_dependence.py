"""Whether two embeddings depend on each other, in any way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np
from scipy.spatial.distance import pdist, squareform
from scipy.stats import norm

from unbraid._messages import check_range
from unbraid.metrics._pairs import orders, permuted_side, read_pairs
from unbraid.metrics._resampling import percentiles
from unbraid.metrics._result import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

    from unbraid.metrics._pairs import Pairs

LEAST_OBSERVATIONS = 8
N_BLOCKS = 20  # of the jackknife


@dataclass(frozen=True, kw_only=True)
class DependenceResult(Result):
    """What :func:`dependence` found.

    Attributes
    ----------
    distance_correlation
        Bias-corrected squared distance correlation: 0 in expectation where there is no dependence, 1 at most.
    distance_correlation_interval
        Jackknife interval of it.
    distance_correlation_null
        Interval of it under permutations.
    distance_correlation_p_value
        Share of permutations with as much.
    distance_correlation_biased
        Distance correlation as first defined: the square root of a V-statistic, never 0 in a sample.
    distance_correlation_biased_null
        Its mean under permutations, which is what it is to be compared with.
    hsic
        Hilbert-Schmidt independence criterion with Gaussian kernels (a V-statistic).
    cka
        The same normalised to at most 1: centred kernel alignment.
    cka_interval
        Jackknife interval of it.
    cka_null
        Interval of it under permutations.
    cka_mean_null
        Its mean under permutations.
    hsic_p_value
        Share of permutations with as much.
    bandwidths
        Of both kernels: median distances.
    permuted
        What the permutations exchange, in words.
    n_obs
        Number of observations.
    n_dropped
        Number of observations left out: one side is missing.
    n_groups
        Number of groups, None without groups.
    n_strata
        Number of strata, None without strata.
    n_features
        Dimensions of both sides.
    n_permutations
        Number of permutations.
    confidence
        Level of the intervals.
    seed
        Of subset, permutations and jackknife blocks.
    """

    _measure = "dependence"
    distance_correlation: float
    distance_correlation_interval: tuple[float, float]
    distance_correlation_null: tuple[float, float]
    distance_correlation_p_value: float
    distance_correlation_biased: float
    distance_correlation_biased_null: float
    hsic: float
    cka: float
    cka_interval: tuple[float, float]
    cka_null: tuple[float, float]
    cka_mean_null: float
    hsic_p_value: float
    bandwidths: tuple[float, float]
    permuted: str
    n_obs: int
    n_dropped: int
    n_groups: int | None
    n_strata: int | None
    n_features: tuple[int, int]
    n_permutations: int
    confidence: float
    seed: int

    def _flat(self, name: str) -> dict:
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return {name: value}
        ends = ("a", "b") if name in ("bandwidths", "n_features") else ("low", "high")
        return {f"{name.removesuffix('_interval')}_{end}": x for end, x in zip(ends, value, strict=True)}

    def __str__(self) -> str:
        of = "" if self.n_groups is None else f" in {self.n_groups:,} groups"
        p = ["" if np.isnan(x) else f", p = {x:.2g}" for x in (self.distance_correlation_p_value, self.hsic_p_value)]
        return (
            f"squared distance correlation {self.distance_correlation:z.3f} "
            f"[{self.distance_correlation_interval[0]:z.3f}, {self.distance_correlation_interval[1]:z.3f}]{p[0]}; "
            f"HSIC (CKA) {self.cka:z.3f}, chance {self.cka_mean_null:z.3f}{p[1]} (n = {self.n_obs:,}{of}, "
            f"permuted: {self.permuted})"
        )

    __repr__ = __str__


def dependence(
    a: ArrayLike | str,
    b: ArrayLike | str,
    *,
    data: AnnData | MuData | None = None,
    strata: ArrayLike | str | Sequence[str] | None = None,
    groups: ArrayLike | str | None = None,
    max_obs: int | None = 2000,
    n_permutations: int = 499,
    confidence: float = 0.95,
    seed: int = 0,
) -> DependenceResult:
    r"""Whether two embeddings depend on each other in any way: distance correlation and HSIC, against permutations.

    Both are tests, not sizes: they detect dependence of any form given enough observations, and are small for
    dependence that is neither linear nor monotone. Use :func:`mutual_information` for how much.

    Parameters
    ----------
    a
        One embedding: an array of shape `(n_obs, p)` (or `(n_obs,)`), a DataFrame, or its key in `data`. Rows that
        are NaN throughout (modality missing) are left out, on both sides.
    b
        The other one, of the same observations.
    data
        AnnData or MuData that holds them; `"rna:Z_s"` stands for `data["rna"].obsm["Z_s"]`.
    strata
        What to condition on (batch, cell type): `n_obs` labels, a column of `data.obs`, or a list of columns, which
        are crossed. The statistics stay what they are; they are judged against permutations within strata, which
        keep what both sides owe to the strata.
    groups
        What is not independent within (donor, molecule): `n_obs` labels, or a column of `data.obs`.
    max_obs
        Use a random subset of at most so many observations. Time and memory grow with its square.
    n_permutations
        Number of permutations; with 0 there is no null and no p-value.
    confidence
        Level of the intervals.
    seed
        Seed of subset, permutations and jackknife. Global random state is neither used nor changed.

    Returns
    -------
    Both statistics with intervals, nulls, p-values and counts.

    Raises
    ------
    KeyError
        An embedding, or a column named by `strata` or `groups`, is not there.
    ValueError
        Lengths differ; an embedding is infinite, or NaN in a part of a row; fewer than 8 observations are complete;
        a stratum or group is missing; an option is out of its range.

    Notes
    -----
    Features are standardised first, so that none dominates by its unit. With double-centred Euclidean distances
    :math:`A, B` and U-centred ones :math:`\tilde A, \tilde B`,

    .. math::

        \text{dCor}_n = \sqrt{\frac{\sum_{ij} A_{ij} B_{ij}}{\sqrt{\sum_{ij} A_{ij}^2 \sum_{ij} B_{ij}^2}}},
        \qquad
        \text{dCor}^2_\text{corrected} = \frac{\sum_{i \ne j} \tilde A_{ij} \tilde B_{ij}}
            {\sqrt{\sum_{i \ne j} \tilde A_{ij}^2 \sum_{i \ne j} \tilde B_{ij}^2}}

    ([1]_ definition 5, [2]_ eq. 3.2). With kernels
    :math:`k(x, y) = \exp(-\lVert x - y \rVert^2 / 2 \sigma^2)`, :math:`\sigma` the median distance,
    centred to :math:`K, L`,

    .. math::

        \text{HSIC} = \frac{1}{n^2} \sum_{ij} K_{ij} L_{ij}, \qquad
        \text{CKA} = \frac{\sum_{ij} K_{ij} L_{ij}}{\sqrt{\sum_{ij} K_{ij}^2 \sum_{ij} L_{ij}^2}}

    ([3]_, [4]_). The p-value is :math:`(1 + \#\{T_\text{permuted} \ge T\}) / (1 + n_\text{permutations})`; that of
    distance correlation is of the bias-corrected one.

    **Permutations.** Without groups, rows of `b` are permuted, within strata. With groups: where one side is constant
    within groups (a molecule, a donor's genotype), whole groups of that side are exchanged, within strata; a group
    that lies in several strata counts as several then. Otherwise rows are permuted within groups: what a group's own composition gives away
    counts as chance then, and dependence only *between* groups is not tested. `permuted` says which it was.

    **Intervals** are of the delete-a-block jackknife over 20 random blocks of observations, or of groups.

    References
    ----------
    .. [1] Székely, Rizzo and Bakirov (2007), Measuring and testing dependence by correlation of distances. Annals of
       Statistics 35, 2769-2794.
    .. [2] Székely and Rizzo (2014), Partial distance correlation with methods for dissimilarities. Annals of
       Statistics 42, 2382-2412.
    .. [3] Gretton et al. (2005), Measuring statistical dependence with Hilbert-Schmidt norms. ALT.
    .. [4] Cortes, Mohri and Rostamizadeh (2012), Algorithms for learning kernels based on centered alignment. JMLR 13.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> rng = np.random.default_rng(0)
    >>> a = rng.normal(size=(300, 3))
    >>> found = ub.metrics.dependence(a, a**2 + rng.normal(size=(300, 3)))
    >>> found.distance_correlation_p_value < 0.05, found.n_obs
    (True, 300)
    """
    check_range("n_permutations", n_permutations, n_permutations >= 0, "0 or more")
    check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")
    enough = max_obs is None or max_obs >= LEAST_OBSERVATIONS
    check_range("max_obs", max_obs, enough, f"at least {LEAST_OBSERVATIONS}")
    subset_rng, null_rng, jackknife_rng = np.random.default_rng(seed).spawn(3)

    pairs = read_pairs(a, b, data, strata, groups, LEAST_OBSERVATIONS).subset(max_obs, subset_rng)
    distances = [squareform(pdist(_standardised(x))) for x in (pairs.a, pairs.b)]
    bandwidths = tuple(median_bandwidth(d) for d in distances)
    kernels = [centred(gaussian_kernel(d, sigma)) for d, sigma in zip(distances, bandwidths, strict=True)]

    corrected, biased = _distance_correlations(*distances)
    cka = _cosine(*kernels)
    null = _null(pairs, distances, kernels, n_permutations, null_rng)
    spread = _jackknife(pairs, distances, kernels, jackknife_rng)
    margin = norm.ppf((1 + confidence) / 2) * np.array(spread)
    p_value = lambda values, observed: (
        float((1 + np.sum(values >= observed - 1e-12)) / (1 + len(values))) if len(values) else np.nan
    )
    return DependenceResult(
        distance_correlation=corrected,
        distance_correlation_interval=_clipped(corrected, margin[0]),
        distance_correlation_null=percentiles(null[:, 0], confidence),
        distance_correlation_p_value=p_value(null[:, 0], corrected),
        distance_correlation_biased=biased,
        distance_correlation_biased_null=float(null[:, 1].mean()) if len(null) else np.nan,
        hsic=float(np.vdot(*kernels)) / len(pairs) ** 2,
        cka=cka,
        cka_interval=_clipped(cka, margin[1]),
        cka_null=percentiles(null[:, 2], confidence),
        cka_mean_null=float(null[:, 2].mean()) if len(null) else np.nan,
        hsic_p_value=p_value(null[:, 2], cka),
        bandwidths=bandwidths,
        permuted=_in_words(pairs),
        n_obs=len(pairs),
        n_dropped=pairs.n_dropped,
        n_groups=pairs.n_groups,
        n_strata=pairs.n_strata,
        n_features=(pairs.a.shape[1], pairs.b.shape[1]),
        n_permutations=n_permutations,
        confidence=confidence,
        seed=seed,
    )


# --------------------------------------------------------------------------------------------------
# Statistics


def hsic_biased(a: NDArray, b: NDArray, sigma_a: float, sigma_b: float) -> float:
    """HSIC with Gaussian kernels of the given bandwidths, as a V-statistic."""
    kernels = [centred(gaussian_kernel(squareform(pdist(x)), s)) for x, s in ((a, sigma_a), (b, sigma_b))]
    return float(np.vdot(*kernels)) / len(a) ** 2


def gaussian_kernel(distance: NDArray, sigma: float) -> NDArray:
    """exp(-d^2 / 2 sigma^2)."""
    return np.exp(-(distance**2) / (2 * sigma**2))


def median_bandwidth(distance: NDArray) -> float:
    """Median distance between different rows; 1 where all are equal."""
    values = distance[np.triu_indices(len(distance), 1)]
    values = values[values > 0]
    return float(np.median(values)) if len(values) else 1.0


def centred(matrix: NDArray) -> NDArray:
    """Less row and column means."""
    mean = matrix.mean(axis=0)
    return matrix - mean - mean[:, None] + mean.mean()


def _distance_correlations(x: NDArray, y: NDArray) -> tuple[float, float]:
    """Bias-corrected square and biased distance correlation."""
    n = len(x)
    sums = [_sums(float(np.vdot(*two)), *(z.sum(axis=1) for z in two)) for two in ((x, y), (x, x), (y, y))]
    across, first, second = (_corrected(*three, n) for three in sums)
    corrected = across / np.sqrt(first * second) if first > 0 and second > 0 else 0.0
    across, first, second = (_biased(*three, n) for three in sums)
    biased = np.sqrt(max(across, 0) / np.sqrt(first * second)) if first > 0 and second > 0 else 0.0
    return float(corrected), float(biased)


def _sums(total: float, x_rows: NDArray, y_rows: NDArray) -> tuple[float, float, float]:
    """Sums of x_ij y_ij, of products of row sums, and the product of sums."""
    return total, x_rows @ y_rows, x_rows.sum() * y_rows.sum()


def _corrected(total, rows, everything, n):
    """Mean product of U-centred matrices with zero diagonals, from the sums of :func:`_sums`."""
    return (total - 2 * rows / (n - 2) + everything / ((n - 1) * (n - 2))) / (n * (n - 3))


def _biased(total, rows, everything, n):
    """Mean product of double-centred matrices, from the sums of :func:`_sums`."""
    return (total - 2 * rows / n + everything / n**2) / n**2


def _cosine(k: NDArray, l: NDArray) -> float:  # noqa: E741  (the letters of the papers)
    norm_ = np.sqrt(np.vdot(k, k) * np.vdot(l, l))
    return float(np.vdot(k, l) / norm_) if norm_ > 0 else 0.0


# --------------------------------------------------------------------------------------------------
# Null and interval


def _null(
    pairs: Pairs, distances: list[NDArray], kernels: list[NDArray], n_permutations: int, rng: np.random.Generator
) -> NDArray:
    """(n_permutations, 3): corrected and biased distance correlation, and CKA."""
    side, is_whole_groups = permuted_side(pairs)
    if side == "a":
        distances, kernels = distances[::-1], kernels[::-1]
    (x, y), (k, other) = distances, kernels
    null = np.zeros((n_permutations, 3))
    if is_whole_groups:  # groups differ in size: what is centred and normalised is not what it was
        for row, order in zip(null, orders(pairs, rng), strict=False):
            place = np.ix_(order, order)
            row[:] = *_distance_correlations(x, y[place]), _cosine(k, centred(other[place]))
        return null

    n, x_rows, y_rows = len(pairs), x.sum(axis=1), y.sum(axis=1)
    own = [_sums(float(np.vdot(z, z)), z_rows, z_rows) for z, z_rows in ((x, x_rows), (y, y_rows))]
    corrected_norm, biased_norm = (
        np.sqrt(np.prod([max(rule(*three, n), 0) for three in own])) for rule in (_corrected, _biased)
    )
    kernel_norm = np.sqrt(np.vdot(k, k) * np.vdot(other, other))
    if min(corrected_norm, biased_norm, kernel_norm) <= 0:  # a side is constant
        return null
    single = [matrix.astype(np.float32) for matrix in (x, y, k, other)]  # half the memory is twice as fast
    for row, order in zip(null, orders(pairs, rng), strict=False):
        total, alignment = _permuted_products(*single, order)
        sums = _sums(total, x_rows, y_rows[order])
        row[0] = _corrected(*sums, n) / corrected_norm
        row[1] = np.sqrt(max(_biased(*sums, n), 0) / biased_norm)
        row[2] = alignment / kernel_norm
    return null


@numba.njit(fastmath=True)
def _permuted_products(x, y, k, other, order):  # pragma: no cover  (compiled)
    """Sums of x_ij y_pi(i)pi(j) and of k_ij other_pi(i)pi(j), symmetric all; a row of either fits into cache."""
    n = len(order)
    total, alignment = 0.0, 0.0
    for i in range(n):
        x_row, y_row, k_row, other_row = x[i], y[order[i]], k[i], other[order[i]]
        row, row_k = 0.0, 0.0
        for j in range(i):
            at = order[j]
            row += x_row[j] * y_row[at]
            row_k += k_row[j] * other_row[at]
        total += 2 * row + x_row[i] * y_row[order[i]]
        alignment += 2 * row_k + k_row[i] * other_row[order[i]]
    return total, alignment


def _jackknife(
    pairs: Pairs, distances: list[NDArray], kernels: list[NDArray], rng: np.random.Generator
) -> tuple[float, float]:
    """Standard errors of both statistics, without one of 20 blocks of groups or observations at a time."""
    n_units = len(pairs) if pairs.groups is None else pairs.n_groups
    n_blocks = min(N_BLOCKS, n_units)
    if n_blocks < 3:
        return np.nan, np.nan
    block = rng.permutation(np.arange(n_units) % n_blocks)
    block = block if pairs.groups is None else block[pairs.groups]
    member = np.eye(n_blocks)[block]
    n_kept = len(pairs) - member.sum(axis=0)
    if n_kept.min() < 4:
        return np.nan, np.nan
    without = lambda two, rule: rule(*_sums_without(*two, member), n_kept)
    estimates = []
    for (x, y), rule in ((distances, _corrected), (kernels, _biased)):
        across, first, second = (without(two, rule) for two in ((x, y), (x, x), (y, y)))
        scale = np.sqrt(np.maximum(first, 0) * np.maximum(second, 0))
        estimates.append(np.divide(across, scale, out=np.zeros(n_blocks), where=scale > 0))
    error = lambda values: float(np.sqrt((n_blocks - 1) * values.var()))
    return error(estimates[0]), error(estimates[1])


def _sums_without(x: NDArray, y: NDArray, member: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """What :func:`_corrected` and :func:`_biased` take, without one block of rows and columns at a time."""
    by_block = member.T @ ((x * y) @ member)
    total = by_block.sum() - 2 * by_block.sum(axis=0) + np.diagonal(by_block)
    in_block = [z @ member for z in (x, y)]
    rows = [(z.sum(axis=1, keepdims=True) - z) * (1 - member) for z in in_block]
    return total, (rows[0] * rows[1]).sum(axis=0), rows[0].sum(axis=0) * rows[1].sum(axis=0)


# --------------------------------------------------------------------------------------------------
# In and out


def _standardised(x: NDArray) -> NDArray:
    scale = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(scale > 0, scale, np.inf)


def _clipped(value: float, margin: float) -> tuple[float, float]:
    return float(value - margin), float(min(value + margin, 1))


def _in_words(pairs: Pairs) -> str:
    side, is_whole_groups = permuted_side(pairs)
    if is_whole_groups:
        what = f"whole groups of {side}"
    else:
        what = "observations" if pairs.groups is None else "observations within groups"
    joint = " and" if what.endswith("within groups") else " within"
    return what if pairs.strata is None else f"{what}{joint} strata"
