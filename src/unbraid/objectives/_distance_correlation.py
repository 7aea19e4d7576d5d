from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unbraid.objectives._kernel import double_center
from unbraid.objectives._unit import check_pairs, unit

if TYPE_CHECKING:
    from torch import Tensor


def distance_correlation(a: Tensor, b: Tensor, *, squared: bool = True) -> Tensor:
    r"""Distance correlation of two latents over a batch.

    With :math:`A` the doubly centred matrix of the distances :math:`\lVert a_i - a_j \rVert`, :math:`B` the same of
    :math:`b`,

    .. math::

        \mathrm{dCor}^2(a, b) = \frac{\langle A, B \rangle_F}{\lVert A \rVert_F \lVert B \rVert_F}

    ([1]_). Its population value is 0 exactly for independent variables. The V-statistic here is biased
    upwards, the more the wider the latents; independent batches do not give 0.

    Parameters
    ----------
    a
        ``(n, d_a)``, floating point.
    b
        ``(n, d_b)``, floating point, rows paired with ``a``.
    squared
        Return :math:`\mathrm{dCor}^2`. ``False`` returns its root, whose gradient grows without bound towards 0.

    Returns
    -------
    Scalar in [0, 1], the same when a latent is shifted, scaled or rotated; 0, connected to the graph and with a zero
    gradient, when ``n < 2`` or when a latent is constant. Time and memory grow with :math:`n^2`.

    Raises
    ------
    ValueError
        When ``a`` and ``b`` are not two matrices with paired rows.

    References
    ----------
    .. [1] Szekely, Rizzo and Bakirov. Measuring and testing dependence by correlation of distances. Annals of
       Statistics 2007.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import distance_correlation
    >>> a = torch.tensor([[0.0], [1.0], [3.0]])
    >>> round(distance_correlation(a, 5 - 2 * a).item(), 4)
    1.0
    """
    check_pairs(a, b, "a and b")
    a, b = (unit(double_center(_distances(x)).flatten()) for x in (a, b))
    value = (a * b).sum()
    if squared:
        return value
    # what is 0 but for rounding has no root worth a gradient
    nothing = value <= torch.finfo(value.dtype).eps
    return value.masked_fill(nothing, 1).sqrt().masked_fill(nothing, 0)


def _distances(x: Tensor) -> Tensor:
    # not by matrix products: equal rows are then exactly 0 apart, and their distance has the gradient 0
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
