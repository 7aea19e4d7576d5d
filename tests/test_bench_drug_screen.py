"""The experiment on drug screens."""

import pickle

import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from unbraid.benchmark import _screens, drug_screen

SMILES = [
    "CCO",
    "CC(=O)Oc1ccccc1C(=O)O",
    "c1ccccc1O",
    "CCN",
    "OC1CCCCC1",
    "c1ccncc1",
    "CCCl",
    "CC(C)=O",
    "C1CCNCC1",
    "CS",
]


@pytest.fixture
def gdsc(tmp_path):
    """Cell lines of two tissues, of which one is too small, and drugs that follow one gene each."""
    rng = np.random.default_rng(0)
    n_lines, names = 60, [f"line {i}" for i in range(60)]
    expression = rng.normal(size=(n_lines, 4)).astype(np.float32)
    response = -expression[:, [0, 1, 2]] + 0.1 * rng.normal(size=(n_lines, 3)).astype(np.float32)
    response[:5, 0] = np.nan
    frame = lambda index: pd.DataFrame(index=index)
    lines = mudata.MuData(
        {
            "rna": AnnData(expression, frame(names), frame([f"gene {j}" for j in range(4)])),
            "drug_response": AnnData(response, frame(names), frame(["ethanol", "aspirin", "unknown drug"])),
        }
    )
    lines.obs["tissue"] = ["skin"] * 50 + ["bone"] * 10
    drugs = ["ethanol", "aspirin", "phenol"]
    bits = np.eye(3, dtype=np.uint8)
    screen = mudata.MuData(
        {
            "mol": AnnData(sp.csr_matrix(bits), frame(drugs), frame(["a", "b", "c"])),
            "response": AnnData(response[:, :3].T.copy(), frame(drugs), frame(names)),
        }
    )
    screen.obs["smiles"] = pd.Series(SMILES[:3], index=drugs).reindex(screen.obs_names)
    lines.write(tmp_path / "lines.h5mu")
    screen.write(tmp_path / "drugs.h5mu")
    return tmp_path


def test_a_signature_is_what_goes_with_sensitivity(gdsc):
    mdata = _screens.signatures(gdsc / "lines.h5mu", gdsc / "drugs.h5mu")
    assert list(mdata.obs_names) == ["ethanol in skin", "aspirin in skin"]
    assert set(mdata.obs["cell_line"]) == {"skin"}
    lines = mudata.read_h5mu(gdsc / "lines.h5mu")
    x, y = lines["rna"].X[5:50], -lines["drug_response"].X[5:50, 0]
    expected = [np.sqrt(45 - 3) * np.arctanh(np.corrcoef(x[:, j], y)[0, 1]) for j in range(4)]
    np.testing.assert_allclose(mdata["phenotype"]["ethanol in skin"].X[0], expected, rtol=1e-4)
    assert mdata["phenotype"]["aspirin in skin"].X[0].argmax() == 1


def test_a_missing_response_is_what_drug_and_line_lead_to_expect(gdsc):
    mdata = _screens.responses(gdsc / "drugs.h5mu")
    given = mudata.read_h5mu(gdsc / "drugs.h5mu")["response"].X
    expected = np.nanmean(given[0]) + np.nanmean(given[:, 0]) - np.nanmean(given)
    assert mdata["phenotype"]["ethanol"].X[0, 0] == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(mdata["phenotype"].X).all()
    assert mdata.obs["compound"].nunique() == 3
    assert mdata.obs.loc["aspirin", "scaffold"] == mdata.obs.loc["phenol", "scaffold"] == "c1ccccc1"


def test_what_a_file_lacks_is_named(gdsc):
    with pytest.raises(KeyError, match="No modality 'moll' in the MuData. Did you mean 'mol'"):
        _screens.measured(gdsc / "drugs.h5mu", "moll", "response")
    with pytest.raises(KeyError, match="No column 'smiles' in obs"):
        _screens.measured(gdsc / "lines.h5mu", "rna", "drug_response")


def test_intervals_are_over_compounds():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.8, size=50)
    rows = [
        {"method": name, "seed": seed, "compound": f"c{k}", "reciprocal_rank": base[k] + gain}
        for name, gain in {"LinearSplit": 0.0, "better": 0.1}.items()
        for seed in range(2)
        for k in range(50)
    ]
    table = drug_screen.intervals(pd.DataFrame(rows)).set_index("method")
    assert table.loc["better", "difference to LinearSplit"] == "0.100 [0.100, 0.100]"
    assert table.loc["LinearSplit", "difference to LinearSplit"] == ""
    mean, low, high = (
        float(x) for x in table.loc["LinearSplit", "MRR"].replace("[", "").replace("]", "").replace(",", "").split()
    )
    assert mean == pytest.approx(base.mean(), abs=1e-3)
    # about two standard errors of 50 compounds, although there are 100 rows
    assert (high - low) / 2 == pytest.approx(1.96 * base.std() / np.sqrt(50), rel=0.15)


