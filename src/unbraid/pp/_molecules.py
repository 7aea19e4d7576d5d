"""Molecules as a modality."""

from __future__ import annotations

import runpy
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from tqdm.auto import tqdm

from unbraid._messages import check_option, check_whole, suggest
from unbraid.pp import _molecular_features
from unbraid.pp._mol2vec import Mol2vec
from unbraid.pp._molecular_features import FEATURIZERS, FINGERPRINTS, IDENTITY, read_chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, Literal

    from numpy.typing import ArrayLike, NDArray
    from rdkit.Chem import Mol

KEY = "molecules"  # in `uns`: how the features were made
CHUNK = 100  # molecules that a worker process gets at a time
MOST_DEVIATIONS = 10  # of a descriptor from its mean
WORTH_PROCESSES = 5.0  # seconds of work left that repay the start of worker processes


def molecules(
    smiles: Sequence[str] | pd.Series,
    featurizer: str | Callable[[Mol], ArrayLike] | None = None,
    *,
    n_features: int = 2048,
    radius: int = 2,
    standardize: bool = True,
    invalid: Literal["raise", "drop"] = "raise",
    reference: AnnData | None = None,
    n_jobs: int | None = None,
    progress_bar: bool = True,
) -> AnnData:
    """Molecules as a modality: one row per SMILES, features in ``X``, and who is who in ``obs``.

    Parameters
    ----------
    smiles
        One SMILES per row. The index of a Series gives the names of the rows, by which modalities are paired; else they
        are ``0``, ``1``, ... Rows may repeat a molecule, as the profiles of one compound do: each is worked on once.
    featurizer
        What ``X`` holds:

        - ``"morgan_count"``, the default: how often each circular environment of atoms is there (ECFP, [1]_);
          ``"morgan"``: whether it is; folded to ``n_features`` columns, and without stereochemistry;
        - ``"feature_morgan_count"``, ``"feature_morgan"``: the same of pharmacophoric kinds of atoms (FCFP);
        - ``"maccs"``: 167 structural keys, 0 or 1;
        - ``"descriptors"``: RDKit's two-dimensional descriptors, made comparable (see Notes);
        - a function of an RDKit ``Mol`` to a row of numbers, such as :class:`Mol2vec`.
    n_features
        Columns of Morgan fingerprints.
    radius
        Largest radius of Morgan environments, in bonds.
    standardize
        Take salts, solvents, charges and ways of drawing away first (see Notes). If False, molecules are as given, and
        each salt is a compound of its own.
    invalid
        What to do with SMILES that are missing or no molecules: raise an error that names them, or leave their rows out
        with a warning.
    reference
        Result of an earlier call. Featurizer, options, columns and scaling are taken from it in place of those given
        here, so that new molecules line up with it column for column. Where its featurizer was a function, give that
        as ``featurizer`` again, and else leave it out.
    n_jobs
        Largest number of processes, by default one per core. More than one is started only where work of seconds is
        left.
    progress_bar
        Show a bar that counts molecules, after a second.

    Returns
    -------
    AnnData with one row per molecule and ``X`` float32: CSR of fingerprints, else dense. Columns of ``obs``:

    - ``smiles``: as given;
    - ``canonical_smiles``: of the standardised molecule;
    - ``compound``: the same for the same molecule, whatever SMILES or salt it was given as: the InChIKey of the
      standardised molecule, which tells stereoisomers apart and unites many tautomers; its canonical SMILES where
      there is no InChI;
    - ``scaffold``: rings and what links them (Bemis-Murcko, [2]_), as SMILES without stereochemistry; ``""`` of
      molecules without rings.

    ``uns["molecules"]`` notes the featurizer, its options, the version of RDKit, the number of invalid rows
    (``n_invalid``) and which they were (``invalid``).

    Raises
    ------
    ValueError
        If options are wrong, SMILES are invalid, there is no molecule at all, or ``reference`` is of another featurizer
        or its columns cannot be made.

    Warns
    -----
    UserWarning
        If invalid rows are left out.

    See Also
    --------
    molecular_groups : compounds, scaffolds or clusters of molecules.
    split : molecules of one compound, scaffold or cluster to one side.

    Notes
    -----
    **Standardisation** is RDKit's: salts are taken apart, functional groups are drawn in one way, the largest organic
    fragment (by heavy atoms) is kept and neutralised. Of a mixture only the largest part is kept, even if it is the
    counter-ion, such as pamoate. A molecule without carbon, or with a metal other than those of simple salts (Li, Na,
    K, Rb, Cs, Mg, Ca, Sr, Ba, Zn, Al, Ag), is kept whole: the largest fragment of cisplatin would be ammonia. Tautomers
    stay as drawn: to make them canonical takes many times longer.

    **Descriptors** are clipped to Tukey's outer fences, three interquartile ranges beyond the quartiles (to the
    extremes if the quartiles are equal), and then have mean 0 and standard deviation 1, all over the distinct molecules
    given. No value is more than 10 deviations from the mean, as those of groups that few molecules have would be.
    Descriptors that are not defined for a molecule take the median. ``var`` keeps ``median``, ``low``, ``high``,
    ``mean`` and ``scale`` for later calls with ``reference``. To keep held-out molecules out of the scaling, make those
    for training first, then all of them with these as ``reference``.

    References
    ----------
    .. [1] Rogers, Hahn (2010), Extended-connectivity fingerprints. Journal of Chemical Information and Modeling 50,
       742-754.
    .. [2] Bemis, Murcko (1996), The properties of known drugs. 1. Molecular frameworks. Journal of Medicinal Chemistry
       39, 2887-2893.

    Examples
    --------
    >>> import unbraid as ub
    >>> adata = ub.pp.molecules(["CC(=O)Oc1ccccc1C(=O)O", "CC(=O)Oc1ccccc1C(=O)[O-].[Na+]", "CCO"])
    >>> adata.shape
    (3, 2048)
    >>> adata.obs["canonical_smiles"].tolist()
    ['CC(=O)Oc1ccccc1C(=O)O', 'CC(=O)Oc1ccccc1C(=O)O', 'CCO']
    >>> adata.obs["scaffold"].tolist()
    ['c1ccccc1', 'c1ccccc1', '']

    As a modality beside others, paired by the names of the cells:

    >>> mdata = MuData({"molecule": ub.pp.molecules(profiles.obs["smiles"]), "profile": profiles})  # doctest: +SKIP
    """
    check_option("`invalid`", invalid, ("raise", "drop"))
    if reference is None:
        featurizer = "morgan_count" if featurizer is None else featurizer
        how = _how(featurizer, n_features, radius, standardize)
    else:
        how = _how_of(reference, featurizer)
    given = as_series(smiles)
    read = read_molecules(
        given,
        standardize=how["standardize"],
        **_features(how, featurizer, reference),
        n_jobs=n_jobs,
        progress_bar=progress_bar,
    )
    bad = read.problem != ""
    if bad.any():
        _raise_or_warn(given, read.problem, invalid)
    values, var = _table(how, read, reference)
    return AnnData(
        values[read.number[~bad]],
        obs=read.table.iloc[read.number[~bad]].set_index(given.index[~bad]).assign(smiles=given[~bad].to_numpy()),
        var=var,
        uns={KEY: {**how, **_record(given[bad], read.problem[bad])}},
    )


