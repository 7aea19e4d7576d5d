"""What each method computes, and that it separates what it should on data with known truth."""

from __future__ import annotations

import mudata
import numpy as np
import pytest
import torch
from anndata import AnnData
from torch.nn.functional import normalize

import unbraid as ub
from unbraid.metrics import probe
from unbraid.objectives import info_nce, orthogonality


@pytest.fixture(scope="module")
def simulated():
    return ub.data.simulate.disentangled_ssl(6_000, seed=0)


def read(z: np.ndarray, mdata, label: str) -> float:
    return probe(z, mdata.obs[label].astype(int).to_numpy(), n_permutations=0, n_splits=3).score


def batch_of(model, n: int = 32) -> dict:
    return model.adata_manager.create_torch_dataset()[np.arange(n)]


@pytest.mark.parametrize("name", ["LinearSplit", "Unbraid"])
def test_an_overfitted_dimension_does_not_hide_those_behind_it(name):
    n, rng = 300, np.random.default_rng(2)
    truth = rng.normal(size=(n, 8))
    noisy = lambda: (0.16 * truth @ rng.normal(size=(8, 120)) + 2 * rng.normal(size=(n, 120))).astype(np.float32)
    mdata = mudata.MuData({m: AnnData(noisy()) for m in ("a", "b")})
    model_class = getattr(ub.model, name)
    model_class.setup_mudata(mdata)
    model = model_class(mdata)
    model.train(seed=0, **({"max_epochs": 0} if name == "Unbraid" else {}))
    found = model.history["linear/correlation"]["correlation"].to_numpy()
    shared = found > float(model.history["linear/threshold"].iloc[0, 0])
    assert 3 <= shared.sum() < shared.nonzero()[0].max() + 1  # one in between is not
    assert model.get_latent_representation().shape == (n, shared.sum())
    kept = model.module.correlations.value if name == "LinearSplit" else model.module.candidate.kept_correlation
    np.testing.assert_allclose(kept, found[shared], rtol=1e-6)


def test_linear_split_separates_the_official_simulation(simulated):
    ub.model.LinearSplit.setup_mudata(simulated)
    model = ub.model.LinearSplit(simulated)
    model.train(seed=0)
    assert model.module.n_shared == 50  # the true number, found by re-pairing
    shared = model.get_latent_representation()
    specific = model.get_latent_representation(kind="specific", modality="x1")
    assert read(shared, simulated, "y_shared") > 0.75
    assert read(shared, simulated, "y_specific_x1") < 0.54
    assert read(shared, simulated, "y_specific_x2") < 0.54
    assert read(specific, simulated, "y_specific_x1") > 0.78
    assert read(specific, simulated, "y_shared") < 0.54


def test_linear_split_warns_when_nothing_is_shared():
    rng = np.random.default_rng(0)
    mdata = two_modalities(rng.normal(size=(300, 6)), rng.normal(size=(300, 6)))
    ub.model.LinearSplit.setup_mudata(mdata)
    model = ub.model.LinearSplit(mdata)
    with pytest.warns(UserWarning, match="No dimension is shared beyond chance"):
        model.train(seed=0)
    assert model.get_latent_representation().shape == (300, 1)


def two_modalities(a: np.ndarray, b: np.ndarray):
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    names = pd.DataFrame(index=[f"cell_{i}" for i in range(len(a))])
    return MuData({"a": AnnData(a.astype("float32"), obs=names), "b": AnnData(b.astype("float32"), obs=names)})


def test_step_1_is_info_nce_minus_beta_times_the_mean_cosine(simulated):
    ub.model.DisentangledSSL.setup_mudata(simulated)
    model = ub.model.DisentangledSSL(simulated, n_shared=8, beta=3.0, kappa=None, augmentation=None, temperature=0.2)
    batch = batch_of(model)
    codes = model.module.shared_codes(model.module.inputs(batch), batch)
    a, b = (normalize(codes[m], dim=1) for m in ("x1", "x2"))
    logits, partner = a @ b.T / 0.2, torch.arange(32)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, partner) + cross_entropy(logits.T, partner)) / 2 - 3.0 * (a * b).sum(1).mean()
    torch.testing.assert_close(model.module.loss(batch, "shared").loss, expected)


def test_step_2_takes_the_other_modality_and_leaves_shared_encoders_alone(simulated):
    ub.model.DisentangledSSL.setup_mudata(simulated)
    model = ub.model.DisentangledSSL(simulated, n_shared=8, n_specific=5, lambda_=0.5, augmentation=None)
    module, batch = model.module, batch_of(model)
    inputs = module.inputs(batch)
    c = module.shared_codes(inputs, batch)
    s = module.specific_codes(inputs, c, batch)
    expected = 0.0
    for m, other in (("x1", "x2"), ("x2", "x1")):
        u = torch.cat([s[m], c[other]], dim=1)
        # without augmentation both views are the cell itself, so the two halves of O are equal
        expected = expected + info_nce(u, u, temperature=0.07) + 0.5 * orthogonality(s[m], c[m])
    output = module.loss(batch, "specific")
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(p.grad is None for p in module.shared_encoders.parameters())
    assert all(p.grad is not None for p in module.specific_encoders.parameters())


