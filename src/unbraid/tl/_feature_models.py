"""Generalised linear models of all features at once, and a permutation test of what a code adds to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import betainc, expit, logit, xlog1py, xlogy

from unbraid.metrics._resampling import permutations_within

if TYPE_CHECKING:
    from numpy.typing import NDArray

Likelihood = Literal["normal", "poisson", "bernoulli"]

MAX_STEPS, TOLERANCE = 25, 0.01  # of conjugate gradients; nats that a Newton step would still gain
MAX_LOG_STEP = 4.0  # largest change of a cell's linear predictor in one step
WEAKEST_PENALTY, STRONGEST_PENALTY = 1e-4, 1e6  # relative to the information about a coefficient
RANK_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Blocks:
    """Columns whose weighted Gram matrix over the training cells is n times the identity, in blocks."""

    z: NDArray  # (n, p), all cells
    block: NDArray  # (p,) 0: nuisance, never penalised; 1, 2: codes

    def __getitem__(self, kept: list[int]) -> Blocks:
        columns = np.isin(self.block, kept)
        return Blocks(self.z[:, columns], self.block[columns])


def whitened_blocks(nuisance: NDArray, codes: list[NDArray], weights: NDArray, train: NDArray) -> Blocks:
    """Every code without what the nuisance and the codes before it predict of it linearly.

    Parameters
    ----------
    nuisance
        `(n, q)`, with a constant.
    codes
        Codes, `(n, d)` each.
    weights
        `(n,)`: a cell's share of the information.
    train
        `(n,)` whether a cell is for training: the maps come from these cells, and are applied to all.
    """
    blocks: list[NDArray] = []
    for x in (nuisance, *codes):
        root = np.sqrt(weights[train])[:, None]
        scale = np.sqrt((root**2 * x[train] ** 2).mean(0))
        x = x[:, scale > 0] / scale[scale > 0]
        if blocks:
            before = np.concatenate(blocks, axis=1)  # orthonormal already: projection is a product
            x = x - before @ ((root**2 * before[train]).T @ x[train] / train.sum())
        gram = (root * x[train]).T @ (root * x[train]) / train.sum()
        value, vector = np.linalg.eigh(gram)
        kept = value > RANK_TOLERANCE
        blocks.append(x @ (vector[:, kept] / np.sqrt(value[kept])))
    return Blocks(np.concatenate(blocks, axis=1), np.repeat(np.arange(len(blocks)), [b.shape[1] for b in blocks]))


# --------------------------------------------------------------------------------------------------
# Fits


def mean_of(likelihood: Likelihood, eta: NDArray) -> NDArray:
    if likelihood == "poisson":
        return np.exp(np.minimum(eta, 50.0))
    return expit(eta) if likelihood == "bernoulli" else eta


def variance_of(likelihood: Likelihood, mean: NDArray) -> NDArray:
    if likelihood == "poisson":
        return mean
    return mean * (1 - mean) if likelihood == "bernoulli" else np.ones_like(mean)


def deviance_of(likelihood: Likelihood, x: NDArray, mean: NDArray) -> NDArray:
    """Twice the log-likelihood that is missing to a perfect fit, of every value."""
    if likelihood == "poisson":
        mean = np.maximum(mean, 1e-12)
        return 2 * (xlogy(x, x / mean) - x + mean)
    if likelihood == "bernoulli":
        mean = np.clip(mean, 1e-12, 1 - 1e-12)
        return -2 * (xlogy(x, mean) + xlog1py(1 - x, -mean))
    return (x - mean) ** 2


def fit(x: NDArray, offset: NDArray, z: NDArray, penalty: NDArray, start: NDArray, likelihood: Likelihood) -> NDArray:
    r"""Minimise :math:`\sum_i A(\eta_{ij}) - x_{ij} \eta_{ij} + \tfrac12 \sum_k \lambda_{kj} b_{kj}^2` for all features.

    Canonical link, :math:`\eta = \text{offset} + Z b`. As the columns are whitened, the Hessian is close to a multiple
    of the identity, and a few steps of conjugate gradients suffice.

    Parameters
    ----------
    x
        `(n, g)` values of the training cells.
    offset
        `(n,)`.
    z
        `(n, p)` whitened columns.
    penalty
        `(p, g)`.
    start
        `(p, g)` first guess.
    likelihood
        Family.

    Returns
    -------
    `(p, g)` coefficients.
    """
    result = start.astype(float)
    active = np.arange(x.shape[1])
    x, z = x.astype(np.float32), z.astype(np.float32)  # sums over cells need no more, and it halves the time
    b, penalty = start.astype(np.float32), penalty.astype(np.float32)
    eta = offset.astype(np.float32)[:, None] + z @ b
    mean = mean_of(likelihood, eta)
    information = np.maximum(variance_of(likelihood, x.mean(0)), 1e-8)
    preconditioner = 1 / (len(x) * information + penalty)
    gradient = z.T @ (mean - x) + penalty * b
    direction = -preconditioner * gradient
    for _ in range(MAX_STEPS):
        energy = (gradient * preconditioner * gradient).sum(0)
        going = energy > 2 * TOLERANCE
        if 2 * going.sum() <= len(active):  # the rest is done
            result[:, active] = b
            if not going.any():
                break
            active, x, eta, mean = active[going], x[:, going], eta[:, going], mean[:, going]
            b, penalty, preconditioner = b[:, going], penalty[:, going], preconditioner[:, going]
            gradient, direction, energy = gradient[:, going], direction[:, going], energy[going]
        slope = (gradient * direction).sum(0)
        uphill = slope >= 0
        if uphill.any():
            direction[:, uphill] = -(preconditioner * gradient)[:, uphill]
            slope[uphill] = -energy[uphill]
        change = z @ direction
        curvature = np.einsum("ij,ij,ij->j", variance_of(likelihood, mean), change, change)
        curvature += (penalty * direction**2).sum(0)
        step = -slope / np.maximum(curvature, 1e-30)
        if likelihood != "normal":
            step = np.minimum(step, MAX_LOG_STEP / np.maximum(np.maximum(change.max(0), -change.min(0)), 1e-30))
        for _ in range(6):  # convex along the line: after an overshoot the secant lies in between
            b_there, eta_there = b + step * direction, eta + step * change
            mean = mean_of(likelihood, eta_there)
            moved = z.T @ (mean - x) + penalty * b_there
            slope_there = (moved * direction).sum(0)
            overshot = slope_there > 0.5 * np.abs(slope)
            if not overshot.any():
                break
            secant = np.where(overshot, slope / np.where(overshot, slope - slope_there, 1), 1)
            step = step * secant.astype(np.float32)
        b, eta = b_there, eta_there
        ratio = (moved * preconditioner * (moved - gradient)).sum(0) / np.maximum(energy, 1e-30)  # Polak-Ribiere
        direction = np.maximum(ratio, 0.0) * direction - preconditioner * moved
        gradient = moved
    else:
        result[:, active] = b
    return result


def dispersion_of(x: NDArray, mean: NDArray, likelihood: Likelihood) -> NDArray:
    """`(g,)` Pearson's ratio of variances, at least 1 where the family has a variance of its own."""
    pearson = ((x - mean) ** 2 / np.maximum(variance_of(likelihood, mean), 1e-8)).mean(0)
    return np.maximum(pearson, 1e-8 if likelihood == "normal" else 1.0)


