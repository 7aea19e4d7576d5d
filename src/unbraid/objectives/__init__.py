"""The terms that methods are made of, as pure functions: tensors in, a scalar or one value per sample out.

They know no networks, no training and no data containers, so that each can be tested, logged and recombined alone.
A *loss* (:func:`info_nce`, :func:`orthogonality`, :func:`vmf_kl`) is to be minimised; :func:`alignment` is a
similarity, which a loss subtracts. All of them average over the samples of a batch, but for
``orthogonality(kind="rows")``, which keeps the growth of the published loss, and :func:`vmf_kl`, which returns one
value per sample. They stay finite, with finite gradients, for empty batches, single samples and zero vectors.
"""

from unbraid.objectives._info_nce import alignment, info_nce
from unbraid.objectives._orthogonality import orthogonality
from unbraid.objectives._von_mises_fisher import bessel_ratio, vmf_kl, vmf_log_normalizer

__all__ = [
    "alignment",
    "bessel_ratio",
    "info_nce",
    "orthogonality",
    "vmf_kl",
    "vmf_log_normalizer",
]
