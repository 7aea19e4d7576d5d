"""What generative models say of cells: values with the promised shape, scale, gaps and spread, and clear refusals."""

from __future__ import annotations

import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.stats import multivariate_normal

import unbraid as ub
from unbraid.data import images, text

N_GENES, N_PROTEINS = 20, 8
QUIET = {"progress_bar": False, "accelerator": "cpu", "seed": 0}
DIFFUSION = {"diffusion_options": {"n_hidden": 8, "n_steps": 20}}


def fit(cls, mdata, *, setup=None, epochs=2, batch_size=32, **options):
    cls.setup_mudata(mdata, **(setup or {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(mdata, **{"n_shared": 3, "n_hidden": 8, **options})
    model.train(max_epochs=epochs, batch_size=batch_size, **QUIET)
    return model


@pytest.fixture(scope="module")
def cells(make_mdata):
    """Cells that lack modalities; "atac" only exists in some tests."""
    return make_mdata(80, missing=0.25)


@pytest.fixture(scope="module")
def model(cells):
    """A model with specific latents and diffusion priors, after a few steps."""
    return fit(ub.model.SwapVAE, cells, n_specific=2, lr=0.01, **DIFFUSION)


def has(mdata, m):
    return mdata.obs_names.isin(mdata[m].obs_names)


def totals(mdata, m):
    """Total count of the cells that have the modality, in the order of the MuData."""
    x = mdata[m].X
    sums = pd.Series(np.asarray(x.sum(1)).ravel() if sp.issparse(x) else x.sum(1), mdata[m].obs_names)
    return sums.reindex(mdata.obs_names).to_numpy()


def check(values, shape, known):
    """Right shape, float32, and NaN in unknown cells only."""
    assert values.shape == shape
    assert values.dtype == np.float32
    gaps = np.isnan(values)
    assert (gaps.all(-1) == gaps.any(-1)).all()
    np.testing.assert_array_equal(gaps.any(-1), np.broadcast_to(~known, shape[:-1]))


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["both", "shared", "specific"])
def test_reconstructions_sum_to_the_total_of_the_cell(model, cells, use):
    values = model.reconstruct("rna", use=use)
    check(values, (80, N_GENES), has(cells, "rna"))
    np.testing.assert_allclose(values.sum(1), totals(cells, "rna"), rtol=1e-4, atol=1e-5)
    draws = model.reconstruct("rna", use=use, n_samples=3)
    check(draws, (3, 80, N_GENES), has(cells, "rna"))
    known = draws[:, has(cells, "rna")]
    assert (known == known.round()).all()  # counts
    assert (draws[0][has(cells, "rna")] != draws[1][has(cells, "rna")]).any()


def test_expected_values_of_drawn_latents_sum_to_the_total_of_the_cell(model, cells):
    pairs = [[0, 1, 2], [3, 4, 5]]
    for ask in (
        lambda **drawn: model.reconstruct("rna", **drawn),
        lambda **drawn: model.translate("prot", "rna", **drawn),
        lambda **drawn: model.impute("rna", **drawn),
        lambda **drawn: model.counterfactual("rna", *pairs, **drawn),
    ):
        expected, drawn = ask(), ask(n_samples=3, give_mean=True)
        check(drawn, (3, *expected.shape), ~np.isnan(expected).any(1))
        np.testing.assert_allclose(drawn.sum(2), np.broadcast_to(expected.sum(1), drawn.shape[:2]), rtol=1e-4)
        assert np.nanmax(np.abs(drawn[0] - drawn[1])) > 1e-4
        np.testing.assert_array_equal(ask(give_mean=True), expected)  # without draws there is no noise to leave out


def test_parts_of_a_reconstruction_depend_on_their_latents(model, cells):
    rows = has(cells, "rna")
    share = {use: model.reconstruct("rna", use=use)[rows] for use in ("both", "shared", "specific")}
    share = {use: x / x.sum(1, keepdims=True) for use, x in share.items()}
    assert abs(share["both"] - share["shared"]).max() > 1e-4
    assert abs(share["both"] - share["specific"]).max() > 1e-4


def test_translations_need_the_source_alone(model, cells):
    values = model.translate("prot", "rna")
    check(values, (80, N_GENES), has(cells, "prot"))
    check(model.translate("prot", "rna", n_samples=2), (2, 80, N_GENES), has(cells, "prot"))
    known, given = has(cells, "prot"), totals(cells, "rna")
    both = known & ~np.isnan(given)
    np.testing.assert_allclose(values[both].sum(1), given[both], rtol=1e-4, atol=1e-5)
    # from a modality to itself: the reconstruction without the specific latent, whose prior has its mean
    np.testing.assert_allclose(model.translate("rna", "rna"), model.reconstruct("rna", use="shared"), rtol=1e-5)


@pytest.mark.parametrize("cls", [ub.model.MMVAE, ub.model.SwapVAE, ub.model.Unbraid])
def test_totals_that_were_not_measured_follow_the_other_modalities(cls, tmp_path):
    depths = {"depth_correlation": 0.95, "depth_sd": 0.6, "specific_strength": 0.2, "shared_strength": 0.3}
    whole = ub.data.simulate.citeseq(600, n_genes=60, n_proteins=20, **depths, seed=0)
    lacks = np.arange(600) % 3 == 0
    mdata = mudata.MuData({"rna": whole["rna"].copy(), "prot": whole["prot"][~lacks].copy()})
    hidden = np.asarray(whole["prot"].X.sum(1)).ravel()[lacks]
    if cls is ub.model.Unbraid:
        cls.setup_mudata(mdata)
        model = cls(mdata, n_hidden=8)
        model.train(max_epochs=1, **QUIET)
    else:
        model = fit(cls, mdata, epochs=3, **({} if cls is ub.model.MMVAE else {"n_specific": 2, "diffusion": None}))
    values = model.impute("prot")
    assert np.corrcoef(np.log(values[lacks].sum(1)), np.log(hidden))[0, 1] > 0.6  # that of the two totals is 0.78
    model.save(tmp_path / "model")
    np.testing.assert_allclose(cls.load(tmp_path / "model", mdata).impute("prot"), values, rtol=1e-4)
    if cls is not ub.model.Unbraid:  # a size that is drawn widens the interval
        total = model.impute("prot", n_samples=200).sum(2)[:, lacks]
        inside = (np.quantile(total, 0.05, axis=0) <= hidden) & (hidden <= np.quantile(total, 0.95, axis=0))
        assert 0.8 < inside.mean() < 0.99


def test_chosen_cells_only_in_any_order(model):
    everything, few = model.impute("prot"), [7, 3, 3, -1]
    np.testing.assert_allclose(model.impute("prot", indices=few), everything[few], rtol=1e-5)
    np.testing.assert_allclose(
        model.translate("rna", "prot", indices=few), model.translate("rna", "prot")[few], rtol=1e-5
    )


def test_imputation_does_not_look_at_what_it_imputes(model, cells, remake):
    protein = cells["prot"].copy()
    x = protein.X.toarray() if sp.issparse(protein.X) else np.asarray(protein.X)
    protein.X = x[:, ::-1].copy()  # the same totals, at which cells are decoded
    changed = remake(cells, prot=protein)
    for cls in (model, fit(ub.model.DMVAE, cells, n_specific=2), fit(ub.model.MoPoEVAE, cells)):
        before, after = cls.impute("prot", cells), cls.impute("prot", changed)
        check(before, (80, N_PROTEINS), has(cells, "rna"))
        np.testing.assert_array_equal(before, after)
        rows = has(cells, "prot")
        assert (cls.reconstruct("prot", cells)[rows] != cls.reconstruct("prot", changed)[rows]).any()


def test_imputation_of_a_modality_that_was_never_measured(model, cells, remake):
    without = remake(cells, prot=None)
    values = model.impute("prot", without)
    check(values, (without.n_obs, N_PROTEINS), has(without, "rna"))
    assert np.isnan(model.translate("prot", "rna", without)).all()


def test_intervals_hold_draws_in_order(model, cells):
    wide, narrow = (model.impute("prot", interval=p) for p in (0.95, 0.3))
    for prediction in (wide, narrow):
        for values in prediction:
            check(values, (80, N_PROTEINS), has(cells, "rna"))
    known = has(cells, "rna")
    assert (wide.lower[known] <= wide.upper[known]).all()
    assert (wide.upper - wide.lower)[known].mean() > 2 * (narrow.upper - narrow.lower)[known].mean()
    assert wide._fields == ("mean", "lower", "upper")


def test_counterfactuals_take_one_latent_from_each_cell(model, cells):
    both = np.flatnonzero(has(cells, "rna"))
    own = model.counterfactual("rna", both, both)
    np.testing.assert_allclose(own, model.reconstruct("rna")[both], rtol=1e-5)
    one, other = both[:5], both[5:10]
    values = model.counterfactual("rna", one, other)
    check(values, (5, N_GENES), np.ones(5, bool))
    np.testing.assert_allclose(values.sum(1), totals(cells, "rna")[one], rtol=1e-4, atol=1e-5)  # totals of the first
    z, w = model.get_latent_representation(), model.get_latent_representation(kind="specific", modality="rna")
    assert z.shape[1] + w.shape[1] == 5
    assert abs(values - model.counterfactual("rna", other, one)).max() > 0
    gap = np.flatnonzero(~has(cells, "rna"))[0]
    check(model.counterfactual("rna", [one[0], gap, one[1]], [gap, one[0], one[1]], n_samples=2), (2, 3, N_GENES),
          np.array([False, False, True]))  # fmt: skip


def test_counterfactuals_of_cells_that_lack_the_modality(model, cells):
    """The state of a measured cell, and of another one what its other modality tells of it."""
    with_rna = np.flatnonzero(has(cells, "rna"))
    without = np.flatnonzero(~has(cells, "rna") & has(cells, "prot"))[:4]
    state = with_rna[:4]
    check(model.counterfactual("rna", without, state), (4, N_GENES), np.zeros(4, bool))
    values = model.counterfactual("rna", without, state, shared_modality="prot")
    check(values, (4, N_GENES), np.ones(4, bool))
    assert abs(values - model.counterfactual("rna", without[::-1], state, shared_modality="prot")).max() > 0
    found = model.counterfactual_support("rna", without, state, shared_modality="prot")
    assert ((found > 0) & (found <= 1)).all()
    with pytest.raises(KeyError, match="No modality 'protein' in the model. Did you mean 'prot'"):
        model.counterfactual("rna", without, state, shared_modality="protein")


def test_support_of_counterfactuals(model, cells):
    both, gap = np.flatnonzero(has(cells, "rna")), np.flatnonzero(~has(cells, "rna"))[0]
    own = model.counterfactual_support("rna", both, both)
    assert own.shape == both.shape
    assert ((own > 0) & (own <= 1)).all()
    swapped = model.counterfactual_support("rna", both, both[::-1])
    assert own.mean() > swapped.mean()
    assert np.isnan(model.counterfactual_support("rna", [gap, both[0]], [both[0], gap])).all()


def test_log_likelihood_of_what_was_measured(model, cells, remake):
    torch.manual_seed(0)
    found = model.get_log_likelihood(n_samples=20)
    assert found.shape == (80,)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    one = model.get_log_likelihood(remake(cells, prot=None), n_samples=20)
    joint, alone = found[has(cells, "rna") & has(cells, "prot")].mean(), one.mean()
    assert joint < alone - 5  # more counts, more to explain
    assert model.get_log_likelihood(n_samples=5, indices=[3, 4]).shape == (2,)


# --- new cells --------------------------------------------------------------------------------------------


def test_new_cells(model, cells):
    state = torch.get_rng_state()
    new = model.sample(30, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert new.n_obs == 30
    assert list(new.mod) == ["rna", "prot"]
    for m in new.mod:
        assert new[m].var_names.tolist() == cells[m].var_names.tolist()
        assert new[m].X.dtype == np.float32
        assert (new[m].X == new[m].X.round()).all()
        assert new[m].obsm["Z_s"].shape == (30, 2)
    assert new.obsm["Z_c"].shape == (30, 3)
    again, other = model.sample(30, seed=1), model.sample(30, seed=2)
    np.testing.assert_array_equal(new["rna"].X, again["rna"].X)
    assert (new["rna"].X != other["rna"].X).any()
    means = model.sample(30, seed=1, give_mean=True)
    assert (means["rna"].X != means["rna"].X.round()).any()
    # at totals of cells that there are, or at the one predicted of a cell without RNA
    measured = totals(cells, "rna")
    measured, found = measured[~np.isnan(measured)], means["rna"].X.sum(1)
    nearest = (abs(found[:, None] - measured) / (1 + measured)).min(axis=1)
    assert (nearest < 1e-4).mean() > 0.5
    assert (found < 1.001 * measured.max()).all()
    # new cells are data like others
    assert model.get_latent_representation(new).shape == (30, 3)
    assert fit(ub.model.MMVAE, new, epochs=1).impute("rna").shape == (30, N_GENES)


def test_a_model_without_specific_latents(cells):
    model = fit(ub.model.MMVAE, cells)
    new = model.sample(5, seed=0)
    assert "Z_s" not in new["rna"].obsm
    np.testing.assert_allclose(model.reconstruct("rna", use="shared"), model.reconstruct("rna"), rtol=1e-6)
    with pytest.raises(ValueError, match="MMVAE has no 'specific' latents"):
        model.counterfactual("rna", [0], [1])
    with pytest.raises(ValueError, match="MMVAE has no 'specific' latents"):
        model.counterfactual_support("rna", [0], [1])


# --- linear-Gaussian data: everything is known ---------------------------------------------------------------


@pytest.fixture(scope="module")
def linear():
    """A trained mixture of products, fresh cells, and their exact log-likelihood."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(6, 2))
    covariance = loadings @ loadings.T + 0.5**2 * np.eye(6)

    def draw(n):
        x = rng.multivariate_normal(np.zeros(6), covariance, size=n).astype(np.float32)
        names = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
        return x, mudata.MuData({"a": AnnData(x[:, :3], obs=names), "b": AnnData(x[:, 3:], obs=names)})

    _, train = draw(2_000)
    x, test = draw(600)
    networks = {"encoders": torch.nn.Identity(), "decoders": torch.nn.Linear(2, 3)}
    model = fit(ub.model.MoPoEVAE, train, epochs=12, batch_size=100, n_shared=2, lr=0.02, **networks)
    return model, test, x, multivariate_normal.logpdf(x, np.zeros(6), covariance), covariance


def test_intervals_cover_what_they_should(linear):
    model, test, x, *_ = linear
    torch.manual_seed(0)
    prediction = model.impute("b", test, interval=0.9, n_samples=200)
    covered = (x[:, 3:] >= prediction.lower) & (x[:, 3:] <= prediction.upper)
    assert covered.mean() == pytest.approx(0.9, abs=0.06)


def test_what_expected_values_leave_out_is_the_noise(linear):
    _, test, *_ = linear
    model = fit(ub.model.MMVAE, test, n_shared=2, likelihood_scale=0.5, epochs=20, lr=0.01)
    torch.manual_seed(0)
    spread = {mean: model.impute("b", n_samples=500, give_mean=mean).var(0).mean(0) for mean in (False, True)}
    np.testing.assert_allclose(spread[False] - spread[True], 0.5**2, rtol=0.05)
    assert (spread[True] > 0.01).all()  # latents are drawn
    widths = {}
    for mean in (False, True):
        prediction = model.impute("b", interval=0.9, n_samples=200, give_mean=mean)
        widths[mean] = (prediction.upper - prediction.lower).mean()
    assert widths[True] < 0.95 * widths[False]


def test_imputation_is_close_to_the_best_linear_prediction(linear):
    model, test, x, _, covariance = linear
    best = x[:, :3] @ np.linalg.solve(covariance[:3, :3], covariance[:3, 3:])
    error = lambda prediction: np.mean((x[:, 3:] - prediction) ** 2) / np.var(x[:, 3:])
    assert error(model.impute("b", test)) < error(best) + 0.1
    assert error(best) < 0.7  # there is something to predict


def test_likelihood_is_close_to_the_exact_one(linear):
    model, test, _, exact, _ = linear
    torch.manual_seed(0)
    found = model.get_log_likelihood(test, n_samples=200)
    # every modality alone has to explain the other in the mixture's bound: six features cost 0.6 nats
    assert exact.mean() - 0.9 < found.mean() < exact.mean() + 0.05
    assert np.corrcoef(found, exact)[0, 1] > 0.8
    assert model.get_log_likelihood(test, n_samples=1).mean() < found.mean() - 0.05


# --- images and texts ------------------------------------------------------------------------------------------

WORDS = ["<padding>", "<unknown>", "red", "blue", "gull", "tern"]


@pytest.mark.parametrize(
    ("cls", "options"),
    [(ub.model.MMVAEPlus, {"n_specific": 2}), (ub.model.SwapVAE, {"n_specific": 2, **DIFFUSION})],
    ids=["MMVAEPlus", "SwapVAE"],
)
def test_images_and_texts(cls, options):
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS[2:], size=3)) for _ in range(24)]
    mdata = mudata.MuData(
        {
            "image": images(rng.integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)),
            "text": text(sentences, vocabulary=WORDS),
        }
    )
    networks = {"image": "resnet", "text": "text"}
    model = fit(cls, mdata, epochs=1, batch_size=12, encoders=networks, decoders=networks, **options)
    words = model.translate("image", "text")
    check(words, (24, 3), np.ones(24, bool))
    assert set(np.unique(words)) <= set(range(len(WORDS)))  # the most probable, not a mean of numbers
    check(model.impute("image"), (24, 64), np.ones(24, bool))
    assert len(ub.data._arrays.to_strings(model.sample(3, seed=0)["text"].X, WORDS)) == 3
    assert np.isfinite(model.get_log_likelihood(n_samples=2)).all()


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda m: m.reconstruct("protein"), KeyError, "No modality 'protein'.*'prot'"),
        (lambda m: m.reconstruct("rna", use="z"), ValueError, "`use` must be one of 'both', 'shared', 'specific'"),
        (lambda m: m.reconstruct("rna", n_samples=0), ValueError, "`n_samples` must be a whole number of at least 1"),
        (lambda m: m.translate("rna", "x"), KeyError, "No modality 'x'"),
        (lambda m: m.translate("x", "rna"), KeyError, "No modality 'x'"),
        (lambda m: m.impute("x"), KeyError, "No modality 'x'"),
        (lambda m: m.impute("rna", interval=90), ValueError, "between 0 and 1, got 90"),
        (lambda m: m.impute("rna", interval=0), ValueError, "between 0 and 1, got 0"),
        (lambda m: m.impute("rna", interval=0.9, n_samples=1), ValueError, "`n_samples`.* at least 2, got 1"),
        (lambda m: m.impute("rna", transform_batch="a"), ValueError, "needs a `batch_key`"),
        (lambda m: m.impute("rna", indices=[80]), IndexError, "there are 80 observations"),
        (lambda m: m.counterfactual("rna", [0, 1], [0]), ValueError, "pair cells: got 2 and 1"),
        (lambda m: m.counterfactual_support("rna", [0], [0, 1]), ValueError, "pair cells: got 1 and 2"),
        (lambda m: m.counterfactual("x", [0], [0]), KeyError, "No modality 'x'"),
        (lambda m: m.sample(0), ValueError, "`n_obs` must be a whole number of at least 1, got 0"),
        (lambda m: m.get_log_likelihood(n_samples=1.5), ValueError, "`n_samples` must be a whole number"),
    ],
)
def test_odd_questions(model, ask, error, message):
    with pytest.raises(error, match=message):
        ask(model)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (ub.model.MMVAE, {"estimator": "vae"}, "`estimator` must be one of 'elbo', 'iwae', 'dreg'"),
        (ub.model.MMVAE, {"n_importance": 0}, "`n_importance` must be at least 1, got 0"),
        (ub.model.MMVAE, {"prior_scale": 0.0}, "`prior_scale` must be positive"),
        (ub.model.MMVAE, {"n_shared": 0}, "`n_shared` must be"),
        (ub.model.MMVAE, {"likelihood_weights": {"rna": -1.0}}, "weight of 'rna' must be at least 0, got -1.0"),
        (ub.model.MMVAE, {"encoders": "cnn"}, "modality 'rna' .*'mlp', 'resnet', 'text'.*got 'cnn'"),
        (ub.model.MMVAE, {"decoders": {"prot": "text"}}, "'prot': 'text' needs an array made by `unbraid.data.text`"),
        (ub.model.MMVAE, {"encoders": torch.nn.Flatten(0)}, "encoder of modality 'rna' must map"),
        (ub.model.MMVAEPlus, {"n_specific": 0}, "`n_specific` must be"),
        (ub.model.MoPoEVAE, {"posterior": "laplace"}, "needs `posterior='normal'`"),
        (ub.model.DMVAE, {"prior_expert": "both"}, "`prior_expert` must be one of 'joint', 'all', 'none'"),
        (ub.model.IDMVAE, {"preset": "tcag"}, "`preset` must be one of None, 'tcga', 'polymnist', 'cub'"),
        (ub.model.IDMVAE, {"augmentation_weight": -1.0}, "`augmentation_weight` must not be negative"),
        (ub.model.IDMVAE, {"augmentation_decodes": "sample"}, "samples under the likelihood 'nb' have no gradient"),
        (ub.model.SwapVAE, {"estimator": "iwae"}, "`swap` needs .*`estimator='elbo'`"),
        (ub.model.SwapVAE, {"negatives": "batch"}, "`negatives='batch'` needs a `batch_key`"),
    ],
)
def test_bad_options(cells, cls, options, message):
    cls.setup_mudata(cells)
    with pytest.raises(ValueError, match=message):
        cls(cells, **{"n_hidden": 8, **options})


def test_untrained_models_answer_nothing(cells):
    ub.model.DMVAE.setup_mudata(cells)
    model = ub.model.DMVAE(cells, n_shared=2, n_specific=2, n_hidden=8)
    for ask in (lambda: model.impute("rna"), lambda: model.sample(3), model.get_log_likelihood):
        with pytest.raises(RuntimeError, match="not trained"):
            ask()


def test_presets_are_overruled_by_what_is_given(cells):
    ub.model.IDMVAE.setup_mudata(cells)
    module = ub.model.IDMVAE(cells, n_hidden=8, preset="tcga", cross_information_weight=3.0).module
    assert (module.cross_information_weight, module.augmentation_weight, module.beta) == (3.0, 0.001, 2.5)
    assert module.prior.scale[0].item() == pytest.approx(np.log(2))
    module = ub.model.IDMVAE(cells, n_hidden=8, posterior="laplace").module
    assert module.prior.scale[0].item() == 1.0


# --- paths ----------------------------------------------------------------------------------------------


def test_a_traversal_moves_one_dimension_of_a_cell(model, cells):
    cell = int(np.flatnonzero(has(cells, "rna"))[3])
    own = model.reconstruct("rna", indices=[cell])[0]
    for kind, n in (("shared", 3), ("specific", 2)):
        values = model.traverse("rna", cell, kind=kind, n_steps=5)
        check(values, (n, 5, N_GENES), np.ones((n, 5), bool))
        # in the middle the cell itself; elsewhere not
        np.testing.assert_allclose(values[:, 2], np.tile(own, (n, 1)), rtol=1e-4, atol=1e-6)
        assert (abs(values[:, 0] - own).max(1) > 1e-5).all()
        spread = np.nanstd(model.get_latent_representation(kind=kind, modality="rna"), axis=0)
        first = model.traverse("rna", cell, kind=kind, dimensions=[int(spread.argmax())], n_steps=5)
        np.testing.assert_allclose(values[:1], first, rtol=1e-5)
    with pytest.raises(ValueError, match="run from 0 to 1"):
        model.traverse("rna", cell, dimensions=[2])
    with pytest.raises(ValueError, match="'rna' was not measured in all of the cells"):
        model.traverse("rna", int(np.flatnonzero(~has(cells, "rna"))[0]))
    with pytest.raises(KeyError, match="Did you mean 'rna'"):
        model.traverse("rnaa", cell)


def test_an_interpolation_goes_from_one_cell_to_the_other(model, cells):
    start, end = np.flatnonzero(totals(cells, "rna") > 5)[:2].tolist()
    own = model.reconstruct("rna", indices=[start, end])
    profile = own / own.sum(1, keepdims=True)
    both, shared, specific = (
        model.interpolate("rna", start, end, kind=kind, n_steps=3) for kind in ("both", "shared", "specific")
    )
    np.testing.assert_allclose(both[0], own[0], rtol=1e-4, atol=1e-6)
    batch = cells.obs["batch"].to_numpy()
    if batch[start] == batch[end]:  # at the total count of the first
        np.testing.assert_allclose(both[2] / both[2].sum(), profile[1], rtol=1e-3, atol=1e-6)
    mixed = model.counterfactual("rna", [end], [start])[0]
    np.testing.assert_allclose(shared[2] / shared[2].sum(), mixed / mixed.sum(), rtol=1e-3, atol=1e-6)
    mixed = model.counterfactual("rna", [start], [end])[0]
    np.testing.assert_allclose(specific[2], mixed, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="`kind`"):
        model.interpolate("rna", start, end, kind="none")


def test_a_model_without_specific_latents_reconstructs_from_none(cells):
    model = fit(ub.model.MMVAE, cells, epochs=1)
    np.testing.assert_allclose(model.reconstruct("rna", use="shared"), model.reconstruct("rna"))
    with pytest.raises(ValueError, match="MMVAE has no 'specific' latents"):
        model.reconstruct("rna", use="specific")
