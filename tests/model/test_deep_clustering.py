"""The deep clustering methods: what they compute, and that pairs of cells say which clusters they find."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from unbraid.data import Pairs
from unbraid.model import CIDEC, DCGMM, SDEC, VaDE, VolMaxDCC

ALL = [VaDE, DCGMM, SDEC, CIDEC, VolMaxDCC]
LINKED = ALL[1:]
DECODING = ALL[:-1]
SMALL = {"n_shared": 3, "n_clusters": 3, "n_hidden": 8}


def mudata_of(**values: np.ndarray) -> MuData:
    names = [f"cell_{i}" for i in range(len(next(iter(values.values()))))]
    return MuData({m: AnnData(x.astype("float32"), obs=pd.DataFrame(index=names)) for m, x in values.items()})


def random_pairs(y: np.ndarray, n: int, seed: int = 0) -> Pairs:
    """At most ``n`` pairs of either kind."""
    rng = np.random.default_rng(seed)
    rows = np.unique(np.sort(rng.integers(len(y), size=(8 * n, 2)), axis=1), axis=0)
    rows = rng.permutation(rows[rows[:, 0] < rows[:, 1]])
    same = y[rows[:, 0]] == y[rows[:, 1]]
    return Pairs(rows[same][:n], rows[~same][:n])


def build(cls, mdata: MuData, setup: dict | None = None, **options):
    if cls is not VaDE and "pairs" in mdata.obsp:
        setup = {"pairs_key": "pairs", **(setup or {})}
    cls.setup_mudata(mdata, **(setup or {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(mdata, **{**SMALL, **options})


def train(model, max_epochs=1, **options):
    model.train(max_epochs, **{"batch_size": 200, "seed": 0, "progress_bar": False, "accelerator": "cpu", **options})
    return model


def batch_of(model, rows=slice(0, 20)) -> dict:
    return model.adata_manager.create_torch_dataset()[np.arange(model.adata.n_obs)[rows]]


def accuracy(found: np.ndarray, y: np.ndarray) -> float:
    table = np.zeros((found.max() + 1, y.max() + 1))
    np.add.at(table, (found, y), 1)
    return table[linear_sum_assignment(-table)].sum() / len(y)


@pytest.fixture
def counts(make_mdata):
    """Counts in two batches, with missing modalities and pairs of the cell types."""
    mdata = make_mdata(missing=0.2)
    mdata.obsp["pairs"] = random_pairs(mdata.obs["cell_type"].cat.codes.to_numpy(), 20).matrix(60)
    return mdata


# ---- what is found ------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_clusters_that_are_there_are_found(cls):
    rng = np.random.default_rng(0)
    y, values = rng.integers(4, size=600), {}
    for m, p in {"a": 12, "b": 8}.items():
        centers = rng.normal(size=(4, p))
        values[m] = (4 * centers / np.linalg.norm(centers, axis=1, keepdims=True))[y] + rng.normal(size=(600, p))
    mdata = mudata_of(**values)
    mdata.obsp["pairs"] = random_pairs(y, 300).matrix(600)
    model = build(cls, mdata, n_shared=5, n_clusters=4, n_hidden=32)
    train(model, {"cluster": 10} if cls is VolMaxDCC else {"pretrain": 3, "cluster": 3}, batch_size=60, lr=5e-3)
    assert accuracy(model.predict_cluster(), y) > 0.9


def test_pairs_say_which_clusters_are_wanted():
    """Of two factors VaDE finds the stronger one, and DC-GMM the weaker one if pairs are of it."""
    rng = np.random.default_rng(1)
    strong, weak = rng.integers(2, size=(2, 600))
    values = {}
    for m, p in {"a": 12, "b": 8}.items():
        u = rng.normal(size=(2, p))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        values[m] = np.outer(4 * strong, u[0]) + np.outer(3 * weak, u[1]) + rng.normal(size=(600, p))
    mdata, found = mudata_of(**values), {}
    mdata.obsp["pairs"] = random_pairs(weak, 300).matrix(600)
    for cls in (VaDE, DCGMM):
        model = build(cls, mdata, n_shared=5, n_clusters=2, n_hidden=32)
        found[cls] = train(model, {"pretrain": 3, "cluster": 5}, batch_size=60, lr=5e-3).predict_cluster()
    assert accuracy(found[VaDE], strong) > 0.95
    assert accuracy(found[VaDE], weak) < 0.6
    assert accuracy(found[DCGMM], weak) > 0.9
    assert accuracy(found[DCGMM], strong) < 0.6


# ---- the network --------------------------------------------------------------------------------


def test_the_encoder_begins_with_a_linear_layer_on_the_modalities_side_by_side(make_mdata):
    mdata = make_mdata()
    model = build(CIDEC, mdata)
    batch, encoder = batch_of(model), model.module.encoder
    x = model.module.inputs(batch)
    weight = torch.cat([encoder.entrances[m].weight for m in ("rna", "prot")], dim=1)
    bias = encoder.entrances["rna"].bias + encoder.entrances["prot"].bias
    expected = encoder.body(torch.cat([x["rna"], x["prot"]], dim=1) @ weight.T + bias)
    torch.testing.assert_close(model.module.encode(batch).joint, expected)


@pytest.mark.parametrize("cls", [VaDE, SDEC, VolMaxDCC])
def test_absence_is_a_mask(cls, make_mdata):
    model = build(cls, make_mdata())
    module, batch = model.module, batch_of(model)
    whole = module.encode(batch)
    batch["mask"]["prot"][:5] = False
    batch["x"]["prot"][:5] = torch.nan
    latents = module.encode(batch)
    # the code of a cell that has RNA only is its code from RNA
    torch.testing.assert_close(latents.joint[:5], whole.shared["rna"][:5])
    torch.testing.assert_close(latents.joint[5:], whole.joint[5:])
    assert (latents.shared["prot"][:5] == 0).all()
    for stage in module.stages:
        torch.manual_seed(0)
        loss = module.loss(batch, stage.name).loss
        batch["x"]["prot"][:5] = 777.0
        torch.manual_seed(0)
        assert torch.equal(module.loss(batch, stage.name).loss, loss)
        assert loss.isfinite()


@pytest.mark.parametrize("cls", ALL)
def test_one_modality_is_enough(cls, make_mdata):
    mdata = make_mdata()
    mdata = MuData({"rna": mdata["rna"]}, obs=mdata.obs[["cell_type"]])
    mdata.obsp["pairs"] = random_pairs(mdata.obs["cell_type"].cat.codes.to_numpy(), 20).matrix(60)
    model = train(build(cls, mdata), batch_size=32)
    assert model.get_latent_representation().shape == (60, 3)
    np.testing.assert_allclose(
        model.get_latent_representation(modality="rna"), model.get_latent_representation(), atol=1e-6
    )


# ---- losses -------------------------------------------------------------------------------------


def test_the_reconstruction_of_an_autoencoder_is_the_squared_error_per_feature():
    rng = np.random.default_rng(0)
    mdata = mudata_of(a=7 * rng.normal(size=(60, 4)), b=0.01 * rng.normal(size=(60, 3)))
    mdata.mod["b"] = mdata["b"][20:].copy()
    model = build(SDEC, MuData(dict(mdata.mod)))
    module, batch = model.module, batch_of(model, slice(10, 30))
    for decoder in module.decoders.networks:  # else everything is decoded as the mean
        torch.nn.init.normal_(decoder.network.layers[-1].weight)
    codes, expected = module.encode(batch).joint, torch.zeros(20)
    for m, p in {"a": 4, "b": 3}.items():
        scale = np.sqrt((model.adata[m].X.std(axis=0) ** 2).mean())
        error = (batch["x"][m] - module.decoders[m](codes).mean) / scale
        likelihood = -0.5 * error.square().sum(1) - p * np.log(scale * np.sqrt(2 * np.pi))
        expected += torch.where(batch["mask"][m], -likelihood, 0.0)
    expected /= 4 + 3 * batch["mask"]["b"]
    torch.testing.assert_close(module.loss(batch, "pretrain").loss, expected.mean())


def test_the_loss_of_vade(make_mdata):
    model = build(VaDE, make_mdata())
    module, batch = model.module, batch_of(model)
    module.clusters.start(module.posterior(batch).mean)
    torch.manual_seed(1)
    output = module.loss(batch, "cluster")
    torch.manual_seed(1)
    posterior = module.posterior(batch)
    z = posterior.mean + posterior.scale * torch.randn(1, 20, 3)[0]
    clusters, sizes, likelihood = module.clusters, {}, 0.0
    for m in ("rna", "prot"):
        sizes[m] = batch["x"][m].sum(1)
        likelihood = likelihood + module.decoders[m](z, None, sizes[m]).log_prob(batch["x"][m]).sum(1)
    components = torch.distributions.Normal(clusters.means, clusters.log_scales.exp())
    log_joint = components.log_prob(z[:, None]).sum(-1) + clusters.logits.log_softmax(0)
    g, prior = log_joint.softmax(1), clusters.logits.softmax(0)
    own = torch.distributions.Normal(posterior.mean[:, None], posterior.scale[:, None])
    divergence = (g * torch.distributions.kl_divergence(own, components).sum(-1)).sum(1)
    divergence = divergence + (torch.xlogy(g, g) - g * prior.log()).sum(1)
    torch.testing.assert_close(output.loss, (divergence - likelihood).mean())


def test_dc_gmm_has_equal_clusters(counts):
    model = train(build(DCGMM, counts, {"batch_key": "batch"}))
    assert (model.module.clusters.logits == 0).all()
    assert (train(build(VaDE, counts)).module.clusters.logits != 0).any()


@pytest.mark.parametrize("cls", LINKED)
def test_pairs_are_in_the_loss_with_a_gradient(cls, counts):
    """The released SDEC computes its term from codes kept aside: it has none."""
    pairs = {"must_link": slice(0, 12), "cannot_link": slice(20, 30)}
    model = build(cls, counts)
    module, batch = model.module, batch_of(model)
    given = {kind: batch_of(model, rows) for kind, rows in pairs.items()}
    if cls is not VolMaxDCC:
        module.clusters.start(module.posterior(batch_of(model, slice(None))).mean)
    assert not {"must_link", "cannot_link"} & set(module.loss(batch, "cluster").extra_metrics)
    for kind, pair_batch in given.items():
        output = module.loss({**batch, kind: pair_batch}, "cluster")
        assert output.extra_metrics[kind].isfinite()
        codes = module.posterior(pair_batch).mean
        term = module.link(kind, codes, module.clusters.log_probabilities(codes))
        gradients = torch.autograd.grad(term, [entrance.weight for entrance in module.encoder.entrances.networks])
        assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)


def test_what_each_method_makes_of_pairs(counts):
    codes = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 9, 0]])  # cells 0 and 2, and 1 and 3, are pairs
    distance = torch.tensor([4.0, 82.0])
    sdec = build(SDEC, counts).module
    torch.testing.assert_close(sdec.link("must_link", codes, codes), distance.mean())
    torch.testing.assert_close(sdec.link("cannot_link", codes, codes), -distance.clamp(max=10).mean())
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])
    same = (p[:2] * p[2:]).sum(1)
    dcgmm, cidec, volmax = (build(cls, counts).module for cls in (DCGMM, CIDEC, VolMaxDCC))
    torch.testing.assert_close(dcgmm.link("must_link", codes, p.log()), -same.mean())
    torch.testing.assert_close(dcgmm.link("cannot_link", codes, p.log()), same.mean())
    torch.testing.assert_close(cidec.link("must_link", codes, p.log()), -same.log().mean())
    torch.testing.assert_close(cidec.link("cannot_link", codes, p.log()), -(1 - same).log().mean())
    linked = ((p[:2] @ volmax.clusters.compatibility.sigmoid()) * p[2:]).sum(1)
    torch.testing.assert_close(volmax.link("must_link", codes, p.log()), -linked.log().mean())
    torch.testing.assert_close(volmax.link("cannot_link", codes, p.log()), -(1 - linked).log().mean())


def test_published_weights(counts):
    weights = {cls: build(cls, counts).module.weights for cls in LINKED}
    assert weights[DCGMM] == {"reconstruction": 1, "divergence": 1, "must_link": 1e4, "cannot_link": 1e4}
    assert weights[SDEC] == {"reconstruction": 1, "clustering": 1, "must_link": 0.1, "cannot_link": 0.1}
    assert weights[CIDEC] == {"reconstruction": 1, "clustering": 0.1, "must_link": 0.1, "cannot_link": 1}
    assert weights[VolMaxDCC] == {"must_link": 1, "cannot_link": 1, "volume": 0.1}
    compatibility = build(VolMaxDCC, counts).module.clusters.compatibility.sigmoid()
    torch.testing.assert_close(
        compatibility[:2, :2], torch.tensor([[0.7311, 0.2689], [0.2689, 0.7311]]), atol=1e-4, rtol=0
    )


# ---- stages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [SDEC, CIDEC])
@pytest.mark.parametrize("epochs", [0, 1])
def test_clusters_begin_where_k_means_finds_them(cls, epochs, counts):
    model = train(build(cls, counts), {"pretrain": epochs, "cluster": 0})
    codes = model.get_latent_representation(indices=model.train_indices_)
    expected = KMeans(3, n_init=20, random_state=0).fit(codes).inertia_
    distance = np.square(codes[:, None] - model.module.clusters.centers.detach().numpy()).sum(-1)
    assert distance.min(axis=1).sum() == pytest.approx(expected, rel=1e-3)


def test_a_mixture_begins_where_expectation_maximisation_ends(make_mdata):
    model = train(build(VaDE, make_mdata(n_obs=200)), {"pretrain": 2, "cluster": 0})
    codes = torch.as_tensor(model.get_latent_representation(indices=model.train_indices_))
    clusters = model.module.clusters
    # one more step of it changes nothing
    g = clusters.log_probabilities(codes).exp().detach()
    torch.testing.assert_close(g.mean(0), clusters.logits.softmax(0).detach(), atol=0.02, rtol=0)
    torch.testing.assert_close((g.T @ codes) / g.sum(0)[:, None], clusters.means.detach(), atol=0.02, rtol=0.05)


@pytest.mark.parametrize("cls", [DCGMM, SDEC])
def test_pretraining_can_be_left_out(cls, counts):
    stages = lambda model: {name.split("/")[0] for name in model.history}
    assert stages(train(build(cls, counts, pretrain=False))) == {"cluster"}
    assert stages(train(build(cls, counts, pretrain=False), {"pretrain": 1, "cluster": 1})) == {"pretrain", "cluster"}


# ---- clusters of cells --------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_predict_cluster(cls, counts, remake, tmp_path):
    model = build(cls, counts, {} if cls is VolMaxDCC else {"batch_key": "batch"})
    with pytest.raises(RuntimeError, match="is not trained"):
        model.predict_cluster()
    train(model, 2)
    hard, soft = model.predict_cluster(), model.predict_cluster(soft=True)
    assert hard.dtype == np.int64
    assert hard.shape == (60,)
    assert soft.dtype == np.float32
    assert soft.shape == (60, 3)
    np.testing.assert_allclose(soft.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(soft.argmax(axis=1), hard)
    np.testing.assert_array_equal(model.predict_cluster(indices=[5, 3]), hard[[5, 3]])
    with pytest.raises(ValueError, match="one code of the cell"):
        model.predict_cluster(vote=True)
    query = remake(counts, prot=None)
    assert model.predict_cluster(query).shape == (query["rna"].n_obs,)
    model.save(tmp_path / "model")
    alone = cls.load(tmp_path / "model", adata=False)
    np.testing.assert_array_equal(alone.predict_cluster(counts.copy(), soft=True), soft)


@pytest.mark.parametrize("cls", DECODING)
def test_new_batches(cls, counts, make_mdata):
    model = train(build(cls, counts, {"batch_key": "batch"}))
    query = make_mdata(seed=2)
    query.obs["batch"] = "from elsewhere"
    extended = cls.load_query_data(query, model)
    first = extended.module.decoders["rna"].network.layers[0].weight
    torch.testing.assert_close(first[:, -1], first[:, -3:-1].mean(1))  # as the mean of the two batches known
    assert extended.predict_cluster().shape == (60,)
    train(extended, {"pretrain": 0, "cluster": 1})


# ---- what users get wrong -----------------------------------------------------------------------


def test_vol_max_dcc_needs_pairs(counts):
    none = build(VolMaxDCC, counts, {"pairs_key": None})
    with pytest.raises(ValueError, match="learns from pairs of cells alone.*`unbraid.pp.pairs_from_labels`.*pairs_key"):
        train(none)
    counts.obs["split"] = ["train"] * 30 + ["test"] * 30
    counts.obsp["pairs"] = Pairs(np.array([[0, 40], [31, 50]]), np.array([[1, 45]])).matrix(60)
    with pytest.raises(ValueError, match=r"none of the 3 pairs in obsp\['pairs'\].*among those to train on"):
        train(build(VolMaxDCC, counts), split_key="split")
    with pytest.raises(ValueError, match="VolMaxDCC has no decoder, and so no `pretrain`"):
        build(VolMaxDCC, counts, pretrain=False)


def test_what_users_get_wrong(counts):
    for cls, options, message in (
        (VaDE, {"n_clusters": 1}, "`n_clusters` must be a whole number of at least 2, got 1"),
        (VaDE, {"n_shared": 0}, "`n_shared` must be positive"),
        (DCGMM, {"alpha": -1.0}, "`alpha` must be at least 0"),
        (SDEC, {"gamma": -1.0}, "`gamma` must be at least 0"),
        (SDEC, {"margin": 0.0}, "`margin` must be positive"),
        (CIDEC, {"cannot_link_weight": -1.0}, "`cannot_link_weight` must be at least 0"),
        (VolMaxDCC, {"volume_weight": -1.0}, "`volume_weight` must be at least 0"),
        (CIDEC, {"pairs_per_batch": 0}, "`pairs_per_batch` must be a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            build(cls, counts, **options)
    with pytest.raises(ValueError, match="VaDE does not use pairs of cells"):
        build(VaDE, counts, {"pairs_key": "pairs"})
    with pytest.raises(ValueError, match="54 training cells cannot make 55 clusters"):
        train(build(SDEC, counts, n_clusters=55))


def test_a_weight_of_zero_removes_a_term(counts):
    for cls, options, gone in (
        (CIDEC, {"clustering_weight": 0.0}, {"clustering"}),
        (CIDEC, {"must_link_weight": 0.0}, {"must_link"}),
        (DCGMM, {"alpha": 0.0}, {"must_link", "cannot_link"}),
        (VolMaxDCC, {"volume_weight": 0.0}, {"volume"}),
    ):
        terms = []
        for module in (build(cls, counts).module, build(cls, counts, **options).module):
            batch = {**(cells := batch_of(build(cls, counts))), "must_link": cells, "cannot_link": cells}
            terms.append(set(module.loss(batch, "cluster").extra_metrics))
        assert terms[0] - terms[1] == gone
