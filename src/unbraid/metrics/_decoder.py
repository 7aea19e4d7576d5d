"""Small decoders: from a code to values, squared error or count likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Likelihood = Literal["normal", "poisson", "bernoulli"]
Decoder = Literal["mlp", "linear"]

BATCH_SIZE, LEAST_BATCH_SIZE, WEIGHT_DECAY = 256, 16, 1e-4
LEAST_STEPS = 8  # of a pass, in smaller batches if need be
LEARNING_RATE = {"mlp": 5e-3, "linear": 2e-2}
# passes, and steps, without an improvement by this share of the null model's loss; the first few often do worse than it
PATIENCE, PATIENT_STEPS, LEAST_IMPROVEMENT = 2, 50, 1e-3
VALIDATION_SHARE = 0.1
RIDGE_PENALTIES = np.logspace(-5, 2, 8)  # relative to the number of training rows


def fit_predict(
    z: NDArray,
    values: NDArray | sparse.csr_array,
    size: NDArray,
    train: NDArray,
    *,
    likelihood: Likelihood,
    decoder: Decoder,
    hidden: int,
    max_epochs: int,
    groups: NDArray | None,
    rng: np.random.Generator,
) -> Callable[[NDArray], NDArray]:
    """Fit a decoder to the training rows; the result maps rows to their expected values.

    Parameters
    ----------
    z
        Code of all rows.
    values
        What to decode, of all rows.
    size
        Size factors of all rows.
    train
        Training rows.
    likelihood, decoder, hidden, max_epochs
        What is fitted.
    groups
        Of all rows: the training rows that decide when to stop are whole groups.
    rng
        Source of first weights, order of rows and validation rows.
    """
    centre, scale = z[train].mean(0), z[train].std(0)
    z = (z - centre) / np.where(scale > 1e-8 * np.maximum(np.abs(centre), 1.0), scale, np.inf)
    units = train if groups is None else groups[train]
    candidates = np.unique(units)
    n_validation = max(1, round(VALIDATION_SHARE * len(candidates)))
    if len(candidates) < 2:
        units, candidates = train, train
    validates = np.isin(units, rng.choice(candidates, n_validation, replace=False))
    fitted, validation = train[~validates], train[validates]

    total = np.asarray(values[train].sum(axis=0), dtype=float).ravel()
    mean = total / size[train].sum() if likelihood == "poisson" else total / len(train)
    if decoder == "linear" and likelihood == "normal":
        weight = _ridge(z, values, mean, fitted, validation, train)
        return lambda rows: mean + z[rows] @ weight

    network, spread = _trained(z, values, size, mean, fitted, validation, likelihood, decoder, hidden, max_epochs, rng)

    def predict(rows: NDArray) -> NDArray:
        with torch.no_grad():
            output = network(torch.as_tensor(z[rows], dtype=torch.float32)).double().numpy()
        if likelihood == "normal":
            return mean + spread * output
        eta = _base(mean, likelihood) + output
        return size[rows, None] * np.exp(np.minimum(eta, 30.0)) if likelihood == "poisson" else 1 / (1 + np.exp(-eta))

    return predict


def likelihood_of(values: NDArray | sparse.csr_array, given: Likelihood | None) -> Likelihood:
    """What was given, if the values suit it, or else what they look like.

    Parameters
    ----------
    values
        What is to be decoded.
    given
        The user's choice.
    """
    stored = values.data if sparse.issparse(values) else values
    is_whole = bool((stored >= 0).all() and (stored == np.rint(stored)).all())
    if given is None:
        return ("bernoulli" if stored.max(initial=0) <= 1 else "poisson") if is_whole else "normal"
    if given == "poisson" and (stored < 0).any():
        raise ValueError("x has negative values under the likelihood 'poisson'; set likelihood='normal'.")
    if given == "bernoulli" and not np.isin(stored, (0, 1)).all():
        raise ValueError("x has values other than 0 and 1 under the likelihood 'bernoulli'.")
    return given


def _base(mean: NDArray, likelihood: Likelihood) -> NDArray:
    """Linear predictor of the mean."""
    if likelihood == "poisson":
        return np.log(np.maximum(mean, 1e-8))
    mean = np.clip(mean, 1e-6, 1 - 1e-6)
    return np.log(mean / (1 - mean))


def _ridge(z, values, mean: NDArray, fitted: NDArray, validation: NDArray, train: NDArray) -> NDArray:
    """Weights of ridge regression on the training rows, its penalty chosen on validation rows."""
    dense = values[validation]
    target = (dense.toarray() if sparse.issparse(dense) else dense) - mean
    eigenvalues, vectors = np.linalg.eigh(z[fitted].T @ z[fitted])
    product = vectors.T @ (_product(z[fitted], values[fitted]) - np.outer(z[fitted].sum(0), mean))
    basis = z[validation] @ vectors
    errors = [
        ((target - basis @ (product / (eigenvalues + penalty * len(fitted))[:, None])) ** 2).sum()
        for penalty in RIDGE_PENALTIES
    ]
    penalty = RIDGE_PENALTIES[int(np.argmin(errors))] * len(train)
    right = _product(z[train], values[train]) - np.outer(z[train].sum(0), mean)
    return np.linalg.solve(z[train].T @ z[train] + penalty * np.eye(z.shape[1]), right)


def _product(z: NDArray, values: NDArray | sparse.csr_array) -> NDArray:
    return np.asarray((values.T @ z).T, dtype=float)


def _trained(
    z, values, size, mean, fitted, validation, likelihood, decoder, hidden, max_epochs, rng
) -> tuple[torch.nn.Module, float]:
    """Network with the lowest validation loss, and the scale of its output."""
    widths = [z.shape[1], values.shape[1]] if decoder == "linear" else [z.shape[1], hidden, values.shape[1]]
    network = _network(widths, rng)
    spread = 1.0
    if likelihood == "normal":
        part = values[fitted[:2000]]
        spread = float((part.toarray() if sparse.issparse(part) else part).std(0).mean()) or 1.0
    base = torch.as_tensor(mean if likelihood == "normal" else _base(mean, likelihood), dtype=torch.float32)
    z = torch.as_tensor(z, dtype=torch.float32)

    def loss_of(rows: NDArray) -> torch.Tensor:
        dense = values[rows]
        x = torch.as_tensor(np.asarray(dense.toarray() if sparse.issparse(dense) else dense, dtype=np.float32))
        output = network(z[rows])
        if likelihood == "normal":
            return F.mse_loss(output, (x - base) / spread)
        if likelihood == "bernoulli":
            return F.binary_cross_entropy_with_logits(base + output, x)
        eta = base + output + torch.as_tensor(np.log(size[rows]), dtype=torch.float32)[:, None]
        return (torch.exp(eta.clamp(max=30)) - x * eta).mean() / max(float(mean.mean()), 1e-8)

    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE[decoder], weight_decay=WEIGHT_DECAY)
    n_steps = max(1, len(fitted) // BATCH_SIZE, min(LEAST_STEPS, len(fitted) // LEAST_BATCH_SIZE))
    best, best_state, since, least = np.inf, None, 0, 0.0
    for epoch in range(max_epochs + 1):
        if epoch > 0:  # before, it is the null model
            for rows in np.array_split(rng.permutation(fitted), n_steps):
                optimizer.zero_grad()
                loss_of(rows).backward()
                optimizer.step()
        with torch.no_grad():
            parts = np.array_split(validation, max(1, len(validation) // 1024))
            loss = float(sum(loss_of(rows) * len(rows) for rows in parts)) / len(validation)
        since += 1
        if loss < best - least:
            since = 0
        if loss < best:
            best = loss
            best_state = {name: value.clone() for name, value in network.state_dict().items()}
        least = LEAST_IMPROVEMENT * abs(best) if epoch == 0 else least
        if since >= max(PATIENCE, -(-PATIENT_STEPS // n_steps)):
            break
    network.load_state_dict(best_state)
    return network, spread


def _network(widths: list[int], rng: np.random.Generator) -> torch.nn.Module:
    """Rectified layers; the last one starts at zero, so that training starts at the mean."""
    layers: list[torch.nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        layer = torch.nn.utils.skip_init(torch.nn.Linear, n_in, n_out)  # no draw from torch's global generator
        is_last = i == len(widths) - 2
        scale = 0.0 if is_last else np.sqrt(2 / n_in)
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(scale * rng.normal(size=(n_out, n_in))))
            layer.bias.zero_()
        layers += [layer] if is_last else [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers)
