"""ToxCast, on a small table of the published format."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from rdkit import Chem

from unbraid.data import datasets

SMILES = ["CCO", "c1ccccc1", "CC(=O)O", "C1CC(", "CCN", "CCCl", "CCBr", "CCI"]
NAN = np.nan
TABLE = pd.DataFrame(
    {
        "smiles": SMILES,
        "ATG_AP_1_CIS_up": [0, 1, 0, 1, NAN, 0, 0, NAN],
        "ATG_AhR_CIS_dn": [0, 0, 0, 0, 0, 0, 0, NAN],  # the same for all
        "ATG_ERE_CIS_up": [1, 1, 0, 0, 1, NAN, 0, NAN],
        "BSK_3C_IL8_down": [0, 1, 1, 0, 1, 0, NAN, NAN],
        "BSK_4H_SRB_down": [1, 0, 0, 0, 1, 1, NAN, NAN],
        "Tanguay_ZF_120hpf_MORT_up": [NAN] * 6 + [1, 0],
        "TOX21_ARE_BLA_Agonist_ch1": [0] * 8,
    }
)


def lengths(smiles: pd.Series) -> AnnData:
    made = {name: Chem.MolFromSmiles(one) for name, one in smiles.items()}
    atoms = {name: molecule.GetNumAtoms() for name, molecule in made.items() if molecule is not None}
    return AnnData(np.array(list(atoms.values()), np.float32)[:, None], obs=pd.DataFrame(index=list(atoms)))


@pytest.fixture
def folder(tmp_path):
    TABLE.to_csv(tmp_path / "toxcast_data.csv.gz", index=False)
    return tmp_path


def test_families_are_modalities(folder):
    with pytest.warns(UserWarning, match=r"1 of 7 rows .* The first of them is 'C1CC\('"):
        mdata = datasets.toxcast(folder, min_tested=0.8, featurizer=lengths)
    assert list(mdata.mod) == ["molecule", "atg", "bsk"]
    assert mdata.obs_names.tolist() == [f"compound_{i}" for i in range(7)]
    assert mdata.obs["smiles"].tolist() == SMILES[:7]
    assert mdata.obs["compound"].tolist() == mdata.obs_names.tolist()
    atg, bsk, molecule = mdata["atg"], mdata["bsk"], mdata["molecule"]
    assert atg.obs_names.tolist() == ["compound_0", "compound_1", "compound_2", "compound_3", "compound_6"]
    assert atg.var_names.tolist() == ["ATG_AP_1_CIS_up", "ATG_ERE_CIS_up"]
    np.testing.assert_array_equal(atg.X, [[0, 1], [1, 1], [0, 0], [1, 0], [0, 0]])
    assert atg.X.dtype == np.float32
    np.testing.assert_array_equal(bsk.X, TABLE[["BSK_3C_IL8_down", "BSK_4H_SRB_down"]].iloc[:6])
    assert molecule.obs_names.tolist() == [f"compound_{i}" for i in (0, 1, 2, 4, 5, 6)]
    np.testing.assert_array_equal(molecule.X[:, 0], [3, 6, 4, 3, 3, 3])


@pytest.mark.parametrize("name", ["tanguay", "Tanguay"])
def test_one_family_in_a_file_that_is_not_packed(folder, name):
    packed = folder / "toxcast_data.csv.gz"
    (folder / "toxcast_data.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    for path in (folder, folder / "toxcast_data.csv"):
        mdata = datasets.toxcast(path, assays=name, featurizer=lengths)
        assert list(mdata.mod) == ["molecule", "tanguay"]
        assert mdata.obs["smiles"].tolist() == SMILES[6:]


def test_fingerprints_are_the_default(folder):
    with pytest.warns(UserWarning, match="no structure") as caught:
        molecule = datasets.toxcast(folder, min_tested=0)["molecule"]
    assert [one.filename for one in caught if one.category is UserWarning] == [__file__]
    assert molecule.obs["canonical_smiles"].tolist() == [Chem.CanonSmiles(SMILES[i]) for i in (0, 1, 2, 4, 5, 6)]
    assert sp.issparse(molecule.X)


def test_assays_that_few_were_tested_in_cost_no_chemicals(folder):
    table = TABLE.assign(BSK_LPS_TNFa_down=[0, 1, NAN, NAN, NAN, NAN, NAN, NAN])
    table.to_csv(folder / "toxcast_data.csv.gz", index=False)
    shapes = {
        share: datasets.toxcast(folder, assays="BSK", min_tested=share, featurizer=lengths)["bsk"].shape
        for share in (0.2, 0.5, 1)
    }
    assert shapes == {0.2: (2, 3), 0.5: (6, 2), 1: (6, 2)}


@pytest.mark.parametrize(
    ("assays", "message"),
    [
        (["ATGG"], "has no assay of 'atgg'. Did you mean 'atg'"),
        (["TOX21"], "every assay like 'TOX21_ARE_BLA_Agonist_ch1' has one result"),
        ([], "`assays` must name one family or more"),
    ],
)
def test_families_that_cannot_be(folder, assays, message):
    with pytest.raises(ValueError, match=message):
        datasets.toxcast(folder, assays=assays, featurizer=lengths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ATG_ERE_CIS_up": 2}, "holds the result 2; results must be 0, 1 or nothing"),
        ({"ATG_ERE_CIS_up": "active"}, "holds results that are no numbers"),
        (
            {"ATG_ERE_CIS_up": [1, 0, 1, 0, NAN, NAN, NAN, NAN], "ATG_AP_1_CIS_up": [NAN] * 4 + [0, 1, 0, 1]},
            "no chemical has a result in all 3 assays like 'ATG_AP_1_CIS_up': raise `min_tested`",
        ),
        ({"smiles": ""}, "No row has a SMILES"),
    ],
)
def test_tables_that_are_not_as_said(folder, change, message):
    TABLE.assign(**change).to_csv(folder / "toxcast_data.csv.gz", index=False)
    with pytest.raises(ValueError, match=message):
        datasets.toxcast(folder, min_tested=0.5, featurizer=lengths)


def test_shares_that_cannot_be(folder):
    with pytest.raises(ValueError, match="min_tested must be from 0 to 1, not 90"):
        datasets.toxcast(folder, min_tested=90)
    table = TABLE.assign(BSK_3C_IL8_down=[0, 1, 0, 1, NAN, NAN, NAN, NAN], BSK_4H_SRB_down=[NAN] * 4 + [0, 1, 0, 1])
    table.to_csv(folder / "toxcast_data.csv.gz", index=False)
    with pytest.raises(
        ValueError, match="no assay like 'BSK_3C_IL8_down' has results for 90% of .* lower `min_tested`"
    ):
        datasets.toxcast(folder, assays="BSK")


def test_files_that_are_missing_or_broken(folder, tmp_path):
    file = folder / "toxcast_data.csv.gz"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"toxcast_data\.csv\.gz is no complete table.*Download"):
        datasets.toxcast(folder)
    TABLE.rename(columns={"smiles": "SMILES"}).to_csv(file, index=False)
    with pytest.raises(ValueError, match="has no column 'smiles'"):
        datasets.toxcast(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no .*toxcast_data\.csv\.gz\. Download .*deepchemdata"):
        datasets.toxcast(folder)
