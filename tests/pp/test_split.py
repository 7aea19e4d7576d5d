"""``ub.pp.split``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unbraid as ub


@pytest.fixture
def mdata():
    mdata = ub.data.simulate.citeseq(n_obs=200, n_genes=10, n_proteins=6, seed=0)
    mdata.obs["donor"] = [f"d{i % 10}" for i in range(200)]
    return mdata


def test_fractions_hold_and_the_seed_decides(mdata):
    ub.pp.split(mdata, fractions=(0.7, 0.2, 0.1))
    assert mdata.obs["split"].value_counts().to_dict() == {"train": 140, "val": 40, "test": 20}
    first = mdata.obs["split"].copy()
    ub.pp.split(mdata, fractions=(0.7, 0.2, 0.1))
    assert (mdata.obs["split"] == first).all()
    ub.pp.split(mdata, fractions=(0.7, 0.2, 0.1), seed=1)
    assert (mdata.obs["split"] != first).any()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 40), min_size=3, max_size=12), seed=st.integers(0, 5))
def test_no_group_is_on_two_sides_and_no_part_is_empty(sizes, seed):
    n_obs = sum(sizes)
    mdata = ub.data.simulate.citeseq(n_obs=max(n_obs, 12), n_genes=10, n_proteins=6, seed=0)
    donors = np.repeat(np.arange(len(sizes)), sizes)
    mdata.obs["donor"] = np.r_[donors, np.full(mdata.n_obs - n_obs, 0)]
    ub.pp.split(mdata, by="donor", seed=seed, fractions=(0.6, 0.2, 0.2))
    assert (mdata.obs.groupby("donor")["split"].nunique() == 1).all()


def test_training_takes_the_split(mdata):
    ub.pp.split(mdata, by="donor", key_added="part")
    ub.model.CLIP.setup_mudata(mdata)
    model = ub.model.CLIP(mdata, n_shared=4, n_hidden=8)
    model.train(max_epochs=1, split_key="part", progress_bar=False)
    assert set(mdata.obs["part"].to_numpy()[model.train_indices]) == {"train"}
    assert set(mdata.obs["part"].to_numpy()[model.validation_indices]) == {"val"}


def test_mistakes_are_named(mdata):
    with pytest.raises(KeyError, match="donor"):
        ub.pp.split(mdata, by="doner")
    with pytest.raises(ValueError, match="sum to 1"):
        ub.pp.split(mdata, fractions=(0.5, 0.1, 0.1))
    mdata.obs["two"] = np.arange(200) % 2
    with pytest.raises(ValueError, match="2 groups cannot fill 3 parts"):
        ub.pp.split(mdata, by="two")
    mdata.obs["holes"] = [None] + ["x"] * 199
    with pytest.raises(ValueError, match="1 cells have no value"):
        ub.pp.split(mdata, by="holes")
