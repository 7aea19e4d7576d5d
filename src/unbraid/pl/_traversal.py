"""What a latent dimension does to what is generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike


def traversal(
    values: ArrayLike,
    *,
    shape: tuple[int, ...] | None = None,
    names: Sequence[str] | None = None,
    n_features: int = 20,
    max_rows: int = 10,
) -> Figure:
    """Draw what is generated while latent dimensions are moved: pictures, or the features that change most.

    Parameters
    ----------
    values
        ``(n_rows, n_steps, n_features)``, as a model's ``traverse`` gives them, or ``(n_steps, n_features)``, as
        ``interpolate`` does. Finite.
    shape
        Of a picture: ``(channels, height, width)`` with 1 or 3 channels, values from 0 to 1. None: features.
    names
        Names of the features.
    n_features
        Draw the features that change most in any row, so many at most.
    max_rows
        Draw so many rows at most.

    Returns
    -------
    The figure.

    Raises
    ------
    ValueError
        If values are not finite or of another shape, or there are not as many names as features.

    Examples
    --------
    >>> values = model.traverse("rna", cell=0)
    >>> ub.pl.traversal(values, names=mdata["rna"].var_names)
    """
    values = np.asarray(values, dtype=float)
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"`values` must be finite, of shape (rows, steps, features); got shape {values.shape}.")
    values = values[:max_rows]
    if shape is not None:
        return _pictures(values, tuple(shape))
    if names is not None and len(names) != values.shape[2]:
        raise ValueError(f"`names` has {len(names)} names for {values.shape[2]} features.")
    return _features(values, names, n_features)


def _pictures(values: np.ndarray, shape: tuple[int, ...]) -> Figure:
    if len(shape) != 3 or shape[0] not in (1, 3) or np.prod(shape) != values.shape[2]:
        raise ValueError(f"`shape` {shape} is none of a picture of 1 or 3 channels with {values.shape[2]} values.")
    n_rows, n_steps, _ = values.shape
    channels, height, width = shape
    images = values.reshape(n_rows, n_steps, channels, height, width).clip(0, 1)
    sheet = images.transpose(0, 3, 1, 4, 2).reshape(n_rows * height, n_steps * width, channels)
    figure, axes = plt.subplots(figsize=(1.1 * n_steps, 1.1 * n_rows), layout="constrained")
    axes.imshow(sheet.squeeze(-1) if channels == 1 else sheet, cmap="gray" if channels == 1 else None, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks((np.arange(n_rows) + 0.5) * height, labels=range(1, n_rows + 1))
    axes.set_ylabel("row")
    return figure


def _features(values: np.ndarray, names: Sequence[str] | None, n_features: int) -> Figure:
    change = np.ptp(values, axis=1)  # (rows, features)
    chosen = np.argsort(-change.max(axis=0))[:n_features]
    # every feature about its middle, in units of its greatest change
    shown = values[:, :, chosen] - values[:, :, chosen].mean(axis=1, keepdims=True)
    shown = shown / np.where(change[:, chosen].max(axis=0) > 0, change[:, chosen].max(axis=0), 1)
    labels = [str(k) for k in chosen] if names is None else [str(names[k]) for k in chosen]
    size = (1.2 + 1.3 * len(values), 0.6 + 0.22 * len(chosen))
    figure, axes = plt.subplots(1, len(values), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for row, (panel, part) in enumerate(zip(axes[0], shown, strict=True), start=1):
        image = panel.imshow(part.T, aspect="auto", cmap="RdBu_r", vmin=-0.5, vmax=0.5)
        panel.set_title(str(row), fontsize="small")
        panel.set_xticks([])
    axes[0, 0].set_yticks(range(len(chosen)), labels=labels, fontsize="small")
    figure.colorbar(image, ax=axes[0, -1], label="change, 1 = the feature's greatest")
    figure.supxlabel("step", fontsize="small")
    return figure
