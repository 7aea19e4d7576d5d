"""What a generative model makes of latents on a path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from unbraid._messages import check_option, check_whole
from unbraid.nn import expected_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

    from unbraid.module import Kind


class TraversalMixin:
    """Traversals and interpolations of a generative model."""

    def traverse(
        self,
        modality: str,
        cell: int,
        mdata: MuData | None = None,
        *,
        kind: Kind = "specific",
        dimensions: Sequence[int] | None = None,
        n_steps: int = 7,
        span: float = 2.0,
    ) -> np.ndarray:
        """A cell's modality while one latent dimension after the other is moved.

        Parameters
        ----------
        modality
            Which one.
        cell
            Number of the cell, which must have the modality.
        mdata
            Cells; those of the set-up by default.
        kind
            Whose dimensions are moved: of the modality's shared or of its specific latent, or of a part of the shared
            one where it has parts (``"task"``, ``"residual"``).
        dimensions
            Which; by default all, those that vary most between cells first.
        n_steps, span
            Values of a dimension: so many, from the cell's own less ``span`` standard deviations over all cells to it
            plus as many.

        Returns
        -------
        float32 array ``(n_dimensions, n_steps, n_features)`` of expected values, for :func:`unbraid.pl.traversal`.

        Raises
        ------
        ValueError
            If the cell lacks the modality, or there is no such dimension.
        """
        self._check_request(kind, modality)
        check_whole("n_steps", n_steps, 2)
        spread = np.nanstd(self.get_latent_representation(mdata, kind, modality), axis=0)
        dimensions = np.argsort(-spread) if dimensions is None else np.asarray(dimensions)
        if len(dimensions) and not (0 <= min(dimensions) and max(dimensions) < len(spread)):
            raise ValueError(f"`dimensions` of the {kind} latent run from 0 to {len(spread) - 1}, got {dimensions}.")
        steps = torch.linspace(-span, span, n_steps)
        moved = torch.zeros(len(dimensions), n_steps, len(spread))
        for row, k in zip(moved, dimensions.tolist(), strict=True):
            row[:, k] = steps * float(spread[k])

        def path(codes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            change, moving = moved.flatten(0, 1).to(self.device), self._moving(kind, codes)
            codes = {name: code.repeat(len(change), 1) for name, code in codes.items()}
            for name, columns in moving.items():
                codes[name][:, columns] += change
            return codes

        return self._along(modality, [cell], path, mdata).reshape(len(dimensions), n_steps, -1)

    def interpolate(
        self,
        modality: str,
        start: int,
        end: int,
        mdata: MuData | None = None,
        *,
        kind: Literal["both"] | Kind = "both",
        n_steps: int = 7,
    ) -> np.ndarray:
        """A modality on the straight way from the latents of one cell to those of another.

        Parameters
        ----------
        modality
            Which one.
        start, end
            Numbers of the cells, which must have the modality. Covariates and total count are those of the first.
        mdata
            Cells; those of the set-up by default.
        kind
            Which latent, or which part of the shared one, moves; the rest stays that of the first cell.
        n_steps
            Number of values, both ends included.

        Returns
        -------
        float32 array ``(n_steps, n_features)`` of expected values.

        Raises
        ------
        ValueError
            If a cell lacks the modality.
        """
        check_option("`kind`", kind, ("both", "shared", "specific", *self.module.shared_slices))
        check_whole("n_steps", n_steps, 2)

        def path(codes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            t = torch.linspace(0, 1, n_steps, device=self.device).unsqueeze(1)
            moving, found = self._moving(kind, codes), {}
            for name, code in codes.items():
                found[name] = code[:1].repeat(n_steps, 1)
                columns = moving.get(name, slice(0))
                found[name][:, columns] = torch.lerp(code[:1, columns], code[1:, columns], t)
            return found

        return self._along(modality, [start, end], path, mdata)

    def _moving(self, kind: str, codes: dict[str, torch.Tensor]) -> dict[str, slice]:
        """Which columns of which latents a kind is."""
        if (part := self.module.shared_slices.get(kind)) is not None:
            return {"shared": part}
        return {name: slice(None) for name in codes if kind in ("both", name)}

    def _along(self, modality: str, cells: list[int], path, mdata: MuData | None) -> np.ndarray:
        """Expected values on a path of latents that begins with those of some cells."""
        self._check_modality(modality)
        (batch,) = list(self._batches(mdata, cells))
        if not batch["mask"][modality].all():
            raise ValueError(f"Modality {modality!r} was not measured in all of the cells {cells}.")
        with torch.inference_mode():
            z, w = self.module.posteriors(batch)
            codes = {"shared": z[modality].mean} | ({"specific": w[modality].mean} if w else {})
            latent = torch.cat(list(path(codes).values()), dim=1)
            first = torch.zeros(len(latent), dtype=torch.long, device=latent.device)
            return expected_values(self.module.decode(modality, latent, batch, first)).float().cpu().numpy()
