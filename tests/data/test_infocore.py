"""The screens that InfoCORE curates, on small files in the form that its code reads."""

from __future__ import annotations

import os
import pickle
import warnings
from collections import OrderedDict
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from unbraid.data import datasets

CORE = ["A375", "A549", "HA1E", "HCC515", "HEPG2", "HT29", "MCF7", "PC3", "VCAP"]
N_DRUGS, N_GENES, N_FEATURES, N_MOL2VEC = 24, 6, 5, 4
SMILES = [f"{'C' * (i + 1)}O" for i in range(N_DRUGS)]
UNKNOWN = N_DRUGS - 1  # a drug that Mol2vec does not know


def dump(folder, name, value, protocol=4):
    with (folder / name).open("wb") as file:
        pickle.dump(value, file, protocol=protocol)


@cache
def mol2vec() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    found = {one: rng.normal(size=N_MOL2VEC).astype(np.float32) * 3 for one in SMILES[:UNKNOWN]}
    found["a drug of no profile"] = np.full(N_MOL2VEC, 40, np.float32)
    return found


@cache
def wells() -> dict[str, list]:
    """All drugs in all core lines but drug 0 in PC3; two wells each, on plates of five drugs; and another line."""
    rng, found = np.random.default_rng(0), {}
    for i in range(N_DRUGS):
        for line in [*CORE, "NPC"]:
            if i == 0 and line == "PC3":
                continue
            for k in range(2):
                plate = f"CPC{i // 5:03}_{line}_6H_X{k + 1}_B3"
                about = [
                    plate,
                    f"{'ABCDE'[i % 5]}01",
                    f"BRD-K{i:08}",
                    f"drug {i}",
                    "trt_cp",
                    10.0,
                    "\u00b5M",
                    6,
                    "h",
                    line,
                ]
                found[f"{plate}:{'ABCDE'[i % 5]}01"] = [*about, rng.normal(0, 2, N_GENES).astype(np.float32)]
    return found


@cache
def controls() -> dict[str, np.ndarray]:
    plates = sorted({entry[0] for entry in wells().values()})
    return {plate: np.full(N_GENES, i / 100, np.float32) for i, plate in enumerate(plates) if i != 3}


@pytest.fixture
def expression(tmp_path):
    folder = tmp_path / "GE" / "data" / "training_LINCS"
    folder.mkdir(parents=True)
    dump(folder, "inst_info_drug.pkl", wells())
    dump(folder, "ctl_dict1_mean.pkl", controls())
    dump(folder, "id_smiles", {f"BRD-K{i:08}": one for i, one in enumerate(SMILES)})
    dump(folder, "mol2vec_mol_repr_dict.pkl", mol2vec())
    keys = np.random.default_rng(1).permutation([key for key in wells() if not key.startswith("CPC002")])
    np.save(folder / "sel_keys_dosesubset.npy", keys)
    return folder


def kept_wells(folder) -> list[str]:
    """As the code of InfoCORE goes through them."""
    entries, plates = wells(), controls()
    keys = np.load(folder / "sel_keys_dosesubset.npy")
    return [
        key
        for key in keys
        if entries[key][0] in plates and entries[key][9] in CORE and entries[key][2] != f"BRD-K{UNKNOWN:08}"
    ]


def differences(keys) -> np.ndarray:
    return np.array([wells()[key][-1] - controls()[wells()[key][0]] for key in keys])


def test_expression_without_scaling(expression):
    mdata = datasets.infocore(expression, scale=False)
    keys = kept_wells(expression)
    assert mdata.obs_names.tolist() == keys
    np.testing.assert_allclose(mdata["phenotype"].X, differences(keys), rtol=1e-6)
    assert mdata["phenotype"].X.dtype == np.float32
    obs, entries = mdata.obs, [wells()[key] for key in keys]
    for column, place in {"batch": 0, "well": 1, "compound": 2, "dose": 5, "time": 7, "cell_line": 9}.items():
        assert obs[column].tolist() == [entry[place] for entry in entries]
    assert obs["smiles"].tolist() == [SMILES[int(entry[2][-8:])] for entry in entries]
    np.testing.assert_array_equal(mdata["molecule"].X, [mol2vec()[one] for one in obs["smiles"]])
    assert mdata["molecule"].obs_names.tolist() == keys


def test_scaling_is_infocores(expression):
    mdata = datasets.infocore(expression)
    clipped = np.clip(differences(kept_wells(expression)), -1.5, 1.5)
    np.testing.assert_allclose(mdata["phenotype"].X, (clipped - clipped.mean(0)) / clipped.std(0), rtol=1e-4, atol=1e-5)
    table = mol2vec()
    values = np.stack(list(table.values()))  # all drugs of the file, those of no profile included
    scaled = np.clip((values - values.mean(0)) / values.std(0), -2.5, 2.5)
    where = [list(table).index(one) for one in mdata.obs["smiles"]]
    np.testing.assert_allclose(mdata["molecule"].X, scaled[where], rtol=1e-4, atol=1e-5)


