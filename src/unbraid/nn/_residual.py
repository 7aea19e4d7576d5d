"""What a code does not explain of the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from unbraid._messages import check_whole

if TYPE_CHECKING:
    from torch import Tensor

_LOG_SCALE_LIMIT = 4.0  # a residual below 2% of a feature's spread is not blown up any further
LEAST_UNEXPLAINED = 0.01  # of a feature's variance


class CrossFittedResidual(nn.Module):
    r"""What a regression on a code does not explain of the data, in mean and in scale.

    .. math::

        r = \frac{x - m(c)}{s(c) / \bar s}

    If :math:`x = m(c) + s(c)\, \varepsilon` with noise :math:`\varepsilon` independent of :math:`c`, the residual is
    that noise: an encoder that sees it alone cannot bring back the code. Every feature keeps its mean scale :math:`\bar
    s` (of logarithms), so that one which the code determines stays near 0, instead of becoming pure error of
    regression; and one of which less than 1 % is left unexplained is 0. Mean and scale are networks plus a linear map
    that start as constants. Cells are spread over folds by a hash of their numbers; regressor :math:`k` learns from the
    cells outside fold :math:`k` and is used for those inside it, so that no residual is shrunk by a regressor that has
    learned this very cell by heart (cross-fitting [1]_). The scale learns from these out-of-fold residuals, detached,
    so that it cannot excuse a bad mean.

    Condition and data are standardised by running means and variances, which :meth:`loss` keeps up to date, so
    neither needs a particular scale. Once the regressors have learned, :meth:`earn` drops those that do not predict.

    Parameters
    ----------
    n_condition, n_features
        Widths of the code :math:`c` and of the data :math:`x`.
    n_folds
        Number of folds and of regressors, at least 2.
    n_hidden, n_layers
        Width of the hidden layers; number of linear layers.
    scale
        Divide by the scale. Without it, :math:`r = x - m(c)`.

    Raises
    ------
    ValueError
        If ``n_folds`` is not a whole number of at least 2, or ``n_layers`` of at least 1.

    References
    ----------
    .. [1] Chernozhukov et al. Double/debiased machine learning for treatment and structural parameters. Econometrics
       Journal 2018.

    Examples
    --------
    >>> import torch
    >>> from unbraid.nn import CrossFittedResidual
    >>> regression = CrossFittedResidual(2, 5)
    >>> x, c, index = torch.randn(8, 5), torch.randn(8, 2), torch.arange(8)
    >>> loss = regression.loss(x, c, index)
    >>> loss.backward()
    >>> regression(x, c, index).shape
    torch.Size([8, 5])
    """

    def __init__(
        self,
        n_condition: int,
        n_features: int,
        *,
        n_folds: int = 3,
        n_hidden: int = 128,
        n_layers: int = 3,
        scale: bool = True,
    ) -> None:
        super().__init__()
        check_whole("n_folds", n_folds, 2)
        check_whole("n_layers", n_layers, 1)
        self.n_folds, self.n_condition = n_folds, n_condition
        self.condition_scale, self.data_scale = _RunningScale(n_condition), _RunningScale(n_features)
        sizes = {"n_hidden": n_hidden, "n_layers": n_layers}
        self.mean = _Regressors(n_folds, n_condition, n_features, **sizes)
        self.log_scale = _Regressors(n_folds, n_condition, n_features, **sizes) if scale else None
        self.register_buffer("unexplained", torch.ones(n_features))  # share of the variance
        # whether a feature's mean and scale are those of the networks, or constant; see `earn`
        self.register_buffer("earned", torch.ones(2, n_features))
        self.register_buffer("mean_log_scale", torch.zeros(n_folds, 1, n_features))

    def fold_of(self, index: Tensor) -> Tensor:
        """Fold of every cell, from its number alone.

        Parameters
        ----------
        index
            Numbers of the cells, shape ``(n,)``, integers.

        Returns
        -------
        Shape ``(n,)``, integers below ``n_folds``.
        """
        low = 0xFFFFFFFF  # 32 bits at a time: the products stay below 2 ** 63
        h = index.long()
        h = (h ^ (h >> 32)) & low
        for _ in range(2):
            h = ((h ^ (h >> 16)) * 0x45D9F3B) & low
        return (h ^ (h >> 16)).remainder(self.n_folds)

    def loss(self, x: Tensor, c: Tensor, index: Tensor) -> Tensor:
        r"""What the regressors minimise, each over the cells outside its fold.

        Squared error of the mean, plus, with a scale, :math:`\log s + r^2 / (2 s^2)` of the detached out-of-fold
        residuals :math:`r = x - m(c)`; per standardised feature, averaged over features, cells and regressors. In
        training mode it also updates the running means and variances. No gradient reaches ``x`` or ``c``.

        Parameters
        ----------
        x, c
            Data ``(n, n_features)`` and code ``(n, n_condition)``.
        index
            Numbers of the cells, shape ``(n,)``, integers.

        Returns
        -------
        Scalar; 0, connected to the graph, when ``n = 0``.
        """
        x, c = x.detach(), c.detach()
        if self.training:
            self.condition_scale.update(c)
            self.data_scale.update(x)
        condition, target = self.condition_scale(c), self.data_scale(x)
        fold = self.fold_of(index)
        learns = (fold != torch.arange(self.n_folds, device=fold.device)[:, None]).to(x.dtype)  # (folds, n)
        count = (learns.sum() * x.shape[1]).clamp(min=1)

        mean = self.mean(condition)
        losses = (target - mean).square()
        residual = target - _own(mean.detach(), fold)
        if self.training and len(x):
            self.unexplained.lerp_(residual.square().mean(dim=0), self.data_scale.share)
        if self.log_scale is not None:
            log_scale = _bounded(self.log_scale(condition))
            if self.training and len(x):
                self.mean_log_scale.lerp_(log_scale.detach().mean(dim=1, keepdim=True), self.data_scale.share)
            losses = losses + log_scale + residual.square() * torch.exp(-2 * log_scale) / 2
        return (losses * learns.unsqueeze(2)).sum() / count

    @torch.no_grad()
    def earn(self, x: Tensor, c: Tensor, index: Tensor) -> None:
        r"""Keep the regression of those features that it predicts better than a constant, out of fold.

        With few cells a network's mean is mostly error, and a scale of its own bends what is left for nothing. A
        feature keeps its mean if this lowers the squared error of cells that the regressor has not learned from by
        more than two standard errors of the difference; and its scale likewise if this lowers
        :math:`\log s + r^2 / (2 s^2)`. Otherwise they are constant from then on.

        Parameters
        ----------
        x, c
            Data ``(n, n_features)`` and code ``(n, n_condition)`` of the cells that :meth:`loss` has seen.
        index
            Their numbers, shape ``(n,)``, integers; cells of one number count as one.
        """
        condition, target, fold = self.condition_scale(c), self.data_scale(x), self.fold_of(index)
        unit = torch.unique(index, return_inverse=True)[1]
        mean = _own(self.mean(condition), fold)
        self.earned[0] = _surely_positive(target.square() - (target - mean).square(), unit)
        residual = target - mean * self.earned[0]
        if self.log_scale is not None:
            log_scale = _own(_bounded(self.log_scale(condition)), fold)
            likelihood = lambda s: s + (residual * (-s).exp()).square() / 2
            # each with the best common factor of all cells
            level = lambda s: s + (residual * (-s).exp()).square().mean(dim=0).clamp(min=1e-12).log() / 2
            gain = likelihood(level(torch.zeros_like(log_scale))) - likelihood(level(log_scale))
            self.earned[1] = _surely_positive(gain, unit)
        self.unexplained.copy_(residual.square().mean(dim=0) / target.square().mean(dim=0).clamp(min=1e-12))

    def forward(self, x: Tensor, c: Tensor, index: Tensor | None = None) -> Tensor:
        """Residual of every cell.

        The regressors are constants here: a gradient reaches ``x`` alone, neither them nor ``c``.

        Parameters
        ----------
        x, c
            Data ``(n, n_features)`` and code ``(n, n_condition)``.
        index
            Numbers of cells that the regressors may have learned from, shape ``(n,)``: every cell then gets the
            regressor that has not seen it. ``None``, for new cells, takes the mean of the regressors (of their means
            and of their log-scales).

        Returns
        -------
        Shape ``(n, n_features)``, in the units of ``x``.
        """
        mean, factor = self._mean_and_factor(c, index)
        return (self.data_scale(x) - mean) * factor

    def restore(self, residual: Tensor, c: Tensor) -> Tensor:
        """Data of a residual and a code: the way back from :meth:`forward` without ``index``.

        Features of which the residual is 0 throughout come back as the mean regression has them.

        Parameters
        ----------
        residual, c
            ``(n, n_features)`` and ``(n, n_condition)``.

        Returns
        -------
        Shape ``(n, n_features)``, in the units of the data.
        """
        mean, factor = self._mean_and_factor(c, None)
        scaled = residual * torch.where(factor > 0, factor, torch.inf).reciprocal()
        return (mean + scaled) / self.data_scale.inverse() + self.data_scale.center

    @torch.no_grad()
    def _mean_and_factor(self, c: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean of the standardised data, and what their residual is multiplied by."""
        condition = self.condition_scale(c)

        def chosen(outputs: Tensor) -> Tensor:
            return outputs.mean(dim=0) if index is None else _own(outputs, self.fold_of(index))

        # back to the units of x, without what is error of regression alone
        factor = self.data_scale.inverse().reciprocal() * (self.unexplained > LEAST_UNEXPLAINED)
        if self.log_scale is not None:
            relative = chosen(self.mean_log_scale - _bounded(self.log_scale(condition)))
            factor = factor * (self.earned[1] * relative).exp()
        return self.earned[0] * chosen(self.mean(condition)), factor


