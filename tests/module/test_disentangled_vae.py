"""Information terms and diffusion priors of the generative modules, against naive loops and numbers computed apart."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from unbraid.module import DisentangledVAE
from unbraid.nn import Posterior

PATTERNS = ["abc", "a", "bc", "ab", "c", "ac", "b", "abc", "abc", "ab"]
SMALL = {"diffusion_options": {"n_hidden": 8, "n_steps": 50}}


@pytest.fixture
def make(make_vae):
    return lambda **options: make_vae(2, 3, cls=DisentangledVAE, **options)


def simclr(a, b):
    """Contrast at temperature 1, in loops."""
    rows = [r / np.linalg.norm(r) for r in np.concatenate([a, b])]
    n, total = len(a), 0.0
    for i, row in enumerate(rows):
        others = [row @ other for j, other in enumerate(rows) if j != i]
        total += logsumexp(others) - row @ rows[(i + n) % (2 * n)]
    return total / (2 * n)


def info_nce(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return np.mean([logsumexp(a[i] @ b.T) - a[i] @ b[i] for i in range(len(a))])


def means(module, batch):
    return tuple({m: q.mean.detach().numpy() for m, q in found.items()} for found in module.posteriors(batch))


# --- cross-modal information ------------------------------------------------------------------------------


def test_known_contrast(make_vae, make_batch):
    a = [[0.346, 0.822, 0.33, -1.303], [0.905, 0.446, -0.537, 0.581], [0.365, 0.294, 0.028, 0.547],
         [-0.736, -0.163, -0.482, 0.599], [0.04, -0.292, -0.782, -0.257], [0.008, -0.276, 1.294, 1.007]]  # fmt: skip
    b = [[-2.711, -1.889, -0.175, -0.422], [0.214, 0.217, 2.118, -1.112], [-0.378, 2.043, 0.647, 0.663],
         [-0.514, -1.648, 0.167, 0.109], [-1.227, -0.683, -0.072, -0.945], [-0.098, 0.095, 0.036, -0.506]]  # fmt: skip
    a, b = (torch.tensor(x, dtype=torch.float64) for x in (a, b))
    widths = {"a": 2, "b": 2}
    batch = make_batch(["ab"] * 6, widths=widths)
    z = {m: Posterior(mean, torch.ones_like(mean)) for m, mean in {"a": a, "b": b}.items()}
    paper = make_vae(4, 1, cls=DisentangledVAE, widths=widths, form="paper")
    assert paper.cross_information(z, batch).item() == pytest.approx(1.781661757796635, rel=1e-10)  # computed apart
    released = make_vae(4, 1, cls=DisentangledVAE, widths=widths)
    assert released.cross_information(z, batch).item() == pytest.approx(2 * simclr(a.numpy(), b.numpy()), rel=1e-10)


@pytest.mark.parametrize("form", ["released", "paper"])
def test_cross_information_is_a_mean_over_pairs_of_the_cells_that_have_both(make, make_batch, form):
    module, batch = make(form=form), make_batch(PATTERNS)
    z, contrasts = means(module, batch)[0], []
    for m, n in [("a", "b"), ("a", "c"), ("b", "c")]:
        both = [i for i, names in enumerate(PATTERNS) if m in names and n in names]
        contrasts.append((simclr if form == "released" else info_nce)(z[m][both], z[n][both]))
    # the released code adds both directions of every pair and divides by M - 1 = 2
    expected = 2 * sum(contrasts) / 2 if form == "released" else np.mean(contrasts)
    found = module.cross_information(module.posteriors(batch)[0], batch)
    assert found.item() == pytest.approx(expected, rel=1e-8)


def test_negatives_of_the_own_batch_only(make, make_batch):
    batch = make_batch(["abc"] * 6)
    batch["batch"] = torch.tensor([0, 1, 0, 1, 1, 1])
    z = means(make(), batch)[0]
    groups = [[0, 2], [1, 3, 4, 5]]
    expected = sum(len(rows) / 6 * simclr(z[m][rows], z[n][rows]) for rows in groups for m, n in ["ab", "ac", "bc"])
    for negatives, ok in {"batch": True, "all": False}.items():
        module = make(negatives=negatives)
        found = module.cross_information(module.posteriors(batch)[0], batch).item()
        assert (found == pytest.approx(expected, rel=1e-8)) == ok


# --- generative augmentation --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("loss", ["contrast", "least_squares"])
def test_augmentation_is_the_naive_loop(make, make_batch, draws, form, loss):
    module, batch = make(form=form, augmentation_loss=loss), make_batch(PATTERNS)
    torch.manual_seed(1)
    posteriors = module.posteriors(batch)
    found = module.generative_augmentation(*posteriors, batch).item()
    given, total = means(module, batch), 0.0
    samples = iter(draws["samples"])
    for m in "abc":
        cells = [i for i, names in enumerate(PATTERNS) if m in names]
        for kept in (0, 1):
            codes = [next(samples)[0][cells], next(samples)[0][cells]]
            codes[1 - kept] = codes[1 - kept][[i - 1 for i in range(len(cells))]]  # the cell before, the last's first
            decoded = module.decoders[m](torch.cat(codes, 1)).mean
            output = module.encoders[m](module.input_layers[m](decoded))
            again = module.encoders[m].posteriors(output)["zw"[kept]].mean.detach().numpy()
            target = given[kept][m][cells]
            if loss == "least_squares":
                total += 0.5 * np.mean(np.sum((again - target) ** 2, 1))
            else:
                total += 0.5 * (simclr if form == "released" else info_nce)(again, target)
    assert found == pytest.approx(total / (3 if form == "paper" else 1), rel=1e-8)


def test_augmentation_moves_decoder_and_encoder(make, make_batch):
    module, batch = make(), make_batch(["abc"] * 8)
    module.generative_augmentation(*module.posteriors(batch), batch).backward()
    for networks in (module.encoders, module.decoders):
        assert all(parameter.grad.abs().sum() > 0 for m in "abc" for parameter in networks[m].network.parameters())


@pytest.mark.usefixtures("noiseless")
@pytest.mark.parametrize("partners", ["permutation", "prior"])
def test_other_partners(make, make_batch, monkeypatch, partners):
    module, batch = make(augmentation_partners=partners), make_batch(["abc", "ab"] * 20)
    seen = {m: [] for m in "abc"}
    decode = module.decode
    monkeypatch.setattr(
        module, "decode", lambda m, code, *rest: (seen[m].append(code.detach()), decode(m, code, *rest))[1]
    )
    torch.manual_seed(0)
    z, w = module.posteriors(batch)
    module.generative_augmentation(z, w, batch)
    rows = batch["mask"]["c"]
    (kept_z, moved_w), (moved_z, kept_w) = (code.split([2, 3], dim=1) for code in seen["c"])
    for kept, moved, own in [(kept_z, moved_z, z["c"].mean[rows]), (kept_w, moved_w, w["c"].mean[rows])]:
        torch.testing.assert_close(kept, own)
        if partners == "prior":
            assert (moved == 0).all()  # the mean of the prior
        else:
            assert (moved != own).any(1).float().mean() > 0.7
            torch.testing.assert_close(moved.sort(0).values, own.sort(0).values)


# --- diffusion priors -----------------------------------------------------------------------------------------


def diffusion_gradients(module):
    parts = [module.shared_diffusion, module.specific_diffusions]
    return [p.grad for part in parts for p in part.parameters()], [p.grad for p in module.encoders.parameters()]


def test_replaced_priors_are_those_of_the_bound(make, make_batch, monkeypatch):
    module, plain = make(diffusion="replace", beta=1.5, **SMALL), make(beta=1.5)
    plain.load_state_dict(module.state_dict(), strict=False)
    batch = make_batch(PATTERNS)
    # a density that is easily told from that of a normal distribution
    density = lambda self, z: -3.0 * z.abs().sum(-1) + (5.0 if self is module.shared_diffusion else 0.0)
    monkeypatch.setattr(type(module.shared_diffusion), "log_density", density)
    torch.manual_seed(4)
    found = module.loss(batch, "vae")
    torch.manual_seed(4)
    reference = plain.loss(batch, "vae")
    assert found.extra_metrics["reconstruction"] == reference.extra_metrics["reconstruction"]
    torch.manual_seed(4)
    z, w = module.posteriors(batch)
    shared, own = module.stacked(z).sample(1)[0], None
    own = module.stacked(w).sample(1)[0]
    normal = lambda x: torch.distributions.Normal(0, 1).log_prob(x).sum(-1)
    per_source = normal(shared) + normal(own) + 3 * shared.abs().sum(-1) + 3 * own.abs().sum(-1) - 5
    present = torch.stack([batch["mask"][m] for m in "abc"])
    change = ((per_source * present).sum(0) / present.sum(0)).mean()
    expected = reference.extra_metrics["divergence"] + change
    torch.testing.assert_close(found.extra_metrics["divergence"], expected.detach())


def test_replaced_priors_learn_with_the_bound(make, make_batch):
    module = make(diffusion="replace", **SMALL)
    (stage,) = module.stages
    assert {"shared_diffusion", "specific_diffusions", "encoders"} <= set(stage.parts)
    module.loss(make_batch(PATTERNS), "vae").loss.backward()
    diffusion, encoders = diffusion_gradients(module)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in diffusion + encoders)
    assert max(gradient.abs().max() for gradient in diffusion) > 0


def test_additive_diffusion_sends_gradient_to_the_encoders(make, make_batch):
    module, batch = make(diffusion="additive", diffusion_weight=0.7, **SMALL), make_batch(PATTERNS)
    assert {"shared_diffusion", "specific_diffusions"} <= set(module.stages[0].parts)
    torch.manual_seed(2)
    loss = module.diffusion_loss(*module.posteriors(batch), batch)
    loss.backward()
    diffusion, encoders = diffusion_gradients(module)
    assert all(gradient.abs().max() > 0 for gradient in encoders)
    assert all(gradient is not None for gradient in diffusion)
    # the mean over modalities of both losses, of the posterior means of the cells that have them
    torch.manual_seed(2)
    z, w = module.posteriors(batch)
    expected = 0.0
    for m in "abc":
        rows = batch["mask"][m]
        expected += module.shared_diffusion.loss(z[m].mean[rows]) / 3
        expected += module.specific_diffusions[m].loss(w[m].mean[rows]) / 3
    torch.testing.assert_close(loss, expected)
    output = module.loss(batch, "vae")
    parts = output.extra_metrics
    torch.testing.assert_close(
        output.loss.detach(), parts["reconstruction"] + parts["divergence"] + 0.7 * parts["diffusion"]
    )


def test_detached_diffusion_has_a_stage_of_its_own(make, make_batch):
    module, batch = make(diffusion="detached", **SMALL), make_batch(PATTERNS * 20)
    first, second = module.stages
    assert not {"shared_diffusion", "specific_diffusions"} & set(first.parts)
    assert set(second.parts) == {"shared_diffusion", "specific_diffusions"}
    module.loss(batch, "vae").loss.backward()
    diffusion, encoders = diffusion_gradients(module)
    assert all(gradient is None for gradient in diffusion)
    assert any(gradient.abs().max() > 0 for gradient in encoders)

    module.zero_grad()
    module.end_stage("vae", [batch])
    module.loss(batch, "prior").loss.backward()
    diffusion, encoders = diffusion_gradients(module)
    assert all(gradient is None for gradient in encoders)
    assert all(gradient is not None for gradient in diffusion)
    # on the scale of the posterior means of the cells that have them
    z, w = module.posteriors(batch)
    means = lambda found: {m: q.mean[batch["mask"][m]].detach() for m, q in found.items()}
    pooled = torch.cat(list(means(z).values()))
    torch.testing.assert_close(module.shared_diffusion.center, pooled.mean(0))
    torch.testing.assert_close(module.shared_diffusion.spread, pooled.std(0, correction=0))
    torch.testing.assert_close(module.specific_diffusions["b"].center, means(w)["b"].mean(0))


def test_diffusion_models_give_the_samples(make, make_batch):
    module = make(diffusion="detached", **SMALL)
    module.specific_diffusions["b"].center.fill_(9.0)
    module.specific_diffusions["b"].spread.fill_(1e-3)
    torch.testing.assert_close(module.prior_sample("b", 5), torch.full((5, 3), 9.0).double(), atol=0.5, rtol=0)
    assert module.prior_mean("b").tolist() == [9.0] * 3
    assert module.prior_mean(None).tolist() == [0.0] * 2
    assert make().prior_sample("b", 4_000).std().item() == pytest.approx(1.0, rel=0.05)
    # in training, before they have learned anything, partners come from the simple prior
    module = make(diffusion="detached", augmentation_partners="prior", **SMALL)
    module.specific_diffusions["b"].center.fill_(math.nan)
    batch = make_batch(["abc"] * 8)
    assert module.generative_augmentation(*module.posteriors(batch), batch).isfinite()
