from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Denoiser = Callable[[Tensor, Tensor], Tensor]


def sigmoid_schedule(n_steps: int = 1_000, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    r"""Share of signal that is left after every step of a diffusion.

    :math:`\bar\alpha_t = \frac{\sigma(e / \tau) - \sigma((s + (e - s)\, t / T) / \tau)}{\sigma(e / \tau) - \sigma(s /
    \tau)}` [1]_, with a single step keeping no less than a thousandth, so that the last step is noise but not exactly.

    Parameters
    ----------
    n_steps
        :math:`T`.
    start, end, tau
        :math:`s, e` and :math:`\tau`.

    Returns
    -------
    :math:`\bar\alpha_1, \dots, \bar\alpha_T`, falling, float32 ``(n_steps,)``.

    References
    ----------
    .. [1] Jabri et al. Scalable adaptive computation for iterative generation. ICML 2023, algorithm 1.
    """
    t = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    low, high = (torch.sigmoid(torch.tensor(x / tau, dtype=torch.float64)) for x in (start, end))
    signal = (high - torch.sigmoid((start + (end - start) * t) / tau)) / (high - low)
    kept = (signal[1:] / signal[:-1]).clamp(min=1e-3)
    return kept.cumprod(0).float()


def denoising_loss(
    predict: Denoiser, x: Tensor, signal: Tensor, *, weight_range: tuple[float, float] = (1.0, 100.0)
) -> Tensor:
    r"""Weighted error of a network that finds the data in a noisy version of them, at one random step per row.

    With :math:`x_t = \sqrt{\bar\alpha_t}\, x + \sqrt{1 - \bar\alpha_t}\, \varepsilon` and the signal-to-noise ratio
    :math:`\mathrm{SNR}_t = \bar\alpha_t / (1 - \bar\alpha_t)`,

    .. math:: \mathbb E_{t, \varepsilon}\, \mathrm{clamp}(\mathrm{SNR}_t, a, b)\, \|x - \hat x(x_t, t)\|^2 ,

    the objective of the diffusion priors of IDMVAE's released code. It is no bound of a likelihood; that is
    :func:`diffusion_log_density`.

    Parameters
    ----------
    predict
        ``(n, d)`` noisy rows and ``(n,)`` steps (0 the first) to the rows without noise.
    x
        Rows ``(n, d)``.
    signal
        :math:`\bar\alpha`, ``(T,)``; see :func:`sigmoid_schedule`.
    weight_range
        :math:`a, b`.

    Returns
    -------
    Scalar, summed over dimensions and averaged over rows.
    """
    step = torch.randint(len(signal), (len(x),), device=x.device)
    a = signal[step].unsqueeze(1)
    noisy = a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)
    weight = (a / (1 - a)).clamp(*weight_range)
    return (weight * (predict(noisy, step) - x).square()).sum(1).mean()


def diffusion_log_density(predict: Denoiser, x: Tensor, signal: Tensor, *, max_snr: float = 100.0) -> Tensor:
    r"""Unbiased estimate, from one random step per row, of a lower bound of the log density of a diffusion model.

    .. math::

        \log p(x) \ge - \tfrac d2 \log \frac{2 \pi e}{\mathrm{SNR}_f}
            - \mathrm{KL}\big(q(x_T \mid x) \,\|\, \mathcal N(0, I)\big)
            - \sum_{t=f+1}^{T} \tfrac12 (\mathrm{SNR}_{t-1} - \mathrm{SNR}_t)\,
              \mathbb E\, \|x - \hat x(x_t, t)\|^2

    ([1]_, equations 11-14), the first term being that of the data given step f. It is exact for an optimal network in
    the limit of many steps and a large :math:`\mathrm{SNR}_f`. One step is drawn for every row, in proportion to
    :math:`\log(1 + \mathrm{SNR}_{t-1}) - \log(1 + \mathrm{SNR}_t)`: what it would contribute for rows from
    :math:`\mathcal N(0, I)`.

    Parameters
    ----------
    predict, x, signal
        As in :func:`denoising_loss`.
    max_snr
        f is the first step whose signal-to-noise ratio is no larger. Finer detail than :math:`1 / \sqrt{100}` is left
        to a normal distribution: a schedule with uniform steps is too coarse for it, and its bound loose.

    Returns
    -------
    ``(n,)``, in nats.

    References
    ----------
    .. [1] Kingma et al. Variational diffusion models. NeurIPS 2021.
    """
    n, d = x.shape
    ratio = (signal / (1 - signal)).cpu().double()  # not every accelerator has float64
    first = int((ratio > max_snr).sum().clamp(max=len(ratio) - 2))
    reconstruction = -0.5 * d * math.log(2 * math.pi * math.e / float(ratio[first]))
    last = signal[-1]
    end = 0.5 * (last * x.square() - last - torch.log1p(-last)).sum(1)
    before, after = ratio[first:-1], ratio[first + 1 :]
    share = torch.log1p(before) - torch.log1p(after)
    share = share / share.sum()
    drawn = torch.multinomial(share.float(), n, replacement=True)
    step = (first + 1 + drawn).to(x.device)
    a = signal[step].unsqueeze(1)
    noisy = a.sqrt() * x + (1 - a).sqrt() * torch.randn_like(x)
    error = (predict(noisy, step) - x).square().sum(1)
    return reconstruction - end - ((before - after) / (2 * share))[drawn].to(x) * error
