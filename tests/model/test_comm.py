"""CoMM: its loss, its masks, and what it learns."""

import numpy as np
import pytest
import torch
from torch import nn

import unbraid as ub
from unbraid.metrics import probe
from unbraid.model import CoMM
from unbraid.objectives import nt_xent

SMALL = {"n_shared": 8, "n_hidden": 16, "n_projection_hidden": 16, "n_projection": 8}
QUIET = {"progress_bar": False, "accelerator": "cpu", "early_stopping": False, "seed": 0}


def build(mdata, seed=0, setup=None, **options):
    CoMM.setup_mudata(mdata, **(setup or {}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CoMM(mdata, **{**SMALL, **options})


def batch_of(model, n=60):
    return model.adata_manager.create_torch_dataset()[np.arange(n)]


def cross_entropy_by_hand(a, b, temperature):
    """NT-Xent in plain NumPy, anchor by anchor."""
    rows = np.concatenate([a, b])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n, similarity, losses = len(a), rows @ rows.T / temperature, []
    for i in range(2 * n):
        others = np.delete(similarity[i], i)
        losses.append(np.log(np.exp(others).sum()) - similarity[i, (i + n) % (2 * n)])
    return np.mean(losses)


def fuse(module, tokens, names):
    """The fusion written out: class token, adapters and embeddings of the named modalities, one transformer."""
    fusion, order = module.fusion, module.modalities
    sequence = [fusion.class_token.expand(len(tokens[order[0]]), 1, -1)]
    sequence += [fusion.adapters[m](tokens[m]) + fusion.modality_embedding[order.index(m)] for m in names]
    return fusion.transformer(torch.cat(sequence, dim=1))[:, 0]


@pytest.mark.parametrize("modalities", [("rna", "prot"), ("rna", "prot", "atac")])
def test_the_loss_is_the_mean_over_masks(make_mdata, modalities):
    model = build(make_mdata(modalities=modalities), temperature=0.3, augmentation=None)
    module, batch = model.module.train(), batch_of(model)
    inputs = module.inputs(batch)
    tokens = {m: module.shared_encoders[m](inputs[m]).unsqueeze(1) for m in modalities}
    project = lambda names: module.projection(fuse(module, tokens, names)).detach().double().numpy()
    whole = project(modalities)
    # without augmentation both views are the cell itself, so both halves of a term are equal
    expected = {f"only_{m}": cross_entropy_by_hand(project([m]), whole, 0.3) for m in modalities}
    expected["all"] = cross_entropy_by_hand(whole, whole, 0.3)
    output = module.loss(batch, "shared")
    for name, value in expected.items():
        assert output.extra_metrics[name].item() == pytest.approx(value, rel=1e-4), name
    assert output.loss.item() == pytest.approx(np.mean(list(expected.values())), rel=1e-4)


def test_each_mask_of_one_view_is_compared_with_the_whole_of_the_other(make_mdata, monkeypatch):
    model = build(make_mdata(), augmentation=None)
    module, batch = model.module.train(), batch_of(model)
    inputs = module.inputs(batch)
    first, second = inputs, {m: x + 1.0 for m, x in inputs.items()}
    views = iter([[first], [second]])
    monkeypatch.setattr(module, "views", lambda batch: next(views))
    project = lambda view, names: module.projection(
        fuse(module, {m: module.shared_encoders[m](view[m]).unsqueeze(1) for m in view}, names)
    )
    both = ["rna", "prot"]
    value = lambda names: (
        0.5
        * (
            nt_xent(project(first, names), project(second, both))
            + nt_xent(project(second, names), project(first, both))
        )
    )
    expected = (value(["rna"]) + value(["prot"]) + value(both)) / 3
    torch.testing.assert_close(module.loss(batch, "shared").loss, expected, rtol=1e-4, atol=1e-5)


def test_views_are_drawn_independently(make_mdata):
    """Neither view is a view of the other: with a view that counts its ancestors both have one."""
    seen = []

    class Step(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x + 1.0

    model = build(make_mdata(), augmentation={"rna": Step(), "prot": None})
    model.module.loss(batch_of(model), "shared")
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1])


def test_cells_that_lack_a_modality_leave_its_term_alone(make_mdata):
    """The term of a modality is that of its cells alone, head included."""
    names = ("rna", "prot", "atac")
    model = build(make_mdata(modalities=names, missing={"prot": 0.5, "atac": 0.4}), augmentation=None)
    module, batch = model.module.train(), batch_of(model)
    assert not all(mask.all() for mask in batch["mask"].values())
    terms = module.loss(batch, "shared").extra_metrics
    tokens = module.tokens(module.inputs(batch), batch)
    whole = module.projection(module.fusion(tokens, batch["mask"]))
    for m in names:
        rows = batch["mask"][m]
        alone = module.projection(fuse(module, {k: x[rows] for k, x in tokens.items()}, [m]))
        torch.testing.assert_close(terms[f"only_{m}"], nt_xent(alone, whole[rows]).detach(), rtol=1e-4, atol=1e-5)


def test_negatives_stay_within_batches(make_mdata):
    model = build(make_mdata(), setup={"batch_key": "batch"}, augmentation=None)
    module, batch = model.module.train(), batch_of(model)
    assert module.negatives == "batch"
    tokens = module.tokens(module.inputs(batch), batch)
    whole = module.projection(module.fusion(tokens, batch["mask"]))
    parts = [whole[batch["batch"] == k] for k in (0, 1)]
    expected = sum(len(part) * nt_xent(part, part) for part in parts) / len(whole)
    torch.testing.assert_close(module.loss(batch, "shared").extra_metrics["all"], expected.detach())


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_batches_give_finite_losses_and_gradients(make_mdata, n):
    model = build(make_mdata())
    loss = model.module.train().loss(batch_of(model, n), "shared").loss
    assert torch.isfinite(loss)
    if n < 2:
        assert loss.item() == 0
        return
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.module.parameters() if p.grad is not None)


