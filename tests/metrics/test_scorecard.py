"""What `unbraid.metrics.scorecard` promises, on data whose answers are known."""

from __future__ import annotations

import warnings

import mudata
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

import unbraid as ub
from unbraid.benchmark.scorecard import World, simulate
from unbraid.metrics import _verdicts, negative_control, positive_control, scorecard
from unbraid.metrics._scorecard_rows import linear_cka
from unbraid.metrics._variance import available, explained, held_out_prediction

FAST = {"estimators": ("canonical", "quadratic"), "progress": False, "n_splits": 3}


def card_of(world, *, n_obs=700, n_latent=4, seed=0, **options):
    mdata, truth = simulate(world, n_obs, n_latent, seed)
    return scorecard(mdata, **{**FAST, **options}), truth, mdata


def verdict(card, question, code, against=None, condition="all"):
    rows = card.table[card.table["question"].eq(question) & card.table["code"].eq(code)]
    rows = rows[rows["condition"].eq(condition)]
    rows = rows if against is None else rows[rows["against"].eq(against)]
    return rows.iloc[0]


@pytest.fixture(scope="module")
def split():
    """A clean split of cells with something shared."""
    return card_of(World("clean"), margin=0.1)


@pytest.fixture(scope="module")
def cells():
    """Counts, batches, types, donors and a third of the cells without proteins; codes are the truth."""
    m = ub.data.simulate.citeseq(n_obs=400, n_genes=60, n_proteins=12, missing={"prot": 0.3}, seed=0)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 3)) + 2 * pd.get_dummies(m.obs["cell_type"]).to_numpy()[:, :3]
    m.obsm["Z_c"] = z
    for adata in m.mod.values():
        rows = m.obs_names.get_indexer(adata.obs_names)
        adata.obsm["Z_c"] = z[rows] + 0.3 * rng.normal(size=(len(rows), 3))
        adata.obsm["Z_s"] = rng.normal(size=(len(rows), 2))
    m.obs["donor"] = [f"d{i % 9}" for i in range(400)]
    return m


# ---- verdicts are right where the answer is known


def test_a_clean_split_is_called_shared_and_clean(split):
    card, _, _ = split
    assert verdict(card, "shared", "a:Z_c")["verdict"] == "shared"
    for code, other in (("a:Z_s", "b:Z_c"), ("b:Z_s", "a:Z_c")):
        assert verdict(card, "specific", code, other)["verdict"] == "clean"


def test_information_and_budget_are_those_of_the_population(split):
    card, truth, _ = split
    nats = verdict(card, "shared", "a:Z_c")
    assert abs(nats["estimate"] - truth["nats"]) < 0.15
    shares = card.budget[card.budget["unit"].eq("share of variance")]
    for part, code in (("shared", "a"), ("specific", "b"), ("shared code only", "a")):
        row = shares[shares["measure"].eq(part) & shares["code"].eq(code)].iloc[0]
        assert abs(row["estimate"] - truth[f"{part} of {code}"]) < 0.025
    assert shares.groupby("code")["estimate"].sum().to_numpy() == pytest.approx([1, 1])


@pytest.mark.parametrize("family", ["linear", "quadratic", "gated"])
def test_a_leak_is_found_where_it_is(family):
    card, _, _ = card_of(World("leak", family=family, leak=0.5), limits=False)
    assert verdict(card, "specific", "a:Z_s", "b:Z_c")["verdict"] == "leaks"
    assert verdict(card, "specific", "b:Z_s", "a:Z_c")["verdict"] != "leaks"


def test_nothing_shared_is_not_called_shared():
    card, _, _ = card_of(World("nothing", share=0.0), limits=False)
    row = verdict(card, "shared", "a:Z_c")
    assert row["verdict"] == "not shown"
    assert row["estimate"] < 0.05


def test_what_batch_shares_is_told_from_what_cells_share():
    card, _, _ = card_of(World("batch", by_batch=True), limits=False, batch="batch")
    assert verdict(card, "shared", "a:Z_c")["verdict"] == "shared"
    assert verdict(card, "shared", "a:Z_c", condition="within batch")["verdict"] == "not shown"
    budget = card.budget.set_index("measure")["estimate"]
    assert budget["shared: batch"].iloc[0] > 5 * abs(budget["shared"].iloc[0])
    assert verdict(card, "nuisance", "a:Z_c", "batch")["verdict"] == "carries"