def shrunk_fit(x: NDArray, offset: NDArray, blocks: Blocks, likelihood: Likelihood) -> NDArray:
    r"""`(p, g)` coefficients, each code shrunk by what its score at zero says about the size of its effects.

    With whitened columns a score :math:`u_k` has variance :math:`\phi I` and mean :math:`I b_k` for information
    :math:`I`, so the effects' variance is estimated as :math:`\tau^2 = (\overline{u^2} / I - \phi)_+ / I`, and the
    ridge penalty is :math:`\phi / \tau^2`: a feature with no more than chance gets no effect.
    """
    is_code = blocks.block > 0
    z = blocks.z
    n_nuisance = int((~is_code).sum())
    loose = np.full((n_nuisance, x.shape[1]), 1e-6)
    constant = np.linalg.lstsq(z[:, ~is_code], np.ones(len(z)), rcond=None)[0]
    start = constant[:, None] * _level(x, offset, likelihood)
    b_null = fit(x, offset, z[:, ~is_code], loose, start, likelihood)
    if not is_code.any():
        return b_null
    mean = mean_of(likelihood, offset[:, None] + z[:, ~is_code] @ b_null)
    information = np.maximum(variance_of(likelihood, mean).sum(0), 1e-8)
    dispersion = dispersion_of(x, mean, likelihood)
    score = z.T @ (x - mean)
    penalty = np.full(score.shape, 1e-6)
    for code in np.unique(blocks.block[is_code]):
        rows = blocks.block == code
        excess = np.maximum((score[rows] ** 2).mean(0) / information - dispersion, 0.0)
        relative = dispersion / np.maximum(excess, dispersion / STRONGEST_PENALTY)
        penalty[rows] = information * np.maximum(relative, WEAKEST_PENALTY)
    start = np.zeros(score.shape)
    start[~is_code] = b_null
    return fit(x, offset, z, penalty, start, likelihood)


