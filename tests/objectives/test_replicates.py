"""Contrasts in which replicates, such as profiles of one compound, are no negatives of each other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbraid.objectives import info_nce, nce_bound, nt_xent

law = settings(max_examples=30, deadline=None, derandomize=True)
EXACT = {"rel": 1e-10, "abs": 1e-12}


def rows(n, d=3, seed=0):
    return torch.randn(2, n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(a, b, replicates, groups, temperature, positives):
    """One direction, written out from the docstring's equation row by row."""
    n, total = len(a), 0.0
    unit = lambda x: x / x.norm(dim=1, keepdim=True)
    s = (unit(a) @ unit(b).T / temperature).tolist()
    for i in range(n):
        negative = [j for j in range(n) if replicates[j] != replicates[i] and groups[j] == groups[i]]
        found = [j for j in range(n) if replicates[j] == replicates[i] and groups[j] == groups[i]]
        found = found if positives == "replicates" else [i]
        for p in found:
            denominator = math.exp(s[i][p]) + sum(math.exp(s[i][j]) for j in negative)
            total -= math.log(math.exp(s[i][p]) / denominator) / len(found)
    return total / n


@pytest.mark.parametrize("positives", ["own", "replicates"])
@law
@given(st.integers(1, 9), st.data())
def test_info_nce_is_its_equation(positives, n, data):
    codes = st.lists(st.integers(0, 3), min_size=n, max_size=n)
    replicates, groups = data.draw(codes), data.draw(codes)
    a, b = rows(n, seed=data.draw(st.integers(0, 99)))
    options = {
        "temperature": 0.5, "positives": positives,
        "replicates": torch.tensor(replicates), "groups": torch.tensor(groups),
    }  # fmt: skip
    forth = by_loops(a, b, replicates, groups, 0.5, positives)
    back = by_loops(b, a, replicates, groups, 0.5, positives)
    assert info_nce(a, b, symmetric=False, **options).item() == pytest.approx(forth, **EXACT)
    assert info_nce(a, b, **options).item() == pytest.approx((forth + back) / 2, **EXACT)


@law
@given(st.integers(2, 9), st.data())
def test_without_replicates_nothing_changes(n, data):
    a, b = rows(n)
    alone = torch.tensor(data.draw(st.permutations(range(n))))
    groups = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    for function in (info_nce, nt_xent):
        expected = function(a, b, groups=groups).item()
        assert function(a, b, groups=groups, replicates=alone).item() == pytest.approx(expected, **EXACT)
    both = info_nce(a, b, groups=groups, replicates=alone, positives="replicates")
    assert both.item() == pytest.approx(info_nce(a, b, groups=groups).item(), **EXACT)
    scores = a @ b.T
    assert nce_bound(scores, replicates=alone).item() == pytest.approx(nce_bound(scores).item(), **EXACT)


@pytest.mark.parametrize("function", [info_nce, nt_xent])
def test_a_replicate_is_as_good_as_absent(function):
    # rows 4 and 5 are replicates of rows 0 and 1: for row 0, row 4 is not there
    a, b = rows(6)
    replicates = torch.tensor([0, 1, 2, 3, 0, 1])
    whole = function(a, b, temperature=0.5, replicates=replicates) * 6
    # what rows 0, 2, 3 and 1 or 5 lose among themselves, counted by anchors: each pair of choices once
    one = lambda rows, anchor: _anchor_loss(function, a[rows], b[rows], rows.index(anchor))
    parts = [one([0, 1, 2, 3, 5], 0), one([0, 1, 2, 3, 4], 1), one([4, 1, 2, 3, 5], 4), one([0, 5, 2, 3, 4], 5)]
    parts += [one(list(range(6)), 2), one(list(range(6)), 3)]
    assert whole.item() == pytest.approx(sum(parts), **EXACT)


def _anchor_loss(function, a, b, i):
    """Loss of one anchor, by cross-entropy on the rows that are there."""
    unit = lambda x: x / x.norm(dim=1, keepdim=True)
    a, b, n = unit(a), unit(b), len(a)
    if function is info_nce:
        first, second = a[i] @ b.T / 0.5, b[i] @ a.T / 0.5
        return ((first.logsumexp(0) - first[i]) + (second.logsumexp(0) - second[i])).item() / 2
    stacked, total = torch.cat([a, b]), 0.0
    for anchor, partner in ((i, i + n), (i + n, i)):
        logits = stacked[anchor] @ stacked.T / 0.5
        others = torch.arange(2 * n) != anchor
        total += (logits[others].logsumexp(0) - logits[partner]).item()
    return total / 2


def test_a_row_with_nothing_but_replicates_costs_nothing_and_has_a_finite_gradient():
    a, b = (x.requires_grad_() for x in rows(4).unbind())
    same = torch.zeros(4, dtype=torch.long)
    for positives in ("own", "replicates"):
        loss = info_nce(a, b, replicates=same, positives=positives)
        assert loss.item() == 0.0
        gradient = torch.autograd.grad(loss, [a, b])
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradient)
    assert nce_bound(a @ b.T, replicates=same).item() == 0.0
    assert info_nce(a[:0], b[:0], replicates=same[:0], positives="replicates").item() == 0.0


def test_equal_molecules_already_have_all_replicates_for_a_partner():
    # rows of a are equal within a compound: then to find one's own profile is to find all of them
    molecule, profile = rows(6)
    replicates = torch.tensor([0, 0, 0, 1, 1, 2])
    molecule = molecule[replicates]
    own = info_nce(molecule, profile, replicates=replicates)
    every = info_nce(molecule, profile, replicates=replicates, positives="replicates")
    assert every.item() == pytest.approx(own.item(), **EXACT)
    other = info_nce(profile.flip(0), profile, replicates=replicates)
    assert abs(info_nce(profile.flip(0), profile, replicates=replicates, positives="replicates") - other) > 0.01


def test_the_bound_counts_what_is_left():
    # two compounds twice each, told apart without fail: log of the 3 rows that a row is compared with
    scores = 50 * torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert nce_bound(scores, replicates=torch.tensor([0, 0, 1, 1])).item() == pytest.approx(math.log(3), rel=1e-6)
    assert nce_bound(scores).item() == pytest.approx(math.log(2), rel=1e-6)


def test_mistakes_are_named():
    a, b = rows(3)
    with pytest.raises(ValueError, match="replicates must have one entry per row"):
        info_nce(a, b, replicates=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="replicates must have one entry per row"):
        nt_xent(a, b, replicates=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="replicates must have one entry per row"):
        nce_bound(a @ b.T, replicates=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="needs replicates"):
        info_nce(a, b, positives="replicates")
    with pytest.raises(ValueError, match="positives must be one of"):
        info_nce(a, b, positives="all")
