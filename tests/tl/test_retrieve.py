"""Retrieval across modalities of a MuData: who is asked, who is found, who judges."""

from __future__ import annotations

import warnings

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import unbraid as ub
from unbraid.tl._match_confidence import MatchConfidence

COLUMNS = ["query", "rank", "hit", "score", "p_value", "confidence", "is_match"]


def modality(codes, names, **obs):
    return AnnData(obs=pd.DataFrame(obs, index=names), obsm={"Z_c": codes})


@pytest.fixture(scope="module")
def wells():
    """A screen in which every well has its molecule: 240 wells of 60 compounds."""
    rng = np.random.default_rng(0)
    names = [f"well {i}" for i in range(240)]
    compound = np.repeat(np.arange(60), 4)
    molecule = rng.normal(size=(60, 8))[compound]
    phenotype = molecule + 0.8 * rng.normal(size=molecule.shape)
    mdata = mudata.MuData({"phenotype": modality(phenotype, names), "molecule": modality(molecule[4:], names[4:])})
    mdata.obs["compound"] = pd.Series([f"drug {c:02}" for c in compound], index=names).reindex(mdata.obs_names)
    mdata.obs.loc["well 5", "compound"] = None
    mdata = mdata[mdata.obs_names != "well 4"].copy()
    mdata.mod["molecule"] = mdata["molecule"][mdata["molecule"].obs_names != "well 5"].copy()
    mdata.update()
    return mdata


@pytest.fixture(scope="module")
def library():
    """A screen whose molecules are rows of their own, with numbers for names of compounds."""
    rng = np.random.default_rng(1)
    compound = np.repeat(np.arange(100, 140), 3)
    molecule = rng.normal(size=(50, 8))
    phenotype = molecule[compound - 100] + 0.8 * rng.normal(size=(120, 8))
    return mudata.MuData(
        {
            "phenotype": modality(phenotype, [f"well {i}" for i in range(120)], compound=np.where(compound < 0, 0.0, compound)),
            "molecule": modality(molecule, [f"molecule {i}" for i in range(50)], compound=np.arange(100, 150)),
        }
    )  # fmt: skip


def as_index(mdata, query="phenotype", target="molecule", **options):
    return ub.tl.build_index(f"{target}:Z_c", data=mdata, **options), f"{query}:Z_c"


def test_hits_are_those_of_the_index(wells):
    before = wells.copy()
    hits = ub.tl.retrieve(wells, group="compound", k=3)
    assert hits.columns.tolist() == COLUMNS
    index, query = as_index(wells, groups="compound")
    found = index.search(query, 3, data=wells)
    assert hits["query"].tolist() == np.repeat(wells.obs_names, 3).tolist()
    assert hits["rank"].tolist() == [1, 2, 3] * wells.n_obs
    assert hits["hit"].tolist() == found.names.ravel().tolist()
    assert hits["score"].tolist() == found.scores.ravel().tolist()
    own = wells.obs["compound"].reindex(hits["query"]).to_numpy()
    known = pd.notna(own)
    assert (hits["is_match"][known] == (hits["hit"][known] == own[known])).all()
    assert hits["query"][hits["is_match"].isna()].unique().tolist() == ["well 5"]
    assert not hits["is_match"][hits["query"].isin(["well 0", "well 3"])].any()  # the library lacks their drug
    assert hits["is_match"][hits["rank"] == 1].mean() > 0.5
    assert wells.obs.equals(before.obs)
    assert set(wells.uns) == set(before.uns)


def test_the_other_direction_by_the_best_well_or_their_average(wells):
    named = wells.obs["compound"].notna()
    with pytest.raises(ValueError, match="1 of 239 candidates have no group"):
        ub.tl.retrieve(wells, "molecule", "phenotype", group="compound", candidates=wells["phenotype"].obs_names)
    for replicates in ("best", "average"):
        hits = ub.tl.retrieve(
            wells, "molecule", "phenotype", group="compound", candidates=named, replicates=replicates, k=2
        )
        phenotype = wells["phenotype"][named[wells["phenotype"].obs_names]]
        index = ub.tl.build_index(
            phenotype.obsm["Z_c"], groups=wells.obs["compound"][phenotype.obs_names].to_numpy(), replicates=replicates
        )
        assert hits["hit"].tolist() == index.search(wells["molecule"].obsm["Z_c"], 2).names.ravel().tolist()
        assert hits["query"].nunique() == wells["molecule"].n_obs
        # without being told: wells that have no compound answer nothing
        default = ub.tl.retrieve(wells, "molecule", "phenotype", group="compound", replicates=replicates, k=2)
        assert default.equals(hits)