@dataclass(frozen=True)
class ReadMolecules:
    """Distinct molecules, and which of them each row is.

    Attributes
    ----------
    number
        ``(n_rows,)``, row of ``table``; -1 where there is no molecule.
    problem
        ``(n_rows,)``, why there is none; empty where there is one.
    table
        One row per distinct SMILES, with columns ``smiles``, ``canonical_smiles``, ``compound`` and ``scaffold``.
    features
        One row per row of ``table``; None if not asked for.
    """

    number: NDArray[np.int64]
    problem: NDArray[np.object_]
    table: pd.DataFrame
    features: sparse.csr_matrix | NDArray | None


def as_series(smiles: Sequence[str] | pd.Series) -> pd.Series:
    """SMILES by the name of their row, as they are.

    Parameters
    ----------
    smiles
        Strings.
    """
    if isinstance(smiles, str):
        raise ValueError(f"`smiles` must be a sequence of SMILES, not one: use `[{smiles!r}]`.")
    if not len(smiles):
        raise ValueError("`smiles` is empty.")
    names = smiles.index if isinstance(smiles, pd.Series) else range(len(smiles))
    return pd.Series(list(smiles), index=pd.Index(names).astype(str), name="smiles", dtype=object)


def read_molecules(
    smiles: pd.Series,
    *,
    standardize: bool = True,
    features: str | None = None,
    options: dict[str, Any] | None = None,
    n_jobs: int | None = None,
    progress_bar: bool = True,
) -> ReadMolecules:
    """Read each distinct SMILES once.

    Parameters
    ----------
    smiles
        Of :func:`as_series`.
    standardize, n_jobs, progress_bar
        See :func:`molecules`.
    features, options
        See :func:`~unbraid.pp._molecular_features.read_chunk`.
    """
    if n_jobs is not None:
        check_whole("n_jobs", n_jobs, 1)
    is_text = np.array([isinstance(one, str) for one in smiles], dtype=bool)
    problem = np.where(smiles.isna(), "missing", "not text").astype(object)
    text = smiles.where(is_text, "").str.strip().to_numpy(dtype=object)
    problem[is_text] = np.where(text[is_text] == "", "missing", "")

    number = np.full(len(smiles), -1)
    number[problem == ""], distinct = pd.factorize(text[problem == ""])
    chunks = [distinct[start : start + CHUNK] for start in range(0, len(distinct), CHUNK)]
    how = {"standardize": standardize, "features": features, "options": options or {}}
    identities, parts = [], []
    with tqdm(
        total=len(distinct), desc="molecules", unit="molecule", disable=not progress_bar, leave=False, delay=1
    ) as bar:
        for identity, values in _each(chunks, n_jobs, how):
            identities += identity
            parts += [] if values is None else [values]
            bar.update(len(identity))

    table = pd.DataFrame(identities, columns=list(IDENTITY), dtype=object)
    table.insert(0, "smiles", distinct)
    has = number >= 0
    problem[has] = table["problem"].to_numpy()[number[has]]
    good = (table["problem"] == "").to_numpy()
    number[has] = np.where(good, np.cumsum(good) - 1, -1)[number[has]]
    return ReadMolecules(number, problem, table.loc[good].drop(columns="problem"), _joined(parts))


