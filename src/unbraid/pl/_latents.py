"""UMAPs of shared and specific codes, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from unbraid._messages import suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from mudata import MuData


def latents(
    mdata: MuData,
    color: str | Sequence[str] | None = None,
    *,
    prefix: str = "Z",
    n_neighbors: int = 15,
    max_obs: int = 20_000,
    seed: int = 0,
) -> Figure:
    """Draw a UMAP of every written code: the cells' shared code, then each modality's specific code.

    Parameters
    ----------
    mdata
        With codes as ``write_latent`` names them: ``obsm["Z_c"]`` and ``mdata[modality].obsm["Z_s"]``.
    color
        Columns of ``mdata.obs``, one row of pictures each.
    prefix
        First part of the keys.
    n_neighbors
        Of the neighbour graph.
    max_obs
        Draw at most so many cells, chosen at random.
    seed
        Seed of choice and UMAP.

    Returns
    -------
    The figure. Nothing is written into ``mdata``.

    Raises
    ------
    KeyError
        If there are no such codes, or no such column.
    """
    codes = {"shared": (mdata.obs_names, mdata.obsm.get(f"{prefix}_c"))}
    codes |= {f"specific: {m}": (adata.obs_names, adata.obsm.get(f"{prefix}_s")) for m, adata in mdata.mod.items()}
    codes = {name: (cells, code) for name, (cells, code) in codes.items() if code is not None}
    if not codes:
        raise KeyError(f"No {prefix}_c or {prefix}_s in obsm: call `model.write_latent(mdata)` first.")
    colors = [color] if isinstance(color, str) or color is None else list(color)
    for key in colors:
        if key is not None and key not in mdata.obs:
            raise KeyError(f"No obs column {key!r} in the MuData. {suggest(key, mdata.obs.columns)}")

    size = (4.0 * len(codes), 3.8 * len(colors))
    figure, axes = plt.subplots(len(colors), len(codes), figsize=size, squeeze=False, layout="constrained")
    for column, (name, (cells, code)) in enumerate(codes.items()):
        cells, position = _umap(cells, np.asarray(code), n_neighbors, max_obs, seed)
        for row, key in enumerate(colors):
            last = column == len(codes) - 1
            _scatter(axes[row, column], position, None if key is None else mdata.obs[key].reindex(cells), legend=last)
            axes[row, column].set_title(f"{name} ({code.shape[1]} dimensions)", fontsize=10)
            if column == 0 and key is not None:
                axes[row, 0].set_ylabel(key)
    return figure


def _umap(cells, code: np.ndarray, n_neighbors: int, max_obs: int, seed: int) -> tuple[pd.Index, np.ndarray]:
    finite = np.flatnonzero(np.isfinite(code).all(axis=1))
    if len(finite) > max_obs:
        finite = np.sort(np.random.default_rng(seed).choice(finite, max_obs, replace=False))
    adata = AnnData(obs=pd.DataFrame(index=cells[finite]), obsm={"code": code[finite]})
    sc.pp.neighbors(adata, use_rep="code", n_neighbors=min(n_neighbors, max(len(finite) - 1, 2)), random_state=seed)
    sc.tl.umap(adata, random_state=seed)
    return adata.obs_names, adata.obsm["X_umap"]


def _scatter(ax, position: np.ndarray, values: pd.Series | None, *, legend: bool) -> None:
    style = {"s": max(1.0, min(12.0, 20_000 / len(position))), "linewidths": 0, "rasterized": True}
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if values is None:
        ax.scatter(*position.T, color="0.5", **style)
    elif pd.api.types.is_float_dtype(values):
        drawn = ax.scatter(*position.T, c=values, cmap="viridis", **style)
        if legend:
            ax.figure.colorbar(drawn, ax=ax, shrink=0.7)
    else:
        values = values.astype(str)
        classes = sorted(values.unique())
        palette = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20").colors
        order = np.random.default_rng(0).permutation(len(values))  # no class hides another by being drawn last
        shade = np.array([palette[classes.index(v) % len(palette)] for v in values])
        ax.scatter(*position[order].T, color=shade[order], **style)
        if legend:
            for k, name in enumerate(classes[:25]):
                ax.scatter([], [], color=palette[k % len(palette)], s=25, label=name)
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
