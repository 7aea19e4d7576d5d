"""Ridge and dimensions of canonical correlation analysis, chosen on held-out cells."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from unbraid.module._linear import canonical_directions, common_rows, one_of_each

if TYPE_CHECKING:
    from collections.abc import Sequence

RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0)
SURELY = 1.5  # times the correlation that the best of all dimensions has by chance, for a ridge to be chosen by it
LEAST_VARIANCE = 1e-10  # of the largest; directions below it are rounding errors
# of a Gumbel distribution, that of a largest value: its 95 % quantile is this many standard deviations above its mean
GUMBEL_QUANTILE = float((-np.log(-np.log(0.95)) - np.euler_gamma) * np.sqrt(6) / np.pi)


@dataclass(frozen=True)
class CanonicalSelection:
    """Result of :func:`select_canonical`.

    Attributes
    ----------
    ridge
        Chosen ridge.
    correlations
        Held-out correlation of every dimension, mean over folds and pairs of modalities.
    threshold
        95 % quantile of the largest such correlation when the same is done with randomly re-paired cells.
    """

    ridge: float
    correlations: np.ndarray
    threshold: float

    @property
    def shared(self) -> np.ndarray:
        """Which dimensions are above the threshold, bool ``(n_dims,)``.

        They need not be the leading ones: dimensions come in the order of what the cells of the fit say, and where
        there are few of these, one that was overfitted may stand before others that are shared.
        """
        return self.correlations > self.threshold


def select_canonical(
    data: dict[str, np.ndarray],
    rows: dict[str, np.ndarray],
    batch: np.ndarray,
    n_dims: int,
    *,
    ridges: Sequence[float] = RIDGES,
    n_folds: int = 5,
    n_permutations: int = 20,
    max_obs: int = 20_000,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> CanonicalSelection:
    r"""Choose the ridge and the dimensions of :func:`~unbraid.module._linear.generalized_cca` on held-out cells.

    The ridge maximises the held-out Gaussian information :math:`-\frac12 \sum_j \log(1 - \rho_j^2)` over
    dimensions clearly above chance. A dimension counts as shared if its held-out correlation exceeds what
    the best of all dimensions reaches when cells are re-paired at random (within batches) and fitted and held out
    anew. To re-pair the held-out cells alone is not enough: folds are fitted to each other's cells, so that their
    correlations agree more than independent ones would.

    Parameters
    ----------
    data
        Per modality, centred components of the cells that have it, ``(n_m, p_m)``.
    rows
        Per modality, numbers of these cells, increasing.
    batch
        Batch of every cell, ``(n_obs,)``.
    n_dims
        Dimensions to look at.
    ridges
        Candidates.
    n_folds
        Folds of cells; each is held out once.
    n_permutations
        Random re-pairings, at least 2; the quantile is that of the Gumbel distribution with their mean and variance.
    max_obs
        Cells to look at; more do not change the choice.
    groups
        Of which group every cell is a replicate, ``(n_obs,)``. Folds are then of groups, groups are re-paired with
        groups, and of the held-out replicates in a batch one is looked at: more of them would pass for more independent
        cells.
    seed
        Seed of folds and re-pairings.
    """
    n_obs, rng = len(batch), np.random.default_rng(seed)
    unit = np.arange(n_obs) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_units = unit.max(initial=-1) + 1
    fold = rng.permutation(n_units)[unit]
    fold = np.where(fold < max_obs * n_units / n_obs, fold % n_folds, -1)  # -1: not looked at
    chosen = {m: fold[r] >= 0 for m, r in rows.items()}
    data, rows = {m: x[chosen[m]] for m, x in data.items()}, {m: r[chosen[m]] for m, r in rows.items()}
    pairs = _pairs(rows, batch, groups, n_obs)

    whole = _Folds(data, rows, pairs, fold, n_folds)
    n_test = sum(int(tested.sum()) for _, _, tested in pairs.values())
    chance = np.sqrt(2 * np.log(max(n_dims, 2)) / max(n_test, 1))

    def information(ridge: float) -> float:
        rho = whole.correlations(ridge, n_dims)
        return float(-0.5 * np.log1p(-(np.minimum(rho[rho > SURELY * chance], 1 - 1e-9) ** 2)).sum())

    best = max(ridges, key=information) if len(ridges) > 1 else ridges[0]
    first, null = next(iter(data)), []
    for _ in range(n_permutations):
        order = {m: _repaired(batch[r], None if groups is None else unit[r], rng) for m, r in rows.items()}
        drawn = {m: x if m == first else x[order[m]] for m, x in data.items()}
        null.append(_Folds(drawn, rows, pairs, fold, n_folds).correlations(best, n_dims).max(initial=0.0))
    threshold = np.mean(null) + GUMBEL_QUANTILE * np.std(null, ddof=1)
    return CanonicalSelection(best, whole.correlations(best, n_dims), float(threshold))


class _Folds:
    """Second moments of every fold, which are all that cross-validated canonical correlations need.

    Parameters
    ----------
    data, rows
        As in :func:`select_canonical`.
    pairs
        Of :func:`_pairs`.
    fold
        Of every cell.
    n_folds
        Their number.
    """

    def __init__(self, data, rows, pairs, fold: np.ndarray, n_folds: int) -> None:
        parts = {m: [x[fold[rows[m]] == k] for k in range(n_folds)] for m, x in data.items()}
        grams = {m: [a.T @ a for a in part] for m, part in parts.items()}
        self.sizes = {m: x.shape[1] for m, x in data.items()}
        # per fold: eigenvalues and vectors of the training covariance of each modality
        self.spectra = []
        for k in range(n_folds):
            spectrum = {}
            for m, gram in grams.items():
                count = sum(len(a) for a in parts[m]) - len(parts[m][k])
                spectrum[m] = np.linalg.eigh((sum(gram) - gram[k]) / max(count, 1))
            self.spectra.append(spectrum)
        # per fold and pair, in the eigenvectors: training cross-covariance; held-out one, and both covariances
        self.cross, self.held_out = [{} for _ in range(n_folds)], [{} for _ in range(n_folds)]
        for (m, n), (i, j, tested) in pairs.items():
            of = fold[rows[m][i]]
            a, b = data[m][i], data[n][j]
            inside = [(a[of == k], b[of == k]) for k in range(n_folds)]
            products = [(x.T @ y, x.sum(axis=0), y.sum(axis=0), len(x)) for x, y in inside]
            total = [sum(parts) for parts in zip(*products, strict=True)]
            every = tested.all() and len(i) == len(data[m]) == len(data[n])
            for k in range(n_folds):
                left, right = self.spectra[k][m][1], self.spectra[k][n][1]
                training = _centred(*(whole - part for whole, part in zip(total, products[k], strict=True)))
                if training is not None:
                    self.cross[k][m, n] = left.T @ training @ right
                x, y = inside[k] if every else (part[tested[of == k]] for part in inside[k])
                if len(x) > 2:
                    moments = [(x, y, None), (x, x, grams[m][k]), (y, y, grams[n][k])]
                    between, before, after = (
                        _centred(u.T @ v if known is None or not every else known, u.sum(axis=0), v.sum(axis=0), len(u))
                        for u, v, known in moments
                    )
                    self.held_out[k][m, n] = left.T @ between @ right, left.T @ before @ left, right.T @ after @ right

    def correlations(self, ridge: float, n_dims: int) -> np.ndarray:
        """Held-out correlation of every dimension, mean over folds and pairs, ``(n_dims,)``."""
        found = []
        for spectrum, cross, held_out in zip(self.spectra, self.cross, self.held_out, strict=True):
            scale = {m: _whitening(values, ridge) for m, (values, _) in spectrum.items()}
            whitened = {(m, n): scale[m][:, None] * block * scale[n] for (m, n), block in cross.items()}
            directions = canonical_directions(whitened, self.sizes, n_dims)
            weights = {m: scale[m][:, None] * directions[m] for m in scale}
            for (m, n), (between, before, after) in held_out.items():
                along = lambda left, moment, right: ((moment @ right) * left).sum(axis=0)
                square = along(weights[m], before, weights[m]) * along(weights[n], after, weights[n])
                length = np.sqrt(np.where(square > 1e-24, square, np.inf))
                found.append(along(weights[m], between, weights[n]) / length)
        return np.mean(found, axis=0) if found else np.zeros(n_dims)


def _whitening(variance: np.ndarray, ridge: float) -> np.ndarray:
    """One over the root of every variance and a share of their mean; 0 where there is no variance."""
    seen = variance > LEAST_VARIANCE * max(variance.max(initial=0.0), 1e-300)
    return np.where(seen, 1 / np.sqrt(np.maximum(variance, 0) + ridge * max(variance.mean(), 1e-300)), 0.0)


def _centred(product: np.ndarray, left: np.ndarray, right: np.ndarray, n: int) -> np.ndarray | None:
    """Covariance of two sets of columns from their products and sums; None of fewer than two cells."""
    return None if n < 2 else product / n - np.outer(left / n, right / n)


def _pairs(rows, batch: np.ndarray, groups: np.ndarray | None, n_obs: int) -> dict[tuple[str, str], tuple]:
    """Per pair of modalities: positions of the cells with both, and which of these are held out in their turn."""
    found = {}
    for m, n in combinations(rows, 2):
        i, j = common_rows(rows[m], rows[n], n_obs)
        tested = np.ones(len(i), dtype=bool)
        if groups is not None:
            tested[:] = False
            tested[one_of_each(groups[rows[m][i]], batch[rows[m][i]])] = True
        found[m, n] = i, j, tested
    return found


def _repaired(batch: np.ndarray, unit: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """For every cell another one of its batch, at random, of the same other group for all replicates of a group.

    Parameters
    ----------
    batch
        Of every cell, ``(n,)``.
    unit
        Number of the group of every cell; None where cells are no replicates of each other.
    rng
        To draw with.
    """
    n = len(batch)
    draw = rng.permutation(n)
    if unit is None:
        result = np.empty(n, dtype=int)
        result[np.argsort(batch, kind="stable")] = draw[np.argsort(batch[draw], kind="stable")]
        return result
    key = rng.permutation(unit.max(initial=0) + 1)[unit]
    order = np.lexsort((draw, key, batch))
    begins = np.flatnonzero(np.r_[True, (np.diff(batch[order]) != 0) | (np.diff(key[order]) != 0)][:n])
    length = np.diff(np.r_[begins, n])
    of_batch = batch[order][begins]
    # the next group of the batch, after the last its first
    following = np.arange(len(begins)) + 1
    last = np.r_[of_batch[1:] != of_batch[:-1], True][: len(begins)]
    following[last] = np.searchsorted(of_batch, of_batch[last])
    run = np.repeat(np.arange(len(begins)), length)
    within = np.arange(n) - begins[run]
    result = np.empty(n, dtype=int)
    result[order] = order[begins[following[run]] + within % length[following[run]]]
    return result
