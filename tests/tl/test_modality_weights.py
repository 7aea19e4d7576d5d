"""What `unbraid.tl.modality_weights` promises."""

import sys

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

from unbraid.tl import modality_weights


def mudata_of(codes, names=None):
    mods = {}
    for m, code in codes.items():
        index = [f"c{i}" for i in range(len(code))] if names is None else names[m]
        mods[m] = AnnData(np.ones((len(code), 1), np.float32), obs=pd.DataFrame(index=index), obsm={"Z_s": code})
        mods[m].var_names = [m]
    return MuData(mods)


@pytest.fixture
def toy():
    """Two labels that RNA tells apart and protein does not."""
    rng = np.random.default_rng(0)
    label = np.repeat([0.0, 1.0], 40)
    mdata = mudata_of({"rna": rng.normal(size=(80, 2)) + 9 * label[:, None], "prot": rng.normal(size=(80, 2))})
    mdata.obs["label"] = label.astype(str)
    return mdata


def naive_shares(code, label, k):
    distance = np.linalg.norm(code[:, None] - code[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :k]
    return (label[nearest] == label[:, None]).mean(axis=1)


@pytest.mark.parametrize(("k", "smoothing"), [(10, 1.0), (5, 0.5)])
def test_theta_is_the_log_ratio_of_smoothed_counts(toy, k, smoothing):
    modality_weights(toy, labels="label", n_neighbors=k, smoothing=smoothing)
    label = toy.obs["label"].to_numpy()
    rna, prot = (naive_shares(toy[m].obsm["Z_s"], label, k) for m in ("rna", "prot"))
    np.testing.assert_allclose(toy.obs["theta_share:rna"], rna)
    np.testing.assert_allclose(toy.obs["theta_share:prot"], prot)
    np.testing.assert_allclose(toy.obs["theta"], np.log((k * rna + smoothing) / (k * prot + smoothing)))
    assert toy.uns["theta"]["n_obs"] == 80
    assert (rna == 1).all()
    assert toy.obs["theta"].mean() > 0.3


def test_two_of_many_modalities_are_the_case_of_two(toy):
    rng = np.random.default_rng(1)
    codes = {m: toy[m].obsm["Z_s"] for m in toy.mod} | {"atac": rng.normal(size=(80, 3))}
    three = mudata_of(codes)
    label = toy.obs["label"].to_numpy()
    table = modality_weights(three, labels=label, inplace=False)
    shares = np.stack([naive_shares(code, label, 10) for code in codes.values()])
    log = np.log(10 * shares + 1)
    for i, m in enumerate(codes):
        np.testing.assert_allclose(table[f"theta:{m}"], log[i] - np.delete(log, i, axis=0).mean(0))
    assert "theta:rna" not in three.obs
    pair = modality_weights(three, labels=label, modalities=["rna", "prot"], inplace=False)["theta"]
    np.testing.assert_allclose(pair, log[0] - log[1])
    reverse = modality_weights(three, labels=label, modalities=["prot", "rna"], inplace=False)["theta"]
    np.testing.assert_allclose(reverse, -pair)


def test_cells_without_modality_code_or_label_have_none(toy):
    names = {"rna": [f"c{i}" for i in range(70)], "prot": [f"c{i}" for i in range(10, 80)][::-1]}
    codes = {"rna": toy["rna"].obsm["Z_s"][:70], "prot": toy["prot"].obsm["Z_s"][10:][::-1].copy()}
    codes["rna"][20] = np.nan
    mdata = mudata_of(codes, names)
    mdata.obs["label"] = toy.obs["label"].reindex(mdata.obs_names).mask(mdata.obs_names == "c30")
    theta = modality_weights(mdata, labels="label", inplace=False)["theta"]
    rows = [i for i in range(10, 70) if i not in (20, 30)]
    assert set(theta.index[theta.notna()]) == {f"c{i}" for i in rows}
    label = toy.obs["label"].to_numpy()[rows]
    rna, prot = (naive_shares(toy[m].obsm["Z_s"][rows], label, 10) for m in ("rna", "prot"))
    np.testing.assert_allclose(theta[[f"c{i}" for i in rows]], np.log((10 * rna + 1) / (10 * prot + 1)))


def test_wnn_is_that_of_muon(toy):
    """Takes a minute, most of it compiling, and runs where the extra is installed."""
    pytest.importorskip("muon")
    toy["prot"].obsm["Z_s"][3] = np.nan
    modality_weights(toy, method="wnn", n_neighbors=5)
    weights = toy.obs[["wnn:rna", "wnn:prot"]]
    assert weights.isna().all(axis=1).sum() == 1
    assert toy.uns["wnn"]["n_dropped"] == 1
    complete = weights.dropna()
    np.testing.assert_allclose(complete.sum(axis=1), 1, rtol=1e-5)
    assert complete.to_numpy().min() > 0
    assert complete.std().min() > 0.01  # cells differ


def test_wnn_without_muon_names_the_mend(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, "muon", None)
    with pytest.raises(ImportError, match=r"unbraid\[baselines\]"):
        modality_weights(toy, method="wnn")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": None}, ValueError, "labels are needed"),
        ({"labels": "lable"}, KeyError, "label"),
        ({"modalities": ["rna"]}, ValueError, "at least two"),
        ({"modalities": ["rna", "adt"]}, KeyError, "adt"),
        ({"specific": "Z_x"}, KeyError, "Z_x"),
        ({"specific": {"rna": "Z_s"}}, KeyError, "prot"),
        ({"n_neighbors": 80}, ValueError, "80 cells"),
        ({"smoothing": -1}, ValueError, "smoothing"),
        ({"method": "knn"}, ValueError, "method must be one of"),
    ],
)
def test_bad_input(toy, arguments, error, message):
    with pytest.raises(error, match=message):
        modality_weights(toy, **({"labels": "label"} | arguments))
