"""From a latent to the distribution of a modality's values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scvi.distributions import NegativeBinomial, NegativeBinomialMixture, Poisson, ZeroInflatedNegativeBinomial
from torch import nn
from torch.distributions import Bernoulli, Categorical, Laplace, Normal
from torch.nn.functional import softplus

from unbraid.nn._mlp import MLP

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributions import Distribution

    from unbraid.nn._input import ModalitySpec

OUTPUTS_PER_FEATURE = {
    "normal": 1,
    "laplace": 1,
    "bernoulli": 1,
    "poisson": 1,
    "nb": 1,
    "zinb": 2,
    "nb_mixture": 2,
}
_TINY = 1e-8  # a rate of exactly 0 would forbid every count
_INVERSE_DISPERSION = (1e-3, 1e3)  # above it is Poisson for all purposes, and lgamma loses its digits in float32
_ZERO_INFLATION = -3.0  # logit at the start: 5% of the values
_SCALE_RANGE = 1e3  # of a learned scale, both ways from the data's
_PACE = 10.0  # a step of Adam moves a weight by about the learning rate, which is too slow where the way is a unit long


class LikelihoodDecoder(nn.Module):
    r"""Decode a latent into the distribution of one modality's values.

    The distribution is over the values themselves, never over what the encoders see of them. With :math:`o` the
    output of the network, :math:`\bar x, s` the mean and standard deviation of the features over the set-up cells,
    :math:`p = \bar x / \sum_f \bar x_f` and :math:`\ell` a cell's size factor:

    ``"normal"``, ``"laplace"``
        Mean :math:`\bar x + s\, o`; one learned scale per feature, at first that of the data, or a fixed one.
    ``"bernoulli"``
        Logits :math:`\operatorname{logit}(\bar x) + o`.
    ``"categorical"``
        Logits :math:`o` of ``spec.n_categories`` categories per feature; the values are their numbers, from 0.
    ``"poisson"``, ``"nb"``, ``"zinb"``
        Mean :math:`\ell \operatorname{softmax}(\log p + o)`; of ``"zinb"`` that of the part that is not inflated, with
        logits of the inflation as a second output. One learned inverse dispersion per feature, at first the data's.
    ``"nb_mixture"``
        The protein model of totalVI [1]_: background with a learned mean :math:`b` per feature and foreground with mean
        :math:`b (1 + \operatorname{softplus}(o))`, logits of the background as a second output. A size factor
        is not needed; a given one multiplies both means by :math:`\ell / \sum_f \bar x_f`.

    The last layer of the network starts at zero, so that at first every cell has the mean profile :math:`\bar x`
    (``"zinb"``: less the inflation; ``"categorical"``: all categories alike). Learned scales, dispersions and backgrounds
    move ten times as fast as weights, so that they get far enough in a few hundred steps; learning rates above .01 are
    too fast for them.

    Parameters
    ----------
    spec
        The modality.
    n_in
        Width of the latent.
    n_hidden, n_layers, norm, dropout
        Of the network; see :class:`MLP`.
    n_covariates
        Number of columns put beside the latent, such as a one-hot batch.
    network
        A network of one's own, from ``(n, n_in + n_covariates)`` to ``(n, k * n_features)`` with two outputs per
        feature (``k = 2``, in blocks) for ``"zinb"`` and ``"nb_mixture"``, ``n_categories`` side by side per feature
        for ``"categorical"``, and else one. Its last layer is left as it is.
    scale
        Scale of ``"normal"`` (standard deviation) and ``"laplace"`` in the units of the data, the same for all
        features and not learned; None learns them.

    Raises
    ------
    NotImplementedError
        If the likelihood is ``"categorical"`` and ``spec.n_categories`` is None: values alone do not say how many
        categories a feature has.
    ValueError
        If the likelihood is unknown, or ``scale`` is not positive or given for a likelihood without one.

    References
    ----------
    .. [1] Gayoso et al. Joint probabilistic modeling of single-cell multi-omic data with totalVI. Nature Methods 2021.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from unbraid.nn import LikelihoodDecoder, ModalitySpec
    >>> spec = ModalitySpec("rna", 2, "nb", "log1p", mean=np.array([1.0, 3.0]), standard_deviation=np.array([2.0, 3.0]))
    >>> decoder = LikelihoodDecoder(spec, n_in=5, n_hidden=16)
    >>> decoder(torch.randn(1, 5), size_factor=torch.tensor([100.0])).mean.round(decimals=3).tolist()
    [[25.0, 75.0]]
    """

    def __init__(
        self,
        spec: ModalitySpec,
        n_in: int,
        *,
        n_hidden: int = 512,
        n_layers: int = 2,
        norm: Literal["layer"] | None = None,
        dropout: float = 0.0,
        n_covariates: int = 0,
        network: nn.Module | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        _check_likelihood(spec)
        _check_scale(spec, scale)
        self.name, self.likelihood, self.n_features = spec.name, spec.likelihood, spec.n_features
        self.n_covariates, self.scale = n_covariates, scale
        self.n_outputs = OUTPUTS_PER_FEATURE.get(self.likelihood, spec.n_categories) * spec.n_features
        if network is None:
            network = MLP(
                n_in + n_covariates, self.n_outputs, n_hidden=n_hidden, n_layers=n_layers, norm=norm, dropout=dropout
            )
            nn.init.zeros_(network.layers[-1].weight)
            nn.init.zeros_(network.layers[-1].bias)
        self.network = network

        if self.likelihood == "categorical":
            return
        mean, spread = (np.asarray(values, dtype=np.float64) for values in (spec.mean, spec.standard_deviation))
        self.register_buffer("center", _float(mean))
        if self.likelihood in ("normal", "laplace"):
            # a constant feature stays at its mean, with scale 1: nothing is to be learned from it
            self.register_buffer("spread", _float(spread))
            if scale is not None:
                return
            start = np.log(np.where(spread > 0, spread, 1.0))
            if self.likelihood == "laplace":
                start = start - math.log(2) / 2  # scale b has standard deviation sqrt(2) b
            reach = np.where(spread > 0, math.log(_SCALE_RANGE), 0.0)
            self.log_scale = _Bounded(start, start - reach, start + reach)
        elif self.likelihood == "bernoulli":
            rate = np.clip(mean, 1e-4, 1 - 1e-4)
            self.register_buffer("offset", _float(np.log(rate / (1 - rate))))
        else:
            total = max(float(mean.sum()), _TINY)
            self.register_buffer("total", torch.tensor(total))
            self.register_buffer("offset", _float(np.log(np.maximum(mean / total, 1e-10))))
        if self.likelihood in ("nb", "zinb", "nb_mixture"):
            low, high = np.log(_INVERSE_DISPERSION)
            # half a unit inside the bounds, so that there is a gradient to come back
            start = np.clip(np.log(_inverse_dispersion(mean, spread)), low + 0.5, high - 0.5)
            self.log_inverse_dispersion = _Bounded(start, np.full_like(start, low), np.full_like(start, high))
        if self.likelihood == "nb_mixture":
            # background and foreground equally likely at half and 1.5 times the mean
            start, reach = np.log(np.maximum(mean, 1e-6) / 2), math.log(_SCALE_RANGE)
            self.log_background = _Bounded(start, start - reach, start + reach)

    def forward(
        self,
        z: Tensor,
        covariates: Tensor | None = None,
        size_factor: Tensor | None = None,
        learns_scale: Tensor | None = None,
    ) -> Distribution:
        """Distribution of the modality's values, batch shape ``(n, n_features)``.

        Parameters
        ----------
        z
            Latent, shape ``(n, n_in)``.
        covariates
            Shape ``(n, n_covariates)``; needed if and only if there are any.
        size_factor
            Total counts of the cells, shape ``(n,)``; needed for ``"poisson"``, ``"nb"`` and ``"zinb"``.
        learns_scale
            Rows whose gradient reaches the learned scale or dispersion, boolean ``(n,)``; all by default.

        Raises
        ------
        ValueError
            If covariates or size factors are missing or of another shape, or the network's output does not fit.
        """
        output = self._outputs(z, covariates)
        if self.likelihood in ("normal", "laplace"):
            family = _Normal if self.likelihood == "normal" else Laplace
            scale = _learned(self.log_scale, learns_scale) if self.scale is None else self.scale
            return family(self.center + self.spread * output, scale, validate_args=False)
        if self.likelihood == "categorical":
            return Categorical(
                logits=output.view(len(z), self.n_features, self.n_outputs // self.n_features), validate_args=False
            )
        if self.likelihood == "bernoulli":
            return Bernoulli(logits=self.offset + output, validate_args=False)

        size = self._size(size_factor, len(z))
        if self.likelihood == "nb_mixture":
            foreground, background_logits = output.chunk(2, dim=1)
            background = self.log_background().exp() * (1.0 if size is None else size / self.total)
            ratio = 1 + softplus(foreground + math.log(math.expm1(2)))  # 3 at the start
            dispersion = _learned(self.log_inverse_dispersion, learns_scale)
            return NegativeBinomialMixture(background, background * ratio, dispersion, background_logits)
        profile, *inflation = output.chunk(OUTPUTS_PER_FEATURE[self.likelihood], dim=1)
        mean = size * torch.softmax(self.offset + profile, dim=1) + _TINY
        if self.likelihood == "poisson":
            return Poisson(mean, validate_args=False)
        dispersion = _learned(self.log_inverse_dispersion, learns_scale)
        if self.likelihood == "nb":
            return NegativeBinomial(mu=mean, theta=dispersion)
        return ZeroInflatedNegativeBinomial(mu=mean, theta=dispersion, zi_logits=inflation[0] + _ZERO_INFLATION)

    def _outputs(self, z: Tensor, covariates: Tensor | None) -> Tensor:
        given = 0 if covariates is None else covariates.shape[1]
        if given != self.n_covariates:
            raise ValueError(
                f"The decoder of modality {self.name!r} was made for {self.n_covariates} columns of `covariates`, "
                f"got {given}."
            )
        output = self.network(z if covariates is None else torch.cat([z, covariates], dim=1))
        if output.shape != (len(z), self.n_outputs):
            raise ValueError(
                f"`network` of modality {self.name!r} must give shape {(len(z), self.n_outputs)} under the likelihood "
                f"{self.likelihood!r}, got {tuple(output.shape)}."
            )
        return output

    def _size(self, size_factor: Tensor | None, n: int) -> Tensor | None:
        if size_factor is None:
            if self.likelihood == "nb_mixture":
                return None
            raise ValueError(
                f"Modality {self.name!r}: the likelihood {self.likelihood!r} needs `size_factor`, "
                "the cells' total counts, e.g. `x.sum(dim=1)`."
            )
        if size_factor.shape != (n,):
            raise ValueError(f"`size_factor` must have shape ({n},), one per cell, got {tuple(size_factor.shape)}.")
        return size_factor.unsqueeze(1)


def log_likelihood(distribution: Distribution, x: Tensor) -> Tensor:
    """Log-likelihood of every cell, summed over its features.

    Parameters
    ----------
    distribution
        What :class:`LikelihoodDecoder` gives, batch shape ``(n, n_features)``.
    x
        Values, shape ``(n, n_features)``.

    Returns
    -------
    Shape ``(n,)``, in nats.
    """
    return distribution.log_prob(x).sum(dim=-1)


def expected_values(distribution: Distribution) -> Tensor:
    """Expected values; of categories, whose numbers have no mean, the most probable one.

    Parameters
    ----------
    distribution
        What :class:`LikelihoodDecoder` gives, batch shape ``(n, n_features)``.

    Returns
    -------
    ``(n, n_features)``.
    """
    return distribution.mode.float() if isinstance(distribution, Categorical) else distribution.mean


def null_deviance(spec: ModalitySpec, x: Tensor, size_factor: Tensor | None = None) -> Tensor:
    r"""How much a model that knows nothing of a cell falls short of one that knows all, per cell.

    Twice the log-likelihood of the saturated model (mean :math:`x`) over that of the null model (mean
    :math:`\mu = \bar x`, the mean profile; for counts with a size factor :math:`\ell` it is :math:`\mu = \ell \bar x /
    \sum_f \bar x_f`), summed over the features that vary:

    ============== ==============================================================================================
    ``normal``     :math:`(x - \mu)^2 / s^2`
    ``laplace``    :math:`2 \sqrt 2\, |x - \mu| / s`
    ``bernoulli``  :math:`2 [x \log(x / \mu) + (1 - x) \log((1 - x) / (1 - \mu))]`
    ``poisson``    :math:`2 [x \log(x / \mu) - (x - \mu)]`
    other counts   :math:`2 [x \log(x / \mu) - (x + \theta) \log((x + \theta) / (\mu + \theta))]`, with the moment
                   estimate :math:`\theta = \bar x^2 / (s^2 - \bar x)` and Poisson where :math:`s^2 \le \bar x`
    ============== ==============================================================================================

    Its mean over cells puts negative log-likelihoods of all kinds on one scale. The reconstruction term of IndiSeek,
    :math:`\lambda / (2\, E\|X - \bar x\|^2) \cdot \|g - x\|^2` [1]_, is :math:`\lambda` times the negative
    log-likelihood over the mean null deviance in the case of standardised features with a normal likelihood of
    variance 1 (up to a constant).

    Parameters
    ----------
    spec
        The modality: likelihood, means and standard deviations of its features.
    x
        Values, shape ``(n, n_features)``.
    size_factor
        Total counts of the cells, shape ``(n,)``; without them every cell has the mean profile. Only for counts.

    Returns
    -------
    Shape ``(n,)``, not negative.

    Raises
    ------
    NotImplementedError
        If the likelihood is ``"categorical"``: the spec has no frequencies of the categories.
    ValueError
        If the likelihood is unknown, or size factors are given for values that are no counts.

    References
    ----------
    .. [1] IndiSeek learns information-guided disentangled representations. 2025.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from unbraid.nn import ModalitySpec, null_deviance
    >>> spec = ModalitySpec(
    ...     "prot", 2, "normal", "scale", mean=np.array([1.0, 0.0]), standard_deviation=np.array([2.0, 1])
    ... )
    >>> null_deviance(spec, torch.tensor([[1.0, 0.0], [3.0, 2.0]])).tolist()
    [0.0, 5.0]
    """
    if spec.likelihood == "categorical":
        raise NotImplementedError(
            f"Modality {spec.name!r}: the likelihood 'categorical' has no null deviance. Give the modality one column "
            "of 0 and 1 per category, with the likelihood 'bernoulli'."
        )
    _check_likelihood(spec)
    mean, spread = (np.asarray(values, dtype=np.float64) for values in (spec.mean, spec.standard_deviation))
    varies = spread > 0
    mean, spread = mean[varies], spread[varies]
    if not varies.all():
        x = x[:, torch.as_tensor(varies, device=x.device)]
    expected = torch.as_tensor(mean, dtype=x.dtype, device=x.device)
    if size_factor is not None:
        if not spec.is_count:
            raise ValueError(f"Modality {spec.name!r}: `size_factor` is for counts, not for {spec.likelihood!r}.")
        expected = size_factor.unsqueeze(1) * (expected / float(np.sum(spec.mean)))

    if spec.likelihood in ("normal", "laplace"):
        distance = (x - expected) / torch.as_tensor(spread, dtype=x.dtype, device=x.device)
        per_value = distance.square() if spec.likelihood == "normal" else math.sqrt(8) * distance.abs()
    elif spec.likelihood == "bernoulli":
        expected = expected.clamp(1e-6, 1 - 1e-6)
        # for values 0 and 1 the first two terms are 0 and the rest is the cross-entropy
        per_value = 2 * (
            torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x) - x * expected.log() - (1 - x) * torch.log1p(-expected)
        )
    else:
        expected = expected.clamp(min=_TINY)
        excess = x - expected
        per_value = torch.xlogy(x, x / expected)
        if spec.likelihood == "poisson":
            per_value = 2 * (per_value - excess)
        else:
            dispersion = torch.as_tensor(_inverse_dispersion(mean, spread), dtype=x.dtype, device=x.device)
            known = torch.where(dispersion.isinf(), 1.0, dispersion)
            overdispersed = (x + known) * torch.log1p(excess / (expected + known))
            per_value = 2 * (per_value - torch.where(dispersion.isinf(), excess, overdispersed))
    return per_value.sum(dim=1).clamp(min=0)  # rounding


class _Normal(Normal):
    """A normal distribution whose density needs no square of the scale, which overflows in float32 from 1e19 on."""

    def log_prob(self, value: Tensor) -> Tensor:
        return -0.5 * ((value - self.loc) / self.scale).square() - self.scale.log() - 0.5 * math.log(2 * math.pi)


class _Bounded(nn.Module):
    """A parameter that stays inside an interval, with a gradient everywhere.

    In the middle it moves ``_PACE`` times as fast as a weight.

    Parameters
    ----------
    start, low, high
        Per entry; where ``low`` and ``high`` are equal the value is fixed.
    """

    def __init__(self, start: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        super().__init__()
        middle, reach = (low + high) / 2, (high - low) / 2
        safe = np.where(reach > 0, reach, 1.0)
        self.raw = nn.Parameter(_float(safe / _PACE * np.arctanh((start - middle) / safe)))
        self.register_buffer("middle", _float(middle))
        self.register_buffer("reach", _float(reach))
        self.register_buffer("safe_reach", _float(safe))

    def forward(self) -> Tensor:
        return self.middle + self.reach * torch.tanh(_PACE * self.raw / self.safe_reach)


def _learned(parameter: _Bounded, rows: Tensor | None) -> Tensor:
    """Value of a log parameter, which the gradient of these rows alone reaches."""
    value = parameter().exp()
    return value if rows is None else torch.where(rows.unsqueeze(1), value, value.detach())


def _inverse_dispersion(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Moment estimate, infinite where the variance is not above the mean."""
    excess = spread**2 - mean
    return np.where(excess > 0, mean**2 / np.where(excess > 0, excess, 1.0), np.inf).clip(min=_TINY)


def _check_likelihood(spec: ModalitySpec) -> None:
    if spec.likelihood == "categorical":
        if spec.n_categories is None:
            raise NotImplementedError(
                f"Modality {spec.name!r}: the likelihood 'categorical' has no decoder where the number of categories "
                "is not known. Give the modality one column of 0 and 1 per category, with the likelihood 'bernoulli'; "
                "texts with a vocabulary come from `unbraid.data.text`."
            )
        return
    if spec.likelihood not in OUTPUTS_PER_FEATURE:
        raise ValueError(
            f"Modality {spec.name!r}: unknown likelihood {spec.likelihood!r}; there is: "
            f"{', '.join(OUTPUTS_PER_FEATURE)}."
        )


def _check_scale(spec: ModalitySpec, scale: float | None) -> None:
    if scale is None:
        return
    if spec.likelihood not in ("normal", "laplace"):
        raise ValueError(
            f"Modality {spec.name!r}: `scale` is for 'normal' and 'laplace'; {spec.likelihood!r} has none. Leave it out."
        )
    if not 0 < scale < math.inf:
        raise ValueError(f"Modality {spec.name!r}: `scale` must be a positive number, got {scale!r}.")


def _float(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
