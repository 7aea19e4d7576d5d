"""Bounds of the generative modules against naive loops over cells, sources, targets and samples."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

from unbraid.module import DisentangledVAE

FAMILIES = {"normal": torch.distributions.Normal, "laplace": torch.distributions.Laplace}

# every pattern of three modalities, some twice
PATTERNS = ["abc", "a", "bc", "ab", "c", "ac", "b", "abc"]

# --- naive loops over cells, sources, targets and samples -------------------------------------------------


def log_normal(value, q):
    return FAMILIES[q.family](q.mean, q.scale).log_prob(value).sum().item()


def log_prior(value, scale=1.0, family="normal"):
    return FAMILIES[family](torch.zeros_like(value), scale).log_prob(value).sum().item()


def posterior(module, batch, m, cell, latent):
    """Of one cell given one modality, by the module's encoder."""
    encoder = module.encoders[m]
    return encoder.posteriors(encoder(module.input_layers[m](batch["x"][m][cell : cell + 1])))[latent]


def log_decoded(module, batch, m, cell, *codes):
    distribution = module.decoders[m](torch.cat(codes).unsqueeze(0))
    return distribution.log_prob(batch["x"][m][cell]).sum().item()


def kl(mean, scale):
    return sum(0.5 * (s**2 + m**2 - 1) - math.log(s) for m, s in zip(mean.ravel(), scale.ravel(), strict=True))


def product(experts, prior):
    """Mean and scale of a product of normal experts, in NumPy."""
    precisions = [q.scale.detach().numpy().ravel() ** -2.0 for q in experts]
    total = sum(precisions) + prior
    weighted = sum(p * q.mean.detach().numpy().ravel() for p, q in zip(precisions, experts, strict=True))
    return weighted / total, total**-0.5


def loss_of(module, batch):
    torch.manual_seed(3)
    return module.loss(batch, "vae").loss.item()


@pytest.mark.parametrize("family", ["normal", "laplace"])
@pytest.mark.parametrize(("estimator", "beta"), [("elbo", 2.5), ("iwae", 1.0), ("dreg", 1.3)])
@pytest.mark.parametrize("n_specific", [0, 2])
def test_mixture_of_experts_is_the_naive_loop(make_vae, make_batch, draws, n_specific, estimator, beta, family):
    options = {"posterior": family, "prior_scale": 0.75, "posterior_scale": "softmax"}
    module = make_vae(2, n_specific, estimator=estimator, n_importance=3, beta=beta, **options)
    batch = make_batch(PATTERNS)
    found = loss_of(module, batch)
    shared, *specific = draws["samples"]
    own, others = specific[0] if specific else None, dict(zip("abc", specific[1:], strict=False))
    total = 0.0
    for cell, names in enumerate(PATTERNS):
        experts = [posterior(module, batch, m, cell, "z") for m in names]
        for s in names:
            weights = []
            for k in range(3):
                row = k, "abc".index(s), cell
                z, ratio = shared[row], 0.0
                ratio += logsumexp([log_normal(z, q) for q in experts]) - math.log(len(names))
                ratio -= log_prior(z, 0.75, family)
                if n_specific:
                    ratio += log_normal(own[row], posterior(module, batch, s, cell, "w"))
                    ratio -= log_prior(own[row], 0.75, family)
                codes = {m: [z] + ([own[row] if m == s else others[m][row]] if n_specific else []) for m in names}
                weights.append(sum(log_decoded(module, batch, m, cell, *codes[m]) for m in names) - beta * ratio)
            value = np.mean(weights) if estimator == "elbo" else logsumexp(weights) - math.log(3)
            total -= value / len(names) / len(PATTERNS)
    assert found == pytest.approx(total, rel=1e-8)


def test_what_crosses_comes_from_the_auxiliary_distribution(make_vae, make_batch):
    module = make_vae(2, 3, posterior="laplace", posterior_scale="softmax")
    samples, _ = module._specific_samples(*specific_samples(module, make_batch(["abc"] * 4_000)))
    for k, m in enumerate("abc"):
        scale = 3 * torch.softmax(module.auxiliary_scales[k], 0)
        for s in {0, 1, 2} - {k}:
            crossing = samples[m][0, s]
            torch.testing.assert_close(crossing.mean(0), torch.zeros(3).double(), atol=0.12, rtol=0)
            torch.testing.assert_close(crossing.abs().mean(0), scale, atol=0, rtol=0.08)  # of a Laplace: its scale


def specific_samples(module, batch):
    torch.manual_seed(0)
    return module.posteriors(batch)[1], module.present(batch)


