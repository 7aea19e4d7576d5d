"""Unbraid by its public face: what it chooses, what it reports, and the way back to the data."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback
from mudata import MuData

import unbraid as ub
from unbraid.metrics import retrieval
from unbraid.objectives import canonical_log_ratio

pytestmark = pytest.mark.filterwarnings("ignore:.*training cells with two modalities are too few:UserWarning")

QUIET = {"seed": 0, "accelerator": "cpu", "progress_bar": False}
SMALL = {"n_hidden": 32, "n_layers": 2, "ridge": 0.01}
EPOCHS = {"shared": 4, "scratch": 4, "residual": 2, "specific": 2}


def folded(n_obs=800, modalities=2, seed=0, missing=0.0):
    """Two shared latents, of which the second modality has the square of one: no linear map finds that."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_obs, 2))
    names, mod = np.array([f"cell_{i}" for i in range(n_obs)]), {}
    for m in "abc"[:modalities]:
        latents = np.column_stack([z[:, 0], z[:, 1] ** 2 - 1 if m == "b" else z[:, 1], rng.standard_normal((n_obs, 2))])
        x = latents @ np.linalg.qr(rng.standard_normal((8, 8)))[0][:4] + 0.1 * rng.standard_normal((n_obs, 8))
        has = rng.random(n_obs) >= missing if m != "a" else np.ones(n_obs, dtype=bool)
        mod[m] = AnnData(x[has].astype(np.float32), obs=pd.DataFrame(index=names[has]))
    return MuData(mod, obs=pd.DataFrame(index=names))


def build(mdata, setup=None, **options):
    ub.model.Unbraid.setup_mudata(mdata, **(setup or {}))
    return ub.model.Unbraid(mdata, **{**SMALL, **options})


def trained(mdata, setup=None, epochs=0, training=None, **options):
    model = build(mdata, setup, **options)
    model.train(epochs, **QUIET, **(training or {}))
    return model


def latents(model, mdata=None):
    found = {"joint": model.get_latent_representation(mdata)}
    for kind in ("shared", "specific"):
        for m in model.modalities:
            if m in (model.adata if mdata is None else mdata).mod:
                found[f"{kind} {m}"] = model.get_latent_representation(mdata, kind, m)
    return found


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
        compare(found[name], values, err_msg=name, **tolerance)


@pytest.fixture(scope="module")
def neural():
    """Networks found more than the linear map; not to be changed."""
    epochs = {**EPOCHS, "shared": 10, "scratch": 10}
    return trained(folded(), epochs=epochs, training={"batch_size": 128, "validation_size": 0.2}, lr=0.01)


@pytest.fixture(scope="module")
def counts(make_mdata):
    """Counts of three modalities in two batches, with cells that lack some; not to be changed."""
    missing = {"rna": 0.1, "prot": 0.3, "atac": 0.2}
    mdata = make_mdata(150, ("rna", "prot", "atac"), missing=missing)
    training = {"batch_size": 32, "validation_size": 0.4}
    return trained(mdata, {"batch_key": "batch"}, 1, training, input_transform={"prot": "clr"})


@pytest.fixture(scope="module")
def pair(make_mdata):
    """Counts of two modalities, with cells that lack one; not to be changed."""
    return trained(make_mdata(100, missing=0.2), epochs=1, training={"batch_size": 32}, n_shared=3)


# ---- where it starts --------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [("rna", "prot"), ("rna", "prot", "atac")])
@pytest.mark.parametrize("n_shared", [None, 3])
def test_without_epochs_it_is_the_linear_split(make_mdata, modalities, n_shared):
    mdata, setup = make_mdata(200, modalities, missing=0.2), {"batch_key": "batch"}
    model = trained(mdata, setup, n_shared=n_shared)
    ub.model.LinearSplit.setup_mudata(mdata, **setup)
    linear = ub.model.LinearSplit(mdata, n_shared, ridge=0.01)
    linear.train(train_size=0.9, seed=0)
    np.testing.assert_array_equal(model.train_indices_, linear.train_indices_)
    assert model.report().chosen == "linear"
    assert model.report().n_shared == linear.module.n_shared
    found, expected = latents(model), latents(linear)
    for name in found:
        if name.startswith("specific"):  # the same axes, of unit variance
            k = min(found[name].shape[1], expected[name].shape[1])
            for j in range(k):
                assert abs(np.corrcoef(found[name][:, j], expected[name][:, j])[0, 1]) > 0.999
        else:
            assert found[name].shape == expected[name].shape
            signs = np.sign((found[name] * expected[name]).sum(axis=0))
            np.testing.assert_allclose(found[name] * signs, expected[name], atol=1e-4, err_msg=name)


def test_few_validation_cells_keep_the_shared_code_linear():
    model = build(folded(200))
    with pytest.warns(UserWarning, match="180 training cells with two modalities are too few to hold 50 of them out"):
        model.train(1, batch_size=64, **QUIET)
    assert model.report().chosen == "linear"
    assert (model.report().candidates["information"] == 0).all()
    assert len(model.train_indices_) == 180


