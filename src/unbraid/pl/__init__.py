"""Pictures of embeddings and of training, for any MuData."""

from unbraid.pl._latents import latents
from unbraid.pl._training import training

__all__ = ["latents", "training"]
