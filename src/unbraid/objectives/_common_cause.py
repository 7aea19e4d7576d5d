"""Whether two codes come from the same component of a mixture."""

from __future__ import annotations

import torch


def same_component(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    r"""Log probability that two codes come from the same component, DL2's common-cause mutual information.

    .. math:: \log P(c = c') = \log \sum_c p(c \mid z)\, p(c \mid z') .

    This is what equations 8 and 43 of [1]_ amount to. It is at most 0, so despite its name no mutual information.

    Parameters
    ----------
    log_p, log_q
        :math:`\log p(c \mid z)` and :math:`\log p(c \mid z')`, ``(..., n_components)``, normalised.

    Returns
    -------
    ``(...,)``, in nats.

    References
    ----------
    .. [1] Dual-level disentanglement (DL2), equations 8 and 43. The fraction of its equation 44 is upside down.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import same_component
    >>> p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
    >>> round(same_component(p.log(), q.log()).exp().item(), 4)
    0.5
    """
    return (log_p + log_q).logsumexp(-1)


def different_components(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    r"""Log probability that two codes come from different components.

    .. math:: \log \big[ 1 - P(c = c') \big] = \log \sum_c p(c \mid z) \sum_{c' \neq c} p(c' \mid z') ,

    DL2's reward for a pair that cannot be linked (equation 9 of [1]_). The right-hand side has no difference in it: it
    is finite, and so is its gradient, where two codes are surely of the same component.

    Parameters
    ----------
    log_p, log_q
        :math:`\log p(c \mid z)` and :math:`\log p(c \mid z')`, ``(..., n_components)``, normalised.

    Returns
    -------
    ``(...,)``, in nats, at most 0.

    Raises
    ------
    ValueError
        If there is one component only: then nothing differs.

    References
    ----------
    .. [1] Dual-level disentanglement (DL2), equation 9.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import different_components
    >>> p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
    >>> round(different_components(p.log(), q.log()).exp().item(), 4)
    0.5
    """
    n = log_q.shape[-1]
    if n < 2:
        raise ValueError("Two codes of a mixture with one component cannot be of different ones.")
    itself = torch.eye(n, dtype=torch.bool, device=log_q.device)
    others = log_q.unsqueeze(-2).masked_fill(itself, -torch.inf).logsumexp(-1)
    return (log_p + others).logsumexp(-1)
