"""Torch side of the deep clustering methods: one code of the cell, and clusters of codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn

from unbraid._messages import check_option
from unbraid.module._base import Latents, SplitModule, Stage, on_present_rows, total_loss
from unbraid.module._cluster_heads import MixtureClusters, SoftmaxClusters, StudentTClusters
from unbraid.module._networks import Networks, decoder_of, encoder_of
from unbraid.nn import MLP, PerModality, Posterior, log_likelihood, scale_of
from unbraid.objectives import (
    clustering_divergence,
    different_components,
    link_log_probability,
    log_volume,
    pair_distance,
    same_component,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scvi.module.base import LossOutput
    from torch import Tensor

    from unbraid.nn import ModalitySpec

LINKS = ("must_link", "cannot_link")
START_LOG_VARIANCE = -1.0


class DeepClustering(SplitModule):
    r"""One code z of the cell from all of its modalities, clusters of codes, and decoders.

    The loss is a weighted sum of the terms that ``weights`` names; a method is a choice of ``clusters``, ``links`` and
    ``weights``.

    ``"reconstruction"``
        Minus the log-likelihood of all that the cell has; of an autoencoder (all but ``"mixture"``) per feature.
    ``"divergence"``
        Of the posterior from the mixture; see :func:`~unbraid.objectives.mixture_divergence`.
    ``"clustering"``
        See :func:`~unbraid.objectives.clustering_divergence`, with the target of the cells of the batch.
    ``"volume"``
        Minus :func:`~unbraid.objectives.log_volume` of all cells of the batch and its pairs.
    ``"must_link"``, ``"cannot_link"``
        See ``links``; means over the pairs of a kind, absent from a batch without such pairs.

    Parameters
    ----------
    specs
        The modalities.
    n_shared
        Dimensions of z.
    n_clusters
        Number of clusters.
    clusters
        ``"student_t"``, ``"mixture"`` (codes are then samples of a posterior) or ``"softmax"`` (without decoders).
    links
        What makes a pair one of one cluster: small ``"distance"`` of codes, the ``"probability"`` of the same cluster,
        its logarithm (``"log_probability"``), or that of an annotation that may be wrong (``"annotation"``).
    weights
        Of the terms.
    margin
        See :func:`~unbraid.objectives.pair_distance`.
    learn_cluster_weights
        Of a mixture; otherwise they are equal.
    pretrain
        Whether to train the reconstruction first.
    encoders, decoders, n_hidden, n_layers, norm, dropout, likelihood_scale
        See :class:`~unbraid.model.base.ClusteringModel`.
    n_categories, n_continuous
        Covariates that the decoders get.
    lr, weight_decay, schedule
        Of both stages.
    """

    def __init__(
        self,
        specs: Sequence[ModalitySpec],
        n_shared: int,
        n_clusters: int,
        *,
        clusters: Literal["student_t", "mixture", "softmax"],
        weights: Mapping[str, float],
        links: Literal["distance", "probability", "log_probability", "annotation"] = "log_probability",
        margin: float | None = None,
        learn_cluster_weights: bool = True,
        pretrain: bool = True,
        encoders: Networks = "mlp",
        decoders: Networks = "mlp",
        n_hidden: int = 512,
        n_layers: int = 2,
        norm: Literal["layer"] | None = "layer",
        dropout: float = 0.0,
        likelihood_scale: float | None = None,
        n_categories: Sequence[int] = (),
        n_continuous: int = 0,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "cosine"] = "constant",
    ) -> None:
        super().__init__(specs)
        check_option("`schedule`", schedule, ("constant", "cosine"))
        self.n_clusters, self.n_shared = n_clusters, n_shared
        self.links, self.margin, self.weights, self.pretrain = links, margin, dict(weights), pretrain
        self.variational, self.decodes = clusters == "mixture", clusters != "softmax"
        self.optimisation = {"lr": lr, "weight_decay": weight_decay, "schedule": schedule}
        sizes = {"n_hidden": n_hidden, "n_layers": n_layers, "norm": norm, "dropout": dropout}
        n_out = 2 * n_shared if self.variational else n_shared
        self.encoder = ConcatenatedEncoder(specs, encoders, n_out, **sizes)
        if self.variational:  # the first stage trains no scale: at 1, noise would blur the clusters that it leaves
            nn.init.constant_(self.encoder.body[-1].layers[-1].bias[n_shared:], START_LOG_VARIANCE)
        if clusters == "mixture":
            self.clusters = MixtureClusters(n_clusters, n_shared, learn_weights=learn_cluster_weights)
        else:
            self.clusters = (StudentTClusters if self.decodes else SoftmaxClusters)(n_clusters, n_shared)
        if self.decodes:
            self.n_categories, self.n_continuous = tuple(n_categories), n_continuous
            self.decoders = PerModality(
                {
                    spec.name: decoder_of(
                        decoders, spec, n_shared, self.n_covariates, scale=self._scale(spec, likelihood_scale), **sizes
                    )
                    for spec in specs
                }
            )

    def _scale(self, spec: ModalitySpec, given: float | None) -> float | None:
        """Fixed scale of a normal or Laplace likelihood, so that an autoencoder's squared error has no unit."""
        if given is not None or self.variational:
            return given
        return float(np.sqrt(np.mean(np.square(np.asarray(spec.standard_deviation, dtype=np.float64)))))

    @property
    def stages(self) -> list[Stage]:
        """Reconstruction, then clusters; without decoders clusters alone."""
        stage = lambda name, *parts, **options: Stage(name, ("encoder", *parts), **self.optimisation, **options)
        if not self.decodes:
            return [stage("cluster", "clusters", early_stopping="never")]
        # the loss of validation cells lacks the pairs, and the target of an assignment moves with it
        cluster = stage("cluster", "decoders", "clusters", early_stopping="never")
        return [stage("pretrain", "decoders"), cluster]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Shared codes alone."""
        return ("shared",)

    # ---- codes ----------------------------------------------------------------------------------

    def posterior(self, batch: dict, inputs: dict[str, Tensor] | None = None) -> Posterior:
        """Code of every cell, ``(n, n_shared)``; of an autoencoder with scale 0.

        Parameters
        ----------
        batch
            The cells.
        inputs
            What the encoder sees, if not all modalities.
        """
        output = self.encoder(self.inputs(batch) if inputs is None else inputs, batch["mask"])
        if not self.variational:
            return Posterior(output, torch.zeros_like(output))
        mean, raw = output.chunk(2, dim=1)
        return Posterior(mean, scale_of(raw, "exp"))

    def codes(self, posterior: Posterior) -> Tensor:
        """Samples of posteriors, ``(n, n_shared)``."""
        return posterior.sample(1)[0] if self.variational else posterior.mean

    def encode(self, batch: dict, *, give_mean: bool = True) -> Latents:
        """Code of the cell, and per modality the code that the same network gives of this modality alone."""
        value = lambda posterior: posterior.mean if give_mean else self.codes(posterior)
        inputs, mask = self.inputs(batch), batch["mask"]
        shared = {
            m: value(self.posterior(batch, {m: x})).masked_fill(~mask[m].unsqueeze(1), 0.0) for m, x in inputs.items()
        }
        return Latents(mask, shared, {}, value(self.posterior(batch, inputs)))

    def cluster_probabilities(self, batch: dict) -> Tensor:
        """Probability of every cluster, ``(n, n_clusters)``; of a mixture at the posterior's mean."""
        return self.clusters.log_probabilities(self.posterior(batch).mean).exp()

    # ---- losses ---------------------------------------------------------------------------------

    def loss(self, batch: dict, stage: str) -> LossOutput:
        """Reconstruction in the first stage, all terms in the second."""
        if stage == "pretrain":  # of the mean: there is no prior yet that would bound the noise of a sample
            terms = {"reconstruction": (1.0, lambda: self.reconstruction(batch, self.posterior(batch).mean))}
            return total_loss(terms, len(batch["index"]))
        posterior = self.posterior(batch)
        codes = self.codes(posterior)
        log_p = self.clusters.log_probabilities(codes)
        terms = {
            "reconstruction": lambda: self.reconstruction(batch, codes),
            "divergence": lambda: self.clusters.divergence(posterior, log_p).mean(),
            "clustering": lambda: self.clustering(log_p),
        }
        linked = {
            name: self.codes(self.posterior(batch[name])) for name in LINKS if self.weights.get(name) and name in batch
        }
        probabilities = {name: self.clusters.log_probabilities(z) for name, z in linked.items()}
        for name, z in linked.items():
            terms[name] = lambda name=name, z=z: self.link(name, z, probabilities[name])
        terms["volume"] = lambda: -log_volume(torch.cat([log_p, *probabilities.values()]).exp())
        weighted = {name: (self.weights.get(name, 0.0), term) for name, term in terms.items()}
        return total_loss(weighted, len(batch["index"]))

    def reconstruction(self, batch: dict, codes: Tensor) -> Tensor:
        """Minus the log-likelihood of the modalities that a cell has, mean over cells."""
        covariates = self.covariates(batch) if self.n_covariates else None
        total, n_features = codes.new_zeros(len(codes)), codes.new_zeros(len(codes))
        of = lambda values, rows: None if values is None else values[rows]
        for spec in self.specs:
            rows = batch["mask"][spec.name].nonzero().squeeze(1)
            size = self.library_sizes(batch, spec.name)
            if spec.likelihood == "nb_mixture" and spec.name not in batch["size_factor"]:
                size = None
            distribution = self.decoders[spec.name](codes[rows], of(covariates, rows), of(size, rows))
            total = total.index_add(0, rows, log_likelihood(distribution, batch["x"][spec.name][rows]))
            n_features[rows] += spec.n_features
        return -(total if self.variational else total / n_features).mean()

    def clustering(self, log_p: Tensor) -> Tensor:
        """Divergence of the assignments of a batch from their own target."""
        return clustering_divergence(log_p)

    def link(self, kind: str, codes: Tensor, log_p: Tensor) -> Tensor:
        """Loss of pairs, of which cells p and p + P are one; see ``links``."""
        first, second = log_p.chunk(2)
        must = kind == "must_link"
        if self.links == "distance":
            return pair_distance(*codes.chunk(2)) if must else -pair_distance(*codes.chunk(2), margin=self.margin)
        if self.links == "probability":
            probability = same_component(first, second).exp().mean()
            return -probability if must else probability
        if self.links == "annotation":
            compatibility = self.clusters.compatibility
            return -link_log_probability(first, second, compatibility if must else -compatibility).mean()
        return -(same_component if must else different_components)(first, second).mean()

    def end_stage(self, stage: str, batches: Iterable[dict]) -> None:
        """Put the clusters where k-means or a mixture finds them among the codes of all training cells."""
        if stage == "pretrain":
            self.clusters.start(torch.cat([self.posterior(batch).mean for batch in batches]))

    def extended_state(self, reference: DeepClustering) -> dict[str, Tensor]:
        """Decoders get covariates."""
        return self.widened_state(reference)