def test_cells_to_choose_by_are_held_out_where_the_split_names_too_few(recwarn):
    model = trained(folded(400), epochs=1, training={"batch_size": 64})
    assert not [warning for warning in recwarn if "too few" in str(warning.message)]
    assert (model.report().candidates["information"] > 0).all()
    parts = model.train_indices_, model.validation_indices_, model.test_indices_
    assert [len(part) for part in parts] == [324, 76, 0]  # a tenth, and a tenth of the rest
    assert np.unique(np.concatenate(parts)).size == 400
    # cells of the test set stay there
    mdata = folded(700)
    mdata.obs["split"] = ["train"] * 600 + ["test"] * 100
    model = trained(mdata, epochs=0, training={"split_key": "split"})
    parts = model.train_indices_, model.validation_indices_, model.test_indices_
    assert [len(part) for part in parts] == [540, 60, 100]
    assert parts[2].min() == 600


# ---- what is chosen, and what is said of it ---------------------------------------------------------


def test_networks_take_over_where_no_linear_map_finds_what_is_shared(neural):
    report = neural.report()
    information = report.candidates["information"]
    assert report.chosen == information.idxmax() in ("shared", "scratch")
    assert information[report.chosen] > information["linear"] + 0.5
    assert report.n_shared > report.candidates.loc["linear", "n_kept"] >= 1
    # they tell of the square, for which a linear map of the first modality has nothing
    rng = np.random.default_rng(0)
    square = rng.standard_normal((800, 2))[:, 1] ** 2
    explained = lambda z: (
        1 - np.linalg.lstsq(np.column_stack([z, np.ones(800)]), square, rcond=None)[1][0] / 800 / square.var()
    )
    assert explained(neural.get_latent_representation(kind="shared", modality="a")) > 0.8
    assert explained(neural.adata["a"].X) < 0.1


def test_a_network_beside_the_linear_map_loses_nothing():
    mdata = ub.data.simulate.nonlinear(2_000)
    epochs = {"shared": 8, "scratch": 0, "residual": 0, "specific": 0}
    training = {"batch_size": 256, "validation_size": 0.2}
    model = trained(mdata, None, epochs, training, n_hidden=64, lr=5e-3)
    report, (gain, error) = model.report(), model.module.shared.gain_over(model.module.linear)
    candidates = report.candidates
    assert gain > 0
    assert report.chosen == ("shared" if gain > 2 * error else "linear")
    assert candidates.loc["shared", "information"] > candidates.loc["linear", "information"] > 4
    assert candidates.loc["shared", "n_kept"] >= 8
    assert candidates.loc["scratch"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("shared", "scratch", "chosen"),
    [(0.5, 0.9, 0), (1.001, 1.001, 0), (1.01, 1.0, 1), (1.0, 1.01, 2), (1.01, 1.011, 1), (1.01, 1.02, 2)],
)
def test_a_network_must_gain_something(pair, make_mdata, shared, scratch, chosen):
    module = trained(make_mdata(100, missing=0.2), n_shared=3).module
    cells = [pair.adata_manager.create_torch_dataset()[np.arange(100)]]
    for name, value in {"linear": 1.0, "shared": shared, "scratch": scratch}.items():
        getattr(module, name).information.fill_(value)
        getattr(module, name).kept[:3] = True
        getattr(module, name).correlation[:3] = 0.5
    with torch.no_grad():
        module.end_stage("scratch", cells)
    assert module.chosen == chosen


def test_a_gain_must_exceed_its_error(pair, make_mdata):
    module = trained(make_mdata(100, missing=0.2), n_shared=3).module
    cells = [pair.adata_manager.create_torch_dataset()[np.arange(100)]]
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    noise -= noise.mean()
    for name, terms in {"linear": torch.ones(100), "shared": 1.05 + noise, "scratch": 1.04 + 0.1 * noise}.items():
        candidate = getattr(module, name)
        candidate.terms[0, :100], candidate.correlation[:3], candidate.kept[:3] = terms, 0.5, True
        candidate.information.fill_(terms.mean())
    gain, error = module.shared.gain_over(module.linear)
    assert error == pytest.approx(float(noise.std()) / 10, rel=1e-5)
    assert 0 < gain < error
    with torch.no_grad():
        module.end_stage("scratch", cells)
    assert module.chosen == 2  # a smaller gain, but a sure one


