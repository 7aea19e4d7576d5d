from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from unbraid._messages import check_whole


def support(reference: np.ndarray, query: np.ndarray, *, n_neighbors: int = 10) -> np.ndarray:
    r"""How usual points are among others, such as counterfactual codes among those of real cells.

    With :math:`d(x)` the mean distance of a point to its nearest reference points, columns standardised on the
    reference, and reference points not counted as their own neighbours,

    .. math:: p(x) = \frac{1 + \#\{i : d(r_i) \ge d(x)\}}{1 + n} .

    A point from the distribution of the reference has a uniform :math:`p`; one far from all of them has
    :math:`1 / (1 + n)`.

    Parameters
    ----------
    reference
        ``(n, d)``, finite.
    query
        ``(k, d)``; rows with NaN have NaN.
    n_neighbors
        Neighbours to average over; no more than there are.

    Returns
    -------
    float64 array ``(k,)`` in (0, 1].

    Raises
    ------
    ValueError
        If the numbers of columns differ, or there are fewer than 2 reference points.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> ub.tl.support(rng.normal(size=(500, 3)), np.array([[0.0, 0, 0], [9, 9, 9]])).round(3).tolist()
    [0.998, 0.002]
    """
    reference, query = np.asarray(reference), np.asarray(query)
    check_whole("n_neighbors", n_neighbors, 1)
    if reference.ndim != 2 or query.ndim != 2 or reference.shape[1] != query.shape[1] or len(reference) < 2:
        raise ValueError(
            "`reference` and `query` must be matrices with as many columns, and `reference` needs 2 rows; got shapes "
            f"{reference.shape} and {query.shape}."
        )
    scaler = StandardScaler().fit(reference)
    n_neighbors = min(n_neighbors, len(reference) - 1)
    neighbors = NearestNeighbors(n_neighbors=n_neighbors).fit(scaler.transform(reference))
    own = np.sort(neighbors.kneighbors()[0].mean(axis=1))  # without a point: all, each without itself
    known = np.isfinite(query).all(axis=1)
    result = np.full(len(query), np.nan)
    if known.any():
        distance = neighbors.kneighbors(scaler.transform(query[known]))[0].mean(axis=1)
        result[known] = (1 + len(own) - np.searchsorted(own, distance)) / (1 + len(own))
    return result
