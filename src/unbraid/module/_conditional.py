"""Specific codes learned beside a frozen shared one: independent of it, and complete with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from unbraid.module._base import total_loss
from unbraid.module._contrastive import ContrastiveModule
from unbraid.nn import MLP, PerModality
from unbraid.objectives import info_nce

if TYPE_CHECKING:
    from scvi.module.base import LossOutput

    from unbraid.module._contrastive import Codes


class ConditionalModule(ContrastiveModule):
    """Specific codes :math:`z_m = h_m(x_m)` beside a frozen shared code: a penalty plus lambda times what is captured.

    Subclasses say by :meth:`information` what ``lambda_`` weighs.

    Parameters
    ----------
    lambda_
        Weight of the information.
    penalise_other
        The specific code must be independent of the shared code of the cell's *other* modalities;
        otherwise of its own modality's.
    complete_other
        The specific code completes the shared code of the *other* modalities; otherwise its own one's.
    """

    specific_sees_shared = False
    information_name: str
    information_factor = 1.0

    def __init__(self, *args: Any, lambda_: float, penalise_other: bool, complete_other: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        if lambda_ < 0:
            raise ValueError(f"`lambda_` cannot be negative, got {lambda_}.")
        self.lambda_ = lambda_
        self.penalise_other, self.complete_other = penalise_other, complete_other

    def specific_loss(self, batch: dict) -> LossOutput:
        """The penalty plus lambda times the information, summed over modalities."""
        (view,) = self.views(batch)
        with torch.no_grad():
            shared = self.shared_codes(view, batch)
            own = self.conditions(shared)
            other, paired = self.others(own, batch)
        specific = self.specific_codes(view, shared, batch)
        penalised, rows = (other, paired) if self.penalise_other else (own, batch["mask"])
        completed, complete_rows = (other, paired) if self.complete_other else (own, batch["mask"])

        def information() -> torch.Tensor:
            total = sum(code.sum() for code in specific.values()) * 0.0
            for m in self.modalities:
                chosen = complete_rows[m]
                if chosen.any():
                    code = torch.cat([specific[m][chosen], completed[m][chosen]], dim=1)
                    total = total + self.information(m, code, batch, chosen)
            return total

        terms = {
            **self.independence_terms(lambda kind: self.dependence(kind, specific, penalised, rows, batch)),
            self.information_name: (self.lambda_ * self.information_factor, information),
        }
        return total_loss(terms, len(batch["index"]))

    def information(self, m: str, code: torch.Tensor, batch: dict, rows: torch.Tensor) -> torch.Tensor:
        """What is lost of modality ``m`` on its ``rows``, given ``[z_m, c]`` of these rows; to be minimised."""
        raise NotImplementedError

    def penalised_codes(self, batch: dict) -> tuple[Codes, Codes, dict[str, torch.Tensor]]:
        """Codes of a random view, and which shared code the specific one must be independent of."""
        (view,) = self.views(batch)
        shared = self.shared_codes(view, batch)
        own = self.conditions(shared)
        penalised, rows = self.others(own, batch) if self.penalise_other else (own, batch["mask"])
        return self.specific_codes(view, shared, batch), penalised, rows


class ConditionalContrast(ConditionalModule):
    """What is captured is an InfoNCE bound of I([z, c]; x), with a separable critic.

    The papers leave the critic open. Here it is the cosine of a projection of ``[z_m, c]`` and one of ``x_m``, both
    trained with the specific encoder.

    Parameters
    ----------
    critic_temperature
        Of the InfoNCE.
    n_critic
        Dimensions of the projections.
    """

    information_name = "specific_info_nce"
    information_factor = 0.5  # as the paper counts lambda

    def __init__(self, *args: Any, critic_temperature: float, n_critic: int = 32, **options: Any) -> None:
        super().__init__(*args, **options)
        if critic_temperature <= 0:
            raise ValueError(f"`critic_temperature` must be positive, got {critic_temperature}.")
        self.critic_temperature = critic_temperature
        sizes = {key: self.network_options[key] for key in ("n_hidden", "n_layers", "norm", "dropout")}
        build = lambda n_in: PerModality({m: MLP(n_in(k), n_critic, **sizes) for k, m in enumerate(self.modalities)})
        self.code_projections = build(lambda k: self.n_specific + self.n_shared)
        self.input_projections = build(lambda k: self.specs[k].n_features)

    @property
    def specific_parts(self) -> tuple[str, ...]:
        """Encoders and critics."""
        return ("specific_encoders", "code_projections", "input_projections")

    def information(self, m: str, code: torch.Tensor, batch: dict, rows: torch.Tensor) -> torch.Tensor:
        """InfoNCE between ``[z_m, c]`` and ``x_m``."""
        sizes = batch["size_factor"].get(m)
        x = self.input_layers[m](batch["x"][m][rows], None if sizes is None else sizes[rows])
        return info_nce(
            self.code_projections[m](code),
            self.input_projections[m](x),
            temperature=self.critic_temperature,
            **vars(self.peers(batch)[rows]),
        )
