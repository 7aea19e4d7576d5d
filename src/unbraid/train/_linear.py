"""The closed-form fit of a linear split: components, canonical variates, components of the rest."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from unbraid.data import BlockSampler, block_loader
from unbraid.module._canonical_selection import RIDGES, CanonicalSelection, select_canonical
from unbraid.module._linear import batch_means, generalized_cca, principal_components

if TYPE_CHECKING:
    from collections.abc import Iterable

    from unbraid.data import MultimodalDataset
    from unbraid.module import LinearModule

# Largest block: 2,048 cells, fewer when they are wide; a float64 copy stays below 200 MB.
BLOCK_ROWS, BLOCK_VALUES = 2_048, 20_000_000


@dataclass(frozen=True)
class LinearFit:
    """What :func:`fit_linear` found.

    Attributes
    ----------
    selection
        Ridge, held-out correlations and what re-pairing reaches.
    kept
        Which dimensions the shared code has, bool ``(n_dims,)``.
    rows
        Per modality, numbers of the training cells that have it.
    components
        Per modality, centred components of these cells, float64 ``(n, p)``.
    batch
        Batch of every cell of the data, 0 for all when batches are not centred.
    """

    selection: CanonicalSelection
    kept: np.ndarray
    rows: dict[str, np.ndarray]
    components: dict[str, np.ndarray]
    batch: np.ndarray


def fit_linear(
    module: LinearModule,
    dataset: MultimodalDataset,
    train: np.ndarray,
    *,
    n_shared: int | None,
    n_specific: int | None,
    n_components: int,
    ridge: float | None,
    seed: int,
    name: str,
    n_permutations: int = 20,
) -> LinearFit:
    """Fit the maps and correlations of a linear module to the training cells.

    Parameters
    ----------
    module
        Gets its maps and correlations.
    dataset
        The cells.
    train
        Numbers of the training cells, increasing.
    n_shared, n_specific, n_components, ridge
        As in :class:`~unbraid.model.LinearSplit`.
    seed
        Of folds, re-pairings and randomised components.
    name
        Of the model, for messages.
    n_permutations
        Random re-pairings, at least 2.

    Raises
    ------
    ValueError
        If fewer than 10 training cells have two modalities.
    """
    module.cpu()  # where the cells are
    presence = dataset.presence
    if (paired := int((presence[train].sum(axis=1) > 1).sum())) < 10:
        raise ValueError(f"Only {paired} training cells have two modalities; {name} needs at least 10.")
    batch = dataset.batch if module.center_batches else np.zeros(dataset.n_obs, dtype=np.int64)
    rows = {m: train[presence[train, k]] for k, m in enumerate(module.modalities)}
    reduced = {m: _reduce(module, dataset, m, rows[m], batch, n_components, seed) for m in module.modalities}
    n_dims = min(n_shared or dataset.n_obs, *(x.shape[1] for x in reduced.values()))
    ridges = RIDGES if ridge is None else (ridge,)
    options = {"n_permutations": n_permutations, "groups": dataset.groups, "seed": seed}
    selection = select_canonical(reduced, rows, batch, n_dims, ridges=ridges, **options)
    kept = np.ones(n_dims, dtype=bool) if n_shared else selection.shared
    if not selection.shared.any():
        warnings.warn(
            "No dimension is shared beyond chance: held-out correlations do not exceed those of randomly "
            "re-paired cells. Do cell names match between modalities?",
            UserWarning,
            stacklevel=3,
        )
        kept = kept | (np.arange(n_dims) == 0)  # a code of no dimension is none
    maps = generalized_cca(reduced, rows, dataset.n_obs, selection.ridge, n_dims)
    for m, x in reduced.items():
        shared = maps[m][:, kept]
        explained, specific = components_of_the_rest(x, x @ shared, n_specific)
        module.maps[m].set(shared=shared, explained=explained, specific=specific)
    correlations = np.clip(selection.correlations[kept], 1e-3, 1.0)
    module.correlations.value = torch.as_tensor(correlations, dtype=torch.float32)
    return LinearFit(selection, kept, rows, reduced, batch)


def components_of_the_rest(
    x: np.ndarray, code: np.ndarray, n_specific: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Regress a code out of components and keep the principal components of the rest.

    Parameters
    ----------
    x
        Components ``(n, p)``.
    code
        Shared code ``(n, k)``.
    n_specific
        Principal components to keep; None takes what explains 99.9 % of the rest, at most 50.

    Returns
    -------
    Regression ``(k, p)`` and principal axes ``(p, n_specific)``.
    """
    explained = np.linalg.lstsq(code, x, rcond=None)[0]
    residual = x - code @ explained
    variance, vectors = np.linalg.eigh(residual.T @ residual / len(x))
    variance, vectors = np.maximum(variance[::-1], 0.0), vectors[:, ::-1]
    if n_specific is None:
        share = np.cumsum(variance) / max(variance.sum(), 1e-300)
        n_specific = min(int(np.searchsorted(share, 0.999)) + 1, 50)
    return explained, vectors[:, : min(n_specific, x.shape[1])]


def _reduce(module, dataset, modality: str, rows, batch, n_components: int, seed: int) -> np.ndarray:
    """Centred principal components of a modality's training cells, float64 ``(n, p)``."""
    layer = module.input_layers[modality]
    block_rows = max(1, min(BLOCK_ROWS, BLOCK_VALUES // layer.n_features))

    def blocks() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for part in block_loader(dataset, BlockSampler(rows, block_rows)):
            x = layer(part["x"][modality], part["size_factor"].get(modality))
            yield x.double().numpy(), batch[part["index"].numpy()]

    means = batch_means(blocks, int(batch.max()) + 1)
    components = principal_components(blocks, means, min(n_components, max(len(rows) - 1, 1)), seed)
    module.maps[modality].set(mean=means, components=components)
    return np.concatenate([(x - means[b + 1]) @ components for x, b in blocks()])
