"""The scIB measures of biology kept and batches mixed, computed by scib-metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from unbraid._messages import check_whole
from unbraid.metrics._lookup import embedding_of, values_of
from unbraid.metrics._rows import canonical_order, codes_of, present_rows

if TYPE_CHECKING:
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

MIN_OBS = 100  # scIB asks for 90 neighbours of each observation


@dataclass(frozen=True, kw_only=True)
class ScibResult:
    """What :func:`scib` found.

    Attributes
    ----------
    table
        One row for each embedding and measure: `embedding`, `measure`, `kind` (`"Bio conservation"`,
        `"Batch correction"` or `"Aggregate score"`), `score`, and `chance`, the mean score of the embedding with its
        rows permuted (NaN without permutations).
    n_obs
        Number of observations.
    n_dropped
        Number of observations left out: no label, no batch, or lacking in one of the embeddings.
    n_labels
        Number of labels.
    n_batches
        Number of batches, None without.
    n_permutations
        Number of permutations behind `chance`.
    version
        Version of scib-metrics.
    """

    table: pd.DataFrame = field(compare=False)
    n_obs: int
    n_dropped: int
    n_labels: int
    n_batches: int | None
    n_permutations: int
    version: str

    def matrix(self, value: str = "score") -> pd.DataFrame:
        """One column of the table as a matrix of measures by embeddings."""
        matrix = self.table.pivot(index="measure", columns="embedding", values=value)
        return matrix.loc[self.table["measure"].unique(), self.table["embedding"].unique()]

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def __str__(self) -> str:
        cells = self.table.assign(
            cell=[f"{row.score:z.2f} (chance {row.chance:z.2f})" for row in self.table.itertuples()]
        ).pivot(index="measure", columns="embedding", values="cell")
        cells = cells.loc[self.table["measure"].unique(), self.table["embedding"].unique()]
        batches = "" if self.n_batches is None else f", {self.n_batches} batches"
        return f"{cells.to_string()}\n(n = {self.n_obs:,}, {self.n_labels} labels{batches})"

    __repr__ = __str__


def scib(
    data: ArrayLike | AnnData | MuData | Mapping[str, ArrayLike],
    *,
    use_rep: str | Iterable[str] | None = None,
    labels: ArrayLike | str,
    batch: ArrayLike | str | None = None,
    unintegrated: ArrayLike | str | None = None,
    n_permutations: int = 1,
    max_obs: int | None = None,
    n_jobs: int = 1,
    seed: int = 0,
) -> ScibResult:
    r"""The scIB measures of biology kept and batches mixed, computed by scib-metrics.

    Needs the package scib-metrics: `pip install "unbraid[metrics]"`.

    Parameters
    ----------
    data
        AnnData or MuData that holds the embeddings; an embedding `(n_obs, n_features)`; or a mapping from names to
        embeddings. Rows that are NaN throughout are left out, of all embeddings alike.
    use_rep
        Keys of `data.obsm`, such as `["Z_c", "rna:Z_s"]`.
    labels
        Biology to be kept, such as cell types: `n_obs` labels, or a column of `data.obs`.
    batch
        Batches to be mixed. Without, only the measures of biology are computed, but for isolated labels.
    unintegrated
        Embedding of the data before integration, such as `"rna:X_pca"`, with which `pcr_comparison` compares. Without,
        that measure is left out.
    n_permutations
        How often the rows of each embedding are permuted for the chance level; takes as long again each time.
    max_obs
        Use a random subset of at most so many observations.
    n_jobs
        Processes that search for neighbours.
    seed
        Seed of subset and permutations.

    Returns
    -------
    The table of scores, as `.table`, and as a matrix by `.matrix()`.

    Raises
    ------
    ImportError
        scib-metrics is not installed.
    KeyError
        An embedding or a column is not there.
    ValueError
        Lengths differ; an embedding is infinite, or NaN in a part of a row; fewer than 100 observations; a single label
        or batch.

    Notes
    -----
    The measures are those of scIB [1]_, all between 0 and 1, as `scib_metrics.benchmark.Benchmarker` computes them by
    default. The total is 0.6 times the mean of the measures of biology and 0.4 times that of batches. Scores are not
    scaled between the embeddings compared.

    **Chance.** The measures have no common zero. The chance level is the score of the embedding once its rows are
    permuted. It then holds neither biology nor batches, so it is near 1 for the measures of batches: mixed batches are
    no merit by themselves.

    **Interval.** There is none: the measures are made of nearest neighbours, which copies in a bootstrap sample
    falsify. Compare runs from several seeds.

    References
    ----------
    .. [1] Luecken et al. (2022), Benchmarking atlas-level data integration in single-cell genomics. Nature Methods 19,
       41-50.

    Examples
    --------
    >>> ub.metrics.scib(mdata, use_rep=["Z_c", "rna:Z_s"], labels="cell_type", batch="donor")  # doctest: +SKIP
    """
    benchmark, version = _scib_metrics()
    check_whole("n_permutations", n_permutations, 0)
    if max_obs is not None:
        check_whole("max_obs", max_obs, MIN_OBS)
    subset_rng, null_rng = np.random.default_rng(seed).spawn(2)

    embeddings, obs, pre, n_given = _read(data, use_rep, labels, batch, unintegrated)
    order = canonical_order(obs["labels"].cat.codes.to_numpy(), obs["batch"].cat.codes.to_numpy(), *embeddings.values())
    n_dropped = n_given - len(order)
    if max_obs is not None and len(order) > max_obs:
        order = order[np.sort(subset_rng.choice(len(order), max_obs, replace=False))]
    if len(order) < MIN_OBS:
        raise ValueError(f"{len(order)} observations can be used; scIB's neighbourhoods need at least {MIN_OBS}.")
    obs = obs.iloc[order].reset_index(drop=True)
    obs.index = obs.index.astype(str)
    embeddings = {name: x[order] for name, x in embeddings.items()}
    pre = None if pre is None else pre[order]

    run = lambda each: _benchmark(benchmark, each, obs, pre, batch is not None, n_jobs)
    table = run(embeddings)
    null = []
    for _ in range(n_permutations):
        permuted = {name: x[null_rng.permutation(len(x))] for name, x in embeddings.items()}
        null.append(run(permuted)["score"].to_numpy())
    table["chance"] = np.mean(null, axis=0) if null else np.nan
    return ScibResult(
        table=table,
        n_obs=len(order),
        n_dropped=n_dropped,
        n_labels=obs["labels"].nunique(),
        n_batches=None if batch is None else obs["batch"].nunique(),
        n_permutations=n_permutations,
        version=version,
    )


def _scib_metrics() -> tuple[Any, str]:
    try:
        import scib_metrics
        from scib_metrics import benchmark
    except ImportError as error:
        raise ImportError('The scIB measures need the package scib-metrics: pip install "unbraid[metrics]".') from error
    return benchmark, scib_metrics.__version__


def _read(
    data: ArrayLike | AnnData | MuData | Mapping[str, ArrayLike],
    use_rep: str | Iterable[str] | None,
    labels: ArrayLike | str,
    batch: ArrayLike | str | None,
    unintegrated: ArrayLike | str | None,
) -> tuple[dict[str, NDArray], pd.DataFrame, NDArray | None, int]:
    """Embeddings by name, labels and batches, the embedding before, of the observations that have all of them."""
    if isinstance(data, Mapping):
        embeddings = {str(name): embedding_of(each, None) for name, each in data.items()}
    elif use_rep is None or isinstance(use_rep, str):
        embeddings = {use_rep or "embedding": embedding_of(data, use_rep)}
    else:
        embeddings = {key: embedding_of(data, key) for key in use_rep}
    if not embeddings:
        raise ValueError("There is no embedding: name one with use_rep.")
    n = len(next(iter(embeddings.values())))
    pre = None
    if unintegrated is not None:
        pre = embedding_of(data, unintegrated) if isinstance(unintegrated, str) else embedding_of(unintegrated, None)
    keep = np.ones(n, dtype=bool)
    for name, x in (embeddings | ({} if pre is None else {"unintegrated": pre})).items():
        if len(x) != n:
            raise ValueError(f"Embedding {name!r} has {len(x)} rows, but the first has {n}.")
        keep &= present_rows(x, f"Embedding {name!r}")
    columns = {"labels": values_of(data, labels, "labels", n)}
    columns["batch"] = pd.Series(np.zeros(n)) if batch is None else values_of(data, batch, "batch", n)
    keep &= np.all([each.notna() for each in columns.values()], axis=0)
    codes = {name: codes_of(each[keep], name) for name, each in columns.items()}
    for name, code in codes.items():
        if len(code) and code.max() == 0 and not (name == "batch" and batch is None):
            hint = "there is nothing to keep" if name == "labels" else "leave batch out"
            raise ValueError(f"{name} has a single value: {hint}.")
    obs = pd.DataFrame({name: pd.Categorical([f"{c}" for c in code]) for name, code in codes.items()})
    return {name: x[keep] for name, x in embeddings.items()}, obs, None if pre is None else pre[keep], n


def _benchmark(
    benchmark: Any, embeddings: dict[str, NDArray], obs: pd.DataFrame, pre: NDArray | None, has_batch: bool, n_jobs: int
) -> pd.DataFrame:
    """Scores of all measures of all embeddings, tidy."""
    adata = AnnData(obs=obs)
    names = {f"embedding{i}": name for i, name in enumerate(embeddings)}  # keys may clash with what scIB adds
    for key, name in names.items():
        adata.obsm[key] = embeddings[name].astype(np.float32)
    adata.obsm["pre"] = adata.obsm["embedding0"] if pre is None else pre.astype(np.float32)
    benchmarker = benchmark.Benchmarker(
        adata,
        batch_key="batch",
        label_key="labels",
        embedding_obsm_keys=list(names),
        bio_conservation_metrics=benchmark.BioConservation(isolated_labels=has_batch),
        batch_correction_metrics=benchmark.BatchCorrection(pcr_comparison=pre is not None) if has_batch else None,
        pre_integrated_embedding_obsm_key="pre",
        n_jobs=n_jobs,
        progress_bar=False,
    )
    benchmarker.benchmark()
    wide = benchmarker.get_results(min_max_scale=False)
    kind = wide.loc["Metric Type"]
    wide = wide.drop(index="Metric Type")
    rows = [
        {"embedding": names[key], "measure": measure, "kind": kind[measure], "score": float(wide.loc[key, measure])}
        for key in wide.index
        for measure in wide.columns
    ]
    return pd.DataFrame(rows)
