"""Torch side of the generative models whose shared latent has clusters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from unbraid._messages import check_option
from unbraid.module._base import Stage
from unbraid.module._experts import MixtureOfExperts
from unbraid.module._multimodal_vae import MultimodalVAE
from unbraid.nn import MixturePrior, Posterior, Prior, ProductPrior, scale_of
from unbraid.objectives import different_components, same_component

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from unbraid.module._experts import Drawn
    from unbraid.module._multimodal_vae import Terms
    from unbraid.nn import ModalitySpec

MustLink = Literal["virtual_modality", "common_cause"]
# steps before the first placement of the clusters, and after it, where the user names no epochs
WARMUP_STEPS, STEPS = 400, 600


class ClusteredVAE(MultimodalVAE):
    r"""MMVAE+ with a mixture prior on z.

    Parameters
    ----------
    specs, n_shared, n_specific, **options
        As of :class:`MultimodalVAE`.
    n_clusters
        Components of the prior.
    place_clusters
        Put the components where k-means finds clusters of the posterior means: after a first stage of training, and
        again at the end. Otherwise they are learned by gradients alone, in one stage, as published.
    """

    def __init__(
        self,
        specs: Sequence[ModalitySpec],
        n_shared: int,
        n_specific: int,
        *,
        n_clusters: int,
        place_clusters: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(specs, n_shared, n_specific, **options)
        self.place_clusters = place_clusters
        self.prior = self._make_prior(n_clusters, options.get("prior_scale", 1.0))

    def _make_prior(self, n_clusters: int, scale: float) -> nn.Module:
        return MixturePrior(self.n_shared, n_clusters, self.family, scale)

    @property
    def mixture(self) -> MixturePrior:
        """The prior whose components are the clusters."""
        return self.prior

    @property
    def clustered(self) -> slice:
        """Dimensions of z that have them."""
        return slice(None)

    @property
    def uses_must_links(self) -> bool:
        """Whether pairs tell what a cluster may vary in."""
        return False

    @property
    def stages(self) -> list[Stage]:
        """Before the clusters are placed, and after."""
        stage = lambda name, n_steps: Stage(name, self.vae_parts, n_steps=n_steps, **self.optimisation)
        if not self.place_clusters:
            return [stage("vae", None)]
        return [stage("warmup", WARMUP_STEPS), stage("vae", STEPS)]

    @property
    def vae_parts(self) -> tuple[str, ...]:
        return (*super().vae_parts, "prior")

    def warmup_loss(self, batch: dict):
        """Loss of the first stage."""
        return self.vae_loss(batch)

    def end_stage(self, stage: str, batches: Iterable[dict]) -> None:
        """Place the clusters, and learn what the other modalities tell of a modality's total counts."""
        codes, differences, sizes = [], [], []
        with_sizes = bool(self.counted) and stage == "vae"
        for batch in batches if self.place_clusters or with_sizes else ():
            if self.place_clusters:
                codes.append(self._clustered_codes(batch))
                if self.uses_must_links and "must_link" in batch:
                    first, second = self._clustered_codes(batch["must_link"]).chunk(2)
                    differences.append(first - second)
            if with_sizes:
                sizes.append(self.known_sizes(batch))
        if codes:
            self.mixture.place(torch.cat(codes), torch.cat(differences) if differences else None)
        if sizes:
            self.fit_sizes(sizes)

    def _clustered_codes(self, batch: dict) -> Tensor:
        joint = self.joint_posterior(self.posteriors(batch)[0], self.present(batch))
        return joint.mean[:, self.clustered]

    def cluster_probabilities(self, batch: dict) -> Tensor:
        """Mean over the modalities that a cell has of p(c | mean of z), ``(n, n_clusters)``."""
        z, present = self.posteriors(batch)[0], self.present(batch).unsqueeze(-1)
        each = self.mixture.log_probabilities(self.stacked(z).mean[..., self.clustered]).exp()
        return (each * present).sum(0) / present.sum(0)

    def cluster_votes(self, batch: dict) -> Tensor:
        """Shares of the modalities that a cell has whose sample of z is most probable in a cluster, ``(n, n_clusters)``."""
        z, present = self.posteriors(batch)[0], self.present(batch).unsqueeze(-1)
        log_joint = self.mixture.log_joint(self.stacked(z).sample(1)[0][..., self.clustered])
        votes = nn.functional.one_hot(log_joint.argmax(-1), log_joint.shape[-1])
        return (votes * present).sum(0) / present.sum(0)

    def mixture_log_joint(self, batch: dict) -> Tensor:
        """Log pi_c + log p(z | c) at the mean of every modality's z, ``(M, n, n_clusters)``."""
        return self.mixture.log_joint(self.stacked(self.posteriors(batch)[0]).mean[..., self.clustered])


