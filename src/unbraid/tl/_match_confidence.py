"""How sure a hit is, learned from queries whose match is known."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEPTH = 10  # hits of a query that are weighed against each other
MIN_GROUPS = 30  # fewer say too little about how often hits are right


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What a search found for queries whose match is known and among the candidates.

    Attributes
    ----------
    scores
        ``(n, depth)`` of the best hits, NaN where there is none.
    is_match
        ``(n, depth)``.
    best_other
        ``(n,)`` score of the best candidate that is not the match, infinite where there is none.
    groups
        ``(n,)`` code of the match.
    n_candidates
        Number of candidates.
    """

    scores: NDArray[np.float64]
    is_match: NDArray[np.bool_]
    best_other: NDArray[np.float64]
    groups: NDArray[np.int64]
    n_candidates: int

    @classmethod
    def of(cls, codes: NDArray, scores: NDArray, groups: NDArray, n_candidates: int) -> Outcomes:
        """From ``(n, k)`` codes of hits, -1 where there is none, and their scores, and ``(n,)`` codes of the matches."""
        is_match = codes == groups[:, None]
        is_other = ~is_match & (codes >= 0)
        best = np.take_along_axis(scores, is_other.argmax(axis=1)[:, None], axis=1)[:, 0]
        depth = min(DEPTH, n_candidates)
        return cls(
            scores=scores[:, :depth].astype(np.float64),
            is_match=is_match[:, :depth],
            best_other=np.where(is_other.any(axis=1), best, np.inf).astype(np.float64),
            groups=groups,
            n_candidates=n_candidates,
        )

    def take(self, chosen: NDArray) -> Outcomes:
        """Those of some queries."""
        parts = {name: getattr(self, name)[chosen] for name in ("scores", "is_match", "best_other", "groups")}
        return replace(self, **parts)


@dataclass(frozen=True, kw_only=True)
class MatchConfidence:
    r"""What scores of hits mean: p-values, and probabilities of being the match.

    Attributes
    ----------
    null
        ``(n,)`` score of the best candidate that is not the match, of each query of the calibration, rising.
    weights
        ``(n,)`` weight of each query: those of one group together have weight 1.
    n_groups
        Number of groups.
    n_candidates
        Number of candidates.
    coefficients
        ``(3,)`` :math:`(a, b, c)` of the notes; None with fewer than 30 groups.

    Notes
    -----
    **p-value.** Of :math:`n_g` queries of each of :math:`G` groups, with :math:`t_{gi}` the score of the best of
    :math:`N` candidates other than the match,

    .. math:: p(s) = \frac{N}{N - 1} \cdot
        \frac{1 + \sum_g \frac{1}{n_g} \#\{i : t_{gi} \ge s\}}{1 + G} \quad \text{(at most 1)},

    the chance that the best candidate reaches the score for a query that has no match among them. For such queries it
    is at least uniform, :math:`P(p \le \alpha) \le \alpha`, if their groups and those of the calibration are
    exchangeable [1]_. The first factor is for :math:`t` being the best of one candidate fewer.

    **Confidence.** Given that the match is among the candidates, it is hit :math:`r` of the :math:`K = 10` best with

    .. math:: P(r) = \frac{e^{a s_r}}{\sum_{j \le K} e^{a s_j} + e^{(a + c) s_K + b}}.

    The last term is all that lies below these hits. This conditional logit is right for likelihood ratios
    (:math:`a = 1`) and for cosines with von Mises-Fisher noise (:math:`a` its concentration). Its coefficients have
    the highest likelihood, groups counting alike; one group more, whose match is anywhere, keeps them finite. A hit is
    less sure where others come close to it, which a curve of its score alone cannot say.

    References
    ----------
    .. [1] Lee, Barber and Willett. Distribution-free inference with hierarchical data. arXiv:2306.06342.
    """

    null: NDArray[np.float64]
    weights: NDArray[np.float64]
    n_groups: int
    n_candidates: int
    coefficients: NDArray[np.float64] | None

    @classmethod
    def fit(cls, outcomes: Outcomes) -> MatchConfidence:
        """Learn from queries whose match is known.

        Parameters
        ----------
        outcomes
            What a search found for them.
        """
        weights, n_groups = _weights(outcomes.groups)
        order = np.argsort(outcomes.best_other)
        return cls(
            null=outcomes.best_other[order],
            weights=weights[order],
            n_groups=n_groups,
            n_candidates=outcomes.n_candidates,
            coefficients=_fit(outcomes.take(~np.isnan(outcomes.scores).any(axis=1))),
        )

    def p_values(self, scores: NDArray) -> NDArray[np.float64]:
        """Of scores of any shape; NaN where they are, and without queries to learn from.

        Parameters
        ----------
        scores
            Of hits.
        """
        if self.n_groups == 0:
            return np.full(scores.shape, np.nan)
        reached = np.append(np.cumsum(self.weights[::-1])[::-1], 0.0)[np.searchsorted(self.null, scores)]
        smaller = (self.n_candidates - 1) / self.n_candidates
        with np.errstate(divide="ignore"):
            p = np.minimum((1 + reached) / (1 + self.n_groups) / smaller, 1.0)
        return np.where(np.isnan(scores), np.nan, p)

    def confidences(self, scores: NDArray) -> NDArray[np.float64]:
        """Of hits; NaN beyond the tenth, where an index finds fewer than there are, and with fewer than 30 groups.

        Parameters
        ----------
        scores
            ``(n, k)`` falling, at least ten of each query if there are so many candidates.
        """
        result = np.full(scores.shape, np.nan)
        depth = min(DEPTH, self.n_candidates)
        known = np.flatnonzero(~np.isnan(scores[:, :depth]).any(axis=1))
        if self.coefficients is not None:
            x = _features(scores[known, :depth].astype(np.float64), self.n_candidates)
            result[known, :depth] = softmax(x @ self.coefficients, axis=1)[:, :depth]
        return result