def test_without_limits_no_code_is_called_clean(split):
    card = scorecard(split[2], **FAST, limits=False, key_added=None)
    assert "clean" not in set(card.table["verdict"])
    assert "limit of detection" not in set(card.table["question"])


def test_a_small_margin_cannot_be_shown():
    card, _, _ = card_of(World("clean"), n_obs=200, margin=0.001)
    row = verdict(card, "specific", "a:Z_s", "b:Z_c")
    assert row["verdict"] == "not shown"
    assert "can be missed" in row["words"]


def test_the_verdict_on_a_leak_is_an_equivalence_claim():
    quiet = {"estimate": 0.0, "low": -0.01, "high": 0.01, "p_value": 0.5, "alpha": 0.05, "margin": 0.05}
    assert _verdicts.leak(**quiet, limit=0.03)[0] == "clean"
    assert _verdicts.leak(**quiet, limit=0.1)[0] == "not shown"
    assert _verdicts.leak(**quiet, limit=np.inf)[0] == "not shown"
    assert _verdicts.leak(**quiet, limit=np.nan)[0] == "not found"
    assert _verdicts.leak(**{**quiet, "high": 0.2}, limit=0.03)[0] == "not shown"
    assert _verdicts.leak(**{**quiet, "p_value": 0.01}, limit=0.03)[0] == "traces"
    loud = {"estimate": 0.2, "low": 0.1, "high": 0.3, "p_value": 0.01, "alpha": 0.05, "margin": 0.05}
    assert _verdicts.leak(**loud, limit=0.03)[0] == "leaks"


def test_holm_is_the_stepwise_bonferroni():
    assert _verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # by hand
    assert _verdicts.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


# ---- any embedding, any data


def test_counts_missing_modalities_labels_batches_and_donors(cells):
    before = {m: set(a.obsm) for m, a in cells.mod.items()}, set(cells.obs)
    card = scorecard(cells, labels="cell_type", batch="batch", group="donor", limits=False, **FAST)
    assert ({m: set(a.obsm) for m, a in cells.mod.items()}, set(cells.obs)) == before
    assert set(card.table.loc[card.table["question"].eq("shared"), "condition"]) == {
        "all", "within batch", "within batch and label", "beyond depth",
    }  # fmt: skip
    assert verdict(card, "label", "Z_c", "cell_type")["verdict"] == "reads"
    assert card.table["n_obs"].max() == cells["prot"].n_obs  # cells with both modalities
    assert not any("Give group" in note for note in card.notes)
    parts = card.budget[card.budget["unit"].eq("nats")].set_index("measure")["estimate"]
    total = verdict(card, "shared", "rna:Z_c")["estimate"]
    assert parts.sum() == pytest.approx(total)
    assert parts["shared: label"] > parts["shared: batch"]
    by_label = card.budget[card.budget["unit"].eq("share of variance")].groupby(["code", "against"])["estimate"].sum()
    assert by_label.to_numpy() == pytest.approx(np.ones(len(by_label)))


def test_a_joint_code_alone_is_judged_through_what_each_modality_predicts():
    m = ub.data.simulate.citeseq(n_obs=700, n_genes=150, n_proteins=25, seed=0)
    card = scorecard(m, "true_shared", None, labels="cell_type", limits=False, **FAST)
    assert verdict(card, "shared", "true_shared from rna")["verdict"] == "shared"
    assert "specific" not in set(card.table["question"])
    assert any("no version per modality" in note for note in card.notes)


def test_keys_by_modality(cells):
    card = scorecard(cells, {"rna": "Z_c", "prot": "prot:Z_c"}, {"rna": "rna:Z_s"}, limits=False, **FAST)
    assert set(card.table.loc[card.table["question"].eq("specific"), "code"]) == {"rna:Z_s"}


def test_three_modalities():
    m = ub.data.simulate.citeseq(n_obs=200, n_genes=20, n_proteins=8, n_peaks=20, seed=0)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 2))
    for adata in m.mod.values():
        adata.obsm["Z_c"], adata.obsm["Z_s"] = z + rng.normal(size=(200, 2)), rng.normal(size=(200, 2))
    card = scorecard(m, limits=False, **FAST)
    assert card.table["question"].eq("shared").sum() >= 3
    leaks = card.table[card.table["question"].eq("specific") & card.table["condition"].eq("all")]
    assert len(leaks) == 12  # six ordered pairs, codes and data


