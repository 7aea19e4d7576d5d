"""From a MuData to batches: registration, presence masks, loaders, splits; and simulators with known truth."""

from unbraid.data import datasets, simulate
from unbraid.data._arrays import images, text, to_images, to_strings
from unbraid.data._dataset import CachedDataset, MultimodalDataset
from unbraid.data._fields import ModalityField, positions, registry_key
from unbraid.data._loader import MAX_VALIDATION_OBS, BlockSampler, MultimodalDataModule, block_loader, split_indices
from unbraid.data._manager import MultimodalManager, build_fields
from unbraid.data._pair_batches import PairDataset
from unbraid.data._pairs import Pairs, check_consistent, close_pairs, components, pairs_of_matrix, read_pairs

__all__ = [
    "MAX_VALIDATION_OBS",
    "BlockSampler",
    "CachedDataset",
    "ModalityField",
    "MultimodalDataModule",
    "MultimodalDataset",
    "MultimodalManager",
    "PairDataset",
    "Pairs",
    "block_loader",
    "build_fields",
    "check_consistent",
    "close_pairs",
    "components",
    "datasets",
    "images",
    "pairs_of_matrix",
    "positions",
    "read_pairs",
    "registry_key",
    "simulate",
    "split_indices",
    "text",
    "to_images",
    "to_strings",
]
