"""What the readers of drug screens share: tables, doses, and the structure of a compound as a modality."""

from __future__ import annotations

import warnings
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import suggest
from unbraid.data._arrays import pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from mudata import MuData

MISSING = ("", "-666", "-666.0", "restricted", "nan", "None", "NA")  # as the sources write "not known"
# in micromolar; the two signs for micro occur, and what is left of them in another encoding
_UNITS = {"um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0, "\ufffdm": 1.0, "nm": 1e-3, "mm": 1e3}
_BROKEN = (OSError, EOFError, ValueError, zlib.error)


def screen(
    phenotypes: Mapping[str, AnnData],
    obs: pd.DataFrame,
    featurizer: Callable[[pd.Series], AnnData] | None,
    molecule: AnnData | None = None,
) -> MuData:
    """MuData of measured modalities and ``molecule``.

    Parameters
    ----------
    phenotypes
        The measured modalities.
    obs
        Columns about every row, with ``smiles`` and ``compound`` among them; text becomes categories.
    featurizer
        Makes ``molecule`` of the SMILES, see :func:`molecules_of`.
    molecule
        The modality itself, where it is known already.
    """
    is_number = pd.api.types.is_numeric_dtype
    obs = pd.DataFrame({name: obs[name] if is_number(obs[name]) else labels(obs[name]) for name in obs}, obs.index)
    if molecule is None:
        molecule = molecules_of(obs["smiles"], obs["compound"], featurizer)
    return pair({"molecule": molecule, **phenotypes}, obs)


def molecules_of(smiles: pd.Series, compounds: pd.Series, featurizer: Callable[[pd.Series], AnnData] | None) -> AnnData:
    """The structures of all rows that have one.

    Parameters
    ----------
    smiles
        SMILES by name of the row, missing where there is none.
    compounds
        Name of the compound by name of the row; rows without a compound are controls, and need no structure.
    featurizer
        Takes the SMILES and returns an AnnData of those it can read, under the names of their rows; by default
        :func:`unbraid.pp.molecules`.
    """
    given = smiles.dropna().astype(str)
    if not len(given):
        raise ValueError("No row has a SMILES, so there would be no molecule: check the table of the compounds.")
    found = (_fingerprints if featurizer is None else featurizer)(given)
    if not isinstance(found, AnnData) or not found.obs_names.is_unique or not found.obs_names.isin(given.index).all():
        raise ValueError(
            "`featurizer` must return an AnnData of those SMILES that it can read, under the names that they came "
            f"with: {', '.join(given.index[:3])}, ..."
        )
    unread = given[~given.index.isin(found.obs_names)]
    none = int((smiles.isna() & compounds.notna()).sum())
    if not found.n_obs:
        raise ValueError(f"None of {len(given):,} SMILES can be read, such as {unread.iloc[0]!r}.")
    if len(unread) or none:
        example = f" The first of them is {unread.iloc[0]!r}." if len(unread) else ""
        warnings.warn(
            f"{none + len(unread):,} of {len(smiles):,} rows have a compound but no structure, and are absent from "
            f"`molecule`: {none:,} have no SMILES, and of {len(unread):,} it cannot be read.{example}",
            UserWarning,
            stacklevel=4,
        )
    return found


def _fingerprints(smiles: pd.Series) -> AnnData:
    # the data room stands below the wing, and asks it for nothing until somebody wants this default
    from unbraid.pp import molecules

    with warnings.catch_warnings():
        # how many cannot be read is said by the caller
        warnings.simplefilter("ignore", UserWarning)
        return molecules(smiles, invalid="drop")


def clean_smiles(values: pd.Series) -> pd.Series:
    """SMILES without what ChemAxon and others write behind them, and missing where none is given."""
    first = values.astype(object).where(values.notna(), "").astype(str).str.split(n=1).str[0]
    return known(first)


def known(values: pd.Series) -> pd.Series:
    """Text, missing where the source says that it does not know."""
    text = values.astype(object).where(values.notna(), "").astype(str).str.strip()
    return text.where(~text.isin(MISSING))


def labels(values: pd.Series) -> pd.Series:
    """Text as categories."""
    return values.astype(object).where(values.notna()).astype("category")


def micromolar(values: pd.Series, units: pd.Series | None = None) -> pd.Series:
    """Doses in micromolar; missing where they are in no unit of concentration.

    Parameters
    ----------
    values
        Numbers, or numbers with their unit (``"10.0 um"``).
    units
        Units of the numbers.
    """
    if units is None:
        parts = values.astype(str).str.extract(r"^\s*([\d.eE+-]+)\s*(\S+)\s*$")
        values, units = parts[0], parts[1]
    factor = units.astype(str).str.strip().str.lower().map(_UNITS).astype(float)
    numbers = pd.to_numeric(values, errors="coerce")
    return (numbers * factor).where(numbers >= 0)


def hours(values: pd.Series) -> pd.Series:
    """Hours from numbers, or from text that begins with them (``"24 h"``)."""
    numbers = pd.to_numeric(values.astype(str).str.extract(r"^\s*([\d.]+)")[0], errors="coerce")
    return numbers.astype(float)


def read_table(path: Path, advice: str, **options: Any) -> pd.DataFrame:
    """A table as the end of its name says: ``.parquet``, ``.tsv`` or ``.txt`` (tabs), else commas.

    Parameters
    ----------
    path
        The file; text may be packed (``.gz``).
    advice
        What to do if it is not there or not complete.
    options
        Of :func:`pandas.read_csv`.
    """
    return next(read_parts(path, advice, None, **options))


def read_parts(path: Path, advice: str, size: int | None, **options: Any) -> Iterator[pd.DataFrame]:
    """The same in parts of some lines; Parquet comes as one."""
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}. {advice}")
    tabs = {".tsv", ".txt"}.intersection(path.suffixes)
    try:
        if path.suffix == ".parquet":
            yield pd.read_parquet(path)
            return
        options = {"sep": "\t" if tabs else ",", "low_memory": False, **options}
        with pd.read_csv(path, iterator=True, chunksize=size, **options) as reader:
            yield from [reader.read()] if size is None else reader
    except _BROKEN as error:
        raise ValueError(f"{path} is no complete table: {error}. {advice}") from error


