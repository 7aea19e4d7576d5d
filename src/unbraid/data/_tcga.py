"""The Cancer Genome Atlas as DeepIMV and IDMVAE prepare it: mortality within a year from kernel principal components."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import suggest
from unbraid.data._arrays import pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

# modality: name in DeepIMV's files, and in those of IDMVAE
_NAMES = {
    "mrna": ("mRNAseq", "view0"),
    "protein": ("RPPA", "view1"),
    "methylation": ("Methylation", "view2"),
    "mirna": ("miRNAseq", "view3"),
}
_SOURCE = (
    "They are made by data_processing_TCGA.ipynb of https://github.com/chl8856/DeepIMV from the files of "
    "https://gdac.broadinstitute.org (2016_01_28)."
)
_LABEL = "mortality_1yr"
_YEAR = 365


class _Table(NamedTuple):
    names: pd.Index
    values: np.ndarray


def tcga_mortality(
    path: str | Path,
    *,
    modalities: Sequence[str] = ("mrna", "mirna"),
    complete: bool = True,
    seed: int = 0,
) -> MuData:
    """Tumours of The Cancer Genome Atlas and whether the patient died within a year, as in IDMVAE.

    Up to four modalities of 100 kernel principal components each, in the preparation of DeepIMV [2]_; IDMVAE [1]_ takes mRNA
    and miRNA.

    Parameters
    ----------
    path
        One of

        - the folder ``FINAL`` of DeepIMV's notebook: ``cleaned/mRNAseq_kpca.csv`` and so on, with a column
          ``Hybridization REF`` and one per component, and ``clinical_label.csv``;
        - an ``.npz`` with an array ``(n, n_components)`` per modality, under the names of DeepIMV (``mRNAseq``,
          ``RPPA``, ``Methylation``, ``miRNAseq``) or of IDMVAE (``view0`` to ``view3``, in this order), and ``label``
          ``(n,)``: 1, 0, or -1 for unknown. Rows of NaN are tumours without the modality.
    modalities
        Which of ``mrna``, ``protein``, ``methylation``, ``mirna``.
    complete
        Keep only tumours with all of these, as IDMVAE does (9,874 of mRNA and miRNA).
    seed
        Of the split.

    Returns
    -------
    MuData of the modalities, float32. ``obs["mortality_1yr"]`` is ``dead`` or ``alive``, missing where unknown;
    ``obs["split"]`` is ``train``, ``val`` or ``test``: 5 % of the tumours each are validation and test, drawn from those
    with a label; all others are for training.

    Raises
    ------
    FileNotFoundError
        If a file is not there; the message says how it is made.
    ValueError
        If a file is not as said, modalities are equal, or no tumour is left.

    Notes
    -----
    The label is that of the notebook: 0 if the last follow-up was after a year or later, then 1 if death came within a
    year, else unknown; who died later and has no follow-up stays unknown. The published notebook stores mRNA in the
    place of every array of its ``.npz``, label included; such a file is refused. Its components were fitted on all
    tumours, those of the test set included.

    References
    ----------
    .. [1] Zhang et al. (2026), Disentanglement of variations with multimodal generative modeling, section 4.3. ICLR.
    .. [2] Lee and van der Schaar (2021), A variational information bottleneck approach to multi-omics data integration.
       AISTATS.
    """
    path, modalities = Path(path), list(modalities)
    for name in modalities:
        if name not in _NAMES:
            raise ValueError(f"There is no modality {name!r}. {suggest(name, _NAMES)}")
    if len(modalities) < 2 or len(set(modalities)) < len(modalities):
        raise ValueError(f"`modalities` must be two or more different ones, got {modalities}.")
    tables, label = _read_folder(path, modalities) if path.is_dir() else _read_arrays(path, modalities)
    for first, second in zip(modalities, modalities[1:], strict=False):
        if np.array_equal(tables[first].values, tables[second].values):
            raise ValueError(
                f"{path}: {first} and {second} are the same numbers, as in files of DeepIMV's published notebook, which "
                "stores mRNA under every name. Store each modality under its own."
            )
    known = [table.names for table in tables.values()]
    names = known[0]
    for other in known[1:]:
        names = names.intersection(other, sort=False) if complete else names.union(other, sort=False)
    if not len(names):
        raise ValueError(f"{path}: no tumour has all of {', '.join(modalities)}.")
    label = label.reindex(names)
    obs = pd.DataFrame(index=names)
    obs[_LABEL] = pd.Categorical(label.map({0.0: "alive", 1.0: "dead"}), categories=["alive", "dead"])
    obs["split"] = _split(obs[_LABEL].notna().to_numpy(), seed)
    kept = {}
    for m, table in tables.items():
        rows = table.names.isin(names)
        var = pd.DataFrame(index=[f"{m}_{k}" for k in range(table.values.shape[1])])
        kept[m] = AnnData(table.values[rows], obs=pd.DataFrame(index=table.names[rows]), var=var)
    return pair(kept, obs)


# ---- helpers ------------------------------------------------------------------------------


def _read_folder(folder: Path, modalities: list[str]) -> tuple[dict[str, _Table], pd.Series]:
    files = {m: folder / "cleaned" / f"{_NAMES[m][0]}_kpca.csv" for m in modalities}
    clinical = folder / "clinical_label.csv"
    if missing := [str(file) for file in (*files.values(), clinical) if not file.exists()]:
        raise FileNotFoundError(f"There is no {', '.join(missing)}. {_SOURCE}")
    tables = {}
    for m, file in files.items():
        table = pd.read_csv(file)
        _check_columns(file, table, ["Hybridization REF"])
        table = table.drop_duplicates("Hybridization REF").set_index("Hybridization REF")
        try:
            values = table.to_numpy(np.float32)
        except ValueError as error:
            raise ValueError(f"{file} holds values that are no numbers: {error}.") from error
        tables[m] = _present(pd.Index(table.index.astype(str)), values)
    table = pd.read_csv(clinical, header=1)
    _check_columns(clinical, table, ["Hybridization REF", "days_to_last_followup", "days_to_death"])
    table = table.drop_duplicates("Hybridization REF", keep="last").set_index("Hybridization REF")
    followed, died = (pd.to_numeric(table[f"days_to_{what}"], errors="coerce") for what in ("last_followup", "death"))
    label = pd.Series(np.nan, table.index.astype(str))
    label[(followed >= _YEAR).to_numpy()] = 0.0
    label[(died <= _YEAR).to_numpy()] = 1.0
    return tables, label


def _read_arrays(file: Path, modalities: list[str]) -> tuple[dict[str, _Table], pd.Series]:
    if not file.exists():
        raise FileNotFoundError(f"There is no {file}. {_SOURCE}")
    with np.load(file) as arrays:
        found = {}
        for m in (*modalities, "label"):
            known = [name for name in _NAMES.get(m, (m,)) if name in arrays]
            if not known:
                raise ValueError(f"{file} has no {' or '.join(map(repr, _NAMES.get(m, (m,))))}: {', '.join(arrays)}.")
            found[m] = np.asarray(arrays[known[0]], dtype=np.float32)
    label = found.pop("label")
    if label.size != len(label):
        raise ValueError(f"{file}: 'label' has the shape {label.shape}; it should be one number per tumour.")
    lengths = {m: len(x) for m, x in found.items()} | {"label": len(label)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{file}: arrays differ in length: {lengths}.")
    names = pd.Index([f"tumour_{i}" for i in range(len(label))])
    return {m: _present(names, x) for m, x in found.items()}, pd.Series(label.ravel(), names)


def _present(names: pd.Index, values: np.ndarray) -> _Table:
    there = ~np.isnan(values).all(axis=1)
    return _Table(names[there], values[there])


def _check_columns(file: Path, table: pd.DataFrame, wanted: list[str]) -> None:
    for column in wanted:
        if column not in table:
            raise ValueError(
                f"{file} has no column {column!r}; its columns are {', '.join(map(str, table.columns[:8]))}."
            )


def _split(labelled: np.ndarray, seed: int) -> pd.Categorical:
    """A twentieth of all for validation and as many for the test, at most all that have a label."""
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(labelled))
    size = min(round(len(labelled) / 20), len(rows) // 2)
    split = np.full(len(labelled), "train", dtype=object)
    split[rows[:size]], split[rows[size : 2 * size]] = "val", "test"
    return pd.Categorical(split, categories=["train", "val", "test"])
