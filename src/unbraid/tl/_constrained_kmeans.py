from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from sklearn.cluster import KMeans, kmeans_plusplus

from unbraid._messages import check_range, check_whole
from unbraid.data._pairs import Pairs, components, pairs_of_matrix, read_pairs
from unbraid.metrics._lookup import embedding_of
from unbraid.metrics._rows import present_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MAX_SWEEPS = 20  # between two updates of the centres


def constrained_kmeans(
    data: ArrayLike | AnnData | MuData,
    pairs: str | Pairs | ArrayLike,
    n_clusters: int,
    *,
    use_rep: str | None = None,
    weight: float | None = None,
    n_init: int = 10,
    max_iter: int = 100,
    seed: int = 0,
) -> NDArray[np.int64]:
    r"""K-means that keeps must-links and pays for cannot-links.

    Pairwise constrained k-means [1]_ (where the squares are halved), with must-links that cannot be broken: over
    clusters :math:`c_i`, the same within chains of must-links, and centres :math:`\mu`, it minimises

    .. math::

        \sum_i \lVert x_i - \mu_{c_i} \rVert^2 + w \sum_{(i, j) \in \text{cannot}} \mathbb 1[c_i = c_j].

    Parameters
    ----------
    data
        Embedding, ``(n_obs, d)``, or the AnnData or MuData that holds it.
    pairs
        Key of ``obsp`` of ``data``, its matrix (1 for must-links, -1 for cannot-links), or
        :class:`~unbraid.data.Pairs`.
    n_clusters
        Number of clusters. Each has a cell.
    use_rep
        Key of the embedding.
    weight
        :math:`w \ge 0`, in squared units of the embedding. By default twice the mean of
        :math:`\lVert x_i - \mu_{c_i} \rVert^2` of k-means without pairs.
    n_init
        Starts; the best is returned. The first is a farthest-first traversal of the chains of must-links, weighted by
        their sizes as in [1]_, the others are weighted k-means++.
    max_iter
        Iterations of a start, at most.
    seed
        Seed of the starts.

    Returns
    -------
    int64 array ``(n_obs,)`` from 0 to ``n_clusters - 1``.

    Raises
    ------
    KeyError
        If there is no such key.
    ValueError
        If rows are missing, a number is out of its range, there are more clusters than chains of must-links and single
        cells, or pairs are of other cells.

    Warns
    -----
    UserWarning
        If cannot-links join cells of one chain of must-links, such as with noisy pairs: these have no effect.

    Notes
    -----
    A chain of must-links is one point with a mass. Points whose best cluster is another, given those of all others,
    move together as long as no two of them are a cannot-link, those that gain most first; so no step raises the
    objective. An empty cluster takes the point that is farthest from its centre.

    As must-links are never broken, wrong ones put whole chains together. Where pairs may be wrong, take the
    :func:`trusted_pairs` of them, or k-means on :func:`relevant_components`, which averages over must-links.

    References
    ----------
    .. [1] Basu, Banerjee and Mooney. Active semi-supervision for pairwise constrained clustering. SIAM International
       Conference on Data Mining, 2004.

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [4.0], [5.0]])
    >>> pairs = ub.data.Pairs(must=[[0, 3]], cannot=[[0, 1]])
    >>> clusters = ub.tl.constrained_kmeans(x, pairs, 2)
    >>> bool(clusters[0] == clusters[3] != clusters[1])
    True
    """
    x = cells_of(data, use_rep)
    for name, value, minimum in (("n_clusters", n_clusters, 2), ("n_init", n_init, 1), ("max_iter", max_iter, 1)):
        check_whole(name, value, minimum)
    if weight is not None:
        check_range("`weight`", weight, 0 <= weight < np.inf, "a number of at least 0")
    points = _Points.of(x, pairs_of(data, pairs, len(x)))
    if n_clusters > len(points.mass):
        raise ValueError(
            f"`n_clusters` is {n_clusters}, but must-links chain the {len(x)} cells to {len(points.mass)} that are "
            "apart. Ask for fewer clusters."
        )
    if weight is None:
        weight = 2 * KMeans(n_clusters, n_init=1, random_state=seed).fit(x).inertia_ / len(x)

    rng = np.random.RandomState(seed)
    best = (np.inf, None)
    for start in range(n_init):
        centres = _farthest_first(points, n_clusters) if start == 0 else _plus_plus(points, n_clusters, rng)
        best = min(best, _descend(points, centres, weight, max_iter), key=lambda found: found[0])
    return best[1][points.of_cell]


def cells_of(data: ArrayLike | AnnData | MuData, use_rep: str | None) -> NDArray[np.float64]:
    """Rows of an embedding, ``(n_obs, d)``, all of them there."""
    x = embedding_of(data, use_rep)
    if n_absent := int((~present_rows(x, "data")).sum()):
        raise ValueError(
            f"{n_absent} of {len(x)} cells have no embedding (NaN). Leave them out, or take an embedding of all cells."
        )
    return x


def pairs_of(data: ArrayLike | AnnData | MuData, pairs: str | Pairs | ArrayLike, n_obs: int) -> Pairs:
    """Pairs of so many cells: themselves, from a matrix, or by their key in ``data``."""
    if isinstance(pairs, str):
        if not isinstance(data, AnnData | MuData):
            raise ValueError(f"pairs={pairs!r} names a key of obsp, but data is an array: pass the matrix of pairs.")
        return read_pairs(data, pairs)
    if isinstance(pairs, Pairs):
        pairs.matrix(n_obs)  # raises if they are of other cells
        return pairs
    found = pairs_of_matrix(pairs, "`pairs`")
    if np.shape(pairs)[0] != n_obs:
        raise ValueError(f"`pairs` is a matrix of {np.shape(pairs)[0]} cells, but the embedding has {n_obs} rows.")
    return found


