"""The terms that methods are made of, as pure functions: tensors in, a scalar or one value per sample out.

They know no networks, no training and no data containers, so that each can be tested, logged and recombined alone. Most
are losses, to be minimised; :func:`alignment` is a similarity and :func:`nce_bound` a lower bound, which a loss
subtracts. All of them average over the samples of a batch, but for ``orthogonality(kind="rows")``, which keeps the
growth of the published loss, and :func:`vmf_kl`, :func:`normal_kl` and the bounds of a (log) evidence, which return
one value per sample. They stay finite, with finite
gradients, for empty batches, single samples and zero vectors.
"""

from unbraid.objectives._club import club, gaussian_nll, nce_bound, nce_club
from unbraid.objectives._common_cause import different_components, same_component
from unbraid.objectives._correlation import barlow_twins, canonical_correlation, vicreg
from unbraid.objectives._deep_clustering import (
    clustering_divergence,
    link_log_probability,
    log_volume,
    mixture_divergence,
    mixture_log_joint,
    pair_distance,
    student_t_assignment,
    target_distribution,
)
from unbraid.objectives._diffusion import denoising_loss, diffusion_log_density, sigmoid_schedule
from unbraid.objectives._distance_correlation import distance_correlation
from unbraid.objectives._evidence_bound import Estimator, evidence_bound, mixture_log_density, normal_kl
from unbraid.objectives._info_nce import alignment, info_nce
from unbraid.objectives._kernel import hsic
from unbraid.objectives._likelihood_ratio import canonical_log_ratio
from unbraid.objectives._nt_xent import nt_xent
from unbraid.objectives._orthogonality import orthogonality
from unbraid.objectives._prediction import density_ratio, discrimination, explained_variance, scaled_squared_error
from unbraid.objectives._von_mises_fisher import bessel_ratio, vmf_kl, vmf_log_normalizer

__all__ = [
    "Estimator",
    "alignment",
    "barlow_twins",
    "bessel_ratio",
    "canonical_correlation",
    "canonical_log_ratio",
    "club",
    "clustering_divergence",
    "denoising_loss",
    "density_ratio",
    "different_components",
    "diffusion_log_density",
    "discrimination",
    "distance_correlation",
    "evidence_bound",
    "explained_variance",
    "gaussian_nll",
    "hsic",
    "info_nce",
    "link_log_probability",
    "log_volume",
    "mixture_divergence",
    "mixture_log_density",
    "mixture_log_joint",
    "nce_bound",
    "nce_club",
    "normal_kl",
    "nt_xent",
    "orthogonality",
    "pair_distance",
    "same_component",
    "scaled_squared_error",
    "sigmoid_schedule",
    "student_t_assignment",
    "target_distribution",
    "vicreg",
    "vmf_kl",
    "vmf_log_normalizer",
]
