from __future__ import annotations

from typing import TYPE_CHECKING

from unbraid.objectives._unit import check_widths

if TYPE_CHECKING:
    from torch import Tensor


def canonical_log_ratio(a: Tensor, b: Tensor, correlation: Tensor, *, limit: float = 0.999) -> Tensor:
    r"""Log-likelihood ratio of two canonical codes belonging to the same cell rather than to two.

    For standard normal codes of which dimension :math:`j` of one view correlates by :math:`\rho_j` with dimension
    :math:`j` of the other, and with nothing else,

    .. math::

        \log \frac{p(a, b)}{p(a)\, p(b)} = \sum_j \left[ \frac{\rho_j a_j b_j - \tfrac12 \rho_j^2 (a_j^2 + b_j^2)}
            {1 - \rho_j^2} - \tfrac12 \log (1 - \rho_j^2) \right] .

    Its mean over pairs is their mutual information :math:`-\tfrac12 \sum_j \log (1 - \rho_j^2)` ([1]_, chapter 10). As
    a score it weighs every dimension by how much it tells, where a cosine weighs all alike.

    Parameters
    ----------
    a
        ``(n_a, k)``, floating point; columns of mean 0 and variance 1.
    b
        ``(n_b, k)``, floating point; likewise.
    correlation
        :math:`\rho`, ``(k,)``, between -1 and 1.
    limit
        Correlations are taken to be no larger than this in size, since the ratio has no end at 1.

    Returns
    -------
    ``(n_a, n_b)``, nats: entry ``[i, j]`` is the ratio of ``a[i]`` and ``b[j]``.

    Raises
    ------
    ValueError
        When ``a`` and ``b`` are not two matrices of equal width, or ``correlation`` has not one entry per column.

    References
    ----------
    .. [1] Kullback. Information theory and statistics. 1959.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import canonical_log_ratio
    >>> a, b = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [-1.0]])
    >>> canonical_log_ratio(a, b, torch.tensor([0.6])).argmax(dim=1).tolist()
    [0, 1]
    """
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"a and b must be matrices, got shapes {tuple(a.shape)} and {tuple(b.shape)}.")
    check_widths(a, b, "a and b", "canonical_log_ratio")
    if correlation.shape != (a.shape[1],):
        raise ValueError(
            f"correlation must have one entry per column, shape ({a.shape[1]},), got {tuple(correlation.shape)}."
        )
    rho = correlation.clamp(-limit, limit)
    rest = 1 - rho.square()
    own = lambda x: (x.square() * (rho.square() / rest)).sum(dim=1) / 2
    return (a * (rho / rest)) @ b.T - own(a)[:, None] - own(b) - rest.log().sum() / 2
