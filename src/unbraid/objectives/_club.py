from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import cross_entropy

from unbraid._messages import check_option
from unbraid.objectives._unit import check_groups, check_pairs, check_widths, no_negatives

if TYPE_CHECKING:
    from torch import Tensor


def club(
    z: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    *,
    negatives: Literal["all", "others", "permuted"] = "all",
    permutation: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    r"""Contrastive log-ratio upper bound (CLUB) of the mutual information of a latent and a condition.

    A learned Gaussian :math:`q(z \mid c_i) = \mathcal N(\mu_i, \operatorname{diag} \sigma_i^2)` tells a sample's own
    latent from the latents of others:

    .. math::

        \frac{1}{n} \sum_i \Big[ \log q(z_i \mid c_i) - \operatorname{mean}_j \log q(z_j \mid c_i) \Big]
        = \frac{1}{n} \sum_i \sum_k \frac{\operatorname{mean}_j (z_{jk} - \mu_{ik})^2 - (z_{ik} - \mu_{ik})^2}
          {2 \sigma_{ik}^2}

    in nats. It bounds the mutual information from above when :math:`q` is :math:`p(z \mid c)` ([1]_, theorem 3.1), so
    :math:`q` is fitted with :func:`gaussian_nll` between the steps that minimise this. With a poor :math:`q` it can
    be negative.

    Parameters
    ----------
    z
        ``(n, d)``, floating point: the latent that is to forget the condition.
    mean, log_variance
        ``(n, d)`` each: :math:`\mu_i` and :math:`\log \sigma_i^2`, predicted from the condition of row ``i``.
    negatives
        Over which :math:`j` the second term runs. ``"all"`` rows, the row itself included ([1]_, released code);
        the ``"others"`` alone, the unbiased version, :math:`n / (n - 1)` times as large; or ``"permuted"``, one row
        for each, :math:`j = \pi(i)` ([1]_, "vCLUB-S").
    permutation
        ``(n,)`` integers, :math:`\pi` of ``"permuted"``.
    groups
        ``(n,)`` integers. Negatives then come from the row's own group only, such as its experimental batch, so that
        what ``z`` and the condition share through the group costs nothing. The value is the mean of the groups'
        values, weighted by their sizes; a row alone in its group contributes 0. Not for ``"permuted"``.

    Returns
    -------
    Scalar; 0, connected to the graph, when ``n < 2``. Memory grows with :math:`n d`, not with :math:`n^2`.

    Raises
    ------
    ValueError
        When ``z``, ``mean`` and ``log_variance`` are not three ``(n, d)`` matrices, when ``negatives`` is unknown,
        when ``permutation`` or ``groups`` has not one entry per row, when ``"permuted"`` lacks its permutation, or
        when an option is given to a choice of negatives that has no use for it.

    Notes
    -----
    Not scale-free: with :math:`\sigma^2` bounded from below, as by the released code's
    :math:`\log \sigma^2 = \tanh(\cdot)`, shrinking ``z`` by :math:`s` shrinks the value by about :math:`s^2` and no
    information is lost. Give ``z`` a fixed variance; :func:`explained_variance` is a scale-free relative.

    References
    ----------
    .. [1] Cheng et al. CLUB: a contrastive log-ratio upper bound of mutual information. ICML 2020.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import club
    >>> z = torch.tensor([[1.0], [-1.0]])
    >>> club(z, z, torch.zeros(2, 1)).item()  # the condition tells z
    1.0
    >>> club(z, torch.zeros(2, 1), torch.zeros(2, 1)).item()  # it tells nothing
    0.0
    """
    n = _check_gaussian(z, mean, log_variance)
    check_option("negatives", negatives, ("all", "others", "permuted"))
    if (permutation is None) == (negatives == "permuted"):
        raise ValueError("negatives='permuted', and it alone, needs a permutation of the rows.")
    if permutation is not None and groups is not None:
        raise ValueError("negatives='permuted' takes no groups: give a permutation that stays within them.")
    if permutation is not None and permutation.shape != (n,):
        raise ValueError(f"permutation must have one entry per row, shape ({n},), got {tuple(permutation.shape)}.")
    check_groups(groups, n)

    precision = (-log_variance).exp()
    if permutation is not None:
        other = z[permutation]
        log_ratio = (precision * (other - z) * (other + z - 2 * mean)).sum(dim=1) / 2  # a^2 - b^2 = (a - b)(a + b)
        return log_ratio.sum() / max(n, 1)

    # centred by the group's mean, mean_j (z_j - mu)^2 - (z_i - mu)^2 = mean_j z_j^2 - z_i^2 + 2 mu z_i
    center, size = _group_mean(z, groups)
    z, mean = z - center, mean - center
    second_moment, _ = _group_mean(z.square(), groups)
    log_ratio = (precision * (second_moment - z.square() + 2 * mean * z)).sum(dim=1) / 2
    if negatives == "others":
        log_ratio = log_ratio * size / (size - 1).clamp_min(1)
    return log_ratio.sum() / max(n, 1)


def gaussian_nll(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Negative log-likelihood of rows under their predicted diagonal Gaussians, without its constant.

    .. math::

        \frac{1}{n} \sum_i \sum_k \frac12 \left[ \frac{(z_{ik} - \mu_{ik})^2}{\sigma_{ik}^2}
            + \log \sigma_{ik}^2 \right]

    in nats, less :math:`\tfrac d2 \log 2 \pi`. What the :math:`q` of :func:`club` minimises ([1]_, algorithm 1), with
    ``z`` and the condition held fixed.

    Parameters
    ----------
    z
        ``(n, d)``, floating point.
    mean, log_variance
        ``(n, d)`` each: :math:`\mu_i` and :math:`\log \sigma_i^2`.

    Returns
    -------
    Scalar; 0, connected to the graph, when ``n = 0``.

    Raises
    ------
    ValueError
        When the arguments are not three ``(n, d)`` matrices.

    References
    ----------
    .. [1] Cheng et al. CLUB: a contrastive log-ratio upper bound of mutual information. ICML 2020.
    """
    n = _check_gaussian(z, mean, log_variance)
    return ((z - mean).square() * (-log_variance).exp() + log_variance).sum() / (2 * max(n, 1))


def nce_club(scores: Tensor, *, groups: Tensor | None = None) -> Tensor:
    r"""Upper-bound-style dependence penalty from the scores of a contrastive critic.

    .. math::

        \frac{1}{n} \sum_i f(a_i, b_i) - \frac{1}{n^2} \sum_{i, j} f(a_i, b_j)

    Parameters
    ----------
    scores
        ``(n, n)``, floating point: ``scores[i, j]`` :math:`= f(a_i, b_j)`; pairs lie on the diagonal.
    groups
        ``(n,)`` integers. Row :math:`b_j` is then compared with the :math:`a_i` of its own group only; the value is
        the mean of the groups' values, weighted by their sizes. A row alone in its group contributes 0.

    Returns
    -------
    Scalar in nats; 0, connected to the graph, when ``n < 2``. It may be negative.

    Raises
    ------
    ValueError
        When ``scores`` is not a square matrix or ``groups`` has not one entry per row.

    Notes
    -----
    The conditional density of :func:`club` is replaced by a critic that has been trained to maximise
    :func:`nce_bound`, whose optimum is :math:`\log p(a \mid b) / p(a)` up to a function of :math:`b` ([1]_,
    "NCE-CLUB"). An upper bound of the mutual information for that critic only. The encoders minimise it, the critic
    is held fixed.

    References
    ----------
    .. [1] Liang et al. Factorized contrastive learning: going beyond multi-view redundancy. NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import nce_club
    >>> nce_club(torch.eye(2)).item()
    0.5
    """
    n = _check_scores(scores)
    check_groups(groups, n)
    if groups is None:
        return (scores.diagonal() - scores.sum(dim=0) / max(n, 1)).sum() / max(n, 1)
    same = groups[:, None] == groups
    mean = scores.masked_fill(~same, 0).sum(dim=0) / same.sum(dim=0)
    return (scores.diagonal() - mean).sum() / max(n, 1)


def nce_bound(scores: Tensor, *, groups: Tensor | None = None, replicates: Tensor | None = None) -> Tensor:
    r"""InfoNCE lower bound of the mutual information from a critic's scores, to be maximised.

    .. math::

        \frac{1}{n} \sum_j \left[ f(a_j, b_j) - \log \frac{1}{n} \sum_i \exp f(a_i, b_j) \right]

    For a fixed :math:`b_j` the sum runs over all rows of :math:`a`, the paired one included.

    Parameters
    ----------
    scores
        ``(n, n)``, floating point: ``scores[i, j]`` :math:`= f(a_i, b_j)`; pairs lie on the diagonal.
    groups
        ``(n,)`` integers. The sum and :math:`n` are then those of the own group of :math:`b_j`; a row alone in its
        group contributes 0.
    replicates
        ``(n,)`` integers. Other rows with the same one as :math:`b_j` are left out of the sum and of :math:`n`. The
        bound is then one of the information about what replicates share.

    Returns
    -------
    Scalar in nats, at most :math:`\log n`; 0, connected to the graph, when ``n < 2``.

    Raises
    ------
    ValueError
        When ``scores`` is not a square matrix, or ``groups`` or ``replicates`` has not one entry per row.

    Notes
    -----
    :math:`\log n` minus the one-directional loss of :func:`info_nce` with an arbitrary critic [1]_; the learning
    objective of FactorCL's critics [2]_.

    References
    ----------
    .. [1] van den Oord, Li and Vinyals. Representation learning with contrastive predictive coding. 2018.
    .. [2] Liang et al. Factorized contrastive learning: going beyond multi-view redundancy. NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import nce_bound
    >>> round(nce_bound(20 * torch.eye(4)).item(), 4)  # told apart without fail: log 4
    1.3863
    """
    n = _check_scores(scores)
    check_groups(groups, n)
    check_groups(replicates, n, "replicates")
    excluded = no_negatives(groups, replicates)
    if excluded is None:
        log_size = n * math.log(max(n, 1))
    else:
        scores = scores.masked_fill(excluded, -torch.inf)
        log_size = (~excluded).sum(dim=0).to(scores.dtype).log().sum()
    partner = torch.arange(n, device=scores.device)
    return (log_size - cross_entropy(scores.T, partner, reduction="sum")) / max(n, 1)


def _group_mean(x: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """For every row the mean over its group, ``(n, d)`` or ``(1, d)``, and the size of its group."""
    n = len(x)
    if groups is None:
        return x.sum(dim=0, keepdim=True) / max(n, 1), torch.tensor(n, dtype=x.dtype, device=x.device)
    _, group, counts = groups.unique(return_inverse=True, return_counts=True)
    counts = counts.to(x.dtype)
    total = x.new_zeros(len(counts), x.shape[1]).index_add(0, group, x)
    return (total / counts[:, None])[group], counts[group]


def _check_gaussian(z: Tensor, mean: Tensor, log_variance: Tensor) -> int:
    n = check_pairs(z, mean, "z and mean")
    check_widths(z, mean, "z and mean", "a Gaussian")
    if log_variance.shape != z.shape:
        raise ValueError(
            f"log_variance must have the shape of z, {tuple(z.shape)}, got {tuple(log_variance.shape)}: "
            "one entry per row and column."
        )
    return n


def _check_scores(scores: Tensor) -> int:
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(
            "scores must be a square matrix, scores[i, j] the score of row i of the one view and row j of the other, "
            f"got shape {tuple(scores.shape)}."
        )
    return len(scores)
