from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from scipy.special import i0e

from unbraid.objectives._unit import check_pairs, check_widths, unit

if TYPE_CHECKING:
    from torch import Tensor


def vmf_kl(mu1: Tensor, mu2: Tensor, concentration: float) -> Tensor:
    r"""Kullback-Leibler divergence of von Mises-Fisher distributions of one fixed concentration.

    .. math::

        \mathrm{KL}\big(\mathrm{vMF}(\mu_1, \kappa) \,\Vert\, \mathrm{vMF}(\mu_2, \kappa)\big)
            = \kappa A_d(\kappa) \, (1 - \langle \mu_1, \mu_2 \rangle)

    It follows from :math:`\mathbb{E}[z] = A_d(\kappa) \mu_1`, and bounds the conditional information term of
    DisentangledSSL's step 1 ([1]_, Appendix G). There the factor :math:`\kappa A_d(\kappa)` is absorbed in
    :math:`\beta`, which leaves :func:`alignment`: :math:`\beta = 1` is a weight of 1 / 951.7 on this divergence at
    :math:`d = 100, \kappa = 1000`.

    Parameters
    ----------
    mu1, mu2
        Mean directions, ``(n, d)`` each, floating point, ``d >= 2``; rows are scaled to unit length.
    concentration
        :math:`\kappa \ge 0`, common to all.

    Returns
    -------
    ``(n,)``, one divergence per row, in nats, never negative.

    Raises
    ------
    ValueError
        When ``mu1`` and ``mu2`` are not two ``(n, d)`` matrices, ``d < 2``, or the concentration is negative or
        not finite.

    References
    ----------
    .. [1] Wang et al. An information criterion for controlled disentanglement of multimodal data. ICLR 2025.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import vmf_kl
    >>> east, north = torch.eye(100)[:1], torch.eye(100)[1:2]
    >>> round(vmf_kl(east, north, 1000.0).item(), 1), vmf_kl(east, east, 1000.0).item()
    (951.7, 0.0)
    """
    check_pairs(mu1, mu2, "mu1 and mu2")
    check_widths(mu1, mu2, "mu1 and mu2", "vmf_kl")
    slope = concentration * bessel_ratio(mu1.shape[1], concentration)
    # 1 - <mu1, mu2> as half the squared chord: keeps its digits, and its sign, when the directions almost agree
    return slope * (unit(mu1) - unit(mu2)).square().sum(dim=1) / 2


@lru_cache
def bessel_ratio(dimension: int, concentration: float) -> float:
    r"""Mean resultant length of the von Mises-Fisher distribution, a ratio of modified Bessel functions.

    .. math::

        A_d(\kappa) = \frac{I_{d/2}(\kappa)}{I_{d/2-1}(\kappa)} = \mathbb{E} \langle z, \mu \rangle,
        \qquad z \sim \mathrm{vMF}(\mu, \kappa) \text{ on } S^{d-1}

    Parameters
    ----------
    dimension
        :math:`d \ge 2`, of the space around the sphere.
    concentration
        :math:`\kappa \ge 0`.

    Returns
    -------
    Number in [0, 1).

    Raises
    ------
    ValueError
        When ``dimension < 2`` or the concentration is negative or not finite.

    Notes
    -----
    Computed to double precision from the continued fraction [1]_ :math:`A_d = \kappa / (d + \kappa A_{d+2})`, whose
    terms are all positive: nothing underflows, where :math:`e^{-\kappa} I_{999}(10)` is below the smallest double.
    The error of starting at :math:`A_{d+2N} = 0` falls faster than :math:`e^{-N^2 / \kappa}` while
    :math:`N < \kappa`, hence the number of terms.

    References
    ----------
    .. [1] NIST Digital Library of Mathematical Functions, section 10.33.

    Examples
    --------
    >>> from unbraid.objectives import bessel_ratio
    >>> round(bessel_ratio(100, 1000.0), 4), round(bessel_ratio(2000, 10.0), 4)
    (0.9517, 0.005)
    """
    if dimension < 2:
        raise ValueError(f"dimension must be at least 2, got {dimension}.")
    if not 0 <= concentration < math.inf:
        raise ValueError(f"concentration must be finite and not negative, got {concentration}.")

    ratio = 0.0
    for step in reversed(range(20 + int(7 * math.sqrt(concentration)))):
        ratio = concentration / (dimension + 2 * step + concentration * ratio)
    return ratio


@lru_cache
def vmf_log_normalizer(dimension: int, concentration: float) -> float:
    r"""Logarithm of the von Mises-Fisher density's normalising constant.

    The density on the sphere is :math:`C_d(\kappa) \exp(\kappa \langle \mu, z \rangle)` with

    .. math::

        C_d(\kappa) = \frac{\kappa^{d/2-1}}{(2 \pi)^{d/2} I_{d/2-1}(\kappa)}

    Parameters
    ----------
    dimension
        :math:`d \ge 2`, of the space around the sphere.
    concentration
        :math:`\kappa \ge 0`; 0 gives minus the logarithm of the sphere's area.

    Returns
    -------
    :math:`\log C_d(\kappa)`, in nats.

    Raises
    ------
    ValueError
        When ``dimension < 2`` or the concentration is negative or not finite.

    Notes
    -----
    :math:`I_{d/2-1}` underflows when the dimension is large against the concentration. So the constant is carried up
    from the circle, or from the two points of the line when ``d`` is odd, by
    :math:`C_{e+2} = C_e \, \kappa / (2 \pi A_e(\kappa))` with :math:`A` of :func:`bessel_ratio`.

    Examples
    --------
    >>> import math
    >>> from unbraid.objectives import vmf_log_normalizer
    >>> math.isclose(vmf_log_normalizer(3, 0.0), -math.log(4 * math.pi))
    True
    >>> round(vmf_log_normalizer(100, 1000.0), 4)
    -747.8403
    """
    ratio = bessel_ratio(dimension, concentration)
    if dimension % 2:  # C_1 = 1 / (2 cosh kappa)
        log_constant = -concentration - math.log1p(math.exp(-2 * concentration))
    else:  # C_2 = 1 / (2 pi I_0(kappa))
        log_constant = -concentration - math.log(2 * math.pi * i0e(concentration))
    for lower in range(dimension - 2, 0, -2):
        kappa_over_ratio = lower + concentration * ratio  # kappa / A_lower, finite at kappa = 0
        log_constant += math.log(kappa_over_ratio / (2 * math.pi))
        ratio = concentration / kappa_over_ratio
    return log_constant
