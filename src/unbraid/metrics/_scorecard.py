"""Which part is shared, which is specific, and how do I know?"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from mudata import MuData
from tqdm.auto import tqdm

from unbraid._messages import check_option, check_range, check_whole
from unbraid.metrics import _scorecard_rows as questions
from unbraid.metrics import _verdicts
from unbraid.metrics._controls import negative_control, positive_control
from unbraid.metrics._scorecard_input import CardInput, is_count, read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MARGIN_NATS = 0.05
MARGIN_SHARE = 0.02  # of the shared information
CERTIFIED = ("canonical", "ridge", "quadratic", "critic")  # bounds from below, whatever the distribution
QUESTIONS = (
    "shared", "specific", "limit of detection", "complete", "nuisance", "label", "dimension", "stability", "budget",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """What :func:`scorecard` found.

    Attributes
    ----------
    table
        One row per finding: `question` (shared, specific, limit of detection, complete, nuisance, dimension, label,
        stability, control, budget), `code`, `against`, `condition` (all, within batch, within batch and label,
        beyond depth), `measure`, `unit`, `estimate`, `low`, `high`, `null`, `p_value`, `p_adjusted`, `n_obs`,
        `verdict`, `words`.
    settings
        Everything needed to repeat it.
    notes
        What limits the card as a whole.
    """

    table: pd.DataFrame
    settings: dict
    notes: tuple[str, ...]

    @property
    def verdicts(self) -> pd.DataFrame:
        """The rows that carry a verdict."""
        return self.table[self.table["verdict"] != ""].reset_index(drop=True)

    @property
    def budget(self) -> pd.DataFrame:
        """The rows of the budgets: what is shared by batch, by label, within labels, specific, left out, noise."""
        return self.table[self.table["question"] == "budget"].reset_index(drop=True)

    def to_methods_text(self) -> str:
        """A paragraph for the methods section of a paper."""
        s = self.settings
        unit = f"{s['n_groups']} values of {s['group']}" if s["group"] else "observations"
        label = "within batch and label" if s["batch"] else "within label"
        nulls = [name for name, key in (("within batch", s["batch"]), (label, s["labels"])) if key]
        parts = [
            f"The split into shared ({s['shared']}) and specific ({s['specific'] or 'none'}) codes was judged with "
            f"unbraid {s['version']} on {s['n_obs']:,} of {s['n_given']:,} observations"
            + (f" ('test' in {s['split_key']})." if s["split_key"] else "."),
            "Mutual information was estimated by critics fitted on other folds "
            f"({', '.join(s['estimators'])}; {s['n_splits']} folds, the estimator chosen on other folds than those it "
            "is reported on), which bounds it from below, and tested by a panel of detectors against re-paired "
            "observations"
            + (f", freely, {' and '.join(nulls)}" if nulls else "")
            + "; p-values were adjusted by Holm's method.",
            f"{s['confidence']:.0%} intervals are percentiles over bootstrap samples of {unit}.",
        ]
        if s["limits"]:
            parts.append(
                "A specific code was called clean only if no dependence was detected and planted linear, quadratic and "
                f"gated leaks of {s['margin']:.2g} nats or less were detected in at least 90% of 20 repeats."
            )
        parts.append(f"Random seed {s['seed']}.")
        return " ".join(parts)

    def __str__(self) -> str:
        shown = self.verdicts
        lines = [
            f"{r.question:<10} {r.code}{' | ' + r.against if r.against else ''}"
            f"{'' if r.condition == 'all' else f' ({r.condition})'}: {r.verdict.upper()}. {r.words}"
            for r in shown.itertuples()
        ]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    __repr__ = __str__


def scorecard(
    mdata: MuData,
    shared: str | Mapping[str, str] = "Z_c",
    specific: str | Mapping[str, str] | None = "Z_s",
    *,
    labels: str | None = None,
    batch: str | None = None,
    group: str | None = None,
    modalities: Sequence[str] | None = None,
    layers: Mapping[str, str] | None = None,
    split_key: str | None = None,
    runs: Sequence[tuple[str | Mapping[str, str], str | Mapping[str, str] | None]] = (),
    controls: Callable[[MuData], MuData] | None = None,
    margin: float | None = None,
    estimators: Sequence[str] = ("canonical", "quadratic", "critic"),
    limits: bool = True,
    max_obs: int | None = 4_000,
    n_splits: int = 5,
    alpha: float = 0.05,
    confidence: float = 0.95,
    key_added: str | None = "scorecard",
    seed: int = 0,
    progress: bool = True,
) -> Scorecard:
    r"""Judge any split of multimodal data into shared and specific codes.

    Parameters
    ----------
    mdata
        The data, with the codes in ``obsm``. Whichever model made them.
    shared
        Key of the shared code: in ``obsm`` of every modality (each modality's own version), in ``mdata.obsm`` (one
        for the observation), or both. With the latter alone (totalVI, MOFA, WNN) the version of a modality is the
        held-out prediction of the code from that modality. A mapping from modality to key names versions singly.
    specific
        Key of the specific codes in ``obsm`` of the modalities, or a mapping from modality to key for those that
        have one (``"rna:Z_s"``, or a key of ``mdata.obsm``). None: the embedding has none.
    labels, batch, group
        Columns of ``mdata.obs``: cell type; batch; and the sampling unit (donor, molecule), which folds and
        intervals respect.
    modalities
        At least two; all by default.
    layers
        By modality, where the data are: a layer, ``"obsm:key"``, or ``X`` by default. Counts are recognised by their
        values, and accounted for on the scale of log-normalised counts; other values are standardised.
    split_key
        Column of ``mdata.obs`` with ``"test"`` for the observations to judge, which the model has not seen.
    runs
        Keys ``(shared, specific)`` of other runs of the same model, for the stability over seeds.
    controls
        A function that fits the model to a MuData and returns it with codes under the same keys. The card then runs
        it twice more: on observations paired at random, where nothing may be shared (negative control), and on two
        pseudo-modalities made of the halves of one modality's counts, where everything is shared and nothing
        specific (positive control).
    margin
        Nats below which a leak does not matter; by default the larger of 0.05 and 2 % of the shared information.
    estimators
        Of mutual information, see :func:`mutual_information`. Without ``"critic"``, no network is trained.
    limits
        Find the limit of detection of every specific code. Without it no code is called clean.
    max_obs
        Judge a random sample of at most so many observations.
    n_splits
        Number of folds.
    alpha
        Level of the tests, after Holm's adjustment over the card.
    confidence
        Level of the intervals.
    key_added
        Where the table goes in ``mdata.uns``; None to leave ``mdata`` as it is.
    seed
        Of everything random. Global random state is neither used nor changed.
    progress
        Show a progress bar.

    Returns
    -------
    The card. Its table is also in ``mdata.uns[key_added]``, its settings in ``mdata.uns[f"{key_added}_settings"]``.

    Raises
    ------
    KeyError
        A modality, code, layer or column is not there.
    ValueError
        Fewer than two modalities or 100 observations with two of them; codes or data that are missing or infinite;
        observations without batch or group; too few groups for the folds.

    Notes
    -----
    **Shared?** Mutual information of the modalities' versions of the shared code, in nats, from critics fitted on the
    other folds (a lower bound), against three nulls: pairs shuffled freely; within batch; and within batch and label.
    The first is nearly always rejected. The second asks for more than a plate effect, the third for coordination of
    single cells within their types. *Beyond depth* takes the log depths of the modalities, and their squares and
    product, out of both codes. The budget stacks the differences of these conditional informations,
    :math:`I(A; B) - I(A; B \mid \text{batch})` and so on.

    **Specific?** The same for a specific code and the other modality's shared code and data (leading principal
    components). A p-value cannot show that there is no leak. Therefore leaks of known kind and strength are planted
    into the shuffled specific code, and the smallest that the panel of detectors finds in 9 of 10 repeats is the
    *limit of detection*. Verdicts: *clean* (nothing detected, the interval lies below the margin, and so does the
    limit for each kind of leak); *leaks* (detected, and the interval excludes 0 and reaches the margin); *traces*
    (detected, but smaller, or not measurable); *not shown* (nothing detected, but a leak of the size of the margin
    could have been missed).

    **Complete?** Share of a modality's variance that ridge regression predicts, held out, from its shared code, its
    specific code, and both. For counts the ceiling is the variance that two random halves of each count share.
    The budget of a modality's variance counts as *shared* what the *other* modalities' shared codes predict of it
    (there a cell's own noise cannot help), of which *batch* and *label* are what means of strata predict; as
    *specific* what its specific code adds to that; and as *shared code only* what its own shared code adds to both,
    which no other modality confirms.

    **Nuisance, labels.** :func:`probe` of batch, depth, mitochondrial share and labels, from every code.

    **Dimension.** :math:`(\sum \lambda_i)^2 / \sum \lambda_i^2` of the covariance's eigenvalues, and dimensions whose
    variance is below 1e-4 of the largest. **Stability.** Linear CKA between runs.

    What no card shows: a leak that lies in the codes' dependence on more than pairs of products, below its limit; and
    information in the data that no code holds and no component shows.

    Examples
    --------
    >>> card = ub.metrics.scorecard(mdata, labels="cell_type", batch="batch")  # doctest: +SKIP
    >>> ub.pl.scorecard(card)  # doctest: +SKIP
    >>> ub.metrics.scorecard(mdata, shared="X_totalVI", specific=None)  # doctest: +SKIP
    """
    if not isinstance(mdata, MuData):
        raise TypeError(f"A scorecard judges a MuData of at least two modalities, not {type(mdata).__name__}.")
    estimators = (estimators,) if isinstance(estimators, str) else tuple(estimators)
    for name in estimators:
        check_option("estimators", name, CERTIFIED)
    check_range("alpha", alpha, 0 < alpha < 1, "between 0 and 1")
    check_range("confidence", confidence, 0 < confidence < 1, "between 0 and 1")
    check_range("margin", margin, margin is None or margin > 0, "positive")
    check_whole("n_splits", n_splits, 2)
    given = {
        "modalities": modalities, "layers": layers, "labels": labels, "batch": batch, "group": group,
        "split_key": split_key, "max_obs": max_obs, "n_splits": n_splits, "seed": seed,
    }  # fmt: skip
    data = read(mdata, shared, specific, **given)
    other_runs = [read(mdata, *run, **given) for run in runs]
    with tqdm(desc="scorecard", total=_n_steps(data, limits), disable=not progress, leave=False) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update()

        writer = questions.Writer(data, estimators, alpha, confidence, seed, step)
        with questions.single_threaded():
            nats = questions.shared_rows(writer)
            questions.leak_rows(writer, with_limits=limits)
            questions.probe_rows(writer)
        questions.variance_rows(writer)
        questions.dimension_rows(writer)
        if other_runs:
            questions.stability_rows(writer, other_runs)
    margin = max(MARGIN_NATS, MARGIN_SHARE * nats) if margin is None else margin
    table = _judged(pd.DataFrame(writer.rows), alpha, margin)
    settings = {
        "shared": _named(shared), "specific": _named(specific), "labels": labels or "", "batch": batch or "",
        "group": group or "", "split_key": split_key or "", "modalities": list(data.modalities), "margin": float(margin),
        "estimators": list(estimators), "limits": limits, "n_obs": len(data.fold), "n_given": data.n_given,
        "n_groups": 0 if data.units is None else int(data.units.max()) + 1, "n_splits": n_splits, "alpha": alpha,
        "confidence": confidence, "seed": seed, "version": version("unbraid"),
    }  # fmt: skip
    if controls is not None:
        options = {
            "estimators": estimators, "alpha": alpha, "confidence": confidence, "seed": seed,
            "step": lambda what: None,
        }  # fmt: skip
        table = pd.concat([table, _control_rows(mdata, controls, shared, specific, given, options, margin)])
    card = Scorecard(table=table.reset_index(drop=True), settings=settings, notes=tuple(data.notes))
    if key_added is not None:
        mdata.uns[key_added] = card.table.copy()
        mdata.uns[f"{key_added}_settings"] = {**settings, "notes": list(card.notes)}
    return card


def _control_rows(mdata, fit, shared, specific, given, writer_options, margin) -> pd.DataFrame:
    """The card's two questions, asked where the answer is known."""
    layers = given["layers"] or {}
    names = given["modalities"] or list(mdata.mod)
    counted = next((name for name in names if is_count(mdata.mod[name], layers.get(name), name)), None)
    made = {"negative: pairs at random": negative_control(mdata, within=given["batch"], seed=given["seed"])}
    if counted is not None:
        halves = positive_control(mdata, counted, layer=layers.get(counted), seed=given["seed"])
        made[f"positive: halves of {counted}"] = halves
    tables = []
    for name, control in made.items():
        fitted = fit(control)
        asked = {**given, "modalities": None, "layers": None, "split_key": None}
        writer = questions.Writer(read(fitted, shared, specific, **asked), **writer_options)
        with questions.single_threaded():
            questions.shared_rows(writer)
            questions.leak_rows(writer, with_limits=False)
        rows = pd.DataFrame(writer.rows)
        rows = _judged(rows[rows["condition"].eq("all") & rows["p_value"].notna()], writer.alpha, margin)
        tables.append(rows.assign(question="control", against=rows["against"] + f" ({name})"))
    return pd.concat(tables)


def _named(keys: str | Mapping[str, str] | None) -> str:
    if keys is None or isinstance(keys, str):
        return keys or ""
    return ", ".join(f"{name}: {key}" for name, key in keys.items())


def _n_steps(data: CardInput, limits: bool) -> int:
    n = len(data.modalities)
    n_specific = sum(m.specific is not None for m in data.modalities.values())
    has_depth = sum("depth" in m.nuisance for m in data.modalities.values()) >= 2
    n_conditions = 1 + (data.batch is not None)
    n_shared = n * (n - 1) // 2 * (n_conditions + (data.labels is not None) + has_depth)
    n_leaks = n_specific * (n - 1) * (2 * n_conditions + has_depth + (11 if limits else 0))
    return n_shared + n_leaks + len(list(questions.latents(data))) + n


def _judged(table: pd.DataFrame, alpha: float, margin: float) -> pd.DataFrame:
    """Verdicts of the tests, which take all of them and the limits of detection."""
    table = table.copy()
    tested = table["question"].isin(["shared", "specific"]) & table["p_value"].notna()
    table["p_adjusted"] = np.nan
    table.loc[tested, "p_adjusted"] = _verdicts.holm(table.loc[tested, "p_value"].to_numpy())
    limit = table[table["question"] == "limit of detection"].groupby(["code", "against"])["estimate"].max()
    for i in table.index[tested]:
        row = table.loc[i]
        if row["question"] == "shared":
            verdict = _verdicts.shared(row["low"], row["p_adjusted"], alpha, row["condition"])
        else:
            found = limit.get((row["code"], row["against"]), np.nan) if row["condition"] == "all" else np.nan
            verdict = _verdicts.leak(
                row["estimate"], row["low"], row["high"], row["p_adjusted"], alpha, margin, float(found)
            )
        table.loc[i, ["verdict", "words"]] = verdict
    table = table.iloc[np.argsort(table["question"].map(QUESTIONS.index), kind="stable")]
    columns = ["question", "code", "against", "condition", "measure", "unit", "estimate", "low", "high", "null"]
    return table[[*columns, "p_value", "p_adjusted", "n_obs", "verdict", "words"]]