def test_a_modality_of_a_single_cell_costs_nothing(make_mdata):
    model = build(make_mdata())
    batch = batch_of(model, 8)
    batch["mask"]["prot"] = torch.arange(8) == 3
    output = model.module.train().loss(batch, "shared")
    assert output.extra_metrics["only_prot"].item() == 0
    assert output.extra_metrics["only_rna"].item() > 0
    output.loss.backward()


@pytest.fixture(scope="module")
def trained(make_mdata):
    model = build(make_mdata(modalities=("rna", "prot", "atac"), missing={"prot": 0.4, "atac": 0.3}))
    model.train(max_epochs=2, batch_size=32, **QUIET)
    return model


def test_any_mask_can_be_read(trained):
    mdata, names = trained.adata, trained.modalities
    np.testing.assert_array_equal(trained.get_fused_representation(), trained.get_latent_representation())
    for m in names:
        alone = trained.get_fused_representation(m)
        has = mdata.obs_names.isin(mdata[m].obs_names)
        assert np.isfinite(alone[has]).all()
        assert np.isnan(alone[~has]).all()
        rows = mdata[m].obs_names.get_indexer(mdata.obs_names[has])
        shared = trained.get_latent_representation(kind="shared", modality=m)
        np.testing.assert_allclose(alone[has], shared[rows], atol=1e-5)
    pair = trained.get_fused_representation(["prot", "atac"])
    without = ~mdata.obs_names.isin(mdata["atac"].obs_names) & mdata.obs_names.isin(mdata["prot"].obs_names)
    np.testing.assert_allclose(pair[without], trained.get_fused_representation("prot")[without], atol=1e-5)
    np.testing.assert_array_equal(pair, trained.get_fused_representation(["atac", "prot"]))
    np.testing.assert_allclose(
        trained.get_fused_representation(indices=[4, 2]), trained.get_latent_representation()[[4, 2]], atol=1e-5
    )