@pytest.mark.parametrize(
    ("few", "errors", "chosen"), [(False, 1.5, 0), (False, 2.5, 1), (True, 2.5, 0), (True, 3.5, 1)]
)
def test_networks_that_learned_from_few_cells_must_gain_more(pair, make_mdata, few, errors, chosen):
    module = trained(make_mdata(100, missing=0.2), n_shared=3).module
    assert module.few
    module.few.fill_(few)
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    noise = noise - noise.mean()
    gained = 1 + noise + errors * noise.std() / 10
    for name, terms in {"linear": torch.ones(100), "shared": gained, "scratch": torch.zeros(100)}.items():
        candidate = getattr(module, name)
        candidate.terms[0, :100], candidate.correlation[:3], candidate.kept[:3] = terms, 0.5, True
        candidate.information.fill_(terms.mean())
    with torch.no_grad():
        module.end_stage("scratch", [pair.adata_manager.create_torch_dataset()[np.arange(100)]])
    assert module.chosen == chosen


def test_where_nothing_is_shared_no_network_is_taken():
    rng, names = np.random.default_rng(0), [f"cell_{i}" for i in range(600)]
    mod = {m: AnnData(rng.standard_normal((600, 6)), pd.DataFrame(index=names)) for m in ("a", "b")}
    epochs = {"shared": 3, "scratch": 3, "residual": 0, "specific": 0}
    with pytest.warns(UserWarning, match="No dimension is shared beyond chance"):
        model = trained(MuData(mod), None, epochs, {"validation_size": 0.2, "batch_size": 128}, ridge=0.01)
    assert model.report().chosen == "linear"
    assert model.report().n_shared == 1


def test_the_report_is_what_the_model_is(neural):
    report = neural.report()
    shared, specific = (
        neural.get_latent_representation(),
        neural.get_latent_representation(kind="specific", modality="b"),
    )
    assert report.n_shared == shared.shape[1] == report.candidates.loc[report.chosen, "n_kept"]
    assert report.n_specific["b"] == specific.shape[1]
    assert (report.correlations > report.threshold).sum() == report.n_shared
    assert report.interval[0] < report.information < report.interval[1] < np.log(160) + 1
    assert report.information == pytest.approx(sum(report.interval) / 2)
    # the best epoch, but each half of the cells is told by the other half's choice
    best = -neural.history[f"{report.chosen}/validation_loss"].min().item()
    assert 0.8 * best < report.information <= best + 1e-6
    assert list(report.candidates.index) == ["linear", "shared", "scratch"]
    text = str(report)
    assert text.startswith(f"Shared code: {report.n_shared} dimensions; ")
    assert f"{np.sort(report.correlations)[-1]:.2f}" in text
    assert f"at least {report.information:.2f} nats" in text
    assert f"a {report.n_specific['a']}, b {report.n_specific['b']} dimensions" in text


def test_held_out_cells_choose_the_epoch_of_every_specific_code(neural):
    dataset = neural.adata_manager.create_torch_dataset()
    found = neural.module._residuals(dataset[neural.validation_indices_], None)
    for k, m in enumerate(neural.modalities):
        lost, leak = (
            neural.history[f"specific/{name}_{m}_validation"].iloc[:, 0].to_numpy() for name in ("lost", "leak")
        )
        best = (lost + leak).argmin()
        assert neural.module.held_out_loss[k] == pytest.approx(lost[best] + leak[best], rel=1e-5)
        (residual, condition), network = found[m], neural.module.specific[m]
        error = residual - network.restore(network(residual, condition), condition)
        share = (error.square().sum() / residual.square().sum()).item()
        assert share == pytest.approx(lost[best], rel=1e-3)
        assert 0 < lost[best] < 1
        assert leak.min() >= 0


def test_a_modality_that_no_held_out_cell_has_is_not_judged(make_mdata, remake):
    mdata = make_mdata(200, ("rna", "prot", "atac"))
    mdata.obs["split"] = ["train"] * 140 + ["val"] * 60
    lacking = mdata.obs_names[140:]
    mdata = remake(mdata, atac=mdata["atac"][~mdata["atac"].obs_names.isin(lacking)].copy())
    model = trained(mdata, epochs=2, training={"split_key": "split", "batch_size": 64})
    assert np.isfinite(model.module.held_out_loss).tolist() == [True, True, False]
    assert "specific/lost_atac_validation" not in model.history
    assert np.isfinite(model.get_latent_representation(kind="specific", modality="atac")).all()


def test_a_second_training_is_judged_by_its_own_epochs(make_mdata):
    model = trained(make_mdata(300, seed=2), epochs=2, training={"batch_size": 64, "validation_size": 0.3})
    best = model.module.judgements["shared"].best
    assert torch.isfinite(best).all()
    best.fill_(9.0)  # more than any epoch can have
    model.train(max_epochs={"shared": 1, "scratch": 0, "residual": 0, "specific": 0}, batch_size=64, **QUIET)
    assert (model.module.judgements["shared"].best < 9).all()
    assert not torch.isfinite(model.module.judgements["scratch"].best).any()


def test_what_the_report_says_of_a_linear_code(pair):
    assert str(pair.report()).startswith("Shared code: 3 dimensions; linear: no network told more of held-out cells.")


