"""Priors of latents."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from unbraid.nn._posterior import LatentFamily, Posterior
from unbraid.objectives import denoising_loss, diffusion_log_density, sigmoid_schedule

if TYPE_CHECKING:
    from torch import Tensor


class Prior(nn.Module):
    """Independent normal or Laplace distributions around 0.

    Parameters
    ----------
    n_latent
        Dimensions.
    family
        ``"normal"`` or ``"laplace"``.
    scale
        Their scale.
    """

    def __init__(self, n_latent: int, family: LatentFamily = "normal", scale: float = 1.0) -> None:
        super().__init__()
        self.family = family
        self.register_buffer("mean", torch.zeros(n_latent))
        self.register_buffer("scale", torch.full((n_latent,), scale))

    @property
    def _posterior(self) -> Posterior:
        return Posterior(self.mean, self.scale, self.family)

    def log_density(self, z: Tensor) -> Tensor:
        """Log density of ``(..., d)``, summed over dimensions."""
        return self._posterior.log_density(z)

    def sample(self, n_samples: int) -> Tensor:
        """``(n_samples, d)``."""
        return self._posterior.sample(n_samples)


class DiffusionPrior(nn.Module):
    r"""A small diffusion model of a latent.

    A network finds the latent in a noisy version of it (DDPM, [1]_) with the sigmoid schedule of
    :func:`~unbraid.objectives.sigmoid_schedule`; samples are drawn by the deterministic DDIM [2]_. Sizes are those of
    IDMVAE's released code.

    Parameters
    ----------
    n_latent
        Dimensions :math:`d`.
    n_hidden
        Width of the network and of the embedding of the step.
    n_steps
        Steps of the diffusion.

    References
    ----------
    .. [1] Ho et al. Denoising diffusion probabilistic models. NeurIPS 2020.
    .. [2] Song et al. Denoising diffusion implicit models. ICLR 2021.
    """

    def __init__(self, n_latent: int, *, n_hidden: int = 512, n_steps: int = 1_000) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.register_buffer("signal", sigmoid_schedule(n_steps))
        frequency = torch.exp(torch.arange(n_hidden // 2) * (-math.log(10_000) / max(n_hidden // 2 - 1, 1)))
        self.register_buffer("frequency", frequency, persistent=False)
        self.inward = nn.Sequential(nn.Linear(n_latent, n_hidden), nn.GELU(), nn.Linear(n_hidden, n_hidden))
        self.time = nn.Sequential(nn.Linear(2 * len(frequency), n_hidden), nn.GELU(), nn.Linear(n_hidden, n_hidden))
        self.outward = nn.Sequential(nn.GELU(), nn.Linear(n_hidden, n_latent))
        # the diffusion is one of standardised latents
        self.register_buffer("center", torch.zeros(n_latent))
        self.register_buffer("spread", torch.ones(n_latent))

    def standardize(self, z: Tensor) -> None:
        """Put the diffusion on the scale of latents ``(n, d)``, which should be all that there are."""
        self.center.copy_(z.mean(0))
        self.spread.copy_(z.std(0, correction=0).clamp(min=1e-6))

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        """The latent in its noisy version.

        Parameters
        ----------
        noisy
            ``(n, d)``.
        step
            Number of the step of every row, 0 the first.
        """
        angle = step.unsqueeze(1) * self.frequency
        return self.outward(self.inward(noisy) + self.time(torch.cat([angle.sin(), angle.cos()], dim=1)))

    def loss(self, z: Tensor) -> Tensor:
        """:func:`~unbraid.objectives.denoising_loss` of latents ``(n, d)``."""
        return denoising_loss(self, (z - self.center) / self.spread, self.signal)

    def log_density(self, z: Tensor) -> Tensor:
        """:func:`~unbraid.objectives.diffusion_log_density` of latents ``(..., d)``: a noisy lower bound."""
        rows = (z.reshape(-1, z.shape[-1]) - self.center) / self.spread
        density = diffusion_log_density(self, rows, self.signal).reshape(z.shape[:-1])
        return density - self.spread.log().sum()

    @torch.no_grad()
    def sample(self, n_samples: int, n_steps: int = 100) -> Tensor:
        """Draw latents, ``(n_samples, d)``.

        Parameters
        ----------
        n_samples
            How many.
        n_steps
            Of DDIM, evenly spaced among those of the diffusion.
        """
        z = torch.randn(n_samples, self.n_latent, device=self.signal.device, dtype=self.signal.dtype)
        steps = torch.linspace(len(self.signal) - 1, 0, min(n_steps, len(self.signal))).round().long()
        for k, step in enumerate(steps.tolist()):
            found = self(z, torch.full((n_samples,), step, device=z.device))
            if k == len(steps) - 1:
                return found * self.spread + self.center
            now, after = self.signal[step], self.signal[steps[k + 1]]
            noise = (z - now.sqrt() * found) / (1 - now).sqrt()
            z = after.sqrt() * found + (1 - after).sqrt() * noise
        return z
