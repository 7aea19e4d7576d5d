"""FactorCL: its bounds, its stages and codes, and what it learns."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

import unbraid as ub
from unbraid.metrics import probe
from unbraid.model import FactorCL

WIDE = {"n_embedding": 16, "critic_n_hidden": 32}  # too wide to die
SMALL = {"n_shared": 4, "n_specific": 3, "n_hidden": 8, "critic_n_hidden": 8, "heads": "term"}
QUIET = {"progress_bar": False, "accelerator": "cpu", "early_stopping": False, "seed": 0}


class Shift(nn.Module):
    """A view that is not random."""

    def forward(self, x):
        return 0.5 * x + 1.0


def build(mdata, seed=0, setup=None, **options):
    FactorCL.setup_mudata(mdata, **(setup or {}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FactorCL(mdata, **{**SMALL, **options})


def batch_of(model, n=60):
    return model.adata_manager.create_torch_dataset()[np.arange(n)]


# ---- the formula, pair by pair in NumPy -------------------------------------------------------


def all_scores(network, a, b):
    """Scores of all pairs, one at a time."""
    with torch.no_grad():
        return np.array([[network(torch.cat([x, y])[None]).item() for y in b] for x in a])


def lower(f):
    return np.mean([f[j, j] - np.log(np.mean(np.exp(f[:, j]))) for j in range(len(f))])


def upper(f):
    return np.mean(np.diag(f)) - np.mean(f)


def bounds_by_hand(model, batch, heads):
    """The six bounds of the paper, averaged over pairs of modalities or summed over modalities."""
    module, mask = model.module, batch["mask"]
    x = module.inputs(batch)
    second = {m: 0.5 * v + 1.0 for m, v in x.items()}

    def code(name, m, view, rows):
        head = name if heads == "term" else {"shared": "shared", "shared_conditional": "shared"}.get(name, "specific")
        return module.heads[m][head](module.shared_encoders[m](view[m][rows]))

    def between(name, critics, bound, conditional):
        values = []
        for (m, n), critic in zip(combinations(module.modalities, 2), critics, strict=True):
            rows = mask[m] & mask[n]
            views = (x, second) if conditional else (x,)
            a, b = (torch.cat([code(name, modality, view, rows) for view in views], dim=1) for modality in (m, n))
            values.append(bound(all_scores(critic, a, b)))
        return np.mean(values)

    networks = {name: [critic.network for critic in critics] for name, critics in module.critics.items()}
    for name, penalties in module.penalties.items():
        networks[name] = [penalty.penalties["nce_club"].critic.network for penalty in penalties]
    views = [
        lower(all_scores(critic, code("views", m, x, mask[m]), code("views", m, second, mask[m])))
        for m, critic in zip(module.modalities, networks["views"], strict=True)
    ]
    return {
        "shared_info_nce": between("shared", networks["shared"], lower, False),
        "specific_nce_club": between("specific", networks["specific"], upper, False),
        "views_info_nce": np.sum(views),
        "specific_conditional_info_nce": between("specific_conditional", networks["specific_conditional"], lower, True),
        "shared_conditional_nce_club": between("shared_conditional", networks["shared_conditional"], upper, True),
    }


@pytest.mark.parametrize("heads", ["term", "factor"])
@pytest.mark.parametrize(
    ("modalities", "missing"), [(("rna", "prot"), 0.0), (("rna", "prot", "atac"), {"prot": 0.4, "atac": 0.3})]
)
def test_the_loss_is_that_of_the_paper(make_mdata, heads, modalities, missing):
    model = build(
        make_mdata(modalities=modalities, missing=missing), heads=heads, lambda_=0.5, augmentation=Shift(), **WIDE
    )
    batch = batch_of(model, 12)
    with torch.no_grad():  # scores of an untrained critic hardly differ
        for parameter in model.module.parameters():
            parameter *= 3.0
    expected = bounds_by_hand(model, batch, heads)
    output = model.module.loss(batch, "shared")
    assert output.extra_metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(value) > 1e-3, name
        assert output.extra_metrics[name].item() == pytest.approx(value, rel=2e-3, abs=3e-7), name
    total = sum((0.5 if "club" in name else -1.0) * value for name, value in expected.items())
    assert output.loss.item() == pytest.approx(total, rel=1e-3, abs=1e-6)


def test_upper_bounds_are_refitted_by_the_lower_ones(make_mdata):
    """The critics of the upper bounds maximise their own InfoNCE bound, on codes without gradient."""
    model = build(make_mdata(), augmentation=Shift(), **WIDE)
    module, batch = model.module, batch_of(model, 10)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 2.0
    loss = module.inner_loss(batch, "shared")
    x = module.inputs(batch)
    views = [
        {m: module.shared_encoders[m](v) for m, v in z.items()} for z in (x, {m: 0.5 * v + 1 for m, v in x.items()})
    ]
    expected = 0.0
    for name, seen in (("specific", views[:1]), ("shared_conditional", views)):
        codes = [torch.cat([module.heads[m][name](view[m]) for view in seen], dim=1) for m in ("rna", "prot")]
        expected -= lower(all_scores(module.penalties[name][0].penalties["nce_club"].critic.network, *codes))
    assert abs(expected) > 1e-4
    assert loss.item() == pytest.approx(expected, rel=2e-3)
    loss.backward()
    assert all(p.grad is not None for p in module.penalties.parameters())
    for part in (module.shared_encoders, module.heads, module.critics):
        assert all(p.grad is None for p in part.parameters())


def test_everything_is_trained_by_one_loop_or_the_other(make_mdata):
    module = build(make_mdata()).module
    (stage,) = module.stages
    assert stage.inner.n_steps == 1
    outer, inner = ({id(p) for p in module.parameters_of(parts)} for parts in (stage.parts, stage.inner.parts))
    assert not outer & inner
    assert outer | inner == {id(p) for p in module.parameters()}


@pytest.mark.parametrize("options", [{"lambda_": 0.0}, {"independence": None}])
def test_without_upper_bounds_there_is_no_inner_loop(make_mdata, options):
    model = build(make_mdata(), **options)
    assert model.module.stages[0].inner is None
    model.train(max_epochs=1, batch_size=32, **QUIET)
    assert not any("club" in name or "inner" in name for name in model.history)


def test_without_augmentation_the_unique_head_recognises_the_input(make_mdata):
    model = build(make_mdata(), supervision="none", heads="factor")
    module, batch = model.module, batch_of(model, 10)
    assert all(augment is None for augment in module.augmentations.values())
    output = module.loss(batch, "shared")
    assert set(output.extra_metrics) == {"shared_info_nce", "specific_nce_club", "views_info_nce"}
    x = module.inputs(batch)
    expected = sum(
        lower(all_scores(critic.network, module.heads[m]["specific"](module.shared_encoders[m](x[m])), x[m]))
        for m, critic in zip(("rna", "prot"), module.critics["views"], strict=True)
    )
    assert output.extra_metrics["views_info_nce"].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_negatives_stay_within_batches(make_mdata):
    model = build(make_mdata(), setup={"batch_key": "batch"}, augmentation=Shift())
    module, batch = model.module, batch_of(model, 16)
    assert module.negatives == "batch"
    code = {m: module.heads[m]["shared"](module.shared_encoders[m](x)) for m, x in module.inputs(batch).items()}
    expected = 0.0
    for k in (0, 1):
        rows = batch["batch"] == k
        f = all_scores(module.critics["shared"][0].network, code["rna"][rows], code["prot"][rows])
        expected += lower(f) * rows.sum().item() / 16
    found = module.loss(batch, "shared").extra_metrics["shared_info_nce"].item()
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_temperature_bounds_the_scores(make_mdata):
    model = build(make_mdata(), temperature=0.5)
    critic = model.module.critics["shared"][0]
    a, b = 1e4 * torch.randn(9, 4), 1e4 * torch.randn(9, 4)
    f = critic.scores(a, b)
    assert f.abs().max() > 2
    torch.testing.assert_close(model.module.scores(critic, a, b), f.tanh() / 0.5)
    model.train(max_epochs=1, batch_size=32, **QUIET)


@pytest.mark.parametrize("independence", ["club", "hsic", {"nce_club": 1.0, "orthogonality": 0.1}])
def test_other_measures_of_dependence(make_mdata, independence):
    model = build(make_mdata(missing=0.2), independence=independence)
    model.train(max_epochs=1, batch_size=32, **QUIET)
    for kind in [independence] if isinstance(independence, str) else independence:
        for term in (f"shared/specific_{kind}_train", f"shared/shared_conditional_{kind}_train"):
            assert np.isfinite(model.history[term].to_numpy()).all()
    assert np.isfinite(model.get_latent_representation()).all()


def test_memory_grows_with_the_batch_and_not_with_its_square(make_mdata):
    """At 1,024 cells a critic's hidden layers of all pairs would be 2 x 4 x 16 x 1024^2 bytes; there are six critics."""
    model = build(make_mdata(), critic_n_hidden=16)
    batch = batch_of(model, 60)
    rows = torch.arange(1024) % 60
    large = {
        key: {m: x[rows] for m, x in value.items()} if isinstance(value, dict) else value[rows]
        for key, value in batch.items()
    }
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model.module.loss(large, "shared").loss
    assert sum(storages.values()) < 6 * 3 * 4 * 1024**2  # a few matrices of scores per critic
    assert torch.isfinite(loss)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_batches_give_finite_losses_and_gradients(make_mdata, n):
    model = build(make_mdata())
    batch = batch_of(model, n)
    loss, inner = model.module.loss(batch, "shared").loss, model.module.inner_loss(batch, "shared")
    assert torch.isfinite(loss)
    assert torch.isfinite(inner)
    if n < 2:
        assert loss.item() == inner.item() == 0
        return
    (loss + inner).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.module.parameters() if p.grad is not None)