@pytest.mark.parametrize("prior_expert", ["joint", "all", "none"])
@pytest.mark.parametrize("estimator", ["elbo", "iwae"])
def test_product_of_experts_is_the_naive_loop(make_vae, make_batch, draws, estimator, prior_expert):
    options = {"specific": "posterior", "prior_expert": prior_expert, "likelihood_weights": {"b": 3.0}}
    module = make_vae(2, 2, experts="poe", estimator=estimator, n_importance=2, beta=1.7, **options)
    batch = make_batch(PATTERNS)
    found = loss_of(module, batch)
    shared, *own = draws["samples"]
    total = 0.0
    for cell, names in enumerate(PATTERNS):
        sources = {"abc".index(m): ([m], prior_expert == "all") for m in names}
        sources[3] = (list(names), prior_expert != "none")
        for s, (members, prior) in sources.items():
            mean, scale = product([posterior(module, batch, m, cell, "z") for m in members], prior)
            weights, divergence = [], kl(mean, scale)
            for m in names:
                w = posterior(module, batch, m, cell, "w")
                divergence += kl(w.mean.detach().numpy(), w.scale.detach().numpy())
            for k in range(2):
                z = shared[k, s, cell]
                likelihood, ratio = 0.0, norm(mean, scale).logpdf(z).sum() - log_prior(z)
                for m in names:
                    w = own["abc".index(m)][k, s, cell]
                    weight = 3.0 if m == "b" else 1.0
                    likelihood += weight * log_decoded(module, batch, m, cell, z, w)
                    ratio += log_normal(w, posterior(module, batch, m, cell, "w")) - log_prior(w)
                weights.append(likelihood - (divergence if estimator == "elbo" else ratio) * 1.7)
            value = np.mean(weights) if estimator == "elbo" else logsumexp(weights) - math.log(2)
            total -= value / len(PATTERNS)
    assert found == pytest.approx(total, rel=1e-8)


@pytest.mark.parametrize("prior_expert", ["joint", "all", "none"])
def test_mixture_of_products_is_the_naive_loop(make_vae, make_batch, draws, prior_expert):
    module = make_vae(2, experts="mopoe", prior_expert=prior_expert, beta=2.5)
    batch = make_batch(PATTERNS)
    found = loss_of(module, batch)
    (shared,), (drawn,) = draws["samples"], draws["choices"]
    subsets = ["a", "b", "c", "ab", "ac", "bc", "abc"]
    total = 0.0
    for cell, names in enumerate(PATTERNS):
        inside = [subset for subset in subsets if set(subset) <= set(names)]
        assert subsets[drawn[cell]] in inside
        for subset in inside:
            prior = {"joint": subset == names, "all": True, "none": False}[prior_expert]
            mean, scale = product([posterior(module, batch, m, cell, "z") for m in subset], prior)
            total += 2.5 * kl(mean, scale) / len(inside) / len(PATTERNS)
        total -= sum(log_decoded(module, batch, m, cell, shared[0, 0, cell]) for m in names) / len(PATTERNS)
    assert found == pytest.approx(total, rel=1e-8)


@pytest.mark.usefixtures("noiseless")
def test_mixture_of_products_decodes_the_subset_that_it_draws(make_vae, make_batch):
    # with the importance-weighted bound of one sample: log q(z | X) of the mixture, at the means of all subsets in turn
    module = make_vae(2, experts="mopoe", estimator="iwae")
    # a, b and ab: the cells lack c
    batch, seen = make_batch(["ab"] * 50), set()
    components, exists = module.experts.components(module.stacked(module.posteriors(batch)[0]), module.present(batch))
    sources, rows = module.experts.sources(components, exists)
    assert rows.all()
    for cell, z in enumerate(sources.mean[0]):
        (k,) = [k for k in (0, 1, 3) if torch.equal(components.mean[k, cell], z)]
        seen.add(k)
    assert seen == {0, 1, 3}
    density = module.experts.log_density(sources.mean.unsqueeze(0), components, exists)[0, 0]
    each = [norm(components.mean[k, 0].detach(), components.scale[k, 0].detach()) for k in (0, 1, 3)]
    value = sources.mean[0, 0].detach()
    expected = logsumexp([q.logpdf(value).sum() for q in each]) - math.log(3)
    assert density[0].item() == pytest.approx(expected, rel=1e-8)


def test_swapped_reconstruction_is_the_naive_loop(make_vae, make_batch, draws):
    module = make_vae(2, 2, cls=DisentangledVAE, swap=True)
    batch = make_batch(PATTERNS)
    found = loss_of(module, batch)
    shared, own, *others = draws["samples"]
    total = 0.0
    for cell, names in enumerate(PATTERNS):
        experts = [posterior(module, batch, m, cell, "z") for m in names]
        for s in names:
            row = 0, "abc".index(s), cell
            partner = "abc"[draws["choices"]["abc".index(s)][cell]]
            assert partner in names
            assert (partner == s) == (len(names) == 1)
            z = shared[row]
            for d in names:
                if d == s:
                    codes = shared[0, "abc".index(partner), cell], own[row]
                else:
                    codes = z, others["abc".index(d)][row]
                total -= log_decoded(module, batch, d, cell, *codes) / len(names) / len(PATTERNS)
            ratio = logsumexp([log_normal(z, q) for q in experts]) - math.log(len(names)) - log_prior(z)
            ratio += log_normal(own[row], posterior(module, batch, s, cell, "w")) - log_prior(own[row])
            total += ratio / len(names) / len(PATTERNS)
    assert found == pytest.approx(total, rel=1e-8)


