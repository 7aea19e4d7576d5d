"""Two views of known correlations; small generative modules, batches for them, and their draws in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Laplace, Normal

from unbraid.module import MultimodalVAE
from unbraid.nn import ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTHS = {"a": 2, "b": 3, "c": 4}


@pytest.fixture
def two_views() -> Callable[..., dict[str, np.ndarray]]:
    """Two views of p mixed dimensions with the given population canonical correlations: ``two_views(n, rho)``."""

    def make(n, rho, p=8, seed=0):
        rng = np.random.default_rng(seed)
        shared, views = rng.normal(size=(n, len(rho))), {}
        for m in ("a", "b"):
            own = rng.normal(size=(n, p))
            own[:, : len(rho)] = np.sqrt(rho) * shared + np.sqrt(1 - np.array(rho)) * own[:, : len(rho)]
            x = own @ rng.normal(size=(p, p))
            views[m] = x - x.mean(axis=0)
        return views

    return make


@pytest.fixture
def make_vae() -> Callable[..., MultimodalVAE]:
    """A module in float64 with random weights: ``make_vae(n_shared, n_specific, cls=..., widths=..., **options)``."""

    def make(n_shared=2, n_specific=0, *, cls=MultimodalVAE, widths=WIDTHS, **options):
        specs = [
            ModalitySpec(m, d, "normal", "scale", mean=np.linspace(-1, 1, d), standard_deviation=np.linspace(0.5, 1, d))
            for m, d in widths.items()
        ]
        torch.manual_seed(0)
        latents = n_shared + n_specific
        networks = {
            "encoders": {m: nn.Sequential(nn.Linear(d, 5), nn.Tanh()) for m, d in widths.items()},
            "decoders": {
                m: nn.Sequential(nn.Linear(latents, 5), nn.Tanh(), nn.Linear(5, d)) for m, d in widths.items()
            },
        }
        module = cls(specs, n_shared, n_specific, **{**networks, **options}).double()
        for name, parameter in module.named_parameters():
            if "log_scale" not in name:
                nn.init.normal_(parameter, std=0.5)
        return module

    return make


@pytest.fixture
def make_batch() -> Callable[..., dict]:
    """A batch of random values, of cells that lack modalities: ``make_batch(present, seed=..., widths=...)``.

    ``present`` says per cell what it has, ``["ab", "c", "abc"]``.
    """

    def make(present, *, seed=0, widths=WIDTHS):
        generator = torch.Generator().manual_seed(seed)
        n = len(present)
        mask = {m: torch.tensor([m in names for names in present]) for m in widths}
        x = {
            m: torch.randn(n, d, generator=generator, dtype=torch.float64) * mask[m].unsqueeze(1)
            for m, d in widths.items()
        }
        return {
            "x": x,
            "mask": mask,
            "size_factor": {},
            "batch": torch.zeros(n, dtype=torch.long),
            "categorical": torch.zeros(n, 0, dtype=torch.long),
            "continuous": torch.zeros(n, 0),
            "index": torch.arange(n),
        }

    return make


@pytest.fixture
def draws(monkeypatch) -> dict[str, list[torch.Tensor]]:
    """Draws as they are made: ``"samples"`` of normal and Laplace distributions, and ``"choices"`` of components."""
    made = {"samples": [], "choices": []}
    choose = torch.multinomial

    def rsample(self, sample_shape=()):
        noise = torch.randn(*sample_shape, *self.loc.shape, dtype=self.loc.dtype)
        made["samples"].append((self.loc + self.scale * noise).detach())
        return self.loc + self.scale * noise

    def multinomial(*arguments, **options):
        made["choices"].append(choose(*arguments, **options))
        return made["choices"][-1]

    for family in (Normal, Laplace):
        monkeypatch.setattr(family, "rsample", rsample)
    monkeypatch.setattr(torch, "multinomial", multinomial)
    return made


@pytest.fixture
def noiseless(monkeypatch) -> None:
    """Every sample of a posterior is its mean."""
    for family in (Normal, Laplace):
        monkeypatch.setattr(
            family, "rsample", lambda self, shape=(): self.loc.expand(*shape, *self.loc.shape) + 0 * self.scale
        )
