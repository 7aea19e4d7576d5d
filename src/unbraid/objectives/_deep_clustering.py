"""Terms of deep clustering: soft assignments, mixtures, and what pairs of cells say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unbraid.objectives._unit import check_pairs, check_widths

if TYPE_CHECKING:
    from torch import Tensor


def student_t_assignment(codes: Tensor, centers: Tensor) -> Tensor:
    r"""Log probability of every cluster under Student's t kernel with one degree of freedom (DEC, equation 1).

    .. math:: q_{ic} = \frac{(1 + \lVert z_i - \mu_c \rVert^2)^{-1}}{\sum_k (1 + \lVert z_i - \mu_k \rVert^2)^{-1}}

    Parameters
    ----------
    codes
        :math:`z`, ``(n, d)``.
    centers
        :math:`\mu`, ``(n_clusters, d)``.

    Returns
    -------
    :math:`\log q`, ``(n, n_clusters)``.

    Raises
    ------
    ValueError
        If codes and centers have different widths.

    Notes
    -----
    The released code of C-IDEC has the exponent -2 instead: its ``q**(alpha + 1) / 2`` squares before it halves.

    References
    ----------
    Xie et al. Unsupervised deep embedding for clustering analysis. ICML 2016.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import student_t_assignment
    >>> student_t_assignment(torch.tensor([[0.0]]), torch.tensor([[0.0], [1.0]])).exp().round(decimals=4).tolist()
    [[0.6667000126838684, 0.33329999446868896]]
    """
    check_widths(codes, centers, "codes and centers", "student_t_assignment")
    distance = (codes.unsqueeze(1) - centers).square().sum(-1)
    return (-distance.log1p()).log_softmax(1)


def target_distribution(assignment: Tensor) -> Tensor:
    r"""Assignments made surer of themselves, and equally large clusters (DEC, equation 3).

    .. math:: p_{ic} = \frac{q_{ic}^2 / f_c}{\sum_k q_{ik}^2 / f_k}, \qquad f_c = \sum_i q_{ic}

    Parameters
    ----------
    assignment
        :math:`\log q`, ``(n, n_clusters)``, such as :func:`student_t_assignment` gives it.

    Returns
    -------
    :math:`p`, ``(n, n_clusters)``, without gradient.

    References
    ----------
    Xie et al. Unsupervised deep embedding for clustering analysis. ICML 2016.
    """
    log_q = assignment.detach()
    return (2 * log_q - log_q.logsumexp(0)).softmax(1)


def clustering_divergence(assignment: Tensor, target: Tensor | None = None) -> Tensor:
    r"""Mean Kullback-Leibler divergence of soft assignments from their target (DEC, equation 2).

    .. math:: \frac1n \sum_i \sum_c p_{ic} \log \frac{p_{ic}}{q_{ic}}

    Parameters
    ----------
    assignment
        :math:`\log q`, ``(n, n_clusters)``.
    target
        :math:`p`, ``(n, n_clusters)``; :func:`target_distribution` of these very rows by default.

    Returns
    -------
    Scalar, in nats, not negative; 0 for no rows.

    References
    ----------
    Xie et al. Unsupervised deep embedding for clustering analysis. ICML 2016.
    """
    target = target_distribution(assignment) if target is None else target
    return (torch.xlogy(target, target) - target * assignment).sum() / max(len(assignment), 1)


def pair_distance(first: Tensor, second: Tensor, *, margin: float | None = None) -> Tensor:
    r"""Mean squared distance of paired codes, each counted up to a margin.

    .. math:: \frac1P \sum_p \min\big(\lVert z_p - z'_p \rVert^2, m\big)

    SDEC [1]_ adds it for pairs of one cluster and subtracts it for pairs of two, without a margin. What is
    subtracted then has no bound: codes that were pushed apart are pushed further, and the harder.

    Parameters
    ----------
    first, second
        Codes of the cells of every pair, ``(P, d)`` each.
    margin
        :math:`m`, a squared distance; None is infinite.

    Returns
    -------
    Scalar; 0 for no pairs.

    Raises
    ------
    ValueError
        If these are not two matrices with paired rows of equal width, or the margin is not positive.

    References
    ----------
    .. [1] Ren et al. Semi-supervised deep embedded clustering. Neurocomputing 2019.
    """
    n = check_pairs(first, second, "first and second")
    check_widths(first, second, "first and second", "pair_distance")
    if margin is not None and not margin > 0:
        raise ValueError(f"`margin` must be positive, got {margin}.")
    distance = (first - second).square().sum(1)
    return (distance if margin is None else distance.clamp(max=margin)).sum() / max(n, 1)


def link_log_probability(log_p: Tensor, log_q: Tensor, compatibility: Tensor) -> Tensor:
    r"""Log probability that a pair is annotated as linked, where annotators err (VolMaxDCC).

    .. math:: \log p^\top B q, \qquad B = \operatorname{sigmoid}(b)

    With :math:`B = I` this is :func:`same_component`. Since p and q sum to 1, the probability that the pair is annotated
    as not linked is :math:`p^\top (1 - B) q`: pass :math:`-b`. No probability is rounded to 0 or 1 on the way.

    Parameters
    ----------
    log_p, log_q
        Log probabilities of the clusters of either cell, ``(P, n_clusters)``, normalised.
    compatibility
        :math:`b`, ``(n_clusters, n_clusters)``.

    Returns
    -------
    ``(P,)``, in nats.

    References
    ----------
    Nguyen, Ibrahim and Fu. Deep clustering with incomplete noisy pairwise annotations: a geometric regularization
    approach. ICML 2023.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import link_log_probability
    >>> sure = torch.tensor([[1.0, 1e-9]]).log()
    >>> round(link_log_probability(sure, sure, torch.tensor([[2.0, -2.0], [-2.0, 2.0]])).exp().item(), 4)
    0.8808
    """
    log_b = torch.nn.functional.logsigmoid(compatibility)
    return (log_p.unsqueeze(-1) + log_b + log_q.unsqueeze(-2)).flatten(-2).logsumexp(-1)


def log_volume(probabilities: Tensor, *, ridge: float = 1e-5) -> Tensor:
    r"""Log volume that the clusters span (VolMaxDCC).

    .. math:: \log \det \Big( \frac1n F^\top F + r I \Big)

    It is largest where every cell is surely of one cluster and clusters are equally large.

    Parameters
    ----------
    probabilities
        :math:`F`, ``(n, n_clusters)``.
    ridge
        :math:`r`. Without it a cluster without cells has the volume minus infinity.

    Returns
    -------
    Scalar.

    Raises
    ------
    ValueError
        If the ridge is not positive.

    References
    ----------
    Nguyen, Ibrahim and Fu. Deep clustering with incomplete noisy pairwise annotations: a geometric regularization
    approach. ICML 2023. The ridge and the mean over cells are not theirs.
    """
    if not ridge > 0:
        raise ValueError(f"`ridge` must be positive, got {ridge}.")
    gram = probabilities.T @ probabilities / max(len(probabilities), 1)
    return torch.linalg.slogdet(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).logabsdet


def mixture_log_joint(z: Tensor, log_weights: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    r"""Log weight and density of every component of a mixture of diagonal normals.

    :math:`\log \pi_c + \log \mathcal N(z \mid \mu_c, \sigma_c^2)`; its logarithmic softmax is :math:`\log p(c \mid z)`.

    Parameters
    ----------
    z
        ``(n, d)``.
    log_weights
        :math:`\log \pi`, ``(n_components,)``.
    means, scales
        :math:`\mu` and :math:`\sigma > 0`, ``(n_components, d)``.

    Returns
    -------
    ``(n, n_components)``.
    """
    components = torch.distributions.Normal(means, scales, validate_args=False)
    return log_weights + components.log_prob(z.unsqueeze(1)).sum(-1)


def mixture_divergence(
    mean: Tensor, scale: Tensor, log_responsibilities: Tensor, log_weights: Tensor, means: Tensor, scales: Tensor
) -> Tensor:
    r"""Divergence of posteriors of codes and clusters from a mixture prior (the part of VaDE's bound beside the likelihood).

    For :math:`q(z, c \mid x) = \mathcal N(z \mid \mu, \sigma^2)\, g_c`,

    .. math::
        \mathrm{KL}\big(q(z, c \mid x) \,\|\, p(z, c)\big) =
        \sum_c g_c\, \mathrm{KL}\big(\mathcal N(\mu, \sigma^2) \,\|\, \mathcal N(\mu_c, \sigma_c^2)\big)
        + \sum_c g_c \log \frac{g_c}{\pi_c} .

    Parameters
    ----------
    mean, scale
        :math:`\mu` and :math:`\sigma > 0` of the posteriors, ``(n, d)``.
    log_responsibilities
        :math:`\log g`, ``(n, n_components)``, normalised. VaDE takes :math:`p(c \mid z)` at a sample z.
    log_weights, means, scales
        Of the mixture, as in :func:`mixture_log_joint`.

    Returns
    -------
    ``(n,)``, in nats, not negative.

    Notes
    -----
    The released code counts a constant :math:`\log 2\pi` once too often per dimension; its gradients are these.

    References
    ----------
    Jiang et al. Variational deep embedding: an unsupervised and generative approach to clustering. IJCAI 2017.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import mixture_divergence
    >>> one = torch.ones(1, 2)
    >>> mixture_divergence(one, one, torch.zeros(1, 1), torch.zeros(1), 0 * one, one).tolist()  # as normal_kl
    [1.0]
    """
    mean, scale = mean.unsqueeze(1), scale.unsqueeze(1)
    apart = (scales / scale).log() + ((scale / scales).square() + ((mean - means) / scales).square() - 1) / 2
    responsibilities = log_responsibilities.exp()
    return (responsibilities * (apart.sum(-1) + log_responsibilities - log_weights)).sum(1)
