"""FactorCL: shared and unique information by lower and upper bounds, also given an augmented view."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn

from unbraid._messages import check_option, check_whole
from unbraid.data._cells import numbers_of
from unbraid.model.base import ContrastiveModel
from unbraid.model.base._latents import UNTRAINED
from unbraid.module import (
    ContrastiveModule,
    Independence,
    InnerLoop,
    Latents,
    Stage,
    independence_weights,
    on_present_rows,
    total_loss,
)
from unbraid.module._code_head import CodeHead
from unbraid.nn import MLP, PairCritic, PerModality
from unbraid.objectives import nce_bound

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from mudata import MuData
    from scvi.module.base import LossOutput

    from unbraid.module._contrastive import Augmentation, Codes, Encoders, IndependenceChoice

PRESETS: dict[str, dict[str, Any]] = {
    "official": {"heads": "term", "critic_n_hidden": 512, "lr": 1e-4, "inner_lr": 1e-4, "schedule": "constant"}
}


class Bound(NamedTuple):
    """A term of the loss: whose head it trains, whether it is to be lowered, whether it sees the augmented view too."""

    factor: Literal["shared", "specific"]
    upper: bool = False
    conditional: bool = False


# in the order in which the released code lists its heads
BOUNDS = {
    "shared": Bound("shared"),
    "specific": Bound("specific", upper=True),
    "views": Bound("specific"),
    "specific_conditional": Bound("specific", conditional=True),
    "shared_conditional": Bound("shared", upper=True, conditional=True),
}


class FactorCLModule(ContrastiveModule):
    """Backbones, heads and critics of FactorCL; see :class:`~unbraid.model.FactorCL`."""

    head_stage = ""  # codes stay as they are: standardised, a collapsed head would show its rounding errors

    def __init__(
        self,
        specs: Sequence[Any],
        n_shared: int,
        n_specific: int,
        *,
        supervision: Literal["self", "none"],
        heads: Literal["term", "factor"],
        n_embedding: int | None,
        lambda_: float,
        independence: IndependenceChoice,
        independence_options: dict[str, dict] | None,
        critic_n_hidden: int,
        critic_n_layers: int,
        temperature: float | None,
        **options: Any,
    ) -> None:
        check_option("`supervision`", supervision, ("self", "none"))
        check_option("`heads`", heads, ("term", "factor"))
        if lambda_ < 0:
            raise ValueError(f"`lambda_` cannot be negative, got {lambda_}.")
        weights = independence_weights(independence) if lambda_ else {}
        if "residual" in weights:
            raise ValueError("`independence='residual'` needs an encoder of its own; FactorCL has one for both codes.")
        n_embedding = n_shared + n_specific if n_embedding is None else n_embedding
        check_whole("n_embedding", n_embedding, 1)
        super().__init__(specs, n_embedding, 0, temperature=1.0 if temperature is None else temperature, **options)
        self.n_shared, self.n_specific = n_shared, n_specific
        self.bounded, self.supervision = temperature is not None, supervision
        self.upper_weights = {kind: lambda_ * weight for kind, weight in weights.items()}
        self.bounds = {
            name: bound
            for name, bound in BOUNDS.items()
            if (n_specific or bound.factor == "shared") and (supervision == "self" or not bound.conditional)
        }
        self.head_of = {name: name if heads == "term" else bound.factor for name, bound in self.bounds.items()}

        width = {"shared": n_shared, "specific": n_specific}
        self.factor_of = {self.head_of[name]: bound.factor for name, bound in self.bounds.items()}
        build = lambda factor: MLP(n_embedding, width[factor], n_hidden=n_embedding)
        self.heads = PerModality(
            {m: nn.ModuleDict({h: build(factor) for h, factor in self.factor_of.items()}) for m in self.modalities}
        )
        n_code = n_shared * list(self.factor_of.values()).count("shared")
        self.head = CodeHead(self.modalities, n_code, sphere=False)

        self.critics, self.penalties = nn.ModuleDict(), nn.ModuleDict()
        sizes = {"n_hidden": critic_n_hidden, "n_layers": critic_n_layers}
        penalty_options = {"nce_club": {"standardize": False, **sizes}} if "nce_club" in weights else {}
        penalty_options |= independence_options or {}
        for name, bound in self.bounds.items():
            n = width[bound.factor] * (1 + bound.conditional)
            if name == "views":
                others = [n if supervision == "self" else spec.n_features for spec in self.specs]
                self.critics[name] = nn.ModuleList(PairCritic(n, other, **sizes) for other in others)
            elif not bound.upper:
                self.critics[name] = nn.ModuleList(PairCritic(n, n, **sizes) for _ in self.pairs)
            elif weights:
                self.penalties[name] = nn.ModuleList(Independence(weights, n, n, penalty_options) for _ in self.pairs)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of modalities, in the order of their critics."""
        return list(combinations(self.modalities, 2))

    @property
    def stages(self) -> list[Stage]:
        """One: everything but the networks of the upper bounds, which the inner loop refits."""
        learns = any(penalty.learns for penalties in self.penalties.values() for penalty in penalties)
        inner = InnerLoop(("penalties",), **self.inner_options) if learns else None
        return [Stage("shared", ("shared_encoders", "heads", "critics"), inner=inner, **self.optimisation)]

    def shared_loss(self, batch: dict) -> LossOutput:
        """All bounds at once: lower ones raised, upper ones lowered."""
        codes, inputs = self.codes_of_views(batch)
        terms = {}
        for name, bound in self.bounds.items():
            if name == "views":
                terms["views_info_nce"] = -1.0, lambda: self.views_bound(codes, inputs, batch)
            elif not bound.upper:
                terms[f"{name}_info_nce"] = -1.0, lambda name=name: self.lower_bound(name, codes, batch)
            else:
                for kind, weight in self.upper_weights.items():
                    value = lambda name=name, kind=kind: self.upper_bound(name, kind, codes, batch)
                    terms[f"{name}_{kind}"] = weight, value
        return total_loss(terms, len(batch["index"]))

    def inner_loss(self, batch: dict, stage: str) -> torch.Tensor:
        """Loss of the networks of the upper bounds, on a random view of the batch."""
        if self._codes_of_batch is None or self._codes_of_batch[0] is not batch:
            with torch.no_grad():
                self._codes_of_batch = batch, self.codes_of_views(batch)[0]
        codes = self._codes_of_batch[1]
        losses = [
            penalty.learning_loss(*seen[:2], seen[2].groups)
            for name in self.penalties
            for penalty, seen in zip(self.penalties[name], self.seen(name, codes, batch), strict=True)
            if seen is not None
        ]
        return sum(losses, start=torch.zeros((), device=self.device))

    # ---- bounds ---------------------------------------------------------------------------

    def scores(self, critic: PairCritic, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Scores of all pairs of rows; with a temperature between -1 / temperature and 1 / temperature."""
        scores = critic.scores(a, b)
        return scores.tanh() / self.temperature if self.bounded else scores

    def seen(self, name: str, codes: list[dict[str, Codes]], batch: dict) -> list[tuple | None]:
        """What the critic of every pair of modalities sees, and peers, of the cells with both; None for too few.

        A conditional bound sees the codes of both views side by side.
        """
        mask, peers, result = batch["mask"], self.peers(batch), []
        views = [view[self.head_of[name]] for view in (codes if self.bounds[name].conditional else codes[:1])]
        for pair in self.pairs:
            rows = mask[pair[0]] & mask[pair[1]]
            a, b = (torch.cat([view[m][rows] for view in views], dim=1) for m in pair)
            result.append((a, b, peers[rows]) if len(a) > 1 else None)
        return result

    def lower_bound(self, name: str, codes: list[dict[str, Codes]], batch: dict) -> torch.Tensor:
        """InfoNCE bound between modalities, averaged over their pairs."""
        return self._mean(
            nce_bound(self.scores(critic, *seen[:2]), **vars(seen[2]))
            for critic, seen in zip(self.critics[name], self.seen(name, codes, batch), strict=True)
            if seen is not None
        )

    def upper_bound(self, name: str, kind: str, codes: list[dict[str, Codes]], batch: dict) -> torch.Tensor:
        """Upper bound, or another measure, of the dependence between modalities, averaged over their pairs."""
        return self._mean(
            penalty.penalties[kind](*seen[:2], seen[2].groups)
            for penalty, seen in zip(self.penalties[name], self.seen(name, codes, batch), strict=True)
            if seen is not None
        )

    def views_bound(self, codes: list[dict[str, Codes]], inputs: Codes, batch: dict) -> torch.Tensor:
        """InfoNCE bound between a cell and its augmented view, or the encoder's input; summed over modalities."""
        peers, total = self.peers(batch), torch.zeros((), device=self.device)
        code, *view = (features[self.head_of["views"]] for features in codes)
        for m, critic in zip(self.modalities, self.critics["views"], strict=True):
            rows = batch["mask"][m]
            if rows.sum() > 1:
                scores = self.scores(critic, code[m][rows], (view[0] if view else inputs)[m][rows])
                total = total + nce_bound(scores, **vars(peers[rows]))
        return total

    def _mean(self, values: Any) -> torch.Tensor:
        values = list(values)
        return sum(values) / len(values) if values else torch.zeros((), device=self.device)

    # ---- codes ----------------------------------------------------------------------------

    def codes_of_views(self, batch: dict) -> tuple[list[dict[str, Codes]], Codes]:
        """Heads' outputs, per head and modality, of every view that the loss compares; and the first one's inputs."""
        if self.supervision == "none":  # an augmentation, if there is one, disturbs the only view
            views = self.views(batch)
        else:
            views = [self.inputs(batch), *self.views(batch)]
        return [self.features(self.embeddings(view, batch), batch) for view in views], views[0]

    def embeddings(self, inputs: Codes, batch: dict) -> Codes:
        """What the backbones give, per modality."""
        return super().shared_codes(inputs, batch)

    def features(self, embeddings: Codes, batch: dict) -> dict[str, Codes]:
        """Outputs of all heads, per head and modality."""
        apply = lambda head, m: on_present_rows(self.heads[m][head], batch["mask"][m], embeddings[m])
        return {head: {m: apply(head, m) for m in self.modalities} for head in self.factor_of}

    def side_by_side(self, features: dict[str, Codes], *factors: str) -> Codes:
        """Outputs of all heads of a factor, or of several."""
        heads = [head for head, factor in self.factor_of.items() if factor in factors]
        return {m: torch.cat([features[head][m] for head in heads], dim=1) for m in self.modalities}

    def shared_codes(self, inputs: Codes, batch: dict) -> Codes:
        """Outputs of the heads of what is shared, side by side."""
        return self.side_by_side(self.features(self.embeddings(inputs, batch), batch), "shared")

    def encode(self, batch: dict, *, give_mean: bool = True) -> Latents:
        """Shared and specific codes as the heads give them.

        What the backbones give is ``params["emb"]``, all that the heads give ``params["proj"]``.
        """
        mask, embeddings = batch["mask"], self.embeddings(self.inputs(batch), batch)
        features = self.features(embeddings, batch)
        shared = self.side_by_side(features, "shared")
        specific = self.side_by_side(features, "specific") if self.n_specific else {}
        params = {
            "unnormalized_shared": shared,
            "emb": embeddings,
            "proj": self.side_by_side(features, "shared", "specific"),
        }
        return Latents(mask, shared, specific, self.head.joint(shared, mask), params)


class FactorCL(ContrastiveModel):
    r"""Shared and unique information, bounded from below and above (Liang et al., NeurIPS 2023).

    As in [1]_, there is one backbone :math:`h_m` per modality, with heads on it. With :math:`x'` an augmented view of
    the cell, the loss is

    .. math::
        L = \underbrace{- I_\mathrm{NCE}(x_1; x_2) + I_\mathrm{CLUB}(x_1; x_2 \mid x_1', x_2')}_{\text{shared}}
          + \underbrace{I_\mathrm{CLUB}(x_1; x_2) - I_\mathrm{NCE}(x_1; x_1') - I_\mathrm{NCE}(x_2; x_2')
          - I_\mathrm{NCE}(x_1; x_2 \mid x_1', x_2')}_{\text{unique}} ,

    in which the conditional bounds are those between :math:`[h_1(x_1), h_1(x_1')]` and :math:`[h_2(x_2), h_2(x_2')]`.
    Each bound has a critic of its own, a network on pairs of codes: InfoNCE for the lower
    bounds, and NCE-CLUB for the upper ones, whose critics an inner loop refits by InfoNCE. With more
    than two modalities bounds between modalities are averaged over their pairs, those within are summed.

    On the linear simulation of DisentangledSSL :class:`LinearSplit` is better in every measure, and the specific code
    reads what is shared better than what is specific; on three CITE-seq sets its codes cover more and leak less.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared, n_specific
        Widths of every head of the shared and of the unique bounds. ``n_specific=0`` leaves the latter out.
    encoders
        Backbones: ``"mlp"``, a :class:`torch.nn.Module` that gives ``(n, n_embedding)``, or one of them per modality.
    preset
        ``"official"``: a head per bound, critics of width 512 and Adam at a constant 1e-4, as the released code, whose
        batches have 32 to 128 samples. Options given by name win.
    supervision
        ``"self"``: with augmented views, as above. ``"none"``: task-agnostic, without them, as [2]_ trains it. With
        :math:`x' = x` the conditional bounds have nothing left to measure, :math:`I(x_1; x_2 \mid x_1, x_2) = 0`, and
        drop out; a view of itself would be found by any code, so :math:`I_\mathrm{NCE}(x_m; x_m')` becomes the bound
        between the unique head's code and the encoder's input :math:`x_m`.
    heads
        ``"factor"``, the default: one head for what is shared and one for what is unique, as the paper writes it.
        ``"term"``: every bound has a head of its own per modality, five in all, as in the released code.
    n_embedding
        Width of the backbones' output; ``n_shared + n_specific`` by default. In the paper all widths are equal.
    lambda_
        Weight of both upper bounds, 1 in the paper.
    independence
        The upper bound: ``"nce_club"``, or another measure of dependence, or weights by name; not ``"residual"``.
    critic_n_hidden, critic_n_layers
        Size of the critics of InfoNCE and NCE-CLUB: 128 and 3 by default. They score all pairs of a batch, in chunks
        that bound the memory; their cost grows with the square of the batch and, but for the first layer, of
        the width.
    temperature
        None: scores are unbounded, as published. A number :math:`\tau` bounds those of the lower bounds,
        :math:`\tanh(f) / \tau`.
    augmentation
        Random views: ``"auto"`` thins counts and puts noise and dropout on the rest; a callable, or one per modality.
        None leaves views as they are.
    n_inner_steps, inner_lr
        Of the refits of the upper bounds' critics.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all contrastive models: see :class:`~unbraid.model.base.ContrastiveModel`.

    Notes
    -----
    The shared code of a modality are its heads of the shared bounds side by side (two with ``heads="term"``), the
    specific code those of the unique bounds (three), as in the released code. The joint code is the mean
    of the shared ones over the modalities that a cell has; but a critic takes any coordinates and scales, so the
    codes of two modalities need not resemble each other, and a cell's joint code depends on which modalities it
    has. :meth:`get_features` gives what the papers probe.

    Known weaknesses. With ``heads="term"`` an upper bound can be met by its own head alone, by a constant, and asks
    little of the codes that the lower bounds fill: specific codes tell much of what is shared.
    Critics without a temperature are unbounded. An upper bound holds for the optimal critic only, and one step per
    batch may not keep it there: watch ``shared/inner_loss`` in ``history``. All is learned in one stage, ``"shared"``.

    References
    ----------
    .. [1] Liang et al. Factorized contrastive learning: going beyond multi-view redundancy. NeurIPS 2023.
    .. [2] IndiSeek learns information-guided disentangled representations. 2025. Section 5, on training without
       augmentation.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.FactorCL.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.FactorCL(mdata, n_shared=16, n_specific=16, critic_n_hidden=64)
    >>> model.train()
    >>> model.get_features("proj").shape
    (500, 160)
    """

    _module_cls = FactorCLModule
    _without = (
        "shared_objective", "shared_options", "kappa", "beta", "center_alignment", "learn_temperature", "specific_encoders"
    )  # fmt: skip
    _because = "its bounds have critics of their own."
    _default_batch_size = 128

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 32,
        n_specific: int = 32,
        encoders: Encoders = "mlp",
        *,
        preset: Literal["official"] | None = None,
        supervision: Literal["self", "none"] = "self",
        heads: Literal["term", "factor"] | None = None,
        n_embedding: int | None = None,
        lambda_: float = 1.0,
        independence: IndependenceChoice = "nce_club",
        independence_options: dict[str, dict] | None = None,
        critic_n_hidden: int | None = None,
        critic_n_layers: int = 3,
        temperature: float | None = None,
        augmentation: Augmentation = "auto",
        n_inner_steps: int = 1,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        if preset is not None:
            check_option("`preset`", preset, (*PRESETS, None))
        given = {"critic_n_hidden": critic_n_hidden, "heads": heads}
        given = {**options, **{name: value for name, value in given.items() if value is not None}}
        self.module = self._build_module(
            n_shared,
            n_specific,
            encoders=encoders,
            supervision=supervision,
            n_embedding=n_embedding,
            lambda_=lambda_,
            independence=independence,
            independence_options=independence_options,
            critic_n_layers=critic_n_layers,
            temperature=temperature,
            augmentation=augmentation if supervision == "self" or augmentation != "auto" else None,
            n_inner_steps=n_inner_steps,
            **{"heads": "factor", "critic_n_hidden": 128, **PRESETS.get(preset, {}), **given},
        )
        self._finish(locals())

    def get_features(
        self,
        kind: Literal["emb", "proj"] = "emb",
        mdata: MuData | None = None,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Features of cells as the papers probe them, the modalities side by side.

        Parameters
        ----------
        kind
            ``"emb"``: the backbones' outputs (FactorCL-emb); ``"proj"``: those of all heads (FactorCL-proj).
        mdata
            Cells; those of the set-up by default.
        indices
            Cells, by number, by name or as a mask; all by default.

        Returns
        -------
        float32 array ``(n_obs, d)``, one row per cell; NaN in the columns of a modality that the cell lacks.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If ``kind`` is another.
        """
        self._check_if_trained(warn=False, message=UNTRAINED)
        check_option("`kind`", kind, ("emb", "proj"))
        mdata = self._validate_anndata(mdata)
        rows = numbers_of(indices, mdata, "indices")
        values = []
        for batch, latents in self._encode(mdata, rows, None):
            parts = [x.masked_fill(~batch["mask"][m][:, None], torch.nan) for m, x in latents.params[kind].items()]
            values.append(torch.cat(parts, dim=1))
        return torch.cat(values).float().cpu().numpy()
