"""A prior with clusters, and priors of latents that are made of parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import nn

from unbraid.nn._posterior import LatentFamily, Posterior

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from unbraid.nn._prior import Prior

_NEVER = -1e4  # log weight of a component that was left out: finite, so that gradients are
MAX_PLACED = 20_000  # codes that k-means sees
SHRINKAGE = 0.05


class MixturePrior(nn.Module):
    r"""Mixture of equally wide distributions, whose components are clusters.

    .. math:: p(z) = \sum_c \pi_c\, p(z \mid c) ,

    with learned weights and means and a fixed scale, as in CMVAE. Its published term :math:`\sum_c q(c \mid z) [\log \pi_c
    + \log p(z \mid c) - \log q(c \mid z)]`, with :math:`q(c \mid z) = p(c \mid z)`, is :math:`\log p(z)`.

    Parameters
    ----------
    n_latent
        Dimensions :math:`d`.
    n_components
        Number of components C. Their means begin uniform in :math:`[-1, 1]^d`, as published.
    family
        ``"normal"`` or ``"laplace"``.
    scale
        Scale of every component.
    """

    def __init__(self, n_latent: int, n_components: int, family: LatentFamily = "laplace", scale: float = 1.0) -> None:
        super().__init__()
        self.family = family
        self.means = nn.Parameter(torch.empty(n_components, n_latent).uniform_(-1, 1))
        self.logits = nn.Parameter(torch.zeros(n_components))
        self.register_buffer("scale", torch.full((n_latent,), scale))
        self.register_buffer("kept", torch.ones(n_components, dtype=torch.bool))

    @property
    def log_weights(self) -> Tensor:
        r""":math:`\log \pi_c`, ``(C,)``."""
        return torch.log_softmax(self.logits.masked_fill(~self.kept, _NEVER), 0)

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, ``(d,)``."""
        return self.log_weights.exp() @ self.means

    def log_joint(self, z: Tensor) -> Tensor:
        r""":math:`\log \pi_c + \log p(z \mid c)` of ``(..., d)``, ``(..., C)``."""
        components = Posterior(self.means, self.scale.expand_as(self.means), self.family)
        return components.log_density(z.unsqueeze(-2)) + self.log_weights

    def log_density(self, z: Tensor) -> Tensor:
        """Log density of ``(..., d)``."""
        return self.log_joint(z).logsumexp(-1)

    def log_probabilities(self, z: Tensor) -> Tensor:
        r""":math:`\log p(c \mid z)` of ``(..., d)``, ``(..., C)``."""
        return self.log_joint(z).log_softmax(-1)

    def sample(self, n_samples: int) -> Tensor:
        """``(n_samples, d)``."""
        component = torch.multinomial(self.log_weights.exp(), n_samples, replacement=True)
        return Posterior(self.means[component], self.scale.expand(n_samples, -1), self.family).sample(1)[0]

    @torch.no_grad()
    def place(self, z: Tensor, differences: Tensor | None = None) -> None:
        """Put the components where k-means finds clusters of codes, with the clusters' shares as weights.

        Components learned by gradients alone end up empty or share a cluster. Of more than 20,000 codes k-means sees so
        many, evenly spaced. Nothing is done with fewer codes than components.

        Parameters
        ----------
        z
            Codes ``(n, d)``.
        differences
            Of codes that are known to be of one cluster, ``(p, d)``: k-means then measures distances by what varies
            little in them (relevant component analysis). Ignored if they are too few to tell, ``p < 2 d``.
        """
        z = z[:: -(-len(z) // MAX_PLACED)].double().cpu()
        kept = self.kept.nonzero().squeeze(1)
        if len(z) < len(kept):
            return
        seen = z
        if differences is not None and len(differences) >= 2 * z.shape[1]:
            seen = z @ _whitening(differences.double().cpu())
        with threadpool_limits(1):
            found = KMeans(len(kept), n_init=10, random_state=0).fit_predict(seen.numpy())
        member = torch.nn.functional.one_hot(torch.as_tensor(found).long(), len(kept)).double()
        self.means[kept] = (member.T @ z / member.sum(0).unsqueeze(1)).to(self.means)
        share = member.sum(0) + 1
        self.logits[kept] = (share / share.sum()).log().to(self.logits)


def _whitening(differences: Tensor) -> Tensor:
    """Matrix that makes the covariance of differences a multiple of the identity, but for a little shrinkage."""
    covariance = differences.T @ differences / len(differences)
    size = covariance.diagonal().mean() + 1e-12
    values, vectors = torch.linalg.eigh(covariance + SHRINKAGE * size * torch.eye(len(covariance), dtype=torch.double))
    return vectors * (values / size).rsqrt()


class ProductPrior(nn.Module):
    """Independent priors of the parts of a latent, side by side.

    Parameters
    ----------
    priors
        Of the parts, in their order.
    n_latent
        Dimensions of the parts.
    """

    def __init__(self, priors: Sequence[Prior | MixturePrior], n_latent: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.n_latent = nn.ModuleList(priors), list(n_latent)

    @property
    def mean(self) -> Tensor:
        """``(d,)``."""
        return torch.cat([part.mean for part in self.parts])

    def log_density(self, z: Tensor) -> Tensor:
        """Log density of ``(..., d)``."""
        return sum(p.log_density(x) for p, x in zip(self.parts, z.split(self.n_latent, -1), strict=True))

    def sample(self, n_samples: int) -> Tensor:
        """``(n_samples, d)``."""
        return torch.cat([part.sample(n_samples) for part in self.parts], dim=1)
