"""Shared encoders of a split that starts linear, judged by what they tell of held-out pairs."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unbraid.module._base import centered, on_present_rows
from unbraid.module._code_head import CodeHead
from unbraid.module._independence import permuted
from unbraid.module._linear import one_of_each
from unbraid.nn import MLP, PerModality
from unbraid.objectives import canonical_log_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from unbraid.module._base import Peers

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0)  # a ratio whose correlations are too large is over-confident
MAX_PAIRS = 800  # of a matrix of scores; the bound ends at its logarithm
MAX_BLOCKS = 4  # of so many pairs each, if there are more
N_PERMUTATIONS = 100
SLOWNESS = 0.1  # of the linear map beside a network


class AdditiveEncoder(nn.Module):
    r"""A linear map with a network beside it, :math:`f(x) = (A + 0.1\, U \Delta)^\top x + g(x / s)`.

    Parameters
    ----------
    n_in, n_out
        Widths.
    linear, network
        Which of the two terms there are; at least one.
    **options
        Of the :class:`~unbraid.nn.MLP` :math:`g`.

    Notes
    -----
    :math:`A` is given by :meth:`start`. The map :math:`U` whitens, so that all directions of :math:`\Delta` learn
    alike, ten times slower than the network. What :math:`g` sees is not whitened: noise would weigh as much as signal.
    """

    def __init__(self, n_in: int, n_out: int, *, linear: bool, network: bool, **options: Any) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.linear = linear
        if linear:
            self.register_buffer("linear_start", torch.zeros(n_in, n_out))
            self.register_buffer("whitener", torch.zeros(n_in, n_in))
        self.change = nn.Parameter(torch.zeros(n_in, n_out)) if linear and network else None
        self.network = MLP(n_in, n_out, **options) if network else None

    @torch.no_grad()
    def start(self, canonical: Tensor, whitener: Tensor, scale: float) -> None:
        """Begin as a linear map: where it has columns, the network adds nothing yet.

        Parameters
        ----------
        canonical
            Columns of :math:`A`, ``(n_in, rank)``; further outputs begin as the network draws them.
        whitener
            :math:`U`, ``(n_in, n_in)``.
        scale
            :math:`s`.
        """
        self.scale.fill_(scale)
        if not self.linear:
            return
        rank = canonical.shape[1]
        self.linear_start[:, :rank] = canonical.to(self.linear_start)
        self.whitener.copy_(whitener)
        if self.network is not None:
            last = self.network.layers[-1]
            last.weight[:rank] = 0.0
            last.bias[:rank] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, n_in)`` to ``(n, n_out)``."""
        if not self.linear:
            return self.network(x / self.scale)
        weight = self.linear_start
        if self.change is not None:
            weight = weight + SLOWNESS * (self.whitener @ self.change)
        value = x @ weight
        return value if self.network is None else value + self.network(x / self.scale)


