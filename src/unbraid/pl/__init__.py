"""Pictures of embeddings, of training and of scorecards, for any MuData."""

from unbraid.pl._latents import latents
from unbraid.pl._report import report
from unbraid.pl._scorecard import budget, scorecard
from unbraid.pl._training import training

__all__ = ["budget", "latents", "report", "scorecard", "training"]
