"""LinearSplit: the closed-form split that every other model must beat."""

from __future__ import annotations

import warnings
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Trainer

from unbraid.data import BlockSampler, block_loader, split_indices
from unbraid.model.base import SplitModel
from unbraid.module import LinearModule
from unbraid.module._linear import RIDGES, batch_means, generalized_cca, principal_components, select_canonical

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mudata import MuData

    from unbraid.nn import InputTransform

# Largest block: 2,048 cells, fewer when they are wide; a float64 copy stays below 200 MB.
BLOCK_ROWS, BLOCK_VALUES = 2_048, 20_000_000


class LinearSplit(SplitModel):
    r"""Shared = canonical variates, specific = principal components of the rest. Seconds, no tuning.

    **Shared.** Every modality is reduced to principal components and whitened with a ridge; the shared
    codes :math:`z_m = A_m^\top x_m` are the variates of regularised CCA (two modalities) or MAX-VAR
    generalised CCA (more), with unit variance. Ridge and rank are chosen on held-out cells: a
    dimension is shared if its held-out correlation exceeds what the best of all dimensions reaches
    after random re-pairing of cells, in 95 of 100 re-pairings.

    **Specific.** :math:`s_m = P_m^\top (x_m - B_m z_m)`, the principal components of what a linear
    regression on the modality's own shared code does not explain.

    With a ``batch_key`` every batch is centred by itself, so that differences between batches are
    neither shared nor specific. Cells that lack modalities take part in every covariance that they
    have data for, and their joint code is the mean of a one-factor model given what they have.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared
        Dimensions of the shared code; None lets the re-pairings decide.
    n_specific
        Dimensions of every specific code; None takes what explains 99.9 % of the residual, at most 50.
    n_components
        Principal components kept of a modality with more features.
    ridge
        Relative to the mean variance; None lets held-out information decide.
    input_transform
        What the model sees, per modality or for all; see :class:`~unbraid.nn.InputLayer`.
    registry
        Registry of a saved model, to load it without data.

    Notes
    -----
    ``model.history["linear/correlation"]`` holds the held-out correlations and
    ``model.history["linear/threshold"]`` what re-pairing reaches.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.LinearSplit.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.LinearSplit(mdata)
    >>> model.train()
    >>> model.write_latent()
    """

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int | None = None,
        n_specific: int | None = None,
        *,
        n_components: int = 100,
        ridge: float | None = None,
        input_transform: InputTransform | dict[str, InputTransform] | None = None,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(mdata, registry)
        for name, value in {"n_shared": n_shared, "n_specific": n_specific, "n_components": n_components}.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        if ridge is not None and ridge <= 0:
            raise ValueError(f"`ridge` must be positive, got {ridge}.")
        self.n_shared, self.n_specific, self.n_components, self.ridge = n_shared, n_specific, n_components, ridge
        centred = self.registry_["setup_args"]["batch_key"] is not None
        self.module = LinearModule(self._specs(input_transform), center_batches=centred)
        self._finish(locals())

    def train(
        self,
        max_epochs: int | dict[str, int] | None = None,
        *,
        split_key: str | None = None,
        train_size: float | None = 1.0,
        validation_size: float | None = None,
        seed: int | None = None,
        n_permutations: int = 100,
        **options: Any,
    ) -> None:
        """Fit in closed form.

        Parameters
        ----------
        max_epochs
            0 or more: accepted, so that one call trains every model, and without effect.
        split_key
            ``obs`` column of the MuData with ``train``, ``val`` and ``test``; only ``train`` is used.
        train_size, validation_size
            Fractions of the cells; all are used by default, since ridge and rank are cross-validated.
        seed
            Seed of folds, re-pairings and the randomised principal components.
        n_permutations
            Random re-pairings.
        **options
            Options of gradient training; without effect.

        Raises
        ------
        TypeError
            If an option is none of gradient training.
        ValueError
            If fewer than 10 training cells have two modalities.
        """
        known = {*signature(SplitModel.train).parameters, *signature(Trainer).parameters}
        if unknown := sorted(set(options) - known):
            raise TypeError(f"LinearSplit.train() got an unexpected option {unknown[0]!r}.")
        seed = self._training_seed(seed)
        self.adata_manager.validate()
        dataset = self.adata_manager.create_torch_dataset()
        labels = None if split_key is None else self._split_labels(split_key)
        sizes = {} if split_key else {"train_size": train_size, "validation_size": validation_size}
        parts = split_indices(dataset.n_obs, labels=labels, seed=seed, **sizes)
        train, presence = parts["train"], dataset.presence
        self._check_parts(presence, parts)
        if (paired := int((presence[train].sum(axis=1) > 1).sum())) < 10:
            raise ValueError(f"Only {paired} training cells have two modalities; LinearSplit needs at least 10.")

        batch = dataset.batch if self.module.center_batches else np.zeros(dataset.n_obs, dtype=np.int64)
        rows = {m: train[presence[train, k]] for k, m in enumerate(self.modalities)}
        reduced = {m: self._reduce(dataset, m, rows[m], batch, seed) for m in self.modalities}
        n_dims = self.n_shared or min(x.shape[1] for x in reduced.values())
        n_dims = min(n_dims, *(x.shape[1] for x in reduced.values()))
        ridges = RIDGES if self.ridge is None else (self.ridge,)
        chosen = select_canonical(reduced, rows, batch, n_dims, ridges=ridges, n_permutations=n_permutations, seed=seed)
        rank = n_dims if self.n_shared else max(chosen.rank, 1)
        if chosen.rank == 0:
            warnings.warn(
                "No dimension is shared beyond chance: held-out correlations do not exceed those of randomly "
                "re-paired cells. Do cell names match between modalities?",
                UserWarning,
                stacklevel=2,
            )
        maps = generalized_cca(reduced, rows, dataset.n_obs, chosen.ridge, rank)
        for m, x in reduced.items():
            self._set_maps(m, x, maps[m])
        correlations = np.clip(chosen.correlations[:rank], 1e-3, 1.0)
        self.module.correlations.value = torch.as_tensor(correlations, dtype=torch.float32)
        self._record(chosen)
        self.train_indices_, self.validation_indices_, self.test_indices_ = parts.values()
        self.seed_, self.is_trained_ = seed, True

    def _reduce(self, dataset, modality: str, rows: np.ndarray, batch: np.ndarray, seed: int) -> np.ndarray:
        """Centred principal components of a modality's training cells, float64 ``(n, p)``."""
        layer = self.module.input_layers[modality].cpu()
        block_rows = max(1, min(BLOCK_ROWS, BLOCK_VALUES // layer.n_features))

        def blocks() -> Iterable[tuple[np.ndarray, np.ndarray]]:
            for part in block_loader(dataset, BlockSampler(rows, block_rows)):
                x = layer(part["x"][modality], part["size_factor"].get(modality))
                yield x.double().numpy(), batch[part["index"].numpy()]

        means = batch_means(blocks, int(batch.max()) + 1)
        n_components = min(self.n_components, max(len(rows) - 1, 1))
        components = principal_components(blocks, means, n_components, seed)
        self.module.maps[modality].set(mean=means, components=components)
        return np.concatenate([(x - means[b + 1]) @ components for x, b in blocks()])

    def _set_maps(self, modality: str, x: np.ndarray, shared: np.ndarray) -> None:
        """Regress the shared code out and keep the principal components of the rest."""
        code = x @ shared
        explained = np.linalg.lstsq(code, x, rcond=None)[0]
        residual = x - code @ explained
        variance, vectors = np.linalg.eigh(residual.T @ residual / len(x))
        variance, vectors = np.maximum(variance[::-1], 0.0), vectors[:, ::-1]
        n_specific = self.n_specific
        if n_specific is None:
            share = np.cumsum(variance) / max(variance.sum(), 1e-300)
            n_specific = min(int(np.searchsorted(share, 0.999)) + 1, 50)
        self.module.maps[modality].set(
            shared=shared, explained=explained, specific=vectors[:, : min(n_specific, x.shape[1])]
        )

    def _record(self, chosen) -> None:
        dimension = pd.RangeIndex(len(chosen.correlations), name="dimension")
        self.history_ = {
            "linear/correlation": pd.DataFrame({"correlation": chosen.correlations}, index=dimension),
            "linear/threshold": pd.DataFrame({"threshold": [chosen.threshold]}),
            "linear/ridge": pd.DataFrame({"ridge": [chosen.ridge]}),
        }
