from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import cross_entropy, softplus

from unbraid._messages import check_option
from unbraid.objectives._unit import check_groups, check_pairs, check_widths, no_negatives, unit

if TYPE_CHECKING:
    from torch import Tensor


def info_nce(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    groups: Tensor | None = None,
    replicates: Tensor | None = None,
    positives: Literal["own", "replicates"] = "own",
    normalize: bool = True,
    symmetric: bool = True,
) -> Tensor:
    r"""InfoNCE between two views, with the other view's rows of the batch as negatives.

    With rows scaled to unit length, one direction is

    .. math::

        \mathrm{CE}(A, B) = -\frac{1}{n} \sum_i \log
            \frac{\exp(\langle a_i, b_i \rangle / \tau)}{\sum_j \exp(\langle a_i, b_j \rangle / \tau)}

    and the symmetric loss is :math:`\tfrac12 [\mathrm{CE}(A, B) + \mathrm{CE}(B, A)]`. Rows of the same view are
    never negatives of each other. :math:`\log n - \mathrm{CE}(A, B)` is a lower bound, in nats, of the mutual
    information of the two views.

    Parameters
    ----------
    a, b
        Paired rows of the two views, ``(n, d)`` each, floating point; row ``i`` of ``a`` belongs to row ``i`` of ``b``.
    temperature
        :math:`\tau > 0`. A scalar tensor makes it learnable.
    groups
        ``(n,)`` integers. Negatives then come from the anchor's own group only, such as its experimental batch, so
        that telling the groups apart earns nothing. The loss is the mean of the groups' losses, weighted by their
        sizes; an anchor alone in its group contributes exactly 0.
    replicates
        ``(n,)`` integers. Rows with the same one, such as profiles of one compound, are never negatives of each other.
    positives
        Whom a row is to find: its ``"own"`` partner, or those of all its ``"replicates"`` in its group, see the notes.
    normalize
        Compare directions (cosines). ``False`` takes the plain dot products.
    symmetric
        Average both directions. ``False`` keeps :math:`\mathrm{CE}(A, B)`: each row of ``a`` looks for its row of
        ``b``.

    Returns
    -------
    Scalar in :math:`[0, \log n + 2 / \tau]` for normalised rows; 0, connected to the graph, when ``n < 2``.

    Raises
    ------
    ValueError
        When ``a`` and ``b`` are not two ``(n, d)`` matrices, when ``groups`` or ``replicates`` has not one entry per
        row, when replicates are to be found and none are named, or when ``temperature`` is a number that is not positive.

    Notes
    -----
    With :math:`P_i` the replicates of row i in its group, itself included, and :math:`N_i` the other rows of its group,
    one direction of the loss with ``positives="replicates"`` is the supervised contrastive loss (outside the logarithm
    [4]_), but without other positives in the denominator:

    .. math::

        -\frac{1}{n} \sum_i \frac{1}{|P_i|} \sum_{p \in P_i} \log
            \frac{\exp(\langle a_i, b_p \rangle / \tau)}
            {\exp(\langle a_i, b_p \rangle / \tau) + \sum_{j \in N_i} \exp(\langle a_i, b_j \rangle / \tau)}

    Where replicates are equal in one of the views, as a molecule is to itself, this is the loss of ``"own"``: every row
    already has all of them for a partner. It differs where both views are measurements, and under augmentation.

    The one-directional loss is that of [1]_, the symmetric one that of CLIP [2]_. Both average over anchors and keep
    the positive in the denominator. Step 1 of DisentangledSSL ([3]_, Appendix G) is
    ``info_nce(z1, z2) - beta * alignment(mu1, mu2)``; its equation 10, step 2, is the same loss between two
    augmented views. As in its released code the negatives are the batch and both directions are averaged.

    References
    ----------
    .. [1] van den Oord, Li and Vinyals. Representation learning with contrastive predictive coding. 2018.
    .. [2] Radford et al. Learning transferable visual models from natural language supervision. ICML 2021.
    .. [3] Wang et al. An information criterion for controlled disentanglement of multimodal data. ICLR 2025.
    .. [4] Khosla et al. Supervised contrastive learning. NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import info_nce
    >>> a = torch.eye(4)
    >>> round(info_nce(a, a, temperature=0.5).item(), 4)
    0.3408
    >>> info_nce(a, a, groups=torch.arange(4)).item()  # nobody to be told apart from
    0.0
    """
    n = check_pairs(a, b, "a and b")
    check_widths(a, b, "a and b", "info_nce")
    check_groups(groups, n)
    check_groups(replicates, n, "replicates")
    check_option("positives", positives, ("own", "replicates"))
    if positives == "replicates" and replicates is None:
        raise ValueError("positives='replicates' needs replicates: the group of every row.")
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")

    if normalize:
        a, b = unit(a), unit(b)
    logits = (a / temperature) @ b.T
    excluded = no_negatives(groups, replicates)
    if positives == "replicates":
        found = replicates[:, None] == replicates
        found = found if groups is None else found & (groups[:, None] == groups)
        loss = _find_all(logits, found, excluded)
        return ((loss + _find_all(logits.T, found, excluded)) / 2 if symmetric else loss) / max(n, 1)
    if excluded is not None:
        logits = logits.masked_fill(excluded, -torch.inf)
    partner = torch.arange(n, device=logits.device)
    # the sum over max(n, 1), not the mean: an empty batch gives 0, not NaN
    loss = cross_entropy(logits, partner, reduction="sum")
    if symmetric:
        loss = (loss + cross_entropy(logits.T, partner, reduction="sum")) / 2
    return loss / max(n, 1)


