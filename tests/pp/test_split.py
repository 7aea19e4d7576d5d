"""``ub.pp.split`` and ``ub.pp.molecular_groups``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from mudata import MuData
from rdkit import Chem
from rdkit.Chem.MolStandardize import rdMolStandardize
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles
from scipy.spatial.distance import cdist

import unbraid as ub
from unbraid.pp import molecular_groups


@pytest.fixture
def mdata():
    mdata = ub.data.simulate.citeseq(n_obs=200, n_genes=10, n_proteins=6, seed=0)
    mdata.obs["donor"] = [f"d{i % 10}" for i in range(200)]
    return mdata


def test_fractions_hold_and_the_seed_decides(mdata):
    ub.pp.split(mdata, fractions=(0.7, 0.2, 0.1))
    assert mdata.obs["split"].value_counts().to_dict() == {"train": 140, "val": 40, "test": 20}
    first = mdata.obs["split"].copy()
    ub.pp.split(mdata, fractions=(0.7, 0.2, 0.1))
    assert (mdata.obs["split"] == first).all()
    ub.pp.split(mdata, fractions=(0.7, 0.2, 0.1), seed=1)
    assert (mdata.obs["split"] != first).any()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 40), min_size=3, max_size=12), seed=st.integers(0, 5))
def test_no_group_is_on_two_sides_and_no_part_is_empty(sizes, seed):
    n_obs = sum(sizes)
    mdata = ub.data.simulate.citeseq(n_obs=max(n_obs, 12), n_genes=10, n_proteins=6, seed=0)
    donors = np.repeat(np.arange(len(sizes)), sizes)
    mdata.obs["donor"] = np.r_[donors, np.full(mdata.n_obs - n_obs, 0)]
    ub.pp.split(mdata, by="donor", seed=seed, fractions=(0.6, 0.2, 0.2))
    assert (mdata.obs.groupby("donor")["split"].nunique() == 1).all()


def test_training_takes_the_split(mdata):
    ub.pp.split(mdata, by="donor", key_added="part")
    ub.model.CLIP.setup_mudata(mdata)
    model = ub.model.CLIP(mdata, n_shared=4, n_hidden=8)
    model.train(max_epochs=1, split_key="part", progress_bar=False)
    assert set(mdata.obs["part"].to_numpy()[model.train_indices]) == {"train"}
    assert set(mdata.obs["part"].to_numpy()[model.validation_indices]) == {"val"}


def test_mistakes_are_named(mdata):
    with pytest.raises(KeyError, match="donor"):
        ub.pp.split(mdata, by="doner")
    with pytest.raises(ValueError, match="sum to 1"):
        ub.pp.split(mdata, fractions=(0.5, 0.1, 0.1))
    mdata.obs["two"] = np.arange(200) % 2
    with pytest.raises(ValueError, match="2 groups cannot fill 3 parts"):
        ub.pp.split(mdata, by="two")
    mdata.obs["holes"] = [None] + ["x"] * 199
    with pytest.raises(ValueError, match="1 cells have no value"):
        ub.pp.split(mdata, by="holes")


# ---- molecules -----------------------------------------------------------------------------------------

ASPIRIN = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "OC(=O)c1ccccc1OC(C)=O",
    "CC(=O)Oc1ccccc1C(=O)[O-].[Na+]",
    "CC(=O)Oc1ccccc1C(=O)O[K]",
]
ACYCLIC = ["CCCCO", "CCCCCN", "CC(C)CO", "NCCN"]
RINGS = [  # of six scaffolds
    *("Cc1ccccc1", "Nc1ccccc1.Cl", "Oc1ccc(F)cc1", "CCc1ccccc1", "Clc1ccccc1"),
    *("c1ccncc1", "Cc1ccncc1", "C1CCCCC1", "OC1CCCCC1", "C1CCNCC1", "c1ccc2ccccc2c1", "Cc1ccc2ccccc2c1", "c1ccsc1"),
]
POOL = [*ASPIRIN, *ACYCLIC, *RINGS]


def profiles(smiles, where="mdata"):
    """MuData of two modalities whose rows have these SMILES."""
    names = [f"cell{i}" for i in range(len(smiles))]
    values = np.random.default_rng(0).normal(size=(len(smiles), 3)).astype(np.float32)
    mods = {name: AnnData(values, obs=pd.DataFrame(index=names)) for name in ("molecule", "phenotype")}
    mdata = MuData(mods)
    (mdata.obs if where == "mdata" else mdata[where].obs)["smiles"] = list(smiles)
    return mdata


@pytest.mark.parametrize("where", ["mdata", "molecule"])
@pytest.mark.parametrize("by", ["compound", "scaffold", "cluster"])
def test_no_molecule_is_on_two_sides(by, where):
    smiles = POOL * 3
    mdata = profiles(smiles, where)
    for seed in range(5):
        ub.pp.split(mdata, by=by, seed=seed, fractions=(0.6, 0.2, 0.2))
        side = mdata.obs["split"].to_numpy()
        assert set(side) == {"train", "val", "test"}
        keys = [Chem.MolToInchiKey(rdMolStandardize.ChargeParent(Chem.MolFromSmiles(one))) for one in smiles]
        assert (pd.Series(side).groupby(keys).nunique() == 1).all()
        if by == "scaffold":
            scaffold = pd.Series([MurckoScaffoldSmiles(one) for one in smiles]).replace("", None)
            assert (pd.Series(side).groupby(scaffold).nunique() == 1).all()
    assert list(mdata.obs) == (["smiles", "split"] if where == "mdata" else ["split"])


def test_a_column_of_that_name_wins():
    mdata = profiles(POOL)
    mdata.obs["scaffold"] = [f"mine{i % 4}" for i in range(len(POOL))]
    ub.pp.split(mdata, by="scaffold")
    assert (mdata.obs.groupby("scaffold")["split"].nunique() == 1).all()
    assert mdata.obs["scaffold"].iloc[0] == "mine0"


def test_smiles_of_several_modalities_are_put_together():
    names = [f"cell{i}" for i in range(len(POOL))]
    parts = {"a": slice(0, 12), "b": slice(8, None)}
    mods = {
        name: AnnData(np.zeros((len(names[part]), 1)), obs=pd.DataFrame({"SMILES": POOL[part]}, index=names[part]))
        for name, part in parts.items()
    }
    mdata = MuData(mods)
    ub.pp.split(mdata, by="compound", smiles="SMILES", fractions=(0.5, 0.25, 0.25))
    side = mdata.obs["split"].reindex(names).to_numpy()
    assert len(set(side[: len(ASPIRIN)])) == 1
    assert set(side) == {"train", "val", "test"}


def test_mistakes_with_molecules_are_named():
    mdata = profiles(POOL)
    with pytest.raises(KeyError, match="no SMILES to make it from: `smiles` is 'smile'. Did you mean 'smiles'"):
        ub.pp.split(mdata, by="scaffold", smiles="smile")
    with pytest.raises(KeyError, match="no obs column 'scafold'"):
        ub.pp.split(mdata, by="scafold")
    with pytest.raises(ValueError, match="`similarity` must be above 0"):
        ub.pp.split(mdata, by="cluster", similarity=0)
    mdata.obs.loc["cell3", "smiles"] = None
    mdata.obs.loc["cell5", "smiles"] = "xyz"
    with pytest.raises(
        ValueError, match=r"2 of 21 SMILES are .*row 3 \('cell3'\): missing; row 5 \('cell5'\): 'xyz', no SMILES"
    ):
        ub.pp.split(mdata, by="scaffold")
    assert "split" not in mdata.obs
    with pytest.raises(ValueError, match="1 groups cannot fill 3 parts"):
        ub.pp.split(profiles(ASPIRIN), by="compound")


def test_labels_of_groups():
    index = pd.Index(range(10, 10 + len(POOL)), name="row")
    groups = {by: molecular_groups(pd.Series(POOL, index=index), by) for by in ("compound", "scaffold", "cluster")}
    for by, labels in groups.items():
        pd.testing.assert_index_equal(labels.index, index)
        assert labels.name == by
        assert labels.iloc[:4].nunique() == 1  # aspirin
    assert set(groups["compound"].iloc[:4]) == {"BSYNRYMUTXBXSQ-UHFFFAOYSA-N"}
    assert groups["compound"].nunique() == 1 + len(ACYCLIC) + len(RINGS)
    n = len(ASPIRIN) + len(ACYCLIC)
    assert groups["scaffold"].iloc[n:].tolist() == [MurckoScaffoldSmiles(one) for one in RINGS]
    assert groups["scaffold"].iloc[4:n].tolist() == groups["compound"].iloc[4:n].tolist()  # each its own
    assert molecular_groups(["CCO"]).index.tolist() == [0]


def test_tautomers_of_one_compound_stay_together():
    # the first two share an InChIKey, but RDKit's scaffold keeps the ketone
    labels = molecular_groups(["Oc1ccccn1", "O=c1cccc[nH]1", "Cc1ccccn1"], "scaffold")
    assert labels[0] == labels[1]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(order=st.permutations(range(len(POOL))), by=st.sampled_from(["compound", "scaffold", "cluster"]))
def test_the_order_of_rows_changes_no_group(order, by):
    smiles = pd.Series(POOL)
    expected = molecular_groups(smiles, by)
    pd.testing.assert_series_equal(molecular_groups(smiles.iloc[order], by), expected.iloc[order])


@pytest.mark.parametrize("similarity", [0.2, 0.5, 1.0])
def test_clusters_are_spheres_around_centres(similarity):
    smiles = [*RINGS, *ACYCLIC, *("C" * n + "O" for n in range(3, 15)), *("C" * n + "c1ccccc1" for n in range(3, 15))]
    labels = molecular_groups(smiles, "cluster", similarity=similarity)
    generator = GetMorganGenerator(radius=2, fpSize=2048)
    bits = lambda names: np.array(
        [generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(one)) for one in names], dtype=bool
    )
    neutral = [one.removesuffix(".Cl") for one in smiles]
    centres = labels.unique()
    to_centres = 1 - cdist(bits(neutral), bits(centres), "jaccard")
    own = to_centres[np.arange(len(smiles)), [list(centres).index(label) for label in labels]]
    assert (own >= similarity - 1e-9).all()
    np.testing.assert_allclose(own, to_centres.max(1))
    between = 1 - cdist(bits(centres), bits(centres), "jaccard")
    assert (between[~np.eye(len(centres), dtype=bool)] < similarity).all()
    assert 1 < len(centres) <= len(smiles)


def test_wrong_molecules_and_groupings_are_named():
    with pytest.raises(ValueError, match="`by` must be one of 'compound', 'scaffold', 'cluster'"):
        molecular_groups(["CCO"], "family")
    with pytest.raises(ValueError, match="1 of 2 SMILES are missing or invalid. row 1: missing. Correct them, or take"):
        molecular_groups(["CCO", None])
    with pytest.raises(ValueError, match="`smiles` is empty"):
        molecular_groups([])
