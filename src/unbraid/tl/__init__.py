"""What embeddings say about cells, features and each other. For any embedding, whichever model made it."""

from unbraid.tl._feature_verdict import feature_verdict
from unbraid.tl._modality_weights import modality_weights
from unbraid.tl._support import support

__all__ = ["feature_verdict", "modality_weights", "support"]
