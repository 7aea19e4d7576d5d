"""Pairs of cells from labels or from answers, kept in ``obsp``."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from mudata import MuData

from unbraid._messages import check_range, check_whole, suggest
from unbraid.data._manager import _obs_column
from unbraid.data._pairs import Pairs, check_consistent, close_pairs, read_pairs

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

MAX_PAIRS = 1_000_000  # that are made without being asked for by number


def pairs_from_labels(
    mdata: MuData | AnnData,
    key: str,
    *,
    n_pairs: int | None = None,
    fraction: float | None = None,
    n_labelled: float | None = None,
    noise: float = 0.0,
    closure: bool = False,
    key_added: str = "pairs",
    seed: int = 0,
) -> None:
    r"""Pair cells at random, must-link if they have the same label and cannot-link if not.

    Writes ``mdata.obsp[key_added]``, a symmetric sparse int8 matrix of 1 (must-link) and -1 (cannot-link), for
    ``setup_mudata(..., pairs_key=key_added)`` and :func:`~unbraid.tl.constrained_kmeans`; and what was done in
    ``mdata.uns["unbraid_pairs"][key_added]``. Pairs are drawn uniformly and without replacement from the
    :math:`n (n - 1) / 2` of the :math:`n` labelled cells.

    Parameters
    ----------
    mdata
        MuData or AnnData.
    key
        Column of ``mdata.obs``, such as an annotation of some cells, clonotype, lineage barcode or hashtag. Cells
        without a value are in no pair.
    n_pairs
        Number of pairs. All pairs of labelled cells by default, if they are no more than a million.
    fraction
        Number of pairs as a multiple of the number of cells, in place of ``n_pairs``; 0.1 and 1 in [1]_.
    n_labelled
        Choose so many labelled cells first, or such a share of them if it is a float, and pair only those.
    noise
        Share of the pairs whose kind is flipped; ``round(noise * n_pairs)`` are, exactly.
    closure
        Add what follows from the pairs: see :func:`~unbraid.data.close_pairs`.
    key_added
        Key of ``obsp`` to write.
    seed
        Seed of NumPy's default generator.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If fewer than two cells have a label, if more pairs or cells are asked for than there are, if the default would
        make more than a million pairs, if ``closure`` is asked for with ``noise``, or if ``mdata`` is a view.

    Warns
    -----
    UserWarning
        If all pairs are of one kind.

    References
    ----------
    .. [1] Dual-level disentanglement (DL2): task-adaptive disentanglement for resolving the task-generation dilemma.
       Under review.

    Examples
    --------
    >>> mdata = ub.data.simulate.classes(n_obs=1_000)
    >>> ub.pp.pairs_from_labels(mdata, "y_shared", fraction=0.1)
    >>> mdata.uns["unbraid_pairs"]["pairs"]["n_must"], mdata.uns["unbraid_pairs"]["pairs"]["n_cannot"]
    (12, 88)
    """
    _check_no_view(mdata)
    check_whole("seed", seed, 0)
    check_range("`noise`", noise, 0 <= noise <= 1, "between 0 and 1")
    if closure and noise > 0:
        raise ValueError("`closure` follows chains of must-links, and `noise` breaks them: use one of the two.")
    codes, _ = pd.factorize(_labels(mdata, key))
    rng = np.random.default_rng(seed)
    cells = _labelled_cells(codes, key, n_labelled, rng)
    n_asked = _number_of_pairs(len(cells), mdata.n_obs, n_pairs, fraction)

    rows = cells[_random_pairs(len(cells), n_asked, rng)]
    same = codes[rows[:, 0]] == codes[rows[:, 1]]
    same[rng.choice(n_asked, round(noise * n_asked), replace=False)] ^= True
    pairs = Pairs(rows[same], rows[~same])
    if closure:
        pairs = close_pairs(pairs, mdata.n_obs)
    for kind, found in (("must-links", pairs.must), ("cannot-links", pairs.cannot)):
        if not len(found):
            warnings.warn(f"There are no {kind} among {len(pairs)} pairs of {key!r}.", UserWarning, stacklevel=2)
    how = {"key": key, "n_labelled": len(cells), "noise": float(noise), "closure": closure, "seed": seed}
    _write(mdata, key_added, pairs, how)


def add_pairs(
    mdata: MuData | AnnData,
    first: ArrayLike,
    second: ArrayLike,
    same: ArrayLike,
    key: str = "pairs",
) -> None:
    """Add answers to ``mdata.obsp[key]``, such as those to :func:`~unbraid.tl.suggest_pairs`.

    Parameters
    ----------
    mdata
        MuData or AnnData.
    first, second
        Names of cells, ``(n,)`` each.
    same
        ``(n,)`` booleans: True for a must-link, False for a cannot-link.
    key
        Key of ``obsp``; made if there is none.

    Raises
    ------
    KeyError
        If there is no such cell.
    ValueError
        If the lengths differ, ``same`` is not boolean, a cell is paired with itself, an answer contradicts the pairs
        that are there or those that follow from them, or ``mdata`` is a view. Nothing is written then.

    Examples
    --------
    >>> mdata = ub.data.simulate.classes(n_obs=1_000)
    >>> a, b, c = mdata.obs_names[:3]
    >>> ub.pp.add_pairs(mdata, [a, a], [b, c], [True, False])
    >>> mdata.obsp["pairs"].nnz  # a pair is there from both cells
    4
    """
    _check_no_view(mdata)
    same = np.asarray(same)
    if same.dtype == object and pd.api.types.infer_dtype(same, skipna=False) == "boolean":
        same = same.astype(bool)
    if same.dtype != bool:
        raise ValueError(
            "`same` must be boolean: True for a must-link, False for a cannot-link. Leave out pairs without an answer."
        )
    if not np.shape(first) == np.shape(second) == same.shape or same.ndim != 1:
        raise ValueError(
            f"`first`, `second` and `same` must be of one length, got shapes {np.shape(first)}, {np.shape(second)} "
            f"and {same.shape}."
        )
    rows = np.stack([_cell_numbers(mdata, names, name) for names, name in ((first, "first"), (second, "second"))], 1)
    known = read_pairs(mdata, key) if key in mdata.obsp else Pairs([], [])
    must, cannot = (np.concatenate([had, rows[chosen]]) for had, chosen in ((known.must, same), (known.cannot, ~same)))
    _check_answers(must, cannot, mdata.obs_names)
    pairs = Pairs(must, cannot)
    check_consistent(pairs, mdata.n_obs, mdata.obs_names)
    _write(mdata, key, pairs, dict(mdata.uns.get("unbraid_pairs", {}).get(key, {})))


def _check_no_view(mdata: MuData | AnnData) -> None:
    if mdata.is_view:
        raise ValueError(f"The {type(mdata).__name__} is a view. Run `mdata = mdata.copy()` first.")


def _labels(mdata: MuData | AnnData, key: str) -> pd.Series:
    if isinstance(mdata, MuData):
        return _obs_column(mdata, key, "key")
    if key not in mdata.obs:
        raise KeyError(f"`key`: no obs column {key!r} in the AnnData. {suggest(key, mdata.obs.columns)}")
    return mdata.obs[key]


def _labelled_cells(codes: NDArray, key: str, n_labelled: float | None, rng: np.random.Generator) -> NDArray:
    cells = np.flatnonzero(codes >= 0)
    if len(cells) < 2:
        raise ValueError(f"{len(cells)} of {len(codes)} cells have a label in {key!r}; pairs need at least two.")
    if n_labelled is None:
        return cells
    is_number = isinstance(n_labelled, Integral)
    if not is_number and not (isinstance(n_labelled, Real) and 0 < n_labelled <= 1):
        raise ValueError(f"`n_labelled` must be a whole number, or a share above 0 and up to 1, not {n_labelled!r}.")
    n_chosen = n_labelled if is_number else round(n_labelled * len(cells))
    if not 2 <= n_chosen <= len(cells):
        raise ValueError(
            f"`n_labelled`={n_labelled} means {n_chosen} cells, but there are {len(cells)} with a label in {key!r}, "
            "and pairs need at least two."
        )
    return np.sort(rng.choice(cells, n_chosen, replace=False))


def _number_of_pairs(n_cells: int, n_obs: int, n_pairs: int | None, fraction: float | None) -> int:
    n_all = n_cells * (n_cells - 1) // 2
    if n_pairs is None and fraction is None:
        if n_all > MAX_PAIRS:
            raise ValueError(
                f"{n_cells} labelled cells have {n_all} pairs, more than {MAX_PAIRS}. Say how many to draw: `n_pairs`, "
                "or `fraction` of the number of cells."
            )
        return n_all
    if n_pairs is not None and fraction is not None:
        raise ValueError("Give `n_pairs` or `fraction`, not both.")
    if n_pairs is None:
        check_range("`fraction`", fraction, fraction > 0, "positive")
        n_pairs = round(fraction * n_obs)
    check_whole("n_pairs", n_pairs, 1)
    if n_pairs > n_all:
        raise ValueError(f"{n_pairs} pairs are asked for, but {n_cells} labelled cells have only {n_all}.")
    return int(n_pairs)


def _random_pairs(n: int, n_pairs: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many different pairs of n things, uniformly."""
    # pairs are numbered by distance around a circle, then by where they start, which needs no square root to undo
    number = rng.choice(n * (n - 1) // 2, n_pairs, replace=False, shuffle=False)
    start = number % n
    return np.stack([start, (start + number // n + 1) % n], axis=1)


def _cell_numbers(mdata: MuData | AnnData, names: ArrayLike, name: str) -> NDArray[np.int64]:
    names = pd.Index(np.asarray(names))
    rows = mdata.obs_names.get_indexer(names)
    if (rows < 0).any():
        unknown = names[rows < 0][0]
        raise KeyError(f"`{name}`: there is no cell {unknown!r}. {suggest(unknown, mdata.obs_names)}")
    return rows.astype(np.int64)


def _check_answers(must: NDArray, cannot: NDArray, names: pd.Index) -> None:
    """Raise if a pair is in both, in the names of the cells."""
    rows = np.sort(np.concatenate([np.unique(np.sort(kind, axis=1), axis=0) for kind in (must, cannot)]), axis=1)
    if len(twice := rows[pd.DataFrame(rows).duplicated()]):
        a, b = names[twice[0]]
        raise ValueError(
            f"{len(twice)} pairs are answered in two ways, e.g. cells {a!r} and {b!r}. Keep one answer each; known "
            "pairs are in `obsp`."
        )


def _write(mdata: MuData | AnnData, key: str, pairs: Pairs, how: dict) -> None:
    mdata.obsp[key] = pairs.matrix(mdata.n_obs)
    how |= {"n_must": len(pairs.must), "n_cannot": len(pairs.cannot)}
    mdata.uns["unbraid_pairs"] = {**mdata.uns.get("unbraid_pairs", {}), key: how}
