from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from unbraid._messages import check_option
from unbraid.objectives._unit import center, check_pairs, check_widths, unit

if TYPE_CHECKING:
    from torch import Tensor


def canonical_correlation(
    a: Tensor,
    b: Tensor,
    *,
    kind: Literal["trace", "trace_squared", "eckart_young"] = "trace",
    ridge: float = 1e-3,
) -> Tensor:
    r"""Loss of deep canonical correlation analysis: minus the correlation of two views over a batch.

    With :math:`S_{11}, S_{22}` and :math:`S_{12}` the covariances and the cross-covariance of the centred batch,
    ridges :math:`r_m = \text{ridge} \cdot \operatorname{tr} S_{mm} / d_m`, and the whitened cross-covariance
    :math:`T = (S_{11} + r_1 I)^{-1/2} S_{12} (S_{22} + r_2 I)^{-1/2}`, whose singular values :math:`\rho_k` are the
    canonical correlations:

    ``"trace"``
        :math:`-\sum_k \rho_k`, minus the trace norm of :math:`T` ([1]_, equation 10).
    ``"trace_squared"``
        :math:`-\sum_k \rho_k^2 = -\lVert T \rVert_F^2`, minus the VAMP-2 score [2]_. Weak correlations are worth less
        than in the trace, and no singular value decomposition is needed.
    ``"eckart_young"``
        :math:`-2 \operatorname{tr} S_{12} + \langle V', V'' \rangle_F` with :math:`V = \tfrac12 (S_{11} + S_{22})`
        over the two halves of the batch, its even and its odd rows [3]_. Nothing is whitened: the second term keeps
        the scale, and the minimum over linear maps is :math:`-\sum_k \rho_k^2` of the best :math:`\rho_k`. An unbiased
        estimate for any batch size, where the other two favour what correlates in a small batch by chance.

    Parameters
    ----------
    a
        ``(n, d_a)``, floating point.
    b
        ``(n, d_b)``, floating point, rows paired with ``a``; ``"eckart_young"`` needs ``d_b = d_a``.
    kind
        Which of the three losses.
    ridge
        Of ``"trace"`` and ``"trace_squared"``, as a share of each view's mean variance, so that the loss does not
        change when all of ``a`` or all of ``b`` is scaled. Positive, and in single precision well above 1e-6.
        ``"eckart_young"`` has none.

    Returns
    -------
    Scalar. ``"trace"`` and ``"trace_squared"`` lie in :math:`[-\min(d_a, d_b), 0]` and are 0 for a constant view;
    ``"eckart_young"`` is not bounded. 0, connected to the graph, when ``n < 2``, or ``n < 4`` for ``"eckart_young"``.

    Raises
    ------
    ValueError
        When ``a`` and ``b`` are not two matrices with paired rows, when ``kind`` is unknown, when ``ridge`` is not
        positive, or when ``"eckart_young"`` gets views of different width.

    Notes
    -----
    ``"trace"`` and ``"trace_squared"`` need batches well above the widths, ten times or more. With
    :math:`n \le d` the ridge keeps them finite, but every pair of views then correlates almost fully.

    References
    ----------
    .. [1] Andrew, Arora, Bilmes and Livescu. Deep canonical correlation analysis. ICML 2013.
    .. [2] Wu and Noe. Variational approach for learning Markov processes from time series data. Journal of Nonlinear
       Science 2020.
    .. [3] Chapman, Wells and Lawry Aguila. Unconstrained stochastic CCA: unifying multiview and self-supervised
       learning. ICLR 2024.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import canonical_correlation
    >>> a = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    >>> b = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    >>> round(canonical_correlation(a, -a, ridge=1e-6).item(), 4), abs(canonical_correlation(a, b).item())
    (-1.0, 0.0)
    """
    n = check_pairs(a, b, "a and b")
    check_option("kind", kind, ("trace", "trace_squared", "eckart_young"))
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}.")
    if kind == "eckart_young":
        check_widths(a, b, "a and b", "kind='eckart_young'")
    if n < (4 if kind == "eckart_young" else 2):
        return _nothing(a, b)

    if kind == "eckart_young":
        agreement = 2 * (center(a) * center(b)).sum() / (n - 1)
        first, second = ((_covariance(a[half::2]) + _covariance(b[half::2])) / 2 for half in (0, 1))
        return (first * second).sum() - agreement

    a, b = _scaled(a), _scaled(b)
    left, right = _cholesky(a, ridge), _cholesky(b, ridge)
    # L1^-1 S12 L2^-T is T but for rotations, which change neither its singular values nor its norm
    whitened = torch.linalg.solve_triangular(left, a.T @ b / n, upper=False)
    whitened = torch.linalg.solve_triangular(right, whitened.T, upper=False)
    if kind == "trace_squared":
        return -whitened.square().sum()
    return -torch.linalg.svdvals(whitened).sum()