def need_columns(path: object, table: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise unless a table has these columns."""
    names = list(table)
    for name in wanted:
        if name not in names:
            raise ValueError(f"{path} has no column {name!r}. {suggest(name, names)}")


def chosen(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The rows of a table that meet a condition."""
    if where is None:
        return table
    try:
        return table.query(where)
    except Exception as error:  # a condition can be wrong in many ways
        raise ValueError(
            f"`where` is no condition on the columns {', '.join(map(str, table.columns))}: {error} ({where!r})."
        ) from error


def draw_replicates(table: pd.DataFrame, by: list[str], n: int, seed: int) -> pd.DataFrame:
    """At most ``n`` rows of each group, drawn at random; the order stays."""
    order = np.random.default_rng(seed).permutation(len(table))
    rank = np.empty(len(table), dtype=int)
    rank[order] = table.iloc[order].groupby(by, sort=False, observed=True).cumcount().to_numpy()
    return table[rank < n]


def without_missing(x: np.ndarray, names: pd.Index) -> tuple[np.ndarray, pd.Index, np.ndarray]:
    """Features that are finite in every row that has any finite value, and which rows these are.

    Parameters
    ----------
    x
        Profiles, shape ``(n, p)``.
    names
        Of the features.
    """
    finite = np.isfinite(x)
    rows = finite.any(axis=1)
    kept = finite[rows].all(axis=0) & rows.any()
    if not kept.any():
        raise ValueError(
            f"None of the {x.shape[1]:,} features is finite in all of the {x.shape[0]:,} profiles: leave out the "
            "profiles or features without values first."
        )
    if not (rows.all() and kept.all()):
        warnings.warn(
            f"{int((~kept).sum()):,} of {len(kept):,} features have missing or infinite values, and "
            f"{int((~rows).sum()):,} of {len(rows):,} profiles have no values; they are left out.",
            UserWarning,
            stacklevel=3,
        )
    return np.ascontiguousarray(x[rows][:, kept], dtype=np.float32), names[kept], rows