# ---- codes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(make_mdata):
    model = build(make_mdata(modalities=("rna", "prot", "atac"), missing={"prot": 0.4, "atac": 0.3}))
    model.train(max_epochs=2, batch_size=32, **QUIET)
    return model


def test_codes_are_the_heads_of_their_factor(trained):
    module, batch = trained.module, batch_of(trained)
    with torch.no_grad():
        latents = module.encode(batch)
        present = torch.stack([batch["mask"][m] for m in trained.modalities]).sum(dim=0).unsqueeze(1)
        torch.testing.assert_close(latents.joint, sum(latents.shared.values()) / present)
        for m, x in module.inputs(batch).items():
            rows = batch["mask"][m]
            head = {name: network(module.shared_encoders[m](x[rows])) for name, network in module.heads[m].items()}
            unique = torch.cat([head["specific"], head["views"], head["specific_conditional"]], dim=1)
            torch.testing.assert_close(latents.specific[m][rows], unique)
            shared = torch.cat([head["shared"], head["shared_conditional"]], dim=1)
            torch.testing.assert_close(latents.shared[m][rows], shared)
            for codes in (latents.shared, latents.specific, latents.params["emb"], latents.params["proj"]):
                assert (codes[m][~rows] == 0).all()
    assert trained.get_latent_representation().shape == (60, 2 * 4)
    assert trained.get_latent_representation(kind="specific", modality="rna").shape[1] == 3 * 3