def _find_all(logits: Tensor, found: Tensor, excluded: Tensor) -> Tensor:
    """Sum over rows of the mean over their positives of -log softmax among the positive and the negatives."""
    no_negative = excluded | torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    negatives = logits.masked_fill(no_negative, -torch.inf).logsumexp(dim=1, keepdim=True)
    # softplus of the difference is -log(e^positive / (e^positive + e^negatives)); without negatives it is 0
    losses = softplus(negatives - logits.masked_fill(~found, torch.inf))
    return (losses / found.sum(dim=1, keepdim=True)).sum()


def alignment(a: Tensor, b: Tensor, *, center: bool = False) -> Tensor:
    r"""Mean cosine of paired rows.

    With :math:`u_i` and :math:`v_i` the rows of ``a`` and ``b`` scaled to unit length

    .. math::

        \frac{1}{n} \sum_i \langle u_i, v_i \rangle

    Between mean directions of von Mises-Fisher distributions of one concentration :math:`\kappa` this is their mean
    Kullback-Leibler divergence up to sign, scale and constant: :math:`\mathrm{KL} = \kappa A_d(\kappa) (1 -
    \text{alignment})`, see :func:`vmf_kl`. It is the term weighted by :math:`\beta` in step 1 of DisentangledSSL
    ([1]_, Appendix G), where it is maximised: a loss subtracts it.

    Parameters
    ----------
    a, b
        Paired rows, ``(n, d)`` each, floating point. A zero row counts as cosine 0.
    center
        Take the mean directions out and compare spreads:

        .. math::

            \frac{\sum_i \langle u_i - \bar u, v_i - \bar v \rangle}
                {\sqrt{\sum_i \lVert u_i - \bar u \rVert^2 \sum_i \lVert v_i - \bar v \rVert^2}}

        The published alignment is largest, 1, when all codes collapse to one point. This one is not raised by drawing
        them together, and is 0 at the collapse.

    Returns
    -------
    Scalar in [-1, 1]; 0, connected to the graph, when ``n = 0``, and with ``center`` also, with a zero gradient, when
    the directions of ``a`` or of ``b`` do not differ by more than rounding.

    Raises
    ------
    ValueError
        When ``a`` and ``b`` are not two ``(n, d)`` matrices.

    References
    ----------
    .. [1] Wang et al. An information criterion for controlled disentanglement of multimodal data. ICLR 2025.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import alignment
    >>> alignment(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]])).item()
    0.5
    >>> alignment(torch.ones(3, 2), torch.ones(3, 2), center=True).item()
    0.0
    """
    n = check_pairs(a, b, "a and b")
    check_widths(a, b, "a and b", "alignment")
    u, v = unit(a), unit(b)
    if center:
        return (_unit_spread(u) * _unit_spread(v)).sum()
    return (u * v).sum() / max(n, 1)


def _unit_spread(rows: Tensor) -> Tensor:
    """Centre unit rows and scale the whole matrix to norm 1; one without spread becomes 0, with a zero gradient."""
    spread = rows - rows.sum(dim=0) / max(len(rows), 1)
    norm = torch.linalg.vector_norm(spread)
    rounding = 4 * torch.finfo(rows.dtype).eps * max(len(rows), 1) ** 0.5
    return spread / norm.masked_fill(norm <= rounding, torch.inf)
