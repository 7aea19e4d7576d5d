"""Preparation of data."""

from unbraid.pp._pairs_from_labels import add_pairs, pairs_from_labels
from unbraid.pp._split import split
from unbraid.pp._split_counts import split_counts

__all__ = ["add_pairs", "pairs_from_labels", "split", "split_counts"]