def test_there_is_no_specific_code(trained):
    assert trained.module.kinds == ("shared",)
    with pytest.raises(ValueError, match="CoMM has no 'specific' latents"):
        trained.get_latent_representation(kind="specific", modality="rna")


def test_encoders_may_give_several_tokens(make_mdata):
    class Tokens(nn.Module):
        def __init__(self, n_in):
            super().__init__()
            self.linear = nn.Linear(n_in, 3 * 6)

        def forward(self, x):
            return self.linear(x).unflatten(1, (3, 6))

    model = build(make_mdata(missing=0.3), encoders={"rna": Tokens(20)}, n_token=6)
    model.train(max_epochs=1, batch_size=32, **QUIET)
    assert np.isfinite(model.get_latent_representation()).all()
    batch = batch_of(model)
    tokens = model.module.tokens(model.module.inputs(batch), batch)
    assert tokens["rna"].shape == (60, 3, 6)
    assert tokens["prot"].shape == (60, 1, 6)
    assert (tokens["rna"][~batch["mask"]["rna"]] == 0).all()
    rows = batch["mask"]["rna"]
    expected = model.module.shared_encoders["rna"](model.module.inputs(batch)["rna"][rows])
    torch.testing.assert_close(tokens["rna"][rows], expected)


def test_defaults_are_the_published_ones(make_mdata):
    mdata = make_mdata()
    CoMM.setup_mudata(mdata)
    module = CoMM(mdata).module
    (stage,) = module.stages
    assert (stage.lr, stage.weight_decay) == (1e-3, 1e-2)
    assert module.temperature == 0.1
    widths = [(x.in_features, x.out_features) for x in module.projection if isinstance(x, nn.Linear)]
    assert widths == [(40, 512), (512, 512), (512, 256)]
    (layer,) = module.fusion.transformer.layers
    assert layer.self_attn.num_heads == 8
    trained = {id(p) for p in module.parameters_of(stage.parts)}
    assert trained == {id(p) for p in module.parameters()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "`n_heads` must divide `width`"),
        ({"n_token": 0}, "`n_token` must be a whole number of at least 1"),
        ({"n_projection": 0}, "`n_projection` must be a whole number of at least 1"),
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"shared_objective": "vmf"}, "CoMM has no option `shared_objective`"),
        ({"independence": "club"}, "CoMM has no option `independence`"),
    ],
)
def test_impossible_options_are_refused(make_mdata, options, message):
    with pytest.raises(ValueError, match=message):
        build(make_mdata(), **options)


def test_wrong_calls_are_refused(make_mdata, trained):
    with pytest.raises(ValueError, match=r"encoder of modality 'rna' must give tokens of shape \(n, 8\).*`n_token`"):
        build(make_mdata(), encoders={"rna": nn.Linear(20, 5)}).train(max_epochs=1, **QUIET)
    with pytest.raises(RuntimeError, match=r"Call `model.train\(\)` first"):
        build(make_mdata()).get_fused_representation()
    with pytest.raises(KeyError, match="No modality 'protein'.*Did you mean 'prot'"):
        trained.get_fused_representation(["protein"])
    with pytest.raises(ValueError, match="must name at least one modality"):
        trained.get_fused_representation([])


def test_the_fused_representation_tells_what_is_shared_and_what_is_not():
    mdata = ub.data.simulate.disentangled_ssl(6_000, seed=0)
    model = build(mdata, n_shared=48, n_heads=2, n_hidden=64, n_projection_hidden=64, n_projection=32, lr=2e-3)
    model.train(max_epochs=2, batch_size=128, **QUIET)
    z = model.get_latent_representation()
    read = lambda label: probe(z, mdata.obs[label].astype(int).to_numpy(), n_permutations=0, n_splits=3).score
    # chance is 0.5 with a standard deviation of 0.0065
    assert read("y_shared") > 0.62
    assert read("y_specific_x1") > 0.53
    assert read("y_specific_x2") > 0.53
