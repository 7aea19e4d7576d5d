"""The torch side of each family: a batch in, latents and named loss terms out."""

from unbraid.module._base import InnerLoop, Kind, Latents, SplitModule, Stage, on_present_rows, total_loss
from unbraid.module._contrastive import ContrastiveModule
from unbraid.module._linear import LinearModule

__all__ = [
    "ContrastiveModule",
    "InnerLoop",
    "Kind",
    "Latents",
    "LinearModule",
    "SplitModule",
    "Stage",
    "on_present_rows",
    "total_loss",
]
