"""Published data sets: downloaded once, checked, and read into MuData.

Nothing is downloaded before a function is called. Where the network does not allow it, the error says
which file to fetch by hand and where to put it.
"""

from __future__ import annotations

from pathlib import Path

import pooch
import scanpy as sc
from mudata import MuData

__all__ = ["pbmc5k_citeseq", "read_10x"]

# 10x Genomics, 5k PBMC with 31 TotalSeq-B antibodies, v3 chemistry, Cell Ranger 3.0.2 (CC BY 4.0)
_PBMC5K_URL = (
    "https://cf.10xgenomics.com/samples/cell-exp/3.0.2/5k_pbmc_protein_v3/"
    "5k_pbmc_protein_v3_filtered_feature_bc_matrix.h5"
)
_PBMC5K_HASH = "md5:3366a47283177fe9af143d5819fad61f"
_FEATURE_TYPES = {"Gene Expression": "rna", "Antibody Capture": "prot", "Peaks": "atac"}


def pbmc5k_citeseq(path: str | Path | None = None) -> MuData:
    """5,247 blood cells with RNA and 32 surface proteins, raw counts, without labels (10x Genomics; 17 MB).

    Parameters
    ----------
    path
        Folder of the file; the user's cache folder by default.

    Returns
    -------
    MuData with modalities ``rna`` and ``prot``.

    Raises
    ------
    OSError
        If the file is not there and cannot be downloaded.
    """
    folder = Path(path) if path is not None else Path(pooch.os_cache("unbraid"))
    name = _PBMC5K_URL.rsplit("/", 1)[1]
    try:
        file = pooch.retrieve(_PBMC5K_URL, known_hash=_PBMC5K_HASH, fname=name, path=folder)
    except OSError as error:
        raise OSError(
            f"{name} is not in {folder} and could not be downloaded ({type(error).__name__}). "
            f"Fetch it from {_PBMC5K_URL} ({_PBMC5K_HASH}) and put it there."
        ) from error
    return read_10x(file)


def read_10x(path: str | Path) -> MuData:
    """Read a feature-barcode matrix of Cell Ranger (``.h5``) into one modality per feature type.

    Parameters
    ----------
    path
        File of Cell Ranger 3 or later, with several feature types.

    Returns
    -------
    MuData with ``rna``, ``prot`` and ``atac``, as far as they are there; further types keep their own
    names. Counts are in ``X`` (CSR, float32), feature names are made unique.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds one feature type only.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"No file {path}.")
    adata = sc.read_10x_h5(path, gex_only=False)
    adata.var_names_make_unique()
    types = adata.var["feature_types"].astype(str)
    if types.nunique() < 2:
        raise ValueError(f"{path} holds only {types.iloc[0]!r}; a split needs at least two feature types.")
    modalities = {}
    for feature_type in types.unique():
        part = adata[:, (types == feature_type).to_numpy()].copy()
        modalities[_FEATURE_TYPES.get(feature_type, feature_type)] = part
    return MuData(modalities)
