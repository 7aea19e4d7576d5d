"""Residual networks of images that lie flat in rows."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import interpolate, leaky_relu

if TYPE_CHECKING:
    from collections.abc import Sequence

_SLOPE = 0.2  # of the leaky ReLU
_RESIDUAL = 0.1  # weight of a block's convolutions beside its shortcut


class ResNetEncoder(nn.Module):
    """Residual network from images to codes, as in MMVAE+ and IDMVAE [1]_ [2]_; no batch norm.

    A 3x3 convolution and a residual block of ``n_filters``, then ``n_blocks`` times average pooling that halves
    height and width (an odd one is rounded up) and a residual block that doubles the filters, then a linear map.

    Parameters
    ----------
    shape
        ``(channels, height, width)`` of an image.
    n_out
        Features of the output.
    n_blocks
        Number of halvings. IDMVAE has 3 for the digits of PolyMNIST-Quadrant (64 pixels) and 5 for birds, MMVAE+ 2 for
        PolyMNIST (28 pixels).
    n_filters
        Filters of the first block.
    max_filters
        Filters no longer double above it; 1,024 for birds.

    Raises
    ------
    ValueError
        If ``shape`` is not that of an image, or has fewer pixels than can be halved so often.

    References
    ----------
    .. [1] Palumbo et al. (2023), MMVAE+: enhancing the generative quality of multimodal VAEs without compromises. ICLR.
    .. [2] Zhang et al. (2026), Disentanglement of variations with multimodal generative modeling, appendix B.2. ICLR.
    """

    def __init__(
        self, shape: Sequence[int], n_out: int, *, n_blocks: int = 3, n_filters: int = 64, max_filters: int = 512
    ) -> None:
        super().__init__()
        self.shape, sizes = tuple(shape), _sizes(shape, n_blocks)
        filters = _filters(n_filters, max_filters, n_blocks)
        self.first = nn.Conv2d(shape[0], filters[0], 3, padding=1)
        layers: list[nn.Module] = [_ResidualBlock(filters[0], filters[0])]
        for before, after in zip(filters[:-1], filters[1:], strict=True):
            layers += [nn.AvgPool2d(3, stride=2, padding=1), _ResidualBlock(before, after)]
        self.blocks = nn.Sequential(*layers)
        self.last = nn.Linear(filters[-1] * prod(sizes[-1]), n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map flat images ``(n, channels * height * width)`` to ``(n, n_out)``."""
        return self.last(self.blocks(self.first(x.reshape(-1, *self.shape))).flatten(1))


class ResNetDecoder(nn.Module):
    """Residual network from codes to images: :class:`ResNetEncoder` the other way round.

    A linear map to the smallest images, then ``n_blocks`` times a residual block that halves the filters and
    nearest-neighbour upsampling, then a residual block of ``n_filters``, leaky ReLU and a 3x3 convolution. Nothing
    bounds the output.

    Parameters
    ----------
    n_in
        Features of the input.
    shape
        ``(channels, height, width)`` of an image.
    n_blocks, n_filters, max_filters
        As in :class:`ResNetEncoder`.

    Raises
    ------
    ValueError
        If ``shape`` is not that of an image, or has fewer pixels than can be halved so often.
    """

    def __init__(
        self, n_in: int, shape: Sequence[int], *, n_blocks: int = 3, n_filters: int = 64, max_filters: int = 512
    ) -> None:
        super().__init__()
        self.sizes = _sizes(shape, n_blocks)[::-1]
        filters = _filters(n_filters, max_filters, n_blocks)[::-1]
        self.start = (filters[0], *self.sizes[0])
        self.first = nn.Linear(n_in, prod(self.start))
        pairs = zip(filters[:-1], filters[1:], strict=True)
        self.blocks = nn.ModuleList([_ResidualBlock(before, after) for before, after in pairs])
        self.final_block = _ResidualBlock(filters[-1], filters[-1])
        self.last = nn.Conv2d(filters[-1], shape[0], 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map ``(n, n_in)`` to flat images ``(n, channels * height * width)``."""
        x = self.first(z).view(-1, *self.start)
        for block, size in zip(self.blocks, self.sizes[1:], strict=True):
            x = interpolate(block(x), size=size, mode="nearest")
        return self.last(leaky_relu(self.final_block(x), _SLOPE)).flatten(1)


class _ResidualBlock(nn.Module):
    """Shortcut plus a tenth of two convolutions, each after a leaky ReLU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        n_hidden = min(n_in, n_out)
        self.first = nn.Conv2d(n_in, n_hidden, 3, padding=1)
        self.second = nn.Conv2d(n_hidden, n_out, 3, padding=1)
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change = self.second(leaky_relu(self.first(leaky_relu(x, _SLOPE)), _SLOPE))
        return self.shortcut(x) + _RESIDUAL * change


def _sizes(shape: Sequence[int], n_blocks: int) -> list[tuple[int, int]]:
    """Height and width from the largest to the smallest."""
    if len(shape) != 3:
        raise ValueError(f"`shape` must be (channels, height, width), got {tuple(shape)}.")
    sizes = [(int(shape[1]), int(shape[2]))]
    for _ in range(n_blocks):
        if max(sizes[-1]) < 2:
            raise ValueError(f"Images of `shape` {tuple(shape)} cannot be halved {n_blocks} times: lower `n_blocks`.")
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def _filters(n_filters: int, max_filters: int, n_blocks: int) -> list[int]:
    return [min(n_filters * 2**i, max_filters) for i in range(n_blocks + 1)]
