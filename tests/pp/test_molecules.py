"""``ub.pp.molecules``."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mudata import MuData
from rdkit import Chem
from rdkit.Chem import Descriptors, MACCSkeys, rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold
from scipy import sparse

import unbraid as ub
from unbraid.pp import _molecules
from unbraid.pp._molecular_features import FINGERPRINTS

DRUGS = {  # neutral, one fragment, drawn as RDKit does
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "ibuprofen": "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "caffeine": "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
    "metformin": "CN(C)C(=N)NC(=N)N",
    "fluoxetine": "CNCCC(Oc1ccc(C(F)(F)F)cc1)c1ccccc1",
    "imatinib": "Cc1ccc(NC(=O)c2ccc(CN3CCN(C)CC3)cc2)cc1Nc1nccc(-c2cccnc2)n1",
    "penicillin": "CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O",
    "testosterone": "C[C@]12CC[C@H]3[C@@H](CCC4=CC(=O)CC[C@@]43C)[C@@H]1CC[C@@H]2O",
    "valproate": "CCCC(CCC)C(=O)O",
    "thalidomide": "O=C1CCC(N2C(=O)c3ccccc3C2=O)C(=O)N1",
    "nitroglycerin": "O=[N+]([O-])OCC(CO[N+](=O)[O-])O[N+](=O)[O-]",
}


def molecules(smiles, *args, **options):
    return ub.pp.molecules(smiles, *args, progress_bar=False, **options)


def expected_fingerprint(smiles, kind):
    mol = Chem.MolFromSmiles(smiles)
    if kind == "maccs":
        return np.array(MACCSkeys.GenMACCSKeys(mol))
    invariants = rdFingerprintGenerator.GetMorganFeatureAtomInvGen() if "feature" in kind else None
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=3, fpSize=512, atomInvariantsGenerator=invariants)
    if "count" in kind:
        return generator.GetCountFingerprintAsNumPy(mol)
    return generator.GetFingerprintAsNumPy(mol)


# ---- features ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FINGERPRINTS)
def test_fingerprints_are_those_of_rdkit(kind):
    adata = molecules(pd.Series(DRUGS), kind, n_features=512, radius=3)
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    np.testing.assert_array_equal(adata.X.toarray(), [expected_fingerprint(one, kind) for one in DRUGS.values()])
    assert adata.var_names[17] == {"maccs": "maccs_17"}.get(kind, kind.removesuffix("_count") + "_17")
    assert adata.obs_names.tolist() == list(DRUGS)
    assert adata.obs["canonical_smiles"].tolist() == list(DRUGS.values())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=st.lists(st.sampled_from(sorted(DRUGS.values())), min_size=1, max_size=30))
def test_each_row_has_the_features_of_its_molecule(rows):
    adata = molecules(rows, "morgan_count", n_features=512, radius=3)
    np.testing.assert_array_equal(adata.X.toarray(), [expected_fingerprint(one, "morgan_count") for one in rows])
    assert adata.obs["smiles"].tolist() == rows
    assert adata.obs_names.tolist() == [str(i) for i in range(len(rows))]


def test_each_molecule_is_worked_on_once():
    calls = []
    molecules(["CCO", "CCN", "CCO"] * 50, lambda mol: calls.append(mol) or [mol.GetNumAtoms()])
    assert len(calls) == 2


def test_the_way_of_writing_changes_no_feature():
    rng = np.random.default_rng(0)
    for smiles in DRUGS.values():
        mol = Chem.MolFromSmiles(smiles)
        order = rng.permutation(mol.GetNumAtoms()).tolist()
        written = Chem.MolToSmiles(Chem.RenumberAtoms(mol, order), canonical=False)
        assert written != smiles
        for kind in ("morgan_count", "descriptors"):
            first, second = molecules([smiles, written], kind).X
            assert abs(first - second).max() == 0


def test_descriptors_are_standardised_over_distinct_molecules():
    names = [name for name, _ in Descriptors.descList]
    smiles = [*DRUGS.values(), DRUGS["aspirin"], "OC(=O)c1ccccc1OC(C)=O", DRUGS["aspirin"]]
    adata = molecules(smiles, "descriptors")
    assert isinstance(adata.X, np.ndarray)
    assert adata.X.dtype == np.float32
    assert adata.var_names.tolist() == names
    assert np.isfinite(adata.X).all()
    assert abs(adata.X).max() <= 10
    distinct = adata.X[: len(DRUGS)]
    varies = adata.var["low"] < adata.var["high"]
    assert 100 < varies.sum() < 217
    np.testing.assert_allclose(distinct.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(distinct[:, varies].std(0), 1, atol=1e-5)
    assert not distinct[:, ~varies].any()
    # a descriptor without outliers is simply standardised
    weight = np.array([Descriptors.MolWt(Chem.MolFromSmiles(one)) for one in DRUGS.values()])
    np.testing.assert_allclose(
        distinct[:, names.index("MolWt")], (weight - weight.mean()) / weight.std(), rtol=1e-5, atol=1e-5
    )


def test_outliers_are_clipped_and_gaps_filled():
    giant = "C(=O)(N" * 60 + "C" + ")" * 60
    alcohols = ["C" * n + "O" for n in range(1, 20)]
    smiles = [*alcohols, giant, "*CC"]
    adata = molecules(smiles, "descriptors")
    raw = np.array([Descriptors.Ipc(Chem.MolFromSmiles(one)) for one in smiles])
    first, third = np.percentile(raw, [25, 75])
    assert raw[-2] > 1e6 * third
    assert adata.var.loc["Ipc", "high"] <= third + 3 * (third - first) + 1e-6
    assert adata[:, "Ipc"].X.max() <= 10
    # partial charges of a dummy atom are not defined
    row = adata.var.loc["MaxPartialCharge"]
    np.testing.assert_allclose(
        adata[-1:, "MaxPartialCharge"].X, (row["median"] - row["mean"]) / row["scale"], rtol=1e-5
    )
    assert np.isfinite(adata.X).all()


def test_one_molecule_has_descriptors_of_zero():
    assert not molecules(["CCO"], "descriptors").X.any()


def test_groups_that_few_molecules_have_stay_within_ten_deviations():
    ethers = ["C" * m + "O" + "C" * n for m in range(1, 16) for n in range(m, 16)]
    adata = molecules([*ethers, "CC#N"], "descriptors")
    values = adata[:, "fr_nitrile"].X.ravel()
    assert values[-1] == pytest.approx(10)
    assert (abs(values[:-1]) < 0.1).all()


def test_own_functions():
    adata = molecules(pd.Series(DRUGS), lambda mol: (mol.GetNumAtoms(), mol.GetNumBonds(), 0.5))
    assert adata.var_names.tolist() == ["lambda_0", "lambda_1", "lambda_2"]
    assert adata.X.dtype == np.float32
    expected = [Chem.MolFromSmiles(one).GetNumAtoms() for one in DRUGS.values()]
    assert adata.X[:, 0].tolist() == expected

    def descriptors(mol):  # named like our own
        return np.array([7, 7])

    adata = molecules(["CCO"], descriptors)
    assert adata.X.tolist() == [[7, 7]]
    assert adata.uns["molecules"]["featurizer"] == "own_descriptors"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda mol: [[1.0]], r"it gave shape \(1, 1\) for CCO"),
        (lambda mol: [], r"it gave shape \(0,\) for CCO"),
        (lambda mol: 1.0, r"it gave shape \(\) for CCO"),
        (lambda mol: [np.nan], "it gave numbers that are not finite for CCO"),
        (lambda mol: [1.0] * mol.GetNumAtoms(), r"it gave shape \(2,\) for CC after \(3,\)"),
    ],
)
def test_rows_of_own_functions_are_checked(function, message):
    with pytest.raises(ValueError, match=message):
        molecules(["CCO", "CC"], function)


def test_rows_of_different_lengths_are_found_across_chunks(monkeypatch):
    monkeypatch.setattr(_molecules, "CHUNK", 1)
    with pytest.raises(ValueError, match="as many numbers for every molecule; it gave"):
        molecules(["CCO", "CC"], lambda mol: [1.0] * mol.GetNumAtoms())


def test_errors_of_own_functions_name_the_molecule():
    with pytest.raises(ZeroDivisionError) as caught:
        molecules(["CCO"], lambda mol: [1 / 0])
    assert caught.value.__notes__ == ["This was in `featurizer`, of CCO."]


# ---- who is who ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forms", "key", "canonical"),
    [
        (  # aspirin: sodium, potassium and calcium salt, covalently written, lysine, hydrate, other order
            [
                "CC(=O)Oc1ccccc1C(=O)O",
                "OC(=O)c1ccccc1OC(C)=O",
                "CC(=O)Oc1ccccc1C(=O)[O-].[Na+]",
                "CC(=O)Oc1ccccc1C(=O)O[K]",
                "[Ca+2].CC(=O)Oc1ccccc1C([O-])=O.CC(=O)Oc1ccccc1C([O-])=O",
                "CC(=O)Oc1ccccc1C(=O)[O-].[NH3+]CCCCC([NH3+])C(=O)[O-]",
                "O.CC(=O)Oc1ccccc1C(=O)O",
                "  CC(=O)Oc1ccccc1C(=O)O ",
            ],
            "BSYNRYMUTXBXSQ-UHFFFAOYSA-N",
            "CC(=O)Oc1ccccc1C(=O)O",
        ),
        (
            ["CC(C)Cc1ccc(cc1)C(C)C(=O)[O-].[Na+].O.O", "CC(C)Cc1ccc(cc1)C(C)C(O)=O"],
            "HEFNNWSXXWATRW-UHFFFAOYSA-N",
            "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
        ),
        (["C[C@H](N)C(=O)O", "C[C@H]([NH3+])C(=O)[O-]"], "QNAYBMKLOCPYGJ-REOHCLBHSA-N", "C[C@H](N)C(=O)O"),
        (["C[N+](C)(C)CC(=O)[O-]", "C[N+](C)(C)CC(=O)O.[Cl-]"], None, "C[N+](C)(C)CC(=O)O"),  # betaine
        (["CN(=O)=O", "C[N+](=O)[O-]"], "LYGJENNIWJXYER-UHFFFAOYSA-N", "C[N+](=O)[O-]"),
    ],
)
def test_forms_of_one_molecule_are_one_compound(forms, key, canonical):
    adata = molecules(forms)
    assert set(adata.obs["canonical_smiles"]) == {canonical}
    assert adata.obs["compound"].nunique() == 1
    assert key in (None, adata.obs["compound"].iloc[0])
    assert (adata.X != adata.X[[0] * len(forms)]).nnz == 0
    assert adata.obs["smiles"].tolist() == forms


def test_stereoisomers_are_two_compounds_and_tautomers_one():
    obs = molecules(["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"]).obs
    assert obs["compound"].nunique() == 2
    obs = molecules(["Oc1ccccn1", "O=c1cccc[nH]1"]).obs
    assert obs["compound"].nunique() == 1
    assert obs["canonical_smiles"].nunique() == 2


def test_metals_and_molecules_without_carbon_are_kept_whole():
    obs = molecules(
        ["[Na+].[Cl-]", "[K+].[Cl-]", "[Na]Cl", "Cl", "[Fe]", "[H][H]", "[Fe+2].c1cc[cH-]c1.c1cc[cH-]c1"]
    ).obs
    elements = [{atom.GetSymbol() for atom in Chem.MolFromSmiles(one).GetAtoms()} for one in obs["canonical_smiles"]]
    assert elements == [{"Na", "Cl"}, {"K", "Cl"}, {"Na", "Cl"}, {"Cl"}, {"Fe"}, {"H"}, {"Fe", "C"}]
    assert obs["compound"].iloc[0] == obs["compound"].iloc[2]
    assert obs["compound"].nunique() == 6


def test_all_ways_of_writing_cisplatin_are_one_compound():
    smiles = [
        "[NH3][Pt]([NH3])(Cl)Cl", "[NH3]->[Pt](<-[NH3])(Cl)Cl", "N.N.Cl[Pt]Cl", "[NH3+][Pt-2](Cl)(Cl)[NH3+]",
        "N.N.[Cl-].[Cl-].[Pt+2]",
    ]  # fmt: skip
    obs = molecules(smiles).obs
    assert set(obs["compound"]) == {"LXZZYRPGZAFOLE-UHFFFAOYSA-L"}
    assert obs["canonical_smiles"].str.contains("Pt").all()


def test_a_dummy_atom_has_no_inchi():
    obs = molecules(["*CC", "CC*"]).obs
    assert obs["compound"].tolist() == ["*CC", "*CC"]


def test_standardising_twice_changes_nothing():
    smiles = [*DRUGS.values(), "CS(C)=O", "C[N+](C)(C)CC(=O)[O-]", "CC(=O)O[Ag]", "O=C([O-])CC[NH3+]", "N.N.Cl[Pt]Cl"]
    once = molecules(smiles).obs
    twice = molecules(once["canonical_smiles"]).obs
    assert twice["canonical_smiles"].tolist() == once["canonical_smiles"].tolist()
    assert twice["compound"].tolist() == once["compound"].tolist()


def test_without_standardisation_salts_differ():
    adata = molecules(["CC(=O)[O-].[Na+]", "CC(=O)O", "OC(C)=O"], standardize=False)
    assert adata.obs["canonical_smiles"].tolist() == ["CC(=O)[O-].[Na+]", "CC(=O)O", "CC(=O)O"]
    assert adata.obs["compound"].nunique() == 2
    assert adata.X[0].sum() > adata.X[1].sum()


def test_scaffolds_are_those_of_rdkit():
    obs = molecules(pd.Series(DRUGS)).obs
    expected = [MurckoScaffold.MurckoScaffoldSmiles(one, includeChirality=False) for one in DRUGS.values()]
    assert obs["scaffold"].tolist() == expected
    assert obs.loc["valproate", "scaffold"] == ""
    assert "@" not in obs.loc["testosterone", "scaffold"]


# ---- rows ----------------------------------------------------------------------------------------------


BAD = pd.Series(
    ["CCO", None, "", "  ", float("nan"), pd.NA, "xyz", "C(C)(C)(C)(C)C", "c1cccc1", 7, "CCN"],
    index=list("abcdefghijk"),
)


def test_invalid_rows_are_named():
    with pytest.raises(ValueError, match="9 of 11 SMILES are missing or invalid") as caught:
        molecules(BAD)
    message = str(caught.value)
    assert "row 1 ('b'): missing; row 2 ('c'): missing; row 3 ('d'): missing; " in message
    assert "and 4 more" in message
    assert 'leave their rows out with `invalid="drop"`' in message
    with pytest.raises(ValueError, match="row 1: 'xyz', no SMILES.*row 2: 'C.*valence for atom # 0 C, 5, is greater"):
        molecules(["CCO", "xyz", "C(C)(C)(C)(C)C"])
    with pytest.raises(ValueError, match="'c1cccc1', no possible molecule .*kekulize"):
        molecules(["c1cccc1"])


def test_invalid_rows_are_left_out(tmp_path):
    before = BAD.copy()
    with pytest.warns(UserWarning, match="9 of 11 SMILES are missing or invalid"):
        adata = molecules(BAD, invalid="drop")
    pd.testing.assert_series_equal(BAD, before)
    assert adata.obs_names.tolist() == ["a", "k"]
    np.testing.assert_array_equal(adata.X.toarray(), molecules(["CCO", "CCN"]).X.toarray())
    adata.write_h5ad(tmp_path / "molecules.h5ad")
    noted = ad.read_h5ad(tmp_path / "molecules.h5ad").uns["molecules"]
    assert noted["n_invalid"] == 9
    assert noted["invalid"].index.tolist() == list("bcdefghij")
    assert noted["invalid"].loc["g"].tolist() == ["xyz", "no SMILES"]
    assert noted["invalid"].loc["b"].tolist() == ["", "missing"]
    assert noted["invalid"].loc["j"].tolist() == ["7", "not text"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("CNOPSclFBrInaPt[]()=#@/+-.123%*H:;>~ \t\0\u00e9"), max_size=12))
def test_any_text_is_a_molecule_or_invalid(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        adata = molecules(["CCO", text], "maccs", invalid="drop")
    assert adata.n_obs + adata.uns["molecules"]["n_invalid"] == 2
    assert np.isfinite(adata.X.data).all()
    if not text.strip():
        assert adata.uns["molecules"]["invalid"]["problem"].tolist() == ["missing"]


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="No molecule is left"):
        molecules(["xyz", None], invalid="drop")
    with pytest.raises(ValueError, match="`smiles` is empty"):
        molecules([])
    with pytest.raises(ValueError, match=r"use `\['CCO'\]`"):
        molecules("CCO")


def test_rdkit_is_quiet_only_here(capfd):
    with pytest.warns(UserWarning, match="1 of 2"):
        molecules(["xyz", "CC(=O)[O-].[Na+]"], invalid="drop")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    Chem.MolFromSmiles("xyz")
    assert "SMILES Parse Error" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"featurizer": "morgan_counts"}, "Did you mean 'morgan_count'"),
        ({"featurizer": 3}, "Or give a function"),
        ({"n_features": 0}, "n_features"),
        ({"radius": -1}, "radius"),
        ({"invalid": "ignore"}, "`invalid` must be one of 'raise', 'drop'"),
        ({"n_jobs": 0}, "n_jobs"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        molecules(["CCO"], **options)


# ---- reference -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["morgan", "feature_morgan_count", "maccs", "descriptors"])
def test_new_molecules_line_up_with_a_reference(kind, tmp_path):
    reference = molecules(pd.Series(DRUGS), kind, n_features=300, radius=1)
    reference.write_h5ad(tmp_path / "reference.h5ad")
    reference = ad.read_h5ad(tmp_path / "reference.h5ad")
    query = molecules([DRUGS["caffeine"], "CCO", DRUGS["imatinib"]], reference=reference)
    assert query.var_names.tolist() == reference.var_names.tolist()
    dense = lambda adata: np.asarray(adata.X.toarray() if sparse.issparse(adata.X) else adata.X)
    np.testing.assert_array_equal(dense(query)[[0, 2]], dense(reference[["caffeine", "imatinib"]]))
    assert abs(dense(query)).max() <= max(10, abs(dense(reference)).max())
    assert query.uns["molecules"]["featurizer"] == kind
    # what was chosen of the reference is chosen here
    chosen = reference[:, reference.var_names[::7]].copy()
    query = molecules([DRUGS["caffeine"]], reference=chosen)
    np.testing.assert_array_equal(dense(query)[0], dense(chosen["caffeine"])[0])


def test_another_featurizer_than_the_reference_s_is_refused():
    reference = molecules(["CCO"], "maccs")
    assert molecules(["CCN"], "maccs", reference=reference).n_vars == reference.n_vars
    with pytest.raises(ValueError, match="has features of 'maccs': leave `featurizer` out"):
        molecules(["CCN"], "morgan", reference=reference)


def test_a_reference_keeps_salts_if_it_did():
    reference = molecules(["CC(=O)[O-].[Na+]"], standardize=False)
    assert molecules(["CC(=O)[O-].[Na+]"], reference=reference).obs["canonical_smiles"].tolist() == ["CC(=O)[O-].[Na+]"]


def test_wrong_references_are_named():
    count = lambda mol: [mol.GetNumAtoms(), 1]
    own = molecules(["CCO"], count)
    assert molecules(["CC"], count, reference=own).X.tolist() == [[2, 1]]
    with pytest.raises(ValueError, match="give that function as `featurizer`"):
        molecules(["CC"], reference=own)
    with pytest.raises(ValueError, match="columns such as 'lambda_1'.* 'lambda_0' to 'lambda_0'"):
        molecules(["CC"], lambda mol: [1], reference=own)
    with pytest.raises(ValueError, match="leave `featurizer` out"):
        molecules(["CC"], count, reference=molecules(["CCO"]))
    with pytest.raises(ValueError, match="that `ub.pp.molecules` made"):
        molecules(["CC"], reference=ad.AnnData(np.zeros((1, 2))))
    described = molecules(["CCO", "CC"], "descriptors")
    del described.var["scale"]
    with pytest.raises(ValueError, match="no var column 'scale'"):
        molecules(["CC"], reference=described)
    described = molecules(["CCO", "CC"], "descriptors")[:, :3].copy()
    described.var_names = ["MolWt", "NoSuch", "TPSA"]
    with pytest.raises(ValueError, match="does not know, such as 'NoSuch'. It was made with RDKit"):
        molecules(["CC"], reference=described)


# ---- many ----------------------------------------------------------------------------------------------


class Bar:
    """Stands for a progress bar."""

    def __init__(self, **options):
        self.options, self.counted = options, []
        Bar.last = self

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def update(self, n):
        self.counted.append(n)


def test_processes_give_the_same_and_load_nothing_else(monkeypatch):
    smiles = ["C" * n for n in range(1, 40)] + ["xyz", *DRUGS.values()] * 2
    modules = lambda mol: ["unbraid" in __import__("sys").modules, __import__("os").getpid()]
    with pytest.warns(UserWarning, match="2 of 65"):
        serial = molecules(smiles, "morgan_count", invalid="drop", n_jobs=1)
    monkeypatch.setattr(_molecules, "CHUNK", 5)
    monkeypatch.setattr(_molecules, "WORTH_PROCESSES", 0.0)
    monkeypatch.setattr(_molecules, "tqdm", Bar)
    with pytest.warns(UserWarning, match="2 of 65"):
        parallel = molecules(smiles, "morgan_count", invalid="drop", n_jobs=2)
    assert Bar.last.options["total"] == sum(Bar.last.counted) == 39 + 1 + len(DRUGS)
    assert (serial.X != parallel.X).nnz == 0
    pd.testing.assert_frame_equal(serial.obs, parallel.obs)
    loaded, process = molecules(["C" * n for n in range(1, 40)], modules, n_jobs=2).X.T
    assert loaded[:10].all()  # the first two chunks are done here
    assert not loaded[10:].any()
    assert process[0] not in process[10:]


def test_it_is_a_modality(tmp_path):
    names = [f"well{i}" for i in range(len(DRUGS))]
    rng = np.random.default_rng(0)
    mdata = MuData(
        {
            "molecule": molecules(pd.Series(list(DRUGS.values()), index=names), n_features=64),
            "phenotype": ad.AnnData(rng.normal(size=(len(DRUGS), 6)), obs=pd.DataFrame(index=names)),
        }
    )
    mdata.write(tmp_path / "pairs.h5mu")
    ub.model.CLIP.setup_mudata(mdata)
    model = ub.model.CLIP(mdata, n_shared=2, n_hidden=4)
    model.train(max_epochs=1, progress_bar=False, accelerator="cpu")
    assert model.get_latent_representation(modality="molecule").shape == (len(DRUGS), 2)


@pytest.mark.parametrize("file", sorted(Path(ub.pp.__file__).parent.glob("_mol*.py")), ids=lambda file: file.name)
def test_rdkit_is_loaded_when_it_is_needed(file):
    loaded = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(node, "module", None) or node.names[0].name for node in loaded]
    assert loaded
    assert not [name for name in names if name.startswith(("rdkit", "joblib"))]
    if file.name == "_molecular_features.py":  # which worker processes run alone
        assert not [name for name in names if name.startswith("unbraid")]
