"""Multimodal data taken apart: what modalities share and what is specific to each."""

from importlib.metadata import version

from scvi import settings

from unbraid import data, metrics, model, nn, objectives, pl, pp, tl

__all__ = ["data", "metrics", "model", "nn", "objectives", "pl", "pp", "settings", "tl"]
__version__ = version("unbraid")