def test_masked_cells_are_left_out(cells):
    m = cells.copy()
    m["prot"].obsm["Z_c"][:20] = np.nan
    card = scorecard(m, limits=False, **FAST)
    assert verdict(card, "shared", "rna:Z_c")["n_obs"] == m["prot"].n_obs - 20


def test_held_out_cells_alone(split):
    mdata = split[2].copy()
    ub.pp.split(mdata, fractions=(0.5, 0.0, 0.5), seed=0)
    card = scorecard(mdata, split_key="split", limits=False, **FAST)
    assert card.settings["n_obs"] == (mdata.obs["split"] == "test").sum()
    assert not any("trained on" in note for note in card.notes)
    assert any("trained on" in note for note in split[0].notes)


def test_same_seed_same_card_and_no_global_state(split):
    mdata = split[2]
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (scorecard(mdata, limits=False, max_obs=300, key_added=None, **FAST) for _ in range(2))
    pd.testing.assert_frame_equal(one.table, two.table)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_the_card_is_kept_and_survives_the_disk(split, tmp_path):
    card, _, mdata = split
    mdata.write(tmp_path / "m.h5mu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = mudata.read_h5mu(tmp_path / "m.h5mu")
    pd.testing.assert_frame_equal(back.uns["scorecard"], card.table, check_dtype=False)
    assert back.uns["scorecard_settings"]["shared"] == "Z_c"


def test_methods_text_says_what_was_done(split):
    text = split[0].to_methods_text()
    for said in ("700 of 700", "3 folds", "planted linear, quadratic and gated leaks", "Holm", "seed 0"):
        assert said in text


def test_stability_over_runs(split):
    mdata = split[2].copy()
    rng = np.random.default_rng(0)
    for adata in mdata.mod.values():
        c, s = adata.obsm["Z_c"], adata.obsm["Z_s"]
        rotation = np.linalg.qr(rng.normal(size=(c.shape[1], c.shape[1])))[0]
        adata.obsm["Q_c"], adata.obsm["Q_s"] = c @ rotation, rng.normal(size=s.shape)
    card = scorecard(mdata, limits=False, runs=[("Q_c", "Q_s")], **FAST)
    assert verdict(card, "stability", "a:Z_c")["estimate"] == pytest.approx(1)
    assert verdict(card, "stability", "a:Z_s")["verdict"] == "unstable"


def test_controls(cells):
    def fit(mdata):
        """Leading components of the log counts as the shared code, of what they leave as the specific one."""
        for adata in mdata.mod.values():
            x = np.log1p(adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X)
            u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
            adata.obsm["Z_c"], adata.obsm["Z_s"] = u[:, :2] * s[:2], u[:, 10:12] * s[10:12]
        return mdata

    card = scorecard(cells, controls=fit, limits=False, **FAST)
    rows = card.table[card.table["question"].eq("control") & card.table["code"].str.endswith("Z_c")]
    of = lambda kind: rows.loc[rows["against"].str.contains(kind), "verdict"].iloc[0]
    assert of("negative") == "not shown"
    assert of("positive") == "shared"


# ---- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shared": "Z_x"}, KeyError, "Z_x"),
        ({"specific": "Z_x"}, KeyError, "modality 'rna'"),
        ({"specific": {"protein": "Z_s"}}, KeyError, "prot"),
        ({"labels": "celltype"}, KeyError, "cell_type"),
        ({"modalities": ["rna"]}, ValueError, "needs two"),
        ({"modalities": ["rna", "adt"]}, KeyError, "adt"),
        ({"layers": {"rna": "counts"}}, KeyError, "rna"),
        ({"split_key": "batch"}, ValueError, "test"),
        ({"alpha": 0}, ValueError, "alpha"),
        ({"n_splits": 1}, ValueError, "n_splits"),
        ({"margin": -1}, ValueError, "margin"),
        ({"max_obs": 50}, ValueError, "100"),
        ({"estimators": ("canonical", "smile")}, ValueError, "estimators"),
        ({"group": "batch", "n_splits": 5}, ValueError, "2 groups cannot fill"),
    ],
)
def test_mistakes_are_named_before_any_work(cells, options, error, message):
    with pytest.raises(error, match=message):
        scorecard(cells, **{**FAST, **options})