def vicreg(
    a: Tensor,
    b: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Tensor:
    r"""Variance-invariance-covariance regularisation of two views.

    With weights :math:`\lambda, \mu, \nu` and :math:`C(\cdot)` the covariance matrix over the batch, divided by
    :math:`n - 1`,

    .. math::

        \lambda \, \frac1n \sum_i \lVert a_i - b_i \rVert^2 + \mu \, [v(a) + v(b)] + \nu \, [c(a) + c(b)], \qquad
        v(x) = \frac1d \sum_k \max\!\big(0, 1 - \sqrt{C(x)_{kk} + 10^{-4}}\big), \quad
        c(x) = \frac1d \sum_{k \neq l} C(x)_{kl}^2

    ([1]_, equations 1-6). The variance term keeps the columns from collapsing, the covariance term from repeating
    each other; no negatives are needed.

    Parameters
    ----------
    a, b
        Paired rows of the two views, ``(n, d)`` each, floating point.
    invariance, variance, covariance
        The weights :math:`\lambda`, :math:`\mu` and :math:`\nu`.

    Returns
    -------
    Scalar, at least 0. The last two terms are 0 when ``n < 2``; 0, connected to the graph, when ``n = 0``.

    Raises
    ------
    ValueError
        When ``a`` and ``b`` are not two ``(n, d)`` matrices.

    Notes
    -----
    The paper's formula. Its released code also divides the first term by :math:`d` and the second by 2, which
    ``invariance=25 / d, variance=12.5`` gives here.

    References
    ----------
    .. [1] Bardes, Ponce and LeCun. VICReg: variance-invariance-covariance regularization for self-supervised learning.
       ICLR 2022.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import vicreg
    >>> a = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])  # spread out and uncorrelated
    >>> vicreg(a, a).item(), vicreg(a, a + 1).item()
    (0.0, 50.0)
    """
    n = check_pairs(a, b, "a and b")
    check_widths(a, b, "a and b", "vicreg")
    loss = invariance * (a - b).square().sum() / max(n, 1)
    if n < 2:
        return loss
    d = max(a.shape[1], 1)
    for x in (a, b):
        matrix = _covariance(x)
        spread = (matrix.diagonal() + 1e-4).sqrt()
        loss = loss + variance * (1 - spread).relu().sum() / d
        loss = loss + covariance * _off_diagonal(matrix).square().sum() / d
    return loss


def barlow_twins(a: Tensor, b: Tensor, *, redundancy: float = 5e-3) -> Tensor:
    r"""Barlow Twins: the cross-correlation matrix of two views is to be the identity.

    With :math:`R_{kl}` the correlation over the batch of column :math:`k` of ``a`` and column :math:`l` of ``b``,

    .. math::

        \sum_k (1 - R_{kk})^2 + \lambda \sum_{k \neq l} R_{kl}^2

    ([1]_, equations 1-2).

    Parameters
    ----------
    a, b
        Paired rows of the two views, ``(n, d)`` each, floating point.
    redundancy
        :math:`\lambda`, the weight of the off-diagonal correlations.

    Returns
    -------
    Scalar in :math:`[0, 4 d + \lambda d (d - 1)]`, the same when a column is shifted or scaled. The correlations of
    a constant column are 0, with a zero gradient. 0, connected to the graph, when ``n < 2``.

    Raises
    ------
    ValueError
        When ``a`` and ``b`` are not two ``(n, d)`` matrices.

    References
    ----------
    .. [1] Zbontar et al. Barlow twins: self-supervised learning via redundancy reduction. ICML 2021.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import barlow_twins
    >>> a = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> barlow_twins(a, a).item(), barlow_twins(a, -a).item()
    (0.0, 8.0)
    """
    n = check_pairs(a, b, "a and b")
    check_widths(a, b, "a and b", "barlow_twins")
    if n < 2:
        return _nothing(a, b)
    correlation = unit(center(a), dim=0).T @ unit(center(b), dim=0)
    on_diagonal = (1 - correlation.diagonal()).square().sum()
    return on_diagonal + redundancy * _off_diagonal(correlation).square().sum()


def _covariance(x: Tensor) -> Tensor:
    x = center(x)
    return x.T @ x / (len(x) - 1)


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix - matrix.diagonal().diag()


def _scaled(x: Tensor) -> Tensor:
    """Centre, and scale all columns alike to a mean variance of 1."""
    x = center(x)
    return unit(x.flatten()).view_as(x) * x.numel() ** 0.5


def _cholesky(x: Tensor, ridge: float) -> Tensor:
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.linalg.cholesky(x.T @ x / len(x) + ridge * identity)


def _nothing(a: Tensor, b: Tensor) -> Tensor:
    """0 that knows its arguments, so that ``backward`` works."""
    return 0 * (a.sum() + b.sum())
