"""What all models share."""

from unbraid.model.base._clustering_model import ClusteringModel
from unbraid.model.base._clusters import ClusterMixin
from unbraid.model.base._contrastive_model import ContrastiveModel
from unbraid.model.base._disentangled_model import DisentangledModel
from unbraid.model.base._generative_model import GenerativeModel, Prediction
from unbraid.model.base._split_model import SplitModel

__all__ = [
    "ClusterMixin",
    "ClusteringModel",
    "ContrastiveModel",
    "DisentangledModel",
    "GenerativeModel",
    "Prediction",
    "SplitModel",
]
