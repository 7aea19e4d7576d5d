"""How well the match of an observation is found in the other modality."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import digamma

from unbraid._messages import check_option, check_range, check_whole
from unbraid.metrics._resampling import N_BOOTSTRAP, percentiles
from unbraid.metrics._result import Result
from unbraid.metrics._retrieval_design import average_queries, average_targets, count_closer, read_sides
from unbraid.metrics._rows import canonical_order

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class RetrievalResult(Result):
    """What :func:`retrieval` found.

    Attributes
    ----------
    top
        Of each N, the share of queries whose true match is among the N closest candidates.
    top_interval, top_chance
        Its interval, and what random ranks give.
    mrr
        Mean reciprocal rank.
    mrr_interval, mrr_chance
        Its interval, and what random ranks give.
    mrr_macro
        Mean over groups of the mean reciprocal rank in the group. Equals `mrr` without groups.
    mrr_macro_interval, mrr_macro_chance
        Its interval, and what random ranks give.
    median_rank
        Median rank of the true match; 1 is best.
    median_rank_interval, median_rank_chance
        Its interval, and what random ranks give.
    foscttm
        Mean relative rank: the fraction of other candidates that are closer than the true match. 0 is best.
    foscttm_interval, foscttm_chance
        Its interval, and what random ranks give, which is 0.5.
    n_queries
        Number of queries.
    n_candidates
        Number of candidates of a query, averaged over queries.
    n_dropped
        Number of rows left out: embedding or match missing, or nothing to choose between.
    n_groups
        Number of bootstrap units, None if these are the queries.
    n_strata
        Number of strata, None without strata.
    metric
        How closeness is measured.
    confidence
        Level of the intervals.
    ranks
        Rank of the true match of every row of the query, NaN where it was left out. With averaged queries, of every
        group in the order of its name.
    """

    _measure = "retrieval"
    top: dict[int, float]
    top_interval: dict[int, tuple[float, float]]
    top_chance: dict[int, float]
    mrr: float
    mrr_interval: tuple[float, float]
    mrr_chance: float
    mrr_macro: float
    mrr_macro_interval: tuple[float, float]
    mrr_macro_chance: float
    median_rank: float
    median_rank_interval: tuple[float, float]
    median_rank_chance: float
    foscttm: float
    foscttm_interval: tuple[float, float]
    foscttm_chance: float
    n_queries: int
    n_candidates: float
    n_dropped: int
    n_groups: int | None
    n_strata: int | None
    metric: Literal["cosine", "euclidean", "dot"]
    confidence: float
    ranks: NDArray = field(compare=False)

    def _flat(self, name: str) -> dict:
        if name == "top":
            return {
                f"top{n}{suffix}": value
                for n, accuracy in self.top.items()
                for suffix, value in zip(
                    ("", "_low", "_high", "_chance"), (accuracy, *self.top_interval[n], self.top_chance[n]), strict=True
                )
            }
        if name == "ranks" or name.startswith("top_"):
            return {}
        return super()._flat(name)

    def __str__(self) -> str:
        low, high = self.mrr_interval
        of = "" if self.n_groups is None else f" in {self.n_groups:,} groups"
        top = ", ".join(f"top-{n} {accuracy:.2f} (chance {self.top_chance[n]:.2g})" for n, accuracy in self.top.items())
        return (
            f"MRR {self.mrr:.2f} [{low:.2f}, {high:.2f}], chance {self.mrr_chance:.2g}; {top}; median rank "
            f"{self.median_rank:g} of {self.n_candidates:,.6g}, FOSCTTM {self.foscttm:.2f} (n = {self.n_queries:,}{of})"
        )

    __repr__ = __str__


def retrieval(
    query: ArrayLike | str,
    target: ArrayLike | str,
    *,
    data: AnnData | MuData | None = None,
    query_groups: ArrayLike | str | None = None,
    target_groups: ArrayLike | str | None = None,
    query_replicates: Literal["each", "average"] = "each",
    target_replicates: Literal["best", "average"] = "best",
    groups: ArrayLike | str | None = None,
    strata: ArrayLike | str | None = None,
    top: Iterable[int] = (1, 5, 10, 20, 30),
    metric: Literal["cosine", "euclidean", "dot"] = "cosine",
    max_obs: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> RetrievalResult:
    r"""How well the match of an observation is found in the other modality.

    Every query ranks the candidates by closeness; what counts is the rank of its true match.

    Parameters
    ----------
    query
        Embedding of what is asked, `(n_queries, n_features)`: an array, a sparse matrix, or a key of `data` such as
        `"rna:Z_c"`, which stands for `data["rna"].obsm["Z_c"]`. Rows that are NaN throughout are left out.
    target
        Embedding of what is searched, `(n_targets, n_features)`, likewise. Without groups, row i is the true match
        of row i of the query, and the pair is left out if either is missing.
    data
        Where keys are looked up.
    query_groups, target_groups
        What a row is of, where that is not the row itself: the molecule of each profile. All rows of a group are one
        candidate, and the true match of a query is its own group. Labels, or a column of `data.obs`. One of them is
        enough if query and target have the same rows.
    query_replicates
        `"each"` row is a query, or the `"average"` of each group is.
    target_replicates
        How close a candidate with several rows is: that of its `"best"` row, or of the `"average"` of its rows.
    groups
        What is drawn in the bootstrap (donor, scaffold), of each row of the query: labels, or a column of `data.obs`.
        By default `query_groups`, and single observations without.
    strata
        Candidates are only those within the query's stratum (batch, cell type, cell line): labels of the rows of the
        query, or a column of `data.obs`. If the target has rows of its own (one for each molecule), the candidates
        in a stratum are the groups that are asked for in it.
    top
        The N of the top-N accuracies.
    metric
        `"cosine"` similarity, `"euclidean"` distance, or `"dot"` product.
    max_obs
        Ask at most so many queries, drawn at random. The candidates stay, so the numbers keep their meaning.
    confidence
        Level of the intervals.
    seed
        Seed of bootstrap and subset. Global random state is neither used nor changed.

    Returns
    -------
    Top-N accuracies, mean reciprocal rank, median rank and mean relative rank, with intervals and exact chance levels.

    Raises
    ------
    KeyError
        A key or a column is not there.
    ValueError
        Lengths or numbers of features differ; rows are infinite, or NaN in part; a group or a stratum is missing; no
        query has two candidates; a group of the query is not in the target (`strata` aside); an option is unknown.

    Notes
    -----
    With :math:`r_q` the rank of the true match among the :math:`K_q` candidates of query :math:`q`,

    .. math::

        \text{top-}N = \overline{[r_q \le N]}, \qquad
        \text{MRR} = \overline{1 / r_q}, \qquad
        \text{FOSCTTM} = \overline{(r_q - 1) / (K_q - 1)}.

    FOSCTTM is the fraction of samples closer than the true match [2]_, here in one direction; swap query and target
    for the other.

    **Ties** are resolved in expectation over all ways of breaking them: with :math:`c` candidates closer and
    :math:`t` others as close as the true match, :math:`r = c + 1 + t / 2`, and :math:`[r \le N]` and :math:`1 / r`
    are averaged over :math:`c + 1, \ldots, c + 1 + t`. A collapsed embedding is thus exactly at chance.

    **Chance** is exact, that of uniformly random ranks: :math:`\min(N, K) / K`, :math:`H_K / K` with the harmonic
    number :math:`H_K`, :math:`(K + 1) / 2` and 0.5. Where :math:`K` differs between strata, queries have equal weight,
    in the scores as in their chance levels.

    **Interval.** Percentiles over 1,000 bootstrap samples of groups, or of queries without groups. The candidates
    stay as they are.

    **Protocols.** Profile to molecule as in drug screening [1]_: `query` the profiles, `query_groups` their molecule,
    `target` the molecules; every replicate is its own query. The other direction by the best replicate: swap them.
    Replicate-averaged: `query_replicates="average"`. For cosine similarity and dot product, averaging replicates (of
    unit length for cosine) is averaging their similarities.

    Similarities are computed in blocks: memory does not grow with `n_queries * n_targets`.

    References
    ----------
    .. [1] Wang et al. (2023), Removing biases from molecular representations via information maximization (InfoCORE).
       arXiv:2312.00718.
    .. [2] Liu et al. (2019), Jointly embedding multiple single-cell omics measurements. WABI.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> rng = np.random.default_rng(0)
    >>> rna = rng.normal(size=(200, 8))
    >>> protein = rna + 0.1 * rng.normal(size=(200, 8))
    >>> result = ub.metrics.retrieval(rna, protein)
    >>> result.top[1] > 0.9, result.top_chance[1], result.median_rank
    (True, 0.005, 1.0)

    Of cells in a MuData, against cells of the same batch and type only:

    >>> ub.metrics.retrieval("rna:Z_c", "prot:Z_c", data=mdata, strata="batch_and_type")  # doctest: +SKIP
    """
    check_option("query_replicates", query_replicates, ("each", "average"))
    check_option("target_replicates", target_replicates, ("best", "average"))
    check_option("metric", metric, ("cosine", "euclidean", "dot"))
    check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")
    if max_obs is not None:
        check_whole("max_obs", max_obs, 1)
    top = tuple(dict.fromkeys(top))
    for n in top:
        check_whole("top", n, 1)
    subset_rng, bootstrap_rng = np.random.default_rng(seed).spawn(2)

    sides = read_sides(data, query, target, query_groups, target_groups, groups, strata)
    n_dropped = int((~sides.query_present).sum())
    if metric == "cosine":
        sides = replace(sides, query=_unit_rows(sides.query), target=_unit_rows(sides.target))
    if query_replicates == "average":
        sides = average_queries(sides)
    if target_replicates == "average":
        sides = average_targets(sides)

    asked = np.flatnonzero(sides.query_present)
    if max_obs is not None and len(asked) > max_obs:
        asked = asked[canonical_order(sides.query[asked], sides.query_codes[asked])]
        asked = subset_rng.choice(asked, max_obs, replace=False)
    closer, tied, n_candidates = count_closer(sides, asked, metric)
    has_choice = n_candidates >= 2
    if not has_choice.any():
        raise ValueError(
            f"None of {len(sides.query)} queries has two candidates to choose between: check for missing rows"
            + ("." if strata is None else ", and for strata with a single candidate.")
        )
    n_dropped += int((~has_choice).sum())
    asked, closer, tied, n_candidates = (
        asked[has_choice],
        closer[has_choice],
        tied[has_choice],
        n_candidates[has_choice],
    )
    ranks = np.full(len(sides.query), np.nan)
    ranks[asked] = closer + 1 + tied / 2

    unit = np.zeros_like(asked) if sides.units is None else sides.units[asked]
    macro = sides.query_codes[asked] if sides.is_grouped else unit if sides.units is not None else np.zeros_like(asked)
    order = canonical_order(unit, macro, n_candidates, closer, tied)
    asked, closer, tied, n_candidates = asked[order], closer[order], tied[order], n_candidates[order]
    units = None if sides.units is None else np.unique(unit[order], return_inverse=True)[1]
    macro = np.unique(macro[order], return_inverse=True)[1]
    in_macro = np.ones(len(asked)) if units is None else 1 / np.bincount(macro)[macro]  # groups count alike

    scores = _scores(closer, tied, n_candidates, top)
    rank = closer + 1 + tied / 2
    intervals = _intervals(scores, rank, in_macro, units, confidence, bootstrap_rng)
    sizes, of_size = np.unique(n_candidates, return_inverse=True)
    chance, n_of_size = _chance(sizes, top), np.bincount(of_size)
    mrr, foscttm = scores[:, -2], scores[:, -1]
    return RetrievalResult(
        top=dict(zip(top, scores[:, :-2].mean(axis=0).tolist(), strict=True)),
        top_interval=dict(zip(top, intervals[: len(top)], strict=True)),
        top_chance=dict(zip(top, (n_of_size @ chance[:, :-2] / len(rank)).tolist(), strict=True)),
        mrr=float(mrr.mean()),
        mrr_interval=intervals[-4],
        mrr_chance=float(n_of_size @ chance[:, -2] / len(rank)),
        mrr_macro=float(np.average(mrr, weights=in_macro)),
        mrr_macro_interval=intervals[-2],
        mrr_macro_chance=float(np.average(chance[:, -2], weights=np.bincount(of_size, in_macro))),
        median_rank=float(np.median(rank)),
        median_rank_interval=intervals[-1],
        median_rank_chance=_median_of_random_ranks(n_candidates),
        foscttm=float(foscttm.mean()),
        foscttm_interval=intervals[-3],
        foscttm_chance=0.5,
        n_queries=len(rank),
        n_candidates=float(n_candidates.mean()),
        n_dropped=n_dropped,
        n_groups=None if units is None else int(units.max()) + 1,
        n_strata=None if strata is None else len(np.unique(sides.query_strata[asked])),
        metric=metric,
        confidence=confidence,
        ranks=ranks,
    )


# --------------------------------------------------------------------------------------------------
# Scores


def _unit_rows(x: NDArray) -> NDArray:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def _scores(closer: NDArray, tied: NDArray, n_candidates: NDArray, top: tuple[int, ...]) -> NDArray:
    """(n_queries, top-N accuracies + reciprocal and relative rank), expected over ways of breaking ties."""
    accuracies = [np.clip((n - closer) / (tied + 1), 0, 1) for n in top]
    reciprocal = 1 / (closer + 1)
    has_ties = tied > 0
    first, last = closer[has_ties] + 1, closer[has_ties] + 1 + tied[has_ties]
    reciprocal[has_ties] = (digamma(last + 1) - digamma(first)) / (tied[has_ties] + 1)
    relative = (closer + tied / 2) / (n_candidates - 1)
    return np.stack([*accuracies, reciprocal, relative], axis=1)


def _chance(n_candidates: NDArray, top: tuple[int, ...]) -> NDArray:
    """As if all candidates were tied with the true match."""
    return _scores(np.zeros_like(n_candidates), n_candidates - 1, n_candidates, top)


def _median_of_random_ranks(n_candidates: NDArray) -> float:
    """Median of a rank that is uniform on 1 to K, where K is that of a random query."""
    sizes, n_queries = np.unique(n_candidates, return_counts=True)
    rank = np.arange(1, sizes[-1] + 1)
    below = sum(
        share * np.minimum(rank, size) / size for size, share in zip(sizes, n_queries / n_queries.sum(), strict=True)
    )
    half = 0.5 - 1e-12
    return float((rank[np.argmax(below >= half)] + rank[np.argmax(below > 1 - half)]) / 2)


def _intervals(scores, rank, in_macro, units, confidence, rng) -> list[tuple[float, float]]:
    """Of every score, of the macro-averaged reciprocal rank, and of the median rank."""
    columns = np.column_stack([scores, np.ones(len(rank)), in_macro * scores[:, -2], in_macro])
    sums = columns
    if units is not None:
        sums = np.stack([np.bincount(units, column) for column in columns.T], axis=1)
    by_rank = np.argsort(rank)
    sorted_rank = rank[by_rank]
    drawn = []
    for _ in range(N_BOOTSTRAP):
        times = np.bincount(rng.integers(len(sums), size=len(sums)), minlength=len(sums))
        total = times @ sums
        below = np.cumsum((times if units is None else times[units])[by_rank])
        middle = np.searchsorted(below, [(below[-1] + 1) // 2, below[-1] // 2 + 1])  # the two that enclose the median
        drawn.append([*(total[:-3] / total[-3]), total[-2] / total[-1], sorted_rank[middle].mean()])
    return [percentiles(column, confidence) for column in np.array(drawn).T]
