"""Penalties: what they say of codes whose dependence is known, and what moves by them."""

import numpy as np
import pytest
import torch

from unbraid.module import Independence, independence_weights
from unbraid.module._independence import PENALTIES, permuted, standardized
from unbraid.objectives import club, orthogonality

SMALL = {
    "club": {"n_hidden": 32, "n_layers": 2},
    **{
        kind: {"n_hidden": 32, "n_layers": 2} for kind in ("nce_club", "adversarial", "predictability", "density_ratio")
    },
}


def codes(kind, n=1000, seed=0):
    """Specific and shared codes: independent, linearly dependent, or dependent in their variance alone."""
    generator = torch.Generator().manual_seed(seed)
    c, noise = torch.randn(n, 2, generator=generator), torch.randn(n, 3, generator=generator)
    if kind == "linear":
        return c @ torch.tensor([[0.6, -0.3, 0.4], [0.2, 0.6, -0.5]]) + 0.4 * noise, c
    if kind == "variance":
        return noise * (0.9 * c[:, :1]).exp(), c
    if kind == "square":
        return noise * 0.5 + (c[:, :1] ** 2 - 1), c
    return noise, c


def fitted(penalty, kind, options=None, steps=150):
    """The penalty after its network was refitted to codes of this kind."""
    torch.manual_seed(0)
    one = Independence({penalty: 1.0}, 3, 2, {penalty: {**SMALL.get(penalty, {}), **(options or {})}})
    z, c = codes(kind)
    if one.learns:
        optimizer = torch.optim.Adam(one.parameters(), 1e-2)
        for step in range(steps):
            rows = torch.arange(200) + 200 * (step % 5)
            optimizer.zero_grad()
            one.learning_loss(z[rows], c[rows]).backward()
            optimizer.step()
    z, c = codes(kind, seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        return float(one.penalties[penalty](z[:500], c[:500], None))


@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_every_penalty_tells_linear_dependence_from_none(penalty):
    options = {"kind": "correlation"} if penalty == "orthogonality" else None
    assert fitted(penalty, "linear", options) > 2 * abs(fitted(penalty, "none", options)) + 0.05


@pytest.mark.parametrize("penalty", ["club", "hsic", "dcor", "predictability", "density_ratio", "nce_club"])
def test_what_is_more_than_orthogonal_sees_squares(penalty):
    assert fitted(penalty, "square") > 2 * abs(fitted(penalty, "none")) + 0.02


def test_orthogonality_and_predictions_of_means_are_blind_to_variance_and_a_discriminator_is_not():
    assert fitted("predictability", "variance") < 0.1
    assert abs(fitted("orthogonality", "square", {"kind": "correlation"})) < 0.35  # the sampling level
    assert fitted("density_ratio", "variance") > 5 * abs(fitted("density_ratio", "none"))


@pytest.mark.parametrize("penalty", [kind for kind in PENALTIES if kind != "orthogonality"])
def test_no_code_escapes_by_shrinking(penalty):
    torch.manual_seed(0)
    one = Independence({penalty: 1.0}, 3, 2, {penalty: SMALL.get(penalty, {})}).penalties[penalty]
    z, c = codes("linear", n=100)
    values = []
    for scale in (1.0, 1e-3):
        torch.manual_seed(1)
        values.append(one(scale * z + 7.0, c, None).item())
    assert values[1] == pytest.approx(values[0], rel=2e-3, abs=1e-4)


def test_the_published_bound_shrinks_with_the_code():
    torch.manual_seed(0)
    one = Independence({"club": 1.0}, 3, 2, {"club": {"standardize": False}}).penalties["club"]
    z, c = codes("linear", n=100)
    torch.testing.assert_close(one(z, c, None), club(z, *one.posterior(c)))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()  # mean 0, variance 1: what is left is 0 for every z
    assert one(z, c, None).item() == pytest.approx(0.0, abs=1e-6)


def test_penalties_are_the_objectives():
    z, c = codes("linear", n=50)
    one = Independence({"orthogonality": 1.0}, 3, 2, {"orthogonality": {"kind": "columns"}})
    torch.testing.assert_close(one.penalties["orthogonality"](z, c, None), orthogonality(z, c, kind="columns"))


@pytest.mark.parametrize("penalty", list(PENALTIES))
def test_gradients_reach_the_code_in_the_penalty_and_the_network_in_learning(penalty):
    one = Independence({penalty: 1.0}, 3, 2, {penalty: SMALL.get(penalty, {})})
    z, c = codes("linear", n=40)
    z.requires_grad_()
    one.penalties[penalty](z, c, None).backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().sum() > 0 or penalty == "adversarial"  # which is 0 until its network has learned
    if one.learns:
        z.grad = None
        one.zero_grad()
        one.learning_loss(z, c).backward()
        assert z.grad is None
        assert sum(float(p.grad.abs().sum()) for p in one.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("penalty", list(PENALTIES))
@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_cells_and_constant_codes_give_finite_numbers(penalty, n):
    one = Independence({penalty: 1.0}, 3, 2, {penalty: SMALL.get(penalty, {})})
    for z in (torch.randn(n, 3), torch.ones(n, 3)):
        z.requires_grad_()
        value = one.penalties[penalty](z, torch.randn(n, 2), None)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(z.grad).all()


def test_cells_change_places_within_their_group_only():
    torch.manual_seed(0)
    groups = torch.randint(3, (50,))
    order = permuted(50, groups, groups.device)
    assert sorted(order.tolist()) == list(range(50))
    assert torch.equal(groups[order], groups)
    assert not torch.equal(order, torch.arange(50))


def test_standardized_columns():
    z = torch.tensor(np.random.default_rng(0).normal(3, 5, (30, 2)), dtype=torch.float32)
    z = torch.cat([z, torch.full((30, 1), 4.0)], dim=1)
    found = standardized(z)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.std(dim=0, correction=0), torch.tensor([1.0, 1.0, 0.0]))


def test_choices():
    assert independence_weights(None) == {}
    assert independence_weights("hsic") == {"hsic": 1.0}
    assert independence_weights({"hsic": 0.5, "adversarial": 0}) == {"hsic": 0.5}
    with pytest.raises(ValueError, match=r"no 'hsci'.*Did you mean 'hsic'"):
        independence_weights("hsci")
    with pytest.raises(ValueError, match="weight of 'hsic' must be at least 0"):
        independence_weights({"hsic": -1.0})
    with pytest.raises(ValueError, match="names 'club', which is not chosen"):
        Independence({"hsic": 1.0}, 3, 2, {"club": {}})
    with pytest.raises(ValueError, match=r"`independence_options` of 'club'.*log_var'"):
        Independence({"club": 1.0}, 3, 2, {"club": {"log_var": "free"}})
    with pytest.raises(ValueError, match="kind must be"):
        Independence({"orthogonality": 1.0}, 3, 2, {"orthogonality": {"kind": "diagonal"}})
