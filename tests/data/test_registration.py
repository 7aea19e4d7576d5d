"""What registration promises: it reads, checks and notes, and it changes nothing."""

import copy
import gc
import re
import tracemalloc
import weakref

import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import unbraid as ub
from unbraid.data import ModalityField, positions, registry_key
from unbraid.data import _statistics as statistics

LinearSplit = ub.model.LinearSplit


def state_of(mdata, modality, **setup):
    LinearSplit.setup_mudata(mdata, **setup)
    fields = LinearSplit(mdata).registry_["field_registries"]
    return fields[registry_key(modality)]["state_registry"]


# ---- nothing of the user's is changed ---------------------------------------------------------


def snapshot(adata):
    tables = {"obs": adata.obs.copy(), "var": adata.var.copy()} if adata.n_obs else {}
    return tables, {
        name: set(getattr(adata, name)) for name in ("obsm", "varm", "uns", "layers") if hasattr(adata, name)
    }


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "fortran"])
@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float32", "float64"])
def test_the_users_data_stay_as_they_are(make_mdata, form, dtype):
    mdata = make_mdata(missing=0.2)
    dense = mdata["rna"].X.toarray().astype(dtype)
    values = {
        "csr": sp.csr_matrix(dense),
        "csc": sp.csc_matrix(dense),
        "dense": dense,
        "fortran": np.asfortranarray(dense),
    }[form]
    mdata["rna"].X = values
    matrix, before = mdata["rna"].X, copy.deepcopy(values)
    obs, keys = mdata.obs.copy(), set(mdata.obsm)
    inside = {m: snapshot(adata) for m, adata in mdata.mod.items()}

    LinearSplit.setup_mudata(mdata, batch_key="batch", continuous_covariate_keys=["depth_rna"])
    model = LinearSplit(mdata, ridge=0.1)
    model.adata_manager.create_torch_dataset()[[0, 5, 3]]

    assert mdata["rna"].X is matrix
    assert matrix.dtype == dtype
    if sp.issparse(matrix):
        assert matrix.format == form
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(matrix, part), getattr(before, part))
    else:
        assert matrix.flags.f_contiguous == (form == "fortran")
        np.testing.assert_array_equal(matrix, before)
    ours = mdata.obs.columns.str.startswith("_scvi_")
    pd.testing.assert_frame_equal(mdata.obs.loc[:, ~ours], obs)
    assert all(key.startswith("_scvi_") for key in set(mdata.obsm) - keys)
    assert all(key.startswith("_scvi_") for key in mdata.uns)
    for m, (tables, names) in inside.items():
        now_tables, now_names = snapshot(mdata[m])
        assert now_names == names
        for name, table in tables.items():
            pd.testing.assert_frame_equal(now_tables[name], table)


def test_the_users_arguments_stay_as_they_are_and_belong_to_the_user(make_mdata):
    mdata = make_mdata()
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    arguments = {
        "modalities": ["rna", "prot"],
        "layers": {"rna": "counts"},
        "likelihoods": {"prot": "poisson"},
        "categorical_covariate_keys": ["cell_type"],
        "continuous_covariate_keys": ["depth_rna"],
    }
    given = copy.deepcopy(arguments)
    LinearSplit.setup_mudata(mdata, **given)
    assert given == arguments
    setup = copy.deepcopy(LinearSplit(mdata).registry_["setup_args"])
    for value in given.values():
        value.clear()
    assert LinearSplit(mdata).registry_["setup_args"] == setup


def test_sparse_values_are_never_dense_as_a_whole():
    n_obs, n_features = 20_000, 100_000  # 8 GB if dense
    rng, n_values = np.random.default_rng(0), 100_000
    names = [f"cell_{i}" for i in range(n_obs)]
    wide = sp.csr_matrix(
        (
            rng.integers(1, 9, n_values).astype(np.float32),
            (rng.integers(n_obs, size=n_values), rng.integers(n_features, size=n_values)),
        ),
        shape=(n_obs, n_features),
    )
    for matrix in (wide, wide.tocsc()):
        mdata = mudata.MuData(
            {
                "wide": AnnData(matrix, obs=pd.DataFrame(index=names)),
                "narrow": AnnData(rng.normal(size=(n_obs, 3)).astype(np.float32), obs=pd.DataFrame(index=names)),
            }
        )
        tracemalloc.start()
        LinearSplit.setup_mudata(mdata)
        dataset = LinearSplit(mdata).adata_manager.create_torch_dataset()
        dataset[np.arange(0, n_obs, 400)]  # 50 cells: 20 MB dense
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200e6


