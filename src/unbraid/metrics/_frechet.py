"""How far two samples are apart, as Gaussians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist

from unbraid._messages import check_range, check_whole
from unbraid.metrics._frechet_design import (
    Rows,
    check_options,
    few_threads,
    gaussian_distance,
    moments_of,
    read_samples,
)
from unbraid.metrics._resampling import percentiles
from unbraid.metrics._result import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray

    from unbraid.metrics._frechet_design import Shrinkage

ENERGY_OBS = 2_000  # rows of each sample behind the energy distance, which is quadratic in them
INVERSE_FRACTIONS = np.linspace(1, 3, 9)  # the distance at these n / (rows of a subset) is extrapolated to 0
SUBSETS = 10  # of each size


@dataclass(frozen=True, kw_only=True)
class FrechetResult(Result):
    """What :func:`frechet_distance` found.

    Attributes
    ----------
    distance
        Fréchet distance of the samples; biased upward.
    interval
        Bootstrap interval of the distance between the populations, from which the bias is taken out; the distance of
        the samples may lie above it.
    extrapolated
        Distance extrapolated to infinite samples, None unless asked for.
    chance
        Mean distance after the rows have been dealt out at random: all of it is bias. NaN without permutations.
    p_value
        Share of permutations that are as far apart (NaN without permutations).
    energy_distance
        Energy distance, which sees more than two moments and is not biased.
    n_x, n_y
        Number of rows of each sample.
    n_dropped
        Number of rows left out: missing, or to make the samples equally large.
    n_groups
        Number of groups of both samples, None without groups.
    n_features
        Number of features.
    shrinkage
        How the covariances were shrunk.
    confidence
        Level of the interval.
    """

    _measure = "frechet_distance"
    distance: float
    interval: tuple[float, float]
    extrapolated: float | None
    chance: float
    p_value: float
    energy_distance: float
    n_x: int
    n_y: int
    n_dropped: int
    n_groups: int | None
    n_features: int
    shrinkage: Shrinkage
    confidence: float

    def _flat(self, name: str) -> dict:
        if name == "extrapolated" and self.extrapolated is None:
            return {name: np.nan}
        return super()._flat(name)

    def __str__(self) -> str:
        low, high = self.interval
        of = "" if self.n_groups is None else f" in {self.n_groups:,} groups"
        facts = [] if np.isnan(self.p_value) else [f"p = {self.p_value:.2g}"]
        facts += [f"n = {self.n_x:,} and {self.n_y:,}{of}", f"{self.n_features} features"]
        at_infinity = "" if self.extrapolated is None else f", extrapolated {self.extrapolated:z.3g}"
        return (
            f"Fréchet distance {self.distance:.3g} (populations: [{low:.3g}, {high:.3g}]{at_infinity}), "
            f"chance {self.chance:.3g} ({', '.join(facts)})"
        )

    __repr__ = __str__


def frechet_distance(
    x: ArrayLike,
    y: ArrayLike,
    *,
    feature_extractor: Callable[[ArrayLike], ArrayLike] | None = None,
    shrinkage: Shrinkage = None,
    equal_n: bool = False,
    extrapolate: bool = False,
    x_groups: ArrayLike | None = None,
    y_groups: ArrayLike | None = None,
    n_permutations: int = 100,
    n_bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> FrechetResult:
    r"""How far two samples are apart, as Gaussians.

    Parameters
    ----------
    x, y
        Samples of shape `(n, n_features)`, of different rows: arrays, DataFrames, or sparse matrices (made dense). With
        a `feature_extractor`, whatever it takes. Rows that are NaN throughout are left out.
    feature_extractor
        Maps the rows of a sample to features, `(n, n_features)`; called once for each sample. The distance between
        images is called FID [1]_ if this is the pooling layer of an Inception network.
    shrinkage
        How covariances are shrunk, for samples with few rows for their features: `"ledoit_wolf"`, `"oas"`, or None for
        the unbiased sample covariance (divided by n - 1).
    equal_n
        Use a random subset of the larger sample, as large as the other. Distances can be compared only if the samples
        are of the same sizes, as the bias depends on them.
    extrapolate
        Also extrapolate to infinite samples.
    x_groups, y_groups
        What is drawn in the bootstrap and permuted (donor, molecule): labels of the rows. A group of that name in both
        samples is two groups.
    n_permutations
        Number of permutations behind `chance` and `p_value`; 0 for none.
    n_bootstrap
        Number of bootstrap samples; 0 for no interval.
    confidence
        Level of the interval.
    seed
        Seed of subsets, permutations and bootstrap. Global random state is neither used nor changed.

    Returns
    -------
    The distance with an interval, its chance level, and the energy distance beside it.

    Raises
    ------
    ValueError
        Numbers of features differ; fewer than two rows (with `extrapolate`, twelve); rows are infinite, or NaN in part;
        a group is missing; an option is unknown.

    Notes
    -----
    With means :math:`m` and covariances :math:`S`, the squared 2-Wasserstein distance of the Gaussians [1]_,

    .. math::

        \text{FD} = \lVert m_x - m_y \rVert^2 + \operatorname{tr}(S_x + S_y) - 2 \operatorname{tr}
            \big( S_x^{1/2} S_y S_x^{1/2} \big)^{1/2},

    whose last trace is that of :math:`(S_x S_y)^{1/2}`, but of a symmetric matrix, also where features are constant.

    **Bias.** The estimate is too large by about :math:`c / n`, where :math:`c` grows with the square of the number of
    features; samples of one population have a positive distance. Hence

    - `chance` is the distance of the same rows dealt out at random, and the p-value compares with it;
    - the interval is the basic bootstrap interval, :math:`[2 \text{FD} - q_\text{high}, 2 \text{FD} - q_\text{low}]`
      cut off at 0, as bootstrap samples exceed the samples by as much as these exceed the populations;
    - `extrapolate` fits a line in :math:`1 / n` to the distances of subsets and returns its value at 0, FD-infinity
      [2]_. It can be slightly negative. Needs several times as many rows as features;
    - the energy distance [3]_, :math:`2 E \lVert X - Y \rVert - E \lVert X - X' \rVert - E \lVert Y - Y' \rVert` with
      :math:`X' \ne X`, on at most 2,000 rows of each sample, is unbiased, and sees what the Gaussians do not.

    The result does not depend on the order of the rows.

    References
    ----------
    .. [1] Heusel et al. (2017), GANs trained by a two time-scale update rule converge to a local Nash equilibrium.
       NeurIPS, equation 6.
    .. [2] Chong and Forsyth (2020), Effectively unbiased FID and Inception Score and where to find them. CVPR.
    .. [3] Székely and Rizzo (2013), Energy statistics: a class of statistics based on distances. J. Stat. Plan.
       Inference 143, 1249-1272.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> rng = np.random.default_rng(0)
    >>> real, generated = rng.normal(size=(500, 4)), 1 + rng.normal(size=(500, 4))
    >>> result = ub.metrics.frechet_distance(real, generated)
    >>> bool(result.interval[0] < 4 < result.interval[1]), result.chance < 0.2
    (True, True)
    """
    check_options(shrinkage, n_bootstrap, confidence)
    check_whole("n_permutations", n_permutations, 0)
    subset_rng, null_rng, bootstrap_rng, extrapolation_rng, energy_rng = np.random.default_rng(seed).spawn(5)
    samples, n_dropped = read_samples({"x": (x, x_groups), "y": (y, y_groups)}, feature_extractor, equal_n, subset_rng)
    if extrapolate:
        n = min(map(len, samples))
        check_range("extrapolate", extrapolate, n >= 12, f"False for samples of fewer than 12 rows, there are {n}")

    def distance(a: NDArray, b: NDArray) -> float:
        return gaussian_distance(*moments_of(a, shrinkage), *moments_of(b, shrinkage))

    with few_threads(samples):
        observed = distance(*(each.x for each in samples))
        null = np.array([distance(*dealt) for dealt in _dealt_out(samples, n_permutations, null_rng)])
        drawn = np.array([distance(*(s.resampled(bootstrap_rng) for s in samples)) for _ in range(n_bootstrap)])
        extrapolated = _at_infinity(samples, distance, extrapolation_rng) if extrapolate else None
        energy = _energy_distance(*(each.subset(ENERGY_OBS, energy_rng).x for each in samples))
    low, high = percentiles(drawn, confidence)
    groups = [each.n_groups for each in samples if each.groups is not None]
    return FrechetResult(
        distance=observed,
        interval=(np.maximum(2 * observed - high, 0.0).item(), np.maximum(2 * observed - low, 0.0).item()),
        extrapolated=extrapolated,
        chance=float(null.mean()) if len(null) else np.nan,
        p_value=float((1 + np.sum(null >= observed)) / (1 + len(null))) if len(null) else np.nan,
        energy_distance=energy,
        n_x=len(samples[0]),
        n_y=len(samples[1]),
        n_dropped=n_dropped,
        n_groups=sum(groups) if groups else None,
        n_features=samples[0].x.shape[1],
        shrinkage=shrinkage,
        confidence=confidence,
    )


# --------------------------------------------------------------------------------------------------
# What the distance is compared with


def _dealt_out(samples: list[Rows], n_permutations: int, rng: np.random.Generator) -> Iterator[tuple[NDArray, NDArray]]:
    """Rows of both samples, at random in one or the other; groups stay together."""
    x = np.concatenate([each.x for each in samples])
    first, second = (np.arange(len(s)) if s.groups is None else s.groups for s in samples)
    unit = np.concatenate([first, first.max() + 1 + second])
    n_first = first.max() + 1
    for _ in range(n_permutations):
        is_first = (rng.permutation(unit.max() + 1) < n_first)[unit]
        if 2 <= is_first.sum() <= len(x) - 2:
            yield x[is_first], x[~is_first]


def _at_infinity(samples: list[Rows], distance: Callable[[NDArray, NDArray], float], rng: np.random.Generator) -> float:
    """Intercept of the line through the distances of subsets, in 1 / n."""
    points = [
        (inverse, distance(*(each.subset(round(len(each) / inverse), rng).x for each in samples)))
        for inverse in INVERSE_FRACTIONS
        for _ in range(SUBSETS if inverse > 1 else 1)
    ]
    inverse, distances = np.array(points).T
    weights = np.where(inverse == 1, SUBSETS, 1) ** 0.5  # all rows are one subset, which counts as the others together
    return float(np.polyfit(inverse, distances, 1, w=weights)[1])


def _energy_distance(x: NDArray, y: NDArray) -> float:
    n_x, n_y = len(x), len(y)
    within_x, within_y = cdist(x, x).sum() / (n_x * (n_x - 1)), cdist(y, y).sum() / (n_y * (n_y - 1))
    return float(2 * cdist(x, y).mean() - within_x - within_y)
