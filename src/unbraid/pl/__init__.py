"""Pictures of embeddings, of training, of what is generated and what is found, and of scorecards."""

from unbraid.pl._latents import latents
from unbraid.pl._report import report
from unbraid.pl._retrieval import retrieval
from unbraid.pl._scorecard import budget, scorecard
from unbraid.pl._training import training
from unbraid.pl._traversal import traversal

__all__ = ["budget", "latents", "report", "retrieval", "scorecard", "training", "traversal"]
