"""Published data sets: downloaded once, checked, and read into MuData.

Nothing is downloaded before a function is called. Where the network does not allow it, the error says
which file to fetch by hand and where to put it.
"""

from __future__ import annotations

import gzip
import re
import warnings
from contextlib import nullcontext
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pooch
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from mudata import MuData

from unbraid.data._celeba import celeba_hq
from unbraid.data._cell_profiles import cell_profiles
from unbraid.data._cub import cub_captions
from unbraid.data._cubicc import cubicc
from unbraid.data._ddmnist import ddmnist
from unbraid.data._infocore import infocore
from unbraid.data._lincs import lincs_l1000, read_gctx
from unbraid.data._polymnist import polymnist_quadrant
from unbraid.data._rxrx19a import rxrx19a
from unbraid.data._tcga import tcga_mortality
from unbraid.data._toxcast import toxcast

__all__ = [
    "bone_marrow_citeseq",
    "celeba_hq",
    "cell_profiles",
    "cub_captions",
    "cubicc",
    "ddmnist",
    "infocore",
    "lincs_l1000",
    "pbmc5k_citeseq",
    "polymnist_quadrant",
    "read_10x",
    "read_gctx",
    "rxrx19a",
    "tcga_mortality",
    "toxcast",
]

# 10x Genomics, 5k PBMC with 31 TotalSeq-B antibodies, v3 chemistry, Cell Ranger 3.0.2 (CC BY 4.0)
_PBMC5K_URL = (
    "https://cf.10xgenomics.com/samples/cell-exp/3.0.2/5k_pbmc_protein_v3/"
    "5k_pbmc_protein_v3_filtered_feature_bc_matrix.h5"
)
_PBMC5K_HASH = "md5:3366a47283177fe9af143d5819fad61f"
# GEO GSE128639 (Stuart et al. 2019) and the annotation that SeuratData publishes with it as "bmcite", as a table
_GEO_SAMPLES = "https://ftp.ncbi.nlm.nih.gov/geo/samples/GSM3681nnn"
_BONE_MARROW_URLS = {
    "GSM3681518_MNC_RNA_counts.tsv.gz": f"{_GEO_SAMPLES}/GSM3681518/suppl/GSM3681518_MNC_RNA_counts.tsv.gz",
    "GSM3681519_MNC_ADT_counts.tsv.gz": f"{_GEO_SAMPLES}/GSM3681519/suppl/GSM3681519_MNC_ADT_counts.tsv.gz",
    "bmcite_metadata.csv.gz": "https://raw.githubusercontent.com/naity/citeseq_autoencoder/"
    "407a459c69c2ae2cbd46cea12d1baedd038828da/data/metadata.csv.gz",
}
_BONE_MARROW_COLUMNS = {"donor": "donor", "celltype.l1": "cell_type_l1", "celltype.l2": "cell_type_l2"}
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


def bone_marrow_citeseq(path: str | Path | None = None) -> MuData:
    """30,672 bone-marrow cells with 17,009 genes and 25 surface proteins, raw counts, with labels (about 45 MB).

    The cells of Stuart et al. (2019) [1]_, GEO GSE128639, that SeuratData publishes annotated as ``bmcite``: the data
    of the CITE-seq experiments of IndiSeek and of the weighted nearest neighbours [2]_. GEO has the counts of 33,454
    cells; the annotation says which of them are kept.

    Parameters
    ----------
    path
        Folder of the three files, the user's cache folder by default: ``GSM3681518_MNC_RNA_counts.tsv.gz`` and
        ``GSM3681519_MNC_ADT_counts.tsv.gz`` of GEO, and ``bmcite_metadata.csv.gz``, the annotation. In R the last is
        ``write.csv(bmcite@meta.data, gzfile("bmcite_metadata.csv.gz"))``. Files that are not there are downloaded.

    Returns
    -------
    MuData with modalities ``rna`` and ``prot``; counts in ``X`` (CSR, float32), cells in the order of the annotation.
    A cell whose counts a file lacks is absent from that modality. Columns of ``obs``: ``donor``, ``cell_type_l1`` (5
    types), ``cell_type_l2`` (27 types) and, where the annotation has it, ``wnn_rna_weight``, the published weight of
    RNA of the weighted nearest neighbours.

    Raises
    ------
    OSError
        If a file is not there and cannot be downloaded; the message says which to fetch, from where, and where to put
        them.
    ValueError
        If a file is not what its name says.

    Warns
    -----
    UserWarning
        Annotated cells are in neither file of counts.

    Notes
    -----
    No checksums of these files are published, so downloads are not checked against one; an incomplete or a wrong file
    is recognised by its contents. Reading takes about a minute, and no dense matrix is made.

    References
    ----------
    .. [1] Stuart et al. (2019), Comprehensive integration of single-cell data. Cell 177, 1888-1902.
    .. [2] Hao et al. (2021), Integrated analysis of multimodal single-cell data. Cell 184, 3573-3587.
    """
    folder = Path(path) if path is not None else Path(pooch.os_cache("unbraid"))
    files = _bone_marrow_files(folder)
    rna_file, prot_file, annotation_file = files
    annotation = _read_annotation(annotation_file)
    adatas = {"rna": _read_counts_table(rna_file), "prot": _read_counts_table(prot_file)}
    if adatas["rna"].n_vars <= adatas["prot"].n_vars:
        raise ValueError(
            f"{rna_file} has {adatas['rna'].n_vars:,} features and {prot_file.name} {adatas['prot'].n_vars:,}: "
            "there should be more genes than proteins. Have the files changed places?"
        )
    modalities = {}
    for (name, adata), file in zip(adatas.items(), files, strict=False):
        rows = adata.obs_names.get_indexer(annotation.index)
        if not (rows >= 0).any():
            raise ValueError(
                f"{file} has none of the {len(annotation):,} cells of {annotation_file.name}: "
                f"its cells are named like {adata.obs_names[0]!r}, those like {annotation.index[0]!r}."
            )
        modalities[name] = adata[rows[rows >= 0]].copy()
    found = np.logical_or.reduce([annotation.index.isin(adata.obs_names) for adata in modalities.values()])
    if not found.all():
        warnings.warn(
            f"{int((~found).sum()):,} of the {len(found):,} cells of {annotation_file.name} are in neither file of "
            "counts, and are left out.",
            UserWarning,
            stacklevel=2,
        )
    annotation = annotation[found]
    # mudata 0.3 pulls the modalities' columns up unless told not to; 0.4 has no such option
    quiet = mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()
    with quiet:
        mdata = MuData(modalities, obs=pd.DataFrame(index=annotation.index))
        for column in annotation:
            mdata.obs[column] = annotation[column].reindex(mdata.obs_names)
    return mdata


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