class _Regressors(nn.Module):
    """Several networks of one shape in one batched product: a linear map plus an MLP whose last layer starts at 0.

    Parameters
    ----------
    n_networks, n_in, n_out, n_hidden, n_layers
        Number of networks, and their shape.
    """

    def __init__(self, n_networks: int, n_in: int, n_out: int, *, n_hidden: int, n_layers: int) -> None:
        super().__init__()
        widths = [n_in, *[n_hidden] * (n_layers - 1), n_out]
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(n_networks, a, b)) for a, b in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n_networks, 1, b)) for _, b in pairs)
        # one layer is the linear map already
        self.skip = nn.Parameter(torch.zeros(n_networks, n_in, n_out)) if n_layers > 1 else None
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            bound = 1 / math.sqrt(max(weight.shape[1], 1))  # as nn.Linear
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, c: Tensor) -> Tensor:
        """Map ``(n, n_in)`` to ``(n_networks, n, n_out)``."""
        c = c.expand(len(self.weights[0]), *c.shape)
        hidden = c
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden.relu() if i else hidden, weight)
        return hidden if self.skip is None else torch.baddbmm(hidden, c, self.skip)


class _RunningScale(nn.Module):
    """Standardise by running mean and variance: all batches alike at first, the last hundred or so later on.

    Parameters
    ----------
    n_features
        Number of columns.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(n_features))
        self.register_buffer("variance", torch.ones(n_features))
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take note of a batch."""
        if len(x) < 2:
            return
        self.n_batches += 1
        share = self.share
        x = x.float()
        mean = x.mean(dim=0)
        drift = mean - self.center
        # the variance of the mixture of the old and the new, so that a first batch replaces the start altogether
        spread = self.variance * (1 - share) + x.var(dim=0, correction=0) * share
        self.variance.copy_(spread + share * (1 - share) * drift.square())
        self.center.add_(share * drift)

    @property
    def share(self) -> Tensor:
        """Weight of the newest batch."""
        return (1 / self.n_batches.clamp(min=1)).clamp(min=0.01)

    def inverse(self) -> Tensor:
        """1 / standard deviation, and 1 for a constant column."""
        constant = self.variance <= 1e-12 * self.center.square()
        return self.variance.masked_fill(constant, 1.0).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) * self.inverse()


def _own(outputs: Tensor, fold: Tensor) -> Tensor:
    """Of outputs ``(folds, n, d)`` those of every cell's own fold, ``(n, d)``."""
    return outputs[fold, torch.arange(len(fold), device=fold.device)]


def _surely_positive(gain: Tensor, unit: Tensor) -> Tensor:
    """Whether the mean gain of a column is above two of its standard errors; cells of one unit count as one."""
    n_units = int(unit.max()) + 1 if len(unit) else 0
    if n_units < 2:
        return torch.zeros_like(gain[:0].sum(dim=0))
    total = gain.new_zeros(n_units, gain.shape[1]).index_add_(0, unit, gain)
    return (total.mean(dim=0) > 2 * total.std(dim=0) / math.sqrt(n_units)).to(gain.dtype)


def _bounded(log_scale: Tensor) -> Tensor:
    return _LOG_SCALE_LIMIT * torch.tanh(log_scale / _LOG_SCALE_LIMIT)
