"""Unbraid: the linear split, corrected by networks where held-out cells say that this is better."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from unbraid.module._base import InnerLoop, Latents, Peers, Stage, centered, on_present_rows, over_pairs, total_loss
from unbraid.module._canonical import CanonicalCandidate, CrossedJudgement
from unbraid.module._independence import PENALTIES, independence_weights
from unbraid.module._linear import LinearModule, common_rows, generalized_cca
from unbraid.module._sizes import PredictsSizes
from unbraid.module._specific_stage import SpecificStage
from unbraid.nn import CrossFittedResidual, PerModality
from unbraid.objectives import canonical_correlation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scvi.module.base import LossOutput
    from torch import Tensor

    from unbraid.module._independence import IndependenceChoice
    from unbraid.nn import ModalitySpec

# candidates for the shared code, in the order in which they are trained
CANDIDATES = ("linear", "shared", "scratch")
MAX_SHARED = 100
N_STEPS = 600  # of every stage, about
FEW_CELLS = 2_000  # training cells; below, networks are regularised more strongly
MAX_HEAD_OBS = 10_000  # cells for the canonical axes after every epoch
# in information over the linear split: as a share, and in standard errors of the difference on the same cells, of
# which networks that learned from few must gain more, since they seldom gain at all
LEAST_GAIN, LEAST_ERRORS, LEAST_ERRORS_OF_FEW = 0.002, 2.0, 3.0


class UnbraidModule(SpecificStage, PredictsSizes, LinearModule):
    """Shared codes of the best candidate, specific codes of the residual; see :class:`~unbraid.model.Unbraid`.

    Parameters
    ----------
    specs
        The modalities.
    center_batches
        Whether every batch is centred by itself, and pairs are compared within batches.
    n_shared, n_specific
        Dimensions to keep; None decides.
    condition
        What the specific code is to be free of: the modality's ``"own"`` shared code or the cell's ``"joint"`` one.
    independence
        Penalties on the specific code.
    n_hidden, n_layers, dropout
        Of all networks.
    lr
        Of the shared and of the specific networks.
    """

    def __init__(
        self,
        specs: Sequence[ModalitySpec],
        *,
        center_batches: bool,
        n_shared: int | None,
        n_specific: int | None,
        condition: Literal["own", "joint"],
        independence: IndependenceChoice,
        n_hidden: int,
        n_layers: int,
        dropout: float,
        lr: float,
    ) -> None:
        super().__init__(specs, center_batches=center_batches)
        self.n_kept, self.n_axes, self.condition = n_shared, n_specific, condition
        self.independence_weights = independence_weights(independence)
        if "residual" in self.independence_weights:
            raise ValueError("`independence`: specific codes are made of a residual already; leave 'residual' out.")
        self.network_options = {"n_hidden": n_hidden, "n_layers": n_layers, "dropout": dropout}
        self.lr = lr
        self.register_buffer("few", torch.zeros((), dtype=torch.bool))
        self.register_buffer("chosen", torch.zeros((), dtype=torch.long))
        self.register_buffer("seed", torch.zeros((), dtype=torch.long))
        # built when their sizes are known: candidates by `start`, the rest when the shared code is final
        self.linear, self.shared, self.scratch = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        n_pairs = len(specs) * (len(specs) - 1) // 2
        # beside the candidates, whose weights go back to those of their best epoch
        self.judgements = nn.ModuleDict({name: CrossedJudgement(n_pairs) for name in CANDIDATES[1:]})
        self.residuals = PerModality({})
        self._prepare_specific()
        self.build_size_predictors(
            {spec.name: self.input_layers[spec.name].typical_size for spec in specs if spec.is_count}
        )
        self.judges = True  # whether there are enough validation cells to choose by

    # ---- stages ---------------------------------------------------------------------------

    @property
    def stages(self) -> list[Stage]:
        """Both neural candidates for the shared code, the residual of the best, the specific codes."""
        network = {"weight_decay": 1e-2 if self.few else 1e-4, "early_stopping": "best"}
        common = {"schedule": "cosine", "gradient_clip": 5.0, "n_steps": N_STEPS}
        learns = any(PENALTIES[kind].learns for kind in self.independence_weights)
        inner = InnerLoop(("independence",), 3, 1e-3, fresh_batches=True) if learns else None
        return [
            Stage("shared", ("shared",), lr=self.lr, **network, **common),
            Stage("scratch", ("scratch",), lr=self.lr, **network, **common),
            Stage("residual", ("residuals",), lr=1e-3, **common),
            Stage("specific", ("specific",), lr=1e-3, inner=inner, early_stopping="never", **common),
        ]

    def loss(self, batch: dict, stage: str) -> LossOutput:
        """Loss of a stage."""
        return getattr(self, f"{stage}_loss")(batch)

    def shared_loss(self, batch: dict) -> LossOutput:
        """Eckart-Young loss of the linear map with a network beside it."""
        return self._correlation_loss(batch, self.shared, kind="eckart_young")

    def scratch_loss(self, batch: dict) -> LossOutput:
        """Squared canonical correlations of networks that begin at random."""
        return self._correlation_loss(batch, self.scratch, kind="trace_squared", ridge=0.01)

    def _correlation_loss(self, batch: dict, candidate: CanonicalCandidate, **options: Any) -> LossOutput:
        outputs = candidate.outputs(self.components(batch), batch["mask"])
        within = lambda a, b, g: canonical_correlation(centered(a, g), centered(b, g), **options)
        pairs = lambda: over_pairs(within, outputs, batch["mask"], self.groups(batch))
        return total_loss({options["kind"]: (1.0, pairs)}, len(batch["index"]))

    def residual_loss(self, batch: dict) -> LossOutput:
        """Regression of what the linear regression leaves on the shared code."""
        found = self._present(batch)

        def regression() -> Tensor:
            return sum(
                self.residuals[m].loss(self._linear_residual(m, x, c), c, self.units(batch)[batch["mask"][m]])
                for m, (x, c) in found.items()
            )

        return total_loss({"regression": (1.0, regression)}, len(batch["index"]))

    @torch.no_grad()
    def _residuals(self, batch: dict, index: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
        """Per modality, on the cells that have it: residual and shared code."""
        rows = batch["mask"]
        return {
            m: (self.residual(m, x, c, None if index is None else index[rows[m]]), c)
            for m, (x, c) in self._present(batch).items()
        }

    @torch.no_grad()
    def _present(self, batch: dict) -> dict[str, tuple[Tensor, Tensor]]:
        """Per modality, on the cells that have it: components, and the shared code to be free of."""
        components, mask = self.components(batch), batch["mask"]
        conditions = self.conditions(*self.shared_codes(components, mask), mask)
        return {m: (components[m][mask[m]], conditions[m][mask[m]]) for m in self.modalities}

    def _groups_of(self, batch: dict, m: str) -> Tensor | None:
        """Groups of the cells that have a modality."""
        groups = self.groups(batch)
        return None if groups is None else groups[batch["mask"][m]]

    # ---- between the stages -----------------------------------------------------------------

    def start(self, fit: Any, train: np.ndarray, seed: int) -> None:
        """Build the candidates around the maps of the linear split.

        Parameters
        ----------
        fit
            A :class:`~unbraid.train.LinearFit`, whose maps this module has.
        train
            Numbers of those of its cells that candidates may begin with; the others are held out to judge them.
        seed
            Of the networks' first weights.
        """
        self.seed.fill_(seed)
        sizes = {m: x.shape[1] for m, x in fit.components.items()}
        inside = {m: np.isin(rows, train) for m, rows in fit.rows.items()}
        self.few.fill_(max(int(chosen.sum()) for chosen in inside.values()) < FEW_CELLS)
        selection = fit.selection
        shape = len(fit.batch), selection.ridge, len(selection.correlations)
        canonical = generalized_cca(
            {m: x[inside[m]] for m, x in fit.components.items()},
            {m: rows[inside[m]] for m, rows in fit.rows.items()},
            *shape,
        )
        self._whole_maps = generalized_cca(fit.components, fit.rows, *shape)
        n_codes = {"linear": len(selection.correlations)} | dict.fromkeys(CANDIDATES[1:], _n_codes(int(fit.kept.sum())))
        self._build_candidates(sizes, n_codes)
        for m, x in fit.components.items():
            variance, vectors = torch.linalg.eigh(torch.as_tensor(x.T @ x / len(x)))
            mean = variance.mean() if variance.mean() > 1e-12 else torch.ones_like(variance[0])  # nothing varies
            whitener = (vectors / (variance.clamp(min=0) + selection.ridge * mean).sqrt()).float()
            columns = torch.as_tensor(canonical[m], dtype=torch.float32)
            for name in CANDIDATES:
                start = columns if name == "linear" else columns[:, torch.as_tensor(fit.kept)]
                getattr(self, name).encoders[m].start(start, whitener, float(mean.sqrt()))
        correlations = torch.as_tensor(selection.correlations).clamp(0, 1).float()
        self.linear.head.correlation.copy_(correlations)
        self.linear.correlation.copy_(correlations)
        self.linear.threshold.fill_(selection.threshold)
        pairs = [len(common_rows(a, b, len(fit.batch))[0]) for a, b in combinations(fit.rows.values(), 2)]
        self.linear.n_cells.fill_(sum(pairs) / len(pairs))  # cross-validation holds every cell out once
        self.linear.kept.copy_(torch.as_tensor(fit.kept))
        self.chosen.zero_()

    def validate_stage(self, stage: str, train: Iterable[dict], validation: Iterable[dict]) -> dict[str, float]:
        """Fit a candidate's canonical axes, and its held-out information, of which the loss is the negative."""
        if not self.judges:
            return {}
        if stage == "specific":
            return self._validate_specific(train, validation)
        if stage not in CANDIDATES:
            return {}
        candidate = getattr(self, stage)
        if stage != "linear":
            outputs, mask, peers = self._gathered(train, candidate.outputs, MAX_HEAD_OBS)
            candidate.head.fit(outputs, mask, peers.groups)
        codes = self._gathered(
            validation,
            lambda components, mask: {
                m: on_present_rows(partial(candidate.all_dimensions, m), mask[m], components[m]) for m in components
            },
        )
        candidate.judge(*codes, n_kept=self.n_kept)
        if stage in self.judgements:
            self.judgements[stage].see(candidate)
        return {"information": float(candidate.information), "loss": -float(candidate.information)}

    def forget_judgements(self) -> None:
        """What another training found of its epochs says nothing of those of this one."""
        for judgement in self.judgements.values():
            judgement.best.fill_(-torch.inf)
            judgement.terms.fill_(torch.nan)

    def judge_linear(self, validation: Iterable[dict]) -> None:
        """Held-out information of the linear candidate, by the same cells as that of the others.

        It is then given the maps of all cells of the linear fit: a closed form needs none to stop by.
        """
        linear = self.linear
        # cross-validation on all training cells knows rank and correlations better
        known = {name: getattr(linear, name).clone() for name in ("correlation", "kept", "threshold", "n_cells")}
        self.validate_stage("linear", [], validation)
        for name, value in known.items():
            getattr(linear, name).copy_(value)
        for m, maps in self._whole_maps.items():
            linear.encoders[m].linear_start.copy_(torch.as_tensor(maps))

    def end_stage(self, stage: str, batches: Iterable[dict]) -> None:
        """Choose the shared code and regress it out; then choose the axes of the residual; then standardise."""
        if stage in self.judgements:
            self.judgements[stage].settle(getattr(self, stage))
        if stage == "scratch":
            self._choose(batches)
        elif stage == "residual":
            self._find_axes(batches)
        elif stage == "specific":
            self._settle_specific(batches)

    def _choose(self, batches: Iterable[dict]) -> None:
        self._known = None  # of an interrupted training
        self.chosen.zero_()
        for k, name in enumerate(CANDIDATES[1:], 1):
            candidate = getattr(self, name)
            # where nothing is shared, the best of several empty candidates is no gain
            correlates = bool((candidate.correlation > candidate.threshold).any())
            gain, error = candidate.gain_over(self.linear)
            errors = LEAST_ERRORS_OF_FEW if self.few else LEAST_ERRORS
            least = max(LEAST_GAIN * float(self.linear.information), errors * error, 0.0)
            best = max(float(self.candidate.information), 0.0)
            if correlates and gain > least and float(candidate.information) > best * (1 + LEAST_GAIN):
                self.chosen.fill_(k)
        parts, sized = [], []
        for batch in batches:
            parts.append(self._present(batch))
            sized.append(self.known_sizes(batch))
        self.fit_sizes(sized)
        for m in self.modalities:
            x, c = (torch.cat([part[m][k] for part in parts]).cpu().double() for k in (0, 1))
            self.maps[m].set(explained=torch.linalg.lstsq(c, x).solution.numpy())
        self._build_regressors({m: self.maps[m].components.shape[1] for m in self.modalities})

    # ---- networks whose sizes the data decide ---------------------------------------------------

    def _build_candidates(self, sizes: Mapping[str, int], n_codes: Mapping[str, int]) -> None:
        options = dict(self.network_options)
        options["dropout"] = max(options["dropout"], 0.3 if self.few else 0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.seed))
            for name in CANDIDATES:
                terms = {"linear": name != "scratch", "network": name != "linear"}
                setattr(self, name, CanonicalCandidate(sizes, n_codes[name], **terms, **options).to(self.device))

    def _build_regressors(self, sizes: Mapping[str, int]) -> None:
        n_condition = int(self.candidate.kept.sum())
        if self.residuals.names and self.residuals.networks[0].n_condition == n_condition:
            return  # a second training goes on
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.seed) + 1)
            self.residuals = PerModality({m: CrossFittedResidual(n_condition, p) for m, p in sizes.items()})
        self.residuals.to(self.device)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Build what a saved module has, with the sizes that it has there."""
        own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        names = list(enumerate(self.modalities))
        if "linear.kept" in own:
            sizes = {m: len(own[f"linear.encoders.networks.{k}.linear_start"]) for k, m in names}
            self.few.copy_(own["few"])
            self._build_candidates(sizes, {c: len(own[f"{c}.kept"]) for c in CANDIDATES})
            self.chosen.copy_(own["chosen"])
            self.candidate.kept.copy_(own[f"{CANDIDATES[int(self.chosen)]}.kept"])
        if "residuals.networks.0.unexplained" in own:
            self._build_regressors({m: len(own[f"residuals.networks.{k}.unexplained"]) for k, m in names})
        if "specific.networks.0.axes" in own:
            axes = {m: own[f"specific.networks.{k}.axes"] for k, m in names}
            self._build_specific(axes, dict.fromkeys(self.modalities, 1.0))
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ---- codes ------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether there are candidates."""
        return isinstance(self.linear, CanonicalCandidate)

    @property
    def candidate(self) -> CanonicalCandidate:
        """The chosen shared encoders."""
        return getattr(self, CANDIDATES[int(self.chosen)])

    @property
    def n_shared(self) -> int:
        """Dimensions of the shared code."""
        return int(self.candidate.kept.sum())

    @property
    def n_specific(self) -> int:
        """Most dimensions of a specific code."""
        return max(network.axes.shape[1] for network in self.specific.networks)

    def groups(self, batch: dict) -> Tensor | None:
        """Which cells may be compared; None: all."""
        return batch["batch"] if self.center_batches else None

    def components(self, batch: dict) -> dict[str, Tensor]:
        """Centred components of every modality, ``(n, p)``; computed unless the batch brings them along."""
        if "components" in batch:
            return batch["components"]
        inputs, mask, codes = self.inputs(batch), batch["mask"], self.batch_codes(batch)
        return {m: on_present_rows(self.maps[m].reduce, mask[m], inputs[m], codes) for m in self.modalities}

    def shared_codes(
        self, components: Mapping[str, Tensor], mask: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Shared code per modality, and of the cell."""
        code = self.candidate.code
        shared = {m: on_present_rows(partial(code, m), mask[m], components[m]) for m in self.modalities}
        return shared, self.candidate.joint(shared, mask)

    def sizes(self, batch: dict) -> dict[str, Tensor]:
        """Sizes of counted modalities, as their input layers take them, ``(n,)``; of no meaning for cells without."""
        if "sizes" in batch:
            return batch["sizes"]
        given = batch["size_factor"]
        return {m: self.input_layers[m].sizes(batch["x"][m], given.get(m)) for m in self.counted}

    def codes_from_others(self, batch: dict) -> dict[str, tuple[Tensor, Tensor]]:
        """Per counted modality, the joint code of all others."""
        mask, found = batch["mask"], {}
        shared, _ = self.shared_codes(self.components(batch), mask)
        for m in self.counted:
            others = {n: z for n, z in shared.items() if n != m}
            found[m] = self.candidate.joint(others, mask), torch.stack([mask[n] for n in others]).any(0)
        return found

    @property
    def retrieval_correlation(self) -> Tensor:
        r"""Held-out correlations less :math:`1 / \sqrt n`, what chance gives, ``(n_codes,)``."""
        candidate = self.candidate
        return (candidate.correlation - candidate.n_cells.clamp(min=1).rsqrt()).clamp(0, 0.999)

    def pair_codes(self, batch: dict) -> dict[str, Tensor]:
        """Canonical codes with the dimensions that were not kept, per modality, ``(n, n_codes)``."""
        components, mask = self.components(batch), batch["mask"]
        code = self.candidate.all_dimensions
        return {m: on_present_rows(partial(code, m), mask[m], components[m]) for m in self.modalities}

    def decode(self, m: str, condition: Tensor, specific: Tensor | None = None, batch: Tensor | None = None) -> Tensor:
        """Transformed values ``(n, n_features)`` of a modality from its codes.

        Parameters
        ----------
        m
            The modality.
        condition
            The shared code that the specific one is free of, ``(n, n_shared)``.
        specific
            Specific code ``(n, k)``; None for its mean, 0.
        batch
            Batch of every cell, ``(n,)``, whose mean is put back; None for the mean of all.
        """
        network, maps = self.specific[m], self.maps[m]
        if specific is None:
            specific = condition.new_zeros(len(condition), network.axes.shape[1])
        residual = self.residuals[m].restore(network.restore(specific, condition), condition)
        mean = maps.mean[:1] if batch is None else maps.batch_mean(batch)
        return (residual + condition @ maps.explained) @ maps.components.T + mean

    def expected_condition(self, m: str, shared: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        r"""Condition of a modality given the codes of others: :math:`\sqrt\rho` times their joint code, or that code."""
        joint = self.candidate.joint(shared, mask)
        return joint if self.condition == "joint" else self.candidate.kept_correlation.sqrt() * joint

    def conditions(
        self, shared: Mapping[str, Tensor], joint: Tensor, mask: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Per modality, the shared code that its specific code is to be free of."""
        return shared if self.condition == "own" else dict.fromkeys(self.modalities, joint)

    def residual(self, m: str, components: Tensor, condition: Tensor, index: Tensor | None = None) -> Tensor:
        """What neither the linear nor the cross-fitted regression on the shared code explains."""
        return self.residuals[m](self._linear_residual(m, components, condition), condition, index)

    def _linear_residual(self, m: str, components: Tensor, condition: Tensor) -> Tensor:
        return components - condition @ self.maps[m].explained

    def encode(self, batch: dict, *, give_mean: bool = True) -> Latents:
        """Shared, specific and joint codes."""
        components, mask = self.components(batch), batch["mask"]
        shared, joint = self.shared_codes(components, mask)
        conditions = self.conditions(shared, joint, mask)
        code = lambda m: lambda x, c: self.specific[m](self.residual(m, x, c), c)
        specific = {m: on_present_rows(code(m), mask[m], components[m], conditions[m]) for m in self.modalities}
        return Latents(mask, shared, specific, joint)

    def _gathered(self, batches: Iterable[dict], codes: Any, max_obs: int | None = None):
        """Codes, masks and peers of many batches as one."""
        values, masks, groups, replicates, n = [], [], [], [], 0
        for batch in batches:
            values.append(codes(self.components(batch), batch["mask"]))
            masks.append(batch["mask"])
            groups.append(self.groups(batch))
            replicates.append(batch.get("group"))
            n += len(batch["index"])
            if max_obs is not None and n >= max_obs:
                break
        whole = lambda parts: {m: torch.cat([part[m] for part in parts]) for m in self.modalities}
        peers = Peers(*(None if parts[0] is None else torch.cat(parts) for parts in (groups, replicates)))
        return whole(values), whole(masks), peers


def _n_codes(rank: int) -> int:
    """More than the linear rank, so that shared dimensions which are not linear find room."""
    return max(rank, min(MAX_SHARED, rank + rank // 2 + 4))
