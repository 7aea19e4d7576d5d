from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigh

from unbraid._messages import check_range, check_whole
from unbraid.data._pairs import components
from unbraid.tl._constrained_kmeans import cells_of, pairs_of

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

    from unbraid.data._pairs import Pairs


def relevant_components(
    data: ArrayLike | AnnData | MuData,
    pairs: str | Pairs | ArrayLike,
    *,
    use_rep: str | None = None,
    n_components: int | None = None,
    shrinkage: float = 0.05,
) -> NDArray[np.float32]:
    r"""Rescale an embedding so that what varies between cells of one kind counts little.

    Relevant component analysis [1]_. Must-links chain cells into chunklets :math:`j` of :math:`n_j \ge 2` cells with
    means :math:`m_j`. The covariance within chunklets (here divided by its degrees of freedom), shrunk towards a multiple of the identity,

    .. math::

        C = (1 - \rho) \hat C + \rho\, \frac{\operatorname{tr} \hat C}{d} I, \qquad
        \hat C = \frac{1}{\sum_j (n_j - 1)} \sum_j \sum_{i \in j} (x_i - m_j)(x_i - m_j)^\top,

    whitens the data, :math:`x \mapsto C^{-1/2} (x - \bar x)`. With ``n_components``, the directions :math:`v` of the
    largest ratio of total to within-chunklet variance are kept, by the constrained Fisher discriminant of [1]_,

    .. math:: S v = \lambda C v, \qquad v^\top C v = 1, \qquad S = \operatorname{Cov}(x).

    Cannot-links are not used. The result is linear in the data: k-means on it, or :func:`constrained_kmeans`, is the
    line to beat for models that take pairs.

    Parameters
    ----------
    data
        Embedding, ``(n_obs, d)``, or the AnnData or MuData that holds it. Several embeddings are taken together by
        concatenating their columns.
    pairs
        Key of ``obsp`` of ``data``, its matrix (1 for must-links, -1 for cannot-links), or
        :class:`~unbraid.data.Pairs`.
    use_rep
        Key of the embedding.
    n_components
        Directions to keep, such as the number of classes less 1; by default all ``d``, which are not rotated then.
    shrinkage
        :math:`\rho` in [0, 1]. Without it there must be more must-links than features; 1 leaves plain principal
        components. Smaller numbers suit many pairs, larger ones few pairs and noisy features.

    Returns
    -------
    float32 array ``(n_obs, n_components)`` or ``(n_obs, d)``, columns centred; with ``n_components`` they are
    uncorrelated and in order of decreasing ratio.

    Raises
    ------
    KeyError
        If there is no such key.
    ValueError
        If there are no must-links, rows are missing, a number is out of its range, or :math:`C` is singular.

    References
    ----------
    .. [1] Bar-Hillel, Hertz, Shental and Weinshall. Learning a Mahalanobis metric from equivalence constraints.
       Journal of Machine Learning Research 6, 2005.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> kind = np.repeat([0, 1], 100)
    >>> x = np.stack([kind + 0.1 * rng.normal(size=200), 5 * rng.normal(size=200)], axis=1)
    >>> pairs = ub.data.Pairs(must=[[i, i + 1] for i in range(99)], cannot=[])
    >>> z = ub.tl.relevant_components(x, pairs, n_components=1, shrinkage=0.0)
    >>> bool(abs(np.corrcoef(z[:, 0], kind)[0, 1]) > 0.95)
    True
    """
    x = cells_of(data, use_rep)
    n_obs, d = x.shape
    if n_components is not None:
        check_whole("n_components", n_components, 1)
        check_range("`n_components`", n_components, n_components <= d, f"at most {d}, the number of features")
    check_range("`shrinkage`", shrinkage, 0 <= shrinkage <= 1, "between 0 and 1")
    pairs = pairs_of(data, pairs, n_obs)
    if not len(pairs.must):
        raise ValueError("There are no must-links among the pairs, so nothing says what varies within a kind.")

    centred = x - x.mean(axis=0)
    within = _within_covariance(centred, components(pairs, n_obs), shrinkage)
    if n_components is None:
        values, vectors = eigh(within)
        _check_regular(values)
        return (centred @ (vectors / np.sqrt(values)) @ vectors.T).astype(np.float32)
    _check_regular(eigh(within, eigvals_only=True))
    _, vectors = eigh(centred.T @ centred / n_obs, within, subset_by_index=[d - n_components, d - 1])
    vectors = vectors[:, ::-1]
    # a direction has no sign of its own: make its largest entry positive
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(n_components)])
    return (centred @ vectors).astype(np.float32)


def _within_covariance(x: NDArray, chunklet: NDArray, shrinkage: float) -> NDArray:
    order = np.argsort(chunklet, kind="stable")
    sizes = np.bincount(chunklet)
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    n_before = np.arange(len(x)) - start  # cells of the same chunklet
    later = n_before > 0
    sums = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x[order], axis=0)])
    n_before, means = n_before[later, None], (sums[:-1] - sums[start])[later] / n_before[later, None]
    # each cell against the mean of those before it (Helmert): as many as degrees of freedom, with the same squares
    contrasts = np.sqrt(n_before / (n_before + 1)) * (x[order[later]] - means)
    within = contrasts.T @ contrasts / len(contrasts)
    return (1 - shrinkage) * within + shrinkage * np.trace(within) / len(within) * np.eye(len(within))


def _check_regular(values: NDArray) -> None:
    if values[0] <= 1e-10 * values[-1]:
        raise ValueError(
            "The covariance within chunklets is singular: there are fewer must-links than features, or features "
            "without variance within chunklets. Raise `shrinkage`."
        )