def test_a_table_of_the_simulation(tmp_path, capsys):
    options = [
        "--seeds",
        "1",
        "--steps",
        "8",
        "--out",
        str(tmp_path / "rows.csv"),
        "--profiles",
        str(tmp_path / "p.csv"),
    ]
    drug_screen.main([*options, "--methods", "LinearSplit", "CLIP, neither", "DisentangledSSL"])
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("method")
    assert rows[["top-1", "MRR", "back: MRR"]].notna().all(axis=None)
    assert rows["chance: MRR"].between(0.1, 0.3).all()  # some twenty compounds on a plate
    assert rows.loc["LinearSplit", "MRR"] > 2 * rows.loc["LinearSplit", "chance: MRR"]
    assert rows["RG molecule"].notna().tolist() == [True, False, True]
    assert rows.loc["DisentangledSSL", "beta"] in drug_screen.BETAS
    assert rows[["ratio: MRR"]].notna()["ratio: MRR"].tolist() == [True, False, False]
    shown = capsys.readouterr().out
    assert "difference to LinearSplit" in shown
    drug_screen.main([*options, "--methods", "LinearSplit"])  # nothing is run again
    assert "LinearSplit" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "rows.csv")) == 3


def rxrx19a(folder):
    """Forty drugs in six doses on two plates, in the form of RxRx19a's files."""
    rng, rows = np.random.default_rng(0), []
    for plate in (1, 2):
        for drug in range(40):
            for dose in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
                well = f"W{len(rows):03}"
                rows.append(
                    {
                        "site_id": f"HRCE-1_{plate}_{well}_1", "well_id": f"HRCE-1_{plate}_{well}", "cell_type": "HRCE",
                        "experiment": "HRCE-1", "plate": plate, "well": well, "site": 1,
                        "disease_condition": "Active SARS-CoV-2", "treatment": f"drug {drug}", "treatment_conc": dose,
                        "SMILES": f"{'C' * (drug + 1)}O",
                    }
                )  # fmt: skip
    table = pd.DataFrame(rows)
    table.to_csv(folder / "metadata.csv", index=False)
    features = pd.DataFrame(rng.normal(size=(len(table), 8)), columns=[f"feature_{j}" for j in range(8)])
    features["feature_0"] += table["SMILES"].str.len() / 10
    pd.concat([table[["site_id"]], features], axis=1).to_csv(folder / "embeddings.csv", index=False)


def lincs(folder):
    """Forty drugs in the nine core lines, twice, in the form of InfoCORE's files."""
    rng, lines = np.random.default_rng(0), ("A375", "A549", "HA1E", "HCC515", "HEPG2", "HT29", "MCF7", "PC3", "VCAP")
    entries = {
        f"P{k}_{line}:{drug}": [
            f"P{k}_{line}", "A01", f"BRD-K{drug:08}", f"drug {drug}", "trt_cp", 10.0, "um", 6, "h", line,
            (rng.normal(size=6) + drug / 20).astype(np.float32),
        ]
        for drug in range(40) for line in lines for k in range(2)
    }  # fmt: skip
    smiles = {f"BRD-K{drug:08}": f"{'C' * (drug + 1)}O" for drug in range(40)}
    files = {
        "inst_info_drug.pkl": entries,
        "ctl_dict1_mean.pkl": {entry[0]: np.zeros(6, np.float32) for entry in entries.values()},
        "id_smiles": smiles,
        "mol2vec_mol_repr_dict.pkl": {one: rng.normal(size=4).astype(np.float32) for one in smiles.values()},
    }
    for name, value in files.items():
        (folder / name).write_bytes(pickle.dumps(value))
    np.save(folder / "sel_keys_dosesubset.npy", np.array(list(entries)))


@pytest.mark.parametrize(("option", "make"), [("--rxrx19a", rxrx19a), ("--lincs", lincs)])
def test_the_screens_of_the_paper_run_when_their_files_are_there(tmp_path, option, make):
    make(tmp_path)
    out = tmp_path / "rows.csv"
    methods = ["--methods", "LinearSplit", "CLIP", "--seeds", "1", "--steps", "4"]
    drug_screen.main([option, str(tmp_path), *methods, "--out", str(out)])
    rows = pd.read_csv(out)
    assert rows["method"].tolist() == ["LinearSplit", "CLIP"]
    assert (rows["candidates"] == 8).all()  # a fifth of the drugs
    assert (rows["queries"] == 8 * {"--rxrx19a": 6, "--lincs": 18}[option]).all()
    assert rows["MRR"].between(0, 1).all()
