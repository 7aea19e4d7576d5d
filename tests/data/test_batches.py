"""Every row of every batch belongs to the cell whose name it stands beside, however the data lie."""

import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

import unbraid as ub
from unbraid.data import BlockSampler, CachedDataset, block_loader


def dense(values):
    return np.asarray(values.toarray() if sp.issparse(values) else values, dtype=np.float32)


def assert_rows_belong_to_their_cells(mdata, batch):
    """Compare a batch with the modalities by cell name, without any of the code under test."""
    names = mdata.obs_names[batch["index"].numpy()]
    for m, adata in mdata.mod.items():
        truth = pd.DataFrame(dense(adata.X), index=adata.obs_names)
        has = names.isin(adata.obs_names)
        np.testing.assert_array_equal(batch["mask"][m], has)
        np.testing.assert_array_equal(batch["x"][m][has], truth.loc[names[has]])
        assert not batch["x"][m][~has].any()
    np.testing.assert_array_equal(batch["batch"], pd.Categorical(mdata.obs["batch"]).codes[batch["index"].numpy()])


INDICES = [np.arange(60), np.arange(60)[::-1], [3, 17, 5], [7, 7, 7, 0], [59], 4]


@pytest.mark.parametrize("modalities", [("rna", "prot"), ("rna", "prot", "atac")])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_rows_belong_to_their_cells(make_mdata, dataset_of, modalities, missing):
    mdata = make_mdata(modalities=modalities, missing=missing)
    dataset = dataset_of(mdata, batch_key="batch")
    for indices in INDICES:
        batch = dataset[indices]
        np.testing.assert_array_equal(batch["index"], np.atleast_1d(indices))
        assert_rows_belong_to_their_cells(mdata, batch)


@pytest.mark.parametrize("seed", range(3))
def test_rows_belong_to_their_cells_in_any_order(make_mdata, remake, dataset_of, seed):
    mdata, rng = make_mdata(missing=0.3), np.random.default_rng(seed)
    permuted = mdata[rng.permutation(60)].copy()
    shuffled = {m: adata[rng.permutation(adata.n_obs)].copy() for m, adata in mdata.mod.items()}
    apart = remake(mdata, rng.permutation(mdata.obs_names), **shuffled)
    swapped = mudata.MuData(dict(reversed(shuffled.items())), obs=apart.obs.copy())
    for data in (permuted, apart, swapped):
        dataset = dataset_of(data, batch_key="batch")
        for batch in block_loader(dataset, BlockSampler(np.arange(60), 11, shuffle=True, seed=seed)):
            assert_rows_belong_to_their_cells(data, batch)
    orders = [list(adata.obs_names) for adata in apart.mod.values()]
    assert orders[0] != [name for name in apart.obs_names if name in orders[0]]  # the test is about something


def test_rows_belong_to_their_cells_after_a_subset_in_place(make_mdata, dataset_of):
    mdata = make_mdata(missing=0.3)
    mdata["rna"]._inplace_subset_obs(np.arange(0, mdata["rna"].n_obs, 2))
    mdata.update()
    assert_rows_belong_to_their_cells(mdata, dataset_of(mdata, batch_key="batch")[np.arange(mdata.n_obs)])


def test_only_registered_modalities_come_in_the_order_of_the_setup(make_mdata, dataset_of):
    mdata = make_mdata(modalities=("rna", "prot", "atac"))
    dataset = dataset_of(mdata, modalities=["atac", "rna"])
    assert dataset.modalities == list(dataset[[0]]["x"]) == ["atac", "rna"]
    assert dataset.presence.shape == (60, 2)


# ---- formats ----------------------------------------------------------------------------------

FORMS = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "dense": np.ascontiguousarray,
    "fortran": np.asfortranarray,
}
DTYPES = ["int8", "uint16", "int64", "float32", "float64"]


def assert_same_batches(dataset, reference):
    for indices in INDICES:
        batch, expected = dataset[indices], reference[indices]
        for part in ("x", "mask"):
            assert batch[part].keys() == expected[part].keys()
            for m in expected[part]:
                assert batch[part][m].dtype == expected[part][m].dtype
                assert torch.equal(batch[part][m], expected[part][m])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_format_and_dtype_do_not_matter(make_mdata, dataset_of, form, dtype):
    mdata = make_mdata(missing=0.3)
    reference = dataset_of(mdata)
    other = make_mdata(missing=0.3)
    other["rna"].X = FORMS[form](dense(other["rna"].X).astype(dtype))
    assert_same_batches(dataset_of(other), reference)


