"""How well clusters of an embedding agree with labels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import xlogy
from threadpoolctl import threadpool_limits

from unbraid._messages import check_option, check_range, check_whole
from unbraid.metrics._lookup import embedding_of, values_of
from unbraid.metrics._probe_design import permutations
from unbraid.metrics._resampling import N_BOOTSTRAP, percentiles
from unbraid.metrics._result import Result
from unbraid.metrics._rows import canonical_order, codes_of, present_rows

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

MEASURES = ("acc", "nmi", "ari")
LEIDEN_STEPS = 20  # resolutions that are tried


@dataclass(frozen=True, kw_only=True)
class ClusteringResult(Result):
    """What :func:`clustering` found.

    Attributes
    ----------
    acc, nmi, ari
        Accuracy under the best one-to-one matching of clusters to classes, normalised mutual information and adjusted
        Rand index; means over seeds.
    acc_interval, nmi_interval, ari_interval
        Bootstrap intervals, at fixed clusters.
    acc_chance, nmi_chance, ari_chance
        Means over permuted labels (NaN without permutations).
    acc_p_value, nmi_p_value, ari_p_value
        Share of permuted labels that agree with the clusters as well as the true ones (NaN without permutations).
    acc_seeds, nmi_seeds, ari_seeds
        The measures of each seed.
    n_obs
        Number of observations.
    n_dropped
        Number of observations left out: no label, no embedding or no cluster.
    n_groups
        Number of groups, None without groups.
    n_clusters
        Number of clusters that were found, of each seed.
    n_classes
        Number of classes.
    method
        How clusters were made; `"given"` if they were given.
    confidence
        Level of the intervals.
    clusters
        Cluster of every observation with the first seed, -1 where it was left out.
    """

    _measure = "clustering"
    acc: float
    acc_interval: tuple[float, float]
    acc_chance: float
    acc_p_value: float
    acc_seeds: tuple[float, ...]
    nmi: float
    nmi_interval: tuple[float, float]
    nmi_chance: float
    nmi_p_value: float
    nmi_seeds: tuple[float, ...]
    ari: float
    ari_interval: tuple[float, float]
    ari_chance: float
    ari_p_value: float
    ari_seeds: tuple[float, ...]
    n_obs: int
    n_dropped: int
    n_groups: int | None
    n_clusters: tuple[int, ...]
    n_classes: int
    method: str
    confidence: float
    clusters: NDArray = field(compare=False)

    def _flat(self, name: str) -> dict:
        value = getattr(self, name)
        if name.endswith("seeds"):
            return {name.replace("seeds", "sd"): float(np.std(value, ddof=1)) if len(value) > 1 else np.nan}
        if name == "n_clusters":
            return {"n_clusters": float(np.mean(value)), "n_seeds": len(value)}
        if name == "clusters":
            return {}
        return super()._flat(name)

    def __str__(self) -> str:
        parts = []
        for name in MEASURES:
            low, high = getattr(self, f"{name}_interval")
            value, chance = getattr(self, name), getattr(self, f"{name}_chance")
            parts.append(f"{name.upper()} {value:z.2f} [{low:z.2f}, {high:z.2f}], chance {chance:z.2f}")
        of = "" if self.n_groups is None else f" in {self.n_groups:,} groups"
        found = sorted(set(self.n_clusters))
        n_clusters = f"{found[0]}" if len(found) == 1 else f"{found[0]}-{found[-1]}"
        seeds = f", {len(self.n_clusters)} seeds" if len(self.n_clusters) > 1 else ""
        facts = f"n = {self.n_obs:,}{of}, {self.method}, {n_clusters} clusters, {self.n_classes} classes{seeds}"
        return f"{'; '.join(parts)} ({facts})"

    __repr__ = __str__


def clustering(
    data: ArrayLike | AnnData | MuData | None,
    labels: ArrayLike | str,
    *,
    use_rep: str | None = None,
    method: Literal["kmeans", "gmm", "leiden"] = "kmeans",
    clusters: ArrayLike | str | None = None,
    n_clusters: int | None = None,
    n_seeds: int = 5,
    n_neighbors: int = 15,
    groups: ArrayLike | str | None = None,
    n_permutations: int = 100,
    confidence: float = 0.95,
    seed: int = 0,
) -> ClusteringResult:
    r"""How well clusters of an embedding agree with labels.

    Parameters
    ----------
    data
        Embedding of shape `(n_obs, n_features)`, or an AnnData or MuData that holds it under `use_rep`. Rows that are
        NaN throughout are left out. None with given `clusters`.
    labels
        Class of each observation, or a column of `data.obs`. Observations without a label are left out.
    use_rep
        Key of `data.obsm`, or `"X"`; in a MuData, `"rna:Z_s"` stands for `data["rna"].obsm["Z_s"]`.
    method
        `"kmeans"` with ten starts, `"gmm"` (Gaussian mixture with full covariances), or `"leiden"` on the graph of
        nearest neighbours, whose resolution is searched until it gives `n_clusters`.
    clusters
        Clusters that a model has found, instead of clustering an embedding: labels, or a column of `data.obs`.
    n_clusters
        Number of clusters; by default the number of classes.
    n_seeds
        Number of times that the clustering is repeated from another seed.
    n_neighbors
        Neighbours of each observation in the graph of leiden.
    groups
        What is drawn in the bootstrap (donor, molecule), and keeps labels together in permutations as in
        :func:`probe`: `n_obs` labels, or a column of `data.obs`.
    n_permutations
        Number of permuted labels; 0 for none.
    confidence
        Level of the intervals.
    seed
        Seed of clustering, permutations and bootstrap. Global random state is neither used nor changed.

    Returns
    -------
    Accuracy, normalised mutual information and adjusted Rand index, with intervals, chance levels and spread.

    Raises
    ------
    KeyError
        `use_rep` or a column is not there.
    ValueError
        Lengths differ; the embedding is infinite, or NaN in a part of a row; a group is missing; fewer than two
        classes; more clusters than observations; both or neither of an embedding and clusters; an option is unknown.

    Warns
    -----
    UserWarning
        Leiden did not give the number of clusters at any resolution tried.

    Notes
    -----
    With :math:`n_{kc}` observations of class :math:`c` in cluster :math:`k`,

    .. math::

        \text{ACC} = \max_\pi \frac{1}{n} \sum_k n_{k \pi(k)}, \qquad
        \text{NMI} = \frac{2 \, I(\text{cluster}; \text{class})}{H(\text{cluster}) + H(\text{class})},

    where :math:`\pi` matches clusters to classes one to one (Hungarian algorithm [1]_); surplus clusters stay
    unmatched, and their observations count as wrong. NMI has the arithmetic mean of the entropies below. ARI is the
    share of pairs on which both partitions agree, less what is expected by chance [2]_. Only ARI has a chance level of
    0; ACC and NMI rise with the number of clusters, so compare them with their chance level.

    Intervals are percentiles over 1,000 bootstrap samples of groups, or of observations without groups, with the
    clusters as they are, of the mean over seeds. They do not hold the spread over seeds, which is given beside them.

    References
    ----------
    .. [1] Xie et al. (2016), Unsupervised deep embedding for clustering analysis. ICML, equation 10.
    .. [2] Hubert and Arabie (1985), Comparing partitions. Journal of Classification 2, 193-218, equation 5.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> rng = np.random.default_rng(0)
    >>> cell_type = np.repeat(["B", "NK", "T"], 50)
    >>> z = rng.normal(size=(150, 2)) + np.repeat([[0, 0], [9, 0], [0, 9]], 50, axis=0)
    >>> result = ub.metrics.clustering(z, cell_type)
    >>> result.acc, result.ari, result.n_clusters
    (1.0, 1.0, (3, 3, 3, 3, 3))
    """
    check_option("method", method, ("kmeans", "gmm", "leiden"))
    check_whole("n_seeds", n_seeds, 1)
    check_whole("n_neighbors", n_neighbors, 2)
    check_whole("n_permutations", n_permutations, 0)
    check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")
    if n_clusters is not None:
        check_whole("n_clusters", n_clusters, 1)
    method_rng, null_rng, bootstrap_rng = np.random.default_rng(seed).spawn(3)

    x, y, given, codes, keep = _read(data, labels, use_rep, clusters, groups)
    n_classes = int(y.max(initial=-1)) + 1
    if n_classes < 2:
        raise ValueError(f"Clusters are compared with classes, but there are {n_classes}.")
    if given is None:
        n_clusters = n_classes if n_clusters is None else n_clusters
        check_range("n_clusters", n_clusters, n_clusters <= len(x), f"at most the number of observations, {len(x)}")
        order = canonical_order(x, y, *([] if codes is None else [codes]))
        seeds = [int(each) for each in method_rng.integers(2**31, size=n_seeds)]
        with threadpool_limits(1):
            found = _cluster(x[order], method, n_clusters, n_neighbors, seeds)
    else:
        order = canonical_order(y, given, *([] if codes is None else [codes]))
        found = given[order][None]
    found = np.stack([np.unique(each, return_inverse=True)[1] for each in found])
    of_all = np.full(len(keep), -1)
    of_all[np.flatnonzero(keep)[order]] = found[0]
    y, codes = y[order], None if codes is None else codes[order]

    scores = _scores(found, y)  # (n_seeds, 3)
    intervals = _intervals(found, y, codes, confidence, bootstrap_rng)
    null = [_scores(found, y[p]).mean(axis=0) for p in islice(permutations(y, codes, null_rng), n_permutations)]
    null = np.array(null).reshape(-1, len(MEASURES))
    as_good = (null >= scores.mean(axis=0) - 1e-12).sum(axis=0)
    parts = {}
    for j, name in enumerate(MEASURES):
        parts |= {
            name: float(scores[:, j].mean()),
            f"{name}_interval": intervals[j],
            f"{name}_chance": float(null[:, j].mean()) if n_permutations else np.nan,
            f"{name}_p_value": float((1 + as_good[j]) / (1 + n_permutations)) if n_permutations else np.nan,
            f"{name}_seeds": tuple(scores[:, j].tolist()),
        }
    return ClusteringResult(
        **parts,
        n_obs=len(y),
        n_dropped=int((~keep).sum()),
        n_groups=None if codes is None else int(codes.max()) + 1,
        n_clusters=tuple(int(each.max()) + 1 for each in found),
        n_classes=n_classes,
        method="given" if given is not None else method,
        confidence=confidence,
        clusters=of_all,
    )


# --------------------------------------------------------------------------------------------------
# From what the user has to clusters


def _read(
    data: ArrayLike | AnnData | MuData | None,
    labels: ArrayLike | str,
    use_rep: str | None,
    clusters: ArrayLike | str | None,
    groups: ArrayLike | str | None,
) -> tuple[NDArray | None, NDArray, NDArray | None, NDArray | None, NDArray]:
    """Embedding or given clusters, codes of labels and groups, and which observations these are."""
    if clusters is None:
        if data is None:
            raise ValueError("There is nothing to cluster: pass an embedding as data, or clusters.")
        x = embedding_of(data, use_rep)
        n, keep = len(x), present_rows(x, "The embedding")
    else:
        if use_rep is not None:
            raise ValueError("Pass either use_rep, to cluster that embedding, or clusters.")
        x, n = None, len(data) if isinstance(clusters, str) and data is not None else len(clusters)
        clusters = values_of(data, clusters, "clusters", n)
        keep = clusters.notna().to_numpy()
    labels = values_of(data, labels, "labels", n)
    keep = keep & labels.notna().to_numpy()
    y = codes_of(labels[keep], "label")
    codes = None if groups is None else codes_of(values_of(data, groups, "groups", n)[keep], "group")
    return None if x is None else x[keep], y, None if clusters is None else codes_of(clusters[keep], "c"), codes, keep


def _cluster(x: NDArray, method: str, n_clusters: int, n_neighbors: int, seeds: list[int]) -> list[NDArray]:
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    if method == "kmeans":
        return [KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(x) for seed in seeds]
    if method == "gmm":
        floor = 1e-6 * max(float(x.var(axis=0).mean()), np.finfo(float).tiny)  # of variances, for constant features
        models = [GaussianMixture(n_clusters, reg_covar=floor, random_state=seed) for seed in seeds]
        return [model.fit_predict(x) for model in models]

    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(x)
    sc.pp.neighbors(adata, n_neighbors=min(n_neighbors, len(x) - 1), use_rep="X", random_state=seeds[0] % 2**31)
    found = []
    for seed in seeds:  # no comprehension, which is a frame of its own to warnings before Python 3.12
        found.append(_leiden(adata, n_clusters, seed))
    return found


def _leiden(adata: AnnData, n_clusters: int, seed: int) -> NDArray:
    """Bisection on the logarithm of the resolution; the number of clusters grows with it, if not strictly."""
    import scanpy as sc

    low, high, resolution, best = None, None, 1.0, None
    for _ in range(LEIDEN_STEPS):
        sc.tl.leiden(adata, resolution=resolution, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        codes = adata.obs["leiden"].cat.codes.to_numpy().astype(int)
        n_found = int(codes.max()) + 1
        if best is None or abs(n_found - n_clusters) < abs(best.max() + 1 - n_clusters):
            best = codes
        if n_found == n_clusters:
            return codes
        if n_found < n_clusters:
            low = resolution
            resolution = resolution * 2 if high is None else (low * high) ** 0.5
        else:
            high = resolution
            resolution = resolution / 2 if low is None else (low * high) ** 0.5
    warnings.warn(
        f"No resolution of leiden gave {n_clusters} clusters; the nearest number, {best.max() + 1}, is used.",
        UserWarning,
        stacklevel=4,
    )
    return best


# --------------------------------------------------------------------------------------------------
# Agreement of two partitions, from their table


def _scores(found: NDArray, y: NDArray) -> NDArray:
    """(n_seeds, 3)."""
    return np.array([_agreement(_table(each, y)) for each in found])


def _table(clusters: NDArray, y: NDArray, weights: NDArray | None = None) -> NDArray:
    """Number of observations of each cluster (row) and class."""
    shape = int(clusters.max()) + 1, int(y.max()) + 1
    return np.bincount(clusters * shape[1] + y, weights, minlength=shape[0] * shape[1]).reshape(shape)


def _agreement(table: NDArray) -> tuple[float, float, float]:
    """Accuracy, normalised mutual information and adjusted Rand index."""
    n, rows, columns = table.sum(), table.sum(axis=1), table.sum(axis=0)
    accuracy = table[linear_sum_assignment(table, maximize=True)].sum() / n

    entropy_rows, entropy_columns, joint = (-xlogy(p, p).sum() for p in (rows / n, columns / n, table / n))
    information = max(0.0, entropy_rows + entropy_columns - joint)
    mean_entropy = (entropy_rows + entropy_columns) / 2
    nmi = information / mean_entropy if mean_entropy > 0 else 1.0

    pairs, pairs_rows, pairs_columns = ((counts * (counts - 1) / 2).sum() for counts in (table, rows, columns))
    expected = pairs_rows * pairs_columns / (n * (n - 1) / 2)
    most = (pairs_rows + pairs_columns) / 2
    ari = (pairs - expected) / (most - expected) if most != expected else 1.0
    return float(accuracy), float(nmi), float(ari)


def _intervals(
    found: NDArray, y: NDArray, groups: NDArray | None, confidence: float, rng: np.random.Generator
) -> list[tuple[float, float]]:
    n_units = len(y) if groups is None else int(groups.max()) + 1
    drawn = []
    for _ in range(N_BOOTSTRAP):
        times = np.bincount(rng.integers(n_units, size=n_units), minlength=n_units)
        weights = times if groups is None else times[groups]
        drawn.append(np.mean([_agreement(_table(each, y, weights)) for each in found], axis=0))
    return [percentiles(column, confidence) for column in np.array(drawn).T]