def test_an_untrained_model_says_so(make_mdata):
    model = build(make_mdata())
    for ask in (
        model.report,
        lambda: model.reconstruct("rna"),
        lambda: model.impute("rna"),
        lambda: model.get_retrieval_representation("rna"),
    ):
        with pytest.raises(RuntimeError, match="The model is not trained"):
            ask()


def test_the_numbers_of_dimensions_may_be_given():
    model = trained(folded(300), None, 1, {"batch_size": 64, "validation_size": 0.3}, n_shared=2, n_specific=3)
    assert model.report().n_shared == 2
    assert model.report().n_specific == {"a": 3, "b": 3}
    assert model.report().candidates["n_kept"].tolist() == [2, 2, 2]
    assert {name: z.shape[1] for name, z in latents(model).items()} == {
        "joint": 2,
        "shared a": 2,
        "shared b": 2,
        "specific a": 3,
        "specific b": 3,
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"n_shared": 0}, "`n_shared` must be positive, got 0"),
        ({"n_specific": -1}, "`n_specific` must be positive, got -1"),
        ({"n_components": 0}, "`n_components` must be positive, got 0"),
        ({"ridge": 0.0}, "`ridge` must be positive, got 0.0"),
        ({"condition": "both"}, "`condition`"),
        ({"independence": {"no such": 1.0}}, "no such"),
    ],
)
def test_bad_options_are_named(make_mdata, option, message):
    with pytest.raises((ValueError, KeyError), match=message):
        build(make_mdata(), **option)


# ---- batches, absence, condition --------------------------------------------------------------------


def test_three_modalities_of_which_cells_lack_some(counts):
    found = latents(counts)
    assert set(found) == {"joint"} | {f"{kind} {m}" for kind in ("shared", "specific") for m in ("rna", "prot", "atac")}
    for name, z in found.items():
        assert np.isfinite(z).all()
        assert len(z) == (150 if name == "joint" else counts.adata[name.split()[1]].n_obs)
        assert z.std() > 0.05
    # next to nothing, of the few cells that were held out
    assert counts.report().interval[1] > 0
    assert "at least -" not in str(counts.report())


def test_networks_find_what_three_modalities_share_though_cells_lack_some():
    mdata = folded(700, 3, missing=0.3)
    epochs = {"shared": 4, "scratch": 0, "residual": 1, "specific": 1}
    model = trained(mdata, None, epochs, {"batch_size": 64, "validation_size": 0.25}, lr=0.01)
    information = model.report().candidates["information"]
    assert information["shared"] > information["linear"] + 0.1
    assert model.report().chosen == "shared"
    assert all(np.isfinite(z).all() for z in latents(model).values())


def test_what_batches_have_in_common_is_not_shared():
    mdata = folded(400)
    batch = np.arange(400) % 2
    mdata.obs["batch"] = batch.astype(str)
    for adata in mdata.mod.values():
        adata.X += 5 * batch[:, None].astype(np.float32)
    training, told = {"batch_size": 64, "validation_size": 0.25}, {}
    for key in (None, "batch"):
        model = trained(mdata, {"batch_key": key}, {**EPOCHS, "shared": 6, "scratch": 0}, training, lr=0.01)
        z = model.get_latent_representation()
        told[key] = max(abs(np.corrcoef(column, batch)[0, 1]) for column in z.T)
    assert told[None] > 0.8
    assert told["batch"] < 0.15
    assert model.report().chosen == "shared"
    assert np.isfinite(model.reconstruct("a")).all()
    # the mean of its batch is put back
    np.testing.assert_allclose(
        model.reconstruct("a")[batch == 1].mean(axis=0), mdata["a"].X[batch == 1].mean(axis=0), atol=0.4
    )


@pytest.mark.parametrize("condition", ["own", "joint"])
def test_specific_codes_may_be_free_of_the_joint_code(make_mdata, remake, condition):
    mdata = make_mdata(150)
    model = trained(mdata, None, 1, {"batch_size": 64, "validation_size": 0.4}, condition=condition)
    before = latents(model)
    alone = model.get_latent_representation(remake(mdata, prot=None), "specific", "rna")
    same = np.abs(alone - before["specific rna"]).max() < 1e-4
    assert same == (condition == "own")  # what a cell's proteins say goes into its joint code
    for m in ("rna", "prot"):
        assert np.isfinite(model.reconstruct(m)).all()
        assert np.isfinite(model.impute(m)).all()
    codes = {"rna": torch.tensor([[1.0] * model.module.n_shared])}
    rho = model.module.candidate.kept_correlation
    expected = rho if condition == "own" else rho.sqrt()
    found = model.module.expected_condition("prot", codes, {"rna": torch.ones(1, dtype=torch.bool)})
    torch.testing.assert_close(found[0], expected)


