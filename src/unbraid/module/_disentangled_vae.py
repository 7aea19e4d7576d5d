"""What is added to the bound of a multimodal VAE so that z is what is shared and w what is not."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.distributions import Categorical

from unbraid._messages import check_option
from unbraid.module._base import InnerLoop, Peers, Stage, over_pairs, total_loss
from unbraid.module._independence import Independence, IndependenceChoice, independence_weights
from unbraid.module._multimodal_vae import MultimodalVAE
from unbraid.nn import DiffusionPrior, PerModality
from unbraid.objectives import info_nce, nt_xent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scvi.module.base import LossOutput
    from torch import Tensor

    from unbraid.module._multimodal_vae import Terms
    from unbraid.nn import ModalitySpec, Posterior

Form = Literal["released", "paper"]
Diffusion = Literal["additive", "replace", "detached"] | None
Partners = Literal["roll", "permutation", "prior"]


class DisentangledVAE(MultimodalVAE):
    """A multimodal VAE with the terms of IDMVAE and what mends them; see :class:`~unbraid.model.IDMVAE`.

    Parameters
    ----------
    specs, n_shared, n_specific
        As in :class:`MultimodalVAE`.
    cross_information_weight
        Of the contrast between the modalities' z.
    augmentation_weight
        Of the contrast of codes with those of what is decoded from codes of two cells.
    augmentation_loss
        ``"contrast"``, or ``"least_squares"`` of posterior means.
    augmentation_partners
        Whose code is put in place: that of the next cell of the batch (``"roll"``), of a random one
        (``"permutation"``), or one from the prior.
    augmentation_decodes
        What is encoded again: the ``"mean"`` of the decoder, or a ``"sample"`` of a normal or Laplace likelihood.
    form
        ``"released"``: the released code's sums over modalities and SimCLR contrasts; ``"paper"``: the means and InfoNCE.
    temperature
        Of the contrasts.
    independence, independence_options, n_inner_steps, inner_lr
        Penalties on what every w tells of the other modalities' z, by name; see
        :class:`~unbraid.model.base.ContrastiveModel`.
    diffusion, diffusion_weight
        Diffusion models of z and of every w: ``"additive"``, a loss of posterior means beside the bound, whose gradient
        reaches the encoders; ``"replace"``, in the place of the prior in the bound; ``"detached"``, learned in a stage
        of their own from the finished posterior means.
    diffusion_options
        ``n_hidden`` and ``n_steps`` of :class:`~unbraid.nn.DiffusionPrior`.
    negatives
        ``"batch"`` contrasts a cell with cells of its own batch only.
    **options
        Of :class:`MultimodalVAE`.
    """

    def __init__(
        self,
        specs: Sequence[ModalitySpec],
        n_shared: int,
        n_specific: int,
        *,
        cross_information_weight: float = 0.0,
        augmentation_weight: float = 0.0,
        augmentation_loss: Literal["contrast", "least_squares"] = "contrast",
        augmentation_partners: Partners = "roll",
        augmentation_decodes: Literal["mean", "sample"] = "mean",
        form: Form = "released",
        temperature: float = 1.0,
        independence: IndependenceChoice = None,
        independence_options: dict[str, dict] | None = None,
        n_inner_steps: int = 3,
        inner_lr: float = 1e-3,
        diffusion: Diffusion = None,
        diffusion_weight: float = 1.0,
        diffusion_options: dict[str, int] | None = None,
        negatives: Literal["all", "batch"] = "all",
        **options: Any,
    ) -> None:
        super().__init__(specs, n_shared, n_specific, **options)
        check_option("`augmentation_loss`", augmentation_loss, ("contrast", "least_squares"))
        check_option("`augmentation_partners`", augmentation_partners, ("roll", "permutation", "prior"))
        check_option("`augmentation_decodes`", augmentation_decodes, ("mean", "sample"))
        check_option("`form`", form, ("released", "paper"))
        check_option("`diffusion`", diffusion, (None, "additive", "replace", "detached"))
        weights = {
            "cross_information_weight": cross_information_weight,
            "augmentation_weight": augmentation_weight,
            "diffusion_weight": diffusion_weight,
        }
        for name, value in weights.items():
            if value < 0:
                raise ValueError(f"`{name}` must not be negative, got {value}.")
        if temperature <= 0:
            raise ValueError(f"`temperature` must be positive, got {temperature}.")
        for spec in specs if augmentation_weight else ():
            if augmentation_decodes == "sample" and spec.likelihood not in ("normal", "laplace"):
                raise ValueError(
                    f"Modality {spec.name!r}: samples under the likelihood {spec.likelihood!r} have no gradient. "
                    "Use `augmentation_decodes='mean'`."
                )
        self.cross_information_weight, self.augmentation_weight = cross_information_weight, augmentation_weight
        self.augmentation_loss, self.partners = augmentation_loss, augmentation_partners
        self.augmentation_decodes, self.form, self.temperature = augmentation_decodes, form, temperature
        self.diffusion, self.diffusion_weight = diffusion, diffusion_weight
        self.negatives = negatives
        self.independence_weights = independence_weights(independence)
        if "residual" in self.independence_weights:
            raise ValueError("`independence='residual'` needs a frozen shared code, which a VAE has not.")
        self.inner_options = {"n_steps": n_inner_steps, "lr": inner_lr}
        self.independence = PerModality(
            {
                m: Independence(self.independence_weights, n_specific, n_shared, independence_options)
                for m in self.modalities
            }
        )
        if diffusion is not None:
            sizes = diffusion_options or {}
            self.shared_diffusion = DiffusionPrior(n_shared, **sizes)
            self.specific_diffusions = PerModality({m: DiffusionPrior(n_specific, **sizes) for m in self.modalities})

    # ---- stages -------------------------------------------------------------------------------

    @property
    def stages(self) -> list[Stage]:
        """Everything at once; then, if they are detached, the diffusion models."""
        learns = any(network.learns for network in self.independence.networks)
        inner = InnerLoop(("independence",), **self.inner_options) if learns else None
        joint = ("shared_diffusion", "specific_diffusions") if self.diffusion in ("additive", "replace") else ()
        stages = [Stage("vae", (*self.vae_parts, *joint), inner=inner, **self.optimisation)]
        if self.diffusion == "detached":
            options = {
                **self.optimisation,
                "lr": 1e-3,
                "schedule": "cosine",
                "n_steps": 4_000,
                "early_stopping": "best",
            }
            stages.append(Stage("prior", ("shared_diffusion", "specific_diffusions"), **options))
        return stages

    def end_stage(self, stage: str, batches: Iterable[dict]) -> None:
        """As every multimodal VAE, and tell detached diffusion models the scale of the finished latents."""
        if stage != "vae" or self.diffusion != "detached":
            return super().end_stage(stage, batches)
        found = []

        def noted() -> Iterator[dict]:
            for batch in batches:
                found.append(self._latent_means(batch))
                yield batch

        rest = noted()
        super().end_stage(stage, rest)
        deque(rest, maxlen=0)  # without counts nothing was asked for
        self.shared_diffusion.standardize(torch.cat([z for z, _ in found]))
        for m in self.modalities:
            self.specific_diffusions[m].standardize(torch.cat([w[m] for _, w in found]))

    def prior_loss(self, batch: dict) -> LossOutput:
        """Loss of the detached diffusion models."""
        z, w = self._latent_means(batch)
        terms = {"shared": (1.0, lambda: self.shared_diffusion.loss(z))}
        terms |= {m: (1.0, partial(self.specific_diffusions[m].loss, w[m])) for m in self.modalities if len(w[m])}
        return total_loss(terms, len(batch["index"]))

    @torch.no_grad()
    def _latent_means(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Posterior means: z of all modalities one after the other, w per modality, of the cells that have it."""
        z, w = self.posteriors(batch)
        means = lambda found: {m: q.mean[batch["mask"][m]] for m, q in found.items()}
        return torch.cat(list(means(z).values())), means(w)

    # ---- terms --------------------------------------------------------------------------------

    def further_terms(self, batch: dict, z: dict[str, Posterior], w: dict[str, Posterior]) -> Terms:
        """Cross-modal information, generative augmentation, independence, and the joint diffusion loss."""
        additive = self.diffusion_weight if self.diffusion == "additive" else 0.0
        terms = {
            "cross_information": (self.cross_information_weight, lambda: self.cross_information(z, batch)),
            "augmentation": (self.augmentation_weight, lambda: self.generative_augmentation(z, w, batch)),
            "diffusion": (additive, lambda: self.diffusion_loss(z, w, batch)),
        }
        dependence = lambda kind: self.dependence(kind, z, w, batch)
        return terms | {kind: (weight, partial(dependence, kind)) for kind, weight in self.independence_weights.items()}

    def contrast(self, a: Tensor, b: Tensor, peers: Peers) -> Tensor:
        """Contrast of paired codes: SimCLR's as released, InfoNCE as printed."""
        function = nt_xent if self.form == "released" else partial(info_nce, symmetric=False)
        return function(a, b, temperature=self.temperature, **vars(peers))

    def cross_information(self, z: dict[str, Posterior], batch: dict) -> Tensor:
        r"""Minus the contrast of the modalities' z.

        With :math:`C_{mn}` the contrast of posterior means, ``"paper"``: mean of :math:`C_{mn}` over pairs; ``"released"``:
        :math:`\sum_{m \neq n} C_{mn} / (M - 1)`, which is M times that.
        """
        means = {m: q.mean for m, q in z.items()}
        value = over_pairs(self.contrast, means, batch["mask"], self.peers(batch))
        return value * (len(self.modalities) if self.form == "released" else 1)

    def generative_augmentation(self, z: dict[str, Posterior], w: dict[str, Posterior], batch: dict) -> Tensor:
        r"""Codes of :math:`x^+ \sim p(x \mid z, w')` against those that it was decoded from.

        Half the sum of the losses of z, where w' is another cell's, and of w, where z' is; summed over modalities
        (``"released"``) or averaged (``"paper"``).
        """
        total = sum(q.mean.sum() for q in (*z.values(), *w.values())) * 0.0
        for m in self.modalities:
            cells = batch["mask"][m].nonzero().squeeze(1)
            if len(cells) > 1:
                for kept, moved in (("z", "w"), ("w", "z")):
                    total = total + 0.5 * self._augmented(m, {"z": z[m], "w": w[m]}, kept, moved, cells, batch)
        return total / (1 if self.form == "released" else len(self.modalities))

    def _augmented(self, m: str, found: dict[str, Posterior], kept: str, moved: str, cells: Tensor, batch: dict):
        latent = {name: q.sample(1)[0][cells] for name, q in found.items()}
        if self.partners == "prior":
            # detached diffusion models are not there yet
            draw = super().prior_sample if self.diffusion == "detached" else self.prior_sample
            latent[moved] = draw(m if moved == "w" else None, len(cells))
        elif self.partners == "roll":
            latent[moved] = latent[moved].roll(1, 0)
        else:
            latent[moved] = latent[moved][torch.randperm(len(cells), device=cells.device)]
        distribution = self.decode(m, torch.cat([latent["z"], latent["w"]], 1), batch, cells)
        if self.augmentation_decodes == "sample":
            values = distribution.rsample()
        else:  # numbers of categories have no mean: text encoders take probabilities
            values = distribution.probs if isinstance(distribution, Categorical) else distribution.mean
        sizes = batch["size_factor"].get(m)
        seen = self.input_layers[m](values, None if sizes is None else sizes[cells])
        again = self.encoders[m].posteriors(self.encoders[m](self.encoder_inputs(seen, batch, cells)))[kept].mean
        target = found[kept].mean[cells]
        if self.augmentation_loss == "least_squares":
            return (again - target).square().sum(1).mean()
        return self.contrast(again, target, self.peers(batch)[cells])

    def diffusion_loss(self, z: dict[str, Posterior], w: dict[str, Posterior], batch: dict) -> Tensor:
        """Mean over modalities of the diffusion models' losses of the posterior means."""
        total = 0.0
        for m in self.modalities:
            rows = batch["mask"][m]
            if rows.any():
                total = total + self.shared_diffusion.loss(z[m].mean[rows])
                total = total + self.specific_diffusions[m].loss(w[m].mean[rows])
        return total / len(self.modalities)

    def dependence(self, kind: str, z: dict[str, Posterior], w: dict[str, Posterior], batch: dict) -> Tensor:
        """What the mean of every w tells of the other modalities' z, summed over modalities."""
        groups = self.groups(batch)
        return sum(
            (
                self.independence[m].penalties[kind](a, b, None if groups is None else groups[rows])
                for m, a, b, rows in self._pairs_of_codes(z, w, batch)
            ),
            start=sum(q.mean.sum() for q in w.values()) * 0.0,
        )

    def inner_loss(self, batch: dict, stage: str) -> Tensor:
        """Loss of the networks that the penalties consult."""
        with torch.no_grad():
            pairs = list(self._pairs_of_codes(*self.posteriors(batch), batch))
        groups = self.groups(batch)
        return sum(
            (
                self.independence[m].learning_loss(a, b, None if groups is None else groups[rows])
                for m, a, b, rows in pairs
            ),
            start=torch.zeros((), device=self.device),
        )

    def _pairs_of_codes(self, z: dict[str, Posterior], w: dict[str, Posterior], batch: dict):
        """Per modality: its w and the mean of the others' z, which is not to move, and the cells that have both."""
        mask = batch["mask"]
        for m in self.modalities:
            others = [n for n in self.modalities if n != m]
            count = sum(mask[n].int() for n in others)
            rows = mask[m] & (count > 0)
            if rows.sum() > 1:
                mean = sum(z[n].mean * mask[n].unsqueeze(1) for n in others) / count.clamp(min=1).unsqueeze(1)
                yield m, w[m].mean[rows], mean[rows].detach(), rows

    # ---- priors -------------------------------------------------------------------------------

    def prior_density(self, z: Tensor) -> Tensor:
        return self.shared_diffusion.log_density(z) if self.diffusion == "replace" else super().prior_density(z)

    def specific_prior_density(self, modality: str, w: Tensor) -> Tensor:
        if self.diffusion == "replace":
            return self.specific_diffusions[modality].log_density(w)
        return super().specific_prior_density(modality, w)

    def prior_sample(self, modality: str | None, n_samples: int) -> Tensor:
        if self.diffusion is None:
            return super().prior_sample(modality, n_samples)
        return self._diffusion_of(modality).sample(n_samples)

    def prior_mean(self, modality: str | None) -> Tensor:
        return super().prior_mean(modality) if self.diffusion is None else self._diffusion_of(modality).center

    def _diffusion_of(self, modality: str | None) -> DiffusionPrior:
        return self.shared_diffusion if modality is None else self.specific_diffusions[modality]
