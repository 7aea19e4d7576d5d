"""What all models share."""

from unbraid.model.base._contrastive_model import ContrastiveModel
from unbraid.model.base._split_model import SplitModel

__all__ = ["ContrastiveModel", "SplitModel"]
