"""What makes clusters of codes: centres, a mixture, or a softmax."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import nn

from unbraid.objectives import mixture_divergence, mixture_log_joint, student_t_assignment

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from unbraid.nn import Posterior


class StudentTClusters(nn.Module):
    """Centres of clusters under Student's t kernel; see :func:`~unbraid.objectives.student_t_assignment`."""

    def __init__(self, n_clusters: int, n_shared: int) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(n_clusters, n_shared))

    def log_probabilities(self, codes: Tensor) -> Tensor:
        """Log probability of every cluster, ``(n, n_clusters)``."""
        return student_t_assignment(codes, self.centers)

    @torch.no_grad()
    def start(self, codes: Tensor) -> None:
        """Take the centres of k-means."""
        self.centers.copy_(torch.as_tensor(_k_means(codes, len(self.centers))))


class MixtureClusters(nn.Module):
    """Mixture of diagonal normals with weights, means and scales of its own.

    Parameters
    ----------
    n_clusters, n_shared
        Number of components, and their dimensions.
    learn_weights
        Otherwise they stay equal.
    """

    def __init__(self, n_clusters: int, n_shared: int, *, learn_weights: bool) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.randn(n_clusters, n_shared))
        self.log_scales = nn.Parameter(torch.zeros(n_clusters, n_shared))
        self.logits = nn.Parameter(torch.zeros(n_clusters), requires_grad=learn_weights)

    def log_probabilities(self, codes: Tensor) -> Tensor:
        """Log p(c | z), ``(n, n_clusters)``."""
        return mixture_log_joint(codes, *self._parts).log_softmax(1)

    def divergence(self, posterior: Posterior, log_responsibilities: Tensor) -> Tensor:
        """Of posteriors from this mixture, ``(n,)``."""
        return mixture_divergence(posterior.mean, posterior.scale, log_responsibilities, *self._parts)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.logits.log_softmax(0), self.means, self.log_scales.exp()

    @torch.no_grad()
    def start(self, codes: Tensor) -> None:
        """Take the mixture that expectation maximisation finds from the centres of k-means on."""
        x, centers = codes.double().cpu().numpy(), _k_means(codes, len(self.means))
        floor = 0.01 * x.var(axis=0).mean() + 1e-12  # a component of one cell would be as sharp as a needle
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = GaussianMixture(
                len(centers), covariance_type="diag", means_init=centers, reg_covar=floor, random_state=0
            ).fit(x)
        self.means.copy_(torch.as_tensor(found.means_))
        self.log_scales.copy_(torch.as_tensor(found.covariances_).log() / 2)
        if self.logits.requires_grad:
            self.logits.copy_(torch.as_tensor(found.weights_).log())


class SoftmaxClusters(nn.Module):
    """Clusters as the classes of a softmax, and how likely pairs of them are annotated as linked.

    The logits of this compatibility begin with 1 on the diagonal and -1 off it, as published.
    """

    def __init__(self, n_clusters: int, n_shared: int) -> None:
        super().__init__()
        self.logits = nn.Linear(n_shared, n_clusters)
        self.compatibility = nn.Parameter(2 * torch.eye(n_clusters) - 1)

    def log_probabilities(self, codes: Tensor) -> Tensor:
        """Log probability of every cluster, ``(n, n_clusters)``."""
        return self.logits(codes).log_softmax(1)


def _k_means(codes: Tensor, n_clusters: int) -> np.ndarray:
    """Centres, the best of 20 starts."""
    with threadpool_limits(1):
        return KMeans(n_clusters, n_init=20, random_state=0).fit(codes.double().cpu().numpy()).cluster_centers_
