"""Vectors as they are multiplied, and the rows with the highest products, one of each candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = 2_048  # vectors in a block; with a few hundred queries its products stay in a processor's cache
LARGEST = 1e18  # squares of larger numbers overflow in 32 bits
FETCHED = 4_000_000  # rows held that faiss found


def top_rows(query: NDArray, vectors: NDArray, code: NDArray, k: int) -> NDArray:
    """Rows of the k best candidates of each query, the best row of each, in order.

    Blocks of products are read once; only those above the k-th best so far are sorted.

    Parameters
    ----------
    query
        ``(n, d)`` float32, some hundreds.
    vectors
        ``(n_rows, d)`` float32.
    code
        ``(n_rows,)`` candidate of each row, from 0, never falling.
    k
        At most the number of candidates.

    Returns
    -------
    ``(n, k)``. Ties go to the first row, up to rounding.
    """
    rows = np.full((len(query), k), -1)
    scores = np.full((len(query), k), -np.inf, dtype=np.float32)
    is_grouped = code[-1] + 1 < len(code)
    found, n_found = [], 0
    for start in range(0, len(vectors), ROWS):
        block = slice(start, start + ROWS)
        products = query @ vectors[block].T
        open_ = np.flatnonzero(products.max(axis=1) > scores[:, -1])
        if len(open_):
            products = products[open_]
            passes = products > scores[open_, -1:]
            if np.count_nonzero(passes) > 4 * k * len(open_):  # such as in the first block
                passes &= _may_be_best(products, code[block] if is_grouped else None, k)
            of_query, column = np.nonzero(passes)
            found.append((open_[of_query], products[of_query, column], column + start))
            n_found += len(column)
        if found and (start == 0 or 2 * n_found >= rows.size or start + ROWS >= len(vectors)):
            kept = rows >= 0
            found.append((np.nonzero(kept)[0], scores[kept], rows[kept]))
            of_query, score, row = map(np.concatenate, zip(*found, strict=True))
            order = np.lexsort((row, -score, of_query))
            at, order = _places(of_query, code[row] if is_grouped else row, order, k)
            rows[at], scores[at] = row[order], score[order]
            found, n_found = [], 0
    return rows


def top_rows_faiss(index: Any, query: NDArray, code: NDArray, k: int) -> NDArray:
    """As :func:`top_rows`, -1 where an approximate faiss index finds no more."""
    rows = np.full((len(query), k), -1)
    asked, n_fetched = np.arange(len(query)), k
    while len(asked):
        again = []
        for part in np.array_split(asked, -(-len(asked) * n_fetched // FETCHED)):
            row = index.search(query[part], n_fetched)[1]
            of_query, column = np.nonzero(row >= 0)
            flat = row[of_query, column]
            (place, rank), order = _places(of_query, code[flat], np.arange(len(flat)), k)
            rows[part[place], rank] = flat[order]
            again.append(part[(rows[part, -1] < 0) & (row[:, -1] >= 0)])  # rows of too few candidates
        asked = np.concatenate(again) if n_fetched < len(code) else []
        n_fetched = min(4 * n_fetched, len(code))
    return rows


def vectors_of(x: NDArray, metric: str, name: str) -> NDArray[np.float32]:
    """Rows as they are multiplied."""
    if metric == "cosine":
        length = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(length > 0, length, 1)
    elif np.abs(x).max(initial=0) > LARGEST:
        raise ValueError(f"{name} has numbers above {LARGEST:g}, too large for products in 32 bits: rescale it.")
    return x.astype(np.float32)


def load_faiss() -> Any:
    """The package, if it is installed."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("This index needs faiss: pip install 'unbraid[ann]'.") from error
    return faiss


def build_faiss(vectors: NDArray, factory: str) -> Any:
    """An index of inner products with vectors ``(n_rows, d)`` float32."""
    faiss = load_faiss()
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        raise ValueError(
            f"faiss cannot make an index {factory!r} of {len(vectors):,} vectors: {str(error).splitlines()[-1]}"
        ) from error
    return index


def _may_be_best(products: NDArray, code: NDArray | None, k: int) -> NDArray:
    """Which rows of a block are the best of their candidates, and these among the k best."""
    if code is None:
        best, is_best = products, np.ones(products.shape, dtype=bool)
    else:
        start = np.flatnonzero(np.diff(code, prepend=-1))
        best = np.maximum.reduceat(products, start, axis=1)
        is_best = products == np.repeat(best, np.diff(start, append=len(code)), axis=1)
    if best.shape[1] > k:
        is_best &= products >= np.partition(best, -k, axis=1)[:, -k, None]
    return is_best


def _places(query: NDArray, code: NDArray, order: NDArray, k: int) -> tuple[tuple[NDArray, NDArray], NDArray]:
    """Query and rank of what comes first in ``order`` of each query and candidate, and its position, up to rank k."""
    # the sorted queries, and of each candidate only the first
    key = query[order] * (code.max(initial=0) + 1) + code[order]
    order = order[np.sort(np.unique(key, return_index=True)[1])]
    query = query[order]
    rank = np.arange(len(query)) - np.searchsorted(query, query)
    kept = rank < k
    return (query[kept], rank[kept]), order[kept]
