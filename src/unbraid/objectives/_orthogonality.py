from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from unbraid.objectives._unit import center, check_pairs, check_widths, unit

if TYPE_CHECKING:
    from torch import Tensor


def orthogonality(
    specific: Tensor,
    shared: Tensor,
    *,
    kind: Literal["rows", "columns", "correlation", "cosine"] = "rows",
    divide_by_batch: bool = False,
    hinge: bool = False,
) -> Tensor:
    r"""Overlap of a specific and a shared latent over a batch, as a penalty.

    The literature has one name for different losses. With :math:`S` the specific latent, :math:`C` the shared one,
    rows the :math:`n` samples:

    ``"rows"``
        :math:`\lVert \bar S^\top \bar C \rVert_F` with every *sample* scaled to unit length. DisentangledSSL as
        released code. It grows with the batch: about :math:`\sqrt n` for independent centred latents, between
        :math:`n / \sqrt d` and :math:`n` for identical ones. Published weights belong to a batch of 256. Means
        other than zero are penalised too.
    ``"columns"``
        :math:`\lVert \tilde S^\top \tilde C \rVert_F` with every *dimension* scaled to unit length over the batch:
        the cosine similarities between latent dimensions, equation 11 of [1]_ as its text words it. About
        :math:`\sqrt{d_s d_c / n}` for independent centred latents.
    ``"correlation"``
        The same after centring every dimension: the Frobenius norm of the cross-correlation matrix. The only kind
        that vanishes for uncorrelated latents whose means are not zero. A constant dimension contributes 0.
    ``"cosine"``
        :math:`\frac1n \sum_i \cos(s_i, c_i)`. The orthogonality constraint of FOCAL [2]_, which hinges each sample
        at 0; without the hinge, as in DisentangledSSL's FOCAL baseline, opposite directions are rewarded.

    Parameters
    ----------
    specific
        ``(n, d_s)``, floating point.
    shared
        ``(n, d_c)``, floating point, rows paired with ``specific``; ``"cosine"`` needs ``d_c = d_s``.
    kind
        Which of the four losses.
    divide_by_batch
        Divide ``"rows"`` by :math:`n`, for a weight that survives another batch size.
    hinge
        Replace each sample's ``"cosine"`` by :math:`\max(0, \cos)`.

    Returns
    -------
    Scalar. ``"rows"`` lies in :math:`[0, n]`, ``"columns"`` and ``"correlation"`` in
    :math:`[0, \sqrt{d_s d_c}]`, ``"cosine"`` in [-1, 1]. Gradients are finite everywhere: 0 at a zero row or column,
    and 0 where the norm is 0.

    Raises
    ------
    ValueError
        When the latents are not two matrices with paired rows, when ``kind`` is unknown, when ``"cosine"`` gets
        latents of different width, or when an option is given to a kind that has no use for it.

    References
    ----------
    .. [1] Wang et al. An information criterion for controlled disentanglement of multimodal data. ICLR 2025.
    .. [2] Liu et al. FOCAL: contrastive learning for multimodal time-series sensing signals in factorized orthogonal
       latent space. NeurIPS 2023.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import orthogonality
    >>> shared = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    >>> specific = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    >>> orthogonality(specific, shared).item()
    0.0
    >>> orthogonality(shared, shared).item(), orthogonality(shared, shared, kind="columns").item()
    (4.0, 1.0)
    """
    n = check_pairs(specific, shared, "specific and shared")
    if kind not in ("rows", "columns", "correlation", "cosine"):
        raise ValueError(f"kind must be 'rows', 'columns', 'correlation' or 'cosine', got {kind!r}.")
    if divide_by_batch and kind != "rows":
        raise ValueError(f"divide_by_batch belongs to kind='rows'; kind={kind!r} does not grow with the batch.")
    if hinge and kind != "cosine":
        raise ValueError(f"hinge belongs to kind='cosine'; kind={kind!r} is never negative.")

    if kind == "cosine":
        check_widths(specific, shared, "specific and shared", "kind='cosine'")
        cosines = (unit(specific) * unit(shared)).sum(dim=1)
        return (cosines.relu() if hinge else cosines).sum() / max(n, 1)

    if kind == "correlation":
        specific, shared = center(specific), center(shared)
    dim = 1 if kind == "rows" else 0
    norm = torch.linalg.vector_norm(unit(specific, dim).T @ unit(shared, dim))  # eq. 11; subgradient 0 at 0
    return norm / max(n, 1) if divide_by_batch else norm
