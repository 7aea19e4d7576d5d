"""A random generator, and two classes of which the best accuracy is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def two_gaussians() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Features and classes, ``two_gaussians(rng, n)``; the best possible accuracy is Phi(distance / 2)."""

    def make(rng, n, distance=2.0, d=4):
        y = rng.integers(2, size=n)
        x = rng.normal(size=(n, d))
        x[:, 0] += distance * y
        return x, y

    return make
