"""Fully connected networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn

if TYPE_CHECKING:
    import torch


class MLP(nn.Module):
    """Linear layers with ReLU between them and nothing after the last.

    Parameters
    ----------
    n_in, n_out
        Features of the input and of the output.
    n_hidden
        Width of the hidden layers.
    n_layers
        Number of linear layers; 1 is a linear map.
    norm
        ``"layer"`` puts a layer norm before every ReLU.
    dropout
        Dropout rate after every ReLU.
    weight_std
        Standard deviation of normal weights, with biases as PyTorch draws them; None leaves both to PyTorch.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        n_hidden: int = 512,
        n_layers: int = 2,
        norm: Literal["layer"] | None = None,
        dropout: float = 0.0,
        weight_std: float | None = None,
    ) -> None:
        super().__init__()
        if n_layers < 1:
            raise ValueError(f"`n_layers` must be at least 1, got {n_layers}.")
        widths = [n_in, *[n_hidden] * (n_layers - 1), n_out]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers.append(linear := nn.Linear(a, b))
            if weight_std is not None:
                nn.init.normal_(linear.weight, std=weight_std)
            if i < n_layers - 1:
                layers += [nn.LayerNorm(b)] if norm == "layer" else []
                layers.append(nn.ReLU())
                layers += [nn.Dropout(dropout)] if dropout else []
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(n, n_in)`` to ``(n, n_out)``."""
        return self.layers(x)
