"""LINCS L1000, on tiny files of the published formats."""

from __future__ import annotations

import gzip
import shutil
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

from unbraid.data import _lincs, datasets

CORE = ["A375", "A549", "HA1E", "HCC515", "HEPG2", "HT29", "MCF7", "PC3", "VCAP"]
SMILES = {
    "BRD-K00000001": "CC(=O)Oc1ccccc1C(O)=O",
    "BRD-K00000002": "CN1C=NC2=C1C(=O)N(C)C(=O)N2C",
    "BRD-K00000003": "restricted",
    "BRD-K00000004": "C1CC(",
}
GENES = [str(780 + 7 * i) for i in range(12)]  # the first 8 are landmarks
N_REPLICATES = 5


def morgan(smiles: pd.Series) -> AnnData:
    made = {name: Chem.MolFromSmiles(one) for name, one in smiles.items()}
    made = {name: molecule for name, molecule in made.items() if molecule is not None}
    generator = GetMorganGenerator(fpSize=64)
    bits = [generator.GetFingerprintAsNumPy(molecule).astype(np.float32) for molecule in made.values()]
    return AnnData(sp.csr_matrix(np.array(bits).reshape(-1, 64)), obs=pd.DataFrame(index=list(made)))


def fingerprint(smiles: str) -> np.ndarray:
    return GetMorganGenerator(fpSize=64).GetFingerprintAsNumPy(Chem.MolFromSmiles(smiles)).astype(np.float32)


def signatures() -> pd.DataFrame:
    """Compound 1 in all core cell lines, 2 in two, 3 and 4 in one; and a control and a knock-down."""
    rows = []
    for number, lines in {1: CORE, 2: ["A375", "MCF7"], 3: ["A375"], 4: ["NPC"]}.items():
        for line in lines:
            for k in range(N_REPLICATES):
                pert = f"BRD-K0000000{number}"
                dose, time = (10, 3.33, 1.11, 0.37, 0.12)[k], (6, 24)[k % 2]
                rows.append((f"CPC{k:03}_{line}_{time}H:{pert}-001-01-1:{dose}", pert, "trt_cp", line, dose, time))
    rows.append(("CPC000_A375_6H:A03", "DMSO", "ctl_vehicle", "A375", -666, 6))
    rows.append(("KDA000_A375_96H:TRCN0000000001:-666", "TRCN0000000001", "trt_sh", "A375", -666, 96))
    table = pd.DataFrame(rows, columns=["sig_id", "pert_id", "pert_type", "cell", "dose", "time"])
    return table.sample(frac=1, random_state=0).reset_index(drop=True)


def value(sig_ids, genes) -> np.ndarray:
    """Numbers that tell signature and gene apart, exact in float32."""
    order = {name: i for i, name in enumerate(sorted(signatures()["sig_id"]))}
    return np.array([[100 * order[s] + int(g) % 97 for g in genes] for s in sig_ids], dtype=np.float32)


def write_gctx(path, columns, rows, matrix, *, chunks=None, meta=(), kind="S"):
    text = (lambda values: np.array(values, dtype="S46")) if kind == "S" else (lambda values: list(map(str, values)))
    with h5py.File(path, "w") as file:
        file.attrs["version"] = np.bytes_("GCTX1.0")
        file.create_dataset("/0/DATA/0/matrix", data=matrix, chunks=chunks)
        file["/0/META/COL/id"], file["/0/META/ROW/id"] = text(columns), text(rows)
        for key, values in dict(meta).items():
            file[key] = values
    return path


