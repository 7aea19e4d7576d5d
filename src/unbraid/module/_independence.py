"""Penalties for what a specific code still tells of the shared one, and the networks that some of them refit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from unbraid._messages import suggest
from unbraid.nn import MLP, ConditionalGaussian, PairCritic
from unbraid.objectives import (
    club,
    density_ratio,
    discrimination,
    distance_correlation,
    explained_variance,
    gaussian_nll,
    hsic,
    nce_bound,
    nce_club,
    orthogonality,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

IndependenceKind = Literal[
    "orthogonality", "club", "nce_club", "hsic", "dcor", "adversarial", "predictability", "density_ratio", "residual"
]
IndependenceChoice = IndependenceKind | dict[IndependenceKind, float] | None


class Penalty(nn.Module):
    """Dependence between a specific and a shared code over a batch.

    Parameters
    ----------
    standardize
        Give every dimension of the specific code mean 0 and variance 1 over the batch first, so that
        no code escapes the penalty by shrinking.
    """

    learns = False

    def __init__(self, *, standardize: bool) -> None:
        super().__init__()
        self.standardize = standardize

    def scaled(self, z: Tensor) -> Tensor:
        """The specific code on the scale at which the penalty sees it."""
        return standardized(z) if self.standardize else z

    def forward(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        """The penalty of codes ``(n, d_z)`` and ``(n, d_c)``, a scalar."""
        raise NotImplementedError

    def learning_loss(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        """Loss of the network that the penalty consults, for codes without gradient."""
        raise NotImplementedError


class Orthogonality(Penalty):
    """:func:`~unbraid.objectives.orthogonality`: sees linear dependence only."""

    def __init__(self, n_z: int, n_c: int, *, standardize: bool = False, **options: Any) -> None:
        super().__init__(standardize=standardize)
        if options.get("kind") == "cosine" and n_z != n_c:
            raise ValueError(
                "The cosine between specific and shared codes needs `n_shared` and `n_specific` to be equal, got "
                f"{n_c} and {n_z}. Make them equal, or choose a penalty that takes any widths: "
                "`independence='hsic'`, or `independence_options={'orthogonality': {'kind': 'correlation'}}`."
            )
        orthogonality(torch.zeros(0, n_z), torch.zeros(0, n_c), **options)  # raises where options do not fit together
        self.options = options

    def forward(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return orthogonality(self.scaled(z), c, **self.options)


class KernelDependence(Penalty):
    """:func:`~unbraid.objectives.hsic`, normalised."""

    def __init__(self, n_z: int, n_c: int, *, standardize: bool = True, **options: Any) -> None:
        super().__init__(standardize=standardize)
        self.options = options

    def forward(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return hsic(self.scaled(z), c, **self.options)


class DistanceDependence(Penalty):
    """Squared :func:`~unbraid.objectives.distance_correlation`."""

    def __init__(self, n_z: int, n_c: int, *, standardize: bool = True) -> None:
        super().__init__(standardize=standardize)

    def forward(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return distance_correlation(self.scaled(z), c)


class GaussianCLUB(Penalty):
    """:func:`~unbraid.objectives.club` with a Gaussian q(z | c) that is refitted."""

    learns = True

    def __init__(
        self,
        n_z: int,
        n_c: int,
        *,
        standardize: bool = True,
        n_hidden: int = 100,
        n_layers: int = 5,
        log_variance: Literal["tanh", "free"] = "tanh",
        negatives: Literal["all", "others", "permuted"] = "all",
    ) -> None:
        super().__init__(standardize=standardize)
        self.negatives = negatives
        self.posterior = ConditionalGaussian(n_c, n_z, n_hidden=n_hidden, n_layers=n_layers, log_variance=log_variance)

    def forward(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        permutation = permuted(len(z), groups, z.device) if self.negatives == "permuted" else None
        options = {} if permutation is not None else {"groups": groups}
        return club(self.scaled(z), *self.posterior(c), negatives=self.negatives, permutation=permutation, **options)

    def learning_loss(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return gaussian_nll(self.scaled(z), *self.posterior(c))


class CriticCLUB(Penalty):
    """:func:`~unbraid.objectives.nce_club` with a critic that is refitted by InfoNCE."""

    learns = True

    def __init__(self, n_z: int, n_c: int, *, standardize: bool = True, n_hidden: int = 100, n_layers: int = 3) -> None:
        super().__init__(standardize=standardize)
        self.critic = PairCritic(n_z, n_c, n_hidden=n_hidden, n_layers=n_layers)

    def forward(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return nce_club(self.critic.scores(self.scaled(z), c), groups=groups)

    def learning_loss(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return -nce_bound(self.critic.scores(self.scaled(z), c), groups=groups)


class Predictability(Penalty):
    """R2 of a network that predicts the standardised specific code from the shared one."""

    learns = True

    def __init__(self, n_z: int, n_c: int, *, standardize: bool = True, n_hidden: int = 100, n_layers: int = 3) -> None:
        super().__init__(standardize=standardize)
        self.predictor = MLP(n_c, n_z, n_hidden=n_hidden, n_layers=n_layers)

    def forward(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return explained_variance(self.scaled(z), self.predictor(c))

    def learning_loss(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return -self(z, c, groups)


class Adversarial(Penalty):
    """R2, no less than 0, of a network that predicts the shared code from the specific one."""

    learns = True

    def __init__(self, n_z: int, n_c: int, *, standardize: bool = True, n_hidden: int = 100, n_layers: int = 3) -> None:
        super().__init__(standardize=standardize)
        self.predictor = MLP(n_z, n_c, n_hidden=n_hidden, n_layers=n_layers)

    def forward(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return explained_variance(c, self.predictor(self.scaled(z))).relu()

    def learning_loss(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return -explained_variance(c, self.predictor(self.scaled(z)))


class DensityRatio(Penalty):
    """Divergence, by a discriminator, of paired codes from codes paired at random."""

    learns = True

    def __init__(self, n_z: int, n_c: int, *, standardize: bool = True, n_hidden: int = 100, n_layers: int = 3) -> None:
        super().__init__(standardize=standardize)
        self.discriminator = PairCritic(n_z, n_c, n_hidden=n_hidden, n_layers=n_layers)

    def _logits(self, z: Tensor, c: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        z = self.scaled(z)
        return self.discriminator(z, c), self.discriminator(z, c[permuted(len(c), groups, c.device)])

    def forward(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return density_ratio(*self._logits(z, c, groups))

    def learning_loss(self, z: Tensor, c: Tensor, groups: Tensor | None) -> Tensor:
        return discrimination(*self._logits(z, c, groups))


PENALTIES: dict[str, type[Penalty]] = {
    "orthogonality": Orthogonality,
    "club": GaussianCLUB,
    "nce_club": CriticCLUB,
    "hsic": KernelDependence,
    "dcor": DistanceDependence,
    "adversarial": Adversarial,
    "predictability": Predictability,
    "density_ratio": DensityRatio,
}


class Independence(nn.Module):
    """A weighted sum of penalties, by name.

    Parameters
    ----------
    weights
        Per penalty, its weight; see :func:`independence_weights`.
    n_specific, n_shared
        Widths of the two codes.
    options
        Per penalty, options of its class.
    """

    def __init__(
        self, weights: Mapping[str, float], n_specific: int, n_shared: int, options: Mapping[str, dict] | None = None
    ) -> None:
        super().__init__()
        self.weights = {kind: weight for kind, weight in weights.items() if kind != "residual"}
        options = options or {}
        for kind in options:
            if kind not in self.weights:
                raise ValueError(
                    f"`independence_options` names {kind!r}, which is not chosen. {suggest(kind, self.weights)}"
                )
        self.penalties = nn.ModuleDict(
            {kind: self._build(kind, n_specific, n_shared, options) for kind in self.weights}
        )

    @staticmethod
    def _build(kind: str, n_specific: int, n_shared: int, options: Mapping[str, dict]) -> Penalty:
        try:
            return PENALTIES[kind](n_specific, n_shared, **options.get(kind, {}))
        except TypeError as error:
            raise ValueError(f"`independence_options` of {kind!r}: {error}.") from None

    @property
    def learns(self) -> bool:
        """Whether a network must be refitted."""
        return any(penalty.learns for penalty in self.penalties.values())

    def learning_loss(self, z: Tensor, c: Tensor, groups: Tensor | None = None) -> Tensor:
        """Sum of the losses of the networks that are refitted; the codes get no gradient."""
        z, c = z.detach(), c.detach()
        return sum(p.learning_loss(z, c, groups) for p in self.penalties.values() if p.learns)


def independence_weights(choice: IndependenceChoice) -> dict[str, float]:
    """Weights of the penalties that a user names.

    Parameters
    ----------
    choice
        One name, weights by name, or None for no penalty.

    Raises
    ------
    ValueError
        If a name is unknown or a weight is negative.
    """
    weights = {choice: 1.0} if isinstance(choice, str) else dict(choice or {})
    names = (*PENALTIES, "residual")
    for name, weight in weights.items():
        if name not in names:
            raise ValueError(f"`independence` has no {name!r}. {suggest(name, names)}")
        if not weight >= 0:
            raise ValueError(f"`independence`: the weight of {name!r} must be at least 0, got {weight}.")
    return {name: float(weight) for name, weight in weights.items() if weight > 0}


def standardized(z: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1 over the batch; a constant one becomes 0."""
    if len(z) < 2:
        return z
    centred = z - z.mean(dim=0)
    variance = centred.square().mean(dim=0)
    # a constant dimension tells nothing: it stays 0, without the infinite gradient of a square root at 0
    return centred * torch.where(variance > 1e-12, variance, torch.inf).rsqrt()


def permuted(n: int, groups: Tensor | None, device: torch.device) -> Tensor:
    """A random order of ``n`` rows that keeps every row in its group."""
    order = torch.randperm(n, device=device)
    if groups is None:
        return order
    result = torch.empty_like(order)
    result[torch.argsort(groups, stable=True)] = order[torch.argsort(groups[order], stable=True)]
    return result