@pytest.mark.parametrize("pulled", [True, False])
def test_molecules_may_be_rows_of_their_own(library, pulled):
    if pulled:
        library = library.copy()
        library.obs["compound"] = pd.concat([adata.obs["compound"] for adata in library.mod.values()])
    hits = ub.tl.retrieve(library, group="compound", k=60)
    assert set(hits["query"]) == set(library["phenotype"].obs_names)
    assert hits["hit"].nunique() == 50
    assert (hits.groupby("query")["rank"].max() == 50).all()  # fewer candidates than asked for
    assert (hits.groupby("query")["is_match"].sum() == 1).all()
    assert hits["confidence"].notna().equals(hits["rank"] <= 10)
    back = ub.tl.retrieve(library, "molecule", "phenotype", group="compound", k=1)
    assert not back["is_match"].isna().any()  # ten molecules have no wells, and so no match
    assert not back["is_match"][back["query"].isin([f"molecule {i}" for i in range(40, 50)])].any()


def test_cells_find_themselves(make_mdata):
    mdata = make_mdata(80, missing={"prot": 0.25})
    rng = np.random.default_rng(2)
    shared = pd.DataFrame(rng.normal(size=(80, 6)), index=mdata.obs_names)
    for adata in mdata.mod.values():
        adata.obsm["Z_c"] = shared.loc[adata.obs_names].to_numpy() + 0.1 * rng.normal(size=(adata.n_obs, 6))
    hits = ub.tl.retrieve(mdata, "rna", "prot", k=1)
    assert len(hits) == 80
    has_both = hits["query"].isin(mdata["prot"].obs_names)
    assert (hits["hit"][has_both] == hits["query"][has_both]).all()
    assert hits["is_match"][has_both].all()
    assert hits["is_match"][~has_both].isna().all()
    assert hits["p_value"][has_both].median() < hits["p_value"][~has_both].median()
    back = ub.tl.retrieve(mdata, "prot", "rna", k=1, use_rep=("Z_c", "Z_c"))
    assert back["query"].tolist() == [name for name in mdata.obs_names if name in mdata["prot"].obs_names]
    assert back["is_match"].mean() > 0.95
    pytest.importorskip("faiss")
    assert ub.tl.retrieve(mdata, "prot", "rna", k=1, backend="faiss").equals(back)


def test_held_out_rows_teach_what_scores_mean(wells):
    rng = np.random.default_rng(3)
    teaches = pd.Series(wells.obs["compound"].isin([f"drug {i:02}" for i in range(40)]), index=wells.obs_names)
    hits = ub.tl.retrieve(wells, group="compound", queries=~teaches, calibration=teaches)
    index, query = as_index(wells, groups="compound")
    index.calibrate(query, wells.obs["compound"].where(teaches), data=wells)
    found = index.search(query, data=wells)
    asked = ~teaches.to_numpy()
    np.testing.assert_array_equal(hits["confidence"], found.confidences[asked].ravel())
    np.testing.assert_array_equal(hits["p_value"], found.p_values[asked].ravel())
    few = rng.choice(np.flatnonzero(teaches), 20, replace=False)
    with pytest.warns(UserWarning, match="fewer than the 30"):
        hits = ub.tl.retrieve(wells, group="compound", calibration=few)
    assert hits["confidence"].isna().all()
    assert hits["p_value"].notna().all()
    with pytest.raises(ValueError, match="let candidates include"):
        ub.tl.retrieve(wells, group="compound", calibration=teaches, candidates=~teaches)


def test_no_query_is_judged_by_its_own_group(library, monkeypatch):
    judged = []
    fit = MatchConfidence.fit

    def spy(outcomes):
        judge = fit(outcomes)
        taught = set(outcomes.groups.tolist())
        record = lambda scores: judged.append((taught, len(scores)))
        monkeypatch.setattr(MatchConfidence, "p_values", lambda self, scores: record(scores) or np.zeros(scores.shape))
        return judge

    monkeypatch.setattr(MatchConfidence, "fit", spy)
    ub.tl.retrieve(library, group="compound")
    assert len(judged) == 10
    assert sum(n for _, n in judged) == 120
    everyone = set().union(*(taught for taught, _ in judged))
    assert [len(everyone - taught) * 3 for taught, _ in judged] == [n for _, n in judged]
    left_out = [group for taught, _ in judged for group in everyone - taught]
    assert sorted(left_out) == sorted(everyone)


def test_an_outlier_is_no_excuse_for_itself(library):
    mdata = library.copy()
    # the wells of one compound look exactly like another, so their best wrong score is the highest that there is
    mdata["phenotype"].obsm["Z_c"] = mdata["phenotype"].obsm["Z_c"].copy()
    mdata["phenotype"].obsm["Z_c"][:3] = mdata["molecule"].obsm["Z_c"][45]
    hits = ub.tl.retrieve(mdata, group="compound", k=1)
    odd = hits[hits["query"].isin(["well 0", "well 1", "well 2"])]
    assert odd["hit"].tolist() == ["145"] * 3
    np.testing.assert_allclose(odd["p_value"], 50 / 49 / 37)  # 36 groups of other folds, none of which reaches it


