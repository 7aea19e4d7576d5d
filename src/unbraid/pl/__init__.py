"""Pictures of embeddings, of training, of what is generated, and of scorecards."""

from unbraid.pl._latents import latents
from unbraid.pl._report import report
from unbraid.pl._scorecard import budget, scorecard
from unbraid.pl._training import training
from unbraid.pl._traversal import traversal

__all__ = ["budget", "latents", "report", "scorecard", "training", "traversal"]
