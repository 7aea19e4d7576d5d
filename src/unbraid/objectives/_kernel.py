from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unbraid.objectives._unit import center, check_pairs, unit

if TYPE_CHECKING:
    from torch import Tensor


def hsic(
    a: Tensor,
    b: Tensor,
    *,
    bandwidth: float | tuple[float, float] | None = None,
    normalize: bool = True,
) -> Tensor:
    r"""Hilbert-Schmidt independence criterion with Gaussian kernels.

    With :math:`K_{ij} = \exp(-\lVert a_i - a_j \rVert^2 / 2 s_a^2)`, :math:`L` the same of :math:`b`, and
    :math:`H = I - \tfrac1n 1 1^\top`,

    .. math::

        \mathrm{HSIC}(a, b) = \frac{1}{n^2} \operatorname{tr}(K H L H), \qquad
        \mathrm{CKA}(a, b) = \frac{\mathrm{HSIC}(a, b)}{\sqrt{\mathrm{HSIC}(a, a)\, \mathrm{HSIC}(b, b)}} .

    Its population value is 0 exactly for independent variables. The V-statistic here ([1]_, definition 2, with
    :math:`n^2` in place of :math:`(n - 1)^2`) is biased upwards by the order of :math:`1 / n`: independent batches do
    not give 0.

    Parameters
    ----------
    a
        ``(n, d_a)``, floating point.
    b
        ``(n, d_b)``, floating point, rows paired with ``a``.
    bandwidth
        :math:`s`, in units of the latents: a number for both, or one for each. ``None`` takes :math:`s = \sqrt d` of
        each, made for latents whose columns have about unit variance; nothing is standardised here.
    normalize
        Return the centred kernel alignment [2]_, in which shrinking a latent hides nothing. ``False`` returns HSIC.

    Returns
    -------
    Scalar: the alignment lies in [0, 1], HSIC in :math:`[0, 1)`. 0, connected to the graph, when ``n < 2`` or
    when a latent is constant. Time and memory grow with :math:`n^2`.

    Raises
    ------
    ValueError
        When ``a`` and ``b`` are not two matrices with paired rows, or when ``bandwidth`` is not positive.

    References
    ----------
    .. [1] Gretton et al. Measuring statistical dependence with Hilbert-Schmidt norms. ALT 2005.
    .. [2] Cortes, Mohri and Rostamizadeh. Algorithms for learning kernels based on centered alignment. JMLR 2012.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import hsic
    >>> a = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    >>> b = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    >>> round(hsic(a, 2 * a).item(), 4), round(hsic(a, b).item(), 4)
    (1.0, 0.0)
    """
    n = check_pairs(a, b, "a and b")
    if bandwidth is None:
        bandwidth = (max(a.shape[1], 1) ** 0.5, max(b.shape[1], 1) ** 0.5)
    elif not isinstance(bandwidth, (tuple, list)):
        bandwidth = (bandwidth, bandwidth)
    if not (len(bandwidth) == 2 and all(s > 0 for s in bandwidth)):
        raise ValueError(f"bandwidth must be a positive number, or one for each of a and b, got {bandwidth}.")

    # exp(x) - 1 in place of exp(x): the centring takes constants out, and small distances are not rounded away
    kernel_a, kernel_b = (
        double_center(torch.expm1(_squared_distances(x) / (-2 * s**2))) for x, s in zip((a, b), bandwidth, strict=True)
    )
    if normalize:
        kernel_a, kernel_b = (unit(kernel.flatten()) for kernel in (kernel_a, kernel_b))
    return (kernel_a * kernel_b).sum() / (1 if normalize else max(n, 1) ** 2)


def double_center(matrix: Tensor) -> Tensor:
    """Take the row means and the column means out of a symmetric ``(n, n)`` matrix."""
    matrix = matrix - matrix.mean(dim=0)
    return matrix - matrix.mean(dim=1, keepdim=True)


def _squared_distances(x: Tensor) -> Tensor:
    x = center(x)  # the products below lose digits far from the origin
    gram = x @ x.T
    norm = gram.diagonal()
    return norm[:, None] + norm - 2 * gram
