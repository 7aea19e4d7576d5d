"""The last stage of Unbraid: codes of what a modality's shared code does not explain."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device

from unbraid.module._base import total_loss
from unbraid.module._independence import Independence
from unbraid.module._linear import one_of_each
from unbraid.module._specific import ResidualCode, kernel_r2, residual_axes
from unbraid.nn import PerModality

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scvi.module.base import LossOutput
    from torch import Tensor

# cells, about, that say after every epoch what a specific code loses and leaks
LEAST_LEAK_OBS, MAX_LEAK_OBS = 20, 1_000
MAX_EARNING_OBS = 20_000  # cells that say which features a regression predicts


class SpecificStage:
    """Specific codes of :class:`UnbraidModule`, which knows the shared codes and the residuals."""

    def _prepare_specific(self) -> None:
        """No codes yet: their sizes are known when the shared code is final."""
        self.specific, self.independence = PerModality({}), PerModality({})
        self.best_specific = PerModality({})  # as they were at the epoch that held-out cells prefer
        self.register_buffer("held_out_loss", torch.full((len(self.modalities),), torch.inf))
        self._known: dict[str, Any] | None = None  # residuals and shared codes of the training cells
        self._judged: tuple[dict, dict] | None = None  # and of those that judge specific codes

    def specific_loss(self, batch: dict) -> LossOutput:
        """Error of the residual decoded from the specific code, and what this code tells of the shared one."""
        codes = self._specific_codes(batch)

        def reconstruction() -> Tensor:
            total = 0.0
            for m, (residual, c, z) in codes.items():
                network = self.specific[m]
                error = (residual - network.restore(z, c)).square().sum() / max(residual.numel(), 1)
                total = total + error / network.scale.square()
            return total

        def dependence(kind: str) -> Tensor:
            return sum(
                self.independence[m].penalties[kind](z, c, self._groups_of(batch, m)) for m, (_, c, z) in codes.items()
            )

        terms = {"reconstruction": (1.0, reconstruction)}
        terms |= {kind: (weight, partial(dependence, kind)) for kind, weight in self.independence_weights.items()}
        return total_loss(terms, len(batch["index"]))

    def inner_loss(self, batch: dict, stage: str) -> Tensor:
        """Loss of the penalties' networks."""
        with torch.no_grad():
            codes = self._specific_codes(batch)
        return sum(
            self.independence[m].learning_loss(z, c, self._groups_of(batch, m)) for m, (_, c, z) in codes.items()
        )

    def _specific_codes(self, batch: dict) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Per modality, on the cells that have it: residual, shared code, specific code."""
        rows = batch["mask"]
        known = self._known if self.specific.training else None
        if known is None:
            found = self._residuals(batch, self.units(batch) if self.specific.training else None)
        else:  # training cells: neither the shared code nor the regression moves any more
            if known["place"].device != batch["index"].device:
                known = self._known = move_data_to_device(known, batch["index"].device)
            place = known["place"][batch["index"]]
            found = {m: (r[place][rows[m]], c[place][rows[m]]) for m, (r, c) in known["codes"].items()}
        return {m: (r, c, self.specific[m](r, c)) for m, (r, c) in found.items()}

    def _find_axes(self, batches: Iterable[dict]) -> None:
        """Axes of the cross-fitted residuals of all training cells, which are then kept at hand."""
        found, index, units = {m: [] for m in self.modalities}, [], []
        masks = {m: [] for m in self.modalities}
        for batch in batches:
            index.append(batch["index"])
            units.append(self.units(batch))
            for m, pair in self._present(batch).items():
                found[m].append(pair)
                masks[m].append(batch["mask"][m])
        axes, scales, codes = {}, {}, {}
        for m, pairs in found.items():
            x, c = (torch.cat(part) for part in zip(*pairs, strict=True))
            mask, variance = torch.cat(masks[m]), float(x.square().mean()) if len(x) else 0.0
            unit = torch.cat(units)[mask]
            few = slice(MAX_EARNING_OBS)
            self.residuals[m].earn(self._linear_residual(m, x[few], c[few]), c[few], unit[few])
            parts = zip(*(values.split(MAX_EARNING_OBS) for values in (x, c, unit)), strict=True)
            r = torch.cat([self.residual(m, *part) for part in parts])
            apart = one_of_each(unit.cpu().numpy())
            chosen = residual_axes(
                r.cpu().double().numpy(), c.cpu().double().numpy(), variance, self.n_axes, independent=apart
            )
            axes[m] = torch.as_tensor(chosen.copy(), dtype=torch.float32)
            scales[m] = max(float(r.square().mean().sqrt()), 1e-6)
            codes[m] = tuple(x.new_zeros(len(mask), x.shape[1]).masked_scatter_(mask[:, None], x) for x in (r, c))
        self._build_specific(axes, scales)
        index = torch.cat(index)
        place = index.new_zeros(int(index.max()) + 1)
        place[index] = torch.arange(len(index), device=index.device)
        self._known = {"place": place, "codes": codes}
        self._judged = None
        self.held_out_loss.fill_(torch.inf)

    def _build_specific(self, axes: Mapping[str, Tensor], scales: Mapping[str, float]) -> None:
        n_condition = int(self.candidate.kept.sum())
        shapes = {m: (p.shape, n_condition) for m, p in axes.items()}
        if self.specific.names and shapes == {m: self.specific[m].shape for m in axes}:
            return  # a second training goes on
        options = {**self.network_options, "n_hidden": max(self.network_options["n_hidden"] // 2, 1), "dropout": 0.0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.seed) + 2)
            self.specific = PerModality(
                {m: ResidualCode(p, scales[m], n_condition, **options) for m, p in axes.items()}
            )
            self.independence = PerModality(
                {m: Independence(self.independence_weights, p.shape[1], n_condition) for m, p in axes.items()}
            )
        self.best_specific = deepcopy(self.specific)
        for part in (self.specific, self.best_specific, self.independence):
            part.to(self.device).eval()

    def _validate_specific(self, train: Iterable[dict], validation: Iterable[dict]) -> dict[str, float]:
        """Of every modality, keep the specific code that loses and leaks least on held-out cells.

        What is lost is the share of the residual that its code does not give back, what leaks the R2 of a kernel
        regression of the shared code, fitted to training cells.
        """
        if self._judged is None:  # neither the shared code nor the regression moves during the stage
            self._judged = self._first_residuals(train, seen=True), self._first_residuals(validation, seen=False)
        found = {}
        for k, m in enumerate(self.modalities):
            network, (r, c), (r_seen, c_seen) = self.specific[m], self._judged[1][m], self._judged[0][m]
            if min(len(r), len(r_seen)) < LEAST_LEAK_OBS:
                continue  # the last epoch it is
            with torch.no_grad():
                z, z_seen = network(r, c), network(r_seen, c_seen)
                lost = float((r - network.restore(z, c)).square().sum() / r.square().sum().clamp(min=1e-12))
            arrays = (x.cpu().double().numpy() for x in (z_seen, c_seen, z, c))
            leak = max(kernel_r2(*arrays, n_components=200), 0.0)
            found |= {f"lost_{m}": lost, f"leak_{m}": leak}
            if lost + leak < self.held_out_loss[k]:
                self.held_out_loss[k] = lost + leak
                self.best_specific[m].load_state_dict(network.state_dict())
        return found

    def _first_residuals(self, batches: Iterable[dict], *, seen: bool) -> dict[str, tuple[Tensor, Tensor]]:
        """Per modality, residual and shared code of some cells: of those trained on as training has them."""
        parts, n = [], 0
        for batch in batches:
            parts.append(self._residuals(batch, self.units(batch) if seen else None))
            n += len(batch["index"])
            if n >= MAX_LEAK_OBS:
                break
        return {m: tuple(torch.cat([part[m][j] for part in parts]) for j in range(2)) for m in self.modalities}

    def _settle_specific(self, batches: Iterable[dict]) -> None:
        """Go back to the epoch that held-out cells prefer, and standardise the codes."""
        for k, m in enumerate(self.modalities):
            if torch.isfinite(self.held_out_loss[k]):
                self.specific[m].load_state_dict(self.best_specific[m].state_dict())
        codes = [{m: z for m, (_, _, z) in self._specific_codes(batch).items()} for batch in batches]
        for m in self.modalities:
            self.specific[m].standardize(torch.cat([part[m] for part in codes]))
        self._known = self._judged = None