def _each(chunks: Sequence, n_jobs: int | None, options: dict[str, Any]) -> Iterator:
    """``read_chunk`` of each chunk in order, by several processes if that is faster."""
    # the first chunk loads RDKit's modules, so that the second tells what the rest will take
    for chunk in chunks[:2]:
        start = time.perf_counter()
        result = read_chunk(chunk, **options)
        seconds = time.perf_counter() - start
        yield result
    rest = chunks[2:]
    if n_jobs == 1 or not rest or seconds * len(rest) < WORTH_PROCESSES:
        for chunk in rest:
            yield read_chunk(chunk, **options)
        return

    from joblib import Parallel, delayed

    # A function of no module is sent as it is. One of this package would be sent as a name, for which every process
    # would import the package, and PyTorch with it: seconds, and half a gigabyte.
    read = runpy.run_path(_molecular_features.__file__)["read_chunk"]
    yield from Parallel(n_jobs=n_jobs or -1, return_as="generator")(delayed(read)(chunk, **options) for chunk in rest)


def _joined(parts: list) -> sparse.csr_matrix | NDArray | None:
    if not parts:
        return None
    if sparse.issparse(parts[0]):
        return sparse.vstack(parts, format="csr")
    if len(widths := {values.shape[1] for values in parts}) > 1:
        raise ValueError(
            f"`featurizer` must give as many numbers for every molecule; it gave {' and '.join(map(str, widths))}."
        )
    return np.concatenate(parts)