# ---- what is noted ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "likelihood"),
    [
        ([0, 1, 5], "nb"),
        ([0.0, 1.0, 5.0], "nb"),
        ([0, 1, 1], "bernoulli"),
        ([False, True, True], "bernoulli"),
        ([0.0, 1.0, 0.5], "normal"),
        ([-1, 0, 3], "normal"),
        ([2.5, 1.0, 7.25], "normal"),
    ],
)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_likelihood_is_read_off_the_values(make_mdata, values, likelihood, sparse):
    mdata = make_mdata()
    matrix = np.resize(np.array(values), mdata["rna"].shape)
    mdata["rna"].X = sp.csr_matrix(matrix) if sparse else matrix
    assert state_of(mdata, "rna")["likelihood"] == likelihood
    assert state_of(mdata, "rna", likelihoods={"rna": "laplace"})["likelihood"] == "laplace"


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_the_noted_statistics_are_those_of_the_measured_cells(make_mdata, monkeypatch, form):
    monkeypatch.setattr(statistics, "BLOCK_ROWS", 7)  # several blocks, the last one smaller
    mdata = make_mdata(missing={"rna": 0.2})
    rna = mdata["rna"]
    rna.X = form(rna.X.toarray())
    rna.obs["ok"] = np.arange(rna.n_obs) % 5 != 0
    dense = np.asarray(rna.X.toarray() if sp.issparse(rna.X) else rna.X, dtype=float)[rna.obs["ok"]]
    state = state_of(mdata, "rna", mask_keys={"rna": "ok"})
    np.testing.assert_allclose(state["mean"], dense.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(state["standard_deviation"], dense.std(axis=0), rtol=1e-6)
    assert state["minimum"] == dense.min()
    totals = dense.sum(axis=1)
    assert state["size_factor_reference"] == np.median(totals[totals > 0])
    assert list(state["feature_names"]) == list(rna.var_names)


def test_constant_and_tiny_features_have_no_deviation():
    rng = np.random.default_rng(0)
    matrix = np.stack([np.full(50, 0.1), rng.normal(size=50), rng.normal(size=50) * 1e-42], axis=1)
    stats = statistics.value_statistics(matrix, np.arange(50))
    assert (stats.standard_deviation > 0).tolist() == [False, True, False]


def test_given_size_factors_set_the_reference(make_mdata):
    mdata = make_mdata()
    mdata["rna"].obs["size"] = np.arange(1.0, 61.0)
    assert state_of(mdata, "rna", size_factor_key={"rna": "size"})["size_factor_reference"] == 30.5
    assert state_of(mdata, "rna", size_factor_key="size")["size_factor_reference"] == 30.5
    assert LinearSplit(mdata).registry_["setup_args"]["size_factor_key"] == {"rna": "size"}


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, "much"])
def test_size_factors_are_positive_numbers(make_mdata, bad):
    mdata = make_mdata()
    mdata["rna"].obs["size"] = pd.Series([bad, *[1.0] * 59], dtype=object).to_numpy()
    with pytest.raises(ValueError, match=r"Size factors 'size' of modality 'rna'"):
        LinearSplit.setup_mudata(mdata, size_factor_key="size")