def test_features_are_those_of_the_papers(trained):
    module, mdata, batch = trained.module, trained.adata, batch_of(trained)
    widths = {"emb": 7, "proj": 2 * 4 + 3 * 3}
    for kind, width in widths.items():
        features = trained.get_features(kind)
        assert features.shape == (60, 3 * width)
        assert features.dtype == np.float32
        for k, m in enumerate(trained.modalities):
            part, has = features[:, k * width : (k + 1) * width], mdata.obs_names.isin(mdata[m].obs_names)
            assert np.isfinite(part[has]).all()
            assert np.isnan(part[~has]).all()
            if kind == "emb":
                with torch.no_grad():
                    expected = module.shared_encoders[m](module.inputs(batch)[m])[torch.as_tensor(has)]
                np.testing.assert_allclose(part[has], expected, atol=1e-5)
        np.testing.assert_allclose(trained.get_features(kind, indices=[5, 1]), features[[5, 1]], atol=1e-5)


def test_no_specific_width_leaves_the_unique_bounds_out(make_mdata):
    model = build(make_mdata(), n_specific=0, heads="factor")
    assert set(model.module.loss(batch_of(model), "shared").extra_metrics) == {
        "shared_info_nce",
        "shared_conditional_nce_club",
    }
    assert model.module.kinds == ("shared",)
    model.train(max_epochs=1, batch_size=32, **QUIET)
    assert model.get_latent_representation().shape == (60, 4)


