"""What an Unbraid model found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class UnbraidReport:
    """What an :class:`Unbraid` model found.

    Attributes
    ----------
    chosen
        The shared code that was taken: ``"linear"``, ``"shared"`` (the linear map with a network beside it) or
        ``"scratch"`` (networks from random weights).
    candidates
        One row per candidate: held-out information (nats), its standard error, dimensions kept.
    n_shared
        Dimensions of the shared code.
    n_specific
        Dimensions of every modality's specific code.
    correlations
        Held-out correlation between modalities of every dimension looked at, of the chosen candidate.
    kept
        Which of them are in the shared code: those above the threshold, unless the number was given.
    threshold
        What re-paired cells reach.
    information
        Held-out lower bound (InfoNCE) of the mutual information of a cell's modalities, nats.
    interval
        Its 95 % interval.
    """

    chosen: str
    candidates: pd.DataFrame
    n_shared: int
    n_specific: dict[str, int]
    correlations: np.ndarray
    kept: np.ndarray
    threshold: float
    information: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        words = {
            "linear": "linear: no network told more of held-out cells",
            "shared": "the linear map with a network beside it",
            "scratch": "networks from random weights",
        }
        kept = np.sort(self.correlations[self.kept])[::-1]
        shown = ", ".join(f"{rho:.2f}" for rho in kept[:10]) + (", ..." if len(kept) > 10 else "")
        specific = ", ".join(f"{m} {n}" for m, n in self.n_specific.items())
        return "\n".join(
            [
                f"Shared code: {self.n_shared} dimension{'s' * (self.n_shared > 1)}; {words[self.chosen]}.",
                f"Held-out correlations: {shown} (above chance from {self.threshold:.2f}).",
                # an estimate of something that cannot be negative, and may come out so where it is next to nothing
                f"Shared information: at least {max(self.information, 0):.2f} nats "
                f"({max(self.interval[0], 0):.2f} to {max(self.interval[1], 0):.2f}).",
                f"Specific codes: {specific} dimensions.",
            ]
        )
