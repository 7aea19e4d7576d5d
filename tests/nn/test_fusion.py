import math

import pytest
import torch

from unbraid.nn._fusion import FusionTransformer

WIDTHS = {"rna": 6, "prot.surface": 4, "type": 5}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def make(**options):
    return FusionTransformer(WIDTHS, **{"width": 16, "n_heads": 4, **options})


def cells(n=7, tokens=None):
    shape = lambda d: (n, d) if tokens is None else (n, tokens, d)
    values = {m: torch.randn(shape(d)) for m, d in WIDTHS.items()}
    present = {m: torch.rand(n) < 0.6 for m in WIDTHS}
    present["rna"][0], present["type"][1] = True, False
    for m in WIDTHS:
        present[m][2] = False  # a cell with nothing
    return values, present


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n_tokens", [None, 3])
def test_masked_is_absent(training, n_tokens):
    fusion, (tokens, present) = make(n_layers=2).train(training), cells(tokens=n_tokens)
    with torch.no_grad():
        everything = fusion(tokens, present)
        for i in range(7):
            mine = [m for m in WIDTHS if present[m][i]]
            if mine:
                alone = fusion({m: tokens[m][[i]] for m in mine}, {m: torch.tensor([True]) for m in mine})
                torch.testing.assert_close(everything[i], alone[0], atol=1e-5, rtol=1e-4)
            else:
                assert (everything[i] == 0).all()


@pytest.mark.parametrize("filling", [math.nan, math.inf, 1e30])
def test_values_of_absent_modalities_do_not_matter(filling):
    fusion, (tokens, present) = make(), cells()
    gradients = []
    for fill in (0.0, filling):
        filled = {m: x.clone().masked_fill(~present[m][:, None], fill).requires_grad_() for m, x in tokens.items()}
        fused = fusion(filled, present)
        inputs = [*filled.values(), *fusion.parameters()]
        gradients.append((fused, *torch.autograd.grad(fused.square().sum() + fused[:, 0].sum(), inputs)))
    for ours, reference in zip(*gradients, strict=True):
        assert torch.equal(ours, reference)
        assert ours.isfinite().all()
    for m, gradient in zip(WIDTHS, gradients[0][1:4], strict=True):
        assert (gradient[~present[m]] == 0).all()


def test_every_present_modality_matters():
    fusion, (tokens, _) = make(), cells()
    present = {m: torch.ones(7, dtype=torch.bool) for m in WIDTHS}
    fused = fusion(tokens, present)
    for m in WIDTHS:
        changed = fusion({**tokens, m: tokens[m] + 1}, present)
        assert ((changed - fused).abs().amax(dim=1) > 1e-3).all()
        fewer = fusion(tokens, {**present, m: torch.zeros(7, dtype=torch.bool)})
        assert ((fewer - fused).abs().amax(dim=1) > 1e-3).all()


def test_order_of_rows_modalities_and_tokens():
    fusion, (tokens, present) = make(), cells(tokens=3)
    fused, order = fusion(tokens, present), torch.randperm(7)
    permuted = fusion({m: x[order] for m, x in tokens.items()}, {m: p[order] for m, p in present.items()})
    torch.testing.assert_close(permuted, fused[order])
    assert torch.equal(fusion(dict(reversed(tokens.items())), dict(reversed(present.items()))), fused)
    torch.testing.assert_close(fusion({m: x.flip(1) for m, x in tokens.items()}, present), fused)


def test_modalities_are_told_apart():
    fusion = FusionTransformer({"a": 4, "b": 4}, width=16, n_heads=4)
    fusion.adapters["b"].load_state_dict(fusion.adapters["a"].state_dict())
    x, here = torch.randn(3, 4), torch.ones(3, dtype=torch.bool)
    assert not torch.allclose(fusion({"a": x}, {"a": here}), fusion({"b": x}, {"b": here}), atol=1e-4)


def test_one_token_and_a_sequence_of_one_are_the_same():
    fusion, (tokens, present) = make(), cells()
    assert torch.equal(fusion(tokens, present), fusion({m: x[:, None] for m, x in tokens.items()}, present))


def test_no_cells():
    fusion = make()
    fused = fusion({m: torch.zeros(0, d) for m, d in WIDTHS.items()}, {m: torch.zeros(0).bool() for m in WIDTHS})
    assert fused.shape == (0, 16)
    fused.sum().backward()


def test_default_sizes():
    fusion = FusionTransformer({"rna": 6})
    assert fusion({"rna": torch.randn(2, 6)}, {"rna": torch.tensor([True, True])}).shape == (2, 40)
    (layer,) = fusion.transformer.layers
    assert layer.self_attn.num_heads == 8
    assert not layer.norm_first


def test_errors():
    with pytest.raises(ValueError, match="`n_heads` must divide `width`, got 8 heads for a width of 36"):
        FusionTransformer({"rna": 6}, width=36)
    with pytest.raises(ValueError, match="`n_heads` must be a whole number of at least 1, got 0"):
        FusionTransformer({"rna": 6}, n_heads=0)
    with pytest.raises(ValueError, match="at least one modality"):
        FusionTransformer({})
    fusion, here = make(), torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match="`tokens` must have at least one modality"):
        fusion({}, {})
    with pytest.raises(ValueError, match=r"no modality 'rnaa'. Did you mean 'rna'\?"):
        fusion({"rnaa": torch.zeros(2, 6)}, {"rnaa": here})
    with pytest.raises(ValueError, match="`present` must say which cells have modality 'rna'"):
        fusion({"rna": torch.zeros(2, 6)}, {})
    with pytest.raises(ValueError, match=r"modality 'rna' must have shape \(2, 6\) or \(2, t, 6\), got \(2, 5\)"):
        fusion({"rna": torch.zeros(2, 5)}, {"rna": here})
    with pytest.raises(ValueError, match=r"must be boolean of shape \(2,\), got torch.float32"):
        fusion({"rna": torch.zeros(2, 6)}, {"rna": torch.ones(2)})
