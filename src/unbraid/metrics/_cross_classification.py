"""Which label can be read off which latent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from unbraid._messages import check_option, check_range, suggest
from unbraid.metrics._lookup import embedding_of, values_of
from unbraid.metrics._probe import probe

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

    from unbraid.metrics._probe import ProbeResult

    Expected = Mapping[str, Mapping[str, Literal["high", "low"]]]


@dataclass(frozen=True, kw_only=True)
class CrossClassificationResult:
    """What :func:`cross_classification` found.

    Attributes
    ----------
    table
        One row for each latent and label: `latent`, `label`, `score` with `low` and `high`, `chance` with `chance_low`
        and `chance_high`, `p_value`, `found` (`"high"`, `"low"` or `"unclear"`), `expected` (None where nothing was),
        `as_expected` (None where nothing was expected or the finding is unclear), `metric`, `n_obs`, `n_dropped`,
        `n_groups`, `n_classes`, `n_features`, `n_samples`.
    margin
        How far above chance still is low, as a share of the way from chance to 1.
    confidence
        Level of the intervals.
    kind
        The probe that was used.
    """

    table: pd.DataFrame = field(compare=False)
    margin: float
    confidence: float
    kind: Literal["linear", "boosted"]

    def matrix(self, value: str = "score") -> pd.DataFrame:
        """One column of the table as a matrix of latents by labels."""
        if value not in self.table:
            raise KeyError(f"{value!r} is not a column of the table. {suggest(value, self.table.columns)}")
        matrix = self.table.pivot(index="latent", columns="label", values=value)
        return matrix.loc[self.table["latent"].unique(), self.table["label"].unique()]

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def __str__(self) -> str:
        sign = {True: "", False: " (!)", None: ""}
        cells = self.table.assign(
            cell=[
                f"{row.score:z.2f} [{row.low:z.2f}, {row.high:z.2f}], chance {row.chance:z.2f}{sign[row.as_expected]}"
                for row in self.table.itertuples()
            ]
        )
        matrix = cells.pivot(index="latent", columns="label", values="cell")
        return matrix.loc[self.table["latent"].unique(), self.table["label"].unique()].to_string()

    __repr__ = __str__


def cross_classification(
    data: AnnData | MuData | None,
    latents: Mapping[str, ArrayLike | str] | Iterable[str],
    labels: Mapping[str, ArrayLike | str] | Iterable[str],
    *,
    expected: Expected | None = None,
    margin: float = 0.1,
    groups: ArrayLike | str | None = None,
    kind: Literal["linear", "boosted"] = "linear",
    n_splits: int = 5,
    n_permutations: int | None = None,
    confidence: float = 0.95,
    max_obs: int | None = None,
    seed: int = 0,
) -> CrossClassificationResult:
    r"""Which label can be read off which latent.

    If the latents are disentangled, a shared label is read off the shared latent and not off the specific ones, and a
    label of one modality alone off its specific latent and not off the shared one.

    Parameters
    ----------
    data
        Where keys of latents and names of labels are looked up. None if all are arrays.
    latents
        Keys such as `"Z_c"` and `"rna:Z_s"`, or a mapping from names to keys or arrays. An array is an embedding
        `(n_obs, n_features)`, such as posterior means, or samples of the posterior, `(n_samples, n_obs, n_features)`.
    labels
        Columns of `data.obs`, or a mapping from names to columns or to `n_obs` labels. Numbers are probed as such, with
        :math:`R^2`.
    expected
        What should be `"high"` or `"low"`, as `{latent: {label: "high"}}`. Others are reported only.
    margin
        A score is low if its interval ends below `chance + margin * (1 - chance)`, high if it starts above, and else
        unclear: that nothing can be read is a claim that needs enough observations.
    groups, kind, n_splits, n_permutations, confidence, max_obs, seed
        As in :func:`probe`.

    Returns
    -------
    The table, as `.table`, and as a matrix by `.matrix()`.

    Raises
    ------
    KeyError
        A key or a column is not there; `expected` names a latent or a label that is not given.
    ValueError
        No latents or no labels; a latent has neither two nor three dimensions; what :func:`probe` raises, with the
        names of latent and label.

    Notes
    -----
    Means hide what is in the variance of a posterior, and a decoder is fed samples: IDMVAE [1]_ hence trains and scores
    the classifier on *samples*. Each sample of the posterior is here probed by itself, with one sample of every
    observation in the training part and in the scored part, so that more samples do not pass for more observations.
    Score, interval bounds and chance are means over samples. The p-value is twice the mean of theirs, at most 1, which
    is valid however the samples depend on each other [2]_.

    Chance is stated for every latent and label: the score of the same latent on permuted labels, see :func:`probe`.

    References
    ----------
    .. [1] Zhang, Shen and Wang, Disentanglement of variations with multimodal generative modeling, section 4.1.
    .. [2] Vovk and Wang (2020), Combining p-values via averaging. Biometrika 107, 791-808.

    Examples
    --------
    >>> import numpy as np
    >>> import unbraid as ub
    >>> rng = np.random.default_rng(0)
    >>> digit, quadrant = rng.integers(3, size=300), rng.integers(2, size=300)
    >>> z = 4 * np.eye(3)[digit] + rng.normal(size=(300, 3))
    >>> w = 4 * np.eye(2)[quadrant] + rng.normal(size=(300, 2))
    >>> result = ub.metrics.cross_classification(
    ...     None,
    ...     {"z": z, "w": w},
    ...     {"digit": digit, "quadrant": quadrant},
    ...     expected={"z": {"digit": "high"}, "w": {"quadrant": "high"}},
    ... )
    >>> (result.matrix() > 0.9).to_numpy().tolist()
    [[True, False], [False, True]]

    From a MuData:

    >>> ub.metrics.cross_classification(mdata, ["Z_c", "rna:Z_s"], ["cell_type", "rna:phase"])  # doctest: +SKIP
    """
    check_range("margin", margin, 0 < margin < 1, "between 0 and 1")
    latents, labels = _named(latents, "latents", data), _named(labels, "labels", data)
    _check_expected(expected or {}, latents, labels)
    options = {
        "kind": kind,
        "n_splits": n_splits,
        "n_permutations": n_permutations,
        "confidence": confidence,
        "max_obs": max_obs,
        "seed": seed,
    }
    rows = []
    for latent, given in latents.items():
        samples = _samples(data, latent, given)
        source = given if data is None else data
        of_group = None if groups is None else values_of(source, groups, "groups", len(samples[0]))
        for label, values in labels.items():
            target = values_of(source, values, f"labels[{label!r}]", len(samples[0]))
            try:
                results = [probe(x, target, groups=of_group, **options) for x in samples]
            except ValueError as error:
                raise ValueError(f"Latent {latent!r}, label {label!r}: {error}") from error
            row = _row(results, margin, (expected or {}).get(latent, {}).get(label))
            rows.append({"latent": latent, "label": label} | row)
    return CrossClassificationResult(table=pd.DataFrame(rows), margin=margin, confidence=confidence, kind=kind)


def _named(
    given: Mapping[str, ArrayLike | str] | Iterable[str], name: str, data: AnnData | MuData | None
) -> dict[str, ArrayLike | str]:
    if isinstance(given, Mapping):
        named = dict(given)
    else:
        given = [given] if isinstance(given, str) else list(given)
        if any(not isinstance(each, str) for each in given):
            raise ValueError(f"{name} must be names, or a mapping from names to arrays.")
        named = {each: each for each in given}
    if not named:
        raise ValueError(f"{name} is empty.")
    keys = [each for each in named.values() if isinstance(each, str)]
    if keys and data is None:
        raise ValueError(f"{name} has the key {keys[0]!r}, but there is no data: pass data, or arrays.")
    return named


def _check_expected(expected: Expected, latents: Iterable[str], labels: Iterable[str]) -> None:
    for latent, of_label in expected.items():
        if latent not in latents:
            raise KeyError(f"expected names the latent {latent!r}. {suggest(latent, latents)}")
        for label, level in of_label.items():
            if label not in labels:
                raise KeyError(f"expected names the label {label!r}. {suggest(label, labels)}")
            check_option(f"expected[{latent!r}][{label!r}]", level, ("high", "low"))


def _samples(data: AnnData | MuData | None, name: str, values: ArrayLike | str) -> list[NDArray]:
    """One embedding, or one for each sample of the posterior."""
    if isinstance(values, str):
        return [embedding_of(data, values)]
    if np.ndim(values) == 3 and len(values):
        return [embedding_of(sample, None) for sample in np.asarray(values)]
    try:
        return [embedding_of(values, None)]
    except ValueError as error:
        raise ValueError(
            f"Latent {name!r} must have shape (n_obs, n_features), or (n_samples, n_obs, n_features), not "
            f"{np.shape(values)}."
        ) from error


def _row(results: list[ProbeResult], margin: float, expected: str | None) -> dict:
    mean = lambda values: float(np.mean(list(values)))
    score, chance = mean(r.score for r in results), mean(r.chance for r in results)
    low, high = (mean(r.interval[side] for r in results) for side in (0, 1))
    p_value = mean(r.p_value for r in results)
    bar = chance + margin * (1 - chance)
    found = "high" if low > bar else "low" if high < bar else "unclear"
    return {
        "score": score,
        "low": low,
        "high": high,
        "chance": chance,
        "chance_low": mean(r.chance_interval[0] for r in results),
        "chance_high": mean(r.chance_interval[1] for r in results),
        "p_value": p_value if len(results) == 1 else min(1.0, 2 * p_value),
        "found": found,
        "expected": expected,
        "as_expected": None if expected is None or found == "unclear" else found == expected,
        "metric": results[0].metric,
        "n_obs": results[0].n_obs,
        "n_dropped": results[0].n_dropped,
        "n_groups": results[0].n_groups,
        "n_classes": results[0].n_classes,
        "n_features": results[0].n_features,
        "n_samples": len(results),
    }
