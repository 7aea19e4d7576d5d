"""Laws of the block sampler and of splits."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unbraid.data import BlockSampler, split_indices

sizes = {"n_obs": st.integers(0, 150), "batch_size": st.integers(1, 40)}
orders = {"shuffle": st.booleans(), "seed": st.integers(0, 9), "epoch": st.integers(0, 9)}


def blocks_of(n_obs, batch_size, epoch=0, **options):
    sampler = BlockSampler(np.arange(n_obs) * 3 + 1, batch_size, **options)
    sampler.set_epoch(epoch)
    blocks = [block.tolist() for block in sampler]
    assert len(sampler) == len(blocks)
    return blocks


def flat(blocks):
    return [cell for block in blocks for cell in block]


class Rank(BlockSampler):
    """One of several processes."""

    rank, world = 0, 1

    @property
    def _processes(self):
        return self.rank, self.world


# ---- the sampler ------------------------------------------------------------------------------


@given(**sizes, **orders)
def test_every_cell_exactly_once_in_blocks_of_equal_size(n_obs, batch_size, shuffle, seed, epoch):
    blocks = blocks_of(n_obs, batch_size, epoch, shuffle=shuffle, seed=seed)
    assert sorted(flat(blocks)) == [3 * i + 1 for i in range(n_obs)]
    lengths = [len(block) for block in blocks]
    assert len(lengths) == -(-n_obs // batch_size)
    assert all(0 < length <= batch_size for length in lengths)
    assert not lengths or max(lengths) - min(lengths) <= 1
    if not shuffle:
        assert flat(blocks) == sorted(flat(blocks))


@given(**sizes, **orders)
def test_dropping_the_last_leaves_exact_blocks(n_obs, batch_size, shuffle, seed, epoch):
    blocks = blocks_of(n_obs, batch_size, epoch, shuffle=shuffle, seed=seed, drop_last=True)
    if n_obs >= batch_size:
        assert [len(block) for block in blocks] == [batch_size] * (n_obs // batch_size)
    else:  # less than one block: all there is
        assert sorted(flat(blocks)) == [3 * i + 1 for i in range(n_obs)]
    assert len(set(flat(blocks))) == len(flat(blocks))


@given(seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_seed_and_epoch_alone_determine_the_order(seed, epoch):
    order = lambda seed, epoch: flat(blocks_of(50, 8, epoch, shuffle=True, seed=seed))
    first = order(seed, epoch)
    np.random.default_rng().random()
    assert order(seed, epoch) == first
    assert order(seed, epoch + 1) != first
    assert order(seed + 1, epoch) != first


@given(**sizes, **orders, drop_last=st.booleans(), world=st.integers(1, 5))
def test_processes_get_equal_shares_of_different_cells(n_obs, batch_size, shuffle, seed, epoch, drop_last, world):
    shares = []
    for rank in range(world):
        sampler = Rank(np.arange(n_obs), batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed)
        sampler.rank, sampler.world = rank, world
        sampler.set_epoch(epoch)
        shares.append([block.tolist() for block in sampler])
        assert len(sampler) == len(shares[-1])
    assert len({tuple(map(len, share)) for share in shares}) == 1
    cells = [cell for share in shares for cell in flat(share)]
    assert len(set(cells)) == len(cells)
    if not drop_last:
        assert len(cells) == n_obs // world * world


@pytest.mark.parametrize("batch_size", [0, -3, 2.5])
def test_a_block_holds_at_least_one_cell(batch_size):
    with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1"):
        BlockSampler(np.arange(5), batch_size)


# ---- the split --------------------------------------------------------------------------------

fraction = st.one_of(st.none(), st.floats(0, 1))


@given(n_obs=st.integers(1, 300), train=fraction, validation=fraction, seed=st.integers(0, 9))
def test_parts_are_disjoint_complete_and_of_the_size_asked_for(n_obs, train, validation, seed):
    assume((train or 0) + (validation or 0) <= 1)
    assume(round(n_obs if train is None else train * n_obs) > 0)
    assume(train is not None or round((validation or 0) * n_obs) < n_obs)
    parts = split_indices(n_obs, train_size=train, validation_size=validation, seed=seed)
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(n_obs))
    for part in parts.values():
        assert (np.diff(part) > 0).all()
        assert part.dtype == np.int64
    if train is not None:
        assert abs(len(parts["train"]) - train * n_obs) <= 0.5
    if validation is not None:
        assert abs(len(parts["validation"]) - validation * n_obs) <= 1
    if train is None and validation is None:
        assert len(parts["validation"]) == n_obs // 10
    if train is None or validation is None:
        assert len(parts["test"]) == 0
    again = split_indices(n_obs, train_size=train, validation_size=validation, seed=seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_another_seed_is_another_split():
    assert not np.array_equal(*(split_indices(100, seed=seed)["train"] for seed in (0, 1)))


def test_large_data_validate_on_two_thousand_cells():
    assert len(split_indices(100_000)["validation"]) == 2_000


@pytest.mark.parametrize("kind", [list, pd.Categorical])
def test_labels_make_the_parts(kind):
    words = ["train", "val", "test", "validation", "Train", "TEST"]
    parts = split_indices(6, labels=pd.Series(kind(words), name="split"))
    assert {part: cells.tolist() for part, cells in parts.items()} == {
        "train": [0, 4],
        "validation": [1, 3],
        "test": [2, 5],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 1.5}, "`train_size` is a fraction between 0 and 1, got 1.5"),
        ({"train_size": "most"}, "`train_size` is a fraction between 0 and 1, got 'most'"),
        ({"train_size": float("nan")}, "`train_size` is a fraction"),
        ({"validation_size": -0.1}, "`validation_size` is a fraction"),
        ({"train_size": 0.8, "validation_size": 0.4}, "more than 1"),
        ({"train_size": 0.0}, "No cell is left to train on"),
        ({"validation_size": 1.0}, "No cell is left to train on"),
        ({"labels": pd.Series(["train", "dev"], name="split")}, r"column 'split' must hold.*found \['dev'\]"),
        ({"labels": pd.Series(["train", None], name="split")}, "column 'split' must hold"),
        ({"labels": pd.Series(["test", "val"], name="split")}, "No cell is left to train on"),
        ({"labels": pd.Series(["train", "val"]), "train_size": 0.5}, "leave out `train_size`"),
    ],
)
def test_impossible_splits_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        split_indices(2, **options)
