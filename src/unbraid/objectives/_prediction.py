from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import softplus

from unbraid.objectives._unit import center, check_pairs, check_widths

if TYPE_CHECKING:
    from torch import Tensor


def explained_variance(z: Tensor, prediction: Tensor) -> Tensor:
    r"""Share of a latent's variance that a prediction explains, averaged over its columns.

    .. math::

        R^2 = \frac{1}{d} \sum_k \left[ 1 - \frac{\sum_i (z_{ik} - \hat z_{ik})^2}
            {\sum_i (z_{ik} - \bar z_k)^2} \right]

    With :math:`\hat z` predicted from a condition :math:`c` it penalises what :math:`c` tells of the mean of
    :math:`z`; negated it is the loss of the predictor. Unlike :func:`club` it does not change when a column of
    ``z`` and its prediction are scaled: shrinking ``z`` hides nothing.

    Parameters
    ----------
    z
        ``(n, d)``, floating point.
    prediction
        ``(n, d)``, of ``z``, row by row.

    Returns
    -------
    Scalar, at most 1 and not bounded below. A prediction worse than the batch's mean gives a negative value; a penalty
    may want ``.relu()``. A column without variance counts as 0; 0, connected to the graph, when ``n < 2``.

    Raises
    ------
    ValueError
        When ``z`` and ``prediction`` are not two ``(n, d)`` matrices.

    Notes
    -----
    Mean and variance are those of the batch. The average of the columns' coefficients of determination, as
    ``sklearn.metrics.r2_score(..., multioutput="uniform_average")`` but for columns without variance.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import explained_variance
    >>> z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    >>> explained_variance(z, z * torch.tensor([1.0, 0.0])).item()
    0.5
    """
    check_pairs(z, prediction, "z and prediction")
    check_widths(z, prediction, "z and prediction", "explained_variance")
    total = center(z).square().sum(dim=0)
    constant = total == 0
    unexplained = (z - prediction).square().sum(dim=0) / total.masked_fill(constant, 1)
    return (1 - unexplained).masked_fill(constant, 0).sum() / max(z.shape[1], 1)


def density_ratio(paired: Tensor, permuted: Tensor) -> Tensor:
    r"""Dependence as a discriminator of real and permuted pairs sees it.

    .. math::

        \operatorname{mean}_i f(z_i, c_i) - \operatorname{mean}_i f(z_i, c_{\pi(i)})

    The discriminator that minimises :func:`discrimination` is :math:`f = \log p(z, c) / p(z) p(c)` [1]_. With it this
    estimates the Jeffreys divergence of the joint distribution and the product of its margins,
    :math:`\mathrm{KL}(p_{zc} \Vert p_z p_c) + \mathrm{KL}(p_z p_c \Vert p_{zc})`, in nats: an upper bound of the mutual
    information, which is the first of the two terms, and 0 exactly for independent ``z`` and ``c``. A constant
    added to the logits does not change it.

    Parameters
    ----------
    paired
        ``(n,)``, floating point: the discriminator's logits of the pairs as they are.
    permuted
        ``(n,)``: its logits of pairs whose one side was permuted over the batch.

    Returns
    -------
    Scalar, negative for a discriminator worse than chance; 0, connected to the graph, when both are empty.

    Raises
    ------
    ValueError
        When the logits are not two vectors of one length.

    References
    ----------
    .. [1] Sugiyama, Suzuki and Kanamori. Density ratio estimation in machine learning. Cambridge 2012.
    """
    n = _check_logits(paired, permuted)
    return (paired - permuted).sum() / max(n, 1)


def discrimination(paired: Tensor, permuted: Tensor) -> Tensor:
    r"""Binary cross-entropy of a discriminator of real and permuted pairs.

    .. math::

        \frac{1}{2n} \sum_i \left[ \log(1 + e^{-f(z_i, c_i)}) + \log(1 + e^{f(z_i, c_{\pi(i)})}) \right]

    The loss of the discriminator whose logits :func:`density_ratio` takes, with ``z`` and ``c`` held fixed.

    Parameters
    ----------
    paired
        ``(n,)``, floating point: the discriminator's logits of the pairs as they are, which it is to raise.
    permuted
        ``(n,)``: its logits of pairs whose one side was permuted over the batch, which it is to lower.

    Returns
    -------
    Scalar, at least 0; :math:`\log 2` at chance. 0, connected to the graph, when both are empty.

    Raises
    ------
    ValueError
        When the logits are not two vectors of one length.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import discrimination
    >>> round(discrimination(torch.zeros(3), torch.zeros(3)).item(), 4)
    0.6931
    """
    n = _check_logits(paired, permuted)
    return (softplus(-paired) + softplus(permuted)).sum() / max(2 * n, 1)


def scaled_squared_error(x: Tensor, x_hat: Tensor, scale: float | Tensor) -> Tensor:
    r"""Reconstruction error in units of the data's spread.

    .. math::

        \frac{1}{2 s} \cdot \frac{1}{n} \sum_i \lVert \hat x_i - x_i \rVert^2

    with squared norms summed over the features: the reconstruction term of IndiSeek ([1]_, equation 2) without its
    weight :math:`\lambda`.

    Parameters
    ----------
    x
        ``(n, d)``, floating point: the data.
    x_hat
        ``(n, d)``: their reconstruction.
    scale
        :math:`s > 0`, a constant of the training data. The paper takes :math:`E \lVert X \rVert^2`. Of data whose
        means are not 0 take the second moment about the mean, the sum of the features' variances: then the term is
        1/2 for the best constant reconstruction, whatever the data.

    Returns
    -------
    Scalar, at least 0; 0, connected to the graph, when ``n = 0``.

    Raises
    ------
    ValueError
        When ``x`` and ``x_hat`` are not two ``(n, d)`` matrices, or when ``scale`` is a number that is not positive.

    References
    ----------
    .. [1] IndiSeek learns information-guided disentangled representations. 2025.

    Examples
    --------
    >>> import torch
    >>> from unbraid.objectives import scaled_squared_error
    >>> x = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    >>> scaled_squared_error(x, torch.zeros(2, 2), scale=1.0).item()
    0.5
    """
    n = check_pairs(x, x_hat, "x and x_hat")
    check_widths(x, x_hat, "x and x_hat", "scaled_squared_error")
    if not isinstance(scale, torch.Tensor) and not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}.")
    return (x_hat - x).square().sum() / (2 * scale * max(n, 1))


def _check_logits(paired: Tensor, permuted: Tensor) -> int:
    if paired.ndim != 1 or paired.shape != permuted.shape:
        raise ValueError(
            "paired and permuted must be two vectors of one length, one logit per pair, "
            f"got shapes {tuple(paired.shape)} and {tuple(permuted.shape)}."
        )
    return len(paired)
