"""Convolutional networks of texts that are rows of token numbers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import interpolate


class TextEncoder(nn.Module):
    """Convolutional network from token numbers to codes.

    An embedding of the words, then ``n_layers`` convolutions over the positions, each of which halves their number
    (an odd one is rounded up) and doubles the filters, with ReLU after each, then a linear map. Padding is a word like
    others. MMVAE+ and IDMVAE run two-dimensional convolutions over positions and embedding instead, with batch norm;
    the dimensions of an embedding have no order, so here the convolutions run over the positions alone.

    Parameters
    ----------
    length
        Number of tokens of a text.
    n_vocabulary
        Number of words.
    n_out
        Features of the output.
    n_embedding
        Width of the embedding and filters of the first convolution.
    n_layers
        Number of convolutions.
    """

    def __init__(
        self, length: int, n_vocabulary: int, n_out: int, *, n_embedding: int = 128, n_layers: int = 3
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_vocabulary, n_embedding)
        layers, width = [], n_embedding
        for i in range(n_layers):
            layers += [nn.Conv1d(width, n_embedding * 2**i, 3, stride=2, padding=1), nn.ReLU()]
            width = n_embedding * 2**i
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(width * _lengths(length, n_layers)[-1], n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map texts to ``(n, n_out)``.

        Parameters
        ----------
        x
            Token numbers, shape ``(n, length)``, of any dtype; or probabilities of the words, such as a decoder's,
            shape ``(n, length, n_vocabulary)``, which the gradient goes through.
        """
        embedded = self.embedding(x.long()) if x.ndim == 2 else x @ self.embedding.weight
        return self.last(self.layers(embedded.transpose(1, 2)).flatten(1))


class TextDecoder(nn.Module):
    """Convolutional network from codes to logits of words: :class:`TextEncoder` the other way round.

    A linear map to the fewest positions, then ``n_layers`` times nearest-neighbour upsampling, a convolution and
    ReLU, then a linear map of every position to the vocabulary.

    Parameters
    ----------
    n_in
        Features of the input.
    length, n_vocabulary, n_embedding, n_layers
        As in :class:`TextEncoder`.
    """

    def __init__(self, n_in: int, length: int, n_vocabulary: int, *, n_embedding: int = 128, n_layers: int = 3) -> None:
        super().__init__()
        self.lengths = _lengths(length, n_layers)[::-1]
        widths = [n_embedding, *(n_embedding * 2**i for i in range(n_layers))][::-1]
        self.start = (widths[0], self.lengths[0])
        self.first = nn.Linear(n_in, self.start[0] * self.start[1])
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList([nn.Conv1d(before, after, 3, padding=1) for before, after in pairs])
        self.last = nn.Linear(n_embedding, n_vocabulary)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map ``(n, n_in)`` to logits ``(n, length * n_vocabulary)``, the words of a position side by side."""
        x = self.first(z).relu().view(-1, *self.start)
        for layer, length in zip(self.layers, self.lengths[1:], strict=True):
            x = layer(interpolate(x, size=length, mode="nearest")).relu()
        return self.last(x.transpose(1, 2)).flatten(1)


def _lengths(length: int, n_layers: int) -> list[int]:
    """Number of positions from the most to the fewest."""
    lengths = [length]
    for _ in range(n_layers):
        lengths.append((lengths[-1] + 1) // 2)
    return lengths