def write(folder, release):
    """A release as it is published; the order of signatures in matrix and table differs."""
    table = signatures()
    ids = table["sig_id"].sample(frac=1, random_state=1).tolist()
    if release == "2020":
        ids = [one for one in ids if "BRD" in one]  # this matrix has compound treatments alone
        matrix, chunks, names = (
            "level5_beta_trt_cp_n720216x12328.gctx",
            (7, 12),
            ("siginfo_beta.txt", "compoundinfo_beta.txt", "geneinfo_beta.txt"),
        )
        table = table.assign(bead_batch="b17", pert_dose_unit="uM", pert_idose="x", pert_itime="x", pert_time_unit="h")
        table = table.assign(cmap_name=table["pert_id"].str.lower(), is_hiq=(table["time"] == 24).astype(int))
        table = table.rename(columns={"cell": "cell_iname", "dose": "pert_dose", "time": "pert_time"})
        compounds = pd.DataFrame(SMILES.items(), columns=["pert_id", "canonical_smiles"])
        compounds = pd.concat([compounds.assign(target=t, moa='a "quoted', cmap_name="x") for t in "AB"])
        genes = pd.DataFrame({"gene_id": GENES, "gene_symbol": [f"S{g}" for g in GENES]})
        genes["feature_space"] = ["landmark"] * 8 + ["inferred"] * 2 + ["best inferred"] * 2
    else:
        first, chunks = release == "GSE92742", None
        date = "" if first else "_2017-03-06"
        level = "Level5_COMPZ.MODZ_n473647x12328" if first else "Level5_COMPZ_n118050x12328_2017-03-06"
        matrix = f"{release}_Broad_LINCS_{level}.gctx"
        names = [f"{release}_Broad_LINCS_{what}_info{date}.txt" for what in ("sig", "pert", "gene")]
        table = table.assign(pert_iname=table["pert_id"].str.lower(), distil_id="x")
        unit, itime = ("\u00b5M" if first else "um"), table["time"].astype(str) + " h"
        table["pert_idose"] = np.where(table["dose"] > 0, table["dose"].astype(str) + " " + unit, "-666")
        table["pert_itime"] = itime
        if first:
            table = table.assign(pert_dose_unit=unit, pert_time_unit="h").rename(
                columns={"dose": "pert_dose", "time": "pert_time"}
            )
        else:
            table = table.drop(columns=["dose", "time"])
        table = table.rename(columns={"cell": "cell_id"})
        compounds = pd.DataFrame(SMILES.items(), columns=["pert_id", "canonical_smiles"])
        compounds["canonical_smiles"] = compounds["canonical_smiles"].replace("restricted", "-666")
        genes = pd.DataFrame({"pr_gene_id": GENES, "pr_gene_symbol": [f"S{g}" for g in GENES], "pr_gene_title": "t"})
        genes["pr_is_lm"] = [1] * 8 + [0] * 4
    for name, one in zip(names, (table, compounds, genes), strict=True):
        one.sample(frac=1, random_state=2).to_csv(folder / name, sep="\t", index=False, quoting=3)
    write_gctx(folder / matrix, ids, GENES, value(ids, GENES), chunks=chunks)
    return ids


@pytest.fixture(params=["2020", "GSE92742", "GSE70138"])
def folder(request, tmp_path):
    write(tmp_path, request.param)
    return tmp_path


@pytest.fixture
def latest(tmp_path):
    write(tmp_path, "2020")
    return tmp_path


