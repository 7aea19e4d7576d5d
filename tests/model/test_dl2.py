"""What pairs of cells do to DL2, and clusters to CMVAE."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData

import unbraid as ub
from unbraid.data import Pairs
from unbraid.module._experts import MixtureOfExperts
from unbraid.nn import Posterior
from unbraid.objectives import different_components, same_component

QUIET = {"progress_bar": False, "accelerator": "cpu", "early_stopping": False}


def two_factors(n: int = 500, seed: int = 0) -> MuData:
    """Two modalities with two shared factors of four classes each, of which the second is the stronger."""
    rng = np.random.default_rng(seed)
    weak, strong = rng.integers(4, size=(2, n))
    mod = {}
    for name in ("a", "b"):
        x = rng.normal(size=(4, 12))[weak] + 1.3 * rng.normal(size=(4, 12))[strong] + 0.3 * rng.normal(size=(n, 12))
        mod[name] = AnnData(x.astype(np.float32), obs=pd.DataFrame(index=[f"cell{i}" for i in range(n)]))
    mdata = MuData(mod)
    mdata.obs["weak"], mdata.obs["strong"] = pd.Categorical(weak.astype(str)), pd.Categorical(strong.astype(str))
    return mdata


def add_pairs(mdata: MuData, key: str = "weak", n: int = 500, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(mdata.n_obs, size=(2 * n, 2)), axis=1)
    rows = np.unique(rows[rows[:, 0] < rows[:, 1]], axis=0)[:n]
    labels = mdata.obs[key].to_numpy()
    same = labels[rows[:, 0]] == labels[rows[:, 1]]
    mdata.obsp["pairs"] = Pairs(rows[same], rows[~same]).matrix(mdata.n_obs)


def fitted(cls: type, mdata: MuData, epochs: int = 10, seed: int = 0, pairs: bool = True, **options):
    cls.setup_mudata(mdata, **({"pairs_key": "pairs"} if cls is ub.model.DL2 and pairs else {}))
    torch.manual_seed(seed)
    model = cls(mdata, n_clusters=4, n_hidden=64, n_specific=2, **options)
    model.train(max_epochs=epochs, batch_size=64, lr=1e-2, seed=seed, **QUIET)
    return model


def accuracy(model, mdata: MuData, key: str) -> float:
    return ub.metrics.clustering(None, mdata.obs[key], clusters=model.predict_cluster(), n_permutations=0).acc


def test_clusters_follow_the_pairs_and_without_pairs_what_varies_most():
    mdata = two_factors(800)
    add_pairs(mdata, n=800)
    with_pairs = fitted(ub.model.DL2, mdata, n_task=4, n_residual=4)
    assert accuracy(with_pairs, mdata, "weak") > 0.95
    probe = lambda kind: (
        ub.metrics.probe(with_pairs.get_latent_representation(kind=kind), mdata.obs["strong"], n_permutations=0).score
    )
    assert probe("residual") > 0.95
    assert probe("task") < 0.85
    without = fitted(ub.model.CMVAE, mdata, n_shared=8)
    assert accuracy(without, mdata, "weak") < 0.5


def test_predictions_latents_and_pairs_survive_saving(tmp_path):
    mdata = two_factors(200)
    add_pairs(mdata, n=60)
    model = fitted(ub.model.DL2, mdata, epochs=2, n_task=3, n_residual=2)
    soft = model.predict_cluster(soft=True)
    assert soft.shape == (200, 4)
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(soft.argmax(1), model.predict_cluster())
    model.write_latent()
    np.testing.assert_array_equal(np.hstack([mdata.obsm["Z_t"], mdata.obsm["Z_r"]]), mdata.obsm["Z_c"])
    assert {len(v) for v in model.pairs_.values()} == {
        (mdata.obsp["pairs"] > 0).nnz // 2, (mdata.obsp["pairs"] < 0).nnz // 2
    }  # fmt: skip
    model.save(tmp_path / "run")
    again = ub.model.DL2.load(tmp_path / "run", mdata)
    np.testing.assert_array_equal(again.predict_cluster(soft=True), soft)
    np.testing.assert_array_equal(again.pairs_["must"], model.pairs_["must"])


def test_modalities_may_vote():
    mdata = two_factors(800)
    add_pairs(mdata, n=800)
    model = fitted(ub.model.DL2, mdata, n_task=4, n_residual=4)
    shares = model.predict_cluster(soft=True, vote=True, seed=0)
    np.testing.assert_array_equal(np.unique(shares), [0, 0.5, 1])  # two modalities
    np.testing.assert_allclose(shares.sum(1), 1)
    voted = model.predict_cluster(vote=True, seed=0)
    np.testing.assert_array_equal(voted, shares.argmax(1))
    assert (voted != model.predict_cluster(vote=True, seed=1)).any()
    labels, alone = mdata.obs["weak"], MuData({"a": mdata["a"].copy()})
    agreement = lambda found: ub.metrics.clustering(None, labels, clusters=found, n_permutations=0).acc
    assert 0.5 < agreement(voted) < agreement(model.predict_cluster())
    assert set(np.unique(model.predict_cluster(alone, soft=True, vote=True))) == {0, 1}


def test_query_cells_need_no_pairs():
    mdata = two_factors(200)
    add_pairs(mdata, n=60)
    model = fitted(ub.model.DL2, mdata, epochs=1, n_task=3, n_residual=2)
    query = two_factors(50, seed=1)
    found = ub.model.DL2.load_query_data(query, model)
    assert found.predict_cluster().shape == (50,)
    found.train(max_epochs=1, **QUIET)
    np.testing.assert_array_equal(model.predict_cluster(query, indices=[3, 1]), model.predict_cluster(query)[[3, 1]])


def test_history_has_the_terms_of_the_pairs():
    mdata = two_factors(200)
    add_pairs(mdata, n=60)
    history = fitted(ub.model.DL2, mdata, epochs=1, n_task=3, n_residual=2).history
    for stage, term in itertools.product(("warmup", "vae"), ("must_link", "cannot_link")):
        assert f"{stage}/{term}_train" in history
        assert f"{stage}/{term}_validation" not in history
    no_weight = fitted(ub.model.DL2, mdata, epochs=1, n_task=3, n_residual=0, must_link_weight=0.0).history
    assert "vae/must_link_train" not in no_weight
    one_stage = fitted(ub.model.DL2, mdata, epochs=1, n_task=3, place_clusters=False).history
    assert {key.split("/")[0] for key in one_stage} == {"vae"}


def test_traversals_and_interpolations_of_parts():
    mdata = two_factors(60)
    model = fitted(ub.model.DL2, mdata, epochs=1, pairs=False, n_task=3, n_residual=2)
    cell = model.reconstruct("a", indices=[4])[0]
    shared = model.traverse("a", 4, kind="shared", dimensions=range(5))
    task, residual = (
        model.traverse("a", 4, kind=kind, dimensions=range(n)) for kind, n in (("task", 3), ("residual", 2))
    )
    np.testing.assert_allclose(np.concatenate([task, residual]), shared, rtol=1e-5)
    np.testing.assert_allclose(task[:, 3], np.tile(cell, (3, 1)), rtol=1e-4, atol=1e-5)
    end = model.interpolate("a", 4, 7, kind="task")
    np.testing.assert_allclose(end[0], cell, rtol=1e-4, atol=1e-5)
    both = model.interpolate("a", 4, 7)
    assert np.abs(end[-1] - both[-1]).max() > 1e-3  # the rest is still that of the first cell
    with pytest.raises(ValueError, match="`kind` must be"):
        model.interpolate("a", 4, 7, kind="w")


# ---- the terms, against loops ----------------------------------------------------------------


@pytest.fixture
def dual():
    """A module and a batch of three pairs, one cell of which lacks a modality."""
    mdata = two_factors(6)
    lacking = MuData({"a": mdata["a"].copy(), "b": mdata["b"][[0, 1, 2, 3, 5]].copy()})
    ub.model.DL2.setup_mudata(lacking)
    torch.manual_seed(0)
    model = ub.model.DL2(lacking, n_task=2, n_residual=2, n_specific=2, n_clusters=3, n_hidden=8)
    order = [int(np.flatnonzero(lacking.obs_names == f"cell{i}")[0]) for i in range(6)]
    return model.module.double(), {
        k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
        for k, v in model.adata_manager.create_torch_dataset()[order].items()
    }


def as_double(batch: dict) -> dict:
    return {**batch, "x": {m: x.double() for m, x in batch["x"].items()}}


def test_cannot_link_averages_over_the_modalities_of_both_cells(dual, monkeypatch):
    module, batch = dual[0], as_double(dual[1])
    monkeypatch.setattr(Posterior, "sample", lambda self, n: self.mean.unsqueeze(0).expand(n, *self.mean.shape))
    z = {m: q.mean.detach()[:, :2] for m, q in module.posteriors(batch)[0].items()}
    for measure in (same_component, different_components):
        found = module.common_cause(batch, measure).item()
        pairs = []
        for i in range(3):
            j, values = i + 3, []
            for m, n in itertools.product("ab", repeat=2):
                if batch["mask"][m][i] and batch["mask"][n][j]:
                    p, q = (module.mixture.log_probabilities(z[k][c]) for k, c in ((m, i), (n, j)))
                    together = (p.exp() * q.exp()).sum()
                    values.append((together if measure is same_component else 1 - together).log().item())
            pairs.append(np.mean(values))
        assert len(values) > 1
        assert found == pytest.approx(np.mean(pairs), rel=1e-6)


def test_virtual_modality_is_the_bound_of_equation_5(dual, monkeypatch):
    """With means for samples, so that both sides see the same draws."""
    module, batch = dual[0], as_double(dual[1])
    monkeypatch.setattr(Posterior, "sample", lambda self, n: self.mean.unsqueeze(0).expand(n, *self.mean.shape))
    means_only = property(lambda self: _Fixed(self.mean))
    reference = lambda q, x: torch.distributions.Laplace(q.mean, q.scale).log_prob(x).sum(-1)
    monkeypatch.setattr(Posterior, "log_density", reference)
    monkeypatch.setattr(Posterior, "distribution", means_only)
    found = module.virtual_modality(batch).item()

    z, w = module.posteriors(batch)
    present = lambda m, i: bool(batch["mask"][m][i])
    cut = lambda q, part: Posterior(q.mean[:, part], q.scale[:, part], q.family)
    t, r = ({m: cut(q, part) for m, q in z.items()} for part in (slice(2), slice(2, 4)))
    one = lambda q, i: Posterior(q.mean[i], q.scale[i], q.family)

    def mixture(posteriors: dict, cells: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
        """Mean over cells of the mean over the modalities that each has."""
        of_cells = []
        for i in cells:
            experts = [reference(one(q, i), x).exp() for m, q in posteriors.items() if present(m, i)]
            of_cells.append(sum(experts) / len(experts))
        return (sum(of_cells) / len(of_cells)).log()

    def likelihood(m: str, latent: torch.Tensor, i: int) -> torch.Tensor:
        distribution = module.decode(m, latent.unsqueeze(0), batch, torch.tensor([i]))
        return distribution.log_prob(batch["x"][m][[i]]).sum()

    zero, total = torch.zeros(2, dtype=torch.float64), []
    for h in range(6):
        other, sources = (h + 3) % 6, []
        for m in (m for m in "ab" if present(m, h)):
            zt, zr, own = t[m].mean[h], r[m].mean[h], w[m].mean[h]
            value = sum(likelihood(n, torch.cat([zt, zero, zero]), other) for n in "ab" if present(n, other))
            for n in (n for n in "ab" if present(n, h)):
                value = value + likelihood(n, torch.cat([zt, zr, own if n == m else zero]), h)
            prior = module.mixture.log_density(zt) + module.prior.parts[1].log_density(zr)
            prior = prior + module.specific_priors[m].log_density(own)
            posterior = mixture(t, (h, other), zt) + mixture(r, (h,), zr) + reference(one(w[m], h), own)
            sources.append(value + prior - posterior)
        total.append(sum(sources) / len(sources))
    assert found == pytest.approx(-(sum(total) / 6).item(), rel=1e-6)


class _Fixed:
    def __init__(self, mean: torch.Tensor) -> None:
        self.mean = mean

    def rsample(self, shape: tuple[int, ...] = ()) -> torch.Tensor:
        return self.mean.expand(*shape, *self.mean.shape)


def test_a_missing_modality_changes_nothing_whatever_is_written_there(dual):
    module, batch = dual[0], as_double(dual[1])
    for term in (module.virtual_modality, lambda b: module.common_cause(b, different_components)):
        torch.manual_seed(0)
        before = term(batch).item()
        spoilt = {**batch, "x": {m: x.clone() for m, x in batch["x"].items()}}
        spoilt["x"]["b"][~batch["mask"]["b"]] = 1e6
        torch.manual_seed(0)
        assert term(spoilt).item() == before


def test_product_of_mixtures_and_coupled_mixture():
    """q_t q_r against one mixture of q(z_t | x_m) q(z_r | x_m), the latter exact for what is sampled."""
    torch.manual_seed(0)
    experts = Posterior(torch.randn(2, 3, 4), torch.rand(2, 3, 4) + 0.5, "laplace")
    exists, z = torch.tensor([[True, True, True], [True, False, True]]), torch.randn(1, 2, 3, 4)
    each = lambda part: torch.stack(
        [torch.distributions.Laplace(experts.mean[m, :, part], experts.scale[m, :, part]).log_prob(z[..., part]).sum(-1)
         for m in range(2)]
    )  # fmt: skip
    count = exists.sum(0)
    mix = lambda x: (x.exp() * exists[:, None, None, :]).sum(0).div(count).log()
    coupled = MixtureOfExperts().log_density(z, experts, exists)
    torch.testing.assert_close(coupled, mix(each(slice(2)) + each(slice(2, 4))))
    product = MixtureOfExperts((2, 2)).log_density(z, experts, exists)
    torch.testing.assert_close(product, mix(each(slice(2))) + mix(each(slice(2, 4))))


# ---- number of clusters ------------------------------------------------------------------------


def test_the_number_of_clusters_is_found():
    mdata = two_factors(600)
    ub.model.CMVAE.setup_mudata(mdata)
    torch.manual_seed(0)
    model = ub.model.CMVAE(mdata, n_shared=3, n_specific=2, n_clusters=12, n_hidden=32)
    model.train(max_epochs=12, batch_size=64, lr=5e-3, seed=0, **QUIET)
    h = model.choose_n_clusters()
    assert h.index.tolist() == list(range(12, 1, -1))
    kept = h.idxmin()
    assert len(np.unique(model.predict_cluster())) <= kept < 12
    assert model.predict_cluster(soft=True).shape == (600, 12)
    assert (model.predict_cluster(soft=True).sum(0) > 0).sum() == kept


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 1}, "`n_clusters` must be"),
        ({"n_task": 0}, "`n_task` must be"),
        ({"n_specific": 0}, "`n_specific` must be"),
        ({"must_link_weight": -1}, "`must_link_weight` must be at least 0"),
        ({"cannot_link_weight": float("nan")}, "`cannot_link_weight` must be at least 0"),
        ({"must_link": "triplet"}, "`must_link` must be"),
        ({"pairs_per_batch": 0}, "`pairs_per_batch` must be"),
        ({"experts": "poe"}, "which needs `posterior='normal'`"),
    ],
)
def test_options_are_checked(options, message):
    mdata = two_factors(20)
    ub.model.DL2.setup_mudata(mdata)
    with pytest.raises((ValueError, TypeError), match=message):
        ub.model.DL2(mdata, **options)


def test_pairs_that_are_not_there_or_not_pairs():
    mdata = two_factors(20)
    with pytest.raises(KeyError, match="No pairs 'linked' in obsp"):
        ub.model.DL2.setup_mudata(mdata, pairs_key="linked")
    mdata.obsp["linked"] = np.full((20, 20), 0.5)
    with pytest.raises(ValueError, match="must hold 1"):
        ub.model.DL2.setup_mudata(mdata, pairs_key="linked")


def test_a_model_without_the_rest_has_none():
    mdata = two_factors(40)
    model = fitted(ub.model.DL2, mdata, epochs=1, pairs=False, n_task=3, n_residual=0)
    with pytest.raises(ValueError, match="no 'residual' latents"):
        model.get_latent_representation(kind="residual")