def test_partners_are_drawn_evenly(make_vae, make_batch, draws):
    loss_of(make_vae(2, 2, cls=DisentangledVAE, swap=True), make_batch(["abc"] * 2_000))
    for k, drawn in enumerate(draws["choices"][:3]):
        counts = torch.bincount(drawn.squeeze(1), minlength=3)
        assert counts[k] == 0
        assert counts[counts > 0].min() > 900


# --- doubly reparameterised gradient ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"experts": "poe", "specific": "posterior"}, {"experts": "moe"}, {"experts": "mopoe", "n_specific": 0}],
    ids=["dmvae", "mmvae+", "mopoe"],
)
def test_dreg_has_the_expected_gradient_of_iwae(make_vae, make_batch, options):
    batch = make_batch(["ab"] * 300, widths={"a": 2, "b": 3})
    means, errors = {}, {}
    for estimator in ("iwae", "dreg"):
        module = make_vae(
            2, **{"n_specific": 1, **options}, widths={"a": 2, "b": 3}, estimator=estimator, n_importance=4
        )
        watched = [module.encoders["a"].head.bias, module.encoders["b"].head.bias, module.decoders["a"].network[2].bias]
        gradients = []
        for _ in range(30):
            module.zero_grad()
            module.loss(batch, "vae").loss.backward()
            gradients.append(torch.cat([parameter.grad for parameter in watched]).numpy().copy())
        means[estimator], errors[estimator] = np.mean(gradients, 0), np.std(gradients, 0) / math.sqrt(30)
    np.testing.assert_array_less(abs(means["iwae"] - means["dreg"]), 4.5 * np.hypot(*errors.values()))


# --- missing modalities -----------------------------------------------------------------------------------

EXPERTS = {
    "mmvae": {"n_specific": 0},
    "mmvae+": {"n_specific": 2},
    "mmvae+, iwae": {"n_specific": 2, "estimator": "iwae", "n_importance": 2},
    "dmvae": {"n_specific": 2, "experts": "poe", "specific": "posterior"},
    "mopoe": {"n_specific": 0, "experts": "mopoe"},
    "mopoe, all": {"n_specific": 0, "experts": "mopoe", "prior_expert": "all"},
}


@pytest.mark.usefixtures("noiseless")
@pytest.mark.parametrize("name", EXPERTS)
def test_a_cell_that_lacks_modalities_has_the_loss_of_a_model_without_them(make_vae, make_batch, monkeypatch, name):
    options = {"n_shared": 2, "beta": 1.5, **EXPERTS[name]}
    # the largest subset is the last in any number of modalities
    last = lambda weights, n, **_: (weights > 0).cumsum(1).argmax(1, keepdim=True)
    monkeypatch.setattr(torch, "multinomial", last)
    whole, batch = make_vae(**options), make_batch(PATTERNS)
    found, expected = whole.loss(batch, "vae").loss.item(), 0.0
    for cell, names in enumerate(PATTERNS):
        widths = {m: len(batch["x"][m][0]) for m in names}
        part = make_vae(widths=widths, **options)
        for m in names:
            part.encoders[m].load_state_dict(whole.encoders[m].state_dict())
            part.decoders[m].load_state_dict(whole.decoders[m].state_dict())
        one = make_batch(["".join(widths)], widths=widths)
        one["x"] = {m: batch["x"][m][cell : cell + 1] for m in names}
        expected += part.loss(one, "vae").loss.item() / len(PATTERNS)
    assert found == pytest.approx(expected, rel=1e-8)


# --- whose errors a scale learns from -----------------------------------------------------------------------


@pytest.mark.parametrize(("patterns", "same"), [(["ab", "abc", "bc", "abc"], False), (["a", "b", "c", "b"], True)])
def test_a_scale_of_its_own_learns_from_own_decodings_alone(make_vae, make_batch, patterns, same):
    found = []
    for choice in (None, "own"):
        module = make_vae(2, 3, likelihood_scale=choice)
        torch.manual_seed(1)
        loss = module.loss(make_batch(patterns), "vae").loss
        loss.backward()
        found.append((loss.item(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}))
    (expected, every), (value, own) = found
    assert value == pytest.approx(expected)
    assert every.keys() == own.keys()
    scales = [name for name in every if "log_scale" in name]
    assert len(scales) == 3
    for name in every:
        alike = torch.allclose(every[name], own[name])
        assert alike == (same or name not in scales)