def test_the_split_is_infocores(expression):
    mdata = datasets.infocore(expression)
    pairs = {}  # drug and cell line, in the order in which they come
    for key in kept_wells(expression):
        pairs[wells()[key][9], wells()[key][2]] = SMILES[int(wells()[key][2][-8:])]
    pairs_of = {}
    for pair, smiles in pairs.items():
        pairs_of.setdefault(smiles, []).append(pair)
    # as its code does after `numpy.random.seed(0)`
    drugs = np.random.RandomState(0).permutation(list(pairs_of))
    part, train, val = {}, 0, 0
    for drug in drugs:
        if train < int(len(pairs) * 0.8):
            part[drug], train = "train", train + len(pairs_of[drug])
        elif val < int(len(pairs) * 0.1):
            part[drug], val = "val", val + len(pairs_of[drug])
        else:
            part[drug] = "test"
    assert mdata.obs["split"].tolist() == [part[one] for one in mdata.obs["smiles"]]
    assert set(part.values()) == {"train", "val", "test"}
    assert mdata.obs["split"].cat.categories.tolist() == ["train", "val", "test"]
    fewer = datasets.infocore(expression, max_replicates=1)
    assert fewer.obs["split"].tolist() == [part[one] for one in fewer.obs["smiles"]]


def test_drugs_in_all_lines_with_some_replicates(expression):
    whole = datasets.infocore(expression)
    seen = whole.obs.astype(str).groupby("compound")["cell_line"].nunique()
    mdata = datasets.infocore(expression, complete=True, max_replicates=1)
    assert set(mdata.obs["compound"]) == set(seen.index[seen == 9])
    assert 0 < len(set(mdata.obs["compound"])) < len(seen)
    assert mdata.obs.astype(str).groupby(["compound", "cell_line"]).size().eq(1).all()
    # the scale is that of all profiles
    rows = whole.obs_names.get_indexer(mdata.obs_names)
    np.testing.assert_array_equal(mdata["phenotype"].X, whole["phenotype"].X[rows])
    other = datasets.infocore(expression, complete=True, max_replicates=1, seed=1)
    assert list(other.obs_names) != list(mdata.obs_names)


@pytest.mark.parametrize("up", [0, 1, 2, 3])
def test_folders_above(expression, up):
    path = expression
    for _ in range(up):
        path = path.parent
    if up == 2:  # GE itself
        path = expression.parents[1]
    assert datasets.infocore(path).n_obs == len(kept_wells(expression))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_way_of_pickling_arrays(expression, protocol):
    entries = {key: (*entry[:5], np.float64(entry[5]), *entry[6:]) for key, entry in wells().items()}
    dump(expression, "inst_info_drug.pkl", OrderedDict(entries), protocol)
    dump(expression, "mol2vec_mol_repr_dict.pkl", mol2vec(), protocol)
    assert datasets.infocore(expression).n_obs == len(kept_wells(expression))


def test_entries_of_another_length_have_no_dose(expression):
    dump(expression, "inst_info_drug.pkl", {key: [*e[:10], "more", e[-1]] for key, e in wells().items()})
    mdata = datasets.infocore(expression)
    assert list(mdata.obs.columns) == ["batch", "compound", "cell_line", "smiles", "split"]
    np.testing.assert_array_equal(mdata["phenotype"].X.shape, (len(kept_wells(expression)), N_GENES))


# ---- Cell Painting ------------------------------------------------------------------------


@pytest.fixture
def morphology(tmp_path):
    folder = tmp_path / "training_CDRP_Bray2017"
    folder.mkdir()
    dump(folder, "inst_info_drug_cp.pkl", images())
    dump(folder, "mol2vec_mol_repr_dict_cp.pkl", mol2vec())
    return folder


@cache
def images() -> dict[str, list]:
    rng, found = np.random.default_rng(3), {}
    for k in range(3):
        for i in rng.permutation(N_DRUGS):
            smiles = SMILES[i] if k == 0 else f"C.{SMILES[i]}"
            found[f"well_{k}_{i}"] = [
                "plate",
                "A01",
                0,
                f"BRD-{i}",
                smiles,
                f"map_{i % 4}",
                rng.normal(0, 1, N_FEATURES),
            ]
    return found


