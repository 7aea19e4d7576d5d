"""RxRx19a: drugs on cells infected with SARS-CoV-2, seen through the microscope."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import check_option, suggest
from unbraid.data._screens import clean_smiles, known, need_columns, read_parts, read_table, screen, without_missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from mudata import MuData

_SOURCE = (
    "Download RxRx19a-metadata.zip and RxRx19a-DL-embeddings.zip from https://www.rxrx.ai/rxrx19a, and unpack "
    "metadata.csv and embeddings.csv there."
)
_COLUMNS = {
    "site_id": "site_id",
    "well_id": "well_id",
    "treatment": "compound",
    "SMILES": "smiles",
    "cell_type": "cell_line",
    "disease_condition": "disease_condition",
    "treatment_conc": "dose",
    "experiment": "batch",
    "plate": "plate",
    "well": "well",
    "site": "site",
}
# what a profile is the mean over, and what is the same in all of it
_LEVELS = {
    "site": (["site_id"], ["batch", "plate", "well", "site"]),
    "well": (["well_id"], ["batch", "plate", "well"]),
    "dose": (["cell_line", "disease_condition", "compound", "dose"], []),
}
_LINES_AT_A_TIME = 10_000


def rxrx19a(
    path: str | Path,
    *,
    features: str | Path = "embeddings.csv",
    cell_type: str | None = None,
    disease_condition: str | None = None,
    level: Literal["site", "well", "dose"] = "well",
    controls: bool = False,
    featurizer: Callable[[pd.Series], AnnData] | None = None,
) -> MuData:
    """Drugs against SARS-CoV-2 in RxRx19a: morphology of infected cells and structures of the drugs (CC BY 4.0).

    305,520 sites of wells with human renal epithelial (HRCE) or Vero cells [1]_. DisentangledSSL [2]_ takes HRCE under
    active virus::

        rxrx19a(folder, cell_type="HRCE", disease_condition="Active SARS-CoV-2")

    Parameters
    ----------
    path
        Folder with ``metadata.csv`` and, by default, ``embeddings.csv`` (1.4 GB).
    features
        Table of the profiles, a file in this folder or elsewhere (``.csv``, ``.csv.gz`` or ``.parquet``), with a column
        ``site_id`` or ``well_id`` and one per feature: Recursion's embeddings of 1,024 numbers per site, or features of
        CellProfiler that you have computed.
    cell_type
        ``"HRCE"`` or ``"VERO"``; both by default.
    disease_condition
        Such as ``"Active SARS-CoV-2"``, ``"UV Inactivated SARS-CoV-2"`` or ``"Mock"``; all by default.
    level
        What is one profile: a ``site``; a ``well``, the mean over its (up to four) sites; or a ``dose``, the mean over
        all sites with the same cells, condition, drug and concentration.
    controls
        Whether to keep wells without a drug. They have no molecule and are absent from ``molecule``.
    featurizer
        Makes ``molecule``: takes a series of SMILES and returns an AnnData of those it can read, under their names. By
        default :func:`unbraid.pp.molecules` (with ``invalid="drop"``).

    Returns
    -------
    MuData with modalities ``molecule`` and ``phenotype`` (float32). Columns of ``obs``: ``compound``, ``smiles``,
    ``cell_line``, ``disease_condition``, ``dose`` (micromolar), and as far as ``level`` leaves them ``batch`` (the
    experiment), ``plate``, ``well`` and ``site``.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message says which to download, and where to put it.
    ValueError
        If a file is not what its name says, there is no such cell type or condition, or nothing is left.

    Warns
    -----
    UserWarning
        Drugs have no structure, or one that cannot be read; or features have missing values, which CellProfiler writes,
        and are left out.

    Notes
    -----
    DisentangledSSL has features of CellProfiler and 10,117 profiles of 1,661 drugs, about six per drug. Such features
    are not part of RxRx19a and not published by the authors. Six is the number of concentrations that each drug was
    tested at, in six wells each, so that ``level="dose"`` is our guess of what they call a profile.

    What is behind a SMILES (ChemAxon's marks of relative stereochemistry) is left out. Only rows that are wanted are
    kept while the features are read, a few thousand lines at a time.

    The reader was tested on files of the same format made for the test, not on the original ones.

    References
    ----------
    .. [1] Heiser et al. (2020), Identification of potential treatments for COVID-19 through artificial
       intelligence-enabled phenomic analysis of human cells infected with SARS-CoV-2. bioRxiv 2020.04.21.054387.
    .. [2] Wang et al. (2025), An information criterion for controlled disentanglement of multimodal data. ICLR.
    """
    check_option("level", level, _LEVELS)
    folder = Path(path)
    table = _read_metadata(folder / "metadata.csv")
    for name, wanted in {"cell_type": cell_type, "disease_condition": disease_condition}.items():
        if wanted is not None:
            column = table[_COLUMNS[name]]
            if wanted not in (there := column.dropna().unique()):
                raise ValueError(f"{folder / 'metadata.csv'} has no {name} {wanted!r}. {suggest(wanted, there)}")
            table = table[column == wanted]
    if not controls:
        table = table[table["compound"].notna()]
    if not len(table):
        raise ValueError(f"{folder / 'metadata.csv'}: no site is left of this cell type and condition.")

    keys, places = _LEVELS[level]
    table = table.assign(profile=table.groupby(keys, dropna=False, sort=False).ngroup())
    names, sums, counts = _read_features(folder / features, table)
    obs = table.drop_duplicates("profile").sort_values("profile")
    index = obs[keys[0]] if level != "dose" else "dose_" + obs["profile"].astype(str)
    obs = obs[["compound", "smiles", "cell_line", "disease_condition", "dose", *places]].set_axis(index.to_numpy())
    there = counts > 0
    x, names, finite = without_missing(sums[there] / counts[there, None], names)
    obs = obs[there][finite]
    adata = AnnData(x, obs=pd.DataFrame(index=obs.index), var=pd.DataFrame(index=names))
    return screen({"phenotype": adata}, obs, featurizer)


# ---- helpers ------------------------------------------------------------------------------


def _read_metadata(path: Path) -> pd.DataFrame:
    table = read_table(path, _SOURCE, dtype=dict.fromkeys(set(_COLUMNS) - {"treatment_conc"}, str))
    need_columns(path, table, _COLUMNS)
    table = table.rename(columns=_COLUMNS)
    if table["site_id"].duplicated().any():
        raise ValueError(f"{path} has the site {table['site_id'][table['site_id'].duplicated()].iloc[0]!r} twice.")
    table["compound"] = known(table["compound"])
    table["smiles"] = clean_smiles(table["smiles"]).where(table["compound"].notna())
    table["dose"] = pd.to_numeric(table["dose"], errors="coerce").astype(float)
    table["plate"] = table["batch"] + "_" + table["plate"]  # plates are numbered within an experiment
    return table


def _read_features(path: Path, table: pd.DataFrame) -> tuple[pd.Index, np.ndarray, np.ndarray]:
    """Names of the features, their sum per profile, and how many rows went into it."""
    head = next(read_parts(path, _SOURCE, 100))
    unit = next((one for one in ("site_id", "well_id") if one in head), None)
    if unit is None:
        raise ValueError(f"{path} has neither 'site_id' nor 'well_id'. {suggest('site_id', head.columns)}")
    if table["profile"].nunique() > table[unit].nunique():
        raise ValueError(f"{path} has one row per well: `level` must be 'well' or 'dose'.")
    names = head.select_dtypes("number").columns
    names = names[~names.isin(_COLUMNS) & ~names.str.startswith("Metadata_")]
    if not len(names):
        raise ValueError(f"{path} has no column of numbers besides {unit!r}.")
    profile = table.drop_duplicates(unit).set_index(unit)["profile"]
    n = int(table["profile"].max()) + 1
    sums, counts, seen = np.zeros((n, len(names)), dtype=np.float32), np.zeros(n, dtype=np.float32), []
    options = {"usecols": [unit, *names], "dtype": {unit: str, **dict.fromkeys(names, np.float32)}}
    for part in read_parts(path, _SOURCE, _LINES_AT_A_TIME, **options):
        part = part[part[unit].astype(str).isin(profile.index)]
        seen.append(part[unit].astype(str))
        to = profile[seen[-1]].to_numpy()
        order = np.argsort(to, kind="stable")
        starts = np.flatnonzero(np.diff(to[order], prepend=-1))
        if len(starts):
            sums[to[order][starts]] += np.add.reduceat(part[names].to_numpy(np.float32)[order], starts, axis=0)
            counts += np.bincount(to, minlength=n)
    seen = pd.concat(seen, ignore_index=True)
    if not seen.is_unique:
        raise ValueError(f"{path} has {unit} {seen[seen.duplicated()].iloc[0]!r} more than once.")
    if not len(seen):
        raise ValueError(
            f"{path} has none of the {len(profile):,} wanted rows of metadata.csv, such as {unit} {profile.index[0]!r}."
        )
    return names, sums, counts
