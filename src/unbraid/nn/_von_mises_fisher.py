from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from torch import Generator, Tensor

PROPOSALS = 8  # drawn at once per sample; two in three or more are accepted, so a second round is rare and small


def sample_von_mises_fisher(
    mean_direction: Tensor, concentration: float, *, generator: Generator | None = None
) -> Tensor:
    r"""One differentiable sample of :math:`\mathrm{vMF}(\mu, \kappa)` per mean direction.

    .. math::

        z = H_\mu \big( w \, p + \sqrt{1 - w^2} \, v \big)

    where :math:`w = \langle z, \mu \rangle` has density proportional to :math:`e^{\kappa w} (1 - w^2)^{(d-3)/2}` and
    comes from Wood's rejection sampler [1]_, :math:`v` is uniform on the unit sphere orthogonal to the pole
    :math:`p = \pm e_1`, and the Householder reflection :math:`H_\mu` maps :math:`p` to :math:`\mu`. Gradients reach
    :math:`\mu` through the reflection [2]_; :math:`w` and :math:`v` are constants, and :math:`\kappa` is fixed.

    Parameters
    ----------
    mean_direction
        :math:`\mu`, ``(..., d)`` with ``d >= 2``; scaled to unit length along the last axis. Half precision is
        promoted to float32.
    concentration
        :math:`\kappa \ge 0`; 0 is the uniform distribution on the sphere.
    generator
        Source of randomness, on the device of ``mean_direction``; PyTorch's global one if not given.

    Returns
    -------
    Unit vectors of the shape and on the device of ``mean_direction``.

    Raises
    ------
    ValueError
        When ``d < 2`` or the concentration is negative or not finite.

    Notes
    -----
    The pole is the one of :math:`\pm e_1` farther from :math:`\mu`. By symmetry the distribution is the same, and
    the reflection, with its gradient, has no singularity, where a fixed pole has one at :math:`\mu = p`.

    References
    ----------
    .. [1] Wood. Simulation of the von Mises Fisher distribution. Communications in Statistics 23, 1994. After
       Ulrich. Computer generation of distributions on the m-sphere. Applied Statistics 33, 1984.
    .. [2] Davidson et al. Hyperspherical variational auto-encoders. UAI 2018, Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from unbraid.nn._von_mises_fisher import sample_von_mises_fisher
    >>> mu = torch.nn.functional.normalize(torch.ones(512, 100), dim=1)
    >>> z = sample_von_mises_fisher(mu, 1000.0, generator=torch.Generator().manual_seed(0))
    >>> round((z * mu).sum(dim=1).mean().item(), 2)
    0.95
    """
    d = mean_direction.shape[-1]
    if d < 2:
        raise ValueError(f"mean_direction needs at least 2 columns, got {d}.")
    if not 0 <= concentration < math.inf:
        raise ValueError(f"concentration must be finite and not negative, got {concentration}.")
    mu = normalize(mean_direction.to(torch.promote_types(mean_direction.dtype, torch.float32)), dim=-1)

    with torch.no_grad():
        one_minus_w = _draw_one_minus_w(mu, concentration, generator).unsqueeze(-1)
        pole = torch.where(mu[..., :1] > 0, -1.0, 1.0).to(mu.dtype)  # first coordinate of p
        v = torch.randn(*mu.shape[:-1], d - 1, dtype=mu.dtype, device=mu.device, generator=generator)
        length = (one_minus_w * (2 - one_minus_w)).sqrt()  # sqrt(1 - w^2) without cancellation near w = 1
        upright = torch.cat([pole * (1 - one_minus_w), normalize(v, dim=-1) * length], dim=-1)

    mirror = normalize(torch.cat([pole - mu[..., :1], -mu[..., 1:]], dim=-1), dim=-1)
    return upright - 2 * (upright * mirror).sum(dim=-1, keepdim=True) * mirror


def _draw_one_minus_w(mu: Tensor, concentration: float, generator: Generator | None) -> Tensor:
    """Draw 1 - w for every row of ``mu`` by rejection.

    Wood's steps 1 and 2 are w = (1 - (1 + b) y) / (1 - (1 - b) y) with y ~ Beta((d - 1) / 2, (d - 1) / 2), accepted
    when kappa w + (d - 1) log(1 - x w) - c >= log u. Written in s = 1 - (1 - b) y they need no difference of nearly
    equal numbers: 1 - w = 2 b y / s and 1 - x w = (1 - x^2) (1 + b) / (2 s).
    """
    d = mu.shape[-1]
    b = (d - 1) / (2 * concentration + math.hypot(2 * concentration, d - 1))
    mode = 2 * b / (1 + b)  # 1 - x, the 1 - w whose acceptance is certain
    exponent = 2 / (d - 2) if d > 2 else math.inf

    one_minus_w = mu.new_empty(mu.shape[:-1].numel())
    pending = torch.arange(len(one_minus_w), device=mu.device)
    while len(pending):
        radius, angle, u = torch.rand(3, len(pending), PROPOSALS, dtype=mu.dtype, device=mu.device, generator=generator)
        # a symmetric beta is a coordinate of the uniform distribution on a sphere, moved to [0, 1] (Ulrich 1984)
        y = (1 + (1 - radius**exponent).sqrt() * (2 * math.pi * angle).cos()) / 2
        s = (1 - y) + b * y
        proposal = 2 * b * y / s
        accepted = concentration * (mode - proposal) - (d - 1) * (2 * s / (1 + b)).log() >= u.log()
        first = accepted.int().argmax(dim=1, keepdim=True)
        one_minus_w[pending] = proposal.gather(1, first).squeeze(1)  # rows without any are drawn again
        pending = pending[~accepted.any(dim=1)]
    return one_minus_w.view(mu.shape[:-1])
