from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from unbraid._messages import check_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Estimator = Literal["elbo", "iwae", "dreg"]


def evidence_bound(
    log_weights: Tensor, *, estimator: Estimator = "iwae", samples: Sequence[Tensor] = (), dim: int = 0
) -> Tensor:
    r"""Lower bound of the log evidence from K samples of a posterior.

    With importance weights :math:`\log w_k = \log p(x, z_k) - \log q(z_k \mid x)`, :math:`z_k \sim q`:

    ``"elbo"``
        :math:`\frac1K \sum_k \log w_k`.
    ``"iwae"``
        :math:`\log \frac1K \sum_k w_k` [1]_: grows with K towards :math:`\log p(x)`.
    ``"dreg"``
        The value of ``"iwae"``, with the doubly reparameterised gradient [2]_, whose noise falls with K where that of
        ``"iwae"`` grows: with :math:`\tilde w_k = w_k / \sum_l w_l`, the parameters of the model get :math:`\sum_k
        \tilde w_k \nabla \log w_k`, those of the posterior :math:`\sum_k \tilde w_k^2 \,\partial \log w_k / \partial
        z_k \,\partial z_k / \partial \phi`. For this ``log_weights`` must have been computed with **detached**
        parameters of the posterior inside :math:`\log q`, from the very tensors ``samples``.

    Parameters
    ----------
    log_weights
        :math:`\log w`, any shape with the samples along ``dim``.
    estimator
        Which bound.
    samples
        For ``"dreg"``: the reparameterised samples that ``log_weights`` was computed from, each of the shape of
        ``log_weights`` with one more, last dimension. Their gradients are weighted on the way back.
    dim
        Dimension of the samples.

    Returns
    -------
    The shape of ``log_weights`` without ``dim``.

    Raises
    ------
    ValueError
        If the estimator is unknown, or it is ``"dreg"`` and there are no samples or their shape does not fit.

    Notes
    -----
    Several released implementations register the weights on a tensor stacked from the samples after the weights were
    computed, which no gradient passes, so that their "DReG" is IWAE; one does not square the weight and is biased.
    The tests compare the expectation with that of IWAE.

    References
    ----------
    .. [1] Burda et al. Importance weighted autoencoders. ICLR 2016, equation 8.
    .. [2] Tucker et al. Doubly reparameterized gradient estimators for Monte Carlo objectives. ICLR 2019, equation 8.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import evidence_bound
    >>> evidence_bound(torch.tensor([0.0, 2.0]), estimator="elbo").item()
    1.0
    >>> round(evidence_bound(torch.tensor([0.0, 2.0]), estimator="iwae").item(), 4)
    1.4338
    """
    check_option("`estimator`", estimator, ("elbo", "iwae", "dreg"))
    if estimator == "elbo":
        return log_weights.mean(dim)
    value = torch.logsumexp(log_weights, dim) - math.log(log_weights.shape[dim])
    if estimator == "iwae":
        return value
    if not samples or any(z.shape[:-1] != log_weights.shape for z in samples):
        raise ValueError(
            "`estimator='dreg'` needs the `samples` of the posterior, of the shape of `log_weights` "
            f"{tuple(log_weights.shape)} with one more dimension; got {[tuple(z.shape) for z in samples]}."
        )
    weights = torch.softmax(log_weights, dim).detach()
    for z in samples:
        if z.requires_grad:
            z.register_hook(lambda gradient: weights.unsqueeze(-1) * gradient)
    surrogate = (weights * log_weights).sum(dim)
    return value.detach() + surrogate - surrogate.detach()


def mixture_log_density(log_densities: Tensor, present: Tensor, *, dim: int = 0) -> Tensor:
    r"""Log density of a mixture of experts with equal weights over those that are present.

    :math:`\log \frac{1}{|O|} \sum_{m \in O} q_m(z)`, the posterior of MMVAE [1]_ of a cell with the modalities O.

    Parameters
    ----------
    log_densities
        :math:`\log q_m(z)`, the experts along ``dim``.
    present
        Which experts there are, boolean, broadcastable to ``log_densities``.
    dim
        Dimension of the experts.

    Returns
    -------
    The shape of ``log_densities`` without ``dim``; minus infinity where there is no expert.

    References
    ----------
    .. [1] Shi et al. Variational mixture-of-experts autoencoders for multi-modal deep generative models. NeurIPS 2019.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import mixture_log_density
    >>> densities = torch.tensor([0.2, 0.4, 7.0]).log()
    >>> round(mixture_log_density(densities, torch.tensor([True, True, False])).exp().item(), 4)
    0.3
    """
    present = present.expand_as(log_densities)
    count = present.sum(dim).clamp(min=1).to(log_densities.dtype)  # else the logarithm is float32
    return log_densities.masked_fill(~present, -torch.inf).logsumexp(dim) - count.log()


def normal_kl(mean: Tensor, scale: Tensor, prior_scale: Tensor | float = 1.0) -> Tensor:
    r"""Kullback-Leibler divergence of a diagonal normal from one with mean 0.

    .. math::

        \sum_k \log \frac{\tau_k}{\sigma_k} + \frac{\sigma_k^2 + \mu_k^2}{2 \tau_k^2} - \frac12

    Parameters
    ----------
    mean, scale
        :math:`\mu` and :math:`\sigma > 0`, ``(..., d)``.
    prior_scale
        :math:`\tau > 0`, a number or broadcastable.

    Returns
    -------
    ``(...,)``, in nats, not negative.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import normal_kl
    >>> normal_kl(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2)).tolist()
    [0.5]
    """
    ratio = scale / prior_scale
    return (0.5 * (ratio.square() + (mean / prior_scale).square() - 1) - ratio.log()).sum(-1)
