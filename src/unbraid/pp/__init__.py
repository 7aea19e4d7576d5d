"""Preparation of data."""

from unbraid.pp._mol2vec import Mol2vec
from unbraid.pp._molecular_groups import molecular_groups
from unbraid.pp._molecules import molecules
from unbraid.pp._pairs_from_labels import add_pairs, pairs_from_labels
from unbraid.pp._split import split
from unbraid.pp._split_counts import split_counts

__all__ = ["Mol2vec", "add_pairs", "molecular_groups", "molecules", "pairs_from_labels", "split", "split_counts"]
