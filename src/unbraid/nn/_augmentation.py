"""Random views of a cell, for objectives that ask what survives a disturbance."""

from __future__ import annotations

import torch
from torch import nn


class NoiseDropout(nn.Module):
    """Noise, dropout or nothing, chosen per sample with equal probability.

    The augmentation of DisentangledSSL's simulation (Wang et al., appendix H.1, as in the released
    code): normal noise of ``noise_std`` on every feature; or exactly ``floor(dropout * n_features)``
    randomly chosen features set to zero; or the sample as it is.

    Parameters
    ----------
    noise_std
        Standard deviation of the noise.
    dropout
        Fraction of features set to zero.
    """

    on_counts = False

    def __init__(self, noise_std: float = 0.01, dropout: float = 0.1) -> None:
        super().__init__()
        self.noise_std, self.dropout = noise_std, dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One view of ``x``, shape ``(n, n_features)``."""
        n_obs, n_features = x.shape
        choice = torch.randint(3, (n_obs,), device=x.device)
        noisy, dropped = choice == 0, choice == 1
        view = x.clone()
        view[noisy] += self.noise_std * torch.randn_like(view[noisy])
        n_dropped = int(self.dropout * n_features + 1e-9)  # 0.29 * 100 is 28.999...
        if n_dropped and dropped.any():
            rows = view[dropped]
            out = torch.rand_like(rows).topk(n_dropped, dim=1, sorted=False).indices
            view[dropped] = rows.scatter(1, out, 0.0)
        return view


class BinomialThinning(nn.Module):
    """Keep every molecule of a count with a fixed probability: x' ~ Binomial(x, ``keep``).

    Thinned Poisson counts are Poisson again, so a view is what a shallower sequencing run of the
    same cell would have shown.

    Parameters
    ----------
    keep
        Probability that a molecule is kept.
    """

    on_counts = True

    def __init__(self, keep: float = 0.7) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise ValueError(f"`keep` is a probability above 0, got {keep}.")
        self.keep = keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One view of the counts ``x``, shape ``(n, n_features)``."""
        # most counts are zero: draw only where there is something to draw from
        flat = x.flatten()
        where = flat.nonzero().squeeze(1)
        counts = flat[where].round_()
        drawn = (torch.rand_like(counts) < self.keep).to(counts.dtype)
        several = (counts > 1).nonzero().squeeze(1)
        counts = counts[several]
        drawn[several] = torch.binomial(counts, torch.full_like(counts, self.keep))
        return torch.zeros_like(flat).index_copy_(0, where, drawn).view_as(x)
