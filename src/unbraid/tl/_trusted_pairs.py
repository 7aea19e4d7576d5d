from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from unbraid._messages import check_range, check_whole
from unbraid.data._pairs import Pairs
from unbraid.tl._constrained_kmeans import cells_of, pairs_of
from unbraid.tl._relevant_components import relevant_components

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray


def trusted_pairs(
    data: ArrayLike | AnnData | MuData,
    pairs: str | Pairs | ArrayLike,
    n_clusters: int,
    *,
    use_rep: str | None = None,
    shrinkage: float = 0.05,
    max_iter: int = 50,
    seed: int = 0,
) -> Pairs:
    r"""Leave out the pairs that the others, and the cells, speak against.

    For pairs of which some are wrong: of barcodes that were seen twice by chance, of annotators who disagree. Wrong
    must-links join cells at random, so few of them fall within a cluster, while right ones do as soon as the clusters
    are roughly those that the pairs are about. Hence, in turn:

    1. whiten the embedding by what varies within the trusted must-links, at first all of them, and keep ``n_clusters - 1``
       directions (:func:`relevant_components`);
    2. find clusters there by k-means;
    3. trust the must-links whose cells are in one cluster;

    until these stay the same. Of the cannot-links those whose cells are in two clusters at the end are trusted.

    Parameters
    ----------
    data
        Embedding, ``(n_obs, d)``, or the AnnData or MuData that holds it. Where there are few pairs, principal components
        serve much better than all features.
    pairs
        Key of ``obsp`` of ``data``, its matrix (1 for must-links, -1 for cannot-links), or
        :class:`~unbraid.data.Pairs`.
    n_clusters
        How many kinds of cells there are, at most ``d + 1`` and ``n_obs``.
    use_rep
        Key of the embedding.
    shrinkage
        Of the covariance within must-links, in [0, 1].
    max_iter
        Rounds at most.
    seed
        Of k-means.

    Returns
    -------
    The trusted pairs; ``mdata.obsp["trusted"] = pairs.matrix(mdata.n_obs)`` keeps them for a model.

    Raises
    ------
    KeyError
        If there is no such key.
    ValueError
        If there are no must-links, none has both cells in one cluster, rows are missing, or a number is out of its range.

    Notes
    -----
    This trusts pairs that agree with each other: pairs that are wrong in the same way, such as all of two clusters taken
    for one, are beyond it. Right pairs are lost where clusters are not told apart in the embedding. See the reproduction
    page for how it fares when most of the must-links are wrong.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> kind = np.repeat([0, 1], 100)
    >>> x = np.stack([kind + 0.1 * rng.normal(size=200), rng.normal(size=200)], axis=1)
    >>> pairs = ub.data.Pairs(must=[*([i, i + 1] for i in range(60)), [0, 150]], cannot=[])
    >>> trusted = ub.tl.trusted_pairs(x, pairs, 2)
    >>> len(trusted.must), [0, 150] in trusted.must.tolist()
    (60, False)
    """
    x = cells_of(data, use_rep)
    check_whole("n_clusters", n_clusters, 2)
    n_obs, d = x.shape
    check_range("`n_clusters`", n_clusters, n_clusters <= n_obs, f"at most {n_obs}, the number of cells")
    check_range("`n_clusters`", n_clusters, n_clusters <= d + 1, f"at most {d + 1}, one more than the features")
    check_whole("max_iter", max_iter, 1)
    pairs = pairs_of(data, pairs, n_obs)
    must, seen = np.ones(len(pairs.must), dtype=bool), set()
    for _ in range(max_iter):
        clusters = _clusters(x, Pairs(pairs.must[must], []), n_clusters, shrinkage, seed)
        must = _together(clusters, pairs.must)
        if not must.any():
            raise ValueError(
                f"None of the {len(must)} must-links has both cells in one of {n_clusters} clusters: pairs and embedding "
                "have nothing in common. Take another embedding, or fewer clusters."
            )
        if must.tobytes() in seen:
            break
        seen.add(must.tobytes())
    return Pairs(pairs.must[must], pairs.cannot[~_together(clusters, pairs.cannot)])


def _clusters(x: NDArray, pairs: Pairs, n_clusters: int, shrinkage: float, seed: int) -> NDArray:
    z = relevant_components(x, pairs, n_components=n_clusters - 1, shrinkage=shrinkage)
    with threadpool_limits(1):  # a few columns: threads only wait for each other
        return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(z)


def _together(clusters: NDArray, rows: NDArray) -> NDArray[np.bool_]:
    return clusters[rows[:, 0]] == clusters[rows[:, 1]]
