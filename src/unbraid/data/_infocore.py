"""The drug screens that InfoCORE curates, and DisentangledSSL takes from it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from unbraid._messages import check_option, check_whole
from unbraid.data._lincs import CORE_CELL_LINES
from unbraid.data._screens import draw_replicates, hours, labels, micromolar, screen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mudata import MuData


class _Curated(NamedTuple):
    """Where a data set lies, its files, and where values are clipped."""

    folder: str
    entries: str
    molecules: str
    others: tuple[str, ...]
    clip: float


_SETS = {
    "GE": _Curated(
        "training_LINCS",
        "inst_info_drug.pkl",
        "mol2vec_mol_repr_dict.pkl",
        ("ctl_dict1_mean.pkl", "id_smiles", "sel_keys_dosesubset.npy"),
        1.5,
    ),
    "CP": _Curated("training_CDRP_Bray2017", "inst_info_drug_cp.pkl", "mol2vec_mol_repr_dict_cp.pkl", (), 1.0),
}
_SOURCE = (
    "the Dropbox folder to which https://github.com/uhlerlab/InfoCORE links (README, drug representation experiments)"
)
_MOLECULE_CLIP = 2.5
# all that a pickle of dictionaries, numbers, text and arrays needs; anything else could run code
_HARMLESS = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *(("collections", name) for name in ("OrderedDict", "defaultdict")),
    *(("builtins", name) for name in ("dict", "list")),
    ("_codecs", "encode"),  # how bytes are written for Python 2
}


def infocore(
    path: str | Path,
    dataset: Literal["GE", "CP"] = "GE",
    *,
    scale: bool = True,
    complete: bool = False,
    max_replicates: int | None = None,
    featurizer: Callable[[pd.Series], AnnData] | None = None,
    seed: int = 0,
) -> MuData:
    """Drug screens as InfoCORE curates them: gene expression (LINCS L1000) or Cell Painting (CDRP).

    DisentangledSSL [2]_ takes its LINCS data from ``"GE"``, with ``complete=True`` and ``max_replicates=3``.

    Parameters
    ----------
    path
        Folder of the data set as InfoCORE [1]_ publishes it, or one above it:

        - ``GE/data/training_LINCS`` with ``inst_info_drug.pkl``, ``ctl_dict1_mean.pkl``, ``id_smiles``,
          ``sel_keys_dosesubset.npy`` and ``mol2vec_mol_repr_dict.pkl``;
        - ``CP/data/training_CDRP_Bray2017`` with ``inst_info_drug_cp.pkl`` and ``mol2vec_mol_repr_dict_cp.pkl``.
    dataset
        ``"GE"``: single wells of LINCS phase I (level 3) minus the mean of the controls of their plate, 978 genes, in
        the nine core cell lines. ``"CP"``: wells of CDRP (Bray et al. 2017), 701 features of CellProfiler.
    scale
        Clip and standardise as InfoCORE does: profiles at 1.5 (GE) or 1 (CP) on either side and then to mean 0 and
        deviation 1 per feature; Mol2vec to mean 0 and deviation 1 over the drugs, and then clipped at 2.5.
    complete
        Of ``"GE"``: keep only drugs seen in all nine cell lines.
    max_replicates
        Largest number of profiles per drug and cell line, drawn at random.
    featurizer
        Makes ``molecule`` instead of Mol2vec: takes a series of SMILES and returns an AnnData of those it can read,
        under their names, as ``functools.partial(unbraid.pp.molecules, invalid="drop")`` does.
    seed
        Of ``max_replicates``.

    Returns
    -------
    MuData with modalities ``molecule`` (the 300 numbers of Mol2vec) and ``phenotype``, float32, one row per profile.
    Columns of ``obs``: ``compound``, ``smiles``, ``batch`` and ``split``; of ``"GE"`` also ``cell_line``, and where the
    file tells them ``dose`` (micromolar), ``time`` (hours) and ``well``. ``batch`` is the plate (GE) or the map of the
    plate (CP). ``split`` is InfoCORE's own into ``train``, ``val`` and ``test``, 80, 10 and 10 % by drug.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says where they come from.
    ValueError
        If a file is not what its name says, holds objects that could run code, or nothing is left.

    Notes
    -----
    No licence is stated. The files are pickles, which can run any code when they are loaded in the usual way; here only
    numbers, text, lists, dictionaries and NumPy arrays are let through, and anything else is refused.

    What is in the files is known from InfoCORE's code alone. Entries of ``inst_info_drug.pkl`` have the plate first,
    the drug third, the cell line tenth and the profile last; the others are taken for what the ``inst_info`` of GEO
    GSE92742 has in this order (well, name, type, dose and its unit, time and its unit), and are used only if entries
    are as long as that. Of Cell Painting entries the fourth to seventh are drug, SMILES, map of the plate and profile.
    Names of genes and features are not in the files.

    As in InfoCORE, means and deviations are over all profiles, those of validation and test included, and over all
    drugs that Mol2vec has; ``complete`` and ``max_replicates`` do not change them. ``split`` follows from the seeds in
    its code (NumPy's for GE, PyTorch's for CP) and is of all drugs, too; DisentangledSSL's own is not published. The
    86,833 profiles of its 3,315 drugs are 26 per drug, from which we conclude that its three replicates are per drug
    and cell line.

    The reader was tested on files of the same format made for the test, not on the original ones.

    References
    ----------
    .. [1] Wang et al. (2024), Removing biases from molecular representations via information maximization. ICLR.
    .. [2] Wang et al. (2025), An information criterion for controlled disentanglement of multimodal data. ICLR.
    """
    check_option("dataset", dataset, _SETS)
    if max_replicates is not None:
        check_whole("max_replicates", max_replicates, 1)
    if complete and dataset != "GE":
        raise ValueError("`complete` is of dataset 'GE': 'CP' has one cell line.")
    curated = _SETS[dataset]
    folder = _find(Path(path), dataset, curated)
    mol2vec = _arrays(folder / curated.molecules, _load(folder / curated.molecules))
    x, obs = _expression(folder, curated, mol2vec) if dataset == "GE" else _morphology(folder, curated)
    obs["split"] = _split_by_drug(obs) if dataset == "GE" else _split_at_random(obs)
    obs["row"] = np.arange(len(obs))
    if scale:
        x = _standardised(np.clip(x, -curated.clip, curated.clip))
    if complete:
        seen = obs.groupby("compound")["cell_line"].nunique()
        obs = obs[obs["compound"].isin(seen.index[seen == len(CORE_CELL_LINES)])]
    if max_replicates is not None:
        obs = draw_replicates(obs, [one for one in ("compound", "cell_line") if one in obs], max_replicates, seed)
    if not len(obs):
        raise ValueError(f"{folder}: no profile is left; loosen `complete`.")
    x = x[obs.pop("row").to_numpy()]
    var = pd.DataFrame(index=[f"{'gene' if dataset == 'GE' else 'feature'}_{i}" for i in range(x.shape[1])])
    phenotype = AnnData(x, obs=pd.DataFrame(index=obs.index), var=var)
    molecule = _mol2vec(mol2vec, obs, scale) if featurizer is None else None
    mdata = screen({"phenotype": phenotype}, obs, featurizer, molecule)
    mdata.obs["split"] = mdata.obs["split"].cat.set_categories(["train", "val", "test"])
    return mdata


# ---- files --------------------------------------------------------------------------------


def _find(path: Path, dataset: str, curated: _Curated) -> Path:
    names = [curated.entries, curated.molecules, *curated.others]
    places = [path, path / curated.folder, path / "data" / curated.folder, path / dataset / "data" / curated.folder]
    folder = next((place for place in places if (place / curated.entries).exists()), path)
    if missing := [name for name in names if not (folder / name).exists()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}. Download {dataset}/data from {_SOURCE}.")
    return folder


class _Careful(pickle.Unpickler):
    """Builds containers, numbers, text and NumPy arrays, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, which could run code; convert it to NumPy arrays where you trust it"
            )
        return super().find_class(module, name)


