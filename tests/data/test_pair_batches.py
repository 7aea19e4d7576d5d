import numpy as np
import pytest
import torch

from unbraid.data import MultimodalDataModule, PairDataset, Pairs
from unbraid.model import DL2


@pytest.fixture
def dataset(make_mdata):
    mdata = make_mdata(40)
    DL2.setup_mudata(mdata)
    return DL2(mdata, n_clusters=2).adata_manager.create_torch_dataset()


MUST = np.array([[0, 5], [1, 6], [2, 30]])
CANNOT = np.array([[3, 7], [4, 31]])


def numbers(batch: dict) -> np.ndarray:
    return batch["index"].numpy().reshape(2, -1).T


def test_pairs_lie_beside_the_cells(dataset):
    paired = PairDataset(dataset, Pairs(MUST, CANNOT), np.arange(40), n_pairs=10)
    batch = paired[[8, 9]]
    assert batch["index"].tolist() == [8, 9]
    assert sorted(map(tuple, np.sort(numbers(batch["must_link"]), axis=1))) == sorted(map(tuple, MUST))
    assert sorted(map(tuple, np.sort(numbers(batch["cannot_link"]), axis=1))) == sorted(map(tuple, CANNOT))
    for name in dataset.modalities:
        torch.testing.assert_close(batch["must_link"]["x"][name], dataset[batch["must_link"]["index"]]["x"][name])


def test_only_pairs_of_training_cells(dataset):
    paired = PairDataset(dataset, Pairs(MUST, CANNOT), np.arange(20), n_pairs=10)
    batch = paired[[8, 9]]
    assert len(numbers(batch["must_link"])) == 2
    assert len(numbers(batch["cannot_link"])) == 1
    nothing = PairDataset(dataset, Pairs(MUST, CANNOT), np.arange(8, 20), n_pairs=10)
    assert not {"must_link", "cannot_link"} & set(nothing[[8, 9]])


def test_the_same_block_has_the_same_pairs_and_another_block_others(dataset):
    pairs = Pairs(np.empty((0, 2), int), np.stack([np.arange(20), np.arange(20, 40)], axis=1))
    paired = PairDataset(dataset, pairs, np.arange(40), n_pairs=3, seed=1)
    first = numbers(paired[[8, 9]]["cannot_link"])
    np.testing.assert_array_equal(first, numbers(paired[[8, 9]]["cannot_link"]))
    others = [numbers(paired[[8, k]]["cannot_link"]).tolist() for k in range(10, 20)]
    assert any(other != first.tolist() for other in others)
    drawn = {tuple(sorted(pair)) for k in range(40) for pair in numbers(paired[[k]]["cannot_link"])}
    assert len(drawn) == 20  # every pair comes up


def test_validation_has_none(dataset):
    parts = {"train": np.arange(20), "validation": np.arange(20, 40), "test": np.arange(0)}
    paired = PairDataset(dataset, Pairs(MUST, CANNOT), parts["train"], n_pairs=10)
    module = MultimodalDataModule(paired, parts, 10)
    assert all("must_link" in batch for batch in module.train_dataloader())
    assert not any("must_link" in batch for batch in module.val_dataloader())
    assert all("must_link" in batch for batch in module.whole_dataloader())
    assert not any("must_link" in batch for batch in module.whole_dataloader("validation"))
