"""ToxCast: which of hundreds of assays a chemical was active in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import check_range, suggest
from unbraid.data._screens import clean_smiles, need_columns, read_table, screen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mudata import MuData

_FILE = "toxcast_data.csv.gz"
_SOURCE = f"Download {_FILE} from https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/{_FILE} (DeepChem)."


def toxcast(
    path: str | Path,
    *,
    assays: Sequence[str] = ("ATG", "BSK"),
    min_tested: float = 0.9,
    featurizer: Callable[[pd.Series], AnnData] | None = None,
) -> MuData:
    """Chemicals of ToxCast: structures and hit calls in families of assays, in the table of DeepChem.

    Parameters
    ----------
    path
        ``toxcast_data.csv.gz`` [1]_ (8,615 chemicals, 617 assays), packed or not, or its folder: a column ``smiles``
        and one per assay with 1 (active), 0 or nothing (not tested).
    assays
        Families of assays, by what is before the first ``_`` of their names: ``ACEA``, ``APR``, ``ATG``, ``BSK``,
        ``CEETOX``, ``CLD``, ``NCCT``, ``NHEERL``, ``NVS``, ``OT``, ``TOX21``, ``Tanguay``. Each is a modality.
    min_tested
        Assays with results for a smaller share than this of the chemicals that have any in their family are left out,
        as each of them would cost all other chemicals (see Notes).
    featurizer
        Makes ``molecule``: takes a series of SMILES and returns an AnnData of those it can read, under their names. By
        default :func:`unbraid.pp.molecules` (with ``invalid="drop"``).

    Returns
    -------
    MuData with ``molecule`` and a modality for each family under its name in lower case, such as ``atg`` and ``bsk``:
    0 and 1 (float32). A chemical without a result in every assay that is kept of a family is absent from it, one that
    is absent from all is left out, and so are assays with the same result for all. Columns of ``obs``: ``compound``
    (the number of the row in the file) and ``smiles``.

    Raises
    ------
    FileNotFoundError
        If the file is not there; the message says where to get it.
    ValueError
        If it is not what its name says, or there is no such family.

    Warns
    -----
    UserWarning
        SMILES cannot be read; these chemicals are absent from ``molecule``.

    Notes
    -----
    ToxCast is of the US Environmental Protection Agency and public; DeepChem is under the MIT licence. Of 1,439
    chemicals with results in ``BSK``, 981 have one in all 146 assays of ``ATG``, but all have in 144 of them; and in
    ``APR`` 303 of 1,034 have one in all 43. The reader was tested on a file of the same format made for the test, and
    on the results of these chemicals, but not on the original file.

    References
    ----------
    .. [1] Richard et al. (2016), ToxCast chemical landscape: paving the road to 21st century toxicology. Chemical
       Research in Toxicology 29, 1225-1251. Wu et al. (2018), MoleculeNet: a benchmark for molecular machine learning.
       Chemical Science 9, 513-530.
    """
    check_range("min_tested", min_tested, 0 <= min_tested <= 1, "from 0 to 1")
    file = Path(path)
    if file.is_dir():
        file = next(
            (file / name for name in (_FILE, _FILE.removesuffix(".gz")) if (file / name).exists()), file / _FILE
        )
    table = read_table(file, _SOURCE)
    need_columns(file, table, ["smiles"])
    names = table.columns.drop("smiles")
    families = names.str.split("_", n=1).str[0].str.lower()
    wanted = [assays] if isinstance(assays, str) else list(assays)
    obs = pd.DataFrame(index=[f"compound_{i}" for i in range(len(table))])
    obs["compound"], obs["smiles"] = obs.index, clean_smiles(table["smiles"]).to_numpy()
    modalities = {}
    for family in dict.fromkeys(one.lower() for one in wanted):
        columns = names[families == family]
        if not len(columns):
            raise ValueError(f"{file} has no assay of {family!r}. {suggest(family, sorted(set(families)))}")
        modalities[family] = _family(file, table[columns], obs.index, min_tested)
    if not modalities:
        raise ValueError("`assays` must name one family or more.")
    obs = obs[np.logical_or.reduce([obs.index.isin(adata.obs_names) for adata in modalities.values()])]
    return screen(modalities, obs, featurizer)


# ---- helpers ------------------------------------------------------------------------------


def _family(file: Path, table: pd.DataFrame, names: pd.Index, min_tested: float) -> AnnData:
    """Complete rows of a family in the assays that most have, and that tell some of them apart."""
    tested = table.notna()
    table = table.loc[:, tested[tested.any(axis=1)].mean() >= min_tested]
    if table.empty:
        raise ValueError(
            f"{file}: no assay like {tested.columns[0]!r} has results for {min_tested:.0%} of the family's chemicals: "
            "lower `min_tested`."
        )
    known = table.notna().all(axis=1).to_numpy()
    if not known.any():
        raise ValueError(
            f"{file}: no chemical has a result in all {table.shape[1]} assays like {table.columns[0]!r}: raise "
            "`min_tested` to leave out those that few were tested in."
        )
    try:
        x = table[known].to_numpy(np.float32)
    except ValueError as error:
        raise ValueError(f"{file} holds results that are no numbers: {error}.") from error
    if not np.isin(x, (0, 1)).all():
        raise ValueError(f"{file} holds the result {x[~np.isin(x, (0, 1))][0]:g}; results must be 0, 1 or nothing.")
    varies = (x != x[0]).any(axis=0)
    if not varies.any():
        raise ValueError(f"{file}: every assay like {table.columns[0]!r} has one result for all chemicals.")
    return AnnData(x[:, varies], obs=pd.DataFrame(index=names[known]), var=pd.DataFrame(index=table.columns[varies]))