class CanonicalCandidate(nn.Module):
    """Shared encoders of all modalities with their canonical axes, and what held-out cells say of them.

    Parameters
    ----------
    sizes
        Per modality, its number of components.
    n_codes
        Dimensions, before those that say nothing of held-out cells are dropped.
    linear, network
        Terms of the encoders; see :class:`AdditiveEncoder`.
    **options
        Of the networks.

    Attributes
    ----------
    correlation
        Held-out correlation of every dimension, mean over the pairs of modalities, ``(n_codes,)``.
    n_cells
        Number of held-out pairs that it was estimated from.
    kept
        Dimensions that correlate more than re-paired cells do, ``(n_codes,)``.
    threshold
        What re-paired cells reach: 95 % quantile of the largest correlation.
    information, information_error
        Held-out bound (nats) of the information that a cell's codes have of each other, and its standard error.
    """

    def __init__(self, sizes: Mapping[str, int], n_codes: int, *, linear: bool, network: bool, **options: Any) -> None:
        super().__init__()
        self.encoders = PerModality(
            {m: AdditiveEncoder(p, n_codes, linear=linear, network=network, **options) for m, p in sizes.items()}
        )
        self.head = CodeHead(list(sizes), n_codes, sphere=False, canonical=True)
        self.register_buffer("correlation", torch.zeros(n_codes))
        self.register_buffer("kept", torch.zeros(n_codes, dtype=torch.bool))
        for name in ("n_cells", "threshold", "information", "information_error"):
            self.register_buffer(name, torch.zeros(()))
        n_pairs = len(sizes) * (len(sizes) - 1) // 2
        self.register_buffer("terms", torch.full((n_pairs, MAX_BLOCKS * MAX_PAIRS), torch.nan))  # of the bound, by cell

    @property
    def kept_correlation(self) -> Tensor:
        """Held-out correlation of the kept dimensions, ``(n_kept,)``."""
        return self.correlation[self.kept].clamp(min=1e-3)

    def outputs(self, components: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the encoders give, per modality, ``(n, n_codes)``."""
        return {m: on_present_rows(self.encoders[m], mask[m], components[m]) for m in components}

    def code(self, m: str, components: Tensor) -> Tensor:
        """Canonical code of a modality, kept dimensions alone, ``(n, n_kept)``."""
        return self.all_dimensions(m, components)[:, self.kept]

    def all_dimensions(self, m: str, components: Tensor) -> Tensor:
        """Canonical code with the dimensions that were not kept, ``(n, n_codes)``."""
        return self.head(m, self.encoders[m](components))

    @torch.no_grad()
    def judge(
        self, codes: Mapping[str, Tensor], mask: Mapping[str, Tensor], peers: Peers, *, n_kept: int | None
    ) -> None:
        """Note what held-out cells say.

        Parameters
        ----------
        codes
            Codes of held-out cells with all dimensions, ``(n, n_codes)``.
        mask
            Which cells have which modality.
        peers
            Batch of every cell, if batches are taken apart; pairs are then compared within batches. Of replicates in
            a batch one is looked at.
        n_kept
            Number of dimensions to keep; None lets the re-pairings decide.
        """
        pairs = _pairs(codes, mask, peers)
        if not pairs:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rho = _mean_correlation(pairs)
            null = torch.stack([_mean_correlation(pairs, repair=True).max() for _ in range(N_PERMUTATIONS)])
            self.correlation.copy_(rho.clamp(0, 1))
            self.n_cells.fill_(sum(len(a) for a, _, _ in pairs) / len(pairs))
            self.threshold.copy_(null.quantile(0.95))
            self.kept.copy_(rho > self.threshold)
            if n_kept is not None or not self.kept.any():
                self.kept.fill_(False)[rho.topk(min(n_kept or 1, len(rho))).indices] = True
            bounds = [held_out_information(a, b, g, self.kept) for a, b, g in pairs]
        self.terms.fill_(torch.nan)
        for row, (_, terms) in zip(self.terms, bounds, strict=False):
            row[: len(terms)] = terms
        self.information.copy_(torch.stack([value for value, _ in bounds]).mean())
        self.information_error.copy_(_standard_error(self.terms))

    def gain_over(self, other: CanonicalCandidate) -> tuple[float, float]:
        """How much more information than another candidate's, and the standard error of this on the same cells."""
        return float(self.information - other.information), float(_standard_error(self.terms - other.terms))

    def joint(self, shared: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        r"""Mean of a one-factor model given the codes of the modalities S that a cell has.

        .. math:: \sqrt\rho \sum_{m \in S} z_m / (1 + (|S| - 1) \rho)
        """
        rho = self.kept_correlation
        present = sum(mask[m].to(rho.dtype) for m in shared).unsqueeze(1)
        return rho.sqrt() * sum(shared.values()) / (1 + (present - 1) * rho)


class CrossedJudgement(nn.Module):
    """What held-out cells say of the best epoch of a candidate, when each half of them is told by the other half's.

    The best of many epochs owes something to chance on the very cells that chose it. Here the epoch that one half of
    the cells chooses is read on the other half.

    Parameters
    ----------
    n_pairs
        Pairs of modalities.
    """

    def __init__(self, n_pairs: int) -> None:
        super().__init__()
        self.register_buffer("best", torch.full((3,), -torch.inf))  # by either half, and by all cells
        self.register_buffer("terms", torch.full((n_pairs, MAX_BLOCKS * MAX_PAIRS), torch.nan))

    @torch.no_grad()
    def see(self, candidate: CanonicalCandidate) -> None:
        """Take note of an epoch."""
        for half in range(2):
            value = _mean_of_terms(candidate.terms[:, half::2])
            if value > self.best[half]:
                self.best[half] = value
                self.terms[:, 1 - half :: 2] = candidate.terms[:, 1 - half :: 2]
        self.best[2] = torch.maximum(self.best[2], _mean_of_terms(candidate.terms))

    @torch.no_grad()
    def settle(self, candidate: CanonicalCandidate) -> None:
        """Give a candidate that has the weights of its best epoch what is said of it here."""
        if torch.isfinite(self.best[2]) and _mean_of_terms(candidate.terms) >= self.best[2]:
            gain = _mean_of_terms(self.terms) - _mean_of_terms(candidate.terms)
            candidate.terms.copy_(self.terms)
            candidate.information.add_(gain)
            candidate.information_error.copy_(_standard_error(self.terms))


def _mean_of_terms(terms: Tensor) -> Tensor:
    """Mean over pairs of modalities of the mean over cells; NaN stands for no cell."""
    return terms[terms.isfinite().any(dim=1)].nanmean(dim=1).mean()


def _pairs(codes, mask, peers: Peers) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Codes of the cells that have both modalities of a pair, less the mean of their batch, and their batch."""
    pairs = []
    for m, n in combinations(codes, 2):
        both = (mask[m] & mask[n]).nonzero().squeeze(1)
        if peers.replicates is not None:
            batch = None if peers.groups is None else peers.groups[both].cpu().numpy()
            both = both[one_of_each(peers.replicates[both].cpu().numpy(), batch)]
        if len(both) > 2:
            g = peers[both].groups
            pairs.append((_centred(codes[m][both], g), _centred(codes[n][both], g), g))
    return pairs


def _centred(x: Tensor, groups: Tensor | None) -> Tensor:
    return x - x.mean(dim=0) if groups is None else centered(x, groups)


def _mean_correlation(pairs, *, repair: bool = False) -> Tensor:
    values = []
    for a, b, g in pairs:
        b = b[permuted(len(b), g, b.device)] if repair else b
        length = (a.square().sum(dim=0) * b.square().sum(dim=0)).sqrt()
        values.append((a * b).sum(dim=0) / torch.where(length > 1e-12, length, torch.inf))
    return torch.stack(values).mean(dim=0)


def _standard_error(terms: Tensor) -> Tensor:
    """Standard error of the mean over pairs of modalities of the mean over cells; NaN stands for no cell."""
    pairs = [row[row.isfinite()] for row in terms]
    errors = [row.var() / len(row) for row in pairs if len(row) > 1]
    return torch.stack(errors).sum().sqrt() / len(errors) if errors else terms.new_zeros(())


def held_out_information(a: Tensor, b: Tensor, groups: Tensor | None, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Held-out InfoNCE bound of the canonical log-likelihood ratio, mean of both directions, and its term for every cell.

    Correlations and the temperature that each half of the cells is judged with are those of the other half. More than 800
    cells are judged in up to four blocks of 800: the bound still ends at the logarithm of 800, and is surer.

    Parameters
    ----------
    a, b
        Canonical codes of paired held-out cells, centred, ``(n, k)``.
    groups
        Batch of every cell, within which cells are compared; None for all.
    kept
        Dimensions that count, bool ``(k,)``.
    """
    order = torch.randperm(len(a)).to(a.device)
    a, b, groups = a[order], b[order], None if groups is None else groups[order]
    n_blocks = min(max(len(a) // MAX_PAIRS, 1), MAX_BLOCKS)
    blocks = [slice(k * MAX_PAIRS, (k + 1) * MAX_PAIRS) for k in range(n_blocks)]
    terms = torch.zeros(min(len(a), n_blocks * MAX_PAIRS), device=a.device)
    for half in range(2):
        rho = _mean_correlation([(a[1 - half :: 2], b[1 - half :: 2], None)]).clamp(0, 1) * kept
        scores = [canonical_log_ratio(a[block], b[block], rho) for block in blocks]
        found = torch.cat(
            [
                _bound_terms(s, None if groups is None else groups[block])
                for s, block in zip(scores, blocks, strict=True)
            ],
            dim=1,
        )
        terms[half::2] = found[found[:, 1 - half :: 2].mean(dim=1).argmax(), half::2]
    return terms.mean(), terms


def _bound_terms(scores: Tensor, groups: Tensor | None) -> Tensor:
    """Term of the InfoNCE bound of every pair at every temperature, mean of both directions, ``(temperatures, n)``."""
    if groups is not None:
        scores = scores.masked_fill(groups[:, None] != groups, -torch.inf)
    log_size = scores.isfinite().sum(dim=0).log()
    both = lambda s: (s.log_softmax(dim=1).diagonal() + s.log_softmax(dim=0).diagonal()) / 2
    return torch.stack([both(scores / t) for t in TEMPERATURES]) + log_size
