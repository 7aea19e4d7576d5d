"""What the shared and the specific part of a counterfactual carry over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unbraid.metrics._frechet_design import (
    check_options,
    few_threads,
    gaussian_distance,
    moments_of,
    read_samples,
)
from unbraid.metrics._resampling import percentiles
from unbraid.metrics._result import Result

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from unbraid.metrics._frechet_design import Shrinkage


@dataclass(frozen=True, kw_only=True)
class DiffFDResult(Result):
    """What :func:`diff_fd` found.

    Attributes
    ----------
    diff_fd_c
        How much closer the counterfactual is to the test sample than the reference is: what the shared part carries.
    diff_fd_c_interval
        Its bootstrap interval.
    diff_fd_s
        How much closer the counterfactual is to the reference than the test sample is: what the specific part carries.
    diff_fd_s_interval
        Its bootstrap interval.
    chance
        Both differences if the part carries nothing: 0.
    fd_reference_test
        Fréchet distance of reference and test, also the most that either difference can be expected to reach.
    fd_counterfactual_test
        Fréchet distance of counterfactual and test.
    fd_counterfactual_reference
        Fréchet distance of counterfactual and reference.
    n_reference, n_test, n_counterfactual
        Number of rows of each sample.
    n_dropped
        Number of rows left out: missing, or to make the samples equally large.
    n_features
        Number of features.
    confidence
        Level of the intervals.
    """

    _measure = "diff_fd"
    diff_fd_c: float
    diff_fd_c_interval: tuple[float, float]
    diff_fd_s: float
    diff_fd_s_interval: tuple[float, float]
    chance: float
    fd_reference_test: float
    fd_counterfactual_test: float
    fd_counterfactual_reference: float
    n_reference: int
    n_test: int
    n_counterfactual: int
    n_dropped: int
    n_features: int
    confidence: float

    def __str__(self) -> str:
        (c_low, c_high), (s_low, s_high) = self.diff_fd_c_interval, self.diff_fd_s_interval
        return (
            f"Diff-FD-c {self.diff_fd_c:z.3g} [{c_low:z.3g}, {c_high:z.3g}], Diff-FD-s {self.diff_fd_s:z.3g} "
            f"[{s_low:z.3g}, {s_high:z.3g}], chance 0, reference to test {self.fd_reference_test:.3g} "
            f"(n = {self.n_reference:,}, {self.n_test:,} and {self.n_counterfactual:,}; {self.n_features} features)"
        )

    __repr__ = __str__


def diff_fd(
    reference: ArrayLike,
    test: ArrayLike,
    counterfactual: ArrayLike,
    *,
    feature_extractor: Callable[[ArrayLike], ArrayLike] | None = None,
    shrinkage: Shrinkage = None,
    equal_n: bool = True,
    reference_groups: ArrayLike | None = None,
    test_groups: ArrayLike | None = None,
    counterfactual_groups: ArrayLike | None = None,
    n_bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> DiffFDResult:
    r"""What the shared and the specific part of a counterfactual carry over.

    A decoder makes samples of one modality from a shared and a specific latent: the `reference` with both from one set
    of observations, the `test` sample with both from another, and the `counterfactual` with the shared latent of the
    test set and the specific latent of the reference set.

    Parameters
    ----------
    reference
        Decoded from shared and specific latents of the reference (validation) set, `(n, n_features)`.
    test
        Decoded from shared and specific latents of the test set.
    counterfactual
        Decoded from shared latents of the test set and specific latents of the reference set.
    feature_extractor, shrinkage
        As in :func:`frechet_distance`.
    equal_n
        Use random subsets of the larger samples, as large as the smallest: the biases of distances then cancel.
    reference_groups, test_groups, counterfactual_groups
        What is drawn in the bootstrap (molecules): labels of the rows.
    n_bootstrap, confidence, seed
        As in :func:`frechet_distance`.

    Returns
    -------
    Both differences with intervals, and the three distances.

    Raises
    ------
    ValueError
        As in :func:`frechet_distance`.

    Notes
    -----
    Following DisentangledSSL [1]_,

    .. math::

        \text{Diff-FD-}c = \text{FD}(\text{reference}, \text{test}) - \text{FD}(\text{counterfactual}, \text{test}),
        \qquad
        \text{Diff-FD-}s = \text{FD}(\text{reference}, \text{test}) - \text{FD}(\text{counterfactual}, \text{reference}).

    If the shared latent carried nothing, the counterfactual would be distributed as the reference, and Diff-FD-c would
    be 0; with a specific latent that carries nothing, it would be distributed as the test sample, and Diff-FD-s would
    be 0. Of both, higher is better, up to about FD(reference, test), which is reported beside them.

    The intervals are basic bootstrap intervals, as in :func:`frechet_distance`; the samples are drawn independently.

    References
    ----------
    .. [1] Wang et al. (2024), An information criterion for controlled disentanglement of multimodal data.
       arXiv:2410.23996, appendix H.3.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> rng = np.random.default_rng(0)
    >>> shared = np.array([1.0, 0.0])  # the test set differs in what is shared ...
    >>> reference, test, counterfactual = (rng.normal(size=(1000, 2)) for _ in range(3))
    >>> result = ub.metrics.diff_fd(reference, test + shared, counterfactual + shared)
    >>> result.diff_fd_c > 0.7, abs(result.diff_fd_s) < 0.3  # ... and the shared part carries it over
    (True, True)
    """
    check_options(shrinkage, n_bootstrap, confidence)
    subset_rng, bootstrap_rng = np.random.default_rng(seed).spawn(2)
    given = {
        "reference": (reference, reference_groups),
        "test": (test, test_groups),
        "counterfactual": (counterfactual, counterfactual_groups),
    }
    samples, n_dropped = read_samples(given, feature_extractor, equal_n, subset_rng)

    def distances(rows: list[NDArray]) -> tuple[float, float, float]:
        reference, test, counterfactual = (moments_of(each, shrinkage) for each in rows)
        return (
            gaussian_distance(*reference, *test),
            gaussian_distance(*counterfactual, *test),
            gaussian_distance(*counterfactual, *reference),
        )

    with few_threads(samples):
        to_test, cf_to_test, cf_to_reference = distances([each.x for each in samples])
        drawn = [distances([each.resampled(bootstrap_rng) for each in samples]) for _ in range(n_bootstrap)]
    drawn = np.array(drawn).reshape(-1, 3)
    diff_c, diff_s = to_test - cf_to_test, to_test - cf_to_reference
    (c_low, c_high), (s_low, s_high) = (percentiles(drawn[:, 0] - drawn[:, j], confidence) for j in (1, 2))
    return DiffFDResult(
        diff_fd_c=diff_c,
        diff_fd_c_interval=(2 * diff_c - c_high, 2 * diff_c - c_low),
        diff_fd_s=diff_s,
        diff_fd_s_interval=(2 * diff_s - s_high, 2 * diff_s - s_low),
        chance=0.0,
        fd_reference_test=to_test,
        fd_counterfactual_test=cf_to_test,
        fd_counterfactual_reference=cf_to_reference,
        n_reference=len(samples[0]),
        n_test=len(samples[1]),
        n_counterfactual=len(samples[2]),
        n_dropped=n_dropped,
        n_features=samples[0].x.shape[1],
        confidence=confidence,
    )