@dataclass(frozen=True)
class _Points:
    """Chains of must-links and single cells, as points with a mass."""

    x: NDArray  # (n, d) means
    mass: NDArray  # (n,) numbers of cells
    within: float  # sum of squares of the cells about their points
    cannot: sparse.csr_matrix  # (n, n) numbers of cannot-links between points
    of_cell: NDArray  # (n_obs,)

    @classmethod
    def of(cls, x: NDArray, pairs: Pairs) -> _Points:
        point = components(pairs, len(x))
        mass = np.bincount(point)
        members = sparse.csr_matrix((np.ones(len(x)), (point, np.arange(len(x)))))
        means = (members @ x) / mass[:, None]
        first, second = point[pairs.cannot].T
        if n_broken := int((first == second).sum()):
            warnings.warn(
                f"{n_broken} of {len(first)} cannot-links join cells that must-links chain together; they have no "
                "effect.",
                UserWarning,
                stacklevel=3,
            )
        apart = first != second
        links = sparse.coo_matrix((np.ones(apart.sum()), (first[apart], second[apart])), shape=(len(mass),) * 2).tocsr()
        return cls(means, mass, float(np.square(x - means[point]).sum()), (links + links.T).tocsr(), point)


def _farthest_first(points: _Points, n_clusters: int) -> NDArray:
    chosen = [int(points.mass.argmax())]
    distance = np.full(len(points.mass), np.inf)
    for _ in range(n_clusters - 1):
        distance = np.minimum(distance, np.square(points.x - points.x[chosen[-1]]).sum(axis=1))
        chosen.append(int((points.mass * distance).argmax()))
    return points.x[chosen]


def _plus_plus(points: _Points, n_clusters: int, rng: np.random.RandomState) -> NDArray:
    return kmeans_plusplus(points.x, n_clusters, sample_weight=points.mass, random_state=rng)[0]


def _descend(points: _Points, centres: NDArray, weight: float, max_iter: int) -> tuple[float, NDArray]:
    """Objective and cluster of each point."""
    clusters = _costs(points, centres).argmin(axis=1)
    for _ in range(max_iter):
        _fill_empty(points, clusters, centres)
        before = clusters.copy()
        centres = _means(points, clusters, len(centres))
        costs = _costs(points, centres)
        _settle(costs, clusters, points.cannot, weight)
        if (clusters == before).all():
            break
    _fill_empty(points, clusters, centres)
    costs = _costs(points, _means(points, clusters, len(centres)))
    # each cannot-link is in the matrix from both sides
    violated = _between(points.cannot, clusters, costs.shape[1])[np.arange(len(clusters)), clusters].sum() / 2
    return float(np.take_along_axis(costs, clusters[:, None], 1).sum() + points.within + weight * violated), clusters


def _costs(points: _Points, centres: NDArray) -> NDArray:
    """(n, K) mass times squared distance."""
    squares = np.square(points.x).sum(axis=1)[:, None] - 2 * points.x @ centres.T + np.square(centres).sum(axis=1)
    return points.mass[:, None] * np.maximum(squares, 0)


def _means(points: _Points, clusters: NDArray, n_clusters: int) -> NDArray:
    shape = (n_clusters, len(clusters))
    members = sparse.csr_matrix((points.mass, (clusters, np.arange(len(clusters)))), shape=shape)
    return (members @ points.x) / np.bincount(clusters, weights=points.mass)[:, None]


def _between(cannot: sparse.csr_matrix, clusters: NDArray, n_clusters: int) -> NDArray:
    """(n, K) cannot-links from each point into each cluster."""
    return cannot @ np.eye(n_clusters)[clusters]


def _settle(costs: NDArray, clusters: NDArray, cannot: sparse.csr_matrix, weight: float) -> None:
    """Move points to their best clusters, in place, until none would move or many sweeps have passed."""
    asked = np.arange(len(costs))
    for _ in range(MAX_SWEEPS):
        total = costs[asked] + weight * _between(cannot[asked], clusters, costs.shape[1])
        best = total.argmin(axis=1)
        now = np.take_along_axis(total, clusters[asked, None], 1).ravel()
        gain = now - total.min(axis=1)
        wants = gain > 1e-12 * now
        if not wants.any():
            return
        # of two movers that are a cannot-link, the one that gains more moves, the other is asked again
        movers = asked[wants]
        rank = np.empty(len(movers))
        rank[np.argsort(gain[wants])] = np.arange(1, len(movers) + 1)
        among = cannot[movers][:, movers].sign()
        moves = rank > among.multiply(rank).max(axis=1).toarray().ravel()
        clusters[movers[moves]] = best[wants][moves]
        asked = np.union1d(movers[~moves], cannot[movers[moves]].indices)  # for the others nothing has changed


def _fill_empty(points: _Points, clusters: NDArray, centres: NDArray) -> None:
    """Give each empty cluster the point that is farthest from its centre, in place."""
    for empty in np.flatnonzero(np.bincount(clusters, minlength=len(centres)) == 0):
        cost = np.take_along_axis(_costs(points, centres), clusters[:, None], 1).ravel()
        cost[np.bincount(clusters)[clusters] == 1] = -1
        clusters[cost.argmax()] = empty