def read(path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return datasets.lincs_l1000(path, featurizer=morgan, **options)


def test_signatures_of_each_release(folder):
    with pytest.warns(UserWarning, match=r"10 of 65 rows .* 5 have no SMILES, and of 5 .* first of them is 'C1CC\('"):
        mdata = datasets.lincs_l1000(folder, featurizer=morgan)
    expected = signatures().query("pert_type == 'trt_cp'").set_index("sig_id")
    assert set(mdata.obs_names) == set(expected.index)
    obs, expected = mdata.obs, expected.loc[mdata.obs_names]
    for column, source in {"compound": "pert_id", "cell_line": "cell", "dose": "dose", "time": "time"}.items():
        assert obs[column].tolist() == expected[source].tolist()
    assert obs["batch"].tolist() == [one.split(":")[0] for one in obs.index]
    assert obs["name"].tolist() == expected["pert_id"].str.lower().tolist()
    assert isinstance(obs["compound"].dtype, pd.CategoricalDtype)

    phenotype = mdata["phenotype"]
    assert phenotype.X.dtype == np.float32
    np.testing.assert_array_equal(phenotype.X, value(phenotype.obs_names, phenotype.var["gene_id"]))
    assert set(phenotype.var["gene_id"]) == set(GENES[:8])
    assert (phenotype.var_names == "S" + phenotype.var["gene_id"]).all()

    molecule = mdata["molecule"]
    assert list(molecule.obs_names) == [n for n in mdata.obs_names if obs.loc[n, "compound"] in list(SMILES)[:2]]
    assert sp.issparse(molecule.X)
    for name, row in zip(molecule.obs_names, molecule.X.toarray(), strict=True):
        np.testing.assert_array_equal(row, fingerprint(SMILES[obs.loc[name, "compound"]]))


def test_a_reader_of_the_whole_matrix_agrees(latest):
    matrix = latest / "level5_beta_trt_cp_n720216x12328.gctx"
    with h5py.File(matrix) as file:
        whole = pd.DataFrame(
            file["/0/DATA/0/matrix"][:],
            index=[one.decode() for one in file["/0/META/COL/id"]],
            columns=[one.decode() for one in file["/0/META/ROW/id"]],
        )
    phenotype = read(latest, genes="all")["phenotype"]
    assert phenotype.n_vars == 12
    found = pd.DataFrame(phenotype.X, phenotype.obs_names, phenotype.var["gene_id"].tolist())
    pd.testing.assert_frame_equal(found[whole.columns], whole.loc[found.index])
    assert list(phenotype.obs_names) == [one for one in whole.index if one in set(found.index)]


def test_packed_tables_and_the_file_itself_are_read(folder):
    for table in folder.glob("*.txt"):
        with gzip.open(f"{table}.gz", "wb") as packed:
            packed.write(table.read_bytes())
        table.unlink()
    matrix = next(folder.glob("*.gctx"))
    assert read(matrix).n_obs == 65


def test_drugs_seen_in_all_core_lines_with_some_replicates(latest):
    mdata = read(latest, cell_lines="core", complete=True, max_replicates=3)
    assert set(mdata.obs["compound"]) == {"BRD-K00000001"}
    assert mdata.obs["cell_line"].value_counts().to_dict() == dict.fromkeys(CORE, 3)
    np.testing.assert_array_equal(mdata["phenotype"].X, value(mdata.obs_names, mdata["phenotype"].var["gene_id"]))
    again, other = (read(latest, max_replicates=3, seed=seed).obs_names for seed in (0, 1))
    assert list(read(latest, max_replicates=3).obs_names) == list(again)
    assert set(again) != set(other)


def test_replicates_are_drawn_evenly(latest):
    drawn = [
        name for seed in range(40) for name in read(latest, max_replicates=1, seed=seed, cell_lines=["MCF7"]).obs_names
    ]
    counts = pd.Series(drawn).value_counts()
    assert len(counts) == 2 * N_REPLICATES
    assert counts.min() >= 2


def test_conditions_may_name_columns_of_the_file(latest):
    assert set(read(latest, where="time == 24 and dose > 1").obs["dose"]) == {3.33}
    assert set(read(latest, where="is_hiq == 1 and cell_line == 'A375'").obs["time"]) == {24}
    with pytest.raises(ValueError, match="`where` is no condition on the columns compound"):
        read(latest, where="doses > 1")
    with pytest.raises(ValueError, match="No signature is left"):
        read(latest, where="dose > 100")


@pytest.mark.parametrize("unit", ["ug/ml", "%"])
def test_doses_of_another_unit_are_missing(latest, unit):
    table = latest / "siginfo_beta.txt"
    table.write_text(table.read_text().replace("uM", unit))
    assert read(latest).obs["dose"].isna().all()


def test_doses_are_in_micromolar(latest):
    table = latest / "siginfo_beta.txt"
    table.write_text(table.read_text().replace("uM", "nM"))
    assert np.allclose(sorted(set(read(latest).obs["dose"])), [0.00012, 0.00037, 0.00111, 0.00333, 0.01])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"genes": "landmarks"}, "genes must be one of 'landmark', 'all'"),
        ({"cell_lines": ["A357"]}, "cell line 'A357'. Did you mean 'A375'"),
        ({"max_replicates": 0}, "`max_replicates` must be a whole number"),
        ({"cell_lines": ["A375", "NPC"], "complete": True}, "No signature is left"),
    ],
)
def test_options_that_cannot_be(latest, options, message):
    with pytest.raises(ValueError, match=message):
        read(latest, **options)


def test_what_is_missing_is_named_with_its_source(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"There is no .*nowhere\. Download GSE92742"):
        read(tmp_path / "nowhere")
    table = next(iter([*folder.glob("*pert_info*"), *folder.glob("compoundinfo*")]))
    name = table.name.replace("_2017-03-06", "")
    table.unlink()
    with pytest.raises(FileNotFoundError, match=rf"There is no .*{name} \(or \.gz\)\. Download it from http"):
        read(folder)
    matrix = next(folder.glob("*.gctx"))
    matrix.rename(f"{matrix}.gz")
    with pytest.raises(FileNotFoundError, match=rf"Unpack {matrix.name}\.gz \(gunzip\)"):
        read(folder)
    with pytest.raises(ValueError, match=r"is packed and cannot be read in parts: unpack it"):
        read(f"{matrix}.gz")


def test_several_matrices_in_a_folder_need_a_choice(tmp_path):
    for release in ("GSE92742", "GSE70138"):
        write(tmp_path, release)
    with pytest.raises(ValueError, match="has several matrices: give one of .*GSE70138.*GSE92742"):
        read(tmp_path)
    assert read(next(tmp_path.glob("GSE70138*.gctx"))).n_obs == 65


