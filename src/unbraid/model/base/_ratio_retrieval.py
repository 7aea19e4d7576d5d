"""Retrieval by how much likelier it is that two observations belong together than that they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from unbraid._messages import check_option
from unbraid.data import positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

ROLES = ("query", "target")


class RatioRetrievalMixin:
    """Of models whose shared codes are canonical variates with known correlations."""

    def get_retrieval_representation(
        self,
        modality: str,
        mdata: MuData | None = None,
        *,
        role: Literal["query", "target"] = "query",
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        r"""Vectors whose dot products rank cells by the likelihood ratio of belonging together.

        With canonical codes and their held-out correlations a query's product with a target is their
        :func:`~unbraid.objectives.canonical_log_ratio`, but for a constant of the query. :class:`~unbraid.model.Unbraid`
        also takes dimensions that were not kept, with correlations less :math:`1 / \sqrt n` of the held-out cells. For
        :func:`unbraid.tl.retrieve` and :func:`unbraid.metrics.retrieval` with ``metric="dot"``, or any index of maximum
        inner products.

        Parameters
        ----------
        modality
            Whose cells.
        mdata
            Cells; those of the set-up by default.
        role
            Queries and targets have other vectors.
        indices
            Cells, by number, by name or as a mask; all by default.

        Returns
        -------
        float32 array ``(n_obs, k + 1)``, one row per cell; NaN where the cell lacks the modality.
        """
        check_option("`role`", role, ROLES)
        self._check_modality(modality)
        return self._retrieval_vectors(mdata, indices, [modality], [role])[modality, role]

    def write_retrieval(self, mdata: MuData | None = None, prefix: str = "Z") -> MuData:
        """Write the vectors of both roles into the MuData, for retrieval in either direction.

        ``mdata.mod[m].obsm["Z_query"]`` and ``["Z_target"]`` of every modality m, for
        ``unbraid.tl.retrieve(..., use_rep=("Z_query", "Z_target"), metric="dot")``.

        Parameters
        ----------
        mdata
            Cells; those of the set-up by default.
        prefix
            First part of the keys.

        Returns
        -------
        The same MuData.
        """
        if mdata is None:
            self._check_data()
            mdata = self.adata
        modalities = [m for m in self.modalities if m in mdata.mod]
        for (m, role), vectors in self._retrieval_vectors(mdata, None, modalities, ROLES).items():
            rows = positions(mdata, m)
            own = np.full((mdata[m].n_obs, vectors.shape[1]), np.nan, dtype=np.float32)
            own[rows[rows >= 0]] = vectors[rows >= 0]
            mdata.mod[m].obsm[f"{prefix}_{role}"] = own
        return mdata

    def _retrieval_vectors(
        self, mdata: MuData | None, indices: Sequence[int] | None, modalities: Sequence[str], roles: Sequence[str]
    ) -> dict[tuple[str, str], np.ndarray]:
        """Vectors of modalities in roles, of which every cell is encoded once."""
        parts = {(m, role): [] for m in modalities for role in roles}
        for batch in self._batches(mdata, indices):
            codes, rho = self.module.pair_codes(batch), self.module.retrieval_correlation
            weight = rho / (1 - rho.square())
            for (m, role), part in parts.items():
                code = codes[m]
                if role == "query":
                    vectors = torch.cat([code * weight, torch.ones_like(code[:, :1])], dim=1)
                else:
                    own = (code.square() * (rho * weight)).sum(dim=1, keepdim=True) / 2
                    vectors = torch.cat([code, -own], dim=1)
                part.append(vectors.masked_fill(~batch["mask"][m][:, None], torch.nan))
        return {key: torch.cat(part).cpu().numpy() for key, part in parts.items()}