def test_cell_painting(morphology):
    mdata = datasets.infocore(morphology, "CP")
    assert mdata.obs_names.tolist() == list(images())
    clipped = np.clip(np.stack([entry[6] for entry in images().values()]), -1, 1)
    np.testing.assert_allclose(mdata["phenotype"].X, (clipped - clipped.mean(0)) / clipped.std(0), rtol=1e-4, atol=1e-5)
    obs = mdata.obs
    assert obs["compound"].tolist() == [entry[3] for entry in images().values()]
    assert obs["batch"].tolist() == [entry[5] for entry in images().values()]
    assert obs["smiles"].tolist() == [SMILES[int(one[4:])] for one in obs["compound"]]
    assert set(mdata.obs_names) - set(mdata["molecule"].obs_names) == {f"well_{k}_{UNKNOWN}" for k in range(3)}

    drugs = list(dict.fromkeys(obs["compound"]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = torch.utils.data.random_split(drugs, [0.8, 0.1, 0.1])
    part = {drug: name for name, one in zip(("train", "val", "test"), parts, strict=True) for drug in one}
    assert obs["split"].tolist() == [part[one] for one in obs["compound"]]


def test_replicates_of_cell_painting_and_other_features(morphology):
    def lengths(smiles: pd.Series) -> AnnData:
        return AnnData(smiles.str.len().to_numpy(np.float32)[:, None], obs=pd.DataFrame(index=smiles.index))

    mdata = datasets.infocore(morphology, "CP", max_replicates=2, featurizer=lengths)
    assert mdata.obs["compound"].value_counts().eq(2).all()
    assert mdata["molecule"].X[:, 0].tolist() == [len(one) for one in mdata.obs["smiles"]]


# ---- files that are not as said -----------------------------------------------------------


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Harmful(), r"it holds (posix|nt)\.mkdir, which could run code; convert it to NumPy arrays"),
        ({"a": pd.Series([1.0])}, r"it holds pandas\."),
        ({"a": pickle.Unpickler}, r"it holds _pickle\.Unpickler"),
        ({"a": print}, r"it holds builtins\.print"),
        ([1, 2], "must hold a dictionary, and holds a list"),
        ({}, "must hold a dictionary"),
        ({"a": np.ones(2), "b": np.ones(3)}, "must hold arrays of numbers of one length"),
        ({"a": "text"}, "must hold arrays of numbers of one length"),
    ],
)
def test_pickles_that_hold_other_things_are_refused(expression, tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    dump(expression, "mol2vec_mol_repr_dict.pkl", value)
    with pytest.raises(ValueError, match=rf"mol2vec_mol_repr_dict\.pkl .*{message}"):
        datasets.infocore(expression)
    assert not (tmp_path / "harm").exists()


def test_broken_and_missing_files(expression):
    file = expression / "inst_info_drug.pkl"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"inst_info_drug\.pkl cannot be read.*uhlerlab/InfoCORE"):
        datasets.infocore(expression)
    file.write_bytes(content)
    (expression / "id_smiles").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks id_smiles\. Download GE/data from the Dropbox folder"):
        datasets.infocore(expression)
    with pytest.raises(
        FileNotFoundError, match=r"lacks inst_info_drug_cp\.pkl, mol2vec_mol_repr_dict_cp\.pkl\. Download CP"
    ):
        datasets.infocore(expression, "CP")


def test_lists_of_wells_that_run_code_are_refused(expression):
    np.save(expression / "sel_keys_dosesubset.npy", np.array([Harmful()], dtype=object))
    with pytest.raises(ValueError, match=r"sel_keys_dosesubset\.npy is no list of names: .*allow_pickle=False"):
        datasets.infocore(expression)


def changed(what):
    entries = dict(wells())
    key = next(iter(entries))
    if what == "short":
        entries[key] = entries[key][:4]
    elif what == "genes":
        entries = {key: [*entry[:-1], entry[-1][:-1]] for key, entry in entries.items()}
    elif what == "line":
        entries = {key: [*entry[:9], "X", entry[-1]] for key, entry in entries.items()}
    else:
        entries = {key: entry for key, entry in entries.items() if not key.startswith("CPC001")}
    return entries


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("short", "must hold lists of 10 or more"),
        ("genes", r"has 5 genes per profile, and ctl_dict1_mean\.pkl 6"),
        ("line", "has no well of a core cell line"),
        ("lacking", r"lacks \d+ of the wells in sel_keys_dosesubset\.npy, such as 'CPC001"),
    ],
)
def test_entries_that_are_not_as_said(expression, what, message):
    dump(expression, "inst_info_drug.pkl", changed(what))
    with pytest.raises(ValueError, match=message):
        datasets.infocore(expression)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("LINCS", {}, "dataset must be one of 'GE', 'CP'"),
        ("GE", {"max_replicates": 1.5}, "`max_replicates` must be a whole number"),
        ("CP", {"complete": True}, "`complete` is of dataset 'GE'"),
    ],
)
def test_options_that_cannot_be(expression, dataset, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.infocore(expression, dataset, **options)


def test_a_model_takes_them(expression):
    import unbraid as ub

    mdata = datasets.infocore(expression)
    ub.model.CLIP.setup_mudata(mdata)
    model = ub.model.CLIP(mdata, n_shared=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.train(max_epochs=1, split_key="split", progress_bar=False, accelerator="cpu")
    assert model.get_latent_representation().shape == (mdata.n_obs, 2)
