"""JointOpt and FOCAL: what they compute, term by term, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

import unbraid as ub
from unbraid.metrics import probe
from unbraid.model import FOCAL, JointOpt

MODELS = [JointOpt, FOCAL]
SMALL = {"n_shared": 5, "n_specific": 5, "n_hidden": 12, "lr": 0.01}
TAU = 0.2


@pytest.fixture(scope="module")
def simulated():
    return ub.data.simulate.disentangled_ssl(200, seed=0)


def build(cls, mdata, setup=None, **options):
    cls.setup_mudata(mdata, **(setup or {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(mdata, **{**SMALL, **options})


def batch_of(model, n: int = 32) -> dict:
    return model.adata_manager.create_torch_dataset()[np.arange(n)]


def fit(model, **training):
    options = {"max_epochs": 1, "batch_size": 32, "seed": 0, "progress_bar": False, "accelerator": "cpu"}
    model.train(**{**options, **training})
    return model


def info_nce(a, b):
    logits, partner = normalize(a, dim=1) @ normalize(b, dim=1).T / TAU, torch.arange(len(a))
    return (cross_entropy(logits, partner) + cross_entropy(logits.T, partner)) / 2


def nt_xent(a, b):
    """Naively, anchor by anchor."""
    rows, n = normalize(torch.cat([a, b]), dim=1), len(a)
    total = 0.0
    for i in range(2 * n):
        similarity = rows @ rows[i] / TAU
        others = [j for j in range(2 * n) if j != i]
        total = total + torch.logsumexp(similarity[others], dim=0) - similarity[(i + n) % (2 * n)]
    return total / (2 * n)


def rows_orthogonality(s, c):
    return (normalize(s, dim=1).T @ normalize(c, dim=1)).square().sum().sqrt()


def codes_of(model, views, batch):
    """Per view the shared and the specific codes, from the networks by hand."""
    module, result = model.module, []
    for view in views:
        c = {m: module.shared_encoders[m](view[m]) for m in module.modalities}
        s = {m: module.specific_encoders[m](torch.cat([view[m], c[m]], dim=1)) for m in module.modalities}
        result.append((c, s))
    return result


class Shift(torch.nn.Module):
    """A view that is not random: two views of a cell differ, and are known."""

    def forward(self, x):
        return x + 0.3 * x.flip(1)


def shifted_views(model, batch):
    first = {m: Shift()(x) for m, x in model.module.inputs(batch).items()}
    return first, {m: Shift()(x) for m, x in first.items()}


# ---- what is computed ---------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.0, 0.5, 4.0])
def test_joint_opt_is_its_formula(simulated, a):
    model = build(
        JointOpt, simulated, specific_weight=a, lambda_=0.3, kappa=None, temperature=TAU, augmentation=Shift()
    )
    batch = batch_of(model)
    (c, s), (c2, s2) = codes_of(model, shifted_views(model, batch), batch)
    shared = (info_nce(c["x1"], c["x2"]) + info_nce(c2["x1"], c2["x2"])) / 2
    specific = sum(
        info_nce(torch.cat([s[m], c[n]], dim=1), torch.cat([s2[m], c2[n]], dim=1))
        for m, n in (("x1", "x2"), ("x2", "x1"))
    )
    overlap = sum(rows_orthogonality(s[m], c[m]) + rows_orthogonality(s2[m], c2[m]) for m in ("x1", "x2")) / 2
    expected = 2 * shared / (1 + a) + a * specific / (1 + a) + 0.3 * overlap
    torch.testing.assert_close(model.module.loss(batch, "joint").loss, expected)


@pytest.mark.parametrize("hinge", [True, False])
@pytest.mark.parametrize(("contrast", "reference"), [("info_nce", info_nce), ("nt_xent", nt_xent)])
def test_focal_is_its_formula(simulated, contrast, reference, hinge):
    model = build(
        FOCAL,
        simulated,
        specific_weight=0.7,
        lambda_=0.3,
        contrast=contrast,
        hinge=hinge,
        temperature=TAU,
        augmentation=Shift(),
    )
    batch = batch_of(model)
    (c, s), (c2, s2) = codes_of(model, shifted_views(model, batch), batch)
    cosine = lambda x, y: (cosine_similarity(x, y).clamp(min=0) if hinge else cosine_similarity(x, y)).mean()
    shared = reference(c["x1"], c["x2"]) + reference(c2["x1"], c2["x2"])
    specific = reference(s["x1"], s2["x1"]) + reference(s["x2"], s2["x2"])
    overlap = sum(
        cosine(s_["x1"], c_["x1"]) + cosine(s_["x2"], c_["x2"]) + cosine(s_["x1"], s_["x2"])
        for c_, s_ in ((c, s), (c2, s2))
    )
    expected = shared + 0.7 * specific + 0.3 * overlap
    torch.testing.assert_close(model.module.loss(batch, "joint").loss, expected)


def test_the_alignment_counts_when_asked_for(simulated):
    options = {"kappa": None, "augmentation": None, "temperature": TAU, "shared_objective": "vmf"}
    losses = {}
    for cls in MODELS:
        for beta in (0.0, 3.0):
            model = build(cls, simulated, beta=beta, **options)
            losses[cls, beta] = model.module.loss(batch_of(model), "joint").loss.detach()
        c = codes_of(model, [model.module.inputs(batch_of(model))], batch_of(model))[0][0]
        mean_cosine = cosine_similarity(c["x1"], c["x2"]).mean()
        factor = {JointOpt: 1.0, FOCAL: 2.0}[cls]  # a = 1 halves JointOpt's two directions; FOCAL adds two views
        torch.testing.assert_close(losses[cls, 3.0] - losses[cls, 0.0], -3.0 * factor * mean_cosine.detach())


def test_cells_without_a_modality_leave_its_terms(make_mdata):
    """With three modalities every term is on the cells that have what it compares."""
    model = build(FOCAL, make_mdata(modalities=("rna", "prot", "atac"), missing=0.3), lambda_=0.5, augmentation=None)
    module, batch = model.module, batch_of(model, 60)
    mask, inputs = batch["mask"], module.inputs(batch)
    assert not all(rows.all() for rows in mask.values())
    ((c, s),) = codes_of(model, [inputs], batch)
    nce = lambda x, y: ub.objectives.info_nce(x, y, temperature=0.07)
    cosine = lambda x, y: cosine_similarity(x, y).clamp(min=0).mean()
    pairs = [("rna", "prot"), ("rna", "atac"), ("prot", "atac")]
    both = {(m, n): mask[m] & mask[n] for m, n in pairs}
    shared = sum(nce(c[m][both[m, n]], c[n][both[m, n]]) for m, n in pairs) / 3
    specific = sum(nce(s[m][mask[m]], s[m][mask[m]]) for m in mask)
    overlap = sum(cosine(s[m][mask[m]], c[m][mask[m]]) for m in mask)
    overlap = overlap + sum(cosine(s[m][both[m, n]], s[n][both[m, n]]) for m, n in pairs)
    torch.testing.assert_close(module.loss(batch, "joint").loss, 2 * shared + specific + 0.5 * 2 * overlap)


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("term", ["shared", "specific", "penalty"])
def test_every_term_moves_both_codes(simulated, cls, term):
    """Nothing is frozen: even the specific terms alone reach the shared encoders."""
    weights = {
        "shared": {"specific_weight": 0.0, "lambda_": 0.0},
        "specific": {"specific_weight": 1.0, "lambda_": 0.0},
        "penalty": {"specific_weight": 0.0, "lambda_": 1.0},
    }[term]
    module = build(cls, simulated, augmentation=None, **weights).module
    if term != "shared":
        module.shared_factor = 0.0
    batch = batch_of(build(cls, simulated))
    module.loss(batch, "joint").loss.backward()
    moved = lambda part: [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters()]
    assert all(moved(module.shared_encoders))
    assert all(moved(module.specific_encoders)) if term != "shared" else not any(moved(module.specific_encoders))


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize(
    ("option", "term", "method"),
    [("specific_weight", "specific_info_nce", "views_info_nce"), ("lambda_", "orthogonality", "views_dependence")],
)
def test_a_weight_of_zero_removes_the_term(simulated, cls, option, term, method):
    def never(*_):
        raise AssertionError("a term of weight 0 was computed")

    model = build(cls, simulated)
    batch = batch_of(model)
    assert term in model.module.loss(batch, "joint").extra_metrics
    without = build(cls, simulated, **{option: 0.0}).module
    setattr(without, method, never)
    assert term not in without.loss(batch, "joint").extra_metrics


# ---- what can be chosen -------------------------------------------------------------------------


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize(
    "independence", ["club", "density_ratio", "hsic", {"orthogonality": 1.0, "predictability": 2.0}]
)
def test_three_modalities_with_missing_ones_train_under_any_penalty(make_mdata, cls, independence):
    mdata = make_mdata(modalities=("rna", "prot", "atac"), missing=0.3)
    widths = {} if isinstance(independence, dict) else {"n_specific": 3}
    model = fit(build(cls, mdata, {"batch_key": "batch"}, independence=independence, **widths))
    names = [independence] if isinstance(independence, str) else list(independence)
    assert all(any(name in column for column in model.history) for name in names)
    assert all(np.isfinite(frame.to_numpy(dtype=float)).all() for frame in model.history.values())
    assert [stage.name for stage in model.module.stages] == ["joint"]
    for m in mdata.mod:
        z = model.get_latent_representation(kind="specific", modality=m)
        assert z.shape == (mdata[m].n_obs, 3 if widths else 5)
        assert np.isfinite(z).all()


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("objective", ["deep_cca", "vicreg"])
def test_shared_objectives_can_be_chosen(simulated, cls, objective):
    model = fit(build(cls, simulated, shared_objective=objective), batch_size=64)
    assert any(objective in name for name in model.history)
    z = model.get_latent_representation(kind="shared", modality="x1")[model.train_indices_]
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-3)  # the head was fitted after the only stage


def test_penalties_get_shared_codes_standardised_over_the_batch(make_mdata):
    module = (model := build(JointOpt, make_mdata(missing=0.3), independence="hsic")).module
    batch = batch_of(model, 60)
    _, shared, rows = module.penalised_codes(batch)
    for m in ("rna", "prot"):
        assert not rows[m].all()
        present = shared[m][rows[m]].detach()
        torch.testing.assert_close(present.mean(dim=0), torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(present.std(dim=0, correction=0), torch.ones(5))
        assert (shared[m][~rows[m]] == 0).all()


@pytest.mark.parametrize("cls", MODELS)
def test_without_specific_codes_the_shared_objective_is_left(simulated, cls):
    model = build(cls, simulated, n_specific=0, augmentation=None, kappa=None, temperature=TAU, specific_weight=1.0)
    batch = batch_of(model)
    c = model.module.shared_codes(model.module.inputs(batch), batch)
    factor = {JointOpt: 1.0, FOCAL: 2.0}[cls]
    torch.testing.assert_close(model.module.loss(batch, "joint").loss, factor * info_nce(c["x1"], c["x2"]))
    assert fit(model).get_latent_representation().shape == (200, 5)


@pytest.mark.parametrize("cls", MODELS)
def test_the_preset_is_the_published_one(simulated, cls):
    module = build(cls, simulated, preset="official", n_hidden=512, lr=1e-4).module
    linear = [x for x in module.specific_encoders["x1"].modules() if isinstance(x, torch.nn.Linear)]
    assert len(linear) == 3
    assert linear[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    cls.setup_mudata(simulated)
    assert cls(simulated, preset="official").module.stages[0].lr == 1e-4


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"independence": "residual"}, "DisentangledSSL"),
        ({"independence": {"orthogonality": 1.0, "residual": 1.0}}, "frozen shared code"),
        ({"independence": "orthogonal"}, "Did you mean 'orthogonality'"),
        ({"specific_weight": -1.0}, "specific_weight"),
        ({"specific_weight": float("nan")}, "specific_weight"),
        ({"lambda_": -1.0}, "lambda_"),
        ({"preset": "paper"}, "preset"),
        ({"shared_objective": "clip"}, "shared_objective"),
    ],
)
def test_bad_options_are_named(simulated, cls, options, message):
    with pytest.raises(ValueError, match=message):
        build(cls, simulated, **options)


def test_odd_choices_of_one_method_are_named(simulated):
    with pytest.raises(ValueError, match="contrast"):
        build(FOCAL, simulated, contrast="simclr")
    with pytest.raises(ValueError, match="orthogonality_kind"):
        build(JointOpt, simulated, orthogonality_kind="cosine")


def test_cosines_need_codes_of_equal_width(simulated):
    with pytest.raises(ValueError, match=r"got 5 and 4.*correlation"):
        build(FOCAL, simulated, n_specific=4)
    for options in (
        {"independence": "dcor"},
        {"independence_options": {"orthogonality": {"kind": "correlation"}}},
        {"independence": None},
    ):
        model = build(FOCAL, simulated, n_specific=4, **options)
        assert torch.isfinite(model.module.loss(batch_of(model), "joint").loss)


# ---- what is learned ----------------------------------------------------------------------------


def test_specific_codes_of_focal_tell_what_is_specific():
    mdata = ub.data.simulate.disentangled_ssl(6_000, seed=0)
    model = build(
        FOCAL, mdata, n_shared=50, n_specific=50, n_hidden=128, lr=1e-3, input_transform="identity", lambda_=1.0
    )
    fit(model, max_epochs=2, batch_size=256, early_stopping=False)
    read = lambda z, label: probe(z, mdata.obs[label].astype(int).to_numpy(), n_permutations=0, n_splits=3).score
    specific = model.get_latent_representation(kind="specific", modality="x1")
    shared = model.get_latent_representation()
    assert read(specific, "y_specific_x1") > 0.6
    assert read(specific, "y_specific_x2") < 0.55
    assert read(shared, "y_shared") > 0.6
