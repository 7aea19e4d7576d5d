"""Specific codes that tell a cell from all others in two random views of it, and stay independent of the shared one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import normalize

from unbraid.module._base import Stage, on_present_rows, total_loss
from unbraid.module._contrastive import ContrastiveModule
from unbraid.module._independence import standardized

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi.module.base import LossOutput

    from unbraid.module._contrastive import Codes


class ViewsModule(ContrastiveModule):
    r"""What the methods have in common whose specific codes :math:`s_m = h_m([x_m, c_m])` compare two views of a cell.

    Parameters
    ----------
    lambda_
        Weight of the penalty on what the specific code shares with its own shared one.
    normalize_codes
        Give both parts of :math:`u_m = [s_m, c_n]` length 1, so that neither swallows the other.
    """

    def __init__(self, *args: Any, lambda_: float, normalize_codes: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        if lambda_ < 0:
            raise ValueError(f"`lambda_` cannot be negative, got {lambda_}.")
        self.lambda_ = self.independence_weight = lambda_
        self.normalize_codes = normalize_codes

    def views_info_nce(self, specific: list[Codes], shared: list[Codes], batch: dict) -> torch.Tensor:
        """InfoNCE between two views of u_m = [s_m, code of the cell's other modalities], summed over m."""
        peers, total = self.peers(batch), 0.0
        unit = (lambda code: normalize(code, dim=1)) if self.normalize_codes else (lambda code: code)
        others, rows = zip(*(self.others(c, batch) for c in shared), strict=True)
        for m in self.modalities:
            u = [
                torch.cat([unit(s[m]), unit(other[m])], dim=1)[rows[0][m]]
                for s, other in zip(specific, others, strict=True)
            ]
            total = total + self.info_nce(*u, peers[rows[0][m]])
        return total

    def views_dependence(self, kind: str, specific: list[Codes], shared: list[Codes], batch: dict) -> torch.Tensor:
        """Half the sum over both views of the penalty ``kind``, see :meth:`view_dependence`."""
        return 0.5 * sum(self.view_dependence(kind, s, c, batch) for s, c in zip(specific, shared, strict=True))

    def view_dependence(self, kind: str, specific: Codes, shared: Codes, batch: dict) -> torch.Tensor:
        """Penalty ``kind`` in one view, summed over modalities; the orthogonality takes the codes as they are."""
        shared = shared if kind == "orthogonality" else self.penalised_shared(shared, batch)
        return self.dependence(kind, specific, shared, batch["mask"], batch)

    def penalised_shared(self, raw: Codes, batch: dict) -> Codes:
        """Shared codes as the penalties get them."""
        return self.conditions(raw)

    def penalised_codes(self, batch: dict) -> tuple[Codes, Codes, dict[str, torch.Tensor]]:
        """Codes of one random view; every specific code must be independent of its own shared one."""
        (view,) = self.views(batch)
        shared = self.shared_codes(view, batch)
        return self.specific_codes(view, shared, batch), self.penalised_shared(shared, batch), batch["mask"]


class JointModule(ViewsModule):
    """All encoders trained together in the one stage ``"joint"``; every term moves both codes.

    The loss is ``shared_factor`` times the shared objective, mean over both views, plus ``specific_factor``
    times the contrast of the specific codes plus ``independence_weight`` times their penalties.

    Parameters
    ----------
    specific_weight
        Weight of the specific codes' contrast, the papers' a; subclasses make the factors of it.
    """

    head_stage = "joint"
    shared_factor: float
    specific_factor: float

    def __init__(self, *args: Any, specific_weight: float, **options: Any) -> None:
        super().__init__(*args, **options)
        if not 0 <= specific_weight < float("inf"):
            raise ValueError(f"`specific_weight` must be a finite number of at least 0, got {specific_weight}.")
        if self.residuals is not None:
            raise ValueError(
                "`independence='residual'` regresses the modality on a frozen shared code, but here shared and specific "
                "codes are trained together. Choose another penalty such as 'orthogonality', or a model in two steps "
                "such as DisentangledSSL."
            )
        self.specific_weight = specific_weight

    @property
    def stages(self) -> list[Stage]:
        """All encoders at once."""
        if not self.n_specific:
            return [Stage("joint", self.shared_parts, **self.optimisation)]
        return [Stage("joint", self.shared_parts + self.specific_parts, inner=self.inner_loop, **self.optimisation)]

    def joint_loss(self, batch: dict) -> LossOutput:
        """The shared objective, the specific codes' contrast and their penalties on two random views."""
        views = self.views(batch, 2)
        shared = [self.shared_codes(view, batch) for view in views]
        terms = self.views_shared_terms(shared, batch)
        if self.n_specific:
            specific = [self.specific_codes(view, c, batch) for view, c in zip(views, shared, strict=True)]
            terms["specific_info_nce"] = (self.specific_factor, lambda: self.views_info_nce(specific, shared, batch))
            terms |= self.independence_terms(lambda kind: self.views_dependence(kind, specific, shared, batch))
        return total_loss(terms, len(batch["index"]))

    def views_shared_terms(self, shared: list[Codes], batch: dict) -> dict[str, tuple[float, Callable]]:
        """Terms of the shared objective, mean over both views."""
        first, second = (self.shared_terms(codes, batch) for codes in shared)
        mean = lambda name: lambda: 0.5 * (first[name][1]() + second[name][1]())
        return {name: (self.shared_factor * weight, mean(name)) for name, (weight, _) in first.items()}

    def penalised_shared(self, raw: Codes, batch: dict) -> Codes:
        """Shared codes, standardised over the batch: they move, so that no moments of all cells are known."""
        codes = {m: self.head(m, code) if self.head.sphere else code for m, code in raw.items()}
        return {m: on_present_rows(standardized, batch["mask"][m], code) for m, code in codes.items()}