def _level(x: NDArray, offset: NDArray, likelihood: Likelihood) -> NDArray:
    """`(g,)` linear predictor of the mean."""
    mean = x.mean(0)
    if likelihood == "poisson":
        return np.log(np.maximum(mean, 1e-8) / np.exp(offset).mean())
    return logit(np.clip(mean, 1e-8, 1 - 1e-8)) if likelihood == "bernoulli" else mean


# --------------------------------------------------------------------------------------------------
# Held-out deviance


def held_out_deviances(
    x: NDArray, offset: NDArray, models_of_fold: list[list[Blocks]], fold: NDArray, likelihood: Likelihood
) -> NDArray:
    """`(models, n, g)`: deviance of every value by models that have not seen it."""
    deviance = np.empty((len(models_of_fold[0]), *x.shape), dtype=np.float32)
    for k, models in enumerate(models_of_fold):
        train, test = fold != k, fold == k
        for model, chosen in enumerate(models):
            b = shrunk_fit(x[train], offset[train], Blocks(chosen.z[train], chosen.block), likelihood)
            mean = mean_of(likelihood, offset[test, None] + chosen.z[test] @ b)
            deviance[model, test] = deviance_of(likelihood, x[test], mean)
    return deviance


def explained(deviance: NDArray, groups: NDArray | None) -> tuple[NDArray, NDArray]:
    """Share of the first model's deviance that each of the others explains, and its standard error; `(models, g)` both.

    The standard error is that of a ratio of sums over independent units: groups, or cells.
    """
    null, models = deviance[0].astype(float), deviance[1:].astype(float)
    total = np.maximum(null.sum(0), 1e-300)
    share = 1 - models.sum(1) / total
    influence = (null - models) - share[:, None] * null
    if groups is not None:
        influence = np.stack([_sum_by(groups, values) for values in influence])
    n = influence.shape[1]
    return share, np.sqrt((influence**2).sum(1) * n / max(n - 1, 1)) / total


def _sum_by(groups: NDArray, values: NDArray) -> NDArray:
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(groups[order]) > 0])
    return np.add.reduceat(values[order], starts, axis=0)


# --------------------------------------------------------------------------------------------------
# Test


@dataclass(frozen=True)
class Directions:
    """What a test needs of the codes, the same for every feature."""

    given: NDArray  # (n, q) orthonormal: what is conditioned on
    tested: NDArray  # (n, d) orthonormal, orthogonal to the former
    permuted: list[NDArray]  # row orders

    @classmethod
    def of(
        cls,
        blocks: Blocks,
        given: list[int],
        weights: NDArray,
        strata: NDArray,
        n_permutations: int,
        rng: np.random.Generator,
    ) -> Directions:
        """Of the blocks, those not `given`; the strata are given as well, and rows permuted within them."""
        root = np.sqrt(weights)[:, None]
        indicator = (strata[:, None] == np.unique(strata)).astype(float)
        is_given = np.isin(blocks.block, given)
        known = _basis(root * np.concatenate([indicator, blocks.z[:, is_given]], axis=1))
        code = root * blocks.z[:, ~is_given]
        code = _basis(code - known @ (known.T @ code))
        orders = permutations_within(strata, len(strata), rng)
        return cls(known, code, [next(orders) for _ in range(n_permutations)])


def _basis(x: NDArray) -> NDArray:
    """Orthonormal columns with the same span."""
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    return u[:, s > 1e-6 * max(s.max(initial=0.0), 1e-300)]


