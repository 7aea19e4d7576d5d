"""Neural critics, one per fold, trained side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from unbraid.metrics._bounds import Critic

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from unbraid.metrics._bounds import Fold

N_HIDDEN = 64
N_OUT = 32
BATCH_SIZE = 128
MAX_STEPS = 500
STEPS_PER_CHECK = 20
PATIENCE = 4  # checks
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
N_INNER = 5  # parts of the training rows; one says when to stop
N_VALIDATION = 256


def fit_critics(folds: tuple[Fold, ...], objective: str, seed: int) -> list[Critic | None]:
    """Separable critics g(a) . h(b), with two-layer networks beside linear maps, stopped on an inner validation part.

    Parameters
    ----------
    folds
        Splits, of the same features.
    objective
        `"info_nce"` (symmetric, within the batch) or `"jensen_shannon"`.
    seed
        Of the weights, the inner validation part and the batches.

    Returns
    -------
    One critic per fold; None where nothing that was learned held up on the validation part.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.from_numpy(np.stack([getattr(f, side) for f in folds])).float() for side in ("a", "b")]
    towers = [_tower(len(folds), x.shape[2], generator) for x in inputs]
    parameters = [p for tower in towers for p in tower]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    loss_of = {"info_nce": _info_nce_loss, "jensen_shannon": _jensen_shannon_loss}[objective]

    training, validation = [], []
    for f in folds:
        held_out, *others = f.inner_parts(N_INNER, rng)
        validation.append(held_out[:N_VALIDATION])
        training.append(np.concatenate(others))
    n_validation = min(map(len, validation))
    validation = np.stack([rows[:n_validation] for rows in validation])
    strata = folds[0].strata
    best = np.zeros(len(folds))
    best_parameters = [torch.zeros_like(p) for p in parameters]
    n_since = 0
    batch_size = min(BATCH_SIZE, *map(len, training))
    for step in range(1, MAX_STEPS + 1):
        rows = np.stack([_batch(some, batch_size, strata, rng) for some in training])
        loss = loss_of(*_logits(inputs, towers, rows, strata)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % STEPS_PER_CHECK == 0:
            with torch.no_grad():
                gain = -loss_of(*_logits(inputs, towers, validation, strata)).numpy()
                is_better = gain > best + 1e-4
                best = np.where(is_better, gain, best)
                chosen = torch.from_numpy(is_better)
                for kept, p in zip(best_parameters, parameters, strict=True):
                    kept[chosen] = p[chosen]
            n_since = 0 if is_better.any() else n_since + 1
            if n_since == PATIENCE:
                break

    half = len(towers[0])
    with torch.no_grad():
        x, y = (
            _embed(z, tower).double().numpy()
            for z, tower in zip(inputs, (best_parameters[:half], best_parameters[half:]), strict=True)
        )
    bias = best_parameters[half - 1].double().numpy().ravel()
    return [
        Critic(x[k][f.test], y[k][f.test], np.full(len(f.test), bias[k]), np.zeros(len(f.test)))
        if best[k] > 0
        else None
        for k, f in enumerate(folds)
    ]


def _tower(n_folds: int, n_in: int, generator: torch.Generator) -> list[Tensor]:
    """Weights of x -> linear(x) + two-layer network(x), for all folds; the last is a bias of the critic."""
    draw = lambda *shape: torch.randn(n_folds, *shape, generator=generator) / shape[0] ** 0.5
    weights = [
        draw(n_in, N_OUT) * 0.3,
        draw(n_in, N_HIDDEN),
        torch.randn(n_folds, 1, N_HIDDEN, generator=generator) * 0.5,
        draw(N_HIDDEN, N_HIDDEN),
        torch.zeros(n_folds, 1, N_HIDDEN),
        draw(N_HIDDEN, N_OUT) * 0.3,
        torch.zeros(n_folds, 1, 1),
    ]
    return [w.requires_grad_() for w in weights]


def _embed(x: Tensor, tower: list[Tensor]) -> Tensor:
    skip, first, first_bias, second, second_bias, last, _ = tower
    hidden = torch.nn.functional.silu(torch.baddbmm(first_bias, x, first))
    hidden = torch.nn.functional.silu(torch.baddbmm(second_bias, hidden, second))
    return torch.bmm(x, skip) + torch.bmm(hidden, last)


def _logits(
    inputs: list[Tensor], towers: list[list[Tensor]], rows: NDArray, strata: NDArray | None
) -> tuple[Tensor, Tensor | None]:
    """(n_folds, m, m) critic of all pairs of `rows`, and which pairs are of one stratum."""
    index = torch.from_numpy(rows)
    fold = torch.arange(len(rows))[:, None]
    x, y = (_embed(z[fold, index], tower) for z, tower in zip(inputs, towers, strict=True))
    same = None if strata is None else torch.from_numpy(strata[rows][:, :, None] == strata[rows][:, None, :])
    return torch.baddbmm(towers[0][-1], x, y.mT), same


def _info_nce_loss(f: Tensor, same: Tensor | None) -> Tensor:
    n_pairs = f.shape[1] if same is None else same.sum(dim=1)
    f = f if same is None else f.masked_fill(~same, -torch.inf)
    own = f.diagonal(dim1=1, dim2=2)
    log_mean = (f.logsumexp(dim=1) + f.logsumexp(dim=2)) / 2 - torch.as_tensor(n_pairs).log()
    return (log_mean - own).mean(dim=1)


def _jensen_shannon_loss(f: Tensor, same: Tensor | None) -> Tensor:
    """2 log 2 less the bound of Nowozin et al. (2016), so that the constant critic has 0."""
    softplus = torch.nn.functional.softplus
    own = f.diagonal(dim1=1, dim2=2)
    others = torch.ones_like(f, dtype=torch.bool) if same is None else same.clone()
    others.diagonal(dim1=1, dim2=2).fill_(False)
    n_others = others.sum(dim=(1, 2)).clamp(min=1)
    against = (softplus(f) * others).sum(dim=(1, 2)) / n_others
    return softplus(-own).mean(dim=1) + against - 2 * np.log(2)


def _batch(rows: NDArray, size: int, strata: NDArray | None, rng: np.random.Generator) -> NDArray:
    """Random rows; with strata, of neighbouring strata, so that there are pairs to tell apart."""
    if strata is None or size == len(rows):
        return rng.choice(rows, size, replace=False)
    shuffled = rng.permutation(rows)
    label = rng.permutation(strata.max() + 1)[strata[shuffled]]
    ordered = shuffled[np.argsort(label, kind="stable")]
    start = rng.integers(len(rows))
    return np.take(ordered, np.arange(start, start + size), mode="wrap")