def _raise_or_warn(given: pd.Series, problem: NDArray, invalid: str) -> None:
    text = invalid_text(given, problem)
    if invalid == "raise":
        raise ValueError(f'{text} Correct them, or leave their rows out with `invalid="drop"`.')
    if (problem != "").all():
        raise ValueError(f"{text} No molecule is left.")
    warnings.warn(f"{text} These rows are left out; see `uns[{KEY!r}]['invalid']`.", UserWarning, stacklevel=3)


def invalid_text(given: pd.Series, problem: NDArray) -> str:
    """How many SMILES are invalid, and which are the first.

    Parameters
    ----------
    given
        Of :func:`as_series`.
    problem
        Of :class:`ReadMolecules`.
    """
    rows = np.flatnonzero(problem != "")
    some = []
    for row in rows[:5]:
        name = "" if given.index[row] == str(row) else f" ({given.index[row]!r})"
        value = "" if problem[row] == "missing" else f"{given.iloc[row]!r:.80}, "
        some.append(f"row {row}{name}: {value}{problem[row]}")
    more = f"; and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"{len(rows)} of {len(given)} SMILES are missing or invalid. {'; '.join(some)}{more}."


# ---- features -----------------------------------------------------------------------------


def _how(featurizer: str | Callable, n_features: int, radius: int, standardize: bool) -> dict[str, Any]:
    """What ``uns`` notes and ``reference`` takes over."""
    import rdkit

    how = {"standardize": bool(standardize), "rdkit": rdkit.__version__}
    if callable(featurizer):
        name = getattr(featurizer, "__name__", type(featurizer).__name__).strip("<>").lower()
        return how | {"featurizer": f"own_{name}" if name in FEATURIZERS else name}
    if featurizer not in FEATURIZERS:
        raise ValueError(f"`featurizer`: no {featurizer!r}. {suggest(featurizer, FEATURIZERS)} Or give a function.")
    how["featurizer"] = featurizer
    if featurizer.endswith(("morgan", "count")):
        check_whole("n_features", n_features, 1)
        check_whole("radius", radius, 0)
        how |= {"n_features": int(n_features), "radius": int(radius)}
    return how


def _how_of(reference: AnnData, featurizer: str | Callable | None) -> dict[str, Any]:
    noted = reference.uns.get(KEY, {}) if isinstance(reference, AnnData) else {}
    if "featurizer" not in noted:
        raise ValueError(f"`reference` must be an AnnData that `ub.pp.molecules` made, with `uns[{KEY!r}]`.")
    name = str(noted["featurizer"])
    if (name in FEATURIZERS) == callable(featurizer) or (isinstance(featurizer, str) and featurizer != name):
        mend = "leave `featurizer` out" if name in FEATURIZERS else "give that function as `featurizer`"
        raise ValueError(f"`reference` has features of {name!r}: {mend}.")
    return _how(
        featurizer if callable(featurizer) else name,
        noted.get("n_features", 1),
        noted.get("radius", 0),
        noted["standardize"],
    )


def _features(how: dict, featurizer: str | Callable | None, reference: AnnData | None) -> dict[str, Any]:
    """Which features a worker process makes, and with which options."""
    if isinstance(featurizer, Mol2vec):
        return {"features": "word_sums", "options": featurizer.options}
    if callable(featurizer):
        return {"features": "own_features", "options": {"function": featurizer}}
    if how["featurizer"] == "descriptors":
        return {"features": "descriptors", "options": {"names": _descriptor_names(reference)}}
    options = {"kind": how["featurizer"], "n_features": how.get("n_features", 167), "radius": how.get("radius", 0)}
    return {"features": "fingerprints", "options": options}


