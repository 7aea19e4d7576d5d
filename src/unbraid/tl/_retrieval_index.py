"""An index of candidates that is searched by vectors."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from threadpoolctl import ThreadpoolController

from unbraid._messages import check_option, check_whole
from unbraid.metrics._lookup import values_of
from unbraid.metrics._rows import present_rows, rows_of
from unbraid.tl._match_confidence import DEPTH, MatchConfidence, Outcomes, warn_if_few
from unbraid.tl._top import build_faiss, load_faiss, top_rows, top_rows_faiss, vectors_of

if TYPE_CHECKING:
    from os import PathLike

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

FORMAT = 1
QUERIES = 256  # searched at a time
GATHERED = 4_000_000  # numbers of vectors converted at a time
SPARE = 8  # hits beyond those asked for, so that the best of what is equal up to rounding is chosen exactly


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What :meth:`RetrievalIndex.search` found, the best first.

    Attributes
    ----------
    codes
        ``(n_queries, k)`` candidates as positions in the index's ``names``; -1 where there are no more.
    scores
        ``(n_queries, k)`` float32, NaN where there are no more.
    names
        ``(n_queries, k)`` candidates as text, empty where there are no more.
    p_values
        ``(n_queries, k)`` how often the best candidate reaches this score for a query without a match; NaN without
        calibration.
    confidences
        ``(n_queries, k)`` probability that the hit is the match, given that this is among the candidates; NaN without
        calibration and beyond the tenth hit.
    """

    codes: NDArray[np.int64]
    scores: NDArray[np.float32]
    names: NDArray
    p_values: NDArray[np.float64]
    confidences: NDArray[np.float64]


