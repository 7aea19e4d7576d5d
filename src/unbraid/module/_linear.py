"""Linear split: regularised (generalised) CCA, then principal components of what it leaves over."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from unbraid.module._base import Latents, SplitModule, Stage, on_present_rows
from unbraid.nn import ModalitySpec, PerModality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scvi.module.base import LossOutput


class LinearMap(nn.Module):
    """Linear maps of one modality: features to components, to shared codes, to specific codes."""

    names = ("mean", "components", "shared", "explained", "specific")

    def __init__(self) -> None:
        super().__init__()
        for name in self.names:
            self.register_buffer(name, torch.zeros(0, 0))

    def set(self, **values: np.ndarray) -> None:
        """Put the fitted maps in place."""
        for name, value in values.items():
            place = {"dtype": torch.float32, "device": getattr(self, name).device}
            setattr(self, name, torch.as_tensor(np.ascontiguousarray(value), **place))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        for name in self.names:  # sizes are known only after the fit
            setattr(self, name, getattr(self, name).new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def reduce(self, x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Components of transformed features, centred by their batch; unseen batches by the mean of all (row 0)."""
        return (x - self.batch_mean(batch)) @ self.components

    def batch_mean(self, batch: torch.Tensor) -> torch.Tensor:
        """Mean of every cell's batch, ``(n, n_features)``."""
        return self.mean[torch.where(batch + 1 < len(self.mean), batch + 1, 0)]


class LinearModule(SplitModule):
    """The fitted linear split; see :class:`~unbraid.model.LinearSplit`.

    Parameters
    ----------
    specs
        The modalities.
    center_batches
        Whether every batch is centred by itself.
    """

    def __init__(self, specs: Sequence[ModalitySpec], *, center_batches: bool) -> None:
        super().__init__(specs)
        self.center_batches = center_batches
        self.maps = PerModality({m: LinearMap() for m in self.modalities})
        self.correlations = LinearCorrelations()

    @property
    def n_shared(self) -> int:
        """Dimensions of the shared code."""
        return self.maps[self.modalities[0]].shared.shape[1]

    @property
    def n_specific(self) -> int:
        """Most dimensions of a specific code."""
        return max(self.maps[m].specific.shape[1] for m in self.modalities)

    @property
    def stages(self) -> list[Stage]:
        """None: there is nothing to descend on."""
        return []

    def loss(self, batch: dict, stage: str) -> LossOutput:
        """Not available: the fit is a closed form."""
        raise NotImplementedError("LinearSplit has a closed form and no loss.")

    def batch_codes(self, batch: dict) -> torch.Tensor:
        """Batch of every cell, 0 for all when batches are not centred."""
        return batch["batch"] if self.center_batches else torch.zeros_like(batch["batch"])

    @property
    def retrieval_correlation(self) -> torch.Tensor:
        """Correlations that retrieval weighs the dimensions by, ``(n_shared,)``."""
        return self.correlations.value.clamp(0, 0.999)

    def pair_codes(self, batch: dict) -> dict[str, torch.Tensor]:
        """Canonical variates that retrieval compares, per modality, ``(n, n_shared)``."""
        return self.encode(batch).shared

    def encode(self, batch: dict, *, give_mean: bool = True) -> Latents:
        r"""Canonical variates, components of the residual, and the joint code.

        The joint code of a cell with modalities S is the mean of a one-factor model given its
        variates: :math:`\sqrt{\rho} \sum_{m \in S} z_m / (1 + (|S| - 1) \rho)`.
        """
        inputs, mask, codes = self.inputs(batch), batch["mask"], self.batch_codes(batch)
        shared, specific = {}, {}
        for m in self.modalities:
            linear = self.maps[m]
            reduced = on_present_rows(linear.reduce, mask[m], inputs[m], codes)
            shared[m] = reduced @ linear.shared
            specific[m] = (reduced - shared[m] @ linear.explained) @ linear.specific
        rho = self.correlations.value
        present = sum(mask[m].float() for m in self.modalities).unsqueeze(1)
        joint = rho.sqrt() * sum(shared.values()) / (1 + (present - 1) * rho)
        return Latents(mask, shared, specific, joint)


