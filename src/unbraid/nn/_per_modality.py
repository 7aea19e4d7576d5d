"""One network per modality, under any name that a modality may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class PerModality(nn.Module):
    """A mapping from modality to network.

    Unlike :class:`torch.nn.ModuleDict` it takes every name, dots and ``"type"`` included.

    Parameters
    ----------
    networks
        Network of every modality.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(networks)
        self.networks = nn.ModuleList(networks.values())

    def __getitem__(self, modality: str) -> nn.Module:
        return self.networks[self.names.index(modality)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)
