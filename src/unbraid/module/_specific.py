"""Specific codes from what a shared code does not explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from torch import nn

from unbraid.nn import MLP

if TYPE_CHECKING:
    from torch import Tensor

MAX_SPECIFIC = 50
LEAST_VARIANCE = 1e-3  # of the mean variance of the components; directions below it are errors of the regression
LEAK_TOLERANCE = 0.01  # R2


class ResidualCode(nn.Module):
    r"""Specific code :math:`z = P^\top r + h([r, c])` and back, :math:`\hat r = B z + D([z, c])`.

    Parameters
    ----------
    axes
        :math:`P`, ``(p, k)``: principal axes of the residual, divided by the root of their variance.
    scale
        One number, the root mean variance of the residual, by which the networks see it.
    n_condition
        Width of the shared code :math:`c`.
    **options
        Of the networks :math:`h` and :math:`D`, whose last layers begin at zero: the code begins linear.
    """

    def __init__(self, axes: Tensor, scale: float, n_condition: int, **options: Any) -> None:
        super().__init__()
        p, k = axes.shape
        self.shape = axes.shape, n_condition
        self.register_buffer("axes", axes)
        self.register_buffer("scale", torch.as_tensor(float(scale)))
        self.register_buffer("center", torch.zeros(k))
        self.register_buffer("spread", torch.ones(k))
        self.back = nn.Parameter(torch.linalg.pinv(axes.cpu().double()).to(axes))
        self.encoder, self.decoder = MLP(p + n_condition, k, **options), MLP(k + n_condition, p, **options)
        for network in (self.encoder, self.decoder):
            nn.init.zeros_(network.layers[-1].weight)
            nn.init.zeros_(network.layers[-1].bias)

    def forward(self, residual: Tensor, condition: Tensor) -> Tensor:
        """Specific code ``(n, k)``."""
        z = residual @ self.axes + self.encoder(torch.cat([residual / self.scale, condition], dim=1))
        return (z - self.center) / self.spread

    def restore(self, z: Tensor, condition: Tensor) -> Tensor:
        """Residual ``(n, p)`` of a code."""
        z = z * self.spread + self.center
        return z @ self.back + self.scale * self.decoder(torch.cat([z, condition], dim=1))

    @torch.no_grad()
    def standardize(self, z: Tensor) -> None:
        """Give the code mean 0 and variance 1 where it has ``z`` now."""
        if len(z) > 1:
            spread = z.std(dim=0, correction=0)
            self.center.add_(z.mean(dim=0) * self.spread)
            self.spread.mul_(torch.where(spread > 1e-6, spread, 1.0))


def residual_axes(
    residual: np.ndarray,
    condition: np.ndarray,
    mean_variance: float,
    n_specific: int | None = None,
    *,
    independent: np.ndarray | None = None,
) -> np.ndarray:
    r"""Principal axes of a residual that are worth keeping, divided by the root of their variance.

    A residual has directions that the data owe to the modality alone, and others that are error of the regression,
    and these tell of the shared code. Kaiser's rule, the number of eigenvalues above their mean, keeps few; more are
    kept (what explains 90, 99 or 99.9 % of the variance) if a kernel regression of the shared code on them explains no
    more of it on held-out cells than it does from Kaiser's.

    Parameters
    ----------
    residual
        ``(n, p)``.
    condition
        Shared code ``(n, k)``.
    mean_variance
        Mean variance of the components of which this is the residual.
    n_specific
        Number of axes; None for the rule.
    independent
        Rows to hold out some of: one of all that are replicates of each other. All by default.

    Returns
    -------
    ``(p, n_axes)``, at least one axis and at most 50.
    """
    centred = residual - residual.mean(axis=0)
    variance, vectors = np.linalg.eigh(centred.T @ centred / len(residual))
    variance, vectors = np.maximum(variance[::-1], 0.0), vectors[:, ::-1]
    seen = variance > max(1e-9 * mean_variance, 1e-15)  # rounding errors are not blown up
    axes = vectors / np.where(seen, np.sqrt(variance), np.inf)
    usable = max(1, min(int((variance > LEAST_VARIANCE * mean_variance).sum()), MAX_SPECIFIC))
    if n_specific is not None:
        return axes[:, : min(n_specific, axes.shape[1])]
    few = max(1, min(int((variance > variance.mean()).sum()), usable))
    share = np.cumsum(variance) / max(variance.sum(), 1e-300)
    more = sorted({min(int(np.searchsorted(share, s)) + 1, usable) for s in (0.9, 0.99, 0.999)} - {few}, reverse=True)
    rows = slice(None) if independent is None else independent
    if more and len(residual[rows]) >= 100:
        leak = lambda n: held_out_r2(centred[rows] @ axes[:, :n], condition[rows])
        most = max(leak(few), 0.0) + LEAK_TOLERANCE
        few = next((n for n in more if n > few and leak(n) <= most), few)
    return axes[:, :few]


def held_out_r2(z: np.ndarray, c: np.ndarray, max_obs: int = 4_000) -> float:
    """R2 of a kernel ridge regression of ``c`` on ``z``, fitted to every other row and read off the rest.

    Parameters
    ----------
    z, c
        ``(n, d)`` and ``(n, k)``.
    max_obs
        Rows to look at.
    """
    z, c = z[:max_obs], c[:max_obs]
    return kernel_r2(z[::2], c[::2], z[1::2], c[1::2])


def kernel_r2(
    z: np.ndarray, c: np.ndarray, z_test: np.ndarray, c_test: np.ndarray, *, n_components: int = 300
) -> float:
    """R2 of a kernel ridge regression of ``c`` on standardised ``z`` where it was not fitted.

    Parameters
    ----------
    z, c
        ``(n, d)`` and ``(n, k)`` to fit to.
    z_test, c_test
        Likewise, to read off.
    n_components
        Rows that the kernel is approximated by.
    """
    scale = np.maximum(z.std(axis=0), 1e-12)
    kernel = Nystroem(gamma=0.5 / z.shape[1], n_components=min(n_components, len(z)), random_state=0)
    regression = make_pipeline(kernel, Ridge(1e-2)).fit(z / scale, c)
    return float(regression.score(z_test / scale, c_test))