def _load(path: Path) -> dict:
    try:
        with path.open("rb") as file:
            loaded = _Careful(file).load()
    except Exception as error:  # the kinds of error of a broken file are many
        raise ValueError(f"{path} cannot be read: {error}. It should come from {_SOURCE}.") from error
    if not isinstance(loaded, dict) or not loaded:
        raise ValueError(f"{path} must hold a dictionary, and holds a {type(loaded).__name__}.")
    return loaded


def _names(path: Path) -> list[str]:
    try:
        return np.load(path, allow_pickle=False).astype(str).ravel().tolist()
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is no list of names: {error} It should come from {_SOURCE}.") from error


def _arrays(path: Path, loaded: Mapping[Any, Any]) -> pd.DataFrame:
    """Arrays of one length, as rows under their names."""
    try:
        values = np.stack([np.asarray(one, dtype=np.float32).ravel() for one in loaded.values()])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} must hold arrays of numbers of one length: {error}.") from error
    return pd.DataFrame(values, index=pd.Index([str(key) for key in loaded], dtype=object))


# ---- entries ------------------------------------------------------------------------------


def _expression(folder: Path, curated: _Curated, mol2vec: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Wells in the order of the list of wells, minus the controls of their plate."""
    path = folder / curated.entries
    entries, smiles = _load(path), _load(folder / "id_smiles")
    controls = _arrays(folder / "ctl_dict1_mean.pkl", _load(folder / "ctl_dict1_mean.pkl"))
    chosen = _names(folder / "sel_keys_dosesubset.npy")
    if missing := [key for key in chosen if key not in entries]:
        raise ValueError(
            f"{path} lacks {len(missing):,} of the wells in sel_keys_dosesubset.npy, such as {missing[0]!r}."
        )
    fields = _fields(path, [entries[key] for key in chosen], {"batch": 0, "compound": 2, "cell_line": 9}, 10)
    obs = fields.set_axis(chosen)
    obs["smiles"] = obs["compound"].map({str(key): str(value) for key, value in smiles.items()})
    if all(len(entries[key]) == 11 for key in chosen):
        more = {"well": 1, "dose": 5, "unit": 6, "time": 7}
        more = _fields(path, [entries[key] for key in chosen], more, 10).set_axis(chosen)
        obs["well"], obs["dose"], obs["time"] = (
            more["well"],
            micromolar(more["dose"], more["unit"]),
            hours(more["time"]),
        )
    kept = obs["batch"].isin(controls.index) & obs["smiles"].isin(mol2vec.index)
    kept &= obs["cell_line"].isin(CORE_CELL_LINES)
    obs = obs[kept]
    if not len(obs):
        raise ValueError(f"{path} has no well of a core cell line with controls on its plate and a known drug.")
    x = _arrays(path, {key: entries[key][-1] for key in obs.index}).to_numpy()
    if x.shape[1] != controls.shape[1]:
        raise ValueError(f"{path} has {x.shape[1]} genes per profile, and ctl_dict1_mean.pkl {controls.shape[1]}.")
    x = x - controls.to_numpy()[controls.index.get_indexer(obs["batch"])]
    return x, obs.copy()


def _morphology(folder: Path, curated: _Curated) -> tuple[np.ndarray, pd.DataFrame]:
    path = folder / curated.entries
    entries = _load(path)
    obs = _fields(path, list(entries.values()), {"compound": 3, "smiles": 4, "batch": 5}, 7)
    obs.index = pd.Index([str(key) for key in entries], dtype=object)
    # the first SMILES of a drug stands for all of them, as in InfoCORE
    obs["smiles"] = obs.groupby("compound")["smiles"].transform("first")
    return _arrays(path, {key: entry[6] for key, entry in entries.items()}).to_numpy(), obs


def _fields(path: Path, entries: list, places: Mapping[str, int], shortest: int) -> pd.DataFrame:
    for entry in entries:
        if not isinstance(entry, list | tuple) or len(entry) < shortest:
            raise ValueError(f"{path} must hold lists of {shortest} or more, and holds {type(entry).__name__}.")
    return pd.DataFrame({name: [str(entry[place]) for entry in entries] for name, place in places.items()})


# ---- scale and split ----------------------------------------------------------------------


def _standardised(x: np.ndarray) -> np.ndarray:
    deviation = x.std(axis=0, dtype=np.float64)
    return ((x - x.mean(axis=0, dtype=np.float64)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def _mol2vec(mol2vec: pd.DataFrame, obs: pd.DataFrame, scale: bool) -> AnnData:
    values = mol2vec.to_numpy()
    if scale:
        values = np.clip(_standardised(values), -_MOLECULE_CLIP, _MOLECULE_CLIP)
    # drugs that the file lacks have no molecule
    obs = obs[obs["smiles"].isin(mol2vec.index)]
    if not len(obs):
        raise ValueError("None of the drugs has Mol2vec numbers in the file: give a `featurizer`.")
    row = mol2vec.index.get_indexer(obs["smiles"])
    var = pd.DataFrame(index=[f"mol2vec_{i}" for i in range(values.shape[1])])
    about = pd.DataFrame({"smiles": labels(obs["smiles"]), "compound": labels(obs["compound"])})
    return AnnData(values[row], obs=about, var=var)


def _split_by_drug(obs: pd.DataFrame) -> np.ndarray:
    """Drugs in a random order fill train with 80 % of the pairs of drug and cell line, then val with 10 %."""
    pairs = obs.drop_duplicates(["cell_line", "compound"])
    codes, drugs = pd.factorize(pairs["smiles"])
    sizes = np.bincount(codes)
    # the old generator, as the published split is made with it
    order = np.random.RandomState(0).permutation(len(drugs))
    part, filled = np.empty(len(drugs), dtype=object), {"train": 0, "val": 0}
    limits = {"train": int(len(pairs) * 0.8), "val": int(len(pairs) * 0.1)}
    for drug in order:
        part[drug] = next((name for name in filled if filled[name] < limits[name]), "test")
        if part[drug] in filled:
            filled[part[drug]] += sizes[drug]
    return part[pd.Index(drugs).get_indexer(obs["smiles"])]


def _split_at_random(obs: pd.DataFrame) -> np.ndarray:
    """Drugs as :func:`torch.utils.data.random_split` deals them out."""
    codes, drugs = pd.factorize(obs["compound"])
    parts = torch.utils.data.random_split(
        range(len(drugs)), [0.8, 0.1, 0.1], generator=torch.Generator().manual_seed(0)
    )
    part = np.empty(len(drugs), dtype=object)
    for name, one in zip(("train", "val", "test"), parts, strict=True):
        part[list(one.indices)] = name
    return part[codes]