def test_the_expected_code_of_a_modality_is_its_mean_given_the_others(counts):
    module = counts.module
    rho = module.candidate.kept_correlation.double().numpy()
    rng = np.random.default_rng(0)
    codes = {m: torch.as_tensor(rng.standard_normal((4, len(rho))), dtype=torch.float32) for m in ("rna", "atac")}
    mask = {m: torch.ones(4, dtype=torch.bool) for m in codes}
    found = module.expected_condition("prot", codes, mask).numpy()
    for j, r in enumerate(rho):
        covariance = np.eye(3) * (1 - r) + r
        weights = np.linalg.solve(covariance[1:, 1:], covariance[1:, 0])
        expected = weights[0] * codes["rna"][:, j].numpy() + weights[1] * codes["atac"][:, j].numpy()
        np.testing.assert_allclose(found[:, j], expected, rtol=1e-3, atol=1e-4)


# ---- retrieval --------------------------------------------------------------------------------------


def test_dot_products_rank_like_the_likelihood_ratio(neural):
    query = neural.get_retrieval_representation("a", role="query", indices=range(100))
    target = neural.get_retrieval_representation("b", role="target")
    assert query.dtype == target.dtype == np.float32
    assert query.shape[1] == target.shape[1] == len(neural.report().correlations) + 1
    batch = neural.adata_manager.create_torch_dataset()[np.arange(800)]
    with torch.no_grad():
        codes = neural.module.pair_codes(batch)
    rho = (torch.as_tensor(neural.report().correlations) - 1 / np.sqrt(160)).clamp(min=0)  # 160 validation cells
    ratio = canonical_log_ratio(codes["a"][:100], codes["b"], rho).numpy()
    difference = query @ target.T - ratio
    np.testing.assert_allclose(difference, difference[:, :1].repeat(800, axis=1), atol=1e-2)
    assert difference[:, 0].std() > 0.1  # the constant is the query's own
    # and find more partners among cells not trained on than the cosine of shared codes
    held_out = neural.validation_indices_
    vectors = [
        neural.get_retrieval_representation(m, role=r, indices=held_out) for m, r in (("a", "query"), ("b", "target"))
    ]
    shared = [neural.get_latent_representation(kind="shared", modality=m, indices=held_out) for m in "ab"]
    assert retrieval(*vectors, metric="dot").mrr > retrieval(*shared).mrr


def test_retrieval_vectors_are_one_per_cell(counts):
    for role in ("query", "target"):
        vectors = counts.get_retrieval_representation("prot", role=role)
        lacks = ~counts.adata.obs_names.isin(counts.adata["prot"].obs_names)
        assert len(vectors) == 150
        assert np.isnan(vectors[lacks]).all()
        assert np.isfinite(vectors[~lacks]).all()
    with pytest.raises(ValueError, match="`role`"):
        counts.get_retrieval_representation("prot", role="both")
    with pytest.raises(KeyError, match="No modality 'proteins'"):
        counts.get_retrieval_representation("proteins")


# ---- back to the data -------------------------------------------------------------------------------


def lacks(model, *modalities):
    return np.stack([~model.adata.obs_names.isin(model.adata[m].obs_names) for m in modalities]).all(axis=0)


def assert_rows(values, absent, n_features):
    assert values.dtype == np.float32
    assert values.shape == (len(absent), n_features)
    assert np.isnan(values[absent]).all()
    assert np.isfinite(values[~absent]).all()


@pytest.mark.parametrize("m", ["rna", "prot", "atac"])
def test_shapes_and_absent_cells(counts, m):
    p, others = counts.adata[m].n_vars, [n for n in counts.modalities if n != m]
    assert lacks(counts, m).any()
    for use in ("both", "shared", "specific"):
        assert_rows(counts.reconstruct(m, use=use), lacks(counts, m), p)
    for source in others:
        assert_rows(counts.translate(source, m), lacks(counts, source), p)
    assert_rows(counts.impute(m), lacks(counts, *others), p)
    first, second = np.arange(0, 100), np.arange(50, 150)
    absent = lacks(counts, m)
    assert_rows(counts.counterfactual(m, first, second), absent[first] | absent[second], p)
    for values in (counts.reconstruct(m), counts.translate(others[0], m), counts.impute(m)):
        assert np.nanmin(values) >= 0
    assert np.nanmin(counts.reconstruct("prot", transformed=True)) < 0  # centred log ratios


def test_a_reconstruction_resembles_the_data(neural):
    x, both = neural.adata["a"].X, neural.reconstruct("a")
    explained = lambda found: 1 - (found - x).var() / x.var()
    assert explained(both) > 0.9
    assert explained(both) > explained(neural.reconstruct("a", use="shared")) > 0.2
    assert explained(both) > explained(neural.reconstruct("a", use="specific")) > 0.2


def test_translation_tells_what_is_shared_and_no_more(neural):
    # b holds a multiple of the first latent and the square of the second, and two latents of its own: about half
    x, found = neural.adata["b"].X, neural.translate("a", "b")
    shuffled = found[np.random.default_rng(0).permutation(800)]
    assert 0.4 < 1 - (found - x).var() / x.var() < 0.8
    assert 1 - (shuffled - x).var() / x.var() < 0


