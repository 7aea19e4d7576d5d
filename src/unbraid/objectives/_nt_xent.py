from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from unbraid.objectives._unit import check_groups, check_pairs, check_widths, no_negatives, unit

if TYPE_CHECKING:
    from torch import Tensor


def nt_xent(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    groups: Tensor | None = None,
    replicates: Tensor | None = None,
) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy of SimCLR between two views.

    With :math:`u_1, \dots, u_{2n}` the rows of both views stacked and scaled to unit length and :math:`p(i)` the
    partner of row :math:`i`,

    .. math::

        -\frac{1}{2n} \sum_{i=1}^{2n} \log \frac{\exp(\langle u_i, u_{p(i)} \rangle / \tau)}
            {\sum_{j \neq i} \exp(\langle u_i, u_j \rangle / \tau)}

    ([1]_, equation 1). Every anchor has :math:`2n - 2` negatives: other than in :func:`info_nce`, rows of the same
    view are negatives of each other.

    Parameters
    ----------
    a, b
        Paired rows of the two views, ``(n, d)`` each, floating point; row ``i`` of ``a`` belongs to row ``i`` of ``b``.
    temperature
        :math:`\tau > 0`. A scalar tensor makes it learnable.
    groups
        ``(n,)`` integers. Negatives then come from the anchor's own group only, such as its experimental batch. The
        loss is the mean of the groups' losses, weighted by their sizes; a pair alone in its group contributes 0.
    replicates
        ``(n,)`` integers. Rows with the same one, such as profiles of one compound, are never negatives of each other,
        in the same view or in the other.

    Returns
    -------
    Scalar in :math:`[0, \log(2n - 1) + 2 / \tau]`; 0, connected to the graph, when ``n < 2``.

    Raises
    ------
    ValueError
        When ``a`` and ``b`` are not two ``(n, d)`` matrices, when ``groups`` or ``replicates`` has not one entry per
        row, or when ``temperature`` is a number that is not positive.

    Notes
    -----
    The contrastive term of CoMM [2]_, between one view of a masked and another of the whole sample, and of the
    released code of FOCAL.

    References
    ----------
    .. [1] Chen et al. A simple framework for contrastive learning of visual representations. ICML 2020.
    .. [2] Dufumier et al. What to align in multimodal contrastive learning? ICLR 2025.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import nt_xent
    >>> a = torch.eye(2)
    >>> round(nt_xent(a, a, temperature=1.0).item(), 4)  # -log(e / (e + 2))
    0.5514
    """
    n = check_pairs(a, b, "a and b")
    check_widths(a, b, "a and b", "nt_xent")
    check_groups(groups, n)
    check_groups(replicates, n, "replicates")
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")

    rows = unit(torch.cat([a, b]))
    logits = (rows / temperature) @ rows.T
    row = torch.arange(2 * n, device=logits.device)
    excluded = row[:, None] == row
    if (apart := no_negatives(groups, replicates)) is not None:
        excluded = excluded | apart.repeat(2, 2)
    return cross_entropy(logits.masked_fill(excluded, -torch.inf), row.roll(n), reduction="sum") / max(2 * n, 1)