def test_any_name_may_name_a_modality():
    names = ["sc.RNA", "sc_RNA", "sc%2ERNA", "type", "X", "a b", "keys", "β-catenin"]
    keys = [registry_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert not any("." in key for key in keys)


@pytest.mark.parametrize("model", [ub.model.LinearSplit, ub.model.CLIP])
def test_setup_arguments_survive_save_and_load(make_mdata, tmp_path, model):
    mdata = make_mdata(missing=0.2)
    mdata["rna"].layers["counts"] = mdata["rna"].X.copy()
    mdata["rna"].X = np.log1p(mdata["rna"].X.toarray())
    mdata["rna"].obs["size"] = np.linspace(1, 2, mdata["rna"].n_obs)
    mdata["prot"].obs["ok"] = np.arange(mdata["prot"].n_obs) % 10 != 3
    mdata.obs["age"] = np.arange(60.0)
    # cells whose only modality is masked cannot stay
    kept = (positions(mdata, "rna") >= 0) | (positions(mdata, "prot", "ok") >= 0)
    mdata = mdata[kept].copy()
    setup = {
        "modalities": ["prot", "rna"],
        "layers": {"rna": "counts"},
        "likelihoods": {"prot": "poisson"},
        "batch_key": "batch",
        "categorical_covariate_keys": ["cell_type"],
        "continuous_covariate_keys": ["age"],
        "size_factor_key": {"rna": "size"},
        "mask_keys": {"prot": "ok"},
    }
    model.setup_mudata(mdata, **setup)
    covariates = {} if model is ub.model.LinearSplit else {"encode_covariates": True, "n_shared": 3, "n_hidden": 4}
    first = model(mdata, **covariates)
    first.train(max_epochs=1, seed=0, **({"progress_bar": False} if covariates else {"n_permutations": 2}))
    first.save(tmp_path / "model")
    for data in (mdata, mdata.copy()):
        second = model.load(tmp_path / "model", adata=data)
        assert second.registry_["setup_args"] == first.registry_["setup_args"]
        assert {k: v for k, v in second.registry_["setup_args"].items() if v is not None} == setup
        for key in map(registry_key, setup["modalities"]):
            one, two = (m.registry_["field_registries"][key]["state_registry"] for m in (first, second))
            assert set(one) == set(two)
            for name in one:
                np.testing.assert_array_equal(one[name], two[name])
        np.testing.assert_array_equal(second.get_latent_representation(), first.get_latent_representation())


# ---- absence ----------------------------------------------------------------------------------


def test_positions_are_zero_based_signed_and_by_name(make_mdata):
    mdata = make_mdata(missing=0.3)
    for m, adata in mdata.mod.items():
        rows = positions(mdata, m)
        assert rows.dtype == np.int64
        assert rows.min() == -1
        assert rows.max() == adata.n_obs - 1
        np.testing.assert_array_equal(rows, adata.obs_names.get_indexer(mdata.obs_names))
    assert (positions(mdata, "atac") == -1).all()


def test_a_mask_takes_cells_out(make_mdata):
    mdata = make_mdata(missing=0.3)
    mdata["prot"].obs["ok"] = np.arange(mdata["prot"].n_obs) % 2 == 0
    everything, masked = positions(mdata, "prot"), positions(mdata, "prot", "ok")
    np.testing.assert_array_equal(masked, np.where(everything % 2 == 0, everything, -1))


@pytest.mark.parametrize("mask", ["yes", None, np.nan, pd.NA, 2, pd.array([True] * 59 + [None], dtype="boolean")])
def test_a_mask_is_true_or_false_everywhere(make_mdata, mask):
    mdata = make_mdata()
    mdata["prot"].obs["ok"] = mask
    with pytest.raises(ValueError, match="'ok' of modality 'prot' must be True or False"):
        LinearSplit.setup_mudata(mdata, mask_keys={"prot": "ok"})


@pytest.mark.parametrize("mask", [[True] * 59 + [False], [1] * 59 + [0], pd.Categorical([True] * 59 + [False])])
def test_a_mask_may_be_spelled_in_several_ways(make_mdata, mask):
    mdata = make_mdata()
    mdata["prot"].obs["ok"] = mask
    LinearSplit.setup_mudata(mdata, mask_keys={"prot": "ok"})
    assert LinearSplit(mdata).adata_manager.create_torch_dataset().presence.sum() == 119


def test_cells_without_any_modality_are_refused(make_mdata):
    mdata = make_mdata(missing={"rna": 0.2})
    mdata["prot"].obs["ok"] = False
    with pytest.raises(ValueError, match="12 of 60 cells have none of the modalities"):
        LinearSplit.setup_mudata(mdata, mask_keys={"prot": "ok"})


# ---- what no longer fits ----------------------------------------------------------------------


def shrunk(mdata):
    mdata["rna"]._inplace_subset_obs(np.arange(30))


def turned(mdata):
    mdata.mod["rna"] = mdata["rna"][::-1].copy()


def added(mdata):
    mdata.mod["more"] = mdata["rna"].copy()


@pytest.mark.parametrize("change", [shrunk, turned, added])
def test_a_stale_mudata_is_noticed_at_setup(make_mdata, change):
    mdata = make_mdata(missing=0.2)
    change(mdata)
    with pytest.raises(ValueError, match=r"no longer matches.*Run `mdata.update\(\)`"):
        LinearSplit.setup_mudata(mdata)
    mdata.update()
    LinearSplit.setup_mudata(mdata)


@pytest.mark.parametrize("change", [shrunk, turned])
def test_a_mudata_that_went_stale_after_setup_is_noticed(make_mdata, change):
    mdata = make_mdata(missing=0.2)
    LinearSplit.setup_mudata(mdata)
    model = LinearSplit(mdata, ridge=0.1)
    change(mdata)
    with pytest.raises(ValueError, match=r"modality 'rna'.*Run `mdata.update\(\)`"):
        model.train()
    mdata.update()
    model.train(n_permutations=2)


def test_features_that_went_missing_after_setup_are_noticed(make_mdata):
    mdata = make_mdata()
    LinearSplit.setup_mudata(mdata)
    model = LinearSplit(mdata, ridge=0.1)
    mdata["rna"]._inplace_subset_var(np.arange(15))
    with pytest.raises(ValueError, match="'rna' lacks 5 of the 20 features"):
        model.train()


def test_cells_that_came_after_setup_are_noticed(make_mdata):
    mdata, more = make_mdata(), make_mdata(seed=1)
    LinearSplit.setup_mudata(mdata)
    model = LinearSplit(mdata, ridge=0.1)
    for adata in more.mod.values():
        adata.obs_names = "new_" + adata.obs_names
    for m in mdata.mod_names:
        both = AnnData(sp.vstack([sp.csr_matrix(mdata[m].X), sp.csr_matrix(more[m].X)]).tocsr(), var=mdata[m].var)
        both.obs_names = mdata[m].obs_names.append(more[m].obs_names)
        mdata.mod[m] = both
    mdata.update()
    with pytest.raises(ValueError, match="Run `setup_mudata` again"):
        model.train()


def test_a_view_is_refused_with_the_mend(make_mdata):
    mdata = make_mdata()
    with pytest.raises(ValueError, match=re.escape("mdata = mdata.copy()")):
        LinearSplit.setup_mudata(mdata[:30])
    LinearSplit.setup_mudata(mdata[:30].copy())


def test_a_modality_that_is_a_view_is_refused_with_the_mend(make_mdata):
    whole = make_mdata()
    mdata = mudata.MuData({"rna": whole["rna"][:, :10], "prot": whole["prot"]})
    with pytest.raises(ValueError, match=re.escape("mdata.mod['rna'] = mdata['rna'].copy()")):
        LinearSplit.setup_mudata(mdata)
    mdata.mod["rna"] = mdata["rna"].copy()
    LinearSplit.setup_mudata(mdata)


def test_each_model_keeps_its_own_registration_of_the_same_data(make_mdata):
    mdata = make_mdata()
    LinearSplit.setup_mudata(mdata, batch_key="batch")
    one = LinearSplit(mdata, ridge=0.1)
    LinearSplit.setup_mudata(mdata)
    two = LinearSplit(mdata, ridge=0.1)
    for model in (one, two):
        model.train(n_permutations=2, seed=0)
    before = one.get_latent_representation()
    two.get_latent_representation()
    np.testing.assert_array_equal(one.get_latent_representation(), before)
    assert [m.summary_stats.n_batch for m in (one, two)] == [2, 1]


# ---- query data -------------------------------------------------------------------------------


def test_a_query_is_fitted_to_the_registered_features(make_mdata, remake, dataset_of):
    mdata = make_mdata()
    manager = _manager(mdata)
    reordered = remake(mdata, rna=mdata["rna"][:, ::-1].copy())
    more = sp.hstack([mdata["rna"].X, mdata["rna"].X]).tocsr()
    names = [*mdata["rna"].var_names, *("more_" + mdata["rna"].var_names)]
    wider = remake(mdata, rna=AnnData(more, mdata["rna"].obs, pd.DataFrame(index=names)))
    expected = manager.create_torch_dataset()[np.arange(60)]["x"]["rna"]
    for query in (reordered, wider):
        found = manager.transfer_fields(query).create_torch_dataset()[np.arange(60)]["x"]["rna"]
        np.testing.assert_array_equal(found, expected)


def _manager(mdata, **setup):
    LinearSplit.setup_mudata(mdata, **setup)
    return LinearSplit(mdata).adata_manager


def test_a_query_without_registered_features_is_refused(make_mdata):
    manager, query = _manager(make_mdata()), make_mdata(seed=1)
    query["rna"].var_names = [f"ENSG{i}" for i in range(20)]
    with pytest.raises(ValueError, match=r"'rna' lacks 20 of the 20 features.*'gene_0'.*'ENSG0'"):
        manager.transfer_fields(query)


def test_a_query_may_lack_modalities(make_mdata, remake):
    manager = _manager(make_mdata())
    query = remake(make_mdata(seed=1), prot=None)
    batch = manager.transfer_fields(query).create_torch_dataset()[[4, 2]]
    assert batch["mask"]["rna"].all()
    assert not batch["mask"]["prot"].any()
    assert batch["x"]["prot"].shape == (2, 8)


def test_a_query_may_hold_a_modality_of_no_cell(make_mdata):
    manager, query = _manager(make_mdata(), size_factor_key=None), make_mdata(missing={"prot": 0.5}, seed=1)
    query = query[positions(query, "prot") < 0].copy()
    assert query["prot"].n_obs == 0
    assert not manager.transfer_fields(query).create_torch_dataset()[[0]]["mask"]["prot"].any()


def test_a_query_needs_the_registered_columns(make_mdata):
    mdata = make_mdata()
    mdata["prot"].obs["ok"] = True
    mdata["rna"].obs["size"] = 1.0
    manager = _manager(mdata, mask_keys={"prot": "ok"}, size_factor_key="size", batch_key="batch")
    query = make_mdata(seed=1)
    with pytest.raises(KeyError, match="`size_factor_key`: modality 'rna' has no obs column 'size'"):
        manager.transfer_fields(query)
    query["rna"].obs["size"] = 1.0
    with pytest.raises(KeyError, match="`mask_keys`: modality 'prot' has no obs column 'ok'"):
        manager.transfer_fields(query)
    query["prot"].obs["ok"] = True
    del query.obs["batch"]
    with pytest.raises(KeyError, match="`batch_key`: no obs column 'batch'"):
        manager.transfer_fields(query)


@pytest.mark.parametrize(("known", "unseen"), [("ab", "c"), ([1, 2], 0), ([True, False], 2)])
@pytest.mark.parametrize("argument", ["batch_key", "categorical_covariate_keys"])
def test_unseen_categories_are_refused_unless_admitted(make_mdata, known, unseen, argument):
    mdata, query = make_mdata(), make_mdata(seed=1)
    mdata.obs["where"] = list(known) * 30
    query.obs["where"] = [unseen, *(list(known) * 30)[:59]]
    manager = _manager(mdata, **{argument: "where"})
    with pytest.raises(ValueError, match=f"`{argument}`.*not seen.*{unseen}.*load_query_data"):
        manager.transfer_fields(query)
    manager.transfer_fields(query, extend_categories=True)


def test_query_values_are_checked_under_the_registered_likelihood(make_mdata):
    manager, query = _manager(make_mdata()), make_mdata(seed=1)
    query["prot"].X = query["prot"].X - 100
    with pytest.raises(ValueError, match=r"'prot'.*negative values under the count likelihood 'nb'"):
        manager.transfer_fields(query)


# ---- memory -----------------------------------------------------------------------------------


def test_deregistering_frees_the_data(make_mdata):
    mdata, query = make_mdata(), make_mdata(seed=1)
    LinearSplit.setup_mudata(mdata)
    model = LinearSplit(mdata, ridge=0.1)
    model.train(n_permutations=2)
    model.get_latent_representation(query)
    alive = weakref.ref(mdata), weakref.ref(query)
    model.deregister_manager()  # all but its own
    del query
    gc.collect()
    assert alive[1]() is None
    model.deregister_manager(mdata)
    del model, mdata
    gc.collect()
    assert alive[0]() is None


def test_the_registry_can_be_shown(make_mdata, capsys):
    mdata = make_mdata(modalities=("sc.RNA", "prot"))
    LinearSplit.setup_mudata(mdata)
    LinearSplit(mdata).view_anndata_setup()
    assert "sc.RNA" in capsys.readouterr().out


def test_a_field_names_its_place():
    places = {
        None: ("X", None),
        "X": ("X", None),
        "counts": ("layers", "counts"),
        "obsm:X_pca": ("obsm", "X_pca"),
    }
    for source, place in places.items():
        field = ModalityField("rna", source)
        assert (field.attr_name, field.attr_key) == place
