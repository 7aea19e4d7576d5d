"""Preparation of data."""

from unbraid.pp._split import split
from unbraid.pp._split_counts import split_counts

__all__ = ["split", "split_counts"]
