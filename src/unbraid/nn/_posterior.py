"""Distributions of latents given a modality, and how those of several modalities become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.distributions import Laplace, Normal
from torch.nn.functional import softplus

from unbraid.nn._mlp import MLP

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

LatentFamily = Literal["normal", "laplace"]
ScaleForm = Literal["softplus", "softmax", "exp"]
FAMILIES = {"normal": Normal, "laplace": Laplace}
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Posterior:
    """Diagonal normal or Laplace distributions of a latent, of any batch shape.

    Attributes
    ----------
    mean, scale
        ``(..., d)``; the scale is the standard deviation of a normal, :math:`b` of a Laplace distribution.
    family
        ``"normal"`` or ``"laplace"``.
    """

    mean: Tensor
    scale: Tensor
    family: LatentFamily = "normal"

    @property
    def distribution(self) -> Normal | Laplace:
        """As a distribution of torch, one dimension per latent dimension."""
        return FAMILIES[self.family](self.mean, self.scale, validate_args=False)

    def sample(self, n_samples: int) -> Tensor:
        """Reparameterised samples, ``(n_samples, ..., d)``."""
        return self.distribution.rsample((n_samples,))

    def log_density(self, z: Tensor) -> Tensor:
        """Log density of ``(..., d)``, summed over the dimensions of the latent."""
        return self.distribution.log_prob(z).sum(-1)

    def detached(self) -> Posterior:
        """The same without gradients."""
        return Posterior(self.mean.detach(), self.scale.detach(), self.family)


class PosteriorEncoder(nn.Module):
    r"""A network with a mean and a scale for every latent, one modality's :math:`q(z \mid x)\, q(w \mid x)`.

    Parameters
    ----------
    network
        Maps ``(n, n_features)`` to ``(n, n_hidden)``.
    n_hidden
        Its width; a linear head reads every mean and scale from it.
    n_latent
        Dimensions of every latent, by name.
    family
        ``"normal"`` or ``"laplace"``.
    scale
        From the head's output :math:`s`: ``"softplus"``; ``"softmax"``, :math:`d\,\mathrm{softmax}(s)`, scales with a
        constant sum as in MMVAE+; ``"exp"``, :math:`e^{s / 2}`, for a log variance.
    """

    def __init__(
        self,
        network: nn.Module,
        n_hidden: int,
        n_latent: Mapping[str, int],
        *,
        family: LatentFamily = "normal",
        scale: ScaleForm = "softplus",
    ) -> None:
        super().__init__()
        self.network, self.family, self.scale = network, family, scale
        self.n_latent = dict(n_latent)
        self.head = nn.Linear(n_hidden, 2 * sum(self.n_latent.values()))

    def forward(self, x: Tensor) -> Tensor:
        """Means and raw scales of all latents, side by side."""
        return self.head(self.network(x))

    def posteriors(self, output: Tensor) -> dict[str, Posterior]:
        """Posteriors of what :meth:`forward` gave."""
        found, start = {}, 0
        for name, d in self.n_latent.items():
            mean, raw = output[..., start : start + d], output[..., start + d : start + 2 * d]
            found[name] = Posterior(mean, scale_of(raw, self.scale), self.family)
            start += 2 * d
        return found


def hidden_network(n_in: int, n_hidden: int, n_layers: int, norm: str | None, dropout: float) -> nn.Module:
    """Fully connected network that ends in its last hidden layer, after its activation.

    Parameters
    ----------
    n_in, n_hidden, norm, dropout
        Of the :class:`MLP`.
    n_layers
        Hidden layers, at least 1.
    """
    layers: list[nn.Module] = [MLP(n_in, n_hidden, n_hidden=n_hidden, n_layers=n_layers, norm=norm, dropout=dropout)]
    layers += [nn.LayerNorm(n_hidden)] if norm == "layer" else []
    layers += [nn.ReLU()]
    layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


def scale_of(raw: Tensor, form: ScaleForm) -> Tensor:
    """Positive scales from any numbers; see :class:`PosteriorEncoder`.

    Parameters
    ----------
    raw
        ``(..., d)``.
    form
        Which function.
    """
    if form == "softplus":
        return softplus(raw) + _LEAST_SCALE
    if form == "softmax":
        return torch.softmax(raw, dim=-1) * raw.shape[-1] + _LEAST_SCALE
    return (raw.clamp(-15, 15) / 2).exp()


def product_of_experts(posterior: Posterior, present: Tensor, prior: Tensor) -> Posterior:
    r"""Product of normal experts, a normal with the sum of their precisions.

    :math:`\sigma^{-2} = \sum_{m \in O} \sigma_m^{-2}`, :math:`\mu = \sigma^2 \sum_{m \in O} \sigma_m^{-2} \mu_m`, with
    an expert :math:`\mathcal N(0, I)` more where ``prior`` says so.

    Parameters
    ----------
    posterior
        Normal experts, along the first dimension: ``(E, n, d)``.
    present
        Which experts a row has, boolean ``(..., E, n)``; leading dimensions are products of their own.
    prior
        Which products have the expert :math:`\mathcal N(0, I)`, boolean ``(..., n)``. A product without any expert is
        :math:`\mathcal N(0, I)` too.

    Returns
    -------
    ``(..., n, d)``.

    Raises
    ------
    ValueError
        If the experts are not normal.

    Examples
    --------
    >>> import torch
    >>> from unbraid.nn import Posterior, product_of_experts
    >>> experts = Posterior(torch.tensor([[[0.0]], [[3.0]]]), torch.ones(2, 1, 1))
    >>> product = product_of_experts(experts, torch.ones(2, 1, dtype=bool), torch.tensor([True]))
    >>> round(product.mean.item(), 4), round(product.scale.item() ** 2, 4)
    (1.0, 0.3333)
    """
    if posterior.family != "normal":
        raise ValueError("A product of experts has a closed form for normal posteriors only.")
    precision = posterior.scale.square().reciprocal()
    member = present.to(precision.dtype)
    prior = (prior | ~present.any(-2)).to(precision.dtype).unsqueeze(-1)
    # one product of matrices per row: (..., n, E) with (n, E, d)
    total = torch.einsum("...en,end->...nd", member, precision) + prior
    mean = torch.einsum("...en,end->...nd", member, precision * posterior.mean) / total
    return Posterior(mean, total.rsqrt())


def subsets(n: int) -> Tensor:
    """All non-empty subsets of ``n`` things, smallest first, boolean ``(2^n - 1, n)``.

    Parameters
    ----------
    n
        Number of things.
    """
    codes = torch.arange(1, 2**n)
    member = (codes.unsqueeze(1) >> torch.arange(n)) & 1
    return member[member.sum(1).argsort(stable=True)].bool()