def test_use_leaves_the_other_code_at_its_mean(neural):
    shared = neural.reconstruct("a", use="shared")
    # cells with other specific codes and equal shared ones would agree: the counterfactual differs, this does not
    module = neural.module
    c = torch.as_tensor(neural.get_latent_representation(kind="shared", modality="a"))
    with torch.no_grad():
        zeros = torch.zeros(800, neural.report().n_specific["a"])
        expected = module.input_layers["a"].inverse(module.decode("a", c, zeros))
    np.testing.assert_allclose(shared, expected, atol=1e-4)


def test_counts_come_back_at_the_size_of_the_cell(counts):
    reference = np.median(np.asarray(counts.adata["rna"].X.sum(axis=1)))
    for m in ("rna", "prot"):
        totals = pd.Series(np.asarray(counts.adata[m].X.sum(axis=1)).ravel(), index=counts.adata[m].obs_names)
        sizes = totals.reindex(counts.adata.obs_names).to_numpy()
        found, some = counts.reconstruct(m).sum(axis=1), sizes > 0
        assert (found[sizes == 0] < 1).all()
        assert np.corrcoef(np.log(found[some]), np.log(sizes[some]))[0, 1] > 0.9
    absent = lacks(counts, "rna") & ~lacks(counts, "prot")
    found = counts.translate("prot", "rna")[absent].sum(axis=1)
    assert absent.sum() > 3
    assert (found / reference > 0.3).all()
    assert (found / reference < 3).all()


def test_of_two_modalities_imputation_is_translation(pair):
    for source, target in (("rna", "prot"), ("prot", "rna")):
        np.testing.assert_array_equal(pair.impute(target), pair.translate(source, target))


def test_of_three_modalities_imputation_from_one_is_its_translation(counts):
    only = lacks(counts, "rna") & ~lacks(counts, "atac")
    assert only.any()
    np.testing.assert_allclose(
        counts.impute("prot")[only], counts.translate("atac", "prot")[only], rtol=1e-4, atol=1e-4
    )
    both = ~lacks(counts, "rna") & ~lacks(counts, "atac")
    assert np.abs(counts.impute("prot")[both] - counts.translate("atac", "prot")[both]).max() > 1e-2


def test_what_is_imputed_does_not_depend_on_what_was_measured(pair, make_mdata, remake):
    mdata = make_mdata(80, seed=4)
    less = remake(mdata, prot=None)
    for ask in (pair.impute, lambda target, data, **options: pair.translate("rna", target, data, **options)):
        known, unknown = ask("prot", mdata, transformed=True), ask("prot", less, transformed=True)
        np.testing.assert_allclose(unknown, known, atol=1e-5)
        assert unknown.shape == (80, 8)
        values = ask("prot", less)
        assert np.isfinite(values).all()
        assert values.min() >= 0
    assert np.isnan(pair.impute("rna", less)).all()  # there is nothing else
    assert np.isnan(pair.reconstruct("prot", less)).all()


def test_a_cell_with_its_own_codes_is_its_reconstruction(counts):
    cells = np.arange(150)
    for transformed in (True, False):
        np.testing.assert_allclose(
            counts.counterfactual("rna", cells, cells, transformed=transformed),
            counts.reconstruct("rna", transformed=transformed),
            atol=1e-4,
        )


def test_a_counterfactual_has_the_codes_of_two_cells(neural):
    first, second = np.arange(400), np.arange(400, 800)
    found = neural.counterfactual("a", first, second)
    c = torch.as_tensor(neural.get_latent_representation(kind="shared", modality="a"))[first]
    s = torch.as_tensor(neural.get_latent_representation(kind="specific", modality="a"))[second]
    with torch.no_grad():
        expected = neural.module.input_layers["a"].inverse(neural.module.decode("a", c, s))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert neural.counterfactual("a", [3, 3, 5], [9, 1, -1]).shape == (3, 8)


def test_a_counterfactual_may_take_the_shared_code_of_another_modality(neural):
    first, second = np.arange(400), np.arange(400, 800)
    found = neural.counterfactual("a", first, second, shared_modality="b")
    codes = {m: neural.get_latent_representation(kind="shared", modality=m) for m in "ab"}
    s = torch.as_tensor(neural.get_latent_representation(kind="specific", modality="a"))[second]
    with torch.no_grad():
        # alone, the other modality tells of the code its correlation times its own
        c = neural.module.candidate.kept_correlation * torch.as_tensor(codes["b"])[first]
        expected = neural.module.input_layers["a"].inverse(neural.module.decode("a", c, s))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    support = neural.counterfactual_support("a", first, first, shared_modality="b")
    assert support.mean() > neural.counterfactual_support("a", first, second, shared_modality="b").mean()


