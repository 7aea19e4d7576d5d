"""Cell Painting: profiles of CellProfiler and pycytominer with the structures of the compounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import suggest
from unbraid.data._screens import chosen, clean_smiles, hours, known, read_table, screen, without_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mudata import MuData

# what a column tells, and its names in the data sets of the Broad Institute, first choice first
_ROLES = {
    "compound": ("Metadata_JCP2022", "Metadata_broad_sample", "broad_id", "broad_sample", "BROAD_ID"),
    "name": ("Metadata_pert_iname", "pert_iname", "Metadata_Name", "CPD_NAME"),
    "smiles": ("Metadata_SMILES", "Metadata_smiles", "SMILES", "smiles", "CPD_SMILES"),
    "inchi": ("Metadata_InChI", "InChI"),
    "kind": ("Metadata_pert_type", "Metadata_control_type", "pert_type", "control_type"),
    "cell_line": ("Metadata_cell_id", "Metadata_cell_line", "Metadata_Cell_type"),
    "dose": ("Metadata_mmoles_per_liter",),
    "time": ("Metadata_time_point", "Metadata_timepoint", "Metadata_Timepoint"),
    "source": ("Metadata_Source",),
    "batch": ("Metadata_Batch", "Metadata_Batch_Number"),
    "plate": ("Metadata_Plate", "Metadata_Assay_Plate_Barcode"),
    "well": ("Metadata_Well", "Metadata_pert_well", "Metadata_well_position"),
}
_PLACE = ("source", "plate", "well")
_KEYS = (*_PLACE, "compound")
_PREFIXES = ("Cells_", "Cytoplasm_", "Nuclei_")
_CORE = 13  # characters of a Broad identifier that name the structure; the rest names salt and sample
_ADVICE = "Cell Painting profiles are at https://github.com/broadinstitute/cellpainting-gallery."
_NEEDED = (
    "give tables that tell: `well.csv.gz`, `plate.csv.gz` and `compound.csv.gz` of "
    "https://github.com/jump-cellpainting/datasets (folder metadata), or `repurposing_info.tsv` of "
    "https://github.com/broadinstitute/lincs-cell-painting (folder metadata/moa); or name the column in `columns`"
)


def cell_profiles(
    profiles: str | Path | Sequence[str | Path],
    *,
    annotations: str | Path | Sequence[str | Path] = (),
    columns: Mapping[str, str | Sequence[str]] | None = None,
    features: Sequence[str] = _PREFIXES,
    where: str | None = None,
    featurizer: Callable[[pd.Series], AnnData] | None = None,
) -> MuData:
    """Cell Painting profiles, in the files of CellProfiler and pycytominer, with the structures of the compounds.

    JUMP [1]_, LINCS Cell Painting [2]_ and others of this format: one row per well, or per compound and dose, with
    columns ``Metadata_...`` and one per feature.

    Parameters
    ----------
    profiles
        One or more files, such as one per plate (``.csv``, ``.csv.gz`` or ``.parquet``). Features that all of them have
        are kept.
    annotations
        Tables that tell more about the rows, joined one after the other on what they share with what is known already:
        source, plate, well or compound. Of JUMP ``["well.csv.gz", "plate.csv.gz", "compound.csv.gz"]``, and
        ``"perturbation_control.csv"`` for the kinds of control; of LINCS ``"repurposing_info.tsv"``.
    columns
        Names of columns that are not found by themselves, by what they tell: ``compound``, ``name``, ``smiles``,
        ``inchi``, ``kind``, ``cell_line``, ``dose``, ``time``, ``source``, ``batch``, ``plate`` or ``well``. Several
        where files call it differently, e.g. ``{"compound": ["Metadata_pert_iname", "pert_iname"]}``.
    features
        How the names of features begin.
    where
        Condition on the rows, as for :meth:`pandas.DataFrame.query`, in terms of the columns of ``obs``, such as
        ``"kind != 'negcon'"``.
    featurizer
        Makes ``molecule``: takes a series of SMILES and returns an AnnData of those it can read, under their names. By
        default :func:`unbraid.pp.molecules` (with ``invalid="drop"``).

    Returns
    -------
    MuData with modalities ``molecule`` and ``phenotype`` (float32). Columns of ``obs``: ``compound`` and ``smiles``,
    made from InChI where only that is given, and of ``name``, ``kind``, ``cell_line``, ``dose`` (micromolar), ``time``
    (hours), ``source``, ``batch``, ``plate`` and ``well`` those that the files tell.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a file is not what its name says, files have no feature in common, a table cannot be joined, no column tells
        the compounds or their structure, or nothing is left.

    Warns
    -----
    UserWarning
        Compounds have no structure or one that cannot be read, and their rows are absent from ``molecule``; or features
        have missing values, and are left out.

    Notes
    -----
    JUMP and LINCS Cell Painting are in the public domain (CC0 1.0). Profiles are taken as they are; normalise and
    select features with pycytominer before. Rows without a compound, which are controls, are absent from ``molecule``;
    DMSO has a structure in the tables of JUMP, so leave it out with ``where`` unless you want it as a compound.

    ``Metadata_mmoles_per_liter`` is taken for micromolar, in spite of its name: LINCS Cell Painting has the values
    0.04 to 20 in it. Time is read as hours. Identifiers of the Broad Institute that a table does not have are looked up
    by their first 13 characters, which name the structure.

    All profiles are in memory at once, 4 bytes per value: of the 803,853 wells of JUMP's compounds read one source at a
    time. The reader was tested on files of the same format made for the test, not on the original ones.

    References
    ----------
    .. [1] Chandrasekaran et al. (2023), JUMP Cell Painting dataset: morphological impact of 136,000 chemical and
       genetic perturbations. bioRxiv 2023.03.23.534023.
    .. [2] Way et al. (2022), Morphology and gene expression profiling provide complementary information for mapping
       cell state. Cell Systems 13, 911-923.

    Examples
    --------
    One plate of JUMP with the three tables of its metadata::

        cell_profiles("BR00117012.parquet", annotations=["well.csv.gz", "plate.csv.gz", "compound.csv.gz"])
    """
    columns = {role: (names,) if isinstance(names, str) else tuple(names) for role, names in (columns or {}).items()}
    for role in columns:
        if role not in _ROLES:
            raise ValueError(f"`columns` names {role!r}, which no column tells. {suggest(role, _ROLES)}")
    files = _paths(profiles)
    if not files:
        raise ValueError("`profiles` must name one file or more.")
    table, x, names = _read_profiles(files, columns, (features,) if isinstance(features, str) else tuple(features))
    for path in _paths(annotations):
        table = _join(table, _roles(_read(path, columns), columns), path)
    for role, names_given in columns.items():
        if role not in table:
            raise ValueError(f"No file has the column {names_given[0]!r} that `columns` names for {role!r}.")
    if "compound" not in table:
        raise ValueError(f"{files[0]}: no column tells the compounds; {_NEEDED}.")
    if "smiles" not in table and "inchi" not in table:
        raise ValueError(f"{files[0]}: no column tells the structure of compounds; {_NEEDED}.")

    obs = _obs(table)
    kept = chosen(obs.assign(row=np.arange(len(obs))), where)["row"].to_numpy()
    if not len(kept):
        raise ValueError("No profile is left: loosen `where`.")
    x, names, finite = without_missing(x[kept], names)
    obs = obs.iloc[kept[finite]]
    adata = AnnData(x, obs=pd.DataFrame(index=obs.index), var=pd.DataFrame(index=names))
    return screen({"phenotype": adata}, obs, featurizer)


# ---- helpers ------------------------------------------------------------------------------


def _paths(given: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else [Path(one) for one in given]


def _read(path: Path, columns: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    # as text, so that plate 7 of one table is plate 7 of another
    names = [name for known_names in (*_ROLES.values(), *columns.values()) for name in known_names]
    return read_table(path, _ADVICE, dtype=dict.fromkeys(names, str))


def _roles(table: pd.DataFrame, columns: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """What a table tells, under the names of what it is."""
    found = {}
    for role, names in _ROLES.items():
        # what the user names comes first; another table may still have it under its usual name
        name = next((one for one in (*columns.get(role, ()), *names) if one in table), None)
        if name is not None:
            found[role] = known(table[name])
    return pd.DataFrame(found)


def _read_profiles(
    files: list[Path], columns: Mapping[str, tuple[str, ...]], prefixes: tuple[str, ...]
) -> tuple[pd.DataFrame, np.ndarray, pd.Index]:
    tables, parts, names = [], [], None
    for path in files:
        table = _read(path, columns)
        numbers = table.loc[:, [str(name).startswith(prefixes) for name in table]]
        text = [name for name in numbers if not pd.api.types.is_numeric_dtype(numbers[name])]
        # CellProfiler notes names of files among the features of images
        if wrong := [name for name in text if not name.startswith("Image_")]:
            raise ValueError(f"{path} holds values in {wrong[0]!r} that are no numbers.")
        numbers = numbers.drop(columns=text)
        names = numbers.columns if names is None else names[names.isin(numbers.columns)]
        if not len(names):
            raise ValueError(f"{path} has no feature that begins with {' or '.join(prefixes)} as the files before it.")
        tables.append(_roles(table, columns))
        parts.append((numbers.columns, numbers.to_numpy(np.float32)))
    x = np.concatenate([part[:, columns.get_indexer(names)] for columns, part in parts])
    return pd.concat(tables, ignore_index=True), x, names


def _join(table: pd.DataFrame, more: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A table with the columns of another that it lacks, by the keys that both have."""
    keys = [key for key in _KEYS if key in table and key in more]
    if not keys:
        raise ValueError(
            f"{path} tells {', '.join(more) or 'nothing'}, and the profiles {', '.join(table)}: nothing to join them "
            "on. Give first the table that links them, or name the column in `columns`."
        )
    more = more.dropna(subset=keys)
    new = [role for role in more if role not in table or table[role].isna().all()]
    if "compound" in new and (twice := more.drop_duplicates([*keys, "compound"]).duplicated(keys)).any():
        place = more.loc[twice.index[twice][0], keys].tolist()
        raise ValueError(f"{path} has two compounds for {' '.join(place)}.")
    table = table.drop(columns=[role for role in new if role in table])
    joined = table.merge(more.drop_duplicates(keys)[[*keys, *new]], on=keys, how="left", indicator=True)
    found = (joined.pop("_merge") == "both").to_numpy()
    if keys == ["compound"]:
        core = more[more["compound"].str.startswith("BRD-")].assign(compound=lambda part: part["compound"].str[:_CORE])
        core = core.drop_duplicates("compound").set_index("compound")[new]
        place = core.index.get_indexer(table["compound"].str[:_CORE])
        other = ~found & (place >= 0)
        joined.loc[other, new] = core.iloc[place[other]].to_numpy()
        found = found | other
    if not found.any():
        raise ValueError(
            f"{path} has none of the rows of the profiles: they have {' '.join(table[keys].iloc[0].astype(str))}, it "
            f"has {' '.join(more[keys].iloc[0]) if len(more) else 'none'}."
        )
    return joined


def _obs(table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    table["smiles"] = clean_smiles(table["smiles"]) if "smiles" in table else None
    if "inchi" in table:
        missing = table["smiles"].isna() & table["inchi"].notna()
        table.loc[missing, "smiles"] = _smiles_of_inchi(table.loc[missing, "inchi"])
    if "dose" in table:
        table["dose"] = pd.to_numeric(table["dose"], errors="coerce").astype(float)
    if "time" in table:
        table["time"] = hours(table["time"])
    place = [role for role in _PLACE if role in table]
    names = table[place].astype(str).agg("_".join, axis=1) if place else table.index.astype(str)
    if not names.is_unique or (place and table[place].isna().to_numpy().any()):
        names = [f"profile_{i}" for i in range(len(table))]
    order = [role for role in _ROLES if role in table and role != "inchi"]
    return table[order].set_axis(pd.Index(names))


def _smiles_of_inchi(inchi: pd.Series) -> pd.Series:
    from rdkit import Chem, rdBase

    smiles = {}
    with rdBase.BlockLogs():
        for one in inchi.unique():
            molecule = Chem.MolFromInchi(one)
            smiles[one] = None if molecule is None else Chem.MolToSmiles(molecule)
    return inchi.map(smiles)
