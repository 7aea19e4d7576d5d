"""A Gaussian whose mean and variance depend on a condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from unbraid._messages import check_option
from unbraid.nn._mlp import MLP

if TYPE_CHECKING:
    from torch import Tensor

_FREE_LIMIT = 10.0


class ConditionalGaussian(nn.Module):
    r"""Diagonal Gaussian :math:`q(z \mid c)` with networks for its mean and its log-variance.

    The variational distribution of CLUB [1]_. In CLUB's released code the log-variance goes through a tanh
    and lies in [-1, 1]: the estimate then grows with the scale of :math:`z`, and shrinking :math:`z` cheats it.

    Parameters
    ----------
    n_condition, n_out
        Widths of the condition :math:`c` and of :math:`z`.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of linear layers.
    log_variance
        ``"tanh"``: in [-1, 1]. ``"free"``: in [-10, 10], where the bounds matter only far out,
        :math:`10 \tanh(x / 10)`.
    shared_trunk
        One network with both as its outputs, in place of two networks.

    Raises
    ------
    ValueError
        If ``log_variance`` is unknown.

    References
    ----------
    .. [1] Cheng et al. CLUB: a contrastive log-ratio upper bound of mutual information. ICML 2020.

    Examples
    --------
    >>> import torch
    >>> from unbraid.nn import ConditionalGaussian
    >>> mean, log_variance = ConditionalGaussian(2, 10)(torch.randn(5, 2))
    >>> mean.shape, log_variance.shape
    (torch.Size([5, 10]), torch.Size([5, 10]))
    """

    def __init__(
        self,
        n_condition: int,
        n_out: int,
        *,
        n_hidden: int = 100,
        n_layers: int = 5,
        log_variance: Literal["tanh", "free"] = "tanh",
        shared_trunk: bool = False,
    ) -> None:
        super().__init__()
        check_option("log_variance", log_variance, ("tanh", "free"))
        self.limit = 1.0 if log_variance == "tanh" else _FREE_LIMIT
        widths = [2 * n_out] if shared_trunk else [n_out, n_out]
        self.networks = nn.ModuleList(MLP(n_condition, w, n_hidden=n_hidden, n_layers=n_layers) for w in widths)

    def forward(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance.

        Parameters
        ----------
        c
            Condition, shape ``(n, n_condition)``.

        Returns
        -------
        Two tensors of shape ``(n, n_out)``.
        """
        mean, raw = torch.cat([network(c) for network in self.networks], dim=1).chunk(2, dim=1)
        return mean, self.limit * torch.tanh(raw / self.limit)
