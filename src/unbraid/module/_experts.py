"""How the posteriors of the modalities of a cell become one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from unbraid.nn import Posterior, product_of_experts, subsets
from unbraid.objectives import mixture_log_density

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

ExpertsKind = Literal["moe", "poe", "mopoe"]
PriorExpert = Literal["joint", "all", "none"]
MAX_SUBSETS_OF = 10


class Drawn(NamedTuple):
    """Samples of the posteriors of a batch, for S sources of z and K samples of each.

    Attributes
    ----------
    components, exists
        Posteriors ``(C, n, d)`` that make up q(z | X), and which of them a cell has, ``(C, n)``.
    sources, rows
        Those that z was drawn from, ``(S, n, d)``, and which of them a cell has, ``(S, n)``.
    present
        Which modalities a cell has, ``(M, n)``.
    shared
        Samples of z, ``(K, S, n, d)``.
    decoded
        Per decoded modality, w beside them, ``(K, S, n, d)``.
    own
        The samples of the posteriors of w among these: one tensor ``(K, M, n, d)`` where w follows the source, and one
        per modality, ``(K, S, n, d)``, where it follows the target.
    """

    components: Posterior
    exists: Tensor
    sources: Posterior
    rows: Tensor
    present: Tensor
    shared: Tensor
    decoded: dict[str, Tensor]
    own: list[Tensor]


class MixtureOfExperts:
    r"""MMVAE: :math:`q(z \mid X) = \frac{1}{|O|} \sum_{m \in O} q(z \mid x_m)`.

    ``components`` are the experts, ``sources`` the posteriors whose samples are decoded: here the same.

    Parameters
    ----------
    parts
        Dimensions of parts of z, each with a mixture of its own: :math:`q(z \mid X)` is then their product. None: one
        mixture of the whole.
    """

    mean_over_sources = True
    closed_form = False
    parts: tuple[int, ...] = ()

    def __init__(self, parts: Sequence[int] = ()) -> None:
        self.parts = tuple(parts)

    def components(self, experts: Posterior, present: Tensor) -> tuple[Posterior, Tensor]:
        """Posteriors ``(C, n, d)`` and which of them a cell has, ``(C, n)``, of those of the modalities ``(M, n, d)``."""
        return experts, present

    def sources(self, components: Posterior, exists: Tensor) -> tuple[Posterior, Tensor]:
        """Posteriors ``(S, n, d)`` to sample from, and which of them a cell has, ``(S, n)``."""
        return components, exists

    def log_density(self, z: Tensor, components: Posterior, exists: Tensor) -> Tensor:
        """Log q(z | X) of samples ``(K, S, n, d)``, ``(K, S, n)``."""
        parts = self.parts or (z.shape[-1],)
        total = 0.0
        for x, mean, scale in zip(*(t.split(parts, -1) for t in (z, components.mean, components.scale)), strict=True):
            each = Posterior(mean.unsqueeze(1), scale.unsqueeze(1), components.family)
            total = total + mixture_log_density(each.log_density(x.unsqueeze(1)), exists.unsqueeze(1), dim=1)
        return total

    def joint(self, experts: Posterior, present: Tensor) -> Posterior:
        """One posterior of the cell, ``(n, d)``: mean of the experts' means, and of their scales."""
        share = present.to(experts.mean.dtype).unsqueeze(-1)
        share = share / share.sum(0).clamp(min=1)
        return Posterior((share * experts.mean).sum(0), (share * experts.scale).sum(0) + 1e-6, experts.family)


class ProductOfExperts(MixtureOfExperts):
    r"""DMVAE: :math:`q(z \mid X) \propto p(z) \prod_{m \in O} q(z \mid x_m)`, and every expert alone beside it.

    Every source has a bound of its own, of which the loss is the sum.

    Parameters
    ----------
    prior_expert
        ``"joint"``: the prior is an expert of the product of all modalities that a cell has, as published; ``"all"``:
        also of every modality alone; ``"none"``.
    """

    mean_over_sources = False
    closed_form = True

    def __init__(self, prior_expert: PriorExpert = "joint") -> None:
        self.prior_expert = prior_expert

    def components(self, experts: Posterior, present: Tensor) -> tuple[Posterior, Tensor]:
        member = torch.diag_embed(torch.ones_like(present[:, 0])).unsqueeze(-1) & present  # (M, M, n)
        alone = product_of_experts(experts, member, present if self.prior_expert == "all" else present & False)
        joint = self.joint(experts, present)
        mean, scale = (
            torch.cat([a, b.unsqueeze(0)]) for a, b in ((alone.mean, joint.mean), (alone.scale, joint.scale))
        )
        return Posterior(mean, scale), torch.cat([present, present.any(0, keepdim=True)])

    def log_density(self, z: Tensor, components: Posterior, exists: Tensor) -> Tensor:
        return components.log_density(z)

    def joint(self, experts: Posterior, present: Tensor) -> Posterior:
        prior = torch.full_like(present[0], self.prior_expert != "none")
        return product_of_experts(experts, present, prior)


class MixtureOfProducts(ProductOfExperts):
    r"""MoPoE: :math:`q(z \mid X)` is the mixture of the products of all non-empty subsets of the modalities.

    One subset is drawn for every cell, of those whose modalities it has.

    Parameters
    ----------
    n_modalities
        Number of modalities M; there are :math:`2^M - 1` subsets.
    prior_expert
        ``"joint"``: the prior is an expert of the subset of all modalities that a cell has, as published; ``"all"``:
        of every subset; ``"none"``.

    Raises
    ------
    ValueError
        If there are more than 10 modalities.
    """

    mean_over_sources = True

    def __init__(self, n_modalities: int, prior_expert: PriorExpert = "joint") -> None:
        if n_modalities > MAX_SUBSETS_OF:
            raise ValueError(
                f"A mixture of products has 2^M - 1 components, too many for the {n_modalities} modalities given; "
                f"at most {MAX_SUBSETS_OF} are allowed. Use a mixture or a product of experts, or fewer modalities."
            )
        super().__init__(prior_expert)
        self.subsets = subsets(n_modalities)

    def components(self, experts: Posterior, present: Tensor) -> tuple[Posterior, Tensor]:
        member = self.subsets.to(present.device).unsqueeze(-1)  # (C, M, 1)
        exists = (~member | present).all(1)
        whole = (member == present).all(1)
        prior = {"joint": whole, "all": exists, "none": whole & False}[self.prior_expert]
        return product_of_experts(experts, member & present, prior), exists

    def sources(self, components: Posterior, exists: Tensor) -> tuple[Posterior, Tensor]:
        drawn = torch.multinomial(exists.T.float(), 1).squeeze(1)
        cell = torch.arange(len(drawn), device=drawn.device)
        mean, scale = (x[drawn, cell].unsqueeze(0) for x in (components.mean, components.scale))
        return Posterior(mean, scale), exists.any(0, keepdim=True)

    log_density = MixtureOfExperts.log_density


def make_experts(
    kind: ExpertsKind, n_modalities: int, prior_expert: PriorExpert, parts: Sequence[int] = ()
) -> MixtureOfExperts:
    """The experts of a name.

    Parameters
    ----------
    kind
        ``"moe"``, ``"poe"`` or ``"mopoe"``.
    n_modalities
        Number of modalities.
    prior_expert
        Of products.
    parts
        Of a mixture of experts.
    """
    if kind == "moe":
        return MixtureOfExperts(parts)
    return ProductOfExperts(prior_expert) if kind == "poe" else MixtureOfProducts(n_modalities, prior_expert)
