"""Counts are split without loss, and the parts are independent given the rate."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

import unbraid as ub


@pytest.fixture
def mdata():
    rng = np.random.default_rng(0)
    rna = sparse.csr_matrix(rng.poisson(2.0, size=(3_000, 3)).astype(np.float32))
    return MuData({"rna": AnnData(rna), "prot": AnnData(rng.poisson(9.0, size=(3_000, 2)).astype(np.float32))})


def test_the_parts_add_up_and_nothing_else_changes(mdata):
    before = mdata["rna"].X.copy()
    ub.pp.split_counts(mdata, fraction=0.3)
    for adata in mdata.mod.values():
        one, two = adata.layers["train_counts"], adata.layers["test_counts"]
        assert abs((one + two) - adata.X).sum() == 0
        assert one.sum() / adata.X.sum() == pytest.approx(0.3, abs=0.02)
        assert one.dtype == adata.X.dtype
    assert (mdata["rna"].X != before).nnz == 0
    assert sparse.issparse(mdata["rna"].layers["test_counts"])


def test_the_parts_of_poisson_counts_are_independent(mdata):
    ub.pp.split_counts(mdata)
    one, two = (mdata["prot"].layers[key] for key in ("train_counts", "test_counts"))
    r = np.corrcoef(one[:, 0], two[:, 0])[0, 1]
    assert abs(r) < 3.3 / np.sqrt(3_000)
    assert one[:, 0].var() == pytest.approx(4.5, rel=0.1)  # Poisson again, of half the rate


def test_modalities_layers_keys_and_seed(mdata):
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    mdata["rna"].X = mdata["rna"].X * 0.5
    options = {"layers": {"rna": "counts"}, "keys_added": ("a", "b")}
    ub.pp.split_counts(mdata, ["rna"], **options, seed=1)
    first = mdata["rna"].layers["a"].copy()
    ub.pp.split_counts(mdata, ["rna"], **options, seed=1)
    assert (mdata["rna"].layers["a"] != first).nnz == 0
    ub.pp.split_counts(mdata, ["rna"], **options, seed=2)
    assert (mdata["rna"].layers["a"] != first).nnz > 0
    assert "a" not in mdata["prot"].layers


def test_mistakes_are_named_and_leave_nothing_behind(mdata):
    mdata["prot"].X = mdata["prot"].X + 0.5
    with pytest.raises(ValueError, match="'prot' has values that are no counts"):
        ub.pp.split_counts(mdata)
    assert "train_counts" not in mdata["rna"].layers
    with pytest.raises(KeyError, match="prot"):
        ub.pp.split_counts(mdata, ["protein"])
    with pytest.raises(KeyError, match="counts"):
        ub.pp.split_counts(mdata, layers={"rna": "counts"})
    with pytest.raises(ValueError, match="fraction"):
        ub.pp.split_counts(mdata, fraction=1.0)
