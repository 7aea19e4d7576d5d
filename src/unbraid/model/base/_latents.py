"""Reading latents out of a model, and writing them where scanpy finds them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from scvi import settings

from unbraid._messages import check_whole, suggest
from unbraid.data import BlockSampler, block_loader, positions
from unbraid.data._cells import numbers_of
from unbraid.tl import support

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

    from unbraid.module import Kind, Latents

UNTRAINED = "The model is not trained. Call `model.train()` first."


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from a seed and leave torch's state as it was; None draws from that state."""
    with torch.random.fork_rng(enabled=seed is not None, devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield


class LatentMixin:
    """Latents of a model's own cells and of query cells."""

    def _batches_of(self, mdata: MuData, indices: np.ndarray, batch_size: int | None) -> Iterator[dict]:
        """The given cells, batch by batch, on the model's device, without gradients until the last is drawn."""
        dataset = self.get_anndata_manager(mdata, required=True).create_torch_dataset()
        loader = block_loader(dataset, BlockSampler(indices, batch_size or max(settings.batch_size, 1024)))
        if len(indices) == 0:
            loader = [dataset[indices]]  # latents of no cell still have a width
        self.module.eval()
        with torch.inference_mode():
            for batch in loader:
                yield move_data_to_device(batch, self.device)

    def _batches(self, mdata: MuData | None, indices: Sequence[int] | None, n_samples: int = 1) -> Iterator[dict]:
        """Batches of a trained model's cells, smaller where every cell is decoded many times."""
        self._check_if_trained(warn=False, message=UNTRAINED)
        mdata = self._validate_anndata(mdata, copy_if_view=False)
        rows = numbers_of(indices, mdata, "indices")
        yield from self._batches_of(mdata, rows, None if n_samples == 1 else max(1024 // n_samples, 16))

    def _encode(
        self, mdata: MuData, indices: np.ndarray, batch_size: int | None, *, give_mean: bool = True
    ) -> Iterator[tuple[dict, Latents]]:
        """Latents of the given cells, batch by batch, without gradients."""
        for batch in self._batches_of(mdata, indices, batch_size):
            yield batch, self.module.encode(batch, give_mean=give_mean)

    def get_latent_representation(
        self,
        mdata: MuData | None = None,
        kind: Kind = "shared",
        modality: str | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Latents of cells.

        Parameters
        ----------
        mdata
            Cells; those of the set-up by default. Other MuData are registered on the fly: features
            are matched by name, and modalities may be missing.
        kind
            ``"shared"`` or ``"specific"`` (or ``"joint"``, the shared code of the cell from whichever
            modalities it has, which is also ``"shared"`` without a ``modality``). Where the shared code has parts, also
            ``"task"`` and ``"residual"``, of the cell or of a modality.
        modality
            Whose code.
        give_mean
            The posterior's mean; otherwise a sample of it.
        batch_size
            Cells encoded at a time; it does not change the result.
        indices
            Cells of the MuData, by number, by name or as a mask; all by default.

        Returns
        -------
        float32 array ``(n_obs, n_latent)``. Of a modality: rows of the cells that have it, in the
        order of ``mdata.mod[modality]`` (in the order of ``indices``, if given); cells masked out by a
        ``mask_keys`` column have NaN.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If the modality is unknown.
        ValueError
            If the model has no such kind, or the modality is missing where one is needed.
        """
        self._check_if_trained(warn=False, message=UNTRAINED)
        self._check_request(kind, modality)
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1)
        mdata = self._validate_anndata(mdata, copy_if_view=False)
        chosen = numbers_of(indices, mdata, "indices")
        rows = chosen
        if modality is not None:
            in_modality = positions(mdata, modality)
            rows = chosen[in_modality[chosen] >= 0]
            if indices is None:
                rows = rows[np.argsort(in_modality[rows])]
        values = []
        part = self.module.shared_slices.get(kind, slice(None))
        for batch, latents in self._encode(mdata, rows, batch_size, give_mean=give_mean):
            if modality is None:
                values.append(latents.joint[:, part])
                continue
            codes = latents.specific if kind == "specific" else latents.shared
            code, mask = codes[modality][:, part], batch["mask"][modality]
            values.append(code if mask.all() else code.masked_fill(~mask.unsqueeze(1), torch.nan))
        return torch.cat(values).float().cpu().numpy()

    def _check_request(self, kind: Kind, modality: str | None) -> None:
        kinds = (*self.module.kinds, "joint")
        if kind not in kinds:
            raise ValueError(f"{type(self).__name__} has no {kind!r} latents. {suggest(kind, kinds)}")
        if modality is not None:
            self._check_modality(modality)
        if kind == "specific" and modality is None:
            raise ValueError(f"Specific latents belong to a modality: pass `modality`, one of {self.modalities}.")
        if kind == "joint" and modality is not None:
            raise ValueError("The joint code belongs to the cell: leave out `modality`.")

    def _check_modality(self, modality: str) -> None:
        if modality not in self.modalities:
            raise KeyError(f"No modality {modality!r} in the model. {suggest(modality, self.modalities)}")

    def _check_counterfactual(
        self, modality: str, shared_from: Sequence[int], specific_from: Sequence[int], shared_modality: str | None
    ) -> str:
        """The modality whose shared code is taken."""
        self._check_request("specific", modality)
        source = modality if shared_modality is None else shared_modality
        self._check_modality(source)
        if len(shared_from) != len(specific_from):
            raise ValueError(
                f"`shared_from` and `specific_from` pair cells: got {len(shared_from)} and {len(specific_from)}."
            )
        return source

    def counterfactual_support(
        self,
        modality: str,
        shared_from: Sequence[int],
        specific_from: Sequence[int],
        mdata: MuData | None = None,
        *,
        shared_modality: str | None = None,
        n_neighbors: int = 10,
    ) -> np.ndarray:
        """Whether cells with the shared code of some and the specific code of others are like cells that there are.

        Parameters
        ----------
        modality
            Which one.
        shared_from, specific_from
            Numbers of cells, equally many, as for a model's ``counterfactual``.
        mdata
            Cells, which are also those to compare with; those of the set-up by default.
        shared_modality
            Modality that the shared code is read from; by default ``modality`` itself.
        n_neighbors
            See :func:`unbraid.tl.support`.

        Returns
        -------
        float64 array ``(n,)``: share of the cells whose own codes, shared and specific side by side, lie as far from
        those of other cells. Below 0.05 a combination is off the support of the data. NaN where the cells lack what is
        read from them.
        """
        source = self._check_counterfactual(modality, shared_from, specific_from, shared_modality)
        mdata = self._validate_anndata(mdata, copy_if_view=False)
        c, s = (self._code_of_cells(mdata, kind, m) for kind, m in (("shared", source), ("specific", modality)))
        first = numbers_of(shared_from, mdata, "shared_from")
        second = numbers_of(specific_from, mdata, "specific_from")
        known = np.isfinite(c).all(axis=1) & np.isfinite(s).all(axis=1)
        return support(np.hstack([c, s])[known], np.hstack([c[first], s[second]]), n_neighbors=n_neighbors)

    def _code_of_cells(self, mdata: MuData, kind: Kind, modality: str) -> np.ndarray:
        """Code of a modality, one row per cell of the MuData; NaN where the cell lacks it."""
        rows = positions(mdata, modality)
        code = self.get_latent_representation(mdata, kind, modality)
        spread = np.full((mdata.n_obs, code.shape[1]), np.nan)
        spread[rows >= 0] = code[rows[rows >= 0]]
        return spread

    def write_latent(self, mdata: MuData | None = None, prefix: str = "Z", batch_size: int | None = None) -> MuData:
        """Write the latents into the MuData, where scanpy finds them.

        ``mdata.obsm["Z_c"]`` is the shared code of every cell, ``mdata.mod[m].obsm["Z_c"]`` and
        ``["Z_s"]`` the shared and the specific code of every cell that has modality m. Where the shared code has parts,
        ``"Z_t"`` and ``"Z_r"`` are its task-related part and the rest. What was computed, by what, is in
        ``mdata.uns["unbraid"]``.

        Parameters
        ----------
        mdata
            Cells; those of the set-up by default.
        prefix
            First part of the keys.
        batch_size
            Cells encoded at a time.

        Returns
        -------
        The same MuData.
        """
        if mdata is None:
            self._check_data()
            mdata = self.adata
        code = lambda kind, m: self.get_latent_representation(mdata, kind, m, batch_size=batch_size)
        shared = {"c": "shared", **{part[0]: part for part in self.module.shared_slices}}  # Z_t and Z_r
        latents = {(None, f"{prefix}_{letter}"): code(kind, None) for letter, kind in shared.items()}
        for m in self.modalities:
            if m in mdata.mod:
                for letter, kind in {**shared, "s": "specific"}.items():
                    if kind in self.module.kinds:
                        latents[m, f"{prefix}_{letter}"] = code(kind, m)
        for (m, key), values in latents.items():
            (mdata if m is None else mdata.mod[m]).obsm[key] = values
        parameters = self._init_arguments()
        mdata.uns.setdefault("unbraid", {})[prefix] = {
            "model": type(self).__name__,
            "version": version("unbraid"),
            "parameters": json.dumps(parameters, default=str),
            "setup": json.dumps(self.registry_["setup_args"], default=str),
            "seed": -1 if self.seed_ is None else self.seed_,
            "keys": sorted({key for _, key in latents}),
        }
        return mdata
