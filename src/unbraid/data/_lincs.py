"""LINCS L1000: how drugs change the expression of genes, from the files of the Connectivity Map."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import check_option, check_whole, suggest
from unbraid.data._screens import (
    chosen,
    clean_smiles,
    draw_replicates,
    hours,
    known,
    micromolar,
    need_columns,
    read_parts,
    read_table,
    screen,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mudata import MuData

CORE_CELL_LINES = ("A375", "A549", "HA1E", "HCC515", "HEPG2", "HT29", "MCF7", "PC3", "VCAP")
_MATRIX, _COLUMNS, _ROWS = "/0/DATA/0/matrix", "/0/META/COL", "/0/META/ROW"
_BLOCK_BYTES = 1 << 26
_LINES_AT_A_TIME = 200_000
_GEO = {
    "GSE92742": "https://ftp.ncbi.nlm.nih.gov/geo/series/GSE92nnn/GSE92742/suppl/",
    "GSE70138": "https://ftp.ncbi.nlm.nih.gov/geo/series/GSE70nnn/GSE70138/suppl/",
}
_CLUE = "https://s3.amazonaws.com/macchiato.clue.io/builds/LINCS2020/ (https://clue.io/data/CMap2020#LINCS2020)"
_MATRICES = (
    "GSE92742_Broad_LINCS_Level5_COMPZ.MODZ_n473647x12328.gctx.gz, "
    "GSE70138_Broad_LINCS_Level5_COMPZ_n118050x12328_2017-03-06.gctx.gz or level5_beta_trt_cp_n720216x12328.gctx"
)


class _Release(NamedTuple):
    """File names (patterns) and columns of a release."""

    source: str
    signatures: str
    compounds: str
    genes: str
    cell_line: str
    name: str
    gene: tuple[str, str]
    landmark: tuple[str, str]


def _release(matrix: Path) -> _Release:
    accession = next((one for one in _GEO if matrix.name.startswith(one)), None)
    if accession is None:
        names = [rf"{what}info_beta\.txt(\.gz)?" for what in ("sig", "compound", "gene")]
        landmark = ("feature_space", "landmark")
        return _Release(_CLUE, *names, "cell_iname", "cmap_name", ("gene_id", "gene_symbol"), landmark)
    # dates end some names; GSE92742 also has a gene_info_delta_landmark, which is another table
    names = [
        rf"{accession}_Broad_LINCS_{what}_info(_\d{{4}}-\d\d-\d\d)?\.txt(\.gz)?" for what in ("sig", "pert", "gene")
    ]
    return _Release(
        _GEO[accession], *names, "cell_id", "pert_iname", ("pr_gene_id", "pr_gene_symbol"), ("pr_is_lm", "1")
    )


def lincs_l1000(
    path: str | Path,
    *,
    genes: Literal["landmark", "all"] = "landmark",
    cell_lines: Sequence[str] | Literal["core"] | None = None,
    complete: bool = False,
    where: str | None = None,
    max_replicates: int | None = None,
    featurizer: Callable[[pd.Series], AnnData] | None = None,
    seed: int = 0,
) -> MuData:
    """Signatures of compounds in LINCS L1000 (level 5) with the structures of the compounds.

    Both phases of GEO [1]_ and the release of 2020 (CMap LINCS 2020) are read. Only compound treatments (``trt_cp``)
    are, and of the matrix only the blocks that hold wanted signatures.

    Parameters
    ----------
    path
        Folder with one ``.gctx`` of level 5, or this file; its tables lie beside it, packed (``.gz``) or not:

        - phase I, GEO GSE92742: ``GSE92742_Broad_LINCS_Level5_COMPZ.MODZ_n473647x12328.gctx`` (unpacked) with
          ``GSE92742_Broad_LINCS_sig_info.txt``, ``..._pert_info.txt`` and ``..._gene_info.txt``;
        - phase II, GEO GSE70138: the same, the names end in dates;
        - 2020: ``level5_beta_trt_cp_n720216x12328.gctx`` (33 GB) with ``siginfo_beta.txt``, ``compoundinfo_beta.txt``
          and ``geneinfo_beta.txt``.
    genes
        The 978 measured landmark genes, or all 12,328 with those inferred from them.
    cell_lines
        Names of those to keep, ``"core"`` for the nine in which most compounds were tested (A375, A549, HA1E, HCC515,
        HEPG2, HT29, MCF7, PC3, VCAP), or all.
    complete
        Keep only compounds seen in every one of the cell lines, as DisentangledSSL [2]_ does with the core ones.
    where
        Condition on the table of the signatures, as for :meth:`pandas.DataFrame.query`, such as ``"time == 24 and
        dose > 5"``; besides the columns of ``obs`` it may name those of the file, such as ``qc_pass`` or ``is_hiq`` of
        2020.
    max_replicates
        Largest number of signatures per compound and cell line, drawn at random. DisentangledSSL has three: 86,833
        profiles of 3,315 drugs in nine cell lines.
    featurizer
        Makes ``molecule``: takes a series of SMILES and returns an AnnData of those it can read, under their names. By
        default :func:`unbraid.pp.molecules` (with ``invalid="drop"``).
    seed
        Of ``max_replicates``.

    Returns
    -------
    MuData with modalities ``molecule`` and ``phenotype``: z-scores of the genes against the plate (float32), symbols as
    ``var_names``, Entrez numbers in ``var["gene_id"]``. Columns of ``obs``: ``compound`` (``pert_id``), ``name``,
    ``smiles``, ``cell_line``, ``dose`` (micromolar, missing where the file has another unit), ``time`` (hours) and
    ``batch``, the plates that the signature comes from (what is before the colon of its name; it has the cell line in
    it).

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message says which to download, and where to put it.
    ValueError
        If a file is not what its name says, the folder has several matrices, or nothing is left.

    Warns
    -----
    UserWarning
        Compounds have no structure (CMap withholds some), or one that cannot be read; these signatures are absent from
        ``molecule``.

    Notes
    -----
    GEO states no terms of its own for these files; CLUE's apply to the release of 2020 (not read here). The result
    takes ``4 * n_genes`` bytes per signature, and reading the matrix 64 MB more.

    DisentangledSSL itself takes its LINCS data from InfoCORE, :func:`~unbraid.data.datasets.infocore`, which starts
    from level 3 (single wells against the controls of the plate); signatures of level 5 are averages over such wells.

    The reader was tested on files of the same format made for the test, not on the original ones.

    References
    ----------
    .. [1] Subramanian et al. (2017), A next generation Connectivity Map: L1000 platform and the first 1,000,000
       profiles. Cell 171, 1437-1452.
    .. [2] Wang et al. (2025), An information criterion for controlled disentanglement of multimodal data. ICLR.

    Examples
    --------
    The choice of DisentangledSSL, on level 5::

        lincs_l1000("LINCS2020", cell_lines="core", complete=True, max_replicates=3)
    """
    check_option("genes", genes, ("landmark", "all"))
    if max_replicates is not None:
        check_whole("max_replicates", max_replicates, 1)
    matrix = _find_matrix(Path(path))
    release = _release(matrix)
    advice = f"Download it from {release.source}, and put it into {matrix.parent}."
    table = _read_signatures(matrix.parent, release, advice, where)
    with _open(matrix) as file:
        ids = pd.Index(_ids(file, _COLUMNS))
    table["column"] = ids.get_indexer(table.index)
    table = table[table["column"] >= 0].sort_values("column")
    if not len(table):
        raise ValueError(f"{matrix} has none of the signatures of compounds in the table beside it.")
    smiles = _read_compounds(matrix.parent, release, advice)
    table["smiles"] = table["compound"].map(smiles)
    table = _choose(table, cell_lines, complete, where, max_replicates, seed)

    gene_table = _read_genes(matrix.parent, release, advice)
    if genes == "landmark":
        gene_table = gene_table[gene_table["landmark"]]
    phenotype = read_gctx(matrix, rows=gene_table.index, columns=table.index)
    phenotype = AnnData(
        phenotype.X,
        obs=pd.DataFrame(index=table.index),
        var=pd.DataFrame({"gene_id": gene_table.index}, index=pd.Index(gene_table["symbol"], name=None)),
    )
    phenotype.var_names_make_unique()
    obs = table[["compound", "name", "smiles", "cell_line", "dose", "time", "batch"]]
    return screen({"phenotype": phenotype}, obs, featurizer)


def read_gctx(path: str | Path, *, rows: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> AnnData:
    """Read a GCTX file of the Connectivity Map, any level, or a part of it.

    Parameters
    ----------
    path
        The file, unpacked.
    rows
        Names of rows, which are genes; all by default.
    columns
        Names of columns, which are samples or signatures; all by default.

    Returns
    -------
    AnnData with the columns of the file as observations and its rows as variables, in the order asked for; ``X`` is
    float32. What the file says about them is in ``obs`` and ``var``, numbers where all are, ``-666`` as missing.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no complete GCTX, or is packed.
    KeyError
        If a name is not in it.

    Notes
    -----
    Blocks of 64 MB are read in the order of the file, and only those that hold something wanted.
    """
    path = Path(path)
    with _open(path) as file:
        names = {_ROWS: _ids(file, _ROWS), _COLUMNS: _ids(file, _COLUMNS)}
        matrix = file[_MATRIX]
        if matrix.shape != (len(names[_COLUMNS]), len(names[_ROWS])):
            raise ValueError(
                f"{path} is no GCTX file: its matrix has shape {matrix.shape} for {len(names[_COLUMNS]):,} columns and "
                f"{len(names[_ROWS]):,} rows."
            )
        place = {
            _ROWS: _places(path, "rows", names[_ROWS], rows),
            _COLUMNS: _places(path, "columns", names[_COLUMNS], columns),
        }
        x = _read_matrix(matrix, place[_COLUMNS], place[_ROWS])
        obs, var = (_metadata(file[group], names[group], place[group]) for group in (_COLUMNS, _ROWS))
    return AnnData(x, obs=obs, var=var)


# ---- GCTX ---------------------------------------------------------------------------------


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    if path.suffix == ".gz":
        raise ValueError(f"{path} is packed and cannot be read in parts: unpack it (gunzip) first.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} is no complete GCTX file (HDF5): {error}. Download it anew.") from error
    for node in (_MATRIX, f"{_COLUMNS}/id", f"{_ROWS}/id"):
        if node not in file:
            file.close()
            raise ValueError(f"{path} is no GCTX file: it has no {node!r}.")
    return file


def _ids(file: h5py.File, group: str) -> np.ndarray:
    return _text(file[f"{group}/id"][()])


def _text(values: np.ndarray) -> np.ndarray:
    """Strings from what HDF5 may hold: bytes of fixed or variable length, or numbers."""
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    elif values.dtype.kind == "O":
        values = np.array([one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in values])
    return np.char.strip(values.astype(str)).astype(object)


def _places(path: Path, argument: str, names: np.ndarray, wanted: Sequence[str] | None) -> np.ndarray:
    if wanted is None:
        return np.arange(len(names))
    index = pd.Index(names)
    if not index.is_unique:
        raise ValueError(f"{path} has {index[index.duplicated()][0]!r} more than once among its {argument}.")
    wanted = pd.Index([str(one) for one in wanted])
    places = index.get_indexer(wanted)
    if (places < 0).any():
        raise KeyError(
            f"{int((places < 0).sum()):,} of {len(wanted):,} `{argument}` are not in {path}, such as "
            f"{wanted[places < 0][0]!r}; those there are named like {names[0]!r}."
        )
    return places


def _read_matrix(matrix: h5py.Dataset, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Columns of the file as rows of the result; see :func:`_spans` for what is read at once."""
    out = np.empty((len(columns), len(rows)), dtype=np.float32)
    if not out.size:
        return out
    first, last = rows.min(), rows.max() + 1
    order = np.argsort(columns, kind="stable")
    chunk = matrix.chunks[0] if matrix.chunks else 1
    largest = max(_BLOCK_BYTES // (matrix.dtype.itemsize * int(last - first)), 1)
    for span in _spans(columns[order], chunk, largest):
        where = order[span]
        start, stop = columns[where[0]], columns[where[-1]] + 1
        block = matrix[start:stop, first:last]
        out[where] = block[np.ix_(columns[where] - start, rows - first)]
    return out


def _spans(columns: np.ndarray, chunk: int, largest: int) -> list[slice]:
    """Runs of sorted columns that are read at once: none wider than ``largest``, none across a wide gap."""
    # a gap is worth skipping once it spares a chunk, or a read from another place of the disk
    narrow = np.diff(columns) <= max(chunk, 64)
    run = np.cumsum(np.append(0, ~narrow))
    begins = np.searchsorted(run, np.arange(run[-1] + 1))
    block = (columns - columns[begins][run]) // largest
    edges = np.flatnonzero((np.diff(run) != 0) | (np.diff(block) != 0)) + 1
    return [slice(a, b) for a, b in zip([0, *edges], [*edges, len(columns)], strict=True)]


def _metadata(group: h5py.Group, names: np.ndarray, places: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame(index=pd.Index(names[places], dtype=object))
    for key, node in group.items():
        if key != "id" and isinstance(node, h5py.Dataset) and node.shape == (len(names),):
            values = pd.Series(_text(node[()])[places], index=table.index)
            values = values.where(~values.isin(["-666", "-666.0"]))
            numbers = pd.to_numeric(values, errors="coerce")
            table[key] = values if (numbers.isna() & values.notna()).any() else numbers
    return table


# ---- tables -------------------------------------------------------------------------------


def _find_matrix(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}. Download {_MATRICES}, from {', '.join(_GEO.values())} or {_CLUE}, and unpack it."
        )
    if not path.is_dir():
        return path
    found = sorted(file for file in path.glob("*.gctx") if "level5" in file.name.lower())
    if len(found) > 1:
        raise ValueError(f"{path} has several matrices: give one of {', '.join(str(file) for file in found)}.")
    if not found:
        packed = [file.name for file in path.glob("*.gctx.gz")]
        advice = f"Unpack {packed[0]} (gunzip)." if packed else f"Download {_MATRICES}, and unpack it there."
        raise FileNotFoundError(f"{path} has no .gctx of level 5. {advice}")
    return found[0]


def _find_table(folder: Path, pattern: str, advice: str) -> Path:
    found = sorted(file for file in folder.iterdir() if re.fullmatch(pattern, file.name))
    if not found:
        name = re.sub(r"\(.*?\)\?|\\", "", pattern)
        raise FileNotFoundError(f"There is no {folder / name} (or .gz). {advice}")
    return found[-1]  # the one with a date is the later one


def _read_signatures(folder: Path, release: _Release, advice: str, where: str | None) -> pd.DataFrame:
    """Compound treatments with the columns of ``obs``, and further ones that the condition names."""
    path = _find_table(folder, release.signatures, advice)
    wanted = {"sig_id": str, "pert_id": str, "pert_type": str, release.name: str, release.cell_line: str}
    doses = ("pert_dose", "pert_dose_unit", "pert_time", "pert_idose", "pert_itime")
    named = {*wanted, *doses, *re.findall(r"\w+", where or "")}
    options = {"usecols": lambda name: name in named, "dtype": dict.fromkeys([*wanted, *doses], str)}
    options |= {"quoting": csv.QUOTE_NONE, "encoding_errors": "replace"}
    parts = []
    for part in read_parts(path, advice, _LINES_AT_A_TIME, **options):  # of a million lines, compounds are kept
        need_columns(path, part, wanted)
        parts.append(part[part["pert_type"] == "trt_cp"])
    table = pd.concat(parts).set_index("sig_id")
    table.index.name = None
    if not table.index.is_unique:
        raise ValueError(f"{path} has {table.index[table.index.duplicated()][0]!r} more than once.")
    names = {"pert_id": "compound", release.name: "name", release.cell_line: "cell_line"}
    table = table.rename(columns=names)
    if "pert_dose" in table:
        need_columns(path, table, ["pert_dose_unit", "pert_time"])
        table["dose"] = micromolar(table["pert_dose"], table["pert_dose_unit"])
    else:  # phase II has them in words alone
        need_columns(path, table, ["pert_idose", "pert_itime"])
        table["dose"] = micromolar(table["pert_idose"])
    table["time"] = hours(table["pert_time" if "pert_time" in table else "pert_itime"])
    table["name"] = known(table["name"])
    table["batch"] = table.index.str.split(":", n=1).str[0]
    return table


def _read_compounds(folder: Path, release: _Release, advice: str) -> pd.Series:
    """SMILES by compound; the table has a line for each target of a compound."""
    path = _find_table(folder, release.compounds, advice)
    table = read_table(path, advice, dtype=str, quoting=csv.QUOTE_NONE, encoding_errors="replace")
    need_columns(path, table, ["pert_id", "canonical_smiles"])
    smiles = clean_smiles(table["canonical_smiles"]).set_axis(table["pert_id"]).dropna()
    return smiles[~smiles.index.duplicated()]


def _read_genes(folder: Path, release: _Release, advice: str) -> pd.DataFrame:
    path = _find_table(folder, release.genes, advice)
    table = read_table(path, advice, dtype=str, quoting=csv.QUOTE_NONE)
    column, value = release.landmark
    need_columns(path, table, [*release.gene, column])
    table = table.drop_duplicates(release.gene[0])
    found = pd.DataFrame(
        {"symbol": table[release.gene[1]].to_numpy(), "landmark": (table[column] == value).to_numpy()},
        index=pd.Index(table[release.gene[0]], name=None),
    )
    if not found["landmark"].any():
        raise ValueError(f"{path} has no landmark gene: none has {column} {value!r}.")
    return found


def _choose(
    table: pd.DataFrame,
    cell_lines: Sequence[str] | str | None,
    complete: bool,
    where: str | None,
    max_replicates: int | None,
    seed: int,
) -> pd.DataFrame:
    there = table["cell_line"].unique()
    if cell_lines is not None:
        lines = list(CORE_CELL_LINES) if cell_lines == "core" else list(cell_lines)
        for name in lines:
            if name not in there and cell_lines != "core":
                raise ValueError(f"No compound was tested in the cell line {name!r}. {suggest(name, sorted(there))}")
        table = table[table["cell_line"].isin(lines)]
    table = chosen(table, where)
    if complete:
        seen = table.groupby("compound")["cell_line"].nunique()
        n_lines = len(set(lines)) if cell_lines is not None else len(there)
        table = table[table["compound"].isin(seen.index[seen == n_lines])]
    if max_replicates is not None:
        table = draw_replicates(table, ["compound", "cell_line"], max_replicates, seed)
    if not len(table):
        raise ValueError("No signature is left: loosen `cell_lines`, `complete` or `where`.")
    return table