def tail_probabilities(
    x: NDArray, mean: NDArray, weights: NDArray, directions: Directions, likelihood: Likelihood
) -> tuple[NDArray, NDArray]:
    r"""Score statistics of the tested code, as tail probabilities of fitted beta distributions.

    Residuals :math:`e` are divided by their standard deviation; for counts
    :math:`\mu (1 + \alpha \mu / \ell)` with :math:`\alpha` from the second moment. (Without the size factor
    :math:`\ell` it would be that of the negative binomial. So the statistic is linear in :math:`\ell`, whose error then
    averages out, also where a code follows depth.) The statistic is the share :math:`R^2` of their sum of squares that the
    tested code explains. Over permutations of the rows its mean and variance are known exactly, and a beta
    distribution with these is a close guess of its distribution.

    Returns
    -------
    `(g,)` of the true rows and `(n_permutations, g)` of permuted ones.
    """
    residual = x - mean
    variance = variance_of(likelihood, mean)
    if likelihood == "poisson":
        excess = np.maximum((residual**2 - mean).sum(0) / np.maximum((mean**2).sum(0), 1e-300), 0.0)
        variance = mean * (1 + excess * mean / weights[:, None])
    residual /= np.sqrt(np.maximum(variance, 1e-8))
    residual -= directions.given @ (directions.given.T @ residual)
    residual /= np.maximum(np.sqrt((residual**2).sum(0)), 1e-150)
    fourth = (residual**4).sum(0)
    n, d = directions.tested.shape
    if d == 0:
        return np.ones(x.shape[1]), np.ones((len(directions.permuted), x.shape[1]))
    spread = float((directions.tested**2).sum(1) @ (directions.tested**2).sum(1))

    def tail(rows: NDArray | slice, degrees: int) -> NDArray:
        r2 = ((directions.tested[rows].T @ residual) ** 2).sum(0)
        a, b = beta_parameters(degrees, d, spread, fourth)
        return betainc(b, a, 1 - np.clip(r2, 0.0, 1.0))  # = P(beta > r2)

    null = np.array([tail(order, n - 1) for order in directions.permuted]).reshape(-1, x.shape[1])
    return tail(slice(None), n - directions.given.shape[1]), null


def beta_parameters(degrees: int, d: int, spread: float, fourth: NDArray) -> tuple[NDArray, NDArray]:
    r"""Parameters of the beta distribution that has mean and variance of :math:`R^2` over all permutations.

    Parameters
    ----------
    degrees
        Degrees of freedom of the residuals, n - 1 where only their mean is taken out.
    d
        Dimensions of the tested code, with hat matrix :math:`H`, :math:`H 1 = 0`.
    spread
        :math:`\sum_i h_{ii}^2`.
    fourth
        :math:`\sum_i e_i^4` for :math:`\sum_i e_i = 0, \sum_i e_i^2 = 1`.
    """
    n = degrees + 1
    mean = d / degrees
    # E[R^4] = sum h_ij h_kl E[e_i e_j e_k e_l], by which of the four indices are equal
    square = spread * fourth / n
    square += (d**2 + 2 * d - 3 * spread) * (1 - fourth) / (n * (n - 1))
    square += 4 * spread * fourth / (n * (n - 1))
    square += (12 * spread - 2 * d**2 - 4 * d) * (2 * fourth - 1) / (n * (n - 1) * (n - 2))
    square += (d**2 + 2 * d - 6 * spread) * (3 - 6 * fourth) / (n * (n - 1) * (n - 2) * (n - 3))
    variance = np.maximum(square - mean**2, 1e-3 * mean**2 / d)
    total = np.maximum(mean * (1 - mean) / variance - 1, 1e-3)
    return mean * total, (1 - mean) * total


# --------------------------------------------------------------------------------------------------
# Composition


def effects_of(x: NDArray, offset: NDArray, blocks: Blocks) -> tuple[NDArray, NDArray]:
    """`(p, g)` coefficients of counts, and `(g,)` the precision of each, in blocks' whitened columns."""
    b = shrunk_fit(x, offset, blocks, "poisson")
    dispersion = dispersion_of(x, mean_of("poisson", offset[:, None] + blocks.z @ b), "poisson")
    return b, x.sum(0) / dispersion


def common_effects(coefficients: NDArray, information: NDArray, block: NDArray) -> NDArray:
    r"""`(p,)` effects that most features have in common, whatever the others do.

    Counts relative to their total are a composition: where some features rise, all others fall. The common effect
    :math:`\gamma` is the location of a Student t distribution with one degree of freedom, fitted to the coefficients
    :math:`b_j` of all features with their precisions :math:`I_j` and for each code by itself,

    .. math::

        \gamma = \frac{\sum_j w_j I_j b_j}{\sum_j w_j I_j}, \qquad
        w_j = \frac{1 + d}{1 + I_j \lVert b_j - \gamma \rVert^2} .

    Parameters
    ----------
    coefficients
        `(p, g)`.
    information
        `(g,)` precision of each of a feature's coefficients.
    block
        `(p,)` which code a coefficient belongs to; 0: none, left at zero.
    """
    common = np.zeros(len(coefficients))
    for code in np.unique(block[block > 0]):
        b = coefficients[block == code]
        centre = np.median(b[:, information >= np.median(information)], axis=1)
        for _ in range(100):
            distance = information * ((b - centre[:, None]) ** 2).sum(0)
            weight = information * (1 + len(b)) / (1 + distance)
            moved = (b * weight).sum(1) / weight.sum()
            done = np.abs(moved - centre).max() < 1e-6
            centre = moved
            if done:
                break
        common[block == code] = centre
    return common
