from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """Scale ``x`` to unit length along ``dim``; a zero vector stays zero and gets a zero gradient.

    Dividing by ``max(norm, eps)`` instead would send a gradient of order ``1 / eps`` into a zero vector.
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / norm.masked_fill(norm == 0, torch.inf)


def check_pairs(first: Tensor, second: Tensor, names: str) -> int:
    """Return the number of paired rows, or say what is wrong with the two tensors."""
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(
            f"{names} must be two matrices whose rows are paired, "
            f"got shapes {tuple(first.shape)} and {tuple(second.shape)}."
        )
    return len(first)


def check_widths(first: Tensor, second: Tensor, names: str, why: str) -> None:
    """Raise when the two matrices have a different number of columns."""
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"{why} needs {names} of equal width, got {first.shape[1]} and {second.shape[1]} columns.")


def center(x: Tensor) -> Tensor:
    """Take the column means out; a constant column becomes exactly 0, where the mean alone leaves rounding noise."""
    x = x - x[:1].detach()
    return x - x.sum(dim=0) / max(len(x), 1)


def check_groups(groups: Tensor | None, n: int, name: str = "groups") -> None:
    """Raise unless there is one group per row, or none at all."""
    if groups is not None and groups.shape != (n,):
        raise ValueError(f"{name} must have one entry per row, shape ({n},), got {tuple(groups.shape)}.")


def no_negatives(groups: Tensor | None, replicates: Tensor | None) -> Tensor | None:
    """Which rows are no negatives of which: ``(n, n)`` bool, False on the diagonal; None if all are.

    Those of another group, and those that are replicates.
    """
    excluded = None if groups is None else groups[:, None] != groups
    if replicates is not None:
        same = (replicates[:, None] == replicates).fill_diagonal_(False)
        excluded = same if excluded is None else excluded | same
    return excluded
