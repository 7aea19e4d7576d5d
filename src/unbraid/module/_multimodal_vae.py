"""Torch side of the generative family: encoders with posteriors, experts, priors, decoders with likelihoods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from unbraid._messages import check_option
from unbraid.module._base import Latents, SplitModule, Stage, on_present_rows, total_loss
from unbraid.module._experts import Drawn, ExpertsKind, PriorExpert, make_experts
from unbraid.module._networks import Networks, decoder_of, encoder_of
from unbraid.module._sizes import PredictsSizes
from unbraid.nn import (
    PerModality,
    Posterior,
    PosteriorEncoder,
    Prior,
    log_likelihood,
    scale_of,
)
from unbraid.objectives import evidence_bound, normal_kl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from scvi.module.base import LossOutput
    from torch import Tensor
    from torch.distributions import Distribution

    from unbraid.nn import LatentFamily, ModalitySpec, ScaleForm
    from unbraid.objectives import Estimator

    Terms = dict[str, tuple[float, Callable[[], Tensor]]]

Specific = Literal["auxiliary", "posterior"]


class MultimodalVAE(PredictsSizes, SplitModule):
    r"""A latent z that all modalities share, latents :math:`w_m` of their own, and a decoder :math:`p(x_m \mid z, w_m)`.

    For samples :math:`z_s` of every source s of z (see ``experts``), every decoded modality d and the modalities O that
    a cell has,

    .. math::

        \log w_s = \sum_{d \in O} \lambda_d \log p(x_d \mid z_s, w_{sd})
            - \beta \Big[ \log \frac{q(z_s \mid X)}{p(z_s)}
            + \sum_{m} \log \frac{q(w_m \mid x_m)}{p(w_m)} \Big] ,

    and the loss is minus the bound that ``estimator`` makes of it, averaged over cells; over sources it is the mean or,
    with a product of experts, the sum. Every named model of the family is a choice of the parts below.

    Parameters
    ----------
    specs
        The modalities.
    n_shared, n_specific
        Dimensions of z and of every :math:`w_m`; ``n_specific=0`` leaves :math:`w_m` out.
    shared_parts
        Dimensions of the parts that z is made of, by name; encoders have a head for each. One part by default.
    coupled
        Whether the mixture of experts is one of z (default) or of every part of it.
    experts
        What :math:`q(z \mid X)` is and which sources are decoded: ``"moe"``, ``"poe"``, ``"mopoe"``; see
        :class:`MixtureOfExperts`, :class:`ProductOfExperts`, :class:`MixtureOfProducts`.
    prior_expert
        Of products: whether the prior is an expert.
    specific
        :math:`w_{sd}` where d is not the modality of the source: ``"auxiliary"``, drawn from :math:`r_d(w)` with a
        learned scale, so that what crosses can only pass through z (MMVAE+); ``"posterior"``, from :math:`q(w_d \mid
        x_d)` (DMVAE).
    swap
        Decode a modality with the z of *another* modality of the cell and its own :math:`w_d`, so that z has no reason
        to keep what is private.
    posterior, posterior_scale
        Family of posteriors and priors, and how their scales are made; see :class:`~unbraid.nn.PosteriorEncoder`.
    prior_scale
        Scale of the priors.
    beta
        :math:`\beta`. Other than 1 the bound is none of the log evidence.
    estimator, n_importance
        See :func:`~unbraid.objectives.evidence_bound`, and K. With ``"elbo"``, normal posteriors and products of
        experts the divergences are closed forms.
    encoders, decoders, n_hidden, n_layers, norm, dropout
        Networks of every modality; see :class:`~unbraid.model.base.GenerativeModel`.
    likelihood_weights
        :math:`\lambda_d` by name, 1 for the others.
    likelihood_scale
        Fixed scale of normal and Laplace likelihoods; None learns scales and dispersions; ``"own"`` learns them from
        what is decoded with its own w alone.
    n_categories, n_continuous
        Covariates that the decoders get.
    encode_covariates
        Whether encoders get them too.
    lr, weight_decay, schedule
        Of the stage.
    """

    def __init__(
        self,
        specs: Sequence[ModalitySpec],
        n_shared: int,
        n_specific: int = 0,
        *,
        shared_parts: Mapping[str, int] | None = None,
        coupled: bool = True,
        experts: ExpertsKind = "moe",
        prior_expert: PriorExpert = "joint",
        specific: Specific = "auxiliary",
        swap: bool = False,
        posterior: LatentFamily = "normal",
        posterior_scale: ScaleForm = "softplus",
        prior_scale: float = 1.0,
        beta: float = 1.0,
        estimator: Estimator = "elbo",
        n_importance: int = 1,
        encoders: Networks = "mlp",
        decoders: Networks = "mlp",
        n_hidden: int = 128,
        n_layers: int = 2,
        norm: Literal["layer"] | None = "layer",
        dropout: float = 0.0,
        likelihood_weights: Mapping[str, float] | None = None,
        likelihood_scale: float | Literal["own"] | None = None,
        n_categories: Sequence[int] = (),
        n_continuous: int = 0,
        encode_covariates: bool = False,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
    ) -> None:
        super().__init__(specs)
        check_option("`experts`", experts, ("moe", "poe", "mopoe"))
        check_option("`prior_expert`", prior_expert, ("joint", "all", "none"))
        check_option("`posterior`", posterior, ("normal", "laplace"))
        check_option("`posterior_scale`", posterior_scale, ("softplus", "softmax", "exp"))
        check_option("`estimator`", estimator, ("elbo", "iwae", "dreg"))
        if experts != "moe" and posterior != "normal":
            raise ValueError(f"`experts={experts!r}` multiplies posteriors, which needs `posterior='normal'`.")
        if n_specific and specific == "auxiliary" and experts != "moe":
            raise ValueError(
                f"`experts={experts!r}` has sources of several modalities: `specific` must be 'posterior'."
            )
        if swap and (experts != "moe" or estimator != "elbo"):
            raise ValueError("`swap` needs `experts='moe'` and `estimator='elbo'`.")
        if n_importance < 1:
            raise ValueError(f"`n_importance` must be at least 1, got {n_importance}.")
        if not beta >= 0:
            raise ValueError(f"`beta` must not be negative, got {beta}.")
        if prior_scale <= 0:
            raise ValueError(f"`prior_scale` must be positive, got {prior_scale}.")
        self.n_shared, self.n_specific = n_shared, n_specific
        self.shared_parts = dict(shared_parts or {"z": n_shared})
        parts = () if coupled else tuple(self.shared_parts.values())
        self.experts = make_experts(experts, len(specs), prior_expert, parts)
        self.specific, self.swap = specific, swap
        self.crosses = n_specific > 0 and specific == "auxiliary"
        self.family, self.posterior_scale = posterior, posterior_scale
        self.beta, self.estimator, self.n_importance = beta, estimator, n_importance
        self.closed_form = self.experts.closed_form and estimator == "elbo"
        self.likelihood_weights = {m: (likelihood_weights or {}).get(m, 1.0) for m in self.modalities}
        self.own_scale = likelihood_scale == "own"
        self.n_categories, self.n_continuous = tuple(n_categories), n_continuous
        self.encode_covariates = encode_covariates
        self.optimisation = {"lr": lr, "weight_decay": weight_decay, "schedule": schedule}

        sizes = {"n_hidden": n_hidden, "n_layers": n_layers, "norm": norm, "dropout": dropout}
        latents = self.shared_parts | ({"w": n_specific} if n_specific else {})
        bodies = {
            s.name: encoder_of(encoders, s, self.n_covariates if encode_covariates else 0, **sizes) for s in specs
        }
        self.encoders = PerModality(
            {m: PosteriorEncoder(*body, latents, family=posterior, scale=posterior_scale) for m, body in bodies.items()}
        )
        self.decoders = PerModality(
            {
                s.name: decoder_of(
                    decoders,
                    s,
                    n_shared + n_specific,
                    self.n_covariates,
                    scale=None if self.own_scale else likelihood_scale,
                    **sizes,
                )
                for s in specs
            }
        )
        self.build_size_predictors({spec.name: float(spec.mean.sum()) for spec in specs if spec.is_count})
        self.prior = Prior(n_shared, posterior, prior_scale)
        n_batch = self.n_categories[0] if self.n_categories else 0
        self.register_buffer("batch_measured", torch.zeros(len(specs), n_batch, dtype=torch.bool))
        if n_specific:
            self.specific_priors = PerModality({m: Prior(n_specific, posterior, prior_scale) for m in self.modalities})
            if self.crosses:
                self.auxiliary_scales = nn.Parameter(torch.zeros(len(specs), n_specific))

    @property
    def stages(self) -> list[Stage]:
        """One: everything at once."""
        return [Stage("vae", self.vae_parts, **self.optimisation)]

    @property
    def vae_parts(self) -> tuple[str, ...]:
        """What the bound trains."""
        return ("encoders", "decoders", *(("auxiliary_scales",) if self.crosses else ()))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Shared codes, and specific ones if the model has them."""
        return ("shared", "specific") if self.n_specific else ("shared",)

    def loss(self, batch: dict, stage: str) -> LossOutput:
        """Minus the bound, and what a model adds to it."""
        return getattr(self, f"{stage}_loss")(batch)

    def vae_loss(self, batch: dict) -> LossOutput:
        """Loss of the one stage."""
        if torch.is_grad_enabled() and self.batch_measured.shape[1]:  # not in validation
            for k, m in enumerate(self.modalities):
                self.batch_measured[k, batch["batch"][batch["mask"][m]]] = True
        z, w = self.posteriors(batch)
        return total_loss({**self.bound_terms(batch, z, w), **self.further_terms(batch, z, w)}, len(batch["index"]))

    def further_terms(self, batch: dict, z: dict[str, Posterior], w: dict[str, Posterior]) -> Terms:
        """What a model adds to the bound; nothing by default."""
        return {}

    def end_stage(self, stage: str, batches: Iterable[dict]) -> None:
        """Learn what the other modalities tell of a modality's total counts."""
        if stage != "vae" or not self.counted:
            return
        self.fit_sizes([self.known_sizes(batch) for batch in batches])

    def extended_state(self, reference: MultimodalVAE) -> dict[str, Tensor]:
        """Networks get covariates; no cell of a new batch has been seen."""
        measured = self.batch_measured.clone()
        measured[:, : reference.batch_measured.shape[1]] = reference.batch_measured
        return {**self.widened_state(reference), "batch_measured": measured}

    # ---- posteriors and codes -----------------------------------------------------------------

    def posteriors(self, batch: dict) -> tuple[dict[str, Posterior], dict[str, Posterior]]:
        """Posteriors of z and of w given every modality alone, ``(n, d)``; of no meaning for cells without it."""
        z, w = {}, {}
        for m, x in self.inputs(batch).items():
            output = on_present_rows(self.encoders[m], batch["mask"][m], self.encoder_inputs(x, batch))
            z[m], *own = self.encoded(m, output)
            w |= {m: own[0]} if own else {}
        return z, w

    def encoded(self, modality: str, output: Tensor) -> list[Posterior]:
        """Posterior of z, and of w if there is one, from what a modality's encoder gave."""
        found = self.encoders[modality].posteriors(output)
        parts = [found.pop(name) for name in self.shared_parts]
        mean, scale = (torch.cat([getattr(q, name) for q in parts], dim=-1) for name in ("mean", "scale"))
        return [Posterior(mean, scale, self.family), *found.values()]

    def encoder_inputs(self, x: Tensor, batch: dict, cells: Tensor | None = None) -> Tensor:
        """Transformed values, with the covariates of these cells beside them if encoders get any."""
        if not (self.encode_covariates and self.n_covariates):
            return x
        covariates = self.covariates(batch)
        return torch.cat([x, covariates if cells is None else covariates[cells]], dim=1)

    def stacked(self, posteriors: Mapping[str, Posterior]) -> Posterior:
        """Posteriors of all modalities as one, ``(M, n, d)``."""
        mean, scale = (torch.stack([getattr(q, name) for q in posteriors.values()]) for name in ("mean", "scale"))
        return Posterior(mean, scale, self.family)

    def present(self, batch: dict) -> Tensor:
        """Which modalities the cells have, ``(M, n)``."""
        return torch.stack([batch["mask"][m] for m in self.modalities])

    def joint_posterior(self, z: Mapping[str, Posterior], present: Tensor) -> Posterior:
        """Posterior of the shared latent of the cell, ``(n, n_shared)``."""
        return self.experts.joint(self.stacked(z), present)

    def encode(self, batch: dict, *, give_mean: bool = True) -> Latents:
        """Posterior means, or samples of the posteriors."""
        z, w = self.posteriors(batch)
        mask, present = batch["mask"], self.present(batch)
        value = lambda q: q.mean if give_mean else q.sample(1)[0]
        codes = lambda found: {m: value(q).masked_fill(~mask[m].unsqueeze(1), 0.0) for m, q in found.items()}
        if give_mean:
            joint = self.joint_posterior(z, present).mean
        else:
            joint = self.shared_samples(z, present, 1)[0]
        return Latents(mask, codes(z), codes(w), joint)

    def shared_samples(self, z: Mapping[str, Posterior], present: Tensor, n_samples: int) -> Tensor:
        """Samples of q(z | X), each from a component of its own where it is a mixture, ``(n_samples, n, n_shared)``."""
        components, exists = self.experts.components(self.stacked(z), present)
        if not self.experts.mean_over_sources:
            return Posterior(components.mean[-1], components.scale[-1], self.family).sample(n_samples)
        drawn = torch.multinomial(exists.T.float(), n_samples, replacement=True).T
        cell = torch.arange(exists.shape[1], device=drawn.device)
        chosen = Posterior(components.mean[drawn, cell], components.scale[drawn, cell], self.family)
        return chosen.sample(1)[0]

    # ---- the bound ------------------------------------------------------------------------------

    def bound_terms(self, batch: dict, z: dict[str, Posterior], w: dict[str, Posterior]) -> Terms:
        """Minus the bound: apart in reconstruction and divergence for ``"elbo"``, else as one."""
        drawn = self.draw(z, w, self.present(batch))
        return self.bound_of(self._likelihoods(batch, drawn), drawn, w, self.experts.log_density)

    def draw(self, z: Mapping[str, Posterior], w: Mapping[str, Posterior], present: Tensor) -> Drawn:
        """Sample the posteriors."""
        components, exists = self.experts.components(self.stacked(z), present)
        sources, rows = self.experts.sources(components, exists)
        shared = sources.sample(self.n_importance)
        return Drawn(components, exists, sources, rows, present, shared, *self._specific_samples(w, rows))

    def bound_of(self, likelihood: Tensor, drawn: Drawn, w: Mapping[str, Posterior], log_posterior: Callable) -> Terms:
        """Minus the bound, from the log-likelihoods of samples ``(K, S, n)``.

        ``log_posterior`` gives log q(z | X) of samples, components and which of them exist.
        """
        mean = lambda values, rows: self._over_sources(values, rows).mean()
        if self.closed_form:
            divergence = lambda: mean(*self._closed_divergence(drawn, w))
        else:
            divergence = lambda: mean(self._sampled_divergence(drawn, w, log_posterior).mean(0), drawn.rows)
        if self.estimator == "elbo":
            return {
                "reconstruction": (1.0, lambda: -mean(likelihood.mean(0), drawn.rows)),
                "divergence": (self.beta, divergence),
            }

        def bound() -> Tensor:
            dreg = self.estimator == "dreg"
            ratio = self._sampled_divergence(
                drawn, {m: q.detached() for m, q in w.items()} if dreg else w, log_posterior
            )
            if dreg:  # of the density of a mixture only the part of the expert that was sampled acts through the sample
                score = drawn.sources.log_density(drawn.shared.detach()).masked_fill(~drawn.rows, 0.0)
                ratio = ratio - (score - score.detach())
            samples = [drawn.shared, *drawn.own]
            return -mean(
                evidence_bound(likelihood - self.beta * ratio, estimator=self.estimator, samples=samples), drawn.rows
            )

        return {"bound": (1.0, bound)}

    def _over_sources(self, values: Tensor, rows: Tensor) -> Tensor:
        """Mean or sum over the sources that a cell has, ``(S, n)`` to ``(n,)``."""
        total = (values * rows).sum(0)
        return total / rows.sum(0).clamp(min=1) if self.experts.mean_over_sources else total

    def _specific_samples(self, w: Mapping[str, Posterior], rows: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """``decoded`` and ``own`` of what is drawn."""
        n_samples, (n_sources, n) = self.n_importance, rows.shape
        if not w:
            return dict.fromkeys(self.modalities, self.prior.mean.new_zeros(n_samples, n_sources, n, 0)), []
        if self.specific == "posterior":
            own = {m: q.distribution.rsample((n_samples, n_sources)) for m, q in w.items()}
            return own, list(own.values())
        own, decoded = self.stacked(w).sample(n_samples), {}
        for k, m in enumerate(self.modalities):
            other = self.auxiliary(k).distribution.rsample((n_samples, n_sources, n))
            is_own = (torch.arange(n_sources, device=own.device) == k)[:, None, None]
            decoded[m] = torch.where(is_own, own, other)
        return decoded, [own]

    def auxiliary(self, k: int) -> Posterior:
        """The distribution r of w of the k-th modality where its posterior must not be used."""
        scale = scale_of(self.auxiliary_scales[k], self.posterior_scale)
        return Posterior(torch.zeros_like(scale), scale, self.family)

    def _likelihoods(self, batch: dict, drawn: Drawn) -> Tensor:
        """Weighted sum over the modalities of log p(x_d | z, w_d), ``(K, S, n)``; 0 where a source is missing."""
        z, w, rows = drawn.shared, drawn.decoded, drawn.rows
        total = z.new_zeros(z.shape[:-1])
        for k, m in enumerate(self.modalities):
            if not self.likelihood_weights[m]:
                continue
            latent = torch.cat([self._swapped(z, k, rows) if self.swap else z, w[m]], dim=-1)
            total = total + self.likelihood_weights[m] * self._likelihood(m, latent, rows, batch)
        return total

    def _likelihood(self, m: str, latent: Tensor, rows: Tensor, batch: dict, own: bool = True) -> Tensor:
        """Log p(x_m | z, w_m) of latents ``(K, S, n, d)``, ``(K, S, n)``; 0 where source or modality is missing.

        ``own`` says whether the source that is m itself has its own w there.
        """
        chosen = rows & batch["mask"][m]
        source, cells = (index.repeat(len(latent)) for index in chosen.nonzero().unbind(1))
        # of another source it is the auxiliary w that is far off, not the values that are noisy
        learns_scale = (source == self.modalities.index(m)) & own if self.own_scale and self.crosses else None
        distribution = self.decode(m, latent[:, chosen].flatten(0, 1), batch, cells, learns_scale)
        values = latent.new_zeros(latent.shape[:-1])
        values[:, chosen] = log_likelihood(distribution, batch["x"][m][cells]).view(len(latent), -1)
        return values

    @staticmethod
    def _swapped(z: Tensor, k: int, rows: Tensor) -> Tensor:
        """Z of the k-th source replaced by that of another modality of the cell, drawn at random, if it has one."""
        others = rows.clone()
        others[k] = ~(rows.sum(0) - rows[k].int() > 0)  # no other: its own
        drawn = torch.multinomial(others.T.float(), 1).squeeze(1)
        other = z[:, drawn, torch.arange(len(drawn), device=z.device)]
        return torch.cat([z[:, :k], other.unsqueeze(1), z[:, k + 1 :]], dim=1)

    def decode(
        self,
        modality: str,
        latent: Tensor,
        batch: dict,
        cells: Tensor,
        learns_scale: Tensor | None = None,
        as_batch: Tensor | None = None,
        size: Tensor | None = None,
    ) -> Distribution:
        """Distribution of a modality's values.

        Parameters
        ----------
        modality
            Which one.
        latent
            z and w side by side, ``(r, n_shared + n_specific)``.
        batch
            Where covariates and sizes come from.
        cells
            Numbers in the batch of the cells whose covariates and sizes the rows of ``latent`` have, ``(r,)``.
        learns_scale
            See :class:`~unbraid.nn.LikelihoodDecoder`.
        as_batch
            Numbers of the batches that the rows are decoded as, ``(r,)``; those of their cells by default.
        size
            Sizes of the rows, ``(r,)``; by default those of their cells, which must have the modality.
        """
        covariates = None
        if self.n_covariates:
            given = {name: batch[name][cells] for name in ("batch", "categorical", "continuous")}
            covariates = self.covariates(given if as_batch is None else {**given, "batch": as_batch})
        if size is None and self.takes_size(batch, modality):
            size = self.library_sizes(batch, modality)[cells]
        return self.decoders[modality](latent, covariates, size, learns_scale)

    def takes_size(self, batch: dict, modality: str) -> bool:
        """Whether the likelihood of a modality has a size; the protein mixture's only if the user gave one."""
        if modality not in self.counted:
            return False
        likelihood = self.specs[self.modalities.index(modality)].likelihood
        return likelihood != "nb_mixture" or modality in batch["size_factor"]

    def sizes(self, batch: dict) -> dict[str, Tensor]:
        """Totals of the counted modalities."""
        return {m: self.library_sizes(batch, m) for m in self.counted}

    def codes_from_others(self, batch: dict) -> dict[str, tuple[Tensor, Tensor]]:
        """Per counted modality, the mean of z given all others."""
        z, found = self.posteriors(batch)[0], {}
        for m in self.counted:
            present = self.present(batch)
            present[self.modalities.index(m)] = False
            known = present.any(0)
            present[self.modalities.index(m)] |= ~known  # a posterior of nothing has no mean
            found[m] = self.joint_posterior(z, present).mean, known
        return found

    def _closed_divergence(self, drawn: Drawn, w: Mapping[str, Posterior]) -> tuple[Tensor, Tensor]:
        value = normal_kl(drawn.components.mean, drawn.components.scale, self.prior.scale)
        for k, (m, q) in enumerate(w.items()):
            value = value + normal_kl(q.mean, q.scale, self.specific_priors[m].scale) * drawn.present[k]
        return value, drawn.exists

    def _sampled_divergence(self, drawn: Drawn, w: Mapping[str, Posterior], log_posterior: Callable) -> Tensor:
        """Log q(z | X) q(w | x) / p(z) p(w) of the samples, ``(K, S, n)``."""
        value = log_posterior(drawn.shared, drawn.components, drawn.exists) - self.prior_density(drawn.shared)
        ratios = lambda m, q, sample: q.log_density(sample) - self.specific_prior_density(m, sample)
        if w and self.specific == "auxiliary":
            value = value + torch.stack([ratios(m, q, drawn.own[0][:, k]) for k, (m, q) in enumerate(w.items())], dim=1)
        elif w:
            for k, (m, q) in enumerate(w.items()):
                value = value + ratios(m, q, drawn.own[k]).masked_fill(~drawn.present[k], 0.0)
        return value.masked_fill(~drawn.rows, 0.0)

    def prior_density(self, z: Tensor) -> Tensor:
        """Log p(z)."""
        return self.prior.log_density(z)

    def specific_prior_density(self, modality: str, w: Tensor) -> Tensor:
        """Log p(w) of a modality."""
        return self.specific_priors[modality].log_density(w)

    # ---- generation -----------------------------------------------------------------------------

    def prior_sample(self, modality: str | None, n_samples: int) -> Tensor:
        """Samples of the prior of z (None) or of the w of a modality, ``(n_samples, d)``."""
        return self._prior_of(modality).sample(n_samples)

    def prior_mean(self, modality: str | None) -> Tensor:
        """Mean of the prior of z (None) or of the w of a modality, ``(d,)``."""
        return self._prior_of(modality).mean

    def _prior_of(self, modality: str | None) -> Prior:
        return self.prior if modality is None else self.specific_priors[modality]

    def log_evidence(self, batch: dict, n_samples: int) -> Tensor:
        r"""Importance-sampling estimate of :math:`\log p(X_O)` of every cell, ``(n,)``.

        z is drawn from :math:`q(z \mid X)`, every w from its posterior; all likelihoods count fully, :math:`\beta = 1`.
        """
        z, w = self.posteriors(batch)
        present = self.present(batch)
        components, exists = self.experts.components(self.stacked(z), present)
        if not self.experts.mean_over_sources:  # the product of all modalities alone
            components = Posterior(components.mean[-1:], components.scale[-1:], self.family)
            exists = exists[-1:]
        shared = self.shared_samples(z, present, n_samples).unsqueeze(1)  # (K, 1, n, d)
        log_weights = self.prior_density(shared) - self.experts.log_density(shared, components, exists)
        latents, anything = {}, torch.ones_like(present[:1])
        for k, m in enumerate(self.modalities):
            latents[m] = shared
            if w:
                sample = w[m].sample(n_samples).unsqueeze(1)
                latents[m] = torch.cat([shared, sample], dim=-1)
                ratio = self.specific_prior_density(m, sample) - w[m].log_density(sample)
                log_weights = log_weights + ratio.masked_fill(~present[k], 0.0)
            log_weights = log_weights + self._likelihood(m, latents[m], anything, batch)
        return evidence_bound(log_weights, estimator="iwae").squeeze(0)
