"""Scores of pairs, for bounds on mutual information."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from unbraid._messages import check_whole
from unbraid.nn._mlp import MLP

if TYPE_CHECKING:
    from torch import Tensor


class PairCritic(nn.Module):
    r"""A score for every pair of rows, :math:`f(a, b) = \mathrm{MLP}([a, b])`.

    The critic of FactorCL [1]_ and of other bounds that need the score of all pairs of a batch. The first layer is
    linear in both parts, :math:`W [a, b] = W_a a + W_b b`, so over all pairs it is computed once per row, exactly; and
    pairs are scored in chunks whose activations are recomputed in the backward pass, so that memory grows
    with the batch and not with its square.

    Parameters
    ----------
    n_a, n_b
        Widths of the two parts.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of linear layers.
    max_pairs
        Pairs scored at a time; ``2**23 / n_hidden`` by default. Memory of the backward pass is about ``6 * 4 * n_hidden
        * max_pairs`` bytes.

    References
    ----------
    .. [1] Liang et al. Factorized contrastive learning: going beyond multi-view redundancy. NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from unbraid.nn import PairCritic
    >>> critic = PairCritic(3, 2, n_hidden=16)
    >>> a, b = torch.randn(4, 3), torch.randn(4, 2)
    >>> critic(a, b).shape, critic.scores(a, b).shape
    (torch.Size([4]), torch.Size([4, 4]))
    """

    def __init__(
        self, n_a: int, n_b: int, *, n_hidden: int = 512, n_layers: int = 3, max_pairs: int | None = None
    ) -> None:
        super().__init__()
        # 32 MB at a time: of smaller blocks the allocator gives fewer back
        max_pairs = max(1, 2**23 // n_hidden) if max_pairs is None else max_pairs
        check_whole("max_pairs", max_pairs, 1)
        self.n_a, self.n_b, self.max_pairs = n_a, n_b, max_pairs
        self.network = MLP(n_a + n_b, 1, n_hidden=n_hidden, n_layers=n_layers)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Scores of paired rows.

        Parameters
        ----------
        a, b
            Shapes ``(n, n_a)`` and ``(n, n_b)``.

        Returns
        -------
        Shape ``(n,)``.

        Raises
        ------
        ValueError
            If the widths are others or the rows are not paired.
        """
        self._check(a, b)
        if len(a) != len(b):
            raise ValueError(f"`a` and `b` must have paired rows, got {len(a)} and {len(b)}; see `scores`.")
        return self.network(torch.cat([a, b], dim=1)).squeeze(1)

    def scores(self, a: Tensor, b: Tensor) -> Tensor:
        """Scores of all pairs.

        Parameters
        ----------
        a, b
            Shapes ``(n, n_a)`` and ``(m, n_b)``.

        Returns
        -------
        Shape ``(n, m)``; row ``i``, column ``j`` holds the score of ``a[i]`` and ``b[j]``.

        Raises
        ------
        ValueError
            If the widths are others.
        """
        self._check(a, b)
        first = self.network.layers[0]
        left = nn.functional.linear(a, first.weight[:, : self.n_a], first.bias)
        right = nn.functional.linear(b, first.weight[:, self.n_a :])
        if len(a) * len(b) <= self.max_pairs:
            return self._combine(left, right)
        chunks = left.split(max(1, self.max_pairs // len(b)))
        if not torch.is_grad_enabled():
            return torch.cat([self._combine(chunk, right) for chunk in chunks])
        return torch.cat(
            [checkpoint(self._combine, chunk, right, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        )

    def _combine(self, left: Tensor, right: Tensor) -> Tensor:
        return self.network.layers[1:](left.unsqueeze(1) + right).squeeze(2)

    def _check(self, a: Tensor, b: Tensor) -> None:
        for name, part, width in (("a", a, self.n_a), ("b", b, self.n_b)):
            if part.ndim != 2 or part.shape[1] != width:
                raise ValueError(f"`{name}` must have shape (n, {width}), got {tuple(part.shape)}.")
