"""What every single gene, protein or peak is made of: shared, specific, both, or noise."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import false_discovery_control
from threadpoolctl import threadpool_limits

from unbraid._messages import check_range, suggest
from unbraid.tl._feature_models import (
    Blocks,
    Directions,
    Likelihood,
    common_effects,
    effects_of,
    explained,
    held_out_deviances,
    mean_of,
    shrunk_fit,
    tail_probabilities,
    whitened_blocks,
)
from unbraid.tl._feature_sample import FEWEST_OBS, Sample, codes_for, modalities_of, read_sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

VERDICTS = ("shared", "specific", "both", "noise")
BLOCK_VALUES = 300_000  # of a block of features, dense: small enough for a processor's cache
N_COMPOSITION, NEGLIGIBLE_EFFECT = 2, 0.1  # standard deviation of a log-mean
SHARES = ("shared", "specific", "both")


def feature_verdict(
    mdata: MuData,
    *,
    shared: str = "Z_c",
    specific: str | None = "Z_s",
    modalities: Sequence[str] | None = None,
    layers: Mapping[str, str] | None = None,
    likelihoods: Mapping[str, Likelihood] | None = None,
    size_factors: Mapping[str, str] | None = None,
    batch: ArrayLike | str | None = None,
    groups: ArrayLike | str | None = None,
    degree: Literal[1, 2] = 1,
    n_splits: int = 5,
    n_permutations: int = 50,
    alpha: float = 0.05,
    max_obs: int | None = 10_000,
    key_added: str = "verdict",
    seed: int = 0,
    inplace: bool = True,
) -> pd.DataFrame | None:
    r"""For every feature: is it shared between modalities, specific to its own, both, or noise?

    A feature is *shared* if the shared code of the **other** modalities explains it, where the cell's own measurement
    noise cannot help; *specific* if its modality's specific code does; *both* if each adds to the other.

    Parameters
    ----------
    mdata
        Modalities with their codes.
    shared
        Key of the shared codes, `mdata[m].obsm[shared]`. With more than two modalities the codes of all others are
        used side by side, of the cells that have all. If a modality has none, `mdata.obsm[shared]` stands in, with a
        warning: such a joint code has seen the feature itself.
    specific
        Key of the specific codes, `mdata[m].obsm[specific]`. None: there are none, and features are shared or noise.
    modalities
        Modalities to take part; default all.
    layers
        For a modality, the layer with its values; default `X`. Counts are to be given as counts.
    likelihoods
        For a modality, `"poisson"` (counts; overdispersion is estimated), `"bernoulli"` (0 and 1) or `"normal"`. By
        default whole numbers of at least 0 are counts, 0/1 if nothing else occurs, and other values normal.
    size_factors
        For a modality of counts, the column of its `obs` with size factors (see Notes); default total counts,
        corrected for composition.
    batch
        Labels whose effect is neither shared nor specific: a column of `mdata.obs` or `n_obs` values. Rows are permuted
        within batches.
    groups
        Donors or other units that stay on one side of a split, as `batch`. Permutations are then within groups, and
        standard errors are of groups.
    degree
        2: squares and products of the codes' dimensions count as well.
    n_splits
        Folds for the held-out deviance.
    n_permutations
        Permutations of the codes' rows, each a null value for every feature. At least 20, and 1 / alpha, so that a
        single feature can pass.
    alpha
        False discovery rate of the verdicts.
    max_obs
        Use a random subset of at most so many cells; None for all.
    key_added
        Prefix of the columns.
    seed
        Seed of subset, folds and permutations. Global random state is neither used nor changed.
    inplace
        False: leave `mdata` as it is and return the table.

    Returns
    -------
    None, or with `inplace=False` a table of all features indexed by modality and feature. Columns, in `.var` of every
    modality:

    - `verdict`: `"shared"`, `"specific"`, `"both"` or `"noise"`;
    - `verdict_shared`, `verdict_specific`, `verdict_both`: share of the held-out deviance that the shared code, the
      specific code, and both together explain, beyond batch and depth; 0 is chance, and NaN that the feature is
      constant;
    - `verdict_shared_se`, ...: standard errors, with the fitted models held fixed;
    - `verdict_shared_fdr`, `verdict_specific_fdr`: false discovery rate (Benjamini-Hochberg, among the modality's
      features) of what a code adds to the other one; `verdict_both_fdr`: of both codes together.

    `mdata.uns[key_added]` says how it was done: parameters, and of every modality the likelihood, the source of the
    shared code, the number of cells used and left out, and of features by verdict.

    Raises
    ------
    KeyError
        A modality, layer, code or column is not there; the message says what is.
    ValueError
        Values do not suit the likelihood, codes are infinite or NaN in a part of a row, fewer than 50 cells have
        values and codes, or an option is out of range.

    Warns
    -----
    UserWarning
        The joint code stands in for a modality's shared code.

    Notes
    -----
    **Deviance explained.** For feature :math:`j` of modality :math:`m`, a generalised linear model with canonical link
    on nuisance :math:`n_i` (batch) and codes :math:`c_i, s_i`,

    .. math::

        g(\mathbb E\, x_{ij}) = \log \ell_i + n_i^\top a_j + c_i^\top b_j + s_i^\top d_j ,
        \qquad
        D^2_j = 1 - \frac{\sum_i \mathrm{dev}(x_{ij}, \hat\mu_{ij})}{\sum_i \mathrm{dev}(x_{ij}, \hat\mu^0_{ij})}

    over held-out cells; :math:`\hat\mu^0` has nuisance only, and the size factor :math:`\ell_i` enters for counts
    (for 0/1 the log-total is part of the nuisance). Coefficients are shrunk by empirical Bayes, a feature whose
    training score is no larger than chance to zero, so that a negative :math:`D^2` is rare and small. Poisson deviance
    includes the counting noise: the share that a sparse gene could at best reach is far below 1.

    **Depth and composition.** Depth is shared by the modalities of a cell, and technical. Totals remove it, and make
    all other features seem to fall where some rise. The effect that most features have in common is therefore
    estimated (robustly: Student t with one degree of freedom over all features) and given back to the size factors.
    "Explained" is thus relative to what most features do; where most features truly follow a code in the same
    way, give size factors of your own (spike-ins, hashtags).

    **Test.** Of the code to be tested the part that nuisance and the other code do not predict, against the
    standardised residuals of the model without it: the statistic is the share of their sum of squares that it
    explains, weighted by depth. The null is that of permuted rows (within batch). Its first two moments over all
    permutations are known exactly for every feature [1]_, [2]_; the beta distribution that has them puts features on one
    scale, on which the values of `n_permutations` permutations of all features are pooled. The p-value is the
    share of pooled null values at least as extreme.

    **Verdict.** False discovery rates are those of Benjamini and Hochberg [3]_. *both* if each code adds to the
    other (at `alpha`); *shared* or *specific* if only that one does; if neither adds to the other but both together
    explain the feature, the one that alone explains more; else *noise*.

    **What a specific code has seen.** A specific code is made from the cell's own values, and can carry a single
    feature's counting noise, which is then "explained": on simulated counts judged by `LinearSplit` codes, half of the
    pure noise genes are called specific. To rule that out, split counts by :func:`unbraid.pp.split_counts`, train the
    model on one part, and pass the other part in `layers` (6 % then). What remains is biological or technical variation of a feature
    beyond counting noise, which thinning keeps; codes with about as many dimensions as there are features (proteins)
    hold that of each one. A specific code that still holds shared information makes shared features look like both.

    References
    ----------
    .. [1] Pitman (1937), Significance tests which may be applied to samples from any populations. II.
    .. [2] Box and Watson (1962), Robustness to non-normality of regression tests. Biometrika 49, 93-106.
    .. [3] Benjamini and Hochberg (1995), Controlling the false discovery rate. J. R. Stat. Soc. B 57, 289-300.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)  # doctest: +SKIP
    >>> ub.model.LinearSplit.setup_mudata(mdata)  # doctest: +SKIP
    >>> model = ub.model.LinearSplit(mdata)  # doctest: +SKIP
    >>> model.train()
    ... model.write_latent()  # doctest: +SKIP
    >>> ub.tl.feature_verdict(mdata, batch="batch")  # doctest: +SKIP
    >>> mdata["rna"].var["verdict"].value_counts()  # doctest: +SKIP
    """
    check_range("degree", degree, degree in (1, 2), "1 or 2")
    check_range("n_splits", n_splits, n_splits >= 2, "at least 2")
    check_range("alpha", alpha, 0 < alpha < 1, "between 0 and 1")
    least = max(20, np.ceil(1 / alpha))
    check_range("n_permutations", n_permutations, n_permutations >= least, f"at least {least:g} for alpha = {alpha:g}")
    check_range("max_obs", max_obs, max_obs is None or max_obs >= FEWEST_OBS, f"at least {FEWEST_OBS}")
    names = modalities_of(mdata, modalities)
    for option, given in {"layers": layers, "likelihoods": likelihoods, "size_factors": size_factors}.items():
        if unknown := [name for name in given or {} if name not in names]:
            raise KeyError(f"{option} names {unknown[0]!r}. {suggest(unknown[0], names)}")

    tables, notes = {}, {}
    for name in names:
        subset_rng, fold_rng, *test_rngs = np.random.default_rng(seed).spawn(5)
        codes, source = codes_for(mdata, name, [other for other in names if other != name], shared, specific, degree)
        sample = read_sample(mdata, name, codes, layers or {}, likelihoods or {}, size_factors or {}, batch, groups)
        if max_obs is not None and len(sample) > max_obs:
            sample = sample[np.sort(subset_rng.choice(len(sample), max_obs, replace=False))]
        with threadpool_limits(1):
            table = _judged(sample, n_splits, n_permutations, alpha, fold_rng, test_rngs)
        tables[name] = table.set_axis(mdata.mod[name].var_names)
        notes[name] = {
            "likelihood": sample.likelihood,
            "shared_code": source,
            "n_obs": len(sample),
            "n_dropped": mdata.mod[name].n_obs - len(sample),
            **{f"n_{verdict}": int((table["verdict"] == verdict).sum()) for verdict in VERDICTS},
        }

    if not inplace:
        return pd.concat(tables, names=["modality", "feature"])
    for name, table in tables.items():
        for column in table:
            key = key_added if column == "verdict" else f"{key_added}_{column}"
            mdata.mod[name].var[key] = table[column]
    parameters = {"shared": shared, "specific": specific or "", "degree": degree, "n_splits": n_splits}
    parameters |= {"n_permutations": n_permutations, "alpha": alpha, "seed": seed}
    mdata.uns[key_added] = {"parameters": parameters, "modalities": notes}
    return None


# --------------------------------------------------------------------------------------------------
# Verdicts


def _judged(
    sample: Sample,
    n_splits: int,
    n_permutations: int,
    alpha: float,
    fold_rng: np.random.Generator,
    test_rngs: list[np.random.Generator],
) -> pd.DataFrame:
    n = len(sample)
    is_counts, everything = sample.likelihood == "poisson", np.ones(n, dtype=bool)
    weights = sample.size if is_counts else np.ones(n)
    depth = np.log(sample.size)[:, None] if sample.likelihood == "bernoulli" else np.zeros((n, 0))
    nuisance_of = lambda train: np.concatenate([np.ones((n, 1)), depth, _indicators(sample.batch, train)], axis=1)
    values = _Features(sample)
    if is_counts and not sample.is_size_given:
        weights = _without_composition(sample, values, nuisance_of(everything))
    offset = np.log(weights)

    fold = _folds(sample, n_splits, fold_rng)
    models_of_fold = []
    for k in range(fold.max() + 1):
        train = fold != k
        shared_first, specific_first = _both_orders(nuisance_of(train), sample.codes, weights, train)
        models_of_fold.append([shared_first[[0]], shared_first[[0, 1]], specific_first[[0, 1]], shared_first])
    shared_first, specific_first = _both_orders(nuisance_of(everything), sample.codes, weights, everything)
    has_specific = (shared_first.block == 2).any()
    strata = sample.batch if sample.groups is None else sample.groups
    # to test a code, the other one comes first: of the later blocks only what the earlier do not predict is left
    hypotheses = {"shared": (specific_first, [0, 1]), "specific": (shared_first, [0, 1]), "both": (shared_first, [0])}
    directions = {
        name: Directions.of(blocks, given, weights, strata, n_permutations, rng)
        for (name, (blocks, given)), rng in zip(hypotheses.items(), test_rngs, strict=True)
    }

    def judge(x: NDArray) -> tuple[NDArray, ...]:
        share, error = explained(held_out_deviances(x, offset, models_of_fold, fold, sample.likelihood), sample.groups)
        tails = []
        for name, (blocks, given) in hypotheses.items():
            without = blocks[given]
            b = shrunk_fit(x, offset, without, sample.likelihood)
            mean = mean_of(sample.likelihood, offset[:, None] + without.z @ b)
            tails.append(tail_probabilities(x, mean, weights, directions[name], sample.likelihood))
        return share, error, *(np.stack(t) for t in zip(*tails, strict=True))

    parts = values.map(judge)
    share, error, tail, null = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    table = pd.DataFrame(index=range(sample.x.shape[1]))
    for k, name in enumerate(SHARES):
        is_there = name != "specific" or has_specific
        table.loc[values.varying, name] = share[k] if is_there else np.nan
        table.loc[values.varying, f"{name}_se"] = error[k] if is_there else np.nan
    for k, name in enumerate(SHARES):
        pooled = np.sort(null[k], axis=None)
        p = (1 + np.searchsorted(pooled, tail[k], side="right")) / (1 + len(pooled))
        if name == "specific" and not has_specific:
            p[:] = 1.0
        fdr = np.ones(len(table))
        if len(p):
            fdr[values.varying] = false_discovery_control(p)
        table[f"{name}_fdr"] = fdr
    table.insert(0, "verdict", _verdicts(table, alpha))
    return table


def _verdicts(table: pd.DataFrame, alpha: float) -> pd.Categorical:
    adds_shared, adds_specific = table["shared_fdr"] <= alpha, table["specific_fdr"] <= alpha
    more = np.where(table["specific"].fillna(-np.inf) > table["shared"].fillna(-np.inf), "specific", "shared")
    verdict = np.select(
        [adds_shared & adds_specific, adds_shared, adds_specific, table["both_fdr"] <= alpha],
        ["both", "shared", "specific", more],
        "noise",
    )
    return pd.Categorical(verdict, categories=list(VERDICTS))


def _both_orders(nuisance: NDArray, codes: list[NDArray], weights: NDArray, train: NDArray) -> tuple[Blocks, Blocks]:
    return tuple(whitened_blocks(nuisance, order, weights, train) for order in (codes, codes[::-1]))


class _Features:
    """Features that vary, as dense blocks."""

    def __init__(self, sample: Sample) -> None:
        x = sample.x
        self.is_normal = sample.likelihood == "normal"
        if sparse.issparse(x):
            low, high = (f(axis=0).toarray().ravel() for f in (x.min, x.max))
            x = sparse.csc_array(x)
        else:
            low, high = x.min(axis=0), x.max(axis=0)
        self.x, self.varying = x, np.flatnonzero(high > low)

    def map(self, function) -> list:
        """Of every block, with threads: a block's matrices are too small to share out."""
        width = max(1, BLOCK_VALUES // self.x.shape[0])
        starts = range(0, len(self.varying), width)
        with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
            return list(pool.map(lambda start: function(self._block(self.varying[start : start + width])), starts))

    def _block(self, columns: NDArray) -> NDArray:
        block = self.x[:, columns]
        block = (block.toarray() if sparse.issparse(block) else block).astype(float)
        return (block - block.mean(0)) / block.std(0) if self.is_normal else block


def _without_composition(sample: Sample, values: _Features, nuisance: NDArray) -> NDArray:
    """`(n,)` size factors: totals in which features that follow the codes hardly count."""
    size = sample.size
    for _ in range(N_COMPOSITION):
        blocks = whitened_blocks(nuisance, sample.codes, size, np.ones(len(size), dtype=bool))
        offset = np.log(size)
        parts = values.map(lambda x, offset=offset, blocks=blocks: effects_of(x, offset, blocks))
        coefficients, information = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
        common = common_effects(coefficients, information, blocks.block)
        is_code = blocks.block > 0
        effect = ((coefficients - common[:, None])[is_code] ** 2).sum(0) - is_code.sum() / information
        weight = np.zeros(sample.x.shape[1])
        weight[values.varying] = 1 / (1 + (np.maximum(effect, 0.0) / NEGLIGIBLE_EFFECT**2) ** 2)
        corrected = size * np.exp(blocks.z @ common)
        # one count more, shared out as before: a cell may have none of the features that count
        size = np.asarray(sample.x @ weight, dtype=float).ravel() + corrected / corrected.mean()
        size /= size.mean()
    return size


def _indicators(batch: NDArray, train: NDArray) -> NDArray:
    """Batches as columns, centred; a batch without training cells is the average one."""
    known = np.unique(batch[train])
    columns = (batch[:, None] == known).astype(float)
    centred = columns - columns[train].mean(0)
    centred[~columns.any(axis=1)] = 0.0
    return centred[:, 1:]


def _folds(sample: Sample, n_splits: int, rng: np.random.Generator) -> NDArray:
    if sample.groups is None:
        return rng.permutation(np.arange(len(sample)) % n_splits)
    sizes = np.bincount(sample.groups)
    if len(sizes) < n_splits:
        raise ValueError(f"groups: {len(sizes)} groups cannot fill n_splits = {n_splits} folds.")
    fold_of_group, filled = np.empty(len(sizes), dtype=int), np.zeros(n_splits)
    for group in np.argsort(-(sizes + rng.random(len(sizes))), kind="stable"):  # the largest first, to the emptiest
        fold_of_group[group] = k = int(filled.argmin())
        filled[k] += sizes[group]
    return fold_of_group[sample.groups]
