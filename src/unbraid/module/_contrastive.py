"""Torch side of the contrastive family: encoders whose codes agree between the modalities of a cell."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from unbraid._messages import check_option
from unbraid.module._base import (
    InnerLoop,
    Latents,
    Peers,
    SplitModule,
    Stage,
    centered,
    on_present_rows,
    over_pairs,
    total_loss,
)
from unbraid.module._code_head import CodeHead
from unbraid.module._independence import Independence, IndependenceChoice, independence_weights
from unbraid.nn import (
    MLP,
    BinomialThinning,
    CrossFittedResidual,
    ModalitySpec,
    NoiseDropout,
    PerModality,
    sample_von_mises_fisher,
)
from unbraid.objectives import (
    alignment,
    barlow_twins,
    canonical_correlation,
    explained_variance,
    info_nce,
    vicreg,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from scvi.module.base import LossOutput

Encoders = Literal["mlp"] | nn.Module | dict[str, "Literal['mlp'] | nn.Module"] | None
Augmentation = Literal["auto"] | nn.Module | dict[str, nn.Module | None] | None
SharedObjective = Literal["info_nce", "vmf", "deep_cca", "vicreg", "barlow_twins"]
Codes = dict[str, torch.Tensor]

CORRELATION_OBJECTIVES: dict[str, Callable] = {
    "deep_cca": canonical_correlation,
    "vicreg": vicreg,
    "barlow_twins": barlow_twins,
}


class ContrastiveModule(SplitModule):
    """Shared encoders trained to agree between the modalities of a cell, and specific ones beside them.

    With codes :math:`c_m = f_m(x_m)` and M modalities, the shared objective is the average over the
    pairs of modalities of a loss such as the symmetric InfoNCE, each over the cells that have both.
    Methods with specific codes :math:`s_m` subclass this.

    Parameters
    ----------
    specs
        The modalities.
    n_shared, n_specific
        Dimensions of the codes; ``n_specific=0`` builds no specific encoders.
    encoders, specific_encoders
        ``"mlp"``, a network, or one of them per modality. A shared encoder maps
        ``(n, n_features)`` to ``(n, n_shared)``, a specific one the same input, with the shared code
        beside it if the method says so, to ``(n, n_specific)``; encoded covariates, if any, come last.
    n_hidden, n_layers, norm, dropout, weight_std
        Of the multilayer perceptrons; see :class:`~unbraid.nn.MLP`.
    shared_objective
        ``"info_nce"``; ``"vmf"``, the same on samples of von Mises-Fisher posteriors minus ``beta`` times
        their alignment; ``"deep_cca"``, ``"vicreg"`` or ``"barlow_twins"``, whose codes are not directions.
    shared_options
        Of :func:`~unbraid.objectives.canonical_correlation` and so on.
    temperature, learn_temperature
        Of InfoNCE, and whether it is learned, starting there.
    kappa
        Concentration of the posteriors of ``"vmf"``; None makes codes deterministic.
    beta, center_alignment
        Weight of the alignment, and whether it is centred; see :func:`~unbraid.objectives.alignment`.
    independence, independence_options
        Penalties on the specific codes, by name; see :class:`~unbraid.model.base.ContrastiveModel`.
    n_inner_steps, inner_lr, fresh_inner_batches
        Of the networks that some penalties refit.
    negatives
        ``"batch"`` takes negatives from the anchor's own batch only, and correlations within batches; ``"all"``
        takes them from everywhere. Replicates, where they are known, are never negatives.
    positives
        ``"own"``, or all ``"replicates"`` of a cell; see :func:`~unbraid.objectives.info_nce`.
    augmentation
        Random view of a cell: ``"auto"`` thins counts and puts noise and dropout on the rest.
    n_categories
        Categories of the batch and of every categorical covariate, if encoders get them.
    n_continuous
        Number of continuous covariates, if encoders get them.
    n_batches
        Number of batches that decoders are told of, 1 for none.
    lr, weight_decay, schedule
        Of every stage.
    """

    specific_sees_shared = True
    independence_weight = 1.0
    head_stage = "shared"  # after which the shared encoders are final

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
        shared_objective: SharedObjective = "info_nce",
        shared_options: dict[str, Any] | None = None,
        temperature: float = 0.07,
        learn_temperature: bool = False,
        kappa: float | None = 1000.0,
        beta: float = 1.0,
        center_alignment: bool = False,
        independence: IndependenceChoice = None,
        independence_options: dict[str, dict] | None = None,
        n_inner_steps: int = 3,
        inner_lr: float = 1e-3,
        fresh_inner_batches: bool = False,
        negatives: Literal["all", "batch"] = "all",
        positives: Literal["own", "replicates"] = "own",
        augmentation: Augmentation = None,
        n_categories: Sequence[int] = (),
        n_continuous: int = 0,
        n_batches: int = 1,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine"] = "cosine",
    ) -> None:
        super().__init__(specs)
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        if kappa is not None and kappa <= 0:
            raise ValueError(f"`kappa` must be positive, or None for deterministic codes; got {kappa}.")
        if beta < 0:
            raise ValueError(f"`beta` cannot be negative, got {beta}.")
        check_option("`negatives`", negatives, ("all", "batch"))
        check_option("`positives`", positives, ("own", "replicates"))
        check_option("`shared_objective`", shared_objective, ("info_nce", "vmf", *CORRELATION_OBJECTIVES))
        sphere = shared_objective not in CORRELATION_OBJECTIVES
        if sphere and shared_options:
            raise ValueError(f"`shared_options` belong to {', '.join(CORRELATION_OBJECTIVES)}.")
        self.n_shared, self.n_specific = n_shared, n_specific
        self.shared_objective, self.shared_options = shared_objective, dict(shared_options or {})
        self.temperature, self.negatives, self.positives = temperature, negatives, positives
        self.kappa, self.beta = (kappa, beta) if shared_objective == "vmf" else (None, 0.0)
        self.center_alignment = center_alignment
        self.n_categories, self.n_continuous, self.n_batches = tuple(n_categories), n_continuous, n_batches
        self.optimisation = {"lr": lr, "weight_decay": weight_decay, "schedule": schedule}
        self.network_options = {
            "n_hidden": n_hidden, "n_layers": n_layers, "norm": norm, "dropout": dropout, "weight_std": weight_std
        }  # fmt: skip
        self.inner_options = {"n_steps": n_inner_steps, "lr": inner_lr, "fresh_batches": fresh_inner_batches}

        self.shared_encoders = self._encoders(encoders, 0, n_shared)
        self.head = CodeHead(self.modalities, n_shared, sphere=sphere, canonical=shared_objective == "deep_cca")
        if learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())
        weights = independence_weights(independence) if n_specific else {}
        self.residuals = None
        if n_specific:
            self.specific_encoders = self._encoders(
                specific_encoders,
                n_shared if self.specific_sees_shared and "residual" not in weights else 0,
                n_specific,
            )
            self.independence = PerModality(
                {m: Independence(weights, n_specific, n_shared, independence_options) for m in self.modalities}
            )
            if "residual" in weights:
                self.residuals = PerModality({s.name: CrossFittedResidual(n_shared, s.n_features) for s in self.specs})
        self.augmentations = _augmentations(augmentation, self.specs)
        self._codes_of_batch: tuple[dict, Any] | None = None

    def _encoders(self, choice: Encoders, n_extra: int, n_out: int) -> PerModality:
        networks = {}
        for spec in self.specs:
            network = choice.get(spec.name, "mlp") if isinstance(choice, dict) else choice or "mlp"
            if network == "mlp":
                network = MLP(spec.n_features + n_extra + self.n_covariates, n_out, **self.network_options)
            elif not isinstance(network, nn.Module):
                raise ValueError(f"Encoder of modality {spec.name!r} is 'mlp' or a torch Module, got {network!r}.")
            networks[spec.name] = network
        return PerModality(networks)

    # ---- stages ---------------------------------------------------------------------------

    @property
    def stages(self) -> list[Stage]:
        """The shared encoders; then, with the shared code frozen, the specific ones."""
        stages = [Stage("shared", self.shared_parts, **self.optimisation)]
        if self.n_specific:
            if self.residuals is not None:
                stages.append(Stage("residual", ("residuals",), **{**self.optimisation, "weight_decay": 0.0}))
            stages.append(Stage("specific", self.specific_parts, inner=self.inner_loop, **self.optimisation))
        return stages

    @property
    def shared_parts(self) -> tuple[str, ...]:
        """What the shared objective trains."""
        return ("shared_encoders", "log_temperature") if hasattr(self, "log_temperature") else ("shared_encoders",)

    @property
    def specific_parts(self) -> tuple[str, ...]:
        """What the objective of the specific codes trains."""
        return ("specific_encoders",)

    @property
    def inner_loop(self) -> InnerLoop | None:
        """The loop that refits the penalties' networks, if they have any and count."""
        learns = self.independence_weight > 0 and any(network.learns for network in self.independence.networks)
        return InnerLoop(("independence",), **self.inner_options) if learns else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Shared codes, and specific ones if the method has them."""
        return ("shared", "specific") if self.n_specific else ("shared",)

    def loss(self, batch: dict, stage: str) -> LossOutput:
        """Loss of a stage."""
        self._codes_of_batch = None  # encoders move after this
        return getattr(self, f"{stage}_loss")(batch)

    def shared_loss(self, batch: dict) -> LossOutput:
        """The shared objective on a random view of the cells."""
        (view,) = self.views(batch)
        return total_loss(self.shared_terms(self.shared_codes(view, batch), batch), len(batch["index"]))

    def specific_loss(self, batch: dict) -> LossOutput:
        """Loss of the specific codes, with the shared ones frozen."""
        raise NotImplementedError

    def residual_loss(self, batch: dict) -> LossOutput:
        """Regression of every modality on its own shared code; see :class:`~unbraid.nn.CrossFittedResidual`."""
        (view,) = self.views(batch)
        condition = self.conditions(self.shared_codes(view, batch))

        def regression() -> torch.Tensor:
            rows = batch["mask"]
            return sum(
                self.residuals[m].loss(view[m][rows[m]], condition[m][rows[m]], self.units(batch)[rows[m]])
                for m in self.modalities
            )

        return total_loss({"regression": (1.0, regression)}, len(batch["index"]))

    def end_stage(self, stage: str, batches: Iterable[dict]) -> None:
        """Fit the head of the shared codes once the shared encoders are trained."""
        if stage != self.head_stage or (self.head.sphere and stage == self.stages[-1].name):
            return  # on the sphere the head has moments only, for the stages that follow
        raw, mask, groups = [], [], []
        for batch in batches:
            raw.append(self.shared_codes(self.inputs(batch), batch))
            mask.append(batch["mask"])
            groups.append(self.groups(batch))
        whole = lambda parts: {m: torch.cat([part[m] for part in parts]) for m in self.modalities}
        self.head.fit(whole(raw), whole(mask), None if self.negatives == "all" else torch.cat(groups))

    # ---- codes ----------------------------------------------------------------------------

    def views(self, batch: dict, n_views: int = 1) -> list[Codes]:
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

    def shared_codes(self, inputs: Codes, batch: dict) -> Codes:
        """What the shared encoders give, per modality, ``(n, n_shared)``."""
        covariates = self.covariates(batch)
        return {
            m: on_present_rows(self.shared_encoders[m], batch["mask"][m], beside(inputs[m], covariates))
            for m in self.modalities
        }

    def specific_codes(self, inputs: Codes, shared: Codes, batch: dict) -> Codes:
        """Specific codes per modality, ``(n, n_specific)``.

        The encoder sees the modality; beside its own shared code, where the method says so; or what
        the shared code does not explain of it. Cells in training are compared with regressions that
        did not see them.
        """
        covariates, mask = self.covariates(batch), batch["mask"]
        if self.residuals is not None:
            index = self.units(batch) if self.specific_encoders.training else None
            conditions = self.conditions(shared)
            seen = {m: (on_present_rows(self.residuals[m], mask[m], inputs[m], conditions[m], index),) for m in inputs}
        elif self.specific_sees_shared:
            seen = {m: (inputs[m], shared[m]) for m in self.modalities}
        else:
            seen = {m: (inputs[m],) for m in self.modalities}
        return {
            m: on_present_rows(self.specific_encoders[m], mask[m], beside(*seen[m], covariates))
            for m in self.modalities
        }

    def conditions(self, raw: Codes) -> Codes:
        """Shared codes as the networks of the specific stage get them: standardised on the training cells."""
        return {m: self.head.standardized(m, self.head(m, code)) for m, code in raw.items()}

    def others(self, codes: Codes, batch: dict) -> tuple[Codes, dict[str, torch.Tensor]]:
        """Per modality m, the mean code of the cell's other modalities, and the cells that have m and another one."""
        mask, means, rows = batch["mask"], {}, {}
        for m in self.modalities:
            others = [n for n in self.modalities if n != m]
            n_others = sum(mask[n].int() for n in others)
            rows[m] = mask[m] & (n_others > 0)
            # codes of absent modalities are not zero once they are standardised
            total = sum(codes[n] * mask[n].unsqueeze(1) for n in others)
            means[m] = total / n_others.clamp(min=1).unsqueeze(1)
        return means, rows

    def posterior_sample(self, mean_direction: torch.Tensor) -> torch.Tensor:
        """Z ~ vMF(mu, kappa); a deterministic encoder has only its mean."""
        return mean_direction if self.kappa is None else sample_von_mises_fisher(mean_direction, self.kappa)

    def encode(self, batch: dict, *, give_mean: bool = True) -> Latents:
        """Shared codes after the head, specific codes as the network gives them, joint code of the cell.

        What the shared encoders give is ``params["unnormalized_shared"]``.
        """
        inputs, mask = self.inputs(batch), batch["mask"]
        raw = self.shared_codes(inputs, batch)
        shared = {m: on_present_rows(lambda code, m=m: self.head(m, code), mask[m], code) for m, code in raw.items()}
        if not give_mean:
            shared = {m: on_present_rows(self.posterior_sample, mask[m], code) for m, code in shared.items()}
        specific = self.specific_codes(inputs, raw, batch) if self.n_specific else {}
        return Latents(mask, shared, specific, self.head.joint(shared, mask), {"unnormalized_shared": raw})

    # ---- objectives of the shared code ------------------------------------------------------

    def shared_terms(self, raw: Codes, batch: dict) -> dict[str, tuple[float, Callable]]:
        """Terms of the shared objective for what the encoders gave."""
        if self.shared_objective in CORRELATION_OBJECTIVES:
            function = CORRELATION_OBJECTIVES[self.shared_objective]
            within = lambda a, b, g: function(centered(a, g), centered(b, g), **self.shared_options)
            pairs = lambda: self.over_pairs(within, raw, batch)
            # correlations do not see where a batch lies, so that nothing would take it out of the codes
            offset = float(self.n_shared) if self.negatives == "batch" else 0.0
            return {
                self.shared_objective: (1.0, pairs),
                "batch_offset": (offset, lambda: self.batch_offset(raw, batch)),
            }
        mean = {m: self.head(m, code) for m, code in raw.items()}
        sample = {m: self.posterior_sample(mu) for m, mu in mean.items()}
        return {
            "info_nce": (1.0, lambda: self.pairwise_info_nce(sample, batch)),
            "alignment": (-self.beta, lambda: self.pairwise_alignment(mean, batch)),
        }

    @property
    def present_temperature(self) -> float | torch.Tensor:
        """The temperature, as far as it is learned; never below 0.01, as in CLIP."""
        learned = getattr(self, "log_temperature", None)
        return self.temperature if learned is None else learned.exp().clamp(min=0.01)

    def batch_offset(self, codes: Mapping[str, torch.Tensor], batch: dict) -> torch.Tensor:
        """Share of the variance of the codes that lies between batches, mean over dimensions and modalities."""
        groups, shares = self.groups(batch), []
        for m, code in codes.items():
            rows = batch["mask"][m]
            x = code[rows]
            if len(x) > 1:
                shares.append(explained_variance(x, x - centered(x, groups[rows])))
        return sum(shares) / len(shares) if shares else sum(code.sum() for code in codes.values()) * 0.0

    def over_pairs(self, function: Callable, codes: Mapping[str, torch.Tensor], batch: dict) -> torch.Tensor:
        """:func:`over_pairs` with the batch's masks and groups."""
        return over_pairs(function, codes, batch["mask"], self.groups(batch))

    def info_nce(self, a: torch.Tensor, b: torch.Tensor, peers: Peers) -> torch.Tensor:
        """InfoNCE of two codes at the module's temperature; every row finds its own partner."""
        return info_nce(a, b, temperature=self.present_temperature, **vars(peers))

    def pairwise_info_nce(self, codes: Mapping[str, torch.Tensor], batch: dict) -> torch.Tensor:
        """InfoNCE between the modalities, averaged over their pairs."""
        return over_pairs(self.shared_info_nce, codes, batch["mask"], self.peers(batch))

    def shared_info_nce(self, a: torch.Tensor, b: torch.Tensor, peers: Peers) -> torch.Tensor:
        """InfoNCE of the shared codes of two modalities, whose positives may be all replicates."""
        if self.positives == "own" or peers.replicates is None:
            return self.info_nce(a, b, peers)
        return info_nce(a, b, temperature=self.present_temperature, positives="replicates", **vars(peers))

    def pairwise_alignment(self, codes: Mapping[str, torch.Tensor], batch: dict) -> torch.Tensor:
        """Mean cosine between the modalities, averaged over their pairs."""
        return self.over_pairs(lambda a, b, g: alignment(a, b, center=self.center_alignment), codes, batch)

    # ---- independence of the specific code ----------------------------------------------------

    def independence_terms(self, penalty: Callable[[str], torch.Tensor]) -> dict[str, tuple[float, Callable]]:
        """One term per chosen penalty, with the method's weight times its own; ``penalty(kind)`` computes it."""
        weights = self.independence.networks[0].weights
        return {kind: (self.independence_weight * w, partial(penalty, kind)) for kind, w in weights.items()}

    def dependence(
        self, kind: str, specific: Codes, shared: Codes, rows: Mapping[str, torch.Tensor], batch: dict
    ) -> torch.Tensor:
        """Penalty ``kind`` between specific and shared codes, summed over modalities, each on its ``rows``."""
        groups = self.groups(batch)
        return sum(
            (
                self.independence[m].penalties[kind](
                    specific[m][rows[m]], shared[m][rows[m]], None if groups is None else groups[rows[m]]
                )
                for m in self.modalities
                if rows[m].sum() > 1
            ),
            start=sum(code.sum() for code in specific.values()) * 0.0,
        )

    def penalised_codes(self, batch: dict) -> tuple[Codes, Codes, dict[str, torch.Tensor]]:
        """Specific codes, the shared codes that they must be independent of, and on which cells."""
        raise NotImplementedError

    def inner_loss(self, batch: dict, stage: str) -> torch.Tensor:
        """Loss of the networks that the penalties consult, summed over modalities."""
        if self._codes_of_batch is None or self._codes_of_batch[0] is not batch:
            with torch.no_grad():
                self._codes_of_batch = batch, self.penalised_codes(batch)
        specific, shared, rows = self._codes_of_batch[1]
        groups = self.groups(batch)
        return sum(
            (
                self.independence[m].learning_loss(
                    specific[m][rows[m]], shared[m][rows[m]], None if groups is None else groups[rows[m]]
                )
                for m in self.modalities
                if rows[m].sum() > 1
            ),
            start=torch.zeros((), device=self.device),
        )


def beside(*parts: torch.Tensor) -> torch.Tensor:
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
