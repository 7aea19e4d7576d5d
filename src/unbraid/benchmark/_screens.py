"""Drug screens of the experiments: molecules and phenotypes by compound, from whatever files there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid import pp
from unbraid._messages import suggest
from unbraid.data import datasets, simulate

if TYPE_CHECKING:
    from pathlib import Path

    from mudata import MuData

LEAST_LINES = 20  # cell lines of a tissue that tell a correlation


def simulated(seed: int) -> MuData:
    """A simulated screen without its untreated wells, whose effects are weak beside plates and states.

    Parameters
    ----------
    seed
        Of the simulation.
    """
    mdata = simulate.drug_screen(
        400, 4, activity_share=0.1, plate_share=0.3, compounds_per_plate=100, confounding=0.8, seed=seed
    )
    return mdata[mdata.obs["compound"].notna().to_numpy()].copy()


def measured(path: Path, molecule: str, phenotype: str) -> MuData:
    """Two modalities of a file with an ``obs`` column ``smiles``; constant and incomplete features dropped.

    Parameters
    ----------
    path
        MuData file.
    molecule
        Name of the modality with molecules.
    phenotype
        Name of the one with phenotypes; ``"a+b"`` puts two side by side.

    Raises
    ------
    KeyError
        If a modality or the SMILES are not there.
    """
    given = mudata.read_h5mu(path)
    for name in (molecule, *phenotype.split("+")):
        if name not in given.mod:
            raise KeyError(f"No modality {name!r} in the MuData. {suggest(name, given.mod)}")
    if "smiles" not in given.obs:
        raise KeyError(f"No column 'smiles' in obs. {suggest('smiles', given.obs)}")
    phenotypes = np.hstack([_dense(given, name) for name in phenotype.split("+")])
    phenotypes = phenotypes[:, np.isfinite(phenotypes).all(axis=0)]
    return _assembled(_dense(given, molecule), phenotypes, given.obs["smiles"])


def responses(path: Path) -> MuData:
    """How cell lines respond to each drug of GDSC, a feature per line.

    A missing response is that of the drug, plus that of the line, less the mean of all.

    Parameters
    ----------
    path
        MuData file with modalities ``mol`` and ``response``, drugs by cell lines.
    """
    given = mudata.read_h5mu(path)
    x = _dense(given, "response").astype(np.float64)
    expected = np.nanmean(x, axis=1, keepdims=True) + np.nanmean(x, axis=0) - np.nanmean(x)
    x = np.where(np.isfinite(x), x, expected)
    return _assembled(_dense(given, "mol"), x, given.obs["smiles"])


def signatures(path: Path, drugs: Path) -> MuData:
    r"""Which genes go with sensitivity to each drug of GDSC, in every tissue: a profile per drug and tissue.

    Of drug k in tissue t with n cell lines, at least 20, the profile is :math:`\sqrt{n - 3}\,\mathrm{artanh}\, r` of
    the correlations r between the expression of every gene and :math:`-\ln \mathrm{IC}_{50}` over these lines.
    Profiles of one drug in several tissues are its replicates.

    Parameters
    ----------
    path
        MuData file with modalities ``rna`` and ``drug_response``, cell lines by genes and drugs, and ``obs["tissue"]``.
    drugs
        MuData file with a modality ``mol`` and ``obs["smiles"]`` by name of the drug.
    """
    lines, given = mudata.read_h5mu(path), mudata.read_h5mu(drugs)
    names = [name for name in lines["drug_response"].var_names if name in given.obs_names]
    tissue = lines.obs["tissue"].astype(str).to_numpy()
    expression = _dense(lines, "rna").astype(np.float64)
    response = _dense(lines, "drug_response").astype(np.float64)
    response = response[:, lines["drug_response"].var_names.get_indexer(names)]
    rows, obs = [], []
    for t in sorted(set(tissue) - {"unknown"}):
        for k, name in enumerate(names):
            tested = (tissue == t) & np.isfinite(response[:, k])
            if tested.sum() < LEAST_LINES or response[tested, k].std() == 0:
                continue
            x, y = expression[tested] - expression[tested].mean(axis=0), -response[tested, k]
            length = np.linalg.norm(x, axis=0) * np.linalg.norm(y - y.mean())
            r = x.T @ (y - y.mean()) / np.where(length > 0, length, np.inf)
            rows.append(np.sqrt(tested.sum() - 3) * np.arctanh(np.clip(r, -0.999, 0.999)))
            obs.append((name, t))
    drug, cell_line = map(list, zip(*obs, strict=True))
    position = given.obs_names.get_indexer(drug)
    molecules = _dense(given, "mol")[position]
    smiles = pd.Series(given.obs["smiles"].to_numpy()[position], index=[f"{d} in {t}" for d, t in obs])
    mdata = _assembled(molecules, np.array(rows), smiles)
    mdata.obs["cell_line"] = pd.Categorical(cell_line)
    return mdata


def published(path: Path, name: str) -> MuData:
    """LINCS or RXRX19a as DisentangledSSL takes them; see :mod:`unbraid.data.datasets`.

    Parameters
    ----------
    path
        Folder of the official files.
    name
        ``"lincs"`` or ``"rxrx19a"``.
    """
    if name == "lincs":
        mdata = datasets.infocore(path, "GE", complete=True, max_replicates=3)
    else:
        mdata = datasets.rxrx19a(path, cell_type="HRCE", disease_condition="Active SARS-CoV-2", level="dose")
    both = mdata.obs_names.isin(mdata["molecule"].obs_names)
    return mdata if both.all() else mdata[both].copy()


def _dense(mdata: MuData, modality: str) -> np.ndarray:
    """Values of a modality in the order of the MuData's observations, which all have it."""
    x = mdata[modality][mdata.obs_names].X
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x)


def _assembled(molecules: np.ndarray, phenotypes: np.ndarray, smiles: pd.Series) -> MuData:
    """Both modalities without constant features, and the compound and scaffold of every row."""
    mod = {}
    for name, x in {"molecule": molecules, "phenotype": phenotypes}.items():
        x = x.astype(np.float32)
        x = x[:, x.std(axis=0) > 0]
        names = [f"{name}_{j}" for j in range(x.shape[1])]
        mod[name] = AnnData(x, obs=pd.DataFrame(index=smiles.index), var=pd.DataFrame(index=names))
    mdata = mudata.MuData(mod)
    for by in ("compound", "scaffold"):
        mdata.obs[by] = pp.molecular_groups(smiles, by=by).reindex(mdata.obs_names).astype(str).to_numpy()
    return mdata
