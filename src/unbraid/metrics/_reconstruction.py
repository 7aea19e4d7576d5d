"""What shared and specific codes reconstruct alone, and what they reconstruct together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from mudata import MuData
from scipy import sparse
from scipy.special import xlogy

from unbraid._messages import check_option, check_range, check_whole, suggest
from unbraid.metrics._decoder import Decoder, Likelihood, fit_predict, likelihood_of
from unbraid.metrics._lookup import embedding_of, values_of
from unbraid.metrics._resampling import bootstrap_sums, percentiles
from unbraid.metrics._result import Result
from unbraid.metrics._rows import codes_of, present_rows, rows_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike, NDArray

BLOCK_VALUES = 4_000_000  # values made dense at once
FEWEST_OBS = 20


@dataclass(frozen=True, kw_only=True)
class ReconstructionGain(Result):
    """What :func:`reconstruction_gain` found.

    Attributes
    ----------
    gain
        What both codes explain beyond the better single one.
    interval
        Bootstrap interval of the gain.
    gain_over_mean
        What both codes explain beyond the mean of the single ones.
    gain_over_mean_interval
        Its interval.
    shared, specific, both
        Held-out share explained by each code alone and by both.
    shared_interval, specific_interval, both_interval
        Their intervals.
    chance
        0: nothing explained, respectively nothing gained by the second code.
    metric
        `"r2"`, or `"deviance_explained"` of counts and of 0/1.
    likelihood, decoder
        How it was done.
    n_obs
        Number of held-out observations that the scores are made of.
    n_train
        Number of observations that a decoder was trained on, on average.
    n_dropped
        Number of observations left out: no values, no counts, or a code missing.
    n_groups
        Number of groups among the held-out, None without groups.
    n_features
        Number of features reconstructed.
    confidence
        Level of the intervals.
    """

    _measure = "reconstruction_gain"
    gain: float
    interval: tuple[float, float]
    gain_over_mean: float
    gain_over_mean_interval: tuple[float, float]
    shared: float
    specific: float
    both: float
    shared_interval: tuple[float, float]
    specific_interval: tuple[float, float]
    both_interval: tuple[float, float]
    chance: float
    metric: Literal["r2", "deviance_explained"]
    likelihood: Likelihood
    decoder: Decoder
    n_obs: int
    n_train: int
    n_dropped: int
    n_groups: int | None
    n_features: int
    confidence: float

    def __str__(self) -> str:
        low, high = self.interval
        of = "" if self.n_groups is None else f" in {self.n_groups:,} groups"
        name = {"r2": "R2", "deviance_explained": "deviance explained"}[self.metric]
        return (
            f"reconstruction gain {self.gain:z.3f} [{low:z.3f}, {high:z.3f}] ({name} of shared {self.shared:z.3f}, "
            f"specific {self.specific:z.3f}, both {self.both:z.3f}; n = {self.n_obs:,}{of})"
        )

    __repr__ = __str__


def reconstruction_gain(
    x: ArrayLike | str,
    shared: ArrayLike | str,
    specific: ArrayLike | str,
    *,
    data: AnnData | MuData | None = None,
    layer: str | None = None,
    likelihood: Likelihood | None = None,
    decoder: Decoder = "mlp",
    hidden: int = 128,
    max_epochs: int = 30,
    n_splits: int = 3,
    split_key: str | None = None,
    groups: ArrayLike | str | None = None,
    confidence: float = 0.95,
    max_obs: int | None = 10_000,
    seed: int = 0,
) -> ReconstructionGain:
    r"""How much better both codes of a modality reconstruct it than either alone.

    Decoders are trained on a part of the observations and scored on the rest. Codes that hold the same gain nothing
    from each other; codes that divide a modality between them gain what the smaller part is worth [1]_.

    Parameters
    ----------
    x
        What to reconstruct: `(n_obs, n_features)`, dense or sparse (which stays sparse). With a MuData in `data`, the
        name of a modality; with an AnnData `"X"`.
    shared, specific
        The codes, `(n_obs, d)` each. With `data` also keys of `obsm`, in a MuData those of the modality `x`; write
        `"prot:Z_c"` for another modality's code. Rows that are NaN throughout are left out.
    data
        AnnData or MuData that holds what is named.
    layer
        Layer with the values; default `X`.
    likelihood
        `"normal"`: squared error and :math:`R^2`. `"poisson"`: counts, with size factors, and deviance explained.
        `"bernoulli"`: 0 and 1. Default: counts if all values are whole and not negative, else normal.
    decoder
        `"mlp"`: one hidden layer, as in the paper. `"linear"`: none, fitted by ridge regression if normal.
    hidden
        Width of the hidden layer.
    max_epochs
        Most passes over the training part, each in batches of at most 256 observations and at least 16, of which there
        are 8 or more where that leaves them so large; a tenth of the part decides when to stop.
    n_splits
        Folds; every observation is held out once.
    split_key
        Column of `data.obs` with `"train"` and `"test"` (made by `ub.pp.split`) instead of folds. Scores are of the
        `"test"` observations; `"val"` is left out.
    groups
        What must not be on both sides of a split (donor, molecule), and what the intervals resample: `n_obs` labels, or
        a column of `data.obs`.
    confidence
        Level of the intervals.
    max_obs
        Use a random subset of at most so many observations; None for all.
    seed
        Seed of subset, folds, decoders and bootstrap. Global random state is neither used nor changed.

    Returns
    -------
    Gain, shares explained, intervals and counts.

    Raises
    ------
    KeyError
        A modality, layer, code or column is not there.
    ValueError
        Lengths differ; values or codes are infinite, or NaN in a part of a row; values do not suit the likelihood or
        are constant; there are too few observations or groups; an option is unknown or out of range.

    Notes
    -----
    With held-out predictions :math:`\hat x` and column means :math:`\bar x_j` of the held-out observations,

    .. math::

        R^2 = 1 - \frac{\sum_{ij} (x_{ij} - \hat x_{ij})^2}{\sum_{ij} (x_{ij} - \bar x_j)^2}, \qquad
        \text{gain} = R^2_\text{both} - \max(R^2_\text{shared}, R^2_\text{specific}),

    pooled over features, so that features count by their variance: scale them if they should count alike. The paper
    does not say whether its gain is over the better or the mean of the singles; both are given. For counts the decoder
    predicts the log of the rate per size factor :math:`\ell_i` (total counts), and squared errors are replaced by
    Poisson deviances, with :math:`\ell_i \sum_k x_{kj} / \sum_k \ell_k` in place of the column mean; for 0/1 by
    binomial deviances. Counting noise then remains unexplained by any code.

    Intervals are percentiles over 1,000 bootstrap samples of the held-out observations, or groups, with the decoders
    held fixed. A gain may be negative: two codes are harder to decode than one.

    References
    ----------
    .. [1] Wang et al. (2024), An information criterion for controlled disentanglement of multimodal data.
       arXiv:2410.23996, section 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> rng = np.random.default_rng(0)
    >>> shared, specific = rng.normal(size=(2, 300, 2))
    >>> x = np.concatenate([shared, specific], axis=1)
    >>> result = ub.metrics.reconstruction_gain(x, shared, specific, decoder="linear")
    >>> round(result.shared, 1), round(result.both, 1)
    (0.5, 1.0)
    """
    check_option("decoder", decoder, get_args(Decoder))
    if likelihood is not None:
        check_option("likelihood", likelihood, get_args(Likelihood))
    for name, value, minimum in (("hidden", hidden, 1), ("max_epochs", max_epochs, 1), ("n_splits", n_splits, 2)):
        check_whole(name, value, minimum)
    check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")
    check_range("max_obs", max_obs, max_obs is None or max_obs >= FEWEST_OBS, f"at least {FEWEST_OBS}")
    subset_rng, fold_rng, decoder_rng, bootstrap_rng = np.random.default_rng(seed).spawn(4)

    values, codes, units, split = _read(x, shared, specific, data, layer, groups, split_key)
    keep = np.logical_and.reduce([present_rows(code, name) for name, code in codes.items()])
    keep &= _has_values(values)
    if split is not None:
        keep &= np.isin(split, ("train", "test"))
    rows = np.flatnonzero(keep)
    n_dropped = len(keep) - len(rows)
    if len(rows) < FEWEST_OBS:
        raise ValueError(f"{len(rows)} observations have values and both codes; at least {FEWEST_OBS} are needed.")
    if max_obs is not None and len(rows) > max_obs:
        rows = np.sort(subset_rng.choice(rows, max_obs, replace=False))
    values = values[rows]
    likelihood = likelihood_of(values, likelihood)
    size = np.asarray(values.sum(axis=1), dtype=float).ravel() if likelihood == "poisson" else np.ones(len(rows))
    seen = size > 0  # an observation without a single count says nothing about any feature
    n_dropped += int((~seen).sum())
    rows, values, size = rows[seen], values[seen], size[seen] / size[seen].mean()
    units = None if units is None else codes_of(units.iloc[rows], "groups")
    fold = _folds(len(rows), units, n_splits, fold_rng) if split is None else np.where(split[rows] == "test", 0, -1)
    if not (0 < (fold == 0).sum() < len(fold)):
        raise ValueError(
            f"split_key: {split_key!r} must have observations that are 'train' and others that are 'test'."
        )

    inputs = {name: code[rows] for name, code in codes.items()}
    inputs["both"] = np.concatenate(list(inputs.values()), axis=1)
    options = {"likelihood": likelihood, "decoder": decoder, "hidden": hidden, "max_epochs": max_epochs}
    held_out = fold >= 0
    null = _null(values[held_out], size[held_out], likelihood)
    losses = np.zeros((len(rows), 4))  # of the null, shared, specific and both
    n_train = []
    for k in range(fold.max() + 1):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        n_train.append(len(train))
        losses[test, 0] = _loss(values, test, lambda r: size[r, None] * null, likelihood)
        for column, z in enumerate(inputs.values(), start=1):
            predict = fit_predict(z, values, size, train, groups=units, rng=decoder_rng, **options)
            losses[test, column] = _loss(values, test, predict, likelihood)
    losses, units = losses[held_out], None if units is None else np.unique(units[held_out], return_inverse=True)[1]
    if losses[:, 0].sum() <= 0:
        raise ValueError("x is constant in every feature: there is nothing to reconstruct.")

    found = _gains(losses.sum(axis=0)[None])
    spread = _gains(bootstrap_sums(losses, units, bootstrap_rng))
    interval = {name: percentiles(values, confidence) for name, values in spread.items()}
    return ReconstructionGain(
        gain=float(found["gain"][0]),
        interval=interval["gain"],
        gain_over_mean=float(found["gain_over_mean"][0]),
        gain_over_mean_interval=interval["gain_over_mean"],
        **{name: float(found[name][0]) for name in inputs},
        **{f"{name}_interval": interval[name] for name in inputs},
        chance=0.0,
        metric="r2" if likelihood == "normal" else "deviance_explained",
        likelihood=likelihood,
        decoder=decoder,
        n_obs=len(losses),
        n_train=round(np.mean(n_train)),
        n_dropped=n_dropped,
        n_groups=None if units is None else int(units.max()) + 1,
        n_features=values.shape[1],
        confidence=confidence,
    )


# --------------------------------------------------------------------------------------------------
# Scores


def _gains(losses: NDArray) -> dict[str, NDArray]:
    """Of summed losses `(k, 4)` of the null, the shared code, the specific code and both."""
    shared, specific, both = 1 - losses[:, 1:].T / np.maximum(losses[:, 0], 1e-300)
    gain, over_mean = both - np.maximum(shared, specific), both - (shared + specific) / 2
    return {"shared": shared, "specific": specific, "both": both, "gain": gain, "gain_over_mean": over_mean}


def _null(values: NDArray | sparse.csr_array, size: NDArray, likelihood: Likelihood) -> NDArray:
    """`(n_features,)` mean, or rate per size factor, of the observations that are scored."""
    total = np.asarray(values.sum(axis=0), dtype=float).ravel()
    return total / (size.sum() if likelihood == "poisson" else values.shape[0])


def _loss(values, rows: NDArray, predict, likelihood: Likelihood) -> NDArray:
    """`(n,)` squared error, or deviance, of every observation in `rows`; `predict` maps rows to means."""
    loss, n_rows = np.empty(len(rows)), max(1, BLOCK_VALUES // values.shape[1])
    for start in range(0, len(rows), n_rows):
        part = rows[start : start + n_rows]
        x = values[part]
        x = (x.toarray() if sparse.issparse(x) else x).astype(float)
        loss[start : start + n_rows] = losses_of(x, predict(part), likelihood).sum(axis=1)
    return loss


def losses_of(x: NDArray, mean: NDArray, likelihood: Likelihood) -> NDArray:
    if likelihood == "normal":
        return (x - mean) ** 2
    if likelihood == "poisson":
        mean = np.maximum(mean, 1e-12)
        return 2 * (xlogy(x, x / mean) - x + mean)
    mean = np.clip(mean, 1e-7, 1 - 1e-7)
    return -2 * (xlogy(x, mean) + xlogy(1 - x, 1 - mean))


# --------------------------------------------------------------------------------------------------
# From what the user has to values and codes


def _read(x, shared, specific, data, layer, groups, split_key):
    """Values, codes by name, groups and split, each with `n_obs` rows."""
    if data is None:
        for name, value in {"x": x, "shared": shared, "specific": specific, "groups": groups}.items():
            if isinstance(value, str):
                raise ValueError(f"{name}={value!r} is a name, but there is no data: pass data, or the array.")
        if layer is not None or split_key is not None:
            raise ValueError("layer and split_key name parts of data, but there is no data.")
    home, row = data, None  # the AnnData with the values, and its row of every observation in data
    if isinstance(x, str):
        if isinstance(data, MuData):
            if x not in data.mod:
                raise KeyError(f"x: no modality {x!r} in the MuData. {suggest(x, data.mod)}")
            home, row, prefix = data.mod[x], data.obsmap[x].ravel().astype(int) - 1, f"{x}:"
        elif x != "X":
            raise KeyError(f"x must be 'X' for an AnnData, not {x!r}; name a layer in layer.")
        if layer is not None and layer not in home.layers:
            raise KeyError(f"layer: there is no layer {layer!r}. {suggest(layer, home.layers)}")
        x = home.X if layer is None else home.layers[layer]
        if x is None:
            raise ValueError("There is no X: name the layer with the values in layer.")
    values = sparse.csr_array(x) if sparse.issparse(x) else np.asarray(x)
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "iufb":
        raise ValueError(f"x must be numbers of shape (n_obs, n_features), not {values.dtype} of {values.shape}.")
    n = values.shape[0]

    def code_of(code: ArrayLike | str, name: str) -> NDArray:
        if not isinstance(code, str):
            found = rows_of(None, code, name)
        elif row is None:
            found = embedding_of(home, code)
        else:  # of the modality unless another one, or the MuData itself, is meant
            is_own = code in home.obsm or not (":" in code or code in data.obsm)
            found = _ordered(embedding_of(data, f"{prefix}{code}" if is_own else code), row)
        if len(found) != n:
            raise ValueError(f"{name} has {len(found)} rows, but x has {n}.")
        return found

    def column_of(column: ArrayLike | str | None, name: str) -> pd.Series | None:
        if column is None:
            return None
        if isinstance(column, str) and row is not None and column not in home.obs:
            return pd.Series(_ordered(values_of(data, column, name, data.n_obs).to_numpy(), row))
        return values_of(values if home is None else home, column, name, n)

    codes = {"shared": code_of(shared, "shared"), "specific": code_of(specific, "specific")}
    split = column_of(split_key, "split_key")
    split = None if split is None else split.astype(str).to_numpy(dtype=str)
    return values, codes, column_of(groups, "groups"), split


def _ordered(spread: NDArray, row: NDArray) -> NDArray:
    """Values of all observations, as values of the modality's in its own order."""
    here = np.flatnonzero(row >= 0)
    return spread[here[np.argsort(row[here])]]


def _has_values(values: NDArray | sparse.csr_array) -> NDArray:
    if not sparse.issparse(values):
        return present_rows(values, "x") if values.dtype.kind == "f" else np.ones(len(values), dtype=bool)
    if not np.isfinite(values.data).all():
        raise ValueError("x holds NaN or infinite values: impute them, or leave these observations out.")
    return np.ones(values.shape[0], dtype=bool)


def _folds(n: int, units: NDArray | None, n_splits: int, rng: np.random.Generator) -> NDArray:
    if units is None:
        return rng.permutation(np.arange(n) % n_splits)
    sizes = np.bincount(units)
    if len(sizes) < n_splits:
        raise ValueError(f"groups: {len(sizes)} groups cannot fill n_splits = {n_splits} folds.")
    fold_of_group, filled = np.empty(len(sizes), dtype=int), np.zeros(n_splits)
    for group in np.argsort(-(sizes + rng.random(len(sizes))), kind="stable"):  # the largest first, to the emptiest
        fold_of_group[group] = k = int(filled.argmin())
        filled[k] += sizes[group]
    return fold_of_group[units]
