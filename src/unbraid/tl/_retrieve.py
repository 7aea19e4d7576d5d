"""What of one modality belongs to what is seen in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from mudata import MuData

from unbraid._messages import check_whole, suggest
from unbraid.data._cells import numbers_of
from unbraid.metrics._lookup import values_of
from unbraid.metrics._rows import present_rows, rows_of
from unbraid.tl._match_confidence import DEPTH, MatchConfidence, Outcomes, warn_if_few
from unbraid.tl._retrieval_index import build_index, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

FOLDS = 10  # of groups; nine tenths of them say what scores mean for the queries of the others


def retrieve(
    mdata: MuData,
    query: str = "phenotype",
    target: str = "molecule",
    *,
    group: ArrayLike | str | None = None,
    k: int = 10,
    use_rep: str | tuple[str, str] = "Z_c",
    queries: ArrayLike | None = None,
    candidates: ArrayLike | None = None,
    calibration: ArrayLike | None = None,
    metric: Literal["cosine", "dot"] = "cosine",
    replicates: Literal["best", "average"] = "best",
    backend: Literal["exact", "faiss"] = "exact",
    seed: int = 0,
) -> pd.DataFrame:
    """Find what of one modality belongs to what is seen in another: the molecule that causes a phenotype.

    Swap ``query`` and ``target`` for the other direction, the phenotypes that a molecule causes.

    Parameters
    ----------
    mdata
        With codes in ``obsm`` of both modalities, as ``write_latent`` of a model puts them there.
    query
        Modality of what is asked.
    target
        Modality of what is searched.
    group
        What an observation is of, such as its compound: a column of ``mdata.obs`` or of ``obs`` of both modalities, or
        labels of the rows of ``mdata``. All observations of a group are one candidate, and the match of a query is its
        own group. By default the match of a cell is the cell itself.
    k
        Hits of each query.
    use_rep
        Key of the codes in both modalities, or the key in ``query`` and that in ``target``: vectors of
        ``Unbraid.get_retrieval_representation`` differ.
    queries
        Observations to ask: boolean mask or numbers of the rows of ``mdata``, or names. By default all that have the
        modality; those that lack it have no hits, and no rows in the result.
    candidates
        Observations to search, likewise. By default all that have the modality and a group.
    calibration
        Observations that teach what a score means, likewise, of which those count whose match is among the candidates.
        By default all of these. No query is judged by its own group: groups are divided into ten folds, each judged by
        the others.
    metric
        ``"cosine"`` similarity, or ``"dot"`` product.
    replicates
        The score of a group is that of its ``"best"`` observation, or the ``"average"``.
    backend
        ``"exact"`` or ``"faiss"``; for approximate indexes see :func:`build_index`.
    seed
        Of the folds.

    Returns
    -------
    One row of each query and hit, with columns

    - ``query``: name of the observation
    - ``rank``: from 1, fewer than ``k`` if there are not so many candidates
    - ``hit``: group, or name of the observation
    - ``score``
    - ``p_value``: how often the best candidate reaches this score for a query that has no match among them
    - ``confidence``: probability that the hit is the match, given that this is among the candidates; NaN beyond rank
      10 and with calibration by fewer than 30 groups
    - ``is_match``: whether the hit is the query's own. Missing where this is not known: its group is missing, or,
      without groups, the cell lacks the target modality.

    Raises
    ------
    KeyError
        A modality, a key or a column is not there, or an observation of that name.
    ValueError
        Codes of the modalities have different numbers of columns; a candidate has no group; nothing is selected; no
        observation of ``calibration`` has its match among the candidates.

    Warns
    -----
    UserWarning
        If the queries that teach are of fewer than 30 groups.

    Notes
    -----
    **Calibrate on held-out observations**: a model has pulled the codes of those it was trained on to their match, so
    that their scores are higher than those of new ones, and the confidences learned from them too high for these. Give
    the validation part of :func:`unbraid.pp.split`, split by compound if new compounds are asked for.

    What p-values and confidences assume is said by :class:`MatchConfidence`. A low p-value says that the best hit is
    closer than what the library offers to strangers; a high confidence, that one hit stands out among the others.

    Examples
    --------
    >>> held_out = mdata.obs["split"] == "val"  # doctest: +SKIP
    >>> hits = ub.tl.retrieve(mdata, group="compound", queries=new, calibration=held_out)  # doctest: +SKIP
    >>> hits[hits["p_value"] < 0.05]  # doctest: +SKIP
    """
    check_whole("k", k, 1)
    sides = _Sides.read(mdata, query, target, group, use_rep)
    asked = sides.query_present & _selected(mdata, queries, "queries")
    offered = sides.target_present & _selected(mdata, candidates, "candidates")
    if candidates is None:  # an untreated well is nobody's answer
        offered &= pd.notna(sides.target_own)
    for name, chosen, modality in (("queries", asked, query), ("candidates", offered, target)):
        if not chosen.any():
            raise ValueError(f"No observation of {name} has codes of {modality!r}.")
    if n_missing := int(pd.isna(sides.target_own[offered]).sum()):
        raise ValueError(
            f"{n_missing} of {int(offered.sum())} candidates have no group, so that none can be named. Leave them out "
            "with candidates, such as mdata.obs['compound'].notna()."
        )
    index = build_index(
        sides.target[offered],
        groups=None if group is None else sides.target_own[offered],
        names=sides.target_own[offered] if group is None else None,
        metric=metric,
        replicates=replicates,
        backend=backend,
    )
    own = index.codes_of(sides.query_own)
    teaches = sides.query_present & (own >= 0) & _selected(mdata, calibration, "calibration")
    if calibration is not None and not teaches.any():
        raise ValueError(
            f"No observation of calibration has codes of {query!r} and its own match among the candidates: let "
            "candidates include the matches of calibration."
        )

    rows = np.flatnonzero(asked | teaches)
    codes, scores = index.best(sides.query[rows], max(k, DEPTH + 1))
    taught = teaches[rows]
    outcomes = Outcomes.of(codes[taught], scores[taught], own[rows][taught], len(index))
    is_asked = asked[rows]
    rows, codes, scores, own = rows[is_asked], codes[is_asked], scores[is_asked], own[rows][is_asked]
    p_values, confidences = np.full(codes.shape, np.nan), np.full(codes.shape, np.nan)
    fewest = None
    for judged, judge in _judges(outcomes, own, seed):
        p_values[judged], confidences[judged] = judge.p_values(scores[judged]), judge.confidences(scores[judged])
        fewest = judge if fewest is None or judge.n_groups < fewest.n_groups else fewest
    warn_if_few(fewest, stacklevel=2)

    is_hit = codes[:, :k] >= 0
    of_query, rank = np.nonzero(is_hit)
    is_known = pd.notna(sides.query_own) if group is not None else sides.target_present
    is_match = pd.array(codes[of_query, rank] == own[of_query], dtype="boolean")
    is_match[~is_known[rows][of_query]] = pd.NA
    return pd.DataFrame(
        {
            "query": mdata.obs_names.to_numpy()[rows][of_query],
            "rank": rank + 1,
            "hit": index.names[codes[of_query, rank]],
            "score": scores[of_query, rank],
            "p_value": p_values[of_query, rank],
            "confidence": confidences[of_query, rank],
            "is_match": is_match,
        }
    )


@dataclass(frozen=True, kw_only=True)
class _Sides:
    """Codes and groups of all rows of a MuData."""

    query: NDArray  # (n_obs, d), NaN where the modality is missing
    target: NDArray
    query_present: NDArray  # (n_obs,) bool
    target_present: NDArray
    query_own: NDArray  # (n_obs,) text of the group, None where it is missing
    target_own: NDArray

    @classmethod
    def read(
        cls, mdata: MuData, query: str, target: str, group: ArrayLike | str | None, use_rep: str | tuple[str, str]
    ) -> _Sides:
        if not isinstance(mdata, MuData):
            raise ValueError(f"retrieve needs a MuData, not {type(mdata).__name__}; for arrays there is build_index.")
        for name, modality in (("query", query), ("target", target)):
            if modality not in mdata.mod:
                raise KeyError(f"{name}: there is no modality {modality!r}. {suggest(modality, mdata.mod)}")
        if query == target:
            raise ValueError(f"query and target are both {query!r}; for one modality there is build_index.")
        keys = (use_rep, use_rep) if isinstance(use_rep, str) else tuple(use_rep)
        if len(keys) != 2:
            raise ValueError(f"use_rep must be a key, or one of the query and one of the target, not {use_rep!r}.")
        x, y = (rows_of(mdata, f"{m}:{key}", m) for m, key in zip((query, target), keys, strict=True))
        if x.shape[1] != y.shape[1]:
            raise ValueError(
                f"{keys[0]!r} of {query!r} has {x.shape[1]} columns, but {keys[1]!r} of {target!r} has {y.shape[1]}: "
                "retrieval needs codes of one space, such as the shared codes of a model."
            )
        own = [mdata.obs_names.to_numpy(dtype=object)] * 2
        if group is not None:
            own = [_groups(mdata, group, modality) for modality in (query, target)]
        present = present_rows(x, query), present_rows(y, target)
        return cls(
            query=x,
            target=y,
            query_present=present[0],
            target_present=present[1],
            query_own=own[0],
            target_own=own[1],
        )


def _groups(mdata: MuData, group: ArrayLike | str, modality: str) -> NDArray:
    if isinstance(group, str) and group not in mdata.obs and group in mdata[modality].obs:
        group = f"{modality}:{group}"
    return text_of(values_of(mdata, group, "group", mdata.n_obs))


def _selected(mdata: MuData, chosen: ArrayLike | None, name: str) -> NDArray[np.bool_]:
    """Rows that a mask, numbers or names stand for; all by default."""
    mask = np.full(mdata.n_obs, chosen is None)
    if chosen is not None:
        mask[numbers_of(chosen, mdata, name)] = True
    return mask


def _judges(outcomes: Outcomes, own: NDArray, seed: int) -> Iterator[tuple[NDArray, MatchConfidence]]:
    """Queries by position, and what scores mean for them according to the groups of the other folds."""
    groups = np.unique(outcomes.groups)
    folds = pd.Series(np.random.default_rng(seed).permutation(len(groups)) % FOLDS, index=groups, dtype=int)
    of_query = folds.reindex(own).fillna(-1).to_numpy(dtype=int)  # -1: its group teaches nothing
    of_outcome = folds.loc[outcomes.groups].to_numpy()
    for fold in np.unique(of_query):
        yield np.flatnonzero(of_query == fold), MatchConfidence.fit(outcomes.take(of_outcome != fold))
