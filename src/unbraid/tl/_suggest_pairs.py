from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
from scipy.special import entr
from sklearn.cluster import KMeans

from unbraid._messages import check_whole
from unbraid.data._pairs import Pairs, components, read_pairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

# which sort of question comes when; those about single cells help most as long as the number of clusters is right
TURNS = ("uncertain", "uncertain", "uncertain", "merge", "uncertain", "uncertain", "uncertain", "split")


def suggest_pairs(
    model: Clusterer,
    n: int = 20,
    *,
    mdata: MuData | AnnData | None = None,
    n_candidates: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Pairs of cells worth asking an expert about: are the two of one kind?

    Questions are of three sorts, in turn, the most pressing of a sort first:

    - *uncertain*, three of four: a cell whose clusters have a high entropy :math:`-\sum_c p_c \log p_c`, and the typical
      cell of its most probable cluster; uncertain cells that lie far apart come first, and no cell is asked about twice
      before all candidates were asked about once;
    - *one or two*: the typical cells of two clusters whose means are close for their spreads;
    - *two or one*: the typical cells of the two halves of a wide cluster, cut by 2-means.

    A cluster's typical cell is the nearest to its mean among the more probable half of its cells. It stands for its
    cluster in all questions, so that answers chain.

    Parameters
    ----------
    model
        Model with ``predict_cluster(mdata, soft=True)`` and ``get_latent_representation(mdata, kind=...)``, whose
        ``"task"`` latents are taken if it has them, else ``"shared"``.
    n
        Number of questions.
    mdata
        Cells; those of the model by default.
    n_candidates
        Most uncertain cells among which those that lie far apart are chosen; ``5 * n`` by default.
    seed
        Seed of the 2-means.

    Returns
    -------
    Data frame of up to ``n`` rows, the order to ask in: ``first`` and ``second``, names of cells; ``probability`` that
    both are of one cluster, :math:`\sum_c p_c q_c`; and ``reason``. Pairs that are known, in ``obsp`` under the
    ``pairs_key`` of the model's set-up, or that follow from those are left out. :func:`~unbraid.pp.add_pairs` takes
    the answers.

    Raises
    ------
    ValueError
        If ``n`` or ``n_candidates`` is no whole number of at least 1, or the model's clusters and latents are not of
        the same cells.

    Examples
    --------
    >>> questions = ub.tl.suggest_pairs(model, 20)  # doctest: +SKIP
    >>> ub.pp.add_pairs(mdata, questions["first"], questions["second"], same=answers)  # doctest: +SKIP
    """
    check_whole("n", n, 1)
    n_candidates = 5 * n if n_candidates is None else n_candidates
    check_whole("n_candidates", n_candidates, 1)
    mdata = model.adata if mdata is None else mdata
    probability, latent = np.asarray(model.predict_cluster(mdata, soft=True), dtype=np.float64), _latent(model, mdata)
    if not len(probability) == len(latent) == mdata.n_obs:
        raise ValueError(
            f"The model gives clusters of {len(probability)} cells and latents of {len(latent)}, but there are "
            f"{mdata.n_obs}."
        )
    known = _Known(_known_pairs(model, mdata), mdata.n_obs)
    clusters = _Clusters(probability, latent)
    sorts = {"uncertain": clusters.uncertain(n_candidates), "merge": clusters.close(), "split": clusters.wide(seed)}
    rows: list[tuple[int, int, str]] = []
    for sort in cycle(TURNS):
        if len(rows) == n or not sorts:
            break
        for first, second, reason in sorts.get(sort, ()):
            if known.note(first, second):
                rows.append((first, second, reason))
                break
        else:
            sorts.pop(sort, None)
    first, second = (np.array([row[side] for row in rows], dtype=np.int64) for side in (0, 1))
    return pd.DataFrame(
        {
            "first": mdata.obs_names[first],
            "second": mdata.obs_names[second],
            "probability": (probability[first] * probability[second]).sum(axis=1),
            "reason": [row[2] for row in rows],
        }
    )


class Clusterer(Protocol):
    """A model that clusters its cells."""

    adata: MuData | AnnData

    def predict_cluster(self, mdata: MuData | AnnData | None = None, soft: bool = False) -> NDArray:
        """Probabilities ``(n_obs, K)`` if ``soft``."""

    def get_latent_representation(self, mdata: MuData | AnnData | None = None, kind: str = "shared") -> NDArray:
        """Latents ``(n_obs, d)``."""


def _latent(model: Clusterer, mdata: MuData | AnnData) -> NDArray[np.float64]:
    try:
        latent = model.get_latent_representation(mdata, kind="task")
    except ValueError:  # the model has no such kind
        latent = model.get_latent_representation(mdata, kind="shared")
    return np.asarray(latent, dtype=np.float64)


def _known_pairs(model: Clusterer, mdata: MuData | AnnData) -> Pairs:
    key = getattr(model, "registry_", {}).get("setup_args", {}).get("pairs_key")
    return Pairs([], []) if key is None or key not in mdata.obsp else read_pairs(mdata, key)


class _Known:
    """Pairs that need no asking: known, implied by known ones, or asked already."""

    def __init__(self, pairs: Pairs, n_obs: int) -> None:
        self._chain = components(pairs, n_obs)
        self._apart = {tuple(sorted(pair)) for pair in np.unique(self._chain[pairs.cannot], axis=0).tolist()}

    def note(self, first: int, second: int) -> bool:
        """Whether the pair is new; it no longer is."""
        pair = tuple(sorted((int(self._chain[first]), int(self._chain[second]))))
        is_new = pair[0] != pair[1] and pair not in self._apart
        self._apart.add(pair)
        return is_new


class _Clusters:
    """What the questions need to know about the clusters; those without a cell are left out."""

    def __init__(self, probability: NDArray, latent: NDArray) -> None:
        self.probability, self.latent = probability, latent
        self.of = probability.argmax(axis=1)
        self.names = np.unique(self.of)
        self.members = {k: np.flatnonzero(self.of == k) for k in self.names}
        self.mean = {k: latent[rows].mean(axis=0) for k, rows in self.members.items()}
        self.spread = {k: np.sqrt(self._squares(rows, self.mean[k]).mean()) for k, rows in self.members.items()}
        self.typical = {k: self._typical(rows, k) for k, rows in self.members.items()}

    def uncertain(self, n_candidates: int) -> Iterator[tuple[int, int, str]]:
        entropy = entr(self.probability).sum(axis=1)
        candidates = np.argsort(-entropy, kind="stable")[:n_candidates]
        order = candidates[self._far_apart(candidates, entropy)]
        by_probability = self.names[np.argsort(-self.probability[np.ix_(order, self.names)], axis=1, kind="stable")]
        for rank in range(min(2, len(self.names))):
            for cell, cluster in zip(order.tolist(), by_probability[:, rank].tolist(), strict=True):
                yield cell, self.typical[cluster], f"uncertain cell, typical cell of cluster {cluster}"

    def close(self) -> Iterator[tuple[int, int, str]]:
        pairs = [(a, b) for i, a in enumerate(self.names) for b in self.names[i + 1 :]]
        gap = lambda a, b: np.linalg.norm(self.mean[a] - self.mean[b]) / max(self.spread[a] + self.spread[b], 1e-12)
        for a, b in sorted(pairs, key=lambda pair: gap(*pair)):
            yield self.typical[a], self.typical[b], f"clusters {a} and {b} are close and may be one"

    def wide(self, seed: int) -> Iterator[tuple[int, int, str]]:
        for cluster in sorted(self.names, key=lambda k: -self.spread[k]):
            rows = self.members[cluster]
            if self.spread[cluster] == 0:
                return
            half = KMeans(2, n_init=3, random_state=seed).fit_predict(self.latent[rows])
            first, second = (self._typical(rows[half == side], cluster) for side in (0, 1))
            yield first, second, f"cluster {cluster} is wide and may be two"

    def _typical(self, rows: NDArray, cluster: int) -> int:
        probability = self.probability[rows, cluster]
        rows = rows[probability >= np.median(probability)]
        return int(rows[self._squares(rows, self.latent[rows].mean(axis=0)).argmin()])

    def _far_apart(self, cells: NDArray, worth: NDArray) -> list[int]:
        """Order of cells: each next one has the largest worth times distance from all before."""
        order, distance = [int(worth[cells].argmax())], np.full(len(cells), np.inf)
        for _ in range(len(cells) - 1):
            distance = np.minimum(distance, self._squares(cells, self.latent[cells[order[-1]]]))
            distance[order[-1]] = -1
            order.append(int(np.where(distance < 0, -1, worth[cells] * np.sqrt(np.maximum(distance, 0))).argmax()))
        return order

    def _squares(self, rows: NDArray, centre: NDArray) -> NDArray:
        return np.square(self.latent[rows] - centre).sum(axis=1)