def test_a_counterfactual_has_the_size_of_the_cell_of_its_shared_code(pair):
    has = np.flatnonzero(~lacks(pair, "rna"))
    x = np.asarray(pair.adata["rna"][pair.adata.obs_names[has]].X.sum(axis=1)).ravel()
    order = np.argsort(x)[[20, -1]]
    small, large = has[order]
    found = pair.counterfactual("rna", [small, large], [small, small]).sum(axis=1)
    assert found[1] / found[0] == pytest.approx(x[order[1]] / x[order[0]], rel=0.5)


def test_the_way_back_leaves_gradients_on(pair):
    pair.counterfactual("rna", range(5), range(5))
    pair.impute("rna")
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_errors_of_the_way_back(counts):
    for ask in (
        lambda: counts.reconstruct("proteins"),
        lambda: counts.translate("proteins", "rna"),
        lambda: counts.translate("rna", "proteins"),
        lambda: counts.impute("proteins"),
        lambda: counts.counterfactual("proteins", [0], [0]),
    ):
        with pytest.raises(KeyError, match="No modality 'proteins' in the model"):
            ask()
    with pytest.raises(ValueError, match="`use`"):
        counts.reconstruct("rna", use="all")
    with pytest.raises(ValueError, match="pair cells: got 2 and 1"):
        counts.counterfactual("rna", [0, 1], [0])
    with pytest.raises(IndexError, match="there are 150 observations"):
        counts.reconstruct("rna", indices=[150])


