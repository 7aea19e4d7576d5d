"""What `unbraid.metrics.coherence` promises."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from unbraid.metrics._coherence import coherence

FIRST = lambda rows: rows[:, 0].astype(int)  # rows whose values are the labels that they show
SECOND = lambda rows: rows[:, 1].astype(int)
MODALITIES = ("a", "b", "c")
ONE = dict.fromkeys(MODALITIES, FIRST)
TWO = {"left": dict.fromkeys(MODALITIES, FIRST), "right": dict.fromkeys(MODALITIES, SECOND)}


def corrupted(rng, y, share, n_classes=4):
    """Rows that show the labels, but for a share that shows any."""
    y = y.reshape(len(y), -1)
    return np.where(rng.random(y.shape) < share, rng.integers(n_classes, size=y.shape), y).astype(float)


def generate(rng, y, self_noise=0.1, cross_noise=0.5):
    return {(s, t): corrupted(rng, y, self_noise if s == t else cross_noise) for s in MODALITIES for t in MODALITIES}


def row_of(result, kind, attribute="label"):
    table = result.table
    return table[(table["kind"] == kind) & (table["attribute"] == attribute)].iloc[0]


# ---- conditional


def test_self_and_cross_coherence_are_means_over_pairs(rng):
    y = rng.integers(4, size=300)
    generated = generate(rng, y)
    result = coherence(generated, y, ONE)
    accuracy = {pair: (rows[:, 0] == y).mean() for pair, rows in generated.items()}
    pairs = result.pairs.set_index(["source", "target"])["coherence"]
    assert {pair: pairs[pair] for pair in accuracy} == pytest.approx(accuracy)
    of_self, cross = row_of(result, "self"), row_of(result, "cross")
    assert of_self["coherence"] == pytest.approx(np.mean([accuracy[m, m] for m in MODALITIES]))
    assert cross["coherence"] == pytest.approx(np.mean([v for (s, t), v in accuracy.items() if s != t]))
    assert abs(cross["coherence"] - 0.625) < 0.06
    assert (of_self["n_obs"], of_self["n_dropped"]) == (300, 0)
    assert result.pairs["kind"].value_counts().to_dict() == {"cross": 6, "self": 3}
    assert result.table["kind"].tolist() == ["self", "cross"]


def test_chance_is_what_permuted_labels_give(rng):
    y = rng.choice(4, p=[0.5, 0.3, 0.1, 0.1], size=400)
    rows = corrupted(rng, y, 0.3)
    chance = row_of(coherence({("a", "b"): rows}, y, ONE), "cross")["chance"]
    permuted = [row_of(coherence({("a", "b"): rows}, rng.permutation(y), ONE), "cross")["coherence"] for _ in range(15)]
    assert chance == pytest.approx(np.mean(permuted), abs=0.02)
    balanced = coherence({("a", "b"): rows}, np.arange(400) % 4, ONE)
    assert row_of(balanced, "cross")["chance"] == pytest.approx(0.25)
    constant = row_of(coherence({("a", "b"): np.zeros((400, 1))}, y, ONE), "cross")
    assert constant["coherence"] == constant["chance"] == pytest.approx((y == 0).mean())


def test_private_labels_are_those_of_the_target(rng):
    """Rows made with a specific latent of the target show its label and not that of the source."""
    quadrant = {m: rng.integers(4, size=200) for m in MODALITIES}
    generated = {(s, t): quadrant[t][:, None].astype(float) for s in MODALITIES for t in MODALITIES}
    classifier = {"quadrant": ONE}
    result = coherence(generated, {"quadrant": quadrant}, classifier)
    assert result.table["coherence"].tolist() == [1, 1]
    assert result.table["attribute"].unique().tolist() == ["quadrant"]
    other = coherence(generated, {"quadrant": quadrant["a"]}, classifier)
    assert row_of(other, "cross", "quadrant")["coherence"] < 0.6


def test_several_attributes_are_multiplied(rng):
    y = rng.integers(4, size=(500, 2))
    generated = generate(rng, y)
    labels = {"left": y[:, 0], "right": y[:, 1]}
    result = coherence(generated, labels, TWO)
    for kind in ("self", "cross"):
        left, right, product = (row_of(result, kind, name) for name in ("left", "right", "product"))
        assert product["coherence"] == pytest.approx(left["coherence"] * right["coherence"])
        assert product["chance"] == pytest.approx(left["chance"] * right["chance"])
        assert product["low"] < product["coherence"] < product["high"]
        both = np.mean(
            [(rows == y).all(axis=1).mean() for (s, t), rows in generated.items() if (s == t) == (kind == "self")]
        )
        assert row_of(result, kind, "all")["coherence"] == pytest.approx(both)
        assert both == pytest.approx(product["coherence"], abs=0.05)  # as errors are independent here
    single = coherence(generated, labels["left"], TWO["left"])
    assert row_of(single, "cross")["coherence"] == row_of(result, "cross", "left")["coherence"]


def test_all_is_not_the_product_if_errors_come_together(rng):
    y = rng.integers(4, size=(400, 2))
    fails = (rng.random(400) < 0.5)[:, None]
    rows = np.where(fails, (y + 1) % 4, y).astype(float)
    result = coherence({("a", "b"): rows}, {"left": y[:, 0], "right": y[:, 1]}, TWO)
    right = (~fails).mean()
    assert row_of(result, "cross", "all")["coherence"] == pytest.approx(right)
    assert row_of(result, "cross", "product")["coherence"] == pytest.approx(right**2)
    codes = 4 * y[:, 0] + y[:, 1]
    shown = 4 * rows[:, 0] + rows[:, 1]
    expected = sum((codes == k).mean() * (shown == k).mean() for k in range(16))
    assert row_of(result, "cross", "all")["chance"] == pytest.approx(expected)


# ---- unconditional


def test_unconditional_coherence_asks_all_modalities(rng):
    y = rng.integers(4, size=400)
    sets = {m: corrupted(rng, y, 0.3) for m in MODALITIES}
    result = coherence(None, None, ONE, unconditional=sets)
    agree = (sets["a"] == sets["b"])[:, 0] & (sets["a"] == sets["c"])[:, 0]
    (row,) = result.table.to_dict("records")
    assert row["coherence"] == pytest.approx(agree.mean())
    frequencies = [[np.mean(rows == k) for k in range(4)] for rows in sets.values()]
    assert row["chance"] == pytest.approx(np.prod(frequencies, axis=0).sum())
    assert row["low"] < row["coherence"] < row["high"]
    assert (row["kind"], row["n_obs"]) == ("unconditional", 400)
    assert result.pairs.empty


def test_a_generator_of_one_class_agrees_by_chance():
    (row,) = coherence(None, None, ONE, unconditional={m: np.ones((50, 1)) for m in MODALITIES}).table.itertuples()
    assert (row.coherence, row.chance) == (1, 1)


def test_unconditional_coherence_of_several_attributes(rng):
    y = rng.integers(4, size=(300, 2))
    sets = {m: corrupted(rng, y, 0.2) for m in ("a", "b")}
    result = coherence(None, None, TWO, unconditional=sets)
    same = sets["a"] == sets["b"]
    values = result.table.set_index("attribute")["coherence"]
    assert (values["left"], values["right"]) == pytest.approx(tuple(same.mean(axis=0)))
    assert values["all"] == pytest.approx(same.all(axis=1).mean())
    assert values["product"] == pytest.approx(values["left"] * values["right"])


# ---- ceiling


def test_the_ceiling_is_the_classifier_on_real_data(rng):
    y = rng.integers(4, size=300)
    real = {m: corrupted(rng, y, share) for m, share in zip(MODALITIES, (0, 0.1, 0.4), strict=True)}
    result = coherence(generate(rng, y), y, ONE, real=real, unconditional=real)
    accuracy = {m: (real[m][:, 0] == y).mean() for m in MODALITIES}
    assert row_of(result, "self")["ceiling"] == pytest.approx(np.mean(list(accuracy.values())))
    assert dict(zip(result.pairs["target"], result.pairs["ceiling"], strict=True)) == pytest.approx(accuracy)
    unconditional = row_of(result, "unconditional")
    assert unconditional["ceiling"] == unconditional["coherence"]  # the real rows themselves
    assert np.isnan(coherence(generate(rng, y), y, ONE).table["ceiling"]).all()


def test_real_data_may_have_labels_of_their_own(rng):
    y, other = rng.integers(4, size=100), rng.integers(4, size=40)
    result = coherence({("a", "b"): corrupted(rng, y, 0.5)}, y, ONE, real={"b": other[:, None]}, real_labels=other)
    assert row_of(result, "cross")["ceiling"] == 1


# ---- intervals


def test_interval_is_a_bootstrap_of_observations(rng):
    y = rng.integers(4, size=80)
    generated = generate(rng, y)
    result = coherence(generated, y, ONE)
    cross = np.mean([(rows[:, 0] == y) for (s, t), rows in generated.items() if s != t], axis=0)
    means = cross[rng.integers(80, size=(4000, 80))].mean(axis=1)
    row = row_of(result, "cross")
    assert (row["low"], row["high"]) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.25 * means.std())
    narrow = row_of(coherence(generated, y, ONE, confidence=0.5), "cross")
    assert narrow["high"] - narrow["low"] < row["high"] - row["low"]


def test_interval_counts_groups_not_observations(rng):
    donor = np.repeat(np.arange(15), 20)
    y = rng.integers(4, size=300)
    rows = np.where((rng.random(15) < 0.5)[donor], y, 4 - y)[:, None].astype(float)
    naive, grouped = (row_of(coherence({("a", "b"): rows}, y, ONE, groups=g), "cross") for g in (None, donor))
    assert grouped["high"] - grouped["low"] > 1.5 * (naive["high"] - naive["low"])
    assert grouped["n_groups"] == 15
    assert grouped["coherence"] == naive["coherence"]


# ---- rows and classifiers


def test_missing_rows_and_labels_are_left_out(rng):
    y = rng.integers(4, size=60)
    generated = generate(rng, y)
    for pair in generated:
        if pair[0] == "a":
            generated[pair][:10] = np.nan  # the source was not measured
    labels = y.astype(object)
    labels[50:] = None
    result = coherence(generated, labels, ONE)
    pairs = result.pairs.set_index(["source", "target"])
    assert pairs.loc[("a", "b"), ["n_obs", "n_dropped"]].tolist() == [40, 20]
    assert pairs.loc[("b", "a"), ["n_obs", "n_dropped"]].tolist() == [50, 10]
    assert pairs.loc[("a", "b"), "coherence"] == (generated["a", "b"][10:50, 0] == y[10:50]).mean()
    assert row_of(result, "cross")["n_obs"] == 50
    sets = {"a": generated["a", "a"], "b": generated["b", "b"]}
    unconditional = row_of(coherence(None, None, ONE, unconditional=sets), "unconditional")
    assert (unconditional["n_obs"], unconditional["n_dropped"]) == (50, 10)


def test_estimators_strings_and_containers(rng):
    y = np.array(["B", "T"])[rng.integers(2, size=120)]
    x = 3.0 * (y == "T")[:, None] + rng.normal(size=(120, 2))
    model = LogisticRegression().fit(x, y)
    expected = (model.predict(x) == y).mean()
    for rows in (x, sparse.csr_matrix(x), AnnData(x)):
        result = coherence({("rna", "prot"): rows}, y, {"prot": model}, real={"prot": rows})
        assert row_of(result, "cross")["coherence"] == row_of(result, "cross")["ceiling"] == expected
    from_callable = coherence({("rna", "prot"): x}, pd.Categorical(y), {"prot": model.predict})
    assert row_of(from_callable, "cross")["coherence"] == expected
    images = rng.normal(size=(120, 4, 4)) + (y == "T")[:, None, None]
    brightness = lambda rows: np.where(rows.mean(axis=(1, 2)) > 0.5, "T", "B")
    assert row_of(coherence({("rna", "img"): images}, y, {"img": brightness}), "cross")["coherence"] > 0.9


Y20 = np.arange(20) % 4
X20 = Y20[:, None].astype(float)
AB = {("a", "b"): X20}


@pytest.mark.parametrize(
    ("generated", "labels", "classifier", "options", "error", "message"),
    [
        (None, None, ONE, {}, ValueError, "nothing to judge"),
        (None, None, ONE, {"unconditional": {"a": X20}}, ValueError, "needs two"),
        (None, None, ONE, {"unconditional": {"a": X20, "b": X20[:4]}}, ValueError, "different lengths"),
        (AB, None, ONE, {}, ValueError, "Pass the labels"),
        (AB, Y20[:7], ONE, {}, ValueError, "has 7 values"),
        ({**AB, ("a", "a"): X20[:7]}, Y20, ONE, {}, ValueError, "labels .* has 20 values, but the embedding has 7"),
        (AB, Y20, {"a": FIRST}, {}, KeyError, "classifier has no 'b'. There is: 'a'"),
        (AB, Y20, {}, {}, ValueError, "classifier must be a mapping"),
        (AB, Y20, FIRST, {}, ValueError, "classifier must be a mapping"),
        (AB, {"x": Y20, "y": Y20}, ONE, {}, ValueError, "labels has several attributes"),
        (AB, Y20, TWO, {}, ValueError, "labels must be {attribute: labels}"),
        (AB, {"left": Y20}, TWO, {}, KeyError, "'right' is not in labels"),
        (AB, {"left": Y20, "up": Y20}, {"left": ONE}, {}, KeyError, "'up' is not in classifier"),
        (AB, {"left": {"a": Y20}}, {"left": ONE}, {}, KeyError, r"labels\['left'\] has no 'b'"),
        (AB, Y20, {"b": lambda rows: np.ones((20, 2))}, {}, ValueError, r"shape \(20, 2\). Of probabilities"),
        (AB, Y20, {"b": lambda rows: np.ones(3)}, {}, ValueError, r"each of 20 rows, not an array of shape \(3,\)"),
        (AB, Y20.astype(str), ONE, {}, ValueError, "Let it return labels, not their codes"),
        ({("a", "b"): X20 * np.nan}, Y20, ONE, {}, ValueError, "no row has both values and labels"),
        (AB, Y20, ONE, {"groups": Y20[:3]}, ValueError, "groups has 3 values"),
        (AB, Y20, ONE, {"confidence": 3}, ValueError, "confidence must be between"),
    ],
)
def test_errors_name_what_is_wrong(generated, labels, classifier, options, error, message):
    with pytest.raises(error, match=message):
        coherence(generated, labels, classifier, **options)


# ---- laws and result


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), grouped=st.booleans())
def test_order_of_observations_does_not_matter(seed, grouped):
    rng = np.random.default_rng(seed)
    y, order, group = rng.integers(4, size=(40, 2)), rng.permutation(40), rng.integers(6, size=40)
    generated = generate(rng, y)
    sets = {m: corrupted(rng, y, 0.5) for m in MODALITIES}
    shuffled = {pair: rows[order] for pair, rows in generated.items()}
    here = coherence(
        generated,
        {"left": y[:, 0], "right": y[:, 1]},
        TWO,
        unconditional=sets,
        groups=group if grouped else None,
    )
    there = coherence(
        shuffled,
        {"left": y[order, 0], "right": y[order, 1]},
        TWO,
        unconditional={m: rows[order] for m, rows in sets.items()},
        groups=group[order] if grouped else None,
    )
    pd.testing.assert_frame_equal(here.table, there.table)
    pd.testing.assert_frame_equal(here.pairs, there.pairs)
    renamed = coherence(
        generated,
        {"left": y[:, 0] + 7, "right": y[:, 1]},
        {**TWO, "left": dict.fromkeys(MODALITIES, lambda rows: FIRST(rows) + 7)},
        unconditional=sets,
        groups=group if grouped else None,
    )
    pd.testing.assert_frame_equal(here.table, renamed.table)


def test_same_seed_same_result_and_global_rng_undisturbed(rng):
    y = rng.integers(4, size=60)
    generated = generate(rng, y)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (coherence(generated, y, ONE, seed=seed).table for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_result_reads_as_sentences():
    result = coherence(AB, Y20, ONE, real={"b": X20})
    assert str(result) == "cross coherence of label 1.00 [1.00, 1.00], chance 0.25, real data 1.00 (n = 20)"
    grouped = coherence(AB, Y20, ONE, groups=Y20)
    assert str(grouped).endswith("chance 0.25 (n = 20 in 4 groups)")
    frame = result.to_frame()
    frame["coherence"] = 0
    assert result.table["coherence"].tolist() == [1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.table = frame
