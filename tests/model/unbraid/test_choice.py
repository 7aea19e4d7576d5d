"""Unbraid: where it starts, what it chooses, and what it says of that."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData

import unbraid as ub

QUIET = {"seed": 0, "accelerator": "cpu", "progress_bar": False}


# ---- where it starts --------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [("rna", "prot"), ("rna", "prot", "atac")])
@pytest.mark.parametrize("n_shared", [None, 3])
def test_without_epochs_it_is_the_linear_split(make_mdata, modalities, n_shared, trained, latents):
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


def test_few_validation_cells_keep_the_shared_code_linear(folded, build):
    model = build(folded(200))
    with pytest.warns(UserWarning, match="180 training cells with two modalities are too few to hold 50 of them out"):
        model.train(1, batch_size=64, **QUIET)
    assert model.report().chosen == "linear"
    assert (model.report().candidates["information"] == 0).all()
    assert len(model.train_indices_) == 180


def test_cells_to_choose_by_are_held_out_where_the_split_names_too_few(recwarn, folded, trained):
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


def test_a_network_beside_the_linear_map_loses_nothing(trained):
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
def test_a_network_must_gain_something(pair, make_mdata, shared, scratch, chosen, trained):
    module = trained(make_mdata(100, missing=0.2), n_shared=3).module
    cells = [pair.adata_manager.create_torch_dataset()[np.arange(100)]]
    for name, value in {"linear": 1.0, "shared": shared, "scratch": scratch}.items():
        getattr(module, name).information.fill_(value)
        getattr(module, name).kept[:3] = True
        getattr(module, name).correlation[:3] = 0.5
    with torch.no_grad():
        module.end_stage("scratch", cells)
    assert module.chosen == chosen


def test_a_gain_must_exceed_its_error(pair, make_mdata, trained):
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
def test_networks_that_learned_from_few_cells_must_gain_more(pair, make_mdata, few, errors, chosen, trained):
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


def test_where_nothing_is_shared_no_network_is_taken(trained):
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


def test_a_modality_that_no_held_out_cell_has_is_not_judged(make_mdata, remake, trained):
    mdata = make_mdata(200, ("rna", "prot", "atac"))
    mdata.obs["split"] = ["train"] * 140 + ["val"] * 60
    lacking = mdata.obs_names[140:]
    mdata = remake(mdata, atac=mdata["atac"][~mdata["atac"].obs_names.isin(lacking)].copy())
    model = trained(mdata, epochs=2, training={"split_key": "split", "batch_size": 64})
    assert np.isfinite(model.module.held_out_loss).tolist() == [True, True, False]
    assert "specific/lost_atac_validation" not in model.history
    assert np.isfinite(model.get_latent_representation(kind="specific", modality="atac")).all()


def test_a_second_training_is_judged_by_its_own_epochs(make_mdata, trained):
    model = trained(make_mdata(300, seed=2), epochs=2, training={"batch_size": 64, "validation_size": 0.3})
    best = model.module.judgements["shared"].best
    assert torch.isfinite(best).all()
    best.fill_(9.0)  # more than any epoch can have
    model.train(max_epochs={"shared": 1, "scratch": 0, "residual": 0, "specific": 0}, batch_size=64, **QUIET)
    assert (model.module.judgements["shared"].best < 9).all()
    assert not torch.isfinite(model.module.judgements["scratch"].best).any()


def test_what_the_report_says_of_a_linear_code(pair):
    assert str(pair.report()).startswith("Shared code: 3 dimensions; linear: no network told more of held-out cells.")


def test_an_untrained_model_says_so(make_mdata, build):
    model = build(make_mdata())
    for ask in (
        model.report,
        lambda: model.reconstruct("rna"),
        lambda: model.impute("rna"),
        lambda: model.get_retrieval_representation("rna"),
    ):
        with pytest.raises(RuntimeError, match="The model is not trained"):
            ask()


def test_the_numbers_of_dimensions_may_be_given(folded, trained, latents):
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
def test_bad_options_are_named(make_mdata, option, message, build):
    with pytest.raises((ValueError, KeyError), match=message):
        build(make_mdata(), **option)


def test_a_residual_of_a_residual_is_refused(pair, build):
    with pytest.raises(ValueError, match="leave 'residual' out"):
        build(pair.adata.copy(), independence={"residual": 1.0})


def test_cells_held_out_of_the_training_ones_still_count_in_a_linear_choice(folded, trained):
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


def test_small_batches_are_warned_of(make_mdata, trained):
    few = {"max_epochs": 0, "train_size": 1.0, **QUIET}
    model = trained(make_mdata(150), epochs=0)
    with pytest.warns(UserWarning, match="for which 64 cells are few"):
        model.train(batch_size=64, **few)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unbraid learns from correlations")
        model.train(batch_size=128, **few)
        trained(make_mdata(100), epochs=0, training={"batch_size": 100, "train_size": 1.0})  # there are no more
