"""Cell Painting profiles, on small files of the formats of JUMP and LINCS Cell Painting."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from unbraid.data import datasets
from unbraid.data._screens import draw_replicates, hours, micromolar, without_missing

FEATURES = ["Cells_AreaShape_Area", "Cytoplasm_Texture_X_3_00", "Nuclei_Intensity_Mean_DNA"]
ASPIRIN, CAFFEINE, DMSO = "CC(=O)Oc1ccccc1C(=O)O", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", "CS(C)=O"
JCP = {"JCP2022_000001": ASPIRIN, "JCP2022_000002": CAFFEINE, "JCP2022_033924": DMSO}
PLATES = [1053601763, 1053599503]


def atoms(smiles: pd.Series) -> AnnData:
    made = {name: Chem.MolFromSmiles(one) for name, one in smiles.items()}
    n = {name: molecule.GetNumAtoms() for name, molecule in made.items() if molecule is not None}
    return AnnData(np.array(list(n.values()), np.float32)[:, None], obs=pd.DataFrame(index=list(n)))


N_ATOMS = {smiles: Chem.MolFromSmiles(smiles).GetNumAtoms() for smiles in JCP.values()}


def plate(number: int, n_wells: int = 6) -> pd.DataFrame:
    table = pd.DataFrame({"Metadata_Source": "source_4", "Metadata_Plate": number}, index=range(n_wells))
    table["Metadata_Well"] = [f"A{i:02}" for i in range(1, n_wells + 1)]
    table[FEATURES] = np.random.default_rng(number).normal(size=(n_wells, 3)).astype(np.float32)
    return table


@pytest.fixture
def jump(tmp_path):
    """Two plates of JUMP and the tables of its metadata; the last well of each plate is unknown."""
    for number in PLATES:
        plate(number).to_parquet(tmp_path / f"{number}.parquet")
    ids = [*JCP, "JCP2022_033924", "JCP2022_000001", "JCP2022_UNKNOWN"]
    wells = [("source_4", number, f"A{i:02}", ids[i - 1]) for number in PLATES for i in range(1, 7)]
    wells = pd.DataFrame(wells, columns=["Metadata_Source", "Metadata_Plate", "Metadata_Well", "Metadata_JCP2022"])
    wells.sample(frac=1, random_state=0).to_csv(tmp_path / "well.csv.gz", index=False)
    plates = pd.DataFrame({"Metadata_Source": "source_4", "Metadata_Batch": ["b1", "b2"], "Metadata_Plate": PLATES})
    plates.assign(Metadata_PlateType="COMPOUND").to_csv(tmp_path / "plate.csv.gz", index=False)
    compounds = pd.DataFrame(JCP.items(), columns=["Metadata_JCP2022", "Metadata_SMILES"])
    compounds["Metadata_InChI"] = [Chem.MolToInchi(Chem.MolFromSmiles(one)) for one in JCP.values()]
    compounds["Metadata_InChIKey"] = "x"
    compounds.to_csv(tmp_path / "compound.csv.gz", index=False)
    kinds = pd.DataFrame(
        {"Metadata_JCP2022": ["JCP2022_033924"], "Metadata_pert_type": "negcon", "Metadata_Name": "DMSO"}
    )
    kinds.to_csv(tmp_path / "perturbation_control.csv", index=False)
    return tmp_path


TABLES = ["well.csv.gz", "plate.csv.gz", "compound.csv.gz"]


def read(folder, names, tables=(), **options):
    files = [folder / str(name) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return datasets.cell_profiles(
            files, annotations=[folder / t for t in tables], **{"featurizer": atoms, **options}
        )


def test_jump(jump):
    files = [jump / f"{number}.parquet" for number in PLATES]
    with pytest.warns(UserWarning, match=r"2 of 12 rows .* 2 have no SMILES, and of 0"):
        mdata = datasets.cell_profiles(files, annotations=[jump / name for name in TABLES], featurizer=atoms)
    source = pd.concat([plate(number) for number in PLATES], ignore_index=True)
    np.testing.assert_array_equal(mdata["phenotype"].X, source[FEATURES])
    assert mdata["phenotype"].X.dtype == np.float32
    assert mdata["phenotype"].var_names.tolist() == FEATURES
    obs = mdata.obs
    assert list(obs.columns) == ["compound", "smiles", "source", "batch", "plate", "well"]
    assert obs.index[0] == "source_4_1053601763_A01"
    assert obs["plate"].tolist() == source["Metadata_Plate"].astype(str).tolist()
    assert obs["compound"].tolist() == [*JCP, "JCP2022_033924", "JCP2022_000001", "JCP2022_UNKNOWN"] * 2
    assert obs["batch"].tolist() == ["b1"] * 6 + ["b2"] * 6
    molecule = mdata["molecule"]
    assert len(molecule) == 10
    found = obs.loc[molecule.obs_names, "smiles"].astype(str)
    np.testing.assert_array_equal(molecule.X[:, 0], [N_ATOMS[one] for one in found])
    assert found.tolist() == [JCP[one] for one in obs.loc[molecule.obs_names, "compound"]]


def test_controls_are_left_out_with_a_condition(jump):
    names = [f"{number}.parquet" for number in PLATES]
    mdata = read(jump, names, [*TABLES, "perturbation_control.csv"], where="kind != 'negcon' and batch == 'b2'")
    assert mdata.obs["compound"].tolist() == ["JCP2022_000001", "JCP2022_000002", "JCP2022_000001", "JCP2022_UNKNOWN"]
    np.testing.assert_array_equal(mdata["phenotype"].X, plate(PLATES[1]).loc[[0, 1, 4, 5], FEATURES])
    with pytest.raises(ValueError, match="No profile is left"):
        read(jump, names, TABLES, where="batch == 'b3'")
    with pytest.raises(ValueError, match="`where` is no condition on the columns compound, smiles"):
        read(jump, names, TABLES, where="kind != 'negcon'")


def test_structures_from_inchi(jump):
    table = pd.read_csv(jump / "compound.csv.gz").drop(columns="Metadata_SMILES")
    table.loc[1, "Metadata_InChI"] = "InChI=1S/none"
    table.to_csv(jump / "compound.csv.gz", index=False)
    mdata = read(jump, [f"{PLATES[0]}.parquet"], TABLES)
    smiles = mdata.obs["smiles"].astype(object)
    assert [None if pd.isna(one) else one for one in smiles] == [
        Chem.CanonSmiles(ASPIRIN),
        None,
        Chem.CanonSmiles(DMSO),
        Chem.CanonSmiles(DMSO),
        Chem.CanonSmiles(ASPIRIN),
        None,
    ]


def test_features_that_all_files_have(jump):
    other = plate(7).drop(columns=FEATURES[1]).assign(Cells_New=1.0, Image_FileName_DNA="a.tif", Image_Count=3)
    other.to_csv(jump / "7.csv.gz", index=False)
    wells = pd.read_csv(jump / "well.csv.gz")
    pd.concat([wells, wells.head(6).assign(Metadata_Plate=7, Metadata_Well=[f"A{i:02}" for i in range(1, 7)])]).to_csv(
        jump / "well.csv.gz", index=False
    )
    mdata = read(jump, [f"{PLATES[0]}.parquet", "7.csv.gz"], ["well.csv.gz", "compound.csv.gz"])
    assert mdata["phenotype"].var_names.tolist() == [FEATURES[0], FEATURES[2]]
    np.testing.assert_allclose(mdata["phenotype"].X[6:], plate(7)[[FEATURES[0], FEATURES[2]]], rtol=1e-6)
    images = read(jump, ["7.csv.gz"], ["well.csv.gz", "compound.csv.gz"], features=["Image_", "Cells_"])
    assert images["phenotype"].var_names.tolist() == [FEATURES[0], "Cells_New", "Image_Count"]
    with pytest.raises(ValueError, match=r"1053601763\.parquet has no feature that begins with Image_ as"):
        read(jump, ["7.csv.gz", f"{PLATES[0]}.parquet"], TABLES, features="Image_")


def lincs_profiles() -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "Metadata_Plate_Map_Name": "C-7161-01-LM6-006",
            "Metadata_cell_id": "A549",
            "Metadata_broad_sample": [
                "DMSO",
                "BRD-K00000001-001-01-9",
                "BRD-K00000001-300-02-1",
                "BRD-K00000002-001-01-5",
            ],
            "Metadata_pert_well": ["A01", "A02", "A03", "A04"],
            "Metadata_mmoles_per_liter": [np.nan, 10.0, 3.33, 20.0],
            "Metadata_time_point": "48H",
            "Metadata_moa": "x",
        }
    )
    table[FEATURES] = np.arange(12.0).reshape(4, 3)
    return table


@pytest.fixture
def lincs(tmp_path):
    lincs_profiles().to_csv(tmp_path / "consensus.csv.gz", index=False)
    compounds = pd.DataFrame(
        {
            "broad_id": ["BRD-K00000001-001-01-9", "BRD-K00000002-003-28-9", "BRD-K00000002-003-28-9"],
            "pert_iname": ["aspirin", "caffeine", "caffeine"],
            "smiles": [f"{ASPIRIN} |c:1|", CAFFEINE, CAFFEINE],
            "deprecated_broad_id": ["", "a", "b"],
        }
    )
    compounds.to_csv(tmp_path / "repurposing_info.tsv", sep="\t", index=False)
    return tmp_path


def test_lincs_cell_painting(lincs):
    mdata = read(lincs, ["consensus.csv.gz"], ["repurposing_info.tsv"])
    obs = mdata.obs
    assert obs["compound"].tolist() == lincs_profiles()["Metadata_broad_sample"].tolist()
    # other samples of a compound have its structure
    assert obs["smiles"].astype(object).fillna("").tolist() == ["", ASPIRIN, ASPIRIN, CAFFEINE]
    assert obs["name"].astype(object).fillna("").tolist() == ["", "aspirin", "aspirin", "caffeine"]
    np.testing.assert_array_equal(obs["dose"], [np.nan, 10, 3.33, 20])
    assert obs["time"].tolist() == [48] * 4
    assert obs["cell_line"].tolist() == ["A549"] * 4
    assert mdata["molecule"].obs_names.tolist() == obs.index[1:].tolist()


def test_columns_under_other_names(lincs):
    table = lincs_profiles().rename(
        columns={"Metadata_broad_sample": "Metadata_Compound", "Metadata_mmoles_per_liter": "uM"}
    )
    table.assign(Metadata_S=["", ASPIRIN, ASPIRIN, CAFFEINE], Metadata_W=["A", "B", "A", "B"]).to_csv(
        lincs / "own.csv", index=False
    )
    names = {"compound": "Metadata_Compound", "smiles": ["none", "Metadata_S"], "dose": "uM", "well": "Metadata_W"}
    mdata = read(lincs, ["own.csv"], columns=names)
    assert mdata.obs["dose"].tolist()[1:] == [10, 3.33, 20]
    assert mdata.obs_names.tolist() == [f"profile_{i}" for i in range(4)]  # wells alone are not unique
    with pytest.raises(ValueError, match="`columns` names 'compounds', which no column tells. Did you mean 'compound'"):
        read(lincs, ["own.csv"], columns={"compounds": "x"})
    with pytest.raises(ValueError, match="No file has the column 'x' that `columns` names for 'batch'"):
        read(lincs, ["own.csv"], columns={**names, "batch": "x"})
    with pytest.raises(ValueError, match="no column tells the compounds; give tables that tell: `well.csv.gz`"):
        read(lincs, ["own.csv"])
    with pytest.raises(ValueError, match="no column tells the structure of compounds"):
        read(lincs, ["own.csv"], columns={"compound": "Metadata_Compound"})


def test_features_with_missing_values_and_empty_profiles_are_left_out(lincs):
    table = lincs_profiles()
    table.loc[1, FEATURES[0]], table.loc[2, FEATURES] = np.nan, np.nan
    table.to_csv(lincs / "consensus.csv.gz", index=False)
    with pytest.warns(UserWarning, match="1 of 3 features have missing or infinite values, and 1 of 4 profiles"):
        mdata = datasets.cell_profiles(
            lincs / "consensus.csv.gz", annotations=lincs / "repurposing_info.tsv", featurizer=atoms
        )
    np.testing.assert_array_equal(mdata["phenotype"].X, [[1, 2], [4, 5], [10, 11]])
    assert mdata.obs["compound"].tolist() == lincs_profiles()["Metadata_broad_sample"].drop(2).tolist()
    table[FEATURES] = np.inf
    table.to_csv(lincs / "consensus.csv.gz", index=False)
    with pytest.raises(ValueError, match="None of the 3 features is finite in all of the 4 profiles"):
        read(lincs, ["consensus.csv.gz"], ["repurposing_info.tsv"])


def test_fingerprints_are_the_default(jump):
    mdata = read(jump, [f"{PLATES[0]}.parquet"], TABLES, featurizer=None)
    assert mdata["molecule"].obs["canonical_smiles"].nunique() == 3


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "well.csv.gz",
            lambda t: t.assign(Metadata_Plate="x"),
            r"well\.csv\.gz has none of the rows of the profiles: they",
        ),
        ("well.csv.gz", lambda t: pd.concat([t, t.assign(Metadata_JCP2022="y")]), r"has two compounds for source_4 10"),
        (
            "well.csv.gz",
            lambda t: t[["Metadata_JCP2022"]],
            r"tells compound, and the profiles source, plate, well: nothing",
        ),
        ("compound.csv.gz", lambda t: t[["Metadata_InChIKey"]], "tells nothing, and the profiles"),
    ],
)
def test_tables_that_cannot_be_joined(jump, file, change, message):
    change(pd.read_csv(jump / file)).to_csv(jump / file, index=False)
    with pytest.raises(ValueError, match=message):
        read(jump, [f"{PLATES[0]}.parquet"], TABLES)


def test_files_that_are_missing_or_not_as_said(jump):
    with pytest.raises(ValueError, match="`profiles` must name one file or more"):
        datasets.cell_profiles([])
    with pytest.raises(FileNotFoundError, match=r"There is no .*none\.parquet\. Cell Painting profiles are at"):
        read(jump, ["none.parquet"])
    (jump / "text.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"text\.parquet is no complete table"):
        read(jump, ["text.parquet"])
    plate(1).assign(Cells_X="high").to_csv(jump / "1.csv", index=False)
    with pytest.raises(ValueError, match="holds values in 'Cells_X' that are no numbers"):
        read(jump, ["1.csv"])


# ---- what the readers of screens share -------------------------------------------------------


def test_doses_and_times():
    words = pd.Series(["10.0 um", "0.37 \u00b5M", "5 \u03bcM", "500 nM", "1 mM", "0.1 %", "-666", "-666 um", "x"])
    np.testing.assert_allclose(micromolar(words), [10, 0.37, 5, 0.5, 1_000, np.nan, np.nan, np.nan, np.nan])
    values, units = pd.Series(["10", "-666", "3", "2"]), pd.Series([" uM", "uM", "ug/ml", None])
    np.testing.assert_allclose(micromolar(values, units), [10, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(hours(pd.Series(["24 h", "48H", "6", 3, "-666", None])), [24, 48, 6, 3, np.nan, np.nan])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=40), st.integers(1, 5), st.integers(0, 9))
def test_drawn_replicates_are_as_many_as_there_can_be(groups, n, seed):
    table = pd.DataFrame({"group": groups, "row": range(len(groups))})
    drawn = draw_replicates(table, ["group"], n, seed)
    assert drawn["row"].is_monotonic_increasing
    counts = table["group"].value_counts().clip(upper=n)
    assert drawn["group"].value_counts().to_dict() == counts.to_dict()
    pd.testing.assert_frame_equal(drawn, table.loc[drawn.index])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([1.0, 2.0, np.nan, np.inf]), min_size=3, max_size=3), min_size=1, max_size=8))
def test_what_is_kept_of_profiles_with_missing_values_is_finite(values):
    x, names = np.array(values), pd.Index(["a", "b", "c"])
    kept_rows = [any(np.isfinite(v) for v in row) for row in values]
    kept = [all(np.isfinite(row[j]) for row, k in zip(values, kept_rows, strict=True) if k) for j in range(3)]
    if not any(kept) or not any(kept_rows):
        with pytest.raises(ValueError, match="None of the 3 features is finite"):
            without_missing(x, names)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found, left, rows = without_missing(x, names)
    assert left.tolist() == [n for n, k in zip("abc", kept, strict=True) if k]
    assert rows.tolist() == kept_rows
    np.testing.assert_array_equal(found, x[kept_rows][:, kept])