def test_another_table_of_landmarks_is_not_taken_for_the_genes(tmp_path):
    write(tmp_path, "GSE92742")
    shutil.copy(
        tmp_path / "GSE92742_Broad_LINCS_sig_info.txt", tmp_path / "GSE92742_Broad_LINCS_gene_info_delta_landmark.txt"
    )
    assert read(tmp_path)["phenotype"].n_vars == 8


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("siginfo_beta.txt", "cell_iname", "cell", r"siginfo_beta\.txt has no column 'cell_iname'"),
        ("compoundinfo_beta.txt", "canonical_smiles", "smiles", "has no column 'canonical_smiles'"),
        ("geneinfo_beta.txt", "landmark", "LM", "has no landmark gene: none has feature_space 'landmark'"),
        ("siginfo_beta.txt", "CPC", "XXX", "has none of the signatures of compounds"),
        ("compoundinfo_beta.txt", "BRD", "XXX", "No row has a SMILES"),
    ],
)
def test_tables_that_are_not_as_said(latest, file, old, new, message):
    path = latest / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        read(latest)


def test_an_incomplete_table_is_named(tmp_path):
    write(tmp_path, "GSE92742")
    table = tmp_path / "GSE92742_Broad_LINCS_sig_info.txt"
    packed = gzip.compress(table.read_bytes())
    table.with_suffix(".txt.gz").write_bytes(packed[: len(packed) // 2])
    table.unlink()
    with pytest.raises(ValueError, match=r"sig_info\.txt\.gz is no complete table.*Download it from"):
        read(tmp_path)


def test_a_featurizer_must_keep_the_names(latest):
    def other(smiles):
        return AnnData(
            np.ones((len(smiles), 2), np.float32), obs=pd.DataFrame(index=[f"m{i}" for i in range(len(smiles))])
        )

    with pytest.raises(ValueError, match="under the names that they came with"):
        datasets.lincs_l1000(latest, featurizer=other)


def test_structures_that_cannot_be_read_at_all(latest):
    with pytest.raises(ValueError, match="None of 5 SMILES can be read, such as 'C1CC\\('"):
        read(latest, cell_lines=["NPC"])


def test_fingerprints_are_the_default(latest):
    with pytest.warns(UserWarning, match="no structure") as caught:
        molecule = datasets.lincs_l1000(latest)["molecule"]
    assert len([one for one in caught if one.category is UserWarning]) == 1
    assert caught[0].filename == __file__
    readable = {Chem.CanonSmiles(one) for one in list(SMILES.values())[:2]}
    assert set(molecule.obs["canonical_smiles"]) == readable
    assert sp.issparse(molecule.X)
    assert (molecule.X.getnnz(axis=1) > 0).all()


def test_it_can_be_written_and_read(latest, tmp_path):
    import mudata

    mdata = read(latest)
    mdata.write_h5mu(tmp_path / "l1000.h5mu")
    again = mudata.read_h5mu(tmp_path / "l1000.h5mu")
    assert again.obs["dose"].tolist() == mdata.obs["dose"].tolist()
    np.testing.assert_array_equal(again["phenotype"].X, mdata["phenotype"].X)


# ---- GCTX ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["S", "O"])
def test_metadata_of_a_gctx(tmp_path, kind):
    meta = {
        "/0/META/COL/pert_dose": np.array([b"10", b"-666", b"0.5"]),
        "/0/META/COL/cell_id": np.array([b"A375 ", b"-666", b"PC3"]),
        "/0/META/ROW/pr_is_lm": np.array([1, 0]),
        "/0/META/ROW/shape": np.zeros((2, 2)),
    }
    x = np.arange(6, dtype=np.float64).reshape(3, 2)
    path = write_gctx(tmp_path / "a.gctx", ["a", "b", "c"], [5720, 466], x, meta=meta, kind=kind)
    adata = datasets.read_gctx(path)
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X, x)
    assert adata.obs_names.tolist() == ["a", "b", "c"]
    assert adata.var_names.tolist() == ["5720", "466"]
    np.testing.assert_array_equal(adata.obs["pert_dose"], [10, np.nan, 0.5])
    assert adata.obs["cell_id"].tolist()[::2] == ["A375", "PC3"]
    assert pd.isna(adata.obs["cell_id"].iloc[1])
    assert adata.var["pr_is_lm"].tolist() == [1, 0]
    assert "shape" not in adata.var
    part = datasets.read_gctx(path, rows=["466"], columns=["c", "a"])
    np.testing.assert_array_equal(part.X, [[5], [1]])
    np.testing.assert_array_equal(part.obs["pert_dose"], [0.5, 10])


N, P = 300, 11


@pytest.fixture(scope="module", params=[None, (16, 4), (300, 1)])
def matrix(request, tmp_path_factory):
    x = np.random.default_rng(0).normal(size=(N, P)).astype(np.float32)
    path = tmp_path_factory.mktemp("gctx") / "m.gctx"
    return write_gctx(path, [f"c{i}" for i in range(N)], [f"r{j}" for j in range(P)], x, chunks=request.param), x


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, N - 1), unique=True, max_size=60),
    st.lists(st.integers(0, P - 1), unique=True, max_size=P),
    st.integers(1, 5_000),
)
def test_any_part_in_any_order_is_read(matrix, columns, rows, block):
    path, x = matrix
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_lincs, "_BLOCK_BYTES", block)
        part = datasets.read_gctx(path, rows=[f"r{j}" for j in rows], columns=[f"c{i}" for i in columns])
    np.testing.assert_array_equal(part.X, x[columns][:, rows])
    assert part.obs_names.tolist() == [f"c{i}" for i in columns]


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 5_000), min_size=1, max_size=200), st.integers(1, 500), st.integers(1, 700))
def test_spans_hold_all_once_and_are_not_wide(wanted, chunk, largest):
    columns = np.array(sorted(wanted))
    spans = _lincs._spans(columns, chunk, largest)
    np.testing.assert_array_equal(np.concatenate([columns[span] for span in spans]), columns)
    for span in spans:
        assert np.ptp(columns[span]) < largest
        assert (np.diff(columns[span]) <= max(chunk, 64)).all()