def test_the_order_of_rows_does_not_matter(library):
    order = np.random.default_rng(4).permutation
    shuffled = mudata.MuData({name: adata[order(adata.n_obs)].copy() for name, adata in library.mod.items()})
    by = ["query", "rank"]
    expected = ub.tl.retrieve(library, group="compound").sort_values(by, ignore_index=True)
    found = ub.tl.retrieve(shuffled, group="compound").sort_values(by, ignore_index=True)
    pd.testing.assert_frame_equal(found, expected, atol=1e-5)
    again = ub.tl.retrieve(library, group="compound", seed=1).sort_values(by, ignore_index=True)
    assert again[COLUMNS[:4]].equals(expected[COLUMNS[:4]])
    assert not np.array_equal(again["p_value"], expected["p_value"])


def test_rows_are_named_in_any_way(library):
    asked = library.obs_names.isin(["well 3", "well 7"])
    found = [
        ub.tl.retrieve(library, group="compound", queries=queries)
        for queries in (
            asked,
            pd.Series(asked, index=library.obs_names)[::-1],
            pd.array(np.where(asked, True, None), dtype="boolean"),
            np.flatnonzero(asked),
            ["well 7", "well 3"],
            pd.Index(["well 3", "well 7"]),
        )
    ]
    assert all(hits.equals(found[0]) for hits in found)
    assert found[0]["query"].unique().tolist() == ["well 3", "well 7"]
    with pytest.warns(UserWarning, match="of 1 groups"):
        few = ub.tl.retrieve(library, group="compound", queries="well 9", candidates=["molecule 1", "molecule 49"])
    assert set(few["hit"]) == {"101", "149"}
    for wrong, error, words in (
        (asked[:-1], ValueError, "mask of 169 values, but there are 170"),
        ([170], IndexError, "runs from 170 to 170, but there are 170"),
        (["well 1000"], KeyError, "no observation 'well 1000'. Did you mean 'well 100'"),
        (["molecule 1"], ValueError, "No observation of queries has codes of 'phenotype'"),
        ([], ValueError, "No observation of queries"),
    ):
        with pytest.raises(error, match=words):
            ub.tl.retrieve(library, group="compound", queries=wrong)


def test_without_known_matches_there_are_scores_only(library):
    with pytest.warns(UserWarning, match="of 0 groups"):
        hits = ub.tl.retrieve(library, k=2)  # no well is called as a molecule is
    assert hits["is_match"].isna().all()
    assert hits[["p_value", "confidence"]].isna().all(axis=None)
    assert hits["hit"].str.startswith("molecule").all()


def test_vectors_of_query_and_target_may_differ(library):
    mdata = library.copy()
    mdata["phenotype"].obsm["asks"] = mdata["phenotype"].obsm["Z_c"] * np.arange(8)
    mdata["molecule"].obsm["answers"] = mdata["molecule"].obsm["Z_c"] + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hits = ub.tl.retrieve(mdata, group="compound", use_rep=("asks", "answers"), metric="dot", k=1)
    products = mdata["phenotype"].obsm["asks"] @ mdata["molecule"].obsm["answers"].T
    assert hits["hit"].tolist() == (100 + products.argmax(axis=1)).astype(str).tolist()
    np.testing.assert_allclose(hits["score"], products.max(axis=1), rtol=1e-5)


def test_bad_input_is_named(library):
    mdata = library.copy()
    mdata["molecule"].obsm["wide"] = np.zeros((50, 9))
    retrieve = ub.tl.retrieve
    for options, error, words in (
        ({"query": "phenotypes"}, KeyError, "no modality 'phenotypes'. Did you mean 'phenotype'"),
        ({"target": "dna"}, KeyError, "target: there is no modality 'dna'"),
        ({"target": "phenotype"}, ValueError, "both 'phenotype'"),
        ({"use_rep": "Z_d"}, KeyError, "'Z_d' is not in"),
        ({"use_rep": ("Z_c", "wide")}, ValueError, "has 8 columns, but 'wide' of 'molecule' has 9"),
        ({"use_rep": ("a", "b", "c")}, ValueError, "use_rep must be"),
        ({"group": "compnd"}, KeyError, "'compnd' is not in data.obs. There is: 'phenotype:compound'"),
        ({"k": 0}, ValueError, "`k`"),
        ({"metric": "euclidean"}, ValueError, "metric must be one of"),
        ({"backend": "annoy"}, ValueError, "backend must be one of"),
    ):
        with pytest.raises(error, match=words):
            retrieve(mdata, **options)
    with pytest.raises(ValueError, match="retrieve needs a MuData, not AnnData"):
        retrieve(mdata["molecule"])