def test_presets_are_the_published_depths(simulated):
    ub.model.DisentangledSSL.setup_mudata(simulated)
    for preset, depth in {"official": 2, "paper": 3}.items():
        model = ub.model.DisentangledSSL(simulated, preset=preset)
        linear = [x for x in model.module.shared_encoders["x1"].modules() if isinstance(x, torch.nn.Linear)]
        assert len(linear) == depth
        assert linear[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert all(stage.lr == 1e-4 for stage in model.module.stages)
    with pytest.raises(ValueError, match="preset"):
        ub.model.DisentangledSSL(simulated, preset="offical")


def test_all_accuracies_fall_with_beta():
    """The published trade-off (figure 4a), at a smoke size: the order, not the values."""
    simulated = ub.data.simulate.disentangled_ssl(3_000, seed=0)
    ub.model.DisentangledSSL.setup_mudata(simulated)
    scores = []
    for beta in (0.0, 1000.0):
        torch.manual_seed(0)
        model = ub.model.DisentangledSSL(
            simulated, n_shared=30, n_specific=0, beta=beta, input_transform="identity", n_hidden=128, weight_std=0.01
        )
        model.train(max_epochs=12, batch_size=256, early_stopping=False, seed=0, progress_bar=False)
        z = np.hstack([model.get_unnormalized_shared(m) for m in ("x1", "x2")])
        scores.append([read(z, simulated, label) for label in ("y_shared", "y_specific_x1", "y_specific_x2")])
    weak, strong = scores
    assert weak[0] > strong[0] + 0.05
    assert weak[1] > strong[1]
    assert weak[2] > strong[2]


def test_negatives_within_batches_keep_batch_from_being_rewarded():
    mdata = ub.data.simulate.citeseq(n_obs=1_200, n_genes=60, n_proteins=15, batch_strength=1.0, seed=0)
    shares = {}
    for negatives in ("all", "batch"):
        ub.model.CLIP.setup_mudata(mdata, batch_key="batch")
        torch.manual_seed(0)
        model = ub.model.CLIP(mdata, n_shared=8, n_hidden=64, negatives=negatives)
        model.train(max_epochs=15, batch_size=256, early_stopping=False, seed=0, progress_bar=False)
        z, batch = model.get_latent_representation(), mdata.obs["batch"].cat.codes.to_numpy()
        between = np.stack([z[batch == k].mean(axis=0) for k in (0, 1)])[batch]
        shares[negatives] = between.var(axis=0).sum() / z.var(axis=0).sum()
    assert shares["all"] > 0.05
    assert shares["batch"] < shares["all"] / 2


def test_batches_are_the_default_negatives_when_there_is_a_batch_key():
    mdata = ub.data.simulate.citeseq(n_obs=100, n_genes=20, n_proteins=8, seed=0)
    ub.model.CLIP.setup_mudata(mdata, batch_key="batch")
    assert ub.model.CLIP(mdata).module.negatives == "batch"
    assert ub.model.CLIP(mdata, negatives="all").module.negatives == "all"
    ub.model.CLIP.setup_mudata(mdata)
    assert ub.model.CLIP(mdata).module.negatives == "all"
    with pytest.raises(ValueError, match="batch_key"):
        ub.model.CLIP(mdata, negatives="batch")


def test_encoders_see_covariates_when_asked():
    mdata = ub.data.simulate.citeseq(n_obs=100, n_genes=20, n_proteins=8, seed=0)
    mdata.obs["age"] = np.linspace(-1, 1, 100)
    mdata.obs["sex"] = np.where(np.arange(100) % 2, "f", "m")
    ub.model.CLIP.setup_mudata(
        mdata, batch_key="batch", categorical_covariate_keys="sex", continuous_covariate_keys=["age"]
    )
    with pytest.warns(UserWarning, match="encode_covariates=True"):
        ub.model.CLIP(mdata)
    model = ub.model.CLIP(mdata, encode_covariates=True)
    covariates = model.module.covariates(batch_of(model, 10))
    assert covariates.shape == (10, 2 + 2 + 1)
    np.testing.assert_allclose(covariates[:, -1], np.linspace(-1, 1, 100)[:10], rtol=1e-6)
    np.testing.assert_allclose(covariates[:, :4].sum(), 20)
    first = model.module.shared_encoders["rna"].layers[0]
    assert first.in_features == 20 + 5


def test_resuming_takes_the_seed_of_the_interrupted_run(tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, plan):
            if trainer.current_epoch == 2:
                raise RuntimeError("killed")

    def build():
        mdata = ub.data.simulate.citeseq(n_obs=80, n_genes=20, n_proteins=8, seed=0)
        ub.model.CLIP.setup_mudata(mdata)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return ub.model.CLIP(mdata, n_shared=4, n_hidden=8)

    options = {"max_epochs": 4, "progress_bar": False, "enable_progress_bar": False}
    with pytest.raises(RuntimeError, match="killed"):
        build().train(checkpoint_dir=tmp_path / "run", seed=7, callbacks=[Stop()], **options)
    resumed, whole = build(), build()
    resumed.train(checkpoint_dir=tmp_path / "run", resume=True, **options)
    whole.train(seed=7, **options)
    assert resumed.seed_ == 7
    np.testing.assert_array_equal(resumed.get_latent_representation(), whole.get_latent_representation())