class Watched:
    """A matrix on the disk that notes what is read of it."""

    def __init__(self, n, p, chunks):
        self.x, self.chunks, self.read = np.arange(n * p, dtype=np.float32).reshape(n, p), chunks, []
        self.dtype = self.x.dtype

    def __getitem__(self, place):
        self.read.append(self.x[place].shape)
        return self.x[place]


@pytest.mark.parametrize("chunks", [None, (1_000, 5)])
def test_little_more_than_what_is_wanted_is_read(chunks):
    matrix = Watched(50_000, 6, chunks)
    columns = np.r_[40_000:40_010, 3:13]
    found = _lincs._read_matrix(matrix, columns, np.array([3, 1]))
    np.testing.assert_array_equal(found, matrix.x[columns][:, [3, 1]])
    assert matrix.read == [(10, 3), (10, 3)]


def test_a_large_part_is_read_in_blocks(monkeypatch):
    monkeypatch.setattr(_lincs, "_BLOCK_BYTES", 6 * 4 * 1_000)
    matrix = Watched(20_000, 6, None)
    _lincs._read_matrix(matrix, np.arange(20_000), np.arange(6))
    assert len(matrix.read) == 20
    assert max(matrix.read) == (1_000, 6)


def test_names_that_are_not_there(matrix):
    with pytest.raises(KeyError, match=r"1 of 2 `columns` are not in .*such as 'x'; those there are named like 'c0'"):
        datasets.read_gctx(matrix[0], columns=["c1", "x"])
    with pytest.raises(KeyError, match="`rows` are not in"):
        datasets.read_gctx(matrix[0], rows=["c1"])


def test_files_that_are_no_gctx(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no"):
        datasets.read_gctx(tmp_path / "none.gctx")
    (tmp_path / "text.gctx").write_text("#1.3\n")
    with pytest.raises(ValueError, match="is no complete GCTX file"):
        datasets.read_gctx(tmp_path / "text.gctx")
    with h5py.File(tmp_path / "other.gctx", "w") as file:
        file["x"] = [1]
    with pytest.raises(ValueError, match="it has no '/0/DATA/0/matrix'"):
        datasets.read_gctx(tmp_path / "other.gctx")
    path = write_gctx(tmp_path / "turned.gctx", ["a", "b", "c"], ["x", "y"], np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"its matrix has shape \(2, 3\) for 3 columns and 2 rows"):
        datasets.read_gctx(path)
    path = write_gctx(tmp_path / "twice.gctx", ["a", "a"], ["x"], np.zeros((2, 1)))
    with pytest.raises(ValueError, match="has 'a' more than once among its columns"):
        datasets.read_gctx(path, columns=["a"])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is no complete GCTX file"):
        datasets.read_gctx(path)
