"""From what a shared encoder gives to the shared code: the scale and the axes that the objective leaves open."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from unbraid.module._linear import common_rows, generalized_cca, unit_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

CANONICAL_RIDGE = 1e-3
LEAST_SPREAD = 1e-3  # of whitened outputs; an encoder's dead dimensions are far below


class CodeHead(nn.Module):
    r"""Maps of the encoders' outputs to shared codes, fitted once the encoders are trained.

    On the sphere (InfoNCE) a code is its direction and nothing is fitted. Correlation objectives leave
    a linear map open: a canonical head (deep CCA) turns the outputs to uncorrelated dimensions of unit
    variance in order of their correlation between modalities; otherwise dimensions are standardised.

    Parameters
    ----------
    modalities
        Names of the modalities.
    n_shared
        Dimensions of the code.
    sphere
        Codes are directions.
    canonical
        Fit canonical axes, by :func:`generalized_cca` on the training cells.
    """

    def __init__(self, modalities: Sequence[str], n_shared: int, *, sphere: bool, canonical: bool = False) -> None:
        super().__init__()
        self.modalities, self.sphere, self.canonical = tuple(modalities), sphere, canonical
        n = len(self.modalities)
        self.register_buffer("offset", torch.zeros(n, n_shared))
        self.register_buffer("rotation", torch.eye(n_shared).repeat(n, 1, 1))
        self.register_buffer("correlation", torch.zeros(n_shared))
        # standardises the finished codes where a network takes them as a condition
        self.register_buffer("center", torch.zeros(n, n_shared))
        self.register_buffer("scale", torch.ones(n, n_shared))

    def forward(self, modality: str, raw: Tensor) -> Tensor:
        """Shared code of encoder outputs ``(n, n_shared)``."""
        if self.sphere:
            return normalize(raw, dim=1)
        m = self.modalities.index(modality)
        return (raw - self.offset[m]) @ self.rotation[m]

    def standardized(self, modality: str, code: Tensor) -> Tensor:
        """A code with mean 0 and variance 1 per dimension on the training cells."""
        m = self.modalities.index(modality)
        return (code - self.center[m]) / self.scale[m]

    def joint(self, codes: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        r"""Code of the cell from the modalities S that it has.

        On the sphere the direction of the sum; with canonical correlations :math:`\rho` the mean of the
        one-factor model, :math:`\sqrt\rho \sum_{m \in S} z_m / (1 + (|S| - 1) \rho)`; otherwise the mean.
        """
        total = sum(codes.values())
        if self.sphere:
            return normalize(total, dim=1)
        present = sum(mask[m].to(total.dtype) for m in codes).unsqueeze(1)
        if not self.canonical:
            return total / present.clamp(min=1)
        rho = self.correlation
        return rho.sqrt() * total / (1 + (present - 1) * rho)

    @torch.no_grad()
    def fit(self, raw: Mapping[str, Tensor], mask: Mapping[str, Tensor], groups: Tensor | None = None) -> None:
        """Fit to the outputs ``(n_obs, n_shared)`` of all training cells; canonical axes within ``groups``, if given."""
        # a modality without training cells keeps its identity map
        seen = [m for m in self.modalities if mask[m].any()]
        rows = {m: mask[m].cpu().numpy().nonzero()[0] for m in seen}
        values = {m: raw[m].cpu().double().numpy()[rows[m]] for m in seen}
        n_obs = len(next(iter(mask.values())))
        if not self.sphere:
            centred = {
                m: _centred(x, None if groups is None else groups.cpu().numpy()[rows[m]]) for m, x in values.items()
            }
            if self.canonical:
                width = self.offset.shape[1]
                rotation = generalized_cca(centred, rows, n_obs, CANONICAL_RIDGE, width, least_spread=LEAST_SPREAD)
                codes = {m: x @ rotation[m] for m, x in centred.items()}
                self._put(self.correlation, _pair_correlations(codes, rows, n_obs).clip(0, 1))
            else:
                rotation = {m: np.diag(1 / _spread(x)) for m, x in centred.items()}
            for m in seen:
                self._put(self.offset[self.modalities.index(m)], values[m].mean(axis=0))
                self._put(self.rotation[self.modalities.index(m)], rotation[m])
        for m in seen:
            code = self(m, raw[m][mask[m]]).cpu().double().numpy()
            self._put(self.center[self.modalities.index(m)], code.mean(axis=0))
            self._put(self.scale[self.modalities.index(m)], _spread(code))

    @staticmethod
    def _put(buffer: Tensor, value: np.ndarray) -> None:
        buffer.copy_(torch.as_tensor(value, dtype=buffer.dtype))


def _centred(x: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Rows less the mean of all, or of their group."""
    if groups is None:
        return x - x.mean(axis=0)
    _, group, count = np.unique(groups, return_inverse=True, return_counts=True)
    total = np.zeros((len(count), x.shape[1]))
    np.add.at(total, group, x)
    return x - (total / count[:, None])[group]


def _spread(x: np.ndarray) -> np.ndarray:
    """Standard deviation of every column; 1 for a constant one, which stays constant."""
    spread = x.std(axis=0)
    return np.where(spread > 1e-6 * max(spread.max(initial=0), 1e-30), spread, 1.0)


def _pair_correlations(codes: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray], n_obs: int) -> np.ndarray:
    """Correlation of every dimension between the modalities, mean over the pairs that share cells."""
    values = []
    for m, n in combinations(codes, 2):
        i, j = common_rows(rows[m], rows[n], n_obs)
        if len(i) > 1:
            values.append((unit_columns(codes[m][i]) * unit_columns(codes[n][j])).sum(axis=0))
    return np.mean(values, axis=0) if values else np.zeros(next(iter(codes.values())).shape[1])