def warn_if_few(confidence: MatchConfidence, *, stacklevel: int) -> None:
    """Say why there are no confidences, if there are none."""
    if confidence.coefficients is None:
        warnings.warn(
            f"Calibration has queries of {confidence.n_groups} groups with a known match, fewer than the {MIN_GROUPS} that "
            "it takes to say how sure hits are: confidences are NaN.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def _weights(groups: NDArray) -> tuple[NDArray, int]:
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    return 1 / size[group], len(size)


def _features(scores: NDArray, n_candidates: int) -> NDArray:
    """(n, hits and what is below, 3) what the coefficients multiply."""
    n, depth = scores.shape
    x = np.zeros((n, depth + (depth < n_candidates), 3))
    x[:, :depth, 0] = scores - scores[:, -1:]
    x[:, depth:, 1] = 1
    x[:, depth:, 2] = scores[:, -1:]
    return x


def _fit(outcomes: Outcomes) -> NDArray | None:
    weights, n_groups = _weights(outcomes.groups)
    if n_groups < MIN_GROUPS:
        return None
    # centred and scaled, which helps the search only
    last = outcomes.scores[:, -1]
    centre, scale = last.mean(), (outcomes.scores[:, 0] - last).mean() or 1.0
    x = _features((outcomes.scores - centre) / scale, outcomes.n_candidates)
    is_true = np.concatenate([outcomes.is_match, ~outcomes.is_match.any(axis=1, keepdims=True)], axis=1)
    n_options = x.shape[1]
    target = weights[:, None] * (is_true[:, :n_options] + 1 / (n_groups * n_options))

    def loss(coefficients: NDArray) -> tuple[float, NDArray]:
        log_p = log_softmax(x @ coefficients, axis=1)
        excess = target.sum(axis=1, keepdims=True) * np.exp(log_p) - target
        return -(target * log_p).sum() / n_groups, np.einsum("ij,ijk->k", excess, x) / n_groups

    bounds = [(0, None), (None, None), (None, None)]  # a better hit is never less likely
    slope, offset, of_last = minimize(loss, [1.0, 0.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.array([slope / scale, offset - of_last * centre / scale, of_last / scale])