def build_index(
    target: ArrayLike | str,
    *,
    data: AnnData | MuData | None = None,
    groups: ArrayLike | str | None = None,
    names: ArrayLike | None = None,
    metric: Literal["cosine", "dot"] = "cosine",
    replicates: Literal["best", "average"] = "best",
    backend: Literal["exact", "faiss"] = "exact",
    factory: str = "Flat",
) -> RetrievalIndex:
    r"""Make an index of candidates, such as the molecules of a library, to be searched by the codes of something else.

    Parameters
    ----------
    target
        Codes of the candidates, ``(n, d)``: an array, or a key of ``data`` such as ``"molecule:Z_c"``. Rows that are
        NaN throughout are left out.
    data
        Where keys are looked up.
    groups
        What a row is of, such as its compound: labels, or a column of ``data.obs``. All rows of a group are one
        candidate of this name; candidates are in the order of names. By default every row is a candidate.
    names
        Names of the rows where there are no groups. By default those of ``data``, or numbers.
    metric
        ``"cosine"`` similarity, or ``"dot"`` product. Zero vectors have a cosine of 0 with everything.
    replicates
        The score of a candidate is that of its ``"best"`` row, or the ``"average"`` over its rows.
    backend
        ``"exact"``, or ``"faiss"`` for what ``factory`` describes.
    factory
        Index as ``faiss.index_factory`` knows it, for inner products: ``"Flat"`` is exact, ``"HNSW32"`` and
        ``"IVF1024,Flat"`` are faster and may miss candidates.

    Returns
    -------
    The index.

    Raises
    ------
    KeyError
        A key or a column is not there.
    ValueError
        No row is there; rows are infinite or NaN in part; a row has no group; names are not unique; an option is
        unknown.
    ImportError
        faiss is not installed.

    Notes
    -----
    Vectors are kept as float32, of length 1 for cosines. The exact search multiplies blocks and sorts only what is
    above the k-th best so far: memory does not grow with queries times candidates. Candidates of the same score are in
    their order, and a query finds the same alone as among others.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> molecules = rng.normal(size=(100, 8))
    >>> index = ub.tl.build_index(molecules, names=[f"compound {i}" for i in range(100)])
    >>> index.search(molecules[[7]] + 0.1, k=2).names[0, 0]
    'compound 7'
    """
    check_option("metric", metric, ("cosine", "dot"))
    check_option("replicates", replicates, ("best", "average"))
    check_option("backend", backend, ("exact", "faiss"))
    if backend == "exact" and factory != "Flat":
        raise ValueError(f"factory={factory!r} describes a faiss index: pass backend='faiss' as well.")
    if groups is not None and names is not None:
        raise ValueError("Candidates are named by their groups: pass names only without groups.")
    x = rows_of(data, target, "target")
    rows = np.flatnonzero(present_rows(x, "target"))
    if len(rows) == 0:
        raise ValueError(f"None of the {len(x)} rows of target is there: all are NaN.")
    if groups is None:
        if names is None:
            names = data.obs_names if isinstance(target, str) else np.arange(len(x))
        names = text_of(values_of(_owner(data, target, names), names, "names", len(x)))[rows]
        candidates = np.arange(len(rows))
        if not pd.Index(names).is_unique:
            twice = pd.Index(names)[pd.Index(names).duplicated()][0]
            raise ValueError(
                f"names are not unique, such as {twice!r}. Pass them as groups if rows of a name are one candidate."
            )
    else:
        groups = text_of(values_of(_owner(data, target, groups), groups, "groups", len(x)))[rows]
        if n_missing := int(pd.isna(groups).sum()):
            raise ValueError(
                f"{n_missing} of {len(rows)} rows of target have no group. Give each one, or set them to NaN."
            )
        candidates, names = pd.factorize(groups, sort=True)
        order = np.argsort(candidates, kind="stable")
        rows, candidates = rows[order], candidates[order]
    parts = np.array_split(rows, -(-len(rows) * x.shape[1] // GATHERED))
    vectors = np.concatenate([vectors_of(x[part], metric, "target") for part in parts])
    if replicates == "average" and len(names) < len(rows):
        start = np.flatnonzero(np.diff(candidates, prepend=-1))
        size = np.diff(start, append=len(rows))
        vectors = (np.add.reduceat(vectors, start, axis=0, dtype=np.float64) / size[:, None]).astype(np.float32)
        candidates = np.arange(len(names))
    elif len(names) < len(rows):  # a compound's code, once and not for each of its profiles
        is_new = (np.diff(candidates, prepend=-1) > 0) | (vectors != np.roll(vectors, 1, axis=0)).any(axis=1)
        vectors, candidates = vectors[is_new], candidates[is_new]
    return RetrievalIndex(
        vectors=vectors,
        candidates=candidates,
        names=names,
        metric=metric,
        replicates=replicates,
        backend=backend,
        factory=factory,
        faiss_index=build_faiss(vectors, factory) if backend == "faiss" else None,
    )


@dataclass(kw_only=True, repr=False, eq=False)
class RetrievalIndex:
    """Candidates to be searched; made by :func:`build_index`.

    Attributes
    ----------
    vectors
        ``(n_rows, d)`` float32, rows of a candidate side by side.
    candidates
        ``(n_rows,)`` position of the row's candidate in ``names``.
    names
        ``(n_candidates,)`` text.
    metric, replicates, backend, factory
        See :func:`build_index`.
    calibration
        Once :meth:`calibrate` has been called.
    faiss_index
        The faiss index, if that is the backend. Its options for searches, such as ``nprobe``, may be set.
    """

    vectors: NDArray[np.float32]
    candidates: NDArray[np.int64]
    names: NDArray
    metric: Literal["cosine", "dot"]
    replicates: Literal["best", "average"]
    backend: Literal["exact", "faiss"]
    factory: str
    calibration: MatchConfidence | None = None
    faiss_index: Any = None

    @property
    def n_candidates(self) -> int:
        """Number of candidates."""
        return len(self.names)

    def __len__(self) -> int:
        return self.n_candidates

    def __repr__(self) -> str:
        rows = "" if len(self.vectors) == len(self) else f" ({len(self.vectors):,} rows, {self.replicates})"
        backend = self.backend if self.backend == "exact" else f"faiss {self.factory}"
        calibrated = "not calibrated"
        if self.calibration is not None:
            calibrated = f"calibrated on queries of {self.calibration.n_groups:,} groups"
        return (
            f"RetrievalIndex of {len(self):,} candidates{rows} in {self.vectors.shape[1]} dimensions: {self.metric}, "
            f"{backend}, {calibrated}"
        )

    def search(
        self,
        query: ArrayLike | str,
        k: int = 10,
        *,
        data: AnnData | MuData | None = None,
        exclude: ArrayLike | str | None = None,
    ) -> Hits:
        """Find the candidates with the highest scores.

        Parameters
        ----------
        query
            Codes, ``(n_queries, d)``: an array, or a key of ``data``. Rows that are NaN throughout have no hits.
        k
            Hits of each query; fewer if there are not so many candidates.
        data
            Where keys are looked up.
        exclude
            Of each query the name of a candidate that is not offered to it, or None: labels, or a column of
            ``data.obs``.

        Returns
        -------
        The hits.

        Raises
        ------
        KeyError
            A key or a column is not there.
        ValueError
            Numbers of columns differ; rows are infinite or NaN in part.
        """
        check_whole("k", k, 1)
        x = rows_of(data, query, "query")
        excluded = None
        if exclude is not None:
            excluded = self.codes_of(text_of(values_of(_owner(data, query, exclude), exclude, "exclude", len(x))))
        codes, scores = self.best(x, max(k, DEPTH), excluded)
        blank = np.full(scores.shape, np.nan)
        known = self.calibration
        shown = lambda x, missing: np.pad(x[:, :k], ((0, 0), (0, max(k - x.shape[1], 0))), constant_values=missing)
        codes = shown(codes, -1)
        return Hits(
            codes=codes,
            scores=shown(scores, np.nan),
            names=np.where(codes >= 0, self.names[codes], ""),
            p_values=shown(blank if known is None else known.p_values(scores), np.nan),
            confidences=shown(blank if known is None else known.confidences(scores), np.nan),
        )

    def calibrate(
        self, query: ArrayLike | str, groups: ArrayLike | str, *, data: AnnData | MuData | None = None
    ) -> RetrievalIndex:
        """Learn what scores mean from queries whose match is known.

        Take queries that the model was not trained on, such as those of the validation part of
        :func:`unbraid.pp.split`: codes of training cells are closer to their match than those of new cells.

        Parameters
        ----------
        query
            Codes, ``(n_queries, d)``: an array, or a key of ``data``.
        groups
            Name of each query's candidate: labels, or a column of ``data.obs``. Queries whose candidate is unknown
            or not in the index are left out.
        data
            Where keys are looked up.

        Returns
        -------
        The index itself, whose searches have p-values and confidences from now on. What these assume is said by
        :class:`~unbraid.tl.MatchConfidence`.

        Raises
        ------
        KeyError
            A key or a column is not there.
        ValueError
            Numbers of columns differ; no query has a candidate in the index.

        Warns
        -----
        UserWarning
            If queries are of fewer than 30 groups: there are p-values, but no confidences.
        """
        x = rows_of(data, query, "query")
        own = self.codes_of(text_of(values_of(_owner(data, query, groups), groups, "groups", len(x))))
        known = present_rows(x, "query") & (own >= 0)
        if not known.any():
            raise ValueError(
                f"None of the {len(x)} queries has its own candidate in the index. Candidates are called such as "
                f"{', '.join(map(repr, self.names[:3].tolist()))}."
            )
        found = self.best(x[known], DEPTH + 1)
        self.calibration = MatchConfidence.fit(Outcomes.of(*found, own[known], len(self)))
        warn_if_few(self.calibration, stacklevel=2)
        return self

    def codes_of(self, names: NDArray) -> NDArray[np.int64]:
        """Positions of candidates in ``names``; -1 where there is no such candidate.

        Parameters
        ----------
        names
            Names, or None.
        """
        return pd.Index(self.names).get_indexer(pd.Index(names, dtype=object))

    def best(self, x: NDArray, k: int, excluded: NDArray | None = None) -> tuple[NDArray, NDArray]:
        """Codes and scores of the best candidates, as :class:`Hits` has them, no wider than there are candidates.

        Parameters
        ----------
        x
            Codes of queries.
        k
            Hits of each.
        excluded
            Of each the position of what is not offered to it, or -1.
        """
        if x.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"query has {x.shape[1]} columns, but the candidates have {self.vectors.shape[1]}: both need codes of "
                "the same space, such as the shared codes of one model."
            )
        present = np.flatnonzero(present_rows(x, "query"))
        k = min(k, len(self))
        n_found = min(k + SPARE + (excluded is not None), len(self))
        codes, scores = np.full((len(x), k), -1), np.full((len(x), k), np.nan, dtype=np.float32)

        def find(rows: NDArray) -> None:
            query = vectors_of(x[rows], self.metric, "query")
            if self.faiss_index is None:
                found = top_rows(query, self.vectors, self.candidates, n_found)
            else:
                found = top_rows_faiss(self.faiss_index, query, self.candidates, n_found)
            is_hit = found >= 0
            code = self.candidates[found]
            if excluded is not None:
                is_hit &= code != excluded[rows, None]
            score = np.where(is_hit, self._scores(query, found), -np.inf)
            order = np.lexsort((code, -score), axis=1)[:, :k]
            is_hit = np.take_along_axis(is_hit, order, axis=1)
            codes[rows] = np.where(is_hit, np.take_along_axis(code, order, axis=1), -1)
            scores[rows] = np.where(is_hit, np.take_along_axis(score, order, axis=1), np.nan)

        parts = np.array_split(present, max(1, -(-len(present) // QUERIES)))
        # products of blocks are too small to divide, and threads that wait for each other may take ten times as long
        n_threads = torch.get_num_threads() if self.faiss_index is None else 1
        with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(find, parts))
        return codes, scores

    def _scores(self, query: NDArray, rows: NDArray) -> NDArray[np.float32]:
        """(n, k) products in the same order of sums whatever else is searched, which matrix products are not."""
        scores = np.empty(rows.shape, dtype=np.float32)
        for part in np.array_split(np.arange(len(rows)), max(1, rows.size * query.shape[1] // GATHERED)):
            scores[part] = (self.vectors[rows[part]].astype(np.float64) * query[part, None]).sum(axis=-1)
        return scores

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike) -> None:
        """Write the index into one file, in NumPy's ``npz`` format without pickles.

        Parameters
        ----------
        path
            File to write, such as ``"molecules.npz"``; an existing one is overwritten.
        """
        options = {name: getattr(self, name) for name in ("metric", "replicates", "backend", "factory")}
        arrays = {
            "options": np.array(json.dumps({"format": FORMAT, **options})),
            "vectors": self.vectors,
            "candidates": self.candidates,
            "names": np.frombuffer(json.dumps(self.names.tolist()).encode(), dtype=np.uint8),
        }
        if self.calibration is not None:
            known = self.calibration
            arrays["null"], arrays["null_weights"] = known.null, known.weights
            arrays["n_groups"] = np.array(known.n_groups)
            arrays["coefficients"] = np.zeros(0) if known.coefficients is None else known.coefficients
        if self.faiss_index is not None:
            arrays["faiss"] = load_faiss().serialize_index(self.faiss_index)
        with open(path, "wb") as file:  # a path would get the ending .npz
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | PathLike) -> RetrievalIndex:
        """Read what :meth:`save` has written.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        The index, which finds what the saved one did.

        Raises
        ------
        ValueError
            The file is no index, of a newer version, or damaged.
        ImportError
            It needs faiss, which is not installed.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            options = json.loads(str(arrays.pop("options")))
            version = int(options.pop("format"))
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is no index that RetrievalIndex.save wrote, or is damaged.") from error
        if version > FORMAT:
            raise ValueError(f"{path} was written by a newer version of unbraid; update it to read this file.")
        try:
            return _from_arrays(arrays, options)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def text_of(labels: pd.Series) -> NDArray[np.object_]:
    """Labels as text, None where they are missing; 1.0 is 1, which a column with missing values turns it into."""
    if pd.api.types.is_float_dtype(labels) and (labels.dropna() % 1 == 0).all():
        labels = labels.astype("Int64")
    text = labels.astype(str).to_numpy(dtype=object)
    text[labels.isna().to_numpy()] = None
    return text


_libraries = cache(ThreadpoolController)  # found once: looking for them takes longer than a search


def _owner(data: AnnData | MuData | None, rows: ArrayLike | str, values: ArrayLike | str) -> Any:
    """Whose rows the values are of."""
    return data if isinstance(rows, str) or isinstance(values, str) else rows


def _from_arrays(arrays: dict[str, NDArray], options: dict[str, str]) -> RetrievalIndex:
    """The index, checked: what does not fit together would find something else."""
    vectors, candidates = arrays["vectors"], arrays["candidates"]
    names = np.array(json.loads(arrays["names"].tobytes()), dtype=object)
    fits = (
        vectors.ndim == 2
        and vectors.dtype == np.float32
        and candidates.shape == (len(vectors),)
        and np.array_equal(np.unique(candidates), np.arange(len(names)))
        and (np.diff(candidates) >= 0).all()
    )
    if not fits:
        raise ValueError("vectors, candidates and names do not fit together.")
    calibration = None
    if "null" in arrays:
        calibration = MatchConfidence(
            null=arrays["null"],
            weights=arrays["null_weights"],
            n_groups=int(arrays["n_groups"]),
            n_candidates=len(names),
            coefficients=arrays["coefficients"] if len(arrays["coefficients"]) else None,
        )
    faiss_index = None
    if options["backend"] == "faiss":
        faiss_index = load_faiss().deserialize_index(arrays["faiss"])
        if (faiss_index.ntotal, faiss_index.d) != vectors.shape:
            raise ValueError("the faiss index is not one of these vectors.")
    return RetrievalIndex(
        vectors=vectors,
        candidates=candidates,
        names=names,
        calibration=calibration,
        faiss_index=faiss_index,
        **options,
    )
