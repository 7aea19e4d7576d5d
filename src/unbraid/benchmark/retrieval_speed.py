"""Seconds and memory of a search among a million molecules, beside other ways to do it.

Run it with::

    python -m unbraid.benchmark.retrieval_speed --n 1000000 --dim 32 --queries 1000

Candidates are random directions, queries are candidates with noise. Beside the exact search of
:func:`unbraid.tl.build_index` there are two simpler ones, NumPy's ``argpartition`` and PyTorch's ``topk`` of every block
of products, and faiss, whose recall is the share of the exact search's hits that it finds. Every way runs in a process
of its own: its memory is the greatest of the whole process, with everything that it imports, and the vectors are made
in it.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from unbraid.tl import build_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BLOCK = 16_384  # candidates that the simple searches multiply at a time
NOISE = 0.8  # of queries, relative to the candidates


def codes(n: int, dim: int, queries: int, seed: int) -> tuple[NDArray, NDArray]:
    """Candidates ``(n, dim)`` and queries ``(queries, dim)``, float32 of length 1."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(n, dim)).astype(np.float32)
    query = target[rng.integers(n, size=queries)] + NOISE * rng.normal(size=(queries, dim)).astype(np.float32)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (target, query))


def argpartition(query: NDArray, target: NDArray, k: int) -> NDArray:
    """Rows of the k highest products, ``(n_queries, k)``, by NumPy.

    Parameters
    ----------
    query, target
        See :func:`codes`.
    k
        Hits of each query.
    """
    scores, rows = np.empty((len(query), 0), np.float32), np.empty((len(query), 0), int)
    for start in range(0, len(target), BLOCK):
        scores = np.concatenate([scores, query @ target[start : start + BLOCK].T], axis=1)
        width = scores.shape[1] - rows.shape[1]
        rows = np.concatenate([rows, np.broadcast_to(np.arange(start, start + width), (len(query), width))], axis=1)
        best = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
        scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
    return np.take_along_axis(rows, np.argsort(-scores, axis=1), axis=1)


def topk(query: NDArray, target: NDArray, k: int) -> NDArray:
    """The same by PyTorch.

    Parameters
    ----------
    query, target, k
        As for :func:`argpartition`.
    """
    query, target = torch.from_numpy(query), torch.from_numpy(target)
    found = []
    for start in range(0, len(target), BLOCK):
        products = query @ target[start : start + BLOCK].T
        score, row = products.topk(min(k, products.shape[1]), dim=1)
        found.append((score, row + start))
    scores, rows = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
    return rows.gather(1, scores.topk(k, dim=1).indices).numpy()


SIMPLE = {"argpartition": argpartition, "topk": topk}


def measure(way: str, options: argparse.Namespace) -> tuple[float, float, float, NDArray]:
    """Seconds to build and to search, greatest memory of this process in GiB, and the rows that are found.

    Parameters
    ----------
    way
        ``"exact"``, ``"argpartition"``, ``"topk"``, or what ``faiss.index_factory`` knows; after a colon what is set
        for searches.
    options
        Of the command line.
    """
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        target, query = codes(options.n, options.dim, options.queries, options.seed)
        start = time.perf_counter()
        if way in SIMPLE:
            search = lambda: SIMPLE[way](query, target, options.k)
        else:
            factory, _, parameters = way.partition(":")
            chosen = {} if way == "exact" else {"backend": "faiss", "factory": factory}
            index = build_index(target, metric="dot", **chosen)
            if parameters:
                import faiss

                faiss.ParameterSpace().set_index_parameters(index.faiss_index, parameters)
            search = lambda: index.search(query, options.k).codes
        built = time.perf_counter()
        found = search()
        done = time.perf_counter()
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kilobytes elsewhere
    return built - start, done - built, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every way and print the table.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000, help="candidates")
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument(
        "--ways", nargs="+", default=["exact", "argpartition", "topk", "Flat", "HNSW32", "HNSW32:efSearch=128"]
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    rows, exact = [], None
    for way in dict.fromkeys(["exact", *options.ways]):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            *numbers, found = pool.submit(measure, way, options).result()
        exact = found if exact is None else exact
        recall = (found[:, :, None] == exact[:, None, :]).any(axis=2).mean()
        rows.append([way, *numbers, recall])
    vectors = options.n * options.dim * 4 / 2**30
    print(f"{options.n:,} vectors of {options.dim} numbers, {vectors:.2f} GiB; {options.queries:,} queries")
    table = pd.DataFrame(rows, columns=["way", "build (s)", "search (s)", "process (GiB)", "recall"])
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