def test_indices_and_single_cells(counts, make_mdata):
    asks = {
        "reconstruct": lambda *a, **k: counts.reconstruct("rna", *a, **k),
        "translate": lambda *a, **k: counts.translate("rna", "atac", *a, **k),
        "impute": lambda *a, **k: counts.impute("prot", *a, **k),
        "retrieval": lambda *a, **k: counts.get_retrieval_representation("atac", *a, **k),
    }
    alone = counts.adata[[7]].copy()
    for name, ask in asks.items():
        whole = ask()
        for indices in ([5, 3, 3], [-1], [7], []):
            np.testing.assert_allclose(ask(indices=indices), whole[indices], rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(ask(alone), whole[[7]], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("transform", ["log1p", "clr", "pearson"])
@pytest.mark.parametrize("given", [False, True])
def test_the_scale_of_size_factors_does_not_matter(make_mdata, remake, transform, given):
    mdata = make_mdata(120)
    totals = np.asarray(mdata["prot"].X).sum(axis=1)
    for adata in mdata.mod.values():
        sizes = np.asarray(adata.X.sum(axis=1)).ravel()
        adata.obs["size"] = np.maximum(sizes, 1) / np.median(sizes) * 1.5
    setup = {"size_factor_key": "size"} if given else None
    model = trained(mdata, setup, input_transform={"prot": transform})
    own = model.reconstruct("prot").sum(axis=1)[mdata.obs_names.get_indexer(mdata["prot"].obs_names)]
    assert np.corrcoef(own, totals)[0, 1] > 0.9
    assert own.mean() == pytest.approx(totals.mean(), rel=0.15)
    # not measured: cells of typical size
    found = model.translate("rna", "prot", remake(mdata, prot=None)).sum(axis=1)
    assert 0.5 * np.median(totals) < np.median(found) < 1.5 * totals.mean()


# ---- saving, going on, resuming ---------------------------------------------------------------------


def assert_same_report(found, expected):
    assert str(found) == str(expected)
    pd.testing.assert_frame_equal(found.candidates, expected.candidates)
    np.testing.assert_array_equal(found.correlations, expected.correlations)
    assert (found.threshold, found.interval) == (expected.threshold, expected.interval)


@pytest.mark.parametrize("which", ["neural", "counts"])
def test_saved_and_loaded_it_is_the_same(which, request, tmp_path):
    model = request.getfixturevalue(which)
    model.save(tmp_path / "model")
    loaded = ub.model.Unbraid.load(tmp_path / "model", model.adata)
    assert_same(latents(loaded), latents(model))
    assert_same_report(loaded.report(), model.report())
    m, n = model.modalities[:2]
    for ask in (
        lambda x: x.reconstruct(m),
        lambda x: x.translate(m, n),
        lambda x: x.impute(m),
        lambda x: x.get_retrieval_representation(n, role="target"),
    ):
        np.testing.assert_array_equal(ask(loaded), ask(model))


def test_training_goes_on():
    epochs, training = (
        {"shared": 2, "scratch": 0, "residual": 1, "specific": 1},
        {"batch_size": 64, "validation_size": 0.3},
    )
    model = trained(folded(400), None, epochs, training, lr=0.01)
    before, start = model.reconstruct("a"), model.module.linear.encoders["a"].linear_start.clone()
    information = model.report().candidates["information"]
    model.train(epochs, **training, **QUIET)
    assert torch.equal(model.module.linear.encoders["a"].linear_start, start)
    after = model.report().candidates["information"]
    assert after["linear"] == information["linear"]
    assert after["shared"] > information["shared"]  # two epochs were too few
    assert len(model.history["shared/train_loss"]) == 4
    assert all(np.isfinite(z).all() for z in latents(model).values())
    assert np.abs(model.reconstruct("a") - before).max() > 1e-3
    assert np.square(model.reconstruct("a") - model.adata["a"].X).mean() < 0.01


def test_query_data(counts, make_mdata, tmp_path):
    mdata = make_mdata(90, ("rna", "prot", "atac"), missing={"atac": 0.3}, seed=8)
    model = ub.model.Unbraid.load_query_data(mdata.copy(), counts)
    assert_same(latents(model), latents(counts, mdata), atol=1e-5)
    assert_same_report(model.report(), counts.report())
    mdata.obs["batch"] = "new"
    counts.save(tmp_path / "model")
    model = ub.model.Unbraid.load_query_data(mdata, tmp_path / "model")
    assert all(np.isfinite(z).all() for z in latents(model).values())
    model.train(1, batch_size=32, validation_size=0.6, **QUIET)
    assert all(np.isfinite(z).all() for z in latents(model).values())
    assert np.isfinite(model.reconstruct("rna")).all()


class PowerCut(Exception):
    pass


class Cut(Callback):
    """Raise in a hook of a stage, in an epoch."""

    def __init__(self, stage, hook, epoch):
        def raise_there(trainer, plan, *args):
            if plan.stage.name == stage and trainer.current_epoch == epoch:
                raise PowerCut

        setattr(self, hook, raise_there)


RESUMED = {"max_epochs": 2, "batch_size": 60, "validation_size": 0.4, **QUIET}


@pytest.fixture(scope="module")
def uninterrupted():
    model = build(folded(200), lr=0.01)
    model.train(**RESUMED)
    return model


@pytest.mark.parametrize(
    ("stage", "hook", "epoch"),
    [
        ("shared", "on_train_batch_end", 1),
        ("scratch", "on_train_epoch_start", 0),
        ("residual", "on_train_batch_end", 1),
        ("specific", "on_train_epoch_start", 0),  # the residuals at hand are gone
        ("specific", "on_train_batch_end", 1),
    ],
)
def test_resumed_as_if_never_interrupted(uninterrupted, tmp_path, stage, hook, epoch):
    broken, resumed = (build(folded(200), lr=0.01) for _ in range(2))
    with pytest.raises(PowerCut):
        broken.train(**RESUMED, checkpoint_dir=str(tmp_path), callbacks=[Cut(stage, hook, epoch)])
    resumed.train(**RESUMED, checkpoint_dir=str(tmp_path), resume=True)
    assert_same(latents(resumed), latents(uninterrupted), rtol=1e-3, atol=1e-3)
    assert str(resumed.report()) == str(uninterrupted.report())
    for name, frame in uninterrupted.history.items():
        np.testing.assert_allclose(resumed.history[name], frame, rtol=1e-3, atol=1e-4, err_msg=name)


def test_the_joint_code_is_regressed_out_of_a_linear_split_too():
    model = trained(folded(), condition="joint")
    train = model.train_indices_
    cells = model.adata_manager.create_torch_dataset()[train]
    joint = model.get_latent_representation(indices=train)
    expected = np.linalg.lstsq(joint, model.module.components(cells)["a"].numpy(), rcond=None)[0]
    np.testing.assert_allclose(model.module.maps["a"].explained, expected, atol=1e-4)


def test_a_residual_of_a_residual_is_refused(pair):
    with pytest.raises(ValueError, match="leave 'residual' out"):
        build(pair.adata.copy(), independence={"residual": 1.0})


def test_cells_held_out_of_the_training_ones_still_count_in_a_linear_choice():
    mdata = folded()
    mdata.obs["split"] = ["train"] * 700 + ["test"] * 100
    model = trained(mdata, training={"split_key": "split"})
    assert len(model.train_indices_) == 630
    assert len(model.validation_indices_) == 70
    ub.model.LinearSplit.setup_mudata(mdata)
    linear = ub.model.LinearSplit(mdata, ridge=0.01)
    linear.train(split_key="split", seed=0)
    found, expected = model.get_latent_representation(), linear.get_latent_representation()
    assert model.report().chosen == "linear"
    np.testing.assert_allclose(found * np.sign((found * expected).sum(axis=0)), expected, atol=1e-4)


def test_small_batches_are_warned_of(make_mdata):
    few = {"max_epochs": 0, "train_size": 1.0, **QUIET}
    model = trained(make_mdata(150), epochs=0)
    with pytest.warns(UserWarning, match="for which 64 cells are few"):
        model.train(batch_size=64, **few)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unbraid learns from correlations")
        model.train(batch_size=128, **few)
        trained(make_mdata(100), epochs=0, training={"batch_size": 100, "train_size": 1.0})  # there are no more