@pytest.mark.parametrize(
    ("place", "form"), [*(("layer", form) for form in FORMS), *(("obsm", form) for form in (*FORMS, "frame"))]
)
def test_layers_and_embeddings_hold_values_as_well(make_mdata, dataset_of, place, form):
    mdata = make_mdata(missing=0.3)
    reference = dataset_of(mdata)
    rna, values = mdata["rna"], dense(mdata["rna"].X)
    if form == "frame":
        values = pd.DataFrame(values, index=rna.obs_names, columns=[f"PC{i}" for i in range(20)])
    else:
        values = FORMS[form](values)
    if place == "layer":
        rna.layers["counts"] = values
    else:
        rna.obsm["X_some"] = values
    rna.X = np.full(rna.shape, np.nan)  # not looked at
    mdata = mudata.MuData(dict(mdata.mod), obs=mdata.obs)
    assert_same_batches(dataset_of(mdata, layers={"rna": "counts" if place == "layer" else "obsm:X_some"}), reference)


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_backed_data_give_the_same_batches(make_mdata, dataset_of, tmp_path, form):
    mdata = make_mdata(missing=0.3)
    for adata in mdata.mod.values():
        adata.X = FORMS[form](dense(adata.X))
    mdata.write(tmp_path / "data.h5mu")
    backed = mudata.read_h5mu(tmp_path / "data.h5mu", backed="r")
    assert not isinstance(backed["rna"].X, np.ndarray)
    assert not sp.issparse(backed["rna"].X)
    reference = dataset_of(mdata, batch_key="batch")
    dataset = dataset_of(backed, batch_key="batch")
    assert_same_batches(dataset, reference)
    assert_rows_belong_to_their_cells(mdata, dataset[np.arange(60)])


@pytest.mark.parametrize("name", ["sc.RNA", "type", "a b", "modules", "x"])
def test_modalities_of_any_name(make_mdata, dataset_of, tmp_path, name):
    mdata = make_mdata(modalities=(name, "prot"), missing=0.2)
    dataset = dataset_of(mdata, batch_key="batch")
    assert_rows_belong_to_their_cells(mdata, dataset[np.arange(60)])
    mdata.write(tmp_path / "data.h5mu")
    assert_same_batches(dataset_of(mudata.read_h5mu(tmp_path / "data.h5mu"), batch_key="batch"), dataset)


# ---- masks, size factors, covariates ----------------------------------------------------------


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -7.0, 1e300])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_mask_is_the_same_as_absence(make_mdata, remake, dataset_of, garbage, sparse):
    whole = make_mdata()
    measured = np.arange(60) % 3 != 0
    rna = whole["rna"]
    absent = remake(whole, rna=rna[measured].copy())
    values = rna.X.toarray().astype(np.float64)
    values[~measured] = garbage
    padded = AnnData(sp.csr_matrix(values) if sparse else values, rna.obs.assign(ok=measured), rna.var)
    padded = remake(whole, rna=padded)
    reference, dataset = dataset_of(absent), dataset_of(padded, mask_keys={"rna": "ok"})
    assert_same_batches(dataset, reference)
    np.testing.assert_array_equal(dataset.presence, reference.presence)


def test_size_factors_stand_beside_their_cells(make_mdata, dataset_of):
    mdata = make_mdata(missing=0.3)
    for adata in mdata.mod.values():
        adata.obs["size"] = np.arange(1, adata.n_obs + 1)
    mdata["rna"].obs["other"] = 2.5
    for key, expected in {
        "size": {"rna": "size", "prot": "size"},
        "other": {"rna": "other"},
    }.items():
        for given in (key, expected):
            batch = dataset_of(mdata, size_factor_key=given)[np.arange(60)]
            assert set(batch["size_factor"]) == set(expected)
            for m, column in expected.items():
                sizes = mdata[m].obs[column].reindex(mdata.obs_names).fillna(1.0)
                np.testing.assert_array_equal(batch["size_factor"][m], sizes.astype(np.float32))
                assert batch["size_factor"][m].dtype == torch.float32
    assert dataset_of(mdata)[[0]]["size_factor"] == {}


def test_covariates_are_codes_and_floats(make_mdata, dataset_of):
    mdata = make_mdata()
    mdata.obs["age"], mdata.obs["dose"] = np.arange(60), pd.Series([f"{i}.5" for i in range(60)], mdata.obs_names)
    mdata.obs["sex"], mdata.obs["lane"] = ["m", "f"] * 30, [3, 1, 2] * 20
    batch = dataset_of(
        mdata,
        batch_key="lane",
        categorical_covariate_keys=["sex", "batch"],
        continuous_covariate_keys=["age", "dose"],
    )[[5, 2]]
    assert {key: batch[key].dtype for key in ("batch", "categorical", "continuous", "index")} == {
        "batch": torch.int64,
        "categorical": torch.int64,
        "continuous": torch.float32,
        "index": torch.int64,
    }
    assert batch["batch"].tolist() == [1, 1]
    assert batch["categorical"][:, 0].tolist() == [0, 1]
    assert batch["continuous"].tolist() == [[5.0, 5.5], [2.0, 2.5]]


def test_without_covariates_there_are_columns_of_none(make_mdata, dataset_of):
    batch = dataset_of(make_mdata())[[1, 2, 3]]
    assert batch["batch"].tolist() == [0, 0, 0]
    assert batch["categorical"].shape == batch["continuous"].shape == (3, 0)