class ConcatenatedEncoder(nn.Module):
    """One network on all modalities of a cell side by side, from whichever of them it has.

    A linear layer on the modalities side by side is the sum of a linear layer on each. Of a cell that lacks some, the sum
    over the others is scaled up by the number of modalities over that of the others.

    Parameters
    ----------
    specs
        The modalities.
    encoders
        As of :func:`encoder_of`, but that the first layer of ``"mlp"`` is the linear layer spoken of; what another
        network gives is followed by it.
    n_out
        Width of the output.
    n_hidden, n_layers, norm, dropout
        Of the network.
    """

    def __init__(
        self,
        specs: Sequence[ModalitySpec],
        encoders: Networks,
        n_out: int,
        *,
        n_hidden: int,
        n_layers: int,
        norm: str | None,
        dropout: float,
    ) -> None:
        super().__init__()
        sizes = {"n_hidden": n_hidden, "norm": norm, "dropout": dropout}

        def entrance(spec: ModalitySpec) -> nn.Module:
            choice = encoders.get(spec.name, "mlp") if isinstance(encoders, dict) else encoders
            if isinstance(choice, str) and choice == "mlp" and spec.likelihood != "categorical":
                return nn.Linear(spec.n_features, n_hidden)
            network, width = encoder_of(choice, spec, 0, n_layers=1, **sizes)
            return nn.Sequential(network, nn.Linear(width, n_hidden))

        self.entrances = PerModality({spec.name: entrance(spec) for spec in specs})
        between = [nn.LayerNorm(n_hidden)] if norm == "layer" else []
        between += [nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        self.body = nn.Sequential(*between, MLP(n_hidden, n_out, n_layers=n_layers, **sizes))

    def forward(self, inputs: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
        """Map the given modalities to ``(n, n_out)``; of no meaning for cells that have none of them."""
        hidden = sum(on_present_rows(self.entrances[m], mask[m], x) for m, x in inputs.items())
        n_present = sum(mask[m].to(hidden.dtype) for m in inputs).clamp(min=1)
        return self.body(hidden * (len(self.entrances.names) / n_present).unsqueeze(1))