class DualLevelVAE(ClusteredVAE):
    r"""Torch side of DL2: z is made of :math:`z_t`, which has the clusters, and :math:`z_r`, and pairs of cells tell which.

    Parameters
    ----------
    specs, n_shared, n_specific, **options
        As of :class:`ClusteredVAE`.
    n_residual
        How many of the dimensions of z are :math:`z_r`; 0 leaves it out.
    must_link, must_link_weight, cannot_link_weight
        See :class:`~unbraid.model.DL2`.
    coupled
        Whether :math:`q(z_t, z_r \mid X)` is one mixture over modalities, or the product of two.
    """

    def __init__(
        self,
        specs: Sequence[ModalitySpec],
        n_shared: int,
        n_specific: int,
        *,
        n_residual: int,
        must_link: MustLink = "virtual_modality",
        must_link_weight: float = 0.1,
        cannot_link_weight: float = 10.0,
        coupled: bool = False,
        **options: Any,
    ) -> None:
        check_option("`must_link`", must_link, ("virtual_modality", "common_cause"))
        for name, weight in {"must_link_weight": must_link_weight, "cannot_link_weight": cannot_link_weight}.items():
            if not weight >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {weight}.")
        self.n_task, self.n_residual = n_shared - n_residual, n_residual
        parts = {"task": self.n_task} | ({"residual": n_residual} if n_residual else {})
        super().__init__(specs, n_shared, n_specific, shared_parts=parts, coupled=coupled, **options)
        self.must_link, self.must_link_weight, self.cannot_link_weight = must_link, must_link_weight, cannot_link_weight
        if n_residual:
            self.residual_scale = nn.Parameter(torch.zeros(n_residual))

    def _make_prior(self, n_clusters: int, scale: float) -> nn.Module:
        task = MixturePrior(self.n_task, n_clusters, self.family, scale)
        if not self.n_residual:
            return ProductPrior([task], [self.n_task])
        return ProductPrior([task, Prior(self.n_residual, self.family, scale)], [self.n_task, self.n_residual])

    @property
    def mixture(self) -> MixturePrior:
        return self.prior.parts[0]

    @property
    def clustered(self) -> slice:
        return slice(self.n_task)

    @property
    def uses_must_links(self) -> bool:
        return self.must_link_weight > 0

    @property
    def shared_slices(self) -> dict[str, slice]:
        """Where the parts are in the shared latent."""
        parts = {"task": slice(self.n_task)}
        return parts | ({"residual": slice(self.n_task, None)} if self.n_residual else {})

    @property
    def kinds(self) -> tuple[str, ...]:
        """Shared codes, their parts, and specific ones."""
        shared, *specific = super().kinds
        return (shared, *self.shared_slices, *specific)

    @property
    def vae_parts(self) -> tuple[str, ...]:
        return (*super().vae_parts, *(("residual_scale",) if self.n_residual else ()))

    def further_terms(self, batch: dict, z: dict[str, Posterior], w: dict[str, Posterior]) -> Terms:
        """What pairs of cells add, in training."""
        terms = {}
        if (pairs := batch.get("must_link")) is not None:
            virtual = self.must_link == "virtual_modality"
            term = self.virtual_modality if virtual else lambda pairs: -self.common_cause(pairs, same_component)
            terms["must_link"] = (self.must_link_weight, lambda: term(pairs))
        if (others := batch.get("cannot_link")) is not None:
            reward = lambda: -self.common_cause(others, different_components)
            terms["cannot_link"] = (self.cannot_link_weight, reward)
        return terms

    def virtual_modality(self, pairs: dict) -> Tensor:
        r"""Minus the bound of :math:`\log p(X^k, X^l)` of pairs of one cluster, mean over both cells of all pairs.

        The cell that z is drawn from is decoded as in the bound of one cell, the other one with the same :math:`z_t` and
        auxiliary :math:`z_r` and w: a cell of the pair is to the other what a modality is to another.
        """
        z, w = self.posteriors(pairs)
        drawn = self.draw(z, w, self.present(pairs))
        likelihood = self._likelihoods(pairs, drawn) + self._partner_likelihoods(pairs, drawn)
        terms = self.bound_of(likelihood, drawn, w, self._pair_log_posterior)
        return sum(weight * term() for weight, term in terms.values() if weight)

    def _partner_likelihoods(self, pairs: dict, drawn: Drawn) -> Tensor:
        """Weighted sum over the modalities of log p(x of the other cell | z_t, ...), ``(K, S, n)``."""
        n_samples, (n_sources, n) = self.n_importance, drawn.rows.shape
        draw = lambda q: q.distribution.rsample((n_samples, n_sources, n))
        latent = [_other_cell(drawn.shared[..., : self.n_task], 2)]
        if self.n_residual:
            scale = scale_of(self.residual_scale, self.posterior_scale)
            latent.append(draw(Posterior(torch.zeros_like(scale), scale, self.family)))
        rows, total = _other_cell(drawn.rows, 1), 0.0
        for k, m in enumerate(self.modalities):
            specific = [draw(self.auxiliary(k))] if self.n_specific else []
            values = self._likelihood(m, torch.cat([*latent, *specific], dim=-1), rows, pairs, own=False)
            total = total + self.likelihood_weights[m] * values
        return _other_cell(total, 2)

    def _pair_log_posterior(self, z: Tensor, components: Posterior, exists: Tensor) -> Tensor:
        """Log q(z_t | X^k, X^l) q(z_r | X^h): z_t has the experts of both cells."""
        cut = lambda q, part, move: Posterior(move(q.mean[..., part]), move(q.scale[..., part]), q.family)
        task, residual = slice(self.n_task), slice(self.n_task, None)
        other = lambda x: _other_cell(x, 1)
        density = MixtureOfExperts().log_density
        own = density(z[..., task], cut(components, task, lambda x: x), exists)
        partner = density(z[..., task], cut(components, task, other), other(exists))
        value = torch.logaddexp(own, partner) - math.log(2)
        if self.n_residual:
            value = value + density(z[..., residual], cut(components, residual, lambda x: x), exists)
        return value

    def common_cause(self, pairs: dict, measure) -> Tensor:
        """Mean over pairs, and over the modalities that z_t of either cell is drawn from, of a log probability."""
        z, _ = self.posteriors(pairs)
        found = self.stacked(z)
        task = Posterior(found.mean[..., : self.n_task], found.scale[..., : self.n_task], self.family).sample(1)[0]
        first, second = self.mixture.log_probabilities(task).chunk(2, dim=1)  # (M, P, C)
        has_first, has_second = self.present(pairs).chunk(2, dim=1)
        both = has_first.unsqueeze(1) & has_second.unsqueeze(0)  # (M, M, P)
        values = measure(first.unsqueeze(1), second.unsqueeze(0)).masked_fill(~both, 0.0)
        return (values.sum((0, 1)) / both.sum((0, 1))).mean()


def _other_cell(x: Tensor, dim: int) -> Tensor:
    """The cells of pairs, first members before second ones, in each other's places."""
    return x.roll(x.shape[dim] // 2, dim)
