"""Preparation of a MuData."""

from unbraid.pp._split import split

__all__ = ["split"]