# ---- helpers ------------------------------------------------------------------------------


def _bone_marrow_files(folder: Path) -> list[Path]:
    """The three files, downloaded if need be; one error about all that are missing."""
    files, error = [], None
    for name, url in _BONE_MARROW_URLS.items():
        files.append(folder / name)
        if not files[-1].exists() and error is None:
            try:
                pooch.retrieve(url, known_hash=None, fname=name, path=folder)
            except OSError as reason:
                error = reason
    if error is not None:
        missing = [f"{_BONE_MARROW_URLS[file.name]} as {file.name}" for file in files if not file.exists()]
        raise OSError(
            f"Files of the bone-marrow data are not in {folder} and could not be downloaded "
            f"({type(error).__name__}). Fetch {'; '.join(missing)}; and put them there."
        ) from error
    return files


def _read_annotation(path: Path) -> pd.DataFrame:
    """Labels by barcode, from a table with the columns of SeuratData."""
    try:
        table = pd.read_csv(path, index_col=0)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no complete table of annotations (.csv.gz): {error}. Fetch it anew.") from error
    if missing := [column for column in _BONE_MARROW_COLUMNS if column not in table]:
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(map(str, table.columns))}.")
    table.index = pd.Index([_barcode(name) for name in table.index.astype(str)])
    if not table.index.is_unique:
        raise ValueError(f"{path} has {table.index[table.index.duplicated()][0]!r} more than once.")
    labels = table[list(_BONE_MARROW_COLUMNS)].rename(columns=_BONE_MARROW_COLUMNS).astype("category")
    if "RNA.weight" in table:
        labels["wnn_rna_weight"] = table["RNA.weight"].astype(float)
    return labels


def _read_counts_table(path: Path) -> AnnData:
    """Cells by features from a gzipped, tab-separated table of features by cells, one feature at a time."""
    features, cells, counts = [], [], []
    try:
        with gzip.open(path, "rb") as file:
            header = file.readline().rstrip(b"\r\n").split(b"\t")
            names = None
            for line in file:
                feature, _, values = line.rstrip(b"\r\n").partition(b"\t")
                n_values, where, which = _nonzero_values(values)
                if names is None:  # R writes no name above the column of features, others do
                    names = header[len(header) - n_values :]
                if n_values != len(names) or len(header) - n_values not in (0, 1):
                    raise ValueError(f"row {len(features) + 1} has {n_values:,} values below {len(header):,} names")
                features.append(feature.strip(b'"').decode())
                cells.append(where)
                counts.append(which)
        if not features:
            raise ValueError("it has no rows")
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is no complete table of counts (.tsv.gz, features by cells): {error}. Fetch it anew."
        ) from error
    data = np.concatenate(counts).astype(np.float32)
    if (data < 0).any() or (data != np.round(data)).any():
        raise ValueError(f"{path} holds values that are no counts, such as {data[(data < 0) | (data % 1 != 0)][0]:g}.")
    ends = np.cumsum([0, *map(len, cells)])
    x = sp.csc_matrix((data, np.concatenate(cells), ends), shape=(len(names), len(features))).tocsr()
    x.eliminate_zeros()
    obs = pd.DataFrame(index=[_barcode(name.strip(b'"').decode()) for name in names])
    if not obs.index.is_unique:
        raise ValueError(f"{path} has the cell {obs.index[obs.index.duplicated()][0]!r} more than once.")
    adata = AnnData(x, obs=obs, var=pd.DataFrame(index=features))
    adata.var_names_make_unique()
    return adata


def _nonzero_values(values: bytes) -> tuple[int, np.ndarray, np.ndarray]:
    """How many tab-separated numbers there are, and positions and values of those that are not the text ``0``."""
    text = np.frombuffer(values + b"\t", dtype=np.uint8)
    ends = np.flatnonzero(text == ord("\t"))
    starts = np.append(0, ends[:-1] + 1)
    is_zero = (ends - starts == 1) & (text[starts] == ord("0"))
    where = np.flatnonzero(~is_zero)
    numbers = [float(values[a:b]) for a, b in zip(starts[where].tolist(), ends[where].tolist(), strict=True)]
    return len(ends), where, np.array(numbers)


def _barcode(name: str) -> str:
    """The barcode as Cell Ranger writes it; R turns its hyphen into a full stop."""
    return re.sub(r"\.(\d+)$", r"-\1", name)
