"""Torch side of the contrastive family: encoders whose codes agree between the modalities of a cell."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.functional import normalize, one_hot

from unbraid.module._base import Latents, SplitModule, Stage, on_present_rows, total_loss
from unbraid.nn import MLP, BinomialThinning, ModalitySpec, NoiseDropout, PerModality
from unbraid.objectives import alignment, info_nce

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scvi.module.base import LossOutput

Encoders = Literal["mlp"] | nn.Module | dict[str, "Literal['mlp'] | nn.Module"] | None
Augmentation = Literal["auto"] | nn.Module | dict[str, nn.Module | None] | None


class ContrastiveModule(SplitModule):
    """Shared encoders trained by InfoNCE between the modalities of a cell.

    With codes :math:`c_m = f_m(x_m)` and M modalities, the shared objective is the average over the
    pairs of modalities of the symmetric InfoNCE loss, each over the cells that have both. Methods
    with specific codes :math:`s_m = h_m([x_m, c_m])` subclass this.

    Parameters
    ----------
    specs
        The modalities.
    n_shared, n_specific
        Dimensions of the codes; ``n_specific=0`` builds no specific encoders.
    encoders, specific_encoders
        ``"mlp"``, a network, or one of them per modality. A shared encoder maps
        ``(n, n_features)`` to ``(n, n_shared)``, a specific one ``(n, n_features + n_shared)`` to
        ``(n, n_specific)``; encoded covariates, if any, come last.
    n_hidden, n_layers, norm, dropout, weight_std
        Of the multilayer perceptrons; see :class:`~unbraid.nn.MLP`.
    temperature
        Of InfoNCE.
    negatives
        ``"batch"`` takes negatives from the anchor's own batch only, ``"all"`` from everywhere.
    augmentation
        Random view of a cell: ``"auto"`` thins counts and puts noise and dropout on the rest.
    n_categories
        Categories of the batch and of every categorical covariate, if encoders get them.
    n_continuous
        Number of continuous covariates, if encoders get them.
    lr, weight_decay, schedule
        Of every stage.
    """

    def __init__(
        self,
        specs: Sequence[ModalitySpec],
        n_shared: int,
        n_specific: int = 0,
        *,
        encoders: Encoders = "mlp",
        specific_encoders: Encoders = "mlp",
        n_hidden: int = 512,
        n_layers: int = 2,
        norm: Literal["layer"] | None = None,
        dropout: float = 0.0,
        weight_std: float | None = None,
        temperature: float = 0.07,
        negatives: Literal["all", "batch"] = "all",
        augmentation: Augmentation = None,
        n_categories: Sequence[int] = (),
        n_continuous: int = 0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine"] = "cosine",
    ) -> None:
        super().__init__(specs)
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        if negatives not in ("all", "batch"):
            raise ValueError(f"`negatives` is 'all' or 'batch', got {negatives!r}.")
        self.n_shared, self.n_specific = n_shared, n_specific
        self.temperature, self.negatives = temperature, negatives
        self.n_categories, self.n_continuous = tuple(n_categories), n_continuous
        self.optimisation = {"lr": lr, "weight_decay": weight_decay, "schedule": schedule}
        n_covariates = sum(self.n_categories) + n_continuous

        def build(choice: Encoders, n_extra: int, n_out: int) -> PerModality:
            networks = {}
            for spec in self.specs:
                network = choice.get(spec.name, "mlp") if isinstance(choice, dict) else choice or "mlp"
                if network == "mlp":
                    network = MLP(
                        spec.n_features + n_extra + n_covariates,
                        n_out,
                        n_hidden=n_hidden,
                        n_layers=n_layers,
                        norm=norm,
                        dropout=dropout,
                        weight_std=weight_std,
                    )
                elif not isinstance(network, nn.Module):
                    raise ValueError(f"Encoder of modality {spec.name!r} is 'mlp' or a torch Module, got {network!r}.")
                networks[spec.name] = network
            return PerModality(networks)

        self.shared_encoders = build(encoders, 0, n_shared)
        if n_specific:
            self.specific_encoders = build(specific_encoders, n_shared, n_specific)
        self.augmentations = _augmentations(augmentation, self.specs)

    @property
    def stages(self) -> list[Stage]:
        """One stage: the shared encoders."""
        return [Stage("shared", ("shared_encoders",), **self.optimisation)]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Shared codes, and specific ones if the method has them."""
        return ("shared", "specific") if self.n_specific else ("shared",)

    # ---- codes ----------------------------------------------------------------------------

    def covariates(self, batch: dict) -> torch.Tensor:
        """Covariates that the encoders get, shape ``(n, n_covariates)``."""
        codes = torch.cat([batch["batch"].unsqueeze(1), batch["categorical"]], dim=1)
        parts = [one_hot(codes[:, k], n) for k, n in enumerate(self.n_categories)]
        parts += [batch["continuous"]] if self.n_continuous else []
        return torch.cat([part.float() for part in parts], dim=1) if parts else batch["continuous"][:, :0]

    def views(self, batch: dict, n_views: int = 1) -> list[dict[str, torch.Tensor]]:
        """Random views of the encoders' inputs; every view is an augmentation of the one before."""
        counts, sizes = dict(batch["x"]), dict(batch["size_factor"])
        view = self.inputs(batch)
        views = []
        for _ in range(n_views):
            view = dict(view)
            for m in self.modalities:
                if (augment := self.augmentations[m]) is None:
                    continue
                mask = batch["mask"][m]
                if getattr(augment, "on_counts", False):
                    counts[m] = on_present_rows(augment, mask, counts[m])
                    if m in sizes:
                        sizes[m] = sizes[m] * augment.keep
                    view[m] = on_present_rows(self.input_layers[m], mask, counts[m], sizes.get(m))
                else:
                    view[m] = on_present_rows(augment, mask, view[m])
            views.append(view)
        return views

    def shared_codes(self, inputs: dict, batch: dict) -> dict[str, torch.Tensor]:
        """Unnormalised shared codes per modality, ``(n, n_shared)``."""
        covariates = self.covariates(batch)
        return {
            m: on_present_rows(self.shared_encoders[m], batch["mask"][m], _beside(inputs[m], covariates))
            for m in self.modalities
        }

    def specific_codes(self, inputs: dict, shared: dict, batch: dict) -> dict[str, torch.Tensor]:
        """Specific codes per modality from the modality and its own shared code, ``(n, n_specific)``."""
        covariates = self.covariates(batch)
        return {
            m: on_present_rows(self.specific_encoders[m], batch["mask"][m], _beside(inputs[m], shared[m], covariates))
            for m in self.modalities
        }

    def posterior_sample(self, mean_direction: torch.Tensor) -> torch.Tensor:
        """Sample of the posterior of a shared code; a deterministic encoder has only its mean."""
        return mean_direction

    def encode(self, batch: dict, *, give_mean: bool = True) -> Latents:
        """Shared codes on the unit sphere, specific codes as the network gives them.

        The joint code is the renormalised mean over the modalities that the cell has. The
        unnormalised shared codes are ``params["unnormalized_shared"]``.
        """
        inputs, mask = self.inputs(batch), batch["mask"]
        raw = self.shared_codes(inputs, batch)
        shared = {m: normalize(code, dim=1) for m, code in raw.items()}
        if not give_mean:
            shared = {m: on_present_rows(self.posterior_sample, mask[m], code) for m, code in shared.items()}
        specific = self.specific_codes(inputs, raw, batch) if self.n_specific else {}
        joint = normalize(sum(shared.values()), dim=1)
        return Latents(mask, shared, specific, joint, {"unnormalized_shared": raw})

    # ---- objectives -----------------------------------------------------------------------

    def groups(self, batch: dict) -> torch.Tensor | None:
        """Which cells may be negatives of each other; None: all."""
        return batch["batch"] if self.negatives == "batch" else None

    def over_pairs(self, function: Callable, codes: Mapping[str, torch.Tensor], batch: dict) -> torch.Tensor:
        """Average of ``function(codes_m, codes_n, groups)`` over the pairs of modalities, on the cells with both."""
        groups, mask, values = self.groups(batch), batch["mask"], []
        for m, n in combinations(codes, 2):
            both = mask[m] & mask[n]
            if both.all():
                values.append(function(codes[m], codes[n], groups))
            elif both.sum() > 1:
                values.append(function(codes[m][both], codes[n][both], None if groups is None else groups[both]))
        return sum(values) / len(values) if values else sum(code.sum() for code in codes.values()) * 0.0

    def pairwise_info_nce(self, codes: Mapping[str, torch.Tensor], batch: dict) -> torch.Tensor:
        """InfoNCE between the modalities, averaged over their pairs."""
        return self.over_pairs(lambda a, b, g: info_nce(a, b, temperature=self.temperature, groups=g), codes, batch)

    def pairwise_alignment(self, codes: Mapping[str, torch.Tensor], batch: dict) -> torch.Tensor:
        """Mean cosine between the modalities, averaged over their pairs."""
        return self.over_pairs(lambda a, b, g: alignment(a, b), codes, batch)

    def loss(self, batch: dict, stage: str) -> LossOutput:
        """InfoNCE between the modalities' codes of (views of) the cells."""
        (view,) = self.views(batch)
        codes = self.shared_codes(view, batch)
        return total_loss({"info_nce": (1.0, lambda: self.pairwise_info_nce(codes, batch))}, len(batch["index"]))


def _beside(*parts: torch.Tensor) -> torch.Tensor:
    """Columns side by side; copies nothing when only one part has any."""
    parts = [part for part in parts if part.shape[1]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _augmentations(choice: Augmentation, specs: Sequence[ModalitySpec]) -> dict[str, nn.Module | None]:
    def one(spec: ModalitySpec) -> nn.Module | None:
        augment = choice.get(spec.name) if isinstance(choice, dict) else choice
        if augment == "auto":
            return BinomialThinning() if spec.is_count else NoiseDropout()
        if augment is not None and not callable(augment):
            raise ValueError(f"Augmentation of modality {spec.name!r} is 'auto', None or a callable, got {augment!r}.")
        return augment

    return {spec.name: one(spec) for spec in specs}
