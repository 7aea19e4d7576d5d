"""What every model promises; ``MODELS`` in ``conftest.py`` lists them."""

import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData

from unbraid.model.base import ContrastiveModel

BATCH = {"batch_key": "batch"}


# a narrow matrix product of the same numbers depends in its last bits on where the memory begins, on some processors
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def assert_same(found, expected, **tolerance):
    """Latents of the same names, equal to the bit unless a tolerance is given."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if tolerance:
            np.testing.assert_allclose(found[name], values, err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)


def assert_same_history(found, expected):
    assert found.history.keys() == expected.history.keys()
    for name, frame in expected.history.items():
        pd.testing.assert_frame_equal(found.history[name], frame)


def rows_of(mdata, modality, names):
    """Rows of the named cells that have the modality, in the order of the names, and which have it."""
    rows = mdata[modality].obs_names.get_indexer(names)
    return rows[rows >= 0], rows >= 0


# ---- absence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [np.nan, 777.0])
def test_what_stands_in_for_absent_values_changes_nothing(case, make_mdata, remake, garbage):
    """The same cells, once absent from the modality and once masked out of it: same losses, same latents."""
    whole = make_mdata()
    measured = pd.Series(np.arange(60) % 4 != 0, index=whole.obs_names)
    absent = remake(
        whole, **{m: a[measured[a.obs_names].to_numpy()].copy() for m, a in whole.mod.items() if m == "prot"}
    )
    padded = whole["prot"].copy()
    padded.obs["ok"] = measured[padded.obs_names].to_numpy()
    padded.X = padded.X.astype(np.float64)
    padded.X[~padded.obs["ok"]] = garbage
    padded = remake(whole, prot=padded)

    model, other = case.fit(absent, BATCH), case.fit(padded, {**BATCH, "mask_keys": {"prot": "ok"}})
    assert_same_history(other, model)
    expected, found = case.latents(model), case.latents(other)
    for name in found:
        if name.endswith("prot"):
            ok = padded["prot"].obs["ok"].to_numpy()
            assert np.isnan(found[name][~ok]).all()
            found[name] = found[name][ok]
    assert_same(found, expected, **ROUNDING)


def test_a_cell_is_encoded_by_what_it_has(case, fitted, make_mdata, remake):
    """Taking a modality away from some cells leaves the other cells as they are."""
    whole = make_mdata(seed=5)
    gone = whole.obs_names[:20]
    less = remake(whole, prot=whole["prot"][~whole["prot"].obs_names.isin(gone)].copy())
    before, after = case.latents(fitted, whole), case.latents(fitted, less)
    keep = ~whole.obs_names.isin(gone)
    np.testing.assert_allclose(after["joint"][keep], before["joint"][keep], atol=1e-5)
    assert np.abs(after["joint"][~keep] - before["joint"][~keep]).max() > 1e-3
    np.testing.assert_allclose(after["shared rna"], before["shared rna"], atol=1e-5)


# ---- order, batch size, seed ------------------------------------------------------------------


def test_the_order_of_cells_does_not_matter(case, fitted):
    mdata = fitted.adata
    permuted = mdata[np.random.default_rng(0).permutation(60)].copy()
    before, after = case.latents(fitted), case.latents(fitted, permuted)
    rows = mdata.obs_names.get_indexer(permuted.obs_names)
    for name, values in before.items():
        if name != "joint":
            modality = name.split()[1]
            rows = mdata[modality].obs_names.get_indexer(permuted[modality].obs_names)
        np.testing.assert_allclose(after[name], values[rows], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
def test_batch_size_does_not_matter_to_inference(case, fitted, batch_size):
    assert_same(case.latents(fitted, batch_size=batch_size), case.latents(fitted), atol=1e-5)


def test_indices_choose_cells(case, fitted):
    everything, names = case.latents(fitted), fitted.adata.obs_names
    for indices in ([5, 3, 40], np.arange(60)[::-1], [-1], np.arange(60) % 2 == 0, []):
        chosen = case.latents(fitted, indices=indices)
        numbers = np.arange(60)[np.asarray(indices, dtype=None if len(indices) else int)]
        np.testing.assert_allclose(chosen["joint"], everything["joint"][numbers], atol=1e-5)
        for name in chosen:
            if name != "joint":
                rows, _ = rows_of(fitted.adata, name.split()[1], names[numbers])
                np.testing.assert_allclose(chosen[name], everything[name][rows], atol=1e-5, err_msg=name)
    by_name = case.latents(fitted, indices=names[[5, 3, 40]])
    assert_same(by_name, case.latents(fitted, indices=[5, 3, 40]))
    with pytest.raises(IndexError, match="there are 60 observations"):
        fitted.get_latent_representation(indices=[60])
    with pytest.raises(ValueError, match="`indices` is a mask of 59 values, but there are 60"):
        fitted.get_latent_representation(indices=np.ones(59, dtype=bool))
    with pytest.raises(KeyError, match="`indices`: there is no observation 'no cell'"):
        fitted.get_latent_representation(indices=["no cell"])


def test_same_seed_same_numbers(case, make_mdata):
    setup = dict(BATCH)
    one, two = (case.fit(make_mdata(missing=0.2), setup, seed=3) for _ in range(2))
    assert_same(case.latents(two), case.latents(one))
    assert_same_history(two, one)
    assert one.seed_ == 3


def test_another_seed_is_another_training(case, make_mdata):
    if not case.neural:
        pytest.skip("a closed form may well give the same")
    model, other = (case.train(case.build(make_mdata(), BATCH), seed=seed) for seed in (0, 1))
    assert not np.array_equal(model.get_latent_representation(), other.get_latent_representation())
    assert not np.array_equal(model.train_indices_, other.train_indices_)


def test_training_without_a_seed_can_be_repeated(case, make_mdata):
    model = case.train(case.build(make_mdata(), BATCH), seed=None)
    again = case.train(case.build(make_mdata(), BATCH), seed=model.seed_)
    assert_same(case.latents(again), case.latents(model))


# ---- save and load ----------------------------------------------------------------------------


def test_saved_and_loaded_same_numbers(case, fitted, tmp_path):
    expected = case.latents(fitted)
    fitted.save(tmp_path / "model", save_anndata=True)
    loaded = case.cls.load(tmp_path / "model")
    assert loaded.adata is not fitted.adata
    assert_same(case.latents(loaded), expected)
    assert_same_history(loaded, fitted)
    assert loaded.seed_ == fitted.seed_
    for data in (fitted.adata, fitted.adata.copy()):
        assert_same(case.latents(case.cls.load(tmp_path / "model", adata=data)), expected)


def test_a_model_lives_without_data(case, fitted, make_mdata, tmp_path):
    fitted.save(tmp_path / "model")
    alone = case.cls.load(tmp_path / "model", adata=False)
    without = "was loaded without data.*Pass a MuData"
    for call in (alone.get_latent_representation, alone.write_latent):
        with pytest.raises(ValueError, match=without):
            call()
    with pytest.raises(ValueError, match=without):
        case.train(alone)
    alone.save(tmp_path / "again")
    for model in (alone, case.cls.load(tmp_path / "again", adata=False)):
        query = make_mdata(missing=0.1, seed=9)
        assert_same(case.latents(model, query), case.latents(fitted, query.copy()))


def test_what_cannot_be_loaded_is_refused(case, fitted, tmp_path):
    fitted.save(tmp_path / "model")
    with pytest.raises(TypeError, match="Expected a MuData .*, got AnnData"):
        case.cls.load(tmp_path / "model", adata=fitted.adata["rna"])
    with pytest.raises(ValueError, match="different class"):
        type("Other", (case.cls,), {}).load(tmp_path / "model", adata=False)


def test_a_saved_model_names_its_features(case, fitted, tmp_path):
    fitted.save(tmp_path / "model", prefix="p_")
    saved = torch.load(tmp_path / "model" / "p_model.pt", weights_only=False)
    assert set(saved["var_names"]) == {"rna", "prot"}
    np.testing.assert_array_equal(saved["var_names"]["rna"], fitted.adata["rna"].var_names)


# ---- what latents are -------------------------------------------------------------------------


def test_latents_are_finite_float32_of_the_cells_that_have_them(case, fitted):
    for name, values in case.latents(fitted).items():
        n_obs = fitted.adata.n_obs if name == "joint" else fitted.adata[name.split()[1]].n_obs
        assert values.dtype == np.float32
        assert values.shape[0] == n_obs
        assert values.shape[1] > 0
        assert np.isfinite(values).all()
        if name.split()[0] in case.sphere:
            np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1.0, atol=1e-5)


def test_samples_are_latents_too(case, fitted):
    for name, values in case.latents(fitted, give_mean=False).items():
        assert np.isfinite(values).all()
        if name.split()[0] in case.sphere:
            np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1.0, atol=1e-5)


def test_shared_without_a_modality_is_the_joint_code(fitted):
    np.testing.assert_array_equal(fitted.get_latent_representation(), fitted.get_latent_representation(kind="joint"))


def test_latents_before_training_are_refused(case, make_mdata):
    model = case.build(make_mdata())
    for call in (model.get_latent_representation, model.write_latent):
        with pytest.raises(RuntimeError, match=r"is not trained. Call `model.train\(\)` first"):
            call()


# ---- formats and names ------------------------------------------------------------------------


def test_sparse_dense_and_backed_data_give_the_same_model(case, make_mdata, tmp_path):
    models = []
    for form in (sp.csr_matrix, np.asfortranarray, "backed sparse", "backed dense"):
        mdata = make_mdata(missing=0.2)
        for adata in mdata.mod.values():
            values = adata.X.toarray() if sp.issparse(adata.X) else adata.X
            values = form(values) if callable(form) else values if form == "backed dense" else sp.csr_matrix(values)
            adata.X = values
        if not callable(form):
            mdata.write(tmp_path / f"{form}.h5mu")
            mdata = mudata.read_h5mu(tmp_path / f"{form}.h5mu", backed="r")
        models.append(case.fit(mdata, BATCH))
    for model in models[1:]:
        assert_same_history(model, models[0])
        assert_same(case.latents(model), case.latents(models[0]))
    backed = models[-1]
    backed.write_latent()
    backed.save(tmp_path / "model", save_anndata=True)
    assert_same(case.latents(case.cls.load(tmp_path / "model")), case.latents(backed))


@pytest.mark.parametrize("names", [("rna", "prot", "atac"), ("sc.RNA", "type", "a b")])
def test_three_modalities_of_any_name_with_missing_ones(case, make_mdata, tmp_path, names):
    mdata = make_mdata(modalities=names, missing=dict(zip(names, (0.3, 0.5, 0.2), strict=True)))
    model = case.fit(mdata, BATCH)
    latents = case.latents(model)
    assert {name.split(" ", 1)[1] for name in latents if name != "joint"} == set(names)
    assert all(np.isfinite(values).all() for values in latents.values())
    model.write_latent()
    model.save(tmp_path / "model", save_anndata=True)
    assert_same(case.latents(case.cls.load(tmp_path / "model")), latents)


# ---- training ---------------------------------------------------------------------------------


def test_a_weight_of_zero_removes_a_term_and_its_cost(case, make_mdata):
    if not case.weights:
        pytest.skip("no weights")

    def never(*_, **__):
        raise AssertionError("a term of weight 0 was computed")

    for option, (term, method) in case.weights.items():
        with_it = case.fit(make_mdata())
        assert any(term in name for name in with_it.history)
        without = case.build(make_mdata(), **{option: 0.0})
        setattr(without.module, method, never)
        case.train(without)
        assert not any(term in name for name in without.history)


@pytest.mark.parametrize("seed", [0, None])
def test_training_leaves_the_users_random_state_and_lists_alone(case, make_mdata, seed):
    model = case.build(make_mdata(missing=0.2), BATCH)
    callbacks, options = [], {"num_workers": 0}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    given = {"callbacks": callbacks, "datasplitter_kwargs": options} if case.neural else {}
    case.train(model, seed=seed, **given)
    model.get_latent_representation()
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert callbacks == []
    assert options == {"num_workers": 0}


def test_training_twice_goes_on(case, make_mdata):
    model = case.fit(make_mdata(), BATCH)
    before, latents = model.history, case.latents(model)
    lengths = {name: len(frame) for name, frame in before.items()}
    case.train(model)
    assert model.history.keys() == lengths.keys()
    if case.neural:
        assert any(not np.array_equal(values, latents[name]) for name, values in case.latents(model).items())
        for name, frame in model.history.items():
            times = 1 if name.startswith("linear/") else 2  # a closed form is fitted once
            assert frame.index.tolist() == list(range(times * lengths[name]))
    assert np.isfinite(model.get_latent_representation()).all()


def test_the_split_is_noted(case, make_mdata):
    mdata = make_mdata()
    mdata.obs["split"] = ["train"] * 40 + ["val"] * 12 + ["test"] * 8
    model = case.train(case.build(mdata), split_key="split")
    assert model.train_indices_.tolist() == list(range(40))
    assert model.validation_indices_.tolist() == list(range(40, 52))
    assert model.test_indices_.tolist() == list(range(52, 60))


# ---- results in the MuData --------------------------------------------------------------------


def test_latents_are_written_where_they_belong(case, make_mdata, tmp_path):
    mdata = make_mdata(missing=0.2)
    model = case.fit(mdata, BATCH)
    assert model.write_latent() is mdata
    keys = {"shared": "Z_c", "task": "Z_t", "residual": "Z_r", "specific": "Z_s"}
    expected = {keys[kind] for kind in model.module.kinds}
    np.testing.assert_array_equal(mdata.obsm["Z_c"], model.get_latent_representation())
    for m, adata in mdata.mod.items():
        assert {key for key in adata.obsm if key.startswith("Z")} == expected
        # the same cells one by one, by name
        for number, name in enumerate(mdata.obs_names):
            if name not in adata.obs_names or number % 7:
                continue
            row = adata.obs_names.get_loc(name)
            for kind, key in keys.items():
                if key in expected:
                    one = model.get_latent_representation(kind=kind, modality=m, indices=[number])
                    np.testing.assert_allclose(adata.obsm[key][row], one[0], atol=1e-5)

    provenance = mdata.uns["unbraid"]["Z"]
    assert provenance["model"] == case.cls.__name__
    assert provenance["seed"] == 0
    mdata.write(tmp_path / "data.h5mu")
    again = mudata.read_h5mu(tmp_path / "data.h5mu")
    assert {k: v for k, v in again.uns["unbraid"]["Z"].items() if k != "keys"} == {
        k: v for k, v in provenance.items() if k != "keys"
    }
    assert list(again.uns["unbraid"]["Z"]["keys"]) == sorted(expected)
    np.testing.assert_array_equal(again.obsm["Z_c"], mdata.obsm["Z_c"])
    for m in mdata.mod:
        for key in expected:
            np.testing.assert_array_equal(again[m].obsm[key], mdata[m].obsm[key])


def test_scanpy_takes_the_latents(case, make_mdata):
    mdata = make_mdata(missing=0.1)
    case.fit(mdata, BATCH).write_latent(prefix="X_split")
    places = [(mdata, "X_split_c"), (mdata["rna"], "X_split_c")]
    if "X_split_s" in mdata["rna"].obsm:
        places.append((mdata["rna"], "X_split_s"))
    for data, key in places:
        sc.pp.neighbors(data, use_rep=key, n_neighbors=5)
        sc.tl.leiden(data, flavor="igraph", n_iterations=2)
        sc.tl.umap(data, maxiter=5)
        assert data.obs["leiden"].notna().all()
        assert np.isfinite(data.obsm["X_umap"]).all()


# ---- query data -------------------------------------------------------------------------------


def test_a_copy_of_the_training_data_gives_the_same_latents(case, fitted):
    assert_same(case.latents(fitted, fitted.adata.copy()), case.latents(fitted))


def test_a_query_may_lack_a_modality(case, fitted, make_mdata, remake):
    query = make_mdata(seed=2)
    for missing, other in (("prot", "rna"), ("rna", "prot")):
        less = remake(query, **{missing: None})
        latents = case.latents(fitted, less)
        np.testing.assert_allclose(
            latents[f"shared {other}"], case.latents(fitted, query)[f"shared {other}"], atol=1e-5
        )
        assert np.isfinite(latents["joint"]).all()
        assert len(fitted.get_latent_representation(less, "shared", missing)) == 0
        assert fitted.get_latent_representation(less, "shared", missing).shape[1] == latents["joint"].shape[1]


def test_features_of_a_query_are_matched_by_name(case, fitted, make_mdata, remake):
    query = make_mdata(missing=0.2, seed=2)
    expected, rng = case.latents(fitted, query), np.random.default_rng(0)
    shuffled = remake(query, **{m: a[:, rng.permutation(a.n_vars)].copy() for m, a in query.mod.items()})
    assert_same(case.latents(fitted, shuffled), expected, **ROUNDING)
    rna = query["rna"]
    wider = AnnData(sp.hstack([rna.X * 3, rna.X]).tocsr(), rna.obs)
    wider.var_names = [*("more_" + rna.var_names), *rna.var_names]
    assert_same(case.latents(fitted, remake(query, rna=wider)), expected, **ROUNDING)
    renamed = remake(query)
    renamed["rna"].var_names = [f"ENSG{i}" for i in range(20)]
    with pytest.raises(ValueError, match="'rna' lacks 20 of the 20 features"):
        case.latents(fitted, renamed)


def test_an_unseen_batch_needs_load_query_data(case, fitted, make_mdata, tmp_path):
    query = make_mdata(missing=0.1, seed=2)
    query.obs["batch"] = "from elsewhere"
    with pytest.raises(ValueError, match=r"`batch_key`.*not seen: \['from elsewhere'\].*`load_query_data`"):
        fitted.get_latent_representation(query)
    fitted.save(tmp_path / "model")
    before = case.latents(fitted)
    for reference in (fitted, tmp_path / "model", str(tmp_path / "model")):
        model = case.cls.load_query_data(query, reference)
        assert all(np.isfinite(values).all() for values in case.latents(model).values())
    case.train(model)
    assert np.isfinite(model.get_latent_representation()).all()
    assert_same(case.latents(fitted), before)


def test_load_query_data_gives_the_reference_latents(case, fitted, make_mdata):
    query = make_mdata(missing=0.1, seed=2)
    expected = case.latents(fitted, query.copy())
    assert_same(case.latents(case.cls.load_query_data(query, fitted)), expected)
    other = type("Other", (case.cls,), {})
    with pytest.raises(TypeError, match=f"The reference is a {case.cls.__name__}"):
        other.load_query_data(query, fitted)


def test_training_on_a_query_leaves_the_users_encoders_alone(case, make_mdata):
    if not case.neural or not issubclass(case.cls, ContrastiveModel):
        pytest.skip("no encoders")
    encoders = {"rna": torch.nn.Linear(20, 4)}
    model = case.fit(make_mdata(), BATCH, encoders=encoders)
    weights, latents = encoders["rna"].weight.detach().clone(), case.latents(model)
    case.train(case.cls.load_query_data(make_mdata(seed=1), model))
    assert torch.equal(encoders["rna"].weight, weights)
    assert_same(case.latents(model), latents)