def _descriptor_names(reference: AnnData | None) -> list[str]:
    from rdkit.Chem import Descriptors

    names = [name for name, _ in Descriptors.descList]
    if reference is None:
        return names
    if unknown := [name for name in reference.var_names if name not in names]:
        raise ValueError(
            f"`reference` has descriptors that this RDKit does not know, such as {unknown[0]!r}. It was made with "
            f"RDKit {reference.uns[KEY]['rdkit']}."
        )
    return list(reference.var_names)


def _table(how: dict, read: ReadMolecules, reference: AnnData | None) -> tuple[Any, pd.DataFrame]:
    """Features of the distinct molecules, and ``var``."""
    values, name = read.features, how["featurizer"]
    if name == "descriptors":
        if reference is None:
            var = _scaling(values[~read.table["canonical_smiles"].duplicated()], _descriptor_names(None))
        else:
            var = _scaling_of(reference)
        return _scaled(values, var), var
    prefix = name.removesuffix("_count") if name in FINGERPRINTS else name
    names = pd.Index([f"{prefix}_{i}" for i in range(values.shape[1])])
    if reference is None:
        return values, pd.DataFrame(index=names)
    columns = names.get_indexer(reference.var_names)
    if (columns < 0).any():
        raise ValueError(
            f"`reference` has columns such as {reference.var_names[columns < 0][0]!r}, which these features have not: "
            f"they are {names[0]!r} to {names[-1]!r}."
        )
    return values[:, columns], pd.DataFrame(index=reference.var_names)


def _scaling(values: NDArray[np.float64], names: Sequence[str]) -> pd.DataFrame:
    """How to make each descriptor comparable, from one row per molecule."""
    table = pd.DataFrame(_bounded(values), columns=list(names))
    low, high = table.min(), table.max()
    quartiles = table.quantile([0.25, 0.5, 0.75])
    reach = 3 * (quartiles.loc[0.75] - quartiles.loc[0.25])
    var = pd.DataFrame(
        {
            "median": quartiles.loc[0.5],
            # of most groups that are counted, most molecules have none: a fence would cut off all others
            "low": np.maximum(low, quartiles.loc[0.25] - reach).where(reach > 0, low),
            "high": np.minimum(high, quartiles.loc[0.75] + reach).where(reach > 0, high),
        }
    ).fillna(0.0)
    clipped = table.fillna(var["median"]).clip(var["low"], var["high"], axis=1)
    deviation = clipped.std(ddof=0)
    # what is constant is not scaled, also where its mean is rounded
    constant = deviation <= 1e-9 * clipped.abs().max()
    mean, scale = clipped.mean(), deviation.where(~constant, 1.0)
    low = np.maximum(var["low"], mean - MOST_DEVIATIONS * scale)
    high = np.minimum(var["high"], mean + MOST_DEVIATIONS * scale)
    return var.assign(low=low, high=high, mean=mean, scale=scale)


def _scaling_of(reference: AnnData) -> pd.DataFrame:
    columns = ["median", "low", "high", "mean", "scale"]
    if missing := [column for column in columns if column not in reference.var]:
        raise ValueError(f"`reference` lacks the scaling of its descriptors: no var column {missing[0]!r}.")
    return reference.var[columns].astype(float)


def _scaled(values: NDArray[np.float64], var: pd.DataFrame) -> NDArray[np.float32]:
    bounded = _bounded(values)
    full = np.where(np.isnan(bounded), var["median"].to_numpy(), bounded)
    clipped = np.clip(full, var["low"].to_numpy(), var["high"].to_numpy())
    return ((clipped - var["mean"].to_numpy()) / var["scale"].to_numpy()).astype(np.float32)


def _bounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Infinite and huge values within what float32 holds; NaN stays."""
    largest = float(np.finfo(np.float32).max)
    return np.clip(values, -largest, largest)


def _record(given: pd.Series, problem: NDArray) -> dict[str, Any]:
    """The rows left out, as ``uns`` notes them."""
    smiles = ["" if missing else str(one) for one, missing in zip(given, given.isna(), strict=True)]
    table = pd.DataFrame({"smiles": smiles, "problem": problem.astype(str)}, index=given.index)
    return {"n_invalid": len(given), "invalid": table}
