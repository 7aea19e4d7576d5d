"""A panel of tests of independence, and the smallest planted dependence that it finds."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats
from scipy.special import ndtri

from unbraid.metrics._resampling import permutations_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

N_CROSSED = 32  # leading dimensions whose products are looked at; squares of all
N_FOURIER = 64  # random features of the kernel
FAMILIES = ("linear", "quadratic", "gated")
STRENGTHS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)  # nats


@dataclass(frozen=True)
class Features:
    """What the detectors compare of one set of variables; columns centred within strata and scaled."""

    linear: NDArray  # whitened
    quadratic: NDArray  # squares and products
    squares: NDArray
    kernel: NDArray  # random Fourier features of the leading variance


class Panel:
    r"""Tests whether two sets of variables are independent, sensitive to several kinds of dependence.

    Every detector is a statistic :math:`T = \lVert \Phi(A)^\top \Psi(B) \rVert_F^2` of centred features: whitened
    variables with whitened variables (Pillai's trace, all canonical correlations), variables with squares and
    products in both directions, squares with squares, and random Fourier features of a Gaussian kernel (HSIC [1]_).
    The null is the pairing shuffled within strata. The p-value of a detector is the upper tail of the Pearson III
    distribution with mean, variance and skewness of the shuffled statistic [2]_; those of the detectors are
    combined by the Cauchy combination test [3]_, which holds its level however they depend.

    References
    ----------
    .. [1] Gretton et al. (2008), A kernel statistical test of independence. NeurIPS.
    .. [2] Josse, Pages and Husson (2008), Testing the significance of the RV coefficient. CSDA 53, 82-91.
    .. [3] Liu and Xie (2020), Cauchy combination test. JASA 115, 393-402.
    """

    DETECTORS = ("linear", "quadratic in b", "quadratic in a", "squares", "kernel")

    def __init__(self, b: NDArray, strata: NDArray | None = None, n_permutations: int = 100, seed: int = 0) -> None:
        self.strata, self.n = strata, len(b)
        self.rng_seed = seed
        self.b = self.features(b)
        rng = np.random.default_rng(seed)
        self.orders = list(islice(permutations_within(strata, self.n, rng), n_permutations))

    def features(self, x: NDArray) -> Features:
        return _features(x, self.strata, np.random.default_rng(self.rng_seed))

    def statistics(self, a: Features, order: NDArray | slice = slice(None)) -> NDArray:
        b = self.b
        pairs = (
            (a.linear, b.linear),
            (a.linear, b.quadratic),
            (a.quadratic, b.linear),
            (a.squares, b.squares),
            (a.kernel, b.kernel),
        )
        # the side with fewer columns is the one that is shuffled: fewer numbers to move
        return np.array(
            [
                np.sum((x[order].T @ y) ** 2) if x.shape[1] < y.shape[1] else np.sum((x.T @ y[order]) ** 2)
                for x, y in pairs
            ]
        )

    def null(self, a: Features) -> Null:
        return Null.of(np.stack([self.statistics(a, order) for order in self.orders]))

    def test(self, a: NDArray) -> tuple[float, pd.Series]:
        """P-value of independence, and the p-value of each detector."""
        features = self.features(a)
        p_values = self.null(features).p_values(self.statistics(features))
        return cauchy_combination(p_values), pd.Series(p_values, index=list(self.DETECTORS))


@dataclass(frozen=True)
class Null:
    """Moments of shuffled statistics, `(n_detectors,)` each."""

    mean: NDArray
    standard_deviation: NDArray
    skewness: NDArray

    @classmethod
    def of(cls, shuffled: NDArray) -> Null:
        # a sum of many squares is skewed to the right; the estimate from few permutations is noisy
        skewness = np.clip(stats.skew(shuffled, axis=0), 0.05, 2.0)
        return cls(shuffled.mean(0), shuffled.std(0, ddof=1), skewness)

    def p_values(self, observed: NDArray) -> NDArray:
        scale = np.maximum(self.standard_deviation, 1e-12 * np.abs(self.mean) + 1e-300)
        return stats.pearson3.sf((observed - self.mean) / scale, self.skewness)


def cauchy_combination(p_values: NDArray) -> float:
    """One p-value of several, dependent or not (Liu and Xie 2020)."""
    p_values = np.clip(p_values, 1e-15, 1 - 1e-15)
    return float(stats.cauchy.sf(np.mean(1 / np.tan(np.pi * p_values))))


def detection_limits(
    a: NDArray,
    b: NDArray,
    *,
    strata: NDArray | None = None,
    labels: NDArray | None = None,
    alpha: float = 0.05,
    power: float = 0.9,
    n_repeats: int = 20,
    n_dimensions: int = 2,
    strengths: Iterable[float] = STRENGTHS,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> pd.DataFrame:
    r"""The smallest dependence of `a` on `b` that :class:`Panel` finds in nine of ten repeats, as of an assay.

    The rows of `a` are shuffled (within strata), so that it does not depend on `b`. Then `n_dimensions` random
    directions :math:`u` of its whitened space are replaced by :math:`\sqrt{1 - s^2}\, u + s\, g(b)`, where
    :math:`g` is, of random directions :math:`v` of the whitened `b` and standardised,

    - *linear*: :math:`v^\top b`,
    - *quadratic*: :math:`(v^\top b)^2`,
    - *gated*: :math:`\pm v^\top b` with the sign that of half of the labels, drawn at random (without labels: of the
      sign of another direction).

    Strength is given in nats, :math:`-\tfrac12 \log(1 - s^2)` per dimension: the mutual information of a Gaussian
    channel with this signal and noise, and nearly so, from above, for the other two.

    Returns
    -------
    Table with a row per family: `family`, `nats` (infinite where the largest strength is missed), `share` (of the
    variance of a dimension), `power` (share of repeats found at this strength).
    """
    strengths = np.asarray(list(strengths))
    panel = Panel(b, strata, seed=seed)
    white_a, back = _whiten_with_inverse(a)
    white_b = panel_whiten(b)
    # planting hardly moves the null, which depends on the geometry of each side alone
    null = panel.null(panel.features(a))
    allowed = n_repeats - int(np.ceil(power * n_repeats))

    def found(family: str, strength: float, rng: np.random.Generator) -> float:
        misses = 0
        for _ in range(n_repeats):
            order = next(permutations_within(strata, len(a), rng))
            planted = plant(white_a[order], white_b, family, strength, n_dimensions, labels, rng) @ back
            p_values = null.p_values(panel.statistics(panel.features(planted)))
            misses += cauchy_combination(p_values) >= alpha
            if misses > allowed:  # the rest cannot make up for it
                break
        on_step()
        return 1 - misses / n_repeats

    def limit(family: str) -> dict:
        rng = np.random.default_rng([seed, FAMILIES.index(family)])
        low, high, powers = 0, len(strengths), {}
        while low < high:  # power grows with strength: halve the interval
            middle = (low + high) // 2
            powers[middle] = found(family, strengths[middle], rng)
            low, high = (low, middle) if powers[middle] >= power else (middle + 1, high)
        nats = strengths[low] if low < len(strengths) else np.inf
        share = 1 - np.exp(-2 * nats / n_dimensions)
        return {"family": family, "nats": nats, "share": share, "power": powers.get(low, np.nan)}

    with ThreadPoolExecutor(min(len(FAMILIES), os.cpu_count() or 1)) as pool:
        return pd.DataFrame(pool.map(limit, FAMILIES))


def plant(
    a: NDArray,
    b: NDArray,
    family: str,
    nats: float,
    n_dimensions: int,
    labels: NDArray | None,
    rng: np.random.Generator,
) -> NDArray:
    """Replace part of random directions of whitened `a` by functions of whitened `b`."""
    n_dimensions = min(n_dimensions, a.shape[1])
    share = 1 - np.exp(-2 * nats / n_dimensions)
    directions = np.linalg.qr(rng.normal(size=(a.shape[1], n_dimensions)))[0]
    projected = b @ np.linalg.qr(rng.normal(size=(b.shape[1], min(2 * n_dimensions, b.shape[1]))))[0]
    signal = projected[:, :n_dimensions]
    if signal.shape[1] < n_dimensions:
        signal = np.repeat(signal, n_dimensions, axis=1)[:, :n_dimensions]
    if family == "quadratic":
        signal = signal**2
    elif family == "gated":
        if labels is None:
            gate = projected[:, -1] > 0
        else:
            classes = rng.permutation(labels.max() + 1)
            gate = np.isin(labels, classes[: max(len(classes) // 2, 1)])
        signal = np.where(gate[:, None], signal, -signal)
    signal = _standardise(signal)
    own = a @ directions
    return a + (np.sqrt(1 - share) * own + np.sqrt(share) * own.std(0) * signal - own) @ directions.T


# --------------------------------------------------------------------------------------------------


def _features(x: NDArray, strata: NDArray | None, rng: np.random.Generator) -> Features:
    scores = normal_scores(_rotate(x))
    linear = _whiten(_centre(scores, strata))
    squares = _standardise(_centre(linear**2 * len(x), strata))
    leading = linear[:, :N_CROSSED] * np.sqrt(len(x))
    i, j = np.triu_indices(leading.shape[1], k=1)
    products = _standardise(_centre(leading[:, i] * leading[:, j], strata))
    quadratic = np.hstack([squares, products]) / np.sqrt(len(x))
    parts = linear, quadratic, squares / np.sqrt(len(x)), _fourier(x, strata, rng)
    return Features(*(np.ascontiguousarray(part, dtype=np.float32) for part in parts))  # sums of squares need no more


def normal_scores(x: NDArray) -> NDArray:
    """Columns as Gaussian quantiles of their ranks: no outlier decides."""
    quantiles = ndtri((np.arange(2 * len(x) + 1) / 2 - 0.5).clip(0.5) / len(x)).astype(x.dtype)
    return quantiles[(2 * stats.rankdata(x, axis=0)).astype(int)]  # ranks of ties are halves


def _rotate(x: NDArray) -> NDArray:
    """Principal axes of the standardised variables, without those of no variance."""
    x = _standardise(x)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    keep = values > max(values.max(), 1e-300) * 1e-10
    return x @ vectors[:, keep][:, ::-1]


def panel_whiten(x: NDArray) -> NDArray:
    """Uncorrelated columns of variance 1."""
    return _whiten(_standardise(x)) * np.sqrt(len(x))


def _whiten_with_inverse(x: NDArray) -> tuple[NDArray, NDArray]:
    """Uncorrelated columns of variance 1, and the matrix that leads back to the standardised variables."""
    x = _standardise(x)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    keep = values > max(values.max(), 1e-300) * 1e-10
    values, vectors = values[keep], vectors[:, keep]
    return x @ vectors / np.sqrt(values), (vectors * np.sqrt(values)).T


def _whiten(x: NDArray) -> NDArray:
    """Orthonormal columns of the same span, those of the largest variance first."""
    values, vectors = np.linalg.eigh(x.T @ x)
    keep = values > max(values.max(), 1e-300) * 1e-8
    values, vectors = values[keep][::-1], vectors[:, keep][:, ::-1]
    return x @ (vectors / np.sqrt(values))


def _centre(x: NDArray, strata: NDArray | None) -> NDArray:
    if strata is None or not x.shape[1]:  # one variable has no products
        return x - x.mean(0)
    means = np.stack([np.bincount(strata, column) for column in x.T], axis=1)
    return x - (means / np.bincount(strata).clip(1)[:, None])[strata]


def _standardise(x: NDArray) -> NDArray:
    x = x - x.mean(0)
    scale = np.sqrt((x**2).mean(0))
    return x / np.where(scale > 1e-12, scale, 1.0)


def _fourier(x: NDArray, strata: NDArray | None, rng: np.random.Generator) -> NDArray:
    x = _centre(x / max(np.sqrt(x.var(0).sum()), 1e-300), strata)  # squared distances have mean 2: the width is 1
    angle = (x @ rng.normal(size=(x.shape[1], N_FOURIER))).astype(np.float32)
    features = np.hstack([np.cos(angle), np.sin(angle)])
    return _centre(features, strata) / np.sqrt(len(x) * N_FOURIER)
