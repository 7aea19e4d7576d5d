"""Totals of counted modalities where they were not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from unbraid.nn import PerModality, SizePredictor, size_features

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


class PredictsSizes:
    """What a module needs to predict a modality's size from the others of a cell.

    It calls :meth:`build_size_predictors` once, says what sizes and codes of other modalities are, and hands what
    :meth:`known_sizes` found in all training cells to :meth:`fit_sizes`.
    """

    def build_size_predictors(self, typical: Mapping[str, float]) -> None:
        """One predictor per modality that is counted.

        Parameters
        ----------
        typical
            Its typical size, by name.
        """
        self.counted = list(typical)
        self.size_predictors = PerModality({m: SizePredictor(size) for m, size in typical.items()})

    def sizes(self, batch: dict) -> dict[str, Tensor]:
        """Sizes of the counted modalities, ``(n,)``; of no meaning for cells without them."""
        raise NotImplementedError

    def codes_from_others(self, batch: dict) -> dict[str, tuple[Tensor, Tensor]]:
        """Per counted modality, the shared code from all others ``(n, d)``, and of which cells there is one."""
        raise NotImplementedError

    def known_sizes(self, batch: dict) -> dict[str, tuple[Tensor, Tensor]]:
        """Per counted modality, features and sizes of the cells that have it and another one."""
        sizes, found = self.sizes(batch), {}
        for m, features in self._size_features(batch, sizes).items():
            rows = batch["mask"][m] & (sum(there.int() for there in batch["mask"].values()) > 1)
            found[m] = features[rows], sizes[m][rows]
        return found

    def fit_sizes(self, parts: Sequence[dict[str, tuple[Tensor, Tensor]]]) -> None:
        """Learn from all cells.

        Parameters
        ----------
        parts
            What :meth:`known_sizes` gives of every batch.
        """
        for m in self.counted:
            self.size_predictors[m].fit(*(torch.cat([part[m][k] for part in parts]) for k in (0, 1)))

    def predicted_sizes(self, batch: dict, modality: str, n_samples: int | None = None) -> Tensor:
        """Sizes of a modality, predicted where it was not measured.

        Parameters
        ----------
        batch, modality
            Cells, and which modality.
        n_samples
            Give draws of the predictions, ``(n_samples, n)``, not expected sizes ``(n,)``.
        """
        sizes, mask = self.sizes(batch), batch["mask"][modality]
        own = sizes[modality]
        if mask.all():
            return own if n_samples is None else own.expand(n_samples, -1)
        predicted = self.size_predictors[modality](self._size_features(batch, sizes)[modality])
        return torch.where(mask, own, predicted.mean if n_samples is None else predicted.sample((n_samples,)))

    def _size_features(self, batch: dict, sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        others = lambda m: {n: size for n, size in sizes.items() if n != m}
        found = self.codes_from_others(batch).items()
        return {m: size_features(code, known, others(m), batch["mask"]) for m, (code, known) in found}