def test_broken_values_are_named(cells):
    m = cells.copy()
    m["rna"].obsm["Z_s"][3, 0] = np.inf
    with pytest.raises(ValueError, match=r"rna:Z_s.*infinite"):
        scorecard(m, **FAST)
    m = cells.copy()
    m["prot"].X[0, 0] = np.nan
    with pytest.raises(ValueError, match="'prot' has values that are missing"):
        scorecard(m, **FAST)


def test_an_anndata_is_no_mudata(cells):
    with pytest.raises(TypeError, match="AnnData"):
        scorecard(cells["rna"], **FAST)


def test_a_code_that_collapsed_holds_nothing(cells):
    m = cells.copy()
    for adata in m.mod.values():
        adata.obsm["Z_s"] = np.ones((adata.n_obs, 2))
    card = scorecard(m, labels="cell_type", **FAST)
    row = verdict(card, "specific", "rna:Z_s", "prot:Z_c")
    assert (row["verdict"], row["estimate"], row["p_value"]) == ("not found", 0, 1)
    assert verdict(card, "dimension", "rna:Z_s")["verdict"] == "collapsed"
    assert verdict(card, "label", "rna:Z_s")["verdict"] == "at chance"


# ---- parts


def test_held_out_prediction_is_ridge_and_never_sees_its_rows():
    rng = np.random.default_rng(0)
    z, fold = rng.normal(size=(300, 3)), np.arange(300) % 3
    x = z @ rng.normal(size=(3, 5)) + 0.1 * rng.normal(size=(300, 5))
    predicted = held_out_prediction(x, [z[:, :1], z[:, 1:]], fold).values
    for k in range(3):
        least_squares = LinearRegression().fit(z[fold != k], x[fold != k]).predict(z[fold == k])
        assert predicted[fold == k] == pytest.approx(least_squares, abs=0.01)
    noise = rng.normal(size=(300, 5))
    assert np.var(held_out_prediction(noise, [rng.normal(size=(300, 40))], fold).values) < 0.1  # shrunk, not memorised


def test_explained_variance_is_that_of_the_population():
    """With 20 regressors and 400 observations, what is held out alone would give 0.20."""
    shares = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(400, 20))
        x = 0.5 * z[:, :4] + np.sqrt(0.75) * rng.normal(size=(400, 4))  # a quarter is explained
        fold = rng.permutation(np.arange(400) % 5)
        gain = explained(x, held_out_prediction(x, [z], fold))
        shares.append(gain.sum() / available(x).sum())
    assert np.mean(shares) == pytest.approx(0.25, abs=0.015)


def test_similarity_of_codes_is_invariant_and_bounded():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 200, 4))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert linear_cka(a, 3 * a @ rotation + 1) == pytest.approx(1)
    assert 0 <= linear_cka(a, b) < 0.1


def test_negative_control_breaks_pairs_and_keeps_everything_else(cells):
    control = negative_control(cells, within="batch", seed=0)
    rna, prot = control["rna"], control["prot"]
    assert (rna.X != cells["rna"].X).nnz == 0
    assert np.array_equal(np.sort(prot.X.sum(1)), np.sort(cells["prot"].X.sum(1)))
    assert not np.array_equal(prot.X, cells["prot"].X)
    batch = cells.obs["batch"]
    for value in batch.unique():
        names = batch.index[batch == value].intersection(prot.obs_names)
        assert prot[names].X.sum() == cells["prot"][names].X.sum()
    assert control.obs["batch"].equals(batch.reindex(control.obs_names))


def test_positive_control_splits_counts(cells):
    control = positive_control(cells, "rna", seed=0)
    first, second = (control[name].X for name in ("first", "second"))
    assert ((first + second) != cells["rna"].X).nnz == 0
    assert first.sum() == pytest.approx(second.sum(), rel=0.05)
    m = cells.copy()
    m["rna"].X = m["rna"].X * 0.5
    with pytest.raises(ValueError, match="no counts"):
        positive_control(m, "rna")
