"""What embeddings say about cells, features and each other. For any embedding, whichever model made it."""

from unbraid.tl._constrained_kmeans import constrained_kmeans
from unbraid.tl._counterfactual import counterfactual, counterfactual_distance
from unbraid.tl._feature_verdict import feature_verdict
from unbraid.tl._match_confidence import MatchConfidence
from unbraid.tl._modality_weights import modality_weights
from unbraid.tl._relevant_components import relevant_components
from unbraid.tl._retrieval_index import Hits, RetrievalIndex, build_index
from unbraid.tl._retrieve import retrieve
from unbraid.tl._suggest_pairs import suggest_pairs
from unbraid.tl._support import support
from unbraid.tl._trusted_pairs import trusted_pairs

__all__ = [
    "Hits",
    "MatchConfidence",
    "RetrievalIndex",
    "build_index",
    "constrained_kmeans",
    "counterfactual",
    "counterfactual_distance",
    "feature_verdict",
    "modality_weights",
    "relevant_components",
    "retrieve",
    "suggest_pairs",
    "support",
    "trusted_pairs",
]
