"""RxRx19a, on tiny files of the published format."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from rdkit import Chem

from unbraid.data import _rxrx19a, datasets

DRUGS = {
    "Aspirin": "CC(=O)OC1=C(C=CC=C1)C(O)=O |c:5,7,9|",
    "Caffeine": "CN1C=NC2=C1C(=O)N(C)C(=O)N2C |c:2,4|",
    "Broken": "C1CC(",
}
N_FEATURES, N_SITES = 6, 4


def atoms(smiles: pd.Series) -> AnnData:
    """Numbers of carbon, nitrogen and oxygen."""
    made = {name: Chem.MolFromSmiles(one) for name, one in smiles.items()}
    made = {name: molecule for name, molecule in made.items() if molecule is not None}
    counts = [[sum(a.GetSymbol() == e for a in molecule.GetAtoms()) for e in "CNO"] for molecule in made.values()]
    return AnnData(np.array(counts, dtype=np.float32), obs=pd.DataFrame(index=list(made)))


def metadata() -> pd.DataFrame:
    """Two experiments of two plates: three drugs at two doses and two wells each, and controls."""
    rows = []
    for experiment, cell, condition in (
        ("HRCE-1", "HRCE", "Active SARS-CoV-2"),
        ("HRCE-2", "HRCE", "UV Inactivated SARS-CoV-2"),
        ("VERO-1", "VERO", "Active SARS-CoV-2"),
    ):
        for plate in (1, 2):
            wells = [(drug, dose) for drug in DRUGS for dose in (0.1, 3.0)]
            wells += [("", ""), ("", "")]  # no drug
            for w, (drug, dose) in enumerate(wells):
                well, well_id = f"A{w:02}", f"{experiment}_{plate}_A{w:02}"
                for site in range(1, N_SITES + 1):
                    row = [f"{well_id}_{site}", well_id, cell, experiment, plate, well, site]
                    rows.append([*row, "Mock" if w == 7 else condition, drug, dose, DRUGS.get(drug, "")])
    names = "site_id,well_id,cell_type,experiment,plate,well,site,disease_condition,treatment,treatment_conc,SMILES"
    return pd.DataFrame(rows, columns=names.split(","))


def embeddings() -> pd.DataFrame:
    table = metadata()
    values = np.random.default_rng(0).normal(size=(len(table), N_FEATURES)).astype(np.float32)
    found = pd.DataFrame(values, columns=[f"feature_{i}" for i in range(N_FEATURES)])
    found.insert(0, "site_id", table["site_id"])
    return found.sample(frac=1, random_state=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    metadata().to_csv(tmp_path / "metadata.csv", index=False)
    embeddings().to_csv(tmp_path / "embeddings.csv", index=False)
    monkeypatch.setattr(_rxrx19a, "_LINES_AT_A_TIME", 7)  # sites of a well lie in several parts
    return tmp_path


def read(folder, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return datasets.rxrx19a(folder, **{"featurizer": atoms, **options})


def expected(by, rows) -> pd.DataFrame:
    table = metadata().merge(embeddings(), on="site_id").query(rows)
    return table.groupby(by, sort=False)[[f"feature_{i}" for i in range(N_FEATURES)]].mean()


def test_wells_under_active_virus(folder):
    options = {"cell_type": "HRCE", "disease_condition": "Active SARS-CoV-2"}
    with pytest.warns(UserWarning, match=r"4 of 12 rows .* 0 have no SMILES, and of 4 it cannot be read"):
        mdata = datasets.rxrx19a(folder, featurizer=atoms, **options)
    wells = expected("well_id", "experiment == 'HRCE-1' and treatment != ''")
    assert mdata["phenotype"].obs_names.tolist() == wells.index.tolist()
    assert mdata["phenotype"].var_names.tolist() == wells.columns.tolist()
    np.testing.assert_allclose(mdata["phenotype"].X, wells, atol=1e-6)
    assert mdata["phenotype"].X.dtype == np.float32
    obs = mdata.obs
    about = metadata().drop_duplicates("well_id").set_index("well_id").loc[obs.index]
    assert obs["compound"].tolist() == about["treatment"].tolist()
    assert obs["dose"].tolist() == about["treatment_conc"].tolist()
    assert obs["plate"].tolist() == (about["experiment"] + "_" + about["plate"].astype(str)).tolist()
    assert set(obs["batch"]) == {"HRCE-1"}
    assert set(obs["smiles"]) == {one.split(" ")[0] for one in DRUGS.values()}
    assert list(obs.columns) == "compound smiles cell_line disease_condition dose batch plate well".split()
    molecule = mdata["molecule"]
    drug = obs.loc[molecule.obs_names, "compound"].astype(str)
    assert len(molecule) == 8
    np.testing.assert_array_equal(molecule.X, [{"Aspirin": [9, 0, 4], "Caffeine": [8, 4, 2]}[one] for one in drug])


def test_sites(folder):
    mdata = read(folder, level="site", cell_type="VERO", controls=True)
    about = metadata().set_index("site_id").query("cell_type == 'VERO'")
    assert mdata.n_obs == len(about)
    values = embeddings().set_index("site_id").loc[mdata["phenotype"].obs_names]
    np.testing.assert_allclose(mdata["phenotype"].X, values, atol=1e-6)
    assert mdata.obs["site"].astype(int).tolist() == about.loc[mdata.obs_names, "site"].tolist()


def test_doses_are_means_over_wells_and_plates(folder):
    mdata = read(folder, level="dose")
    keys = ["cell_type", "disease_condition", "treatment", "treatment_conc"]
    means = expected(keys, "treatment != ''")
    assert mdata.n_obs == len(means) == 18
    found = mdata.obs[["cell_line", "disease_condition", "compound", "dose"]].astype(object)
    want = means.loc[[tuple(row) for row in found.loc[mdata["phenotype"].obs_names].to_numpy()]]
    np.testing.assert_allclose(mdata["phenotype"].X, want, atol=1e-6)
    assert "plate" not in mdata.obs


def test_controls_have_no_molecule_and_are_no_reason_to_warn(folder):
    table = metadata()
    table[table["treatment"] != "Broken"].to_csv(folder / "metadata.csv", index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mdata = datasets.rxrx19a(folder, controls=True, featurizer=atoms)
        without = datasets.rxrx19a(folder, featurizer=atoms)
    is_control = mdata.obs["compound"].isna()
    assert is_control.sum() == 12
    assert set(mdata["molecule"].obs_names) == set(mdata.obs_names[~is_control]) == set(without.obs_names)
    assert set(mdata.obs.loc[is_control, "disease_condition"]) == set(metadata()["disease_condition"])


@pytest.mark.parametrize("suffix", [".csv.gz", ".parquet"])
def test_own_features_by_well_without_those_that_miss_values(folder, suffix):
    wells = metadata().drop_duplicates("well_id")[["well_id", "plate"]].assign(Metadata_x=1, Image_FileName="a.png")
    values = np.random.default_rng(1).normal(size=(len(wells), 3)).astype(np.float32)
    values[5, 1] = np.nan
    wells[["Cells_A", "Cells_B", "Nuclei_C"]] = values
    path = folder / f"cellprofiler{suffix}"
    wells.to_parquet(path) if suffix == ".parquet" else wells.to_csv(path, index=False)
    with pytest.warns(UserWarning, match="1 of 3 features have missing or infinite values, and 0 of"):
        mdata = datasets.rxrx19a(folder, features=path.name, controls=True, featurizer=atoms)
    assert mdata["phenotype"].var_names.tolist() == ["Cells_A", "Nuclei_C"]
    found = pd.DataFrame(values[:, [0, 2]], wells["well_id"]).loc[mdata["phenotype"].obs_names]
    np.testing.assert_allclose(mdata["phenotype"].X, found, rtol=1e-6)
    with pytest.raises(ValueError, match="one row per well: `level` must be 'well' or 'dose'"):
        read(folder, features=path, level="site")


def test_wells_without_features_are_left_out(folder):
    table = embeddings()
    table[~table["site_id"].str.startswith("HRCE-1_1_A00")].to_csv(folder / "embeddings.csv", index=False)
    mdata = read(folder)
    assert "HRCE-1_1_A00" not in mdata.obs_names
    assert mdata.n_obs == 35


def test_fingerprints_are_the_default(folder):
    assert read(folder, featurizer=None)["molecule"].n_obs == 24


def test_a_model_takes_them(folder):
    import unbraid as ub

    mdata = read(folder, controls=True)
    ub.model.LinearSplit.setup_mudata(mdata)
    model = ub.model.LinearSplit(mdata, n_shared=2, n_specific=2)
    model.train()
    assert model.get_latent_representation().shape == (48, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell_type": "hrce"}, "has no cell_type 'hrce'. .*There is: 'HRCE', 'VERO'"),
        ({"disease_condition": "Active"}, "has no disease_condition 'Active'"),
        ({"cell_type": "VERO", "disease_condition": "UV Inactivated SARS-CoV-2"}, "has no disease_condition"),
        ({"level": "plate"}, "level must be one of 'site', 'well', 'dose'"),
    ],
)
def test_options_that_cannot_be(folder, options, message):
    with pytest.raises(ValueError, match=message):
        read(folder, **options)


def test_what_is_missing_is_named_with_its_source(folder):
    (folder / "embeddings.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"There is no .*embeddings\.csv\. Download .*RxRx19a-DL-embeddings\.zip"
    ):
        read(folder)
    (folder / "metadata.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no .*metadata\.csv\. Download"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "metadata.csv",
            lambda t: t.rename(columns={"SMILES": "smiles"}),
            "has no column 'SMILES'. There is: 'site_id'",
        ),
        ("metadata.csv", lambda t: pd.concat([t, t.head(1)]), "has the site 'HRCE-1_1_A00_1' twice"),
        ("embeddings.csv", lambda t: t.rename(columns={"site_id": "site"}), "has neither 'site_id' nor 'well_id'"),
        ("embeddings.csv", lambda t: t[["site_id"]], "has no column of numbers besides 'site_id'"),
        ("embeddings.csv", lambda t: pd.concat([t, t.tail(1)]), "more than once"),
        (
            "embeddings.csv",
            lambda t: t.assign(site_id="x" + t["site_id"]),
            "has none of the 144 wanted rows of metadata",
        ),
    ],
)
def test_tables_that_are_not_as_said(folder, file, change, message):
    path = folder / file
    change(pd.read_csv(path, keep_default_na=False)).to_csv(path, index=False)
    with pytest.raises(ValueError, match=message):
        read(folder)
