"""The models: one file per method, each after its paper's method section."""

from unbraid.model import base
from unbraid.model._clip import CLIP
from unbraid.model._disentangled_ssl import DisentangledSSL
from unbraid.model._linear_split import LinearSplit

__all__ = ["CLIP", "DisentangledSSL", "LinearSplit", "base"]
