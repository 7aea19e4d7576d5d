"""Total counts of cells in which a modality was not measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributions import LogNormal

if TYPE_CHECKING:
    from collections.abc import Mapping


def size_features(
    code: torch.Tensor, known: torch.Tensor, sizes: Mapping[str, torch.Tensor], mask: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """What is known of cells that tells the size of a modality, ``(n, d + 2 * len(sizes))``.

    Parameters
    ----------
    code
        Shared code from the other modalities, ``(n, d)``.
    known
        Cells of which there is a code, ``(n,)``.
    sizes
        Of the other modalities that are counted, ``(n,)`` each: what tells is whether they are there, and the logarithm.
    mask
        Which cells have them.
    """
    parts = [code.masked_fill(~known.unsqueeze(1), 0.0)]
    for m, size in sizes.items():
        logs = size.clamp(min=1e-2).log().masked_fill(~mask[m], 0.0)
        parts.append(torch.stack([mask[m].float(), logs], dim=1))
    return torch.cat(parts, dim=1)


class SizePredictor(nn.Module):
    r"""Log-normal size of a cell given what else is known of it, by ridge regression.

    .. math:: \log \ell \sim \mathcal N(a + (f - \bar f)^\top b, \; s^2)

    Sizes differ between kinds of cells, and those of a cell's modalities go together. The mean of the logarithm stays
    within what was seen in :meth:`fit`; before that the size is the typical one, without spread.

    Parameters
    ----------
    typical
        Typical size.
    """

    def __init__(self, typical: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(0))
        self.register_buffer("center", torch.zeros(0))
        intercept = torch.tensor(math.log(max(typical, 1e-8)))
        for name in ("intercept", "low", "high"):
            self.register_buffer(name, intercept.clone())
        self.register_buffer("deviation", torch.tensor(0.0))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Take on the number of features of what is loaded."""
        for name in ("weight", "center"):
            if prefix + name in state_dict:
                setattr(self, name, self.intercept.new_zeros(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def fit(self, features: torch.Tensor, sizes: torch.Tensor) -> None:
        """Learn from cells whose size is known; nothing if there are fewer than two.

        Parameters
        ----------
        features
            Shape ``(n, n_features)``.
        sizes
            Shape ``(n,)``; cells without a count are left out.
        """
        rows = sizes > 0
        f, y = features[rows].cpu().double(), sizes[rows].cpu().double().log()
        n = len(y)
        if n < 2:
            return
        scale = f.std(0)
        scale[scale < 1e-6] = torch.inf  # a feature that does not vary explains nothing
        x = (f - f.mean(0)) / scale
        gram = x.T @ x + torch.eye(x.shape[1], dtype=x.dtype)
        b = torch.linalg.solve(gram, x.T @ (y - y.mean()))
        freedom = float(torch.linalg.solve(gram, x.T @ x).trace()) + 1
        residual = y - y.mean() - x @ b
        self.weight, self.center = (v.to(self.intercept) for v in (b / scale, f.mean(0)))
        self.intercept.copy_(y.mean())
        self.low.copy_(y.min())
        self.high.copy_(y.max())
        self.deviation.copy_((residual.square().sum() / max(n - freedom, 1.0)).sqrt())

    def forward(self, features: torch.Tensor) -> LogNormal:
        """Distribution of the sizes of cells, ``(n,)``.

        Parameters
        ----------
        features
            Shape ``(n, n_features)``.
        """
        mean = self.intercept.expand(len(features))
        if len(self.weight):
            mean = (mean + (features - self.center) @ self.weight).clamp(self.low, self.high)
        return LogNormal(mean, self.deviation.clamp(min=1e-6).expand_as(mean))