def test_the_preset_is_the_released_code(make_mdata):
    mdata = make_mdata()
    FactorCL.setup_mudata(mdata)
    module = FactorCL(mdata, preset="official", n_shared=8, n_specific=8, n_embedding=8).module
    (stage,) = module.stages
    assert (stage.lr, stage.inner.lr, stage.inner.n_steps, stage.schedule) == (1e-4, 1e-4, 1, "constant")
    critics = [*module.critics["shared"], *module.critics["views"]]
    critics += [penalty.penalties["nce_club"].critic for penalty in module.penalties["specific"]]
    for critic in critics:
        widths = [(x.in_features, x.out_features) for x in critic.network.layers if isinstance(x, nn.Linear)]
        assert widths == [(16, 512), (512, 512), (512, 1)]
    assert not module.penalties["specific"][0].penalties["nce_club"].standardize
    heads = [network for m in ("rna", "prot") for network in module.heads[m].values()]
    assert len(heads) == 10
    for head in heads:
        assert [(x.in_features, x.out_features) for x in head.layers if isinstance(x, nn.Linear)] == [(8, 8), (8, 8)]
    assert (
        FactorCL(mdata, preset="official", critic_n_hidden=6).module.critics["shared"][0].network.layers[0].out_features
        == 6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supervision": "labels"}, "`supervision` must be one of 'self', 'none'"),
        ({"heads": "both"}, "`heads` must be one of 'term', 'factor'"),
        ({"preset": "offical"}, "`preset` must be one of 'official'"),
        ({"lambda_": -1.0}, "`lambda_` cannot be negative"),
        ({"n_embedding": 0}, "`n_embedding` must be a whole number of at least 1"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"independence": "residual"}, "`independence='residual'` needs an encoder of its own"),
        ({"independence": "club_nce"}, "`independence` has no 'club_nce'"),
        ({"shared_objective": "deep_cca"}, "FactorCL has no option `shared_objective`"),
    ],
)
def test_impossible_options_are_refused(make_mdata, options, message):
    with pytest.raises(ValueError, match=message):
        build(make_mdata(), **options)


def test_wrong_calls_are_refused(make_mdata, trained):
    with pytest.raises(RuntimeError, match=r"Call `model.train\(\)` first"):
        build(make_mdata()).get_features()
    with pytest.raises(ValueError, match="`kind` must be one of 'emb', 'proj', not 'embedding'"):
        trained.get_features("embedding")


# ---- behaviour --------------------------------------------------------------------------------


def test_the_shared_code_reads_what_is_shared():
    mdata = ub.data.simulate.disentangled_ssl(6_000, seed=0)
    model = build(mdata, n_shared=24, n_specific=24, n_hidden=64, critic_n_hidden=32, lr=3e-3)
    model.train(max_epochs=2, batch_size=64, **QUIET)
    z = model.get_latent_representation()
    # chance is 0.5 with a standard deviation of 0.0065
    assert probe(z, mdata.obs["y_shared"].astype(int).to_numpy(), n_permutations=0, n_splits=3).score > 0.55