def test_values_are_float32_and_masks_boolean(make_mdata, dataset_of):
    batch = dataset_of(make_mdata(missing=0.2))[np.arange(60)]
    assert {x.dtype for x in batch["x"].values()} == {torch.float32}
    assert {mask.dtype for mask in batch["mask"].values()} == {torch.bool}


# ---- loaders ----------------------------------------------------------------------------------


def test_a_loader_gives_whole_blocks_and_leaves_the_random_state_alone(make_mdata, dataset_of):
    dataset = dataset_of(make_mdata(missing=0.2))
    before = torch.get_rng_state()
    batches = list(block_loader(dataset, BlockSampler(np.arange(60), 16)))
    assert torch.equal(before, torch.get_rng_state())
    assert [len(batch["index"]) for batch in batches] == [15] * 4
    for batch in batches:
        expected = dataset[batch["index"]]
        for m in dataset.modalities:
            assert torch.equal(batch["x"][m], expected["x"][m])


def test_batches_do_not_share_memory_with_the_data(make_mdata, dataset_of):
    mdata = make_mdata()
    mdata["prot"].X = np.ascontiguousarray(mdata["prot"].X)
    before = mdata["prot"].X.copy()
    dataset = dataset_of(mdata)
    for indices in INDICES:
        for x in dataset[indices]["x"].values():
            x += 1
    np.testing.assert_array_equal(mdata["prot"].X, before)


def test_the_data_module_feeds_the_parts(make_mdata, dataset_of):
    dataset = dataset_of(make_mdata(missing=0.2))
    parts = ub.data.split_indices(60, seed=3)
    module = ub.data.MultimodalDataModule(dataset, parts, 20, seed=5)
    cells = lambda loader: np.concatenate([batch["index"] for batch in loader])
    train, inner, validation = (
        cells(loader) for loader in (module.train_dataloader(), module.inner_dataloader(), module.val_dataloader())
    )
    assert sorted(train) == sorted(inner) == list(parts["train"])
    assert list(train) != list(inner)
    assert list(validation) == list(parts["validation"])
    assert ub.data.MultimodalDataModule(dataset, {**parts, "validation": np.array([], int)}, 20).val_dataloader() == []


# ---- cells in memory --------------------------------------------------------------------------


@pytest.fixture
def cached():
    """Cells 9, 2 and 5 of ten, each holding its own number."""
    numbers = np.array([9, 2, 5])
    own = torch.from_numpy(numbers)
    return CachedDataset({"x": {"a": own[:, None] * 10.0, "deep": {"b": own}}, "index": own}, numbers, 10)


@pytest.mark.parametrize("indices", [[2], [9, 5, 2], [5, 5], [-1, 2], np.array([2, 9]), 5, torch.tensor([5, 9]), []])
def test_cells_in_memory_come_by_their_numbers(cached, indices):
    expected = np.atleast_1d(np.asarray(indices)) % 10
    batch = cached[indices]
    assert batch.keys() == {"x", "index"}
    np.testing.assert_array_equal(batch["index"], expected)
    np.testing.assert_array_equal(batch["x"]["deep"]["b"], expected)
    np.testing.assert_array_equal(batch["x"]["a"], expected[:, None] * 10)
    assert len(cached) == 10


@pytest.mark.parametrize("indices", [[3], [2, 3], 0])
def test_cells_that_are_not_in_memory_are_refused(cached, indices):
    with pytest.raises(IndexError, match="Not all of these cells are in memory"):
        cached[indices]
    with pytest.raises(IndexError):
        cached[[10]]


def test_cells_in_memory_feed_a_data_module(make_mdata, dataset_of):
    dataset = dataset_of(make_mdata(missing=0.2))
    parts = ub.data.split_indices(60, seed=3)
    known = np.concatenate([parts["train"], parts["validation"]])
    read = dataset[known]
    cached = CachedDataset({name: read[name] for name in ("x", "mask", "index")}, known, 60)
    loaders = (ub.data.MultimodalDataModule(cells, parts, 20, seed=5).train_dataloader() for cells in (dataset, cached))
    for batch, other in zip(*loaders, strict=True):
        np.testing.assert_array_equal(batch["index"], other["index"])
        for m in dataset.modalities:
            torch.testing.assert_close(other["x"][m], batch["x"][m])
            assert torch.equal(other["mask"][m], batch["mask"][m])


def test_changing_a_batch_leaves_the_cells_in_memory_alone(cached):
    cached[[2, 5]]["x"]["a"] += 1
    np.testing.assert_array_equal(cached[[2, 5]]["x"]["a"], [[20], [50]])


def test_a_data_module_gives_whole_parts_once(make_mdata, dataset_of):
    parts = ub.data.split_indices(60, validation_size=0.4, seed=3)
    module = ub.data.MultimodalDataModule(dataset_of(make_mdata()), parts, 7, seed=5)
    for part in ("train", "validation"):
        cells = np.concatenate([batch["index"] for batch in module.whole_dataloader(part)])
        np.testing.assert_array_equal(cells, parts[part])
