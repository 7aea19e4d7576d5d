"""What encoders see of a modality: its values on a scale that suits a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

Likelihood = Literal["normal", "laplace", "bernoulli", "categorical", "poisson", "nb", "zinb", "nb_mixture"]
COUNT_LIKELIHOODS = frozenset({"poisson", "nb", "zinb", "nb_mixture"})
InputTransform = Literal["log1p", "clr", "pearson", "scale", "standardize", "identity"]
OVERDISPERSION = 100.0  # of Pearson residuals: the variance of a count is mu + mu^2 / 100
MAX_RESIDUAL = 30.0


@dataclass(frozen=True)
class ModalitySpec:
    """What a module must know about one modality.

    Attributes
    ----------
    name
        Name in ``mdata.mod``.
    n_features
        Number of features.
    likelihood
        What the values are.
    transform
        What the encoders see; see :class:`InputLayer`.
    mean, standard_deviation
        Per feature, over the cells of the set-up.
    size_factor_reference
        Median size factor over the cells of the set-up.
    shape
        Of one cell's values before they were flattened: ``(channels, height, width)`` of an image, ``(length,)`` of a
        text; None of features without a place.
    n_categories
        Number of categories of every feature under the likelihood ``"categorical"``: the vocabulary's size.
    """

    name: str
    n_features: int
    likelihood: Likelihood
    transform: InputTransform
    mean: np.ndarray = field(repr=False)
    standard_deviation: np.ndarray = field(repr=False)
    size_factor_reference: float = 1.0
    shape: tuple[int, ...] | None = None
    n_categories: int | None = None

    @property
    def is_count(self) -> bool:
        """Whether the values are counts."""
        return self.likelihood in COUNT_LIKELIHOODS


class InputLayer(nn.Module):
    """Bring one modality's values to the scale of a network; no trained parameters.

    ``log1p``
        Counts divided by the cell's size factor (its total, unless given) times the median size
        factor, then log(1 + x): the usual normalisation of RNA.
    ``clr``
        Centred log ratio within the cell, log(1 + x) minus its mean over features: the usual
        normalisation of surface proteins.
    ``pearson``
        Pearson residuals of a negative binomial (Lause et al. 2021): counts less what the cell's size and the
        feature's share of all counts lead one to expect, divided by their standard deviation; at most 30 in size.
    ``scale``
        Features centred, then divided by one number, the root mean square of their standard
        deviations: no unit matters, and relative scales (principal components, say) stay.
    ``standardize``
        Every feature centred and divided by its own standard deviation.
    ``identity``
        As they are.

    Parameters
    ----------
    spec
        The modality.
    """

    def __init__(self, spec: ModalitySpec) -> None:
        super().__init__()
        if spec.transform not in get_args(InputTransform):
            raise ValueError(
                f"Modality {spec.name!r}: unknown input transform {spec.transform!r}; "
                f"there is: {', '.join(get_args(InputTransform))}."
            )
        self.n_features, self.transform = spec.n_features, spec.transform
        self.reference = float(spec.size_factor_reference)
        # of cells whose own is not known: the median size factor, or the mean total
        self.typical_size = self.reference if spec.transform == "log1p" else float(np.sum(spec.mean))
        spread = np.asarray(spec.standard_deviation, dtype=np.float64)
        if self.transform == "scale":
            spread = np.full_like(spread, np.sqrt(np.mean(spread**2)))
        spread = np.where(spread > 0, spread, 1.0)
        if self.transform == "pearson":
            share = np.asarray(spec.mean) / max(float(np.sum(spec.mean)), 1e-30)
            self.register_buffer("share", torch.as_tensor(share, dtype=torch.float32))
        if self.transform in ("scale", "standardize"):
            self.register_buffer("center", torch.as_tensor(np.asarray(spec.mean), dtype=torch.float32))
            self.register_buffer("inverse_scale", torch.as_tensor(1.0 / spread, dtype=torch.float32))

    def forward(self, x: torch.Tensor, size_factor: torch.Tensor | None = None) -> torch.Tensor:
        """Transform values.

        Parameters
        ----------
        x
            Values, shape ``(n, n_features)``.
        size_factor
            Given size factors, shape ``(n,)``.
        """
        if self.transform == "log1p":
            # an empty cell stays all zero
            return (x * (self.reference / self.sizes(x, size_factor).clamp(min=1e-8)).unsqueeze(1)).log1p_()
        if self.transform == "clr":
            logs = torch.log1p(x)
            return logs.sub_(logs.mean(dim=1, keepdim=True))
        if self.transform == "pearson":
            mean, deviation = self._expected(self.sizes(x, size_factor))
            return ((x - mean) / deviation).clamp_(-MAX_RESIDUAL, MAX_RESIDUAL)
        if self.transform == "identity":
            return x
        return (x - self.center).mul_(self.inverse_scale)

    def sizes(self, x: torch.Tensor, size_factor: torch.Tensor | None = None) -> torch.Tensor:
        """Size of every cell as the transform takes it: totals, or for ``log1p`` size factors if there are any.

        Parameters
        ----------
        x, size_factor
            As in :meth:`forward`.
        """
        if size_factor is None or self.transform == "clr":
            return x.sum(dim=1)
        # size factors are on a scale of their own, which only a ratio to their median takes out
        return size_factor * (self.typical_size / self.reference if self.transform == "pearson" else 1.0)

    def _expected(self, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the counts of cells of these totals, ``(n, n_features)``."""
        mean = size.unsqueeze(1) * self.share
        return mean, (mean + mean.square() / OVERDISPERSION).sqrt().clamp(min=1e-6)

    def inverse(self, x: torch.Tensor, size_factor: torch.Tensor | None = None) -> torch.Tensor:
        """Values that the transform would make into ``x``; none below 0 where values are counts.

        Parameters
        ----------
        x
            Transformed values, shape ``(n, n_features)``.
        size_factor
            What :meth:`sizes` gives, shape ``(n,)``; that of a typical cell by default.
        """
        size = x.new_full((len(x),), self.typical_size) if size_factor is None else size_factor
        if self.transform == "log1p":
            return torch.expm1(x).clamp(min=0) * (size / self.reference).unsqueeze(1)
        if self.transform == "clr":
            # the offset that gives the cell its total
            offset = (size + self.n_features).log() - x.logsumexp(dim=1)
            return torch.expm1(x + offset.unsqueeze(1)).clamp(min=0)
        if self.transform == "pearson":
            mean, deviation = self._expected(size)
            return (mean + x * deviation).clamp(min=0)
        return x if self.transform == "identity" else x / self.inverse_scale + self.center