class LinearCorrelations(nn.Module):
    """Held-out canonical correlation of every kept dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(0))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        self.value = self.value.new_empty(state_dict[prefix + "value"].shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


# ---- closed forms, in float64 -------------------------------------------------------------


def batch_means(blocks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], n_batches: int) -> np.ndarray:
    """Mean of every feature over all rows (row 0) and within every batch, shape ``(1 + n_batches, d)``.

    Parameters
    ----------
    blocks
        Gives a fresh pass over ``(values, batch)`` blocks of rows.
    n_batches
        Number of batches; a batch without rows gets the mean of all.
    """
    total, count = 0.0, np.zeros(n_batches)
    for x, batch in blocks():
        member = np.eye(n_batches)[batch]
        total, count = total + member.T @ x, count + member.sum(axis=0)
    overall = total.sum(axis=0) / count.sum()
    within = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], overall)
    return np.vstack([overall, within])


def principal_components(
    blocks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
    means: np.ndarray,
    n_components: int,
    seed: int,
    n_passes: int = 4,
) -> np.ndarray:
    """Leading principal axes of rows that pass by in blocks, ``(d, n_components)``.

    Subspace iteration on the covariance (Halko et al. 2011, randomised range finder with power
    iterations): memory grows with the block, never with the data.

    Parameters
    ----------
    blocks
        Gives a fresh pass over ``(values, batch)`` blocks of rows.
    means
        Of :func:`batch_means`.
    n_components
        Axes to keep; all of them are the identity.
    seed
        Seed of the first subspace.
    n_passes
        Passes over the data.
    """
    n_features = means.shape[1]
    if n_components >= n_features:
        return np.eye(n_features)
    width = min(n_components + 20, n_features)
    axes = np.linalg.qr(np.random.default_rng(seed).standard_normal((n_features, width)))[0]
    for _ in range(n_passes):
        image = np.zeros((n_features, width))
        for x, batch in blocks():
            centred = x - means[batch + 1]
            image += centred.T @ (centred @ axes)
        axes, _ = np.linalg.qr(image)
    gram = np.zeros((width, width))
    for x, batch in blocks():
        scores = (x - means[batch + 1]) @ axes
        gram += scores.T @ scores
    _, vectors = np.linalg.eigh(gram)
    return axes @ vectors[:, ::-1][:, :n_components]


def generalized_cca(
    data: dict[str, np.ndarray],
    rows: dict[str, np.ndarray],
    n_obs: int,
    ridge: float,
    n_dims: int,
    *,
    least_spread: float = 1e-12,
) -> dict[str, np.ndarray]:
    r"""Regularised generalised canonical correlation analysis with missing modalities.

    Every modality is whitened with a ridge, :math:`w_m = V_m^\top x_m / \sqrt{e_m + r\,\bar e_m}`; the
    variates are the leading eigenvectors of the matrix of cross-covariances :math:`C_{mn} = \mathrm{cov}(w_m, w_n)`,
    :math:`m \ne n`. For M = 2 this is regularised CCA exactly, for M > 2 the MAX-VAR generalisation
    (Kettenring 1971). Each covariance comes from the cells that have what it needs.

    Parameters
    ----------
    data
        Per modality, centred components of the cells that have it, ``(n_m, p_m)``.
    rows
        Per modality, numbers of these cells among ``n_obs``, increasing.
    n_obs
        Number of cells.
    ridge
        :math:`r`, relative to the mean variance.
    n_dims
        Variates wanted, k.
    least_spread
        Variates that spread less, before they are scaled to unit variance, are rounding errors and become 0.

    Returns
    -------
    Per modality, ``(p_m, k)``: centred components to variates of unit variance.
    """
    whitened, unmix = {}, {}
    for m, x in data.items():
        variance, vectors = np.linalg.eigh(x.T @ x / len(x))
        variance = np.maximum(variance, 0.0)
        unmix[m] = vectors / np.sqrt(variance + ridge * max(variance.mean(), 1e-300))
        whitened[m] = x @ unmix[m]
    cross = {}
    for m, n in combinations(data, 2):
        i, j = common_rows(rows[m], rows[n], n_obs)
        if len(i) > 1:
            a, b = whitened[m][i], whitened[n][j]
            cross[m, n] = (a - a.mean(axis=0)).T @ (b - b.mean(axis=0)) / len(i)
    directions = canonical_directions(cross, {m: x.shape[1] for m, x in data.items()}, n_dims)
    maps = {}
    for m in data:
        spread = (whitened[m] @ directions[m]).std(axis=0)
        maps[m] = unmix[m] @ directions[m] / np.where(spread > least_spread, spread, np.inf)
    return maps


def canonical_directions(
    cross: dict[tuple[str, str], np.ndarray], sizes: dict[str, int], n_dims: int
) -> dict[str, np.ndarray]:
    """Leading eigenvectors of the matrix of cross-covariances, cut into modalities.

    Parameters
    ----------
    cross
        Cross-covariance of the whitened components of every pair of modalities that cells have both of.
    sizes
        Number of components of every modality.
    n_dims
        Eigenvectors wanted.

    Returns
    -------
    Per modality, ``(p_m, n_dims)``.
    """
    names = list(sizes)
    if len(names) == 2 and cross and n_dims <= min(sizes.values()):  # the same, in less time
        left, _, right = np.linalg.svd(cross[tuple(names)], full_matrices=False)
        return dict(zip(names, (left[:, :n_dims], right[:n_dims].T), strict=True))
    ends = np.cumsum(list(sizes.values()))
    place = {m: slice(end - sizes[m], end) for m, end in zip(names, ends, strict=True)}
    matrix = np.zeros((ends[-1], ends[-1]))
    for (m, n), block in cross.items():
        matrix[place[m], place[n]] = block
    _, vectors = np.linalg.eigh(matrix + matrix.T)
    return {m: vectors[place[m], ::-1][:, :n_dims] for m in names}


def common_rows(a: np.ndarray, b: np.ndarray, n_obs: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions, within two increasing lists of cells, of the cells in both."""
    place = np.full(n_obs, -1)
    place[b] = np.arange(len(b))
    i = np.flatnonzero(place[a] >= 0)
    return i, place[a[i]]


def unit_columns(x: np.ndarray) -> np.ndarray:
    """Centre columns and scale them to length 1, so that products of columns are correlations; constant ones to 0."""
    x = x - x.mean(axis=0)
    length = np.sqrt((x**2).sum(axis=0))
    return x / np.where(length > 1e-12, length, np.inf)


def one_of_each(groups: np.ndarray, batch: np.ndarray | None = None) -> np.ndarray:
    """Positions, increasing, of the first replicate of every group in every batch.

    Parameters
    ----------
    groups
        Of which group every cell is a replicate, ``(n,)``.
    batch
        Batch of every cell, ``(n,)``; None for one batch.
    """
    keys = groups[None] if batch is None else np.stack([groups, batch])
    return np.sort(np.unique(keys, axis=1, return_index=True)[1])
