"""The user's side of the generative family."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS

from unbraid._messages import check_option, check_whole, suggest
from unbraid.data import registry_key
from unbraid.model.base._latents import seeded
from unbraid.model.base._split_model import SplitModel
from unbraid.model.base._traversals import TraversalMixin
from unbraid.module import MultimodalVAE
from unbraid.nn import expected_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unbraid.nn import InputTransform

N_PRIOR_DRAWS = 2_000


class Prediction(NamedTuple):
    """Values with an interval: ``mean``, ``lower`` and ``upper``, float32 ``(n_obs, n_features)`` each.

    The mean of posterior-predictive draws, and the bounds of their central interval.
    """

    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class GenerativeModel(TraversalMixin, SplitModel):
    """Base of the multimodal variational autoencoders; builds the module from the registry.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    registry
        Registry of a saved model, to load it without data.

    Notes
    -----
    Every model of the family takes these ``**options``:

    ``posterior``, ``posterior_scale``, ``prior_scale``
        ``"normal"`` or ``"laplace"`` posteriors and priors; how the scales of posteriors are made (``"softplus"``,
        ``"softmax"``, ``"exp"``), see :class:`~unbraid.nn.PosteriorEncoder`; and the scale of the priors.
    ``estimator``, ``n_importance``
        ``"elbo"``, ``"iwae"`` or ``"dreg"`` of K samples; see :func:`~unbraid.objectives.evidence_bound`.
    ``encoders``, ``decoders``
        ``"mlp"``; ``"resnet"`` for images, ``"text"`` for texts (of :func:`~unbraid.data.images`, :func:`~unbraid.data.text`);
        a network of one's own; or one of them per modality. An encoder maps ``(n, n_features)``, as ``input_transform``
        gives them, to ``(n, any width)``; means and scales are read off it by a linear layer. A decoder maps latents
        and covariates to the parameters of the likelihood; see :class:`~unbraid.nn.LikelihoodDecoder`.
    ``n_hidden``, ``n_layers``, ``norm``, ``dropout``
        Of the multilayer perceptrons: width, hidden layers of an encoder, ``"layer"`` norm or None, dropout rate.
    ``likelihood_weights``
        Weight of the log-likelihood by modality, 1 for those not named. A modality of many features outweighs one of
        few: its log-likelihood is a sum over features.
    ``likelihood_scale``
        Fixed scale of normal and Laplace likelihoods in the units of the data; learned per feature by default.
        ``"own"`` learns scales and dispersions only from modalities that are decoded with their own w: where w comes
        from the auxiliary distribution, what is private cannot be predicted, and a scale that makes up for it is noise
        on whatever is drawn (MMVAE+ and its descendants).
    ``encode_covariates``
        Whether encoders get batch and covariates as input (not by default). Decoders always get them.
    ``input_transform``
        What encoders see; see :class:`~unbraid.nn.InputLayer`.
    ``weight_decay``, ``schedule``
        Of Adam: ``"constant"`` (default) or ``"cosine"``.

    Likelihoods are those of :meth:`setup_mudata`. A cell is decoded at its own total count or, where the modality was not
    measured, at the total that its other modalities predict, see :class:`~unbraid.nn.SizePredictor`; draws draw it too.
    """

    _module_cls = MultimodalVAE
    _takes_categories = True
    _default_batch_size = 128
    module: MultimodalVAE

    def _build_module(
        self,
        n_shared: int,
        n_specific: int,
        *,
        input_transform: InputTransform | dict[str, InputTransform] | None = None,
        likelihood_weights: dict[str, float] | None = None,
        **options: Any,
    ) -> MultimodalVAE:
        for name, size in {"n_shared": n_shared, "n_specific": n_specific}.items():
            if size < (1 if name == "n_shared" or self._needs_specific else 0):
                raise ValueError(f"`{name}` must be positive, got {size}.")
        for m, weight in (likelihood_weights or {}).items():
            self._check_modality(m)
            if not weight >= 0:
                raise ValueError(f"`likelihood_weights`: the weight of {m!r} must be at least 0, got {weight}.")
        setup, stats = self.registry_["setup_args"], self.summary_stats
        categorical = self.registry_["field_registries"][REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
        n_batch = 0 if setup["batch_key"] is None else stats.n_batch
        n_categories = [n_batch, *categorical.get("n_cats_per_key", [])]
        return self._module_cls(
            self._specs(input_transform),
            n_shared,
            n_specific,
            n_categories=n_categories,
            n_continuous=stats.get("n_extra_continuous_covs", 0),
            likelihood_weights=likelihood_weights,
            **options,
        )

    _needs_specific = False

    # ---- values of cells ------------------------------------------------------------------------

    def reconstruct(
        self,
        modality: str,
        mdata: MuData | None = None,
        *,
        use: Literal["both", "shared", "specific"] = "both",
        n_samples: int | None = None,
        give_mean: bool = False,
        transform_batch: str | Sequence[str] | None = None,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        """A modality decoded from its own latents.

        Parameters
        ----------
        modality
            Which one.
        mdata
            Cells; those of the set-up by default.
        use
            Both latents, or one of them with the other at the mean of its prior.
        n_samples
            None decodes posterior means and gives expected values; a number draws latents and values that many times.
        give_mean
            Of drawn latents give the decoder's expected values, without the noise of the likelihood. Images whose
            likelihood has a fixed scale are meant to be looked at so.
        transform_batch
            Batch that all cells are decoded as, or several, over which expected values are averaged and of which every
            draw takes one. By default a cell's own; where no cell of that batch had the modality in training, all
            batches that had it.
        indices
            Cells, by number, by name or as a mask; all by default.

        Returns
        -------
        float32 array ``(n_obs, n_features)``, or ``(n_samples, n_obs, n_features)``, one row per cell; NaN where the
        cell lacks the modality.

        Raises
        ------
        ValueError
            If ``use="specific"`` and the model has no specific latents, or there is no such batch.
        """
        check_option("`use`", use, ("both", "shared", "specific"))
        self._check_request("specific" if use == "specific" else "shared", modality)
        draw = self._prior_draws()

        def latents(batch: dict, n: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            z, w = self.module.posteriors(batch)
            z = draw(None, batch, n) if use == "specific" else _codes(z[modality], n)
            if not w or use == "shared":
                w = draw(modality, batch, n)
            else:
                w = _codes(w[modality], n)
            return z, w, batch["mask"][modality]

        return self._decoded(modality, latents, mdata, n_samples, give_mean, indices, transform_batch)

    def translate(
        self,
        source: str,
        target: str,
        mdata: MuData | None = None,
        *,
        n_samples: int | None = None,
        give_mean: bool = False,
        transform_batch: str | Sequence[str] | None = None,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        """What one modality tells of another: the other decoded from the shared latent of the one.

        Parameters
        ----------
        source, target
            Modalities. The target's own latent is at the mean of its prior, or drawn from the prior.
        mdata
            Cells; those of the set-up by default. They need not have the target.
        n_samples, give_mean, transform_batch, indices
            As in :meth:`reconstruct`.

        Returns
        -------
        float32 array ``(n_obs, n_target_features)``, or with the samples first; NaN where the cell lacks the source.
        """
        self._check_modality(source)
        self._check_modality(target)
        latents = self._from([source], target)
        return self._decoded(target, latents, mdata, n_samples, give_mean, indices, transform_batch)

    def impute(
        self,
        modality: str,
        mdata: MuData | None = None,
        *,
        n_samples: int | None = None,
        give_mean: bool = False,
        interval: float | None = None,
        transform_batch: str | Sequence[str] | None = None,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray | Prediction:
        """A modality of every cell from all of its other modalities, as if it had not been measured.

        Of counts that were measured the cell's total is kept: expected counts are at that total.

        Parameters
        ----------
        modality
            Which one.
        mdata
            Cells; those of the set-up by default. They need not have the modality.
        n_samples
            As in :meth:`reconstruct`; of an interval 100 by default.
        give_mean
            As in :meth:`reconstruct`; an interval is then that of the expected value, not of a measurement.
        interval
            Probability of a posterior-predictive interval: latents and values are drawn.
        transform_batch, indices
            As in :meth:`reconstruct`.

        Returns
        -------
        float32 array ``(n_obs, n_features)``, with the samples first if ``n_samples`` is given; or a
        :class:`Prediction` with the mean and the bounds of the interval. NaN where the cell has no other modality.

        Raises
        ------
        ValueError
            If the interval is not between 0 and 1, or there is no such batch.
        """
        self._check_modality(modality)
        others = [m for m in self.modalities if m != modality]
        latents = self._from(others, modality)
        if interval is None:
            return self._decoded(modality, latents, mdata, n_samples, give_mean, indices, transform_batch)
        if not 0 < interval < 1:
            raise ValueError(f"`interval` is a probability between 0 and 1, got {interval}.")
        check_whole("n_samples", n_samples := 100 if n_samples is None else n_samples, 2)
        bounds = torch.tensor([(1 - interval) / 2, (1 + interval) / 2])
        parts = []
        for draws in self._draws(modality, latents, mdata, n_samples, give_mean, indices, transform_batch):
            low, high = torch.quantile(draws, bounds.to(draws.device), dim=0)
            parts.append([x.cpu().numpy() for x in (draws.mean(0), low, high)])
        return Prediction(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def counterfactual(
        self,
        modality: str,
        shared_from: Sequence[int],
        specific_from: Sequence[int],
        mdata: MuData | None = None,
        *,
        shared_modality: str | None = None,
        n_samples: int | None = None,
        give_mean: bool = False,
    ) -> np.ndarray:
        """A modality with the shared latent of some cells and the specific latent of others.

        Whether there are cells like these at all is told by :meth:`counterfactual_support`.

        Parameters
        ----------
        modality
            Which one.
        shared_from, specific_from
            Numbers of cells, equally many; row i of the result has the shared latent of the i-th of the first and the
            specific latent of the i-th of the second. Covariates and total counts are those of the first.
        mdata
            Cells; those of the set-up by default.
        shared_modality
            Modality that the shared latent is read from; by default ``modality`` itself. Of a molecule that was never
            screened there is no phenotype to read it from.
        n_samples, give_mean
            As in :meth:`reconstruct`.

        Returns
        -------
        float32 array ``(n, n_features)``, or with the samples first; NaN where the cells lack what is read from them.

        Raises
        ------
        ValueError
            If there are not equally many, or the model has no specific latents.
        """
        source = self._check_counterfactual(modality, shared_from, specific_from, shared_modality)
        # one pass after the other: two that take turns would leave inference mode on for good
        given = iter(
            [
                (self.module.posteriors(batch)[1][modality], batch["mask"][modality])
                for batch in self._batches(mdata, specific_from, n_samples or 1)
            ]
        )

        def latents(batch: dict, n: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            w, known = next(given)
            z = self.module.posteriors(batch)[0][source]
            return _codes(z, n), _codes(w, n), batch["mask"][source] & known

        return self._decoded(modality, latents, mdata, n_samples, give_mean, shared_from)

    def sample(
        self, n_obs: int, mdata: MuData | None = None, *, give_mean: bool = False, seed: int | None = None
    ) -> MuData:
        """New cells from the priors.

        Parameters
        ----------
        n_obs
            How many.
        mdata
            Data whose covariates and total counts the new cells have: those of cells drawn at random. Those of the
            set-up by default.
        give_mean
            Give the decoders' expected values, not draws of the likelihood.
        seed
            Of all draws; torch's state by default.

        Returns
        -------
        MuData with all modalities, features as registered, the latents in ``obsm["Z_c"]`` and
        ``mod[m].obsm["Z_s"]``.
        """
        check_whole("n_obs", n_obs, 1)
        given, module = self._validate_anndata(mdata, copy_if_view=False), self.module
        values, codes = {m: [] for m in self.modalities}, {m: [] for m in (None, *self.modalities)}
        with seeded(seed, self.device):
            rows = torch.randint(given.n_obs, (n_obs,)).numpy()
            choices = {m: self._batch_choices(m) for m in self.modalities}
            for batch in self._batches(mdata, rows):
                n = len(batch["index"])
                z = module.prior_sample(None, n)
                codes[None].append(z)
                for m in self.modalities:
                    w = module.prior_sample(m, n) if module.n_specific else z[:, :0]
                    codes[m].append(w)
                    cells = torch.arange(n, device=z.device)
                    sizes = self._sizes(batch, m, None if give_mean else 1)
                    latent = torch.cat([z, w], 1)
                    values[m].append(self._values(m, latent, batch, cells, sizes, choices[m], draws=not give_mean))
        array = lambda parts: torch.cat(parts).float().cpu().numpy()
        names = [f"sample{i}" for i in range(n_obs)]
        mod = {}
        for m in self.modalities:
            features = self.registry_["field_registries"][registry_key(m)]["state_registry"]["feature_names"]
            mod[m] = AnnData(array(values[m]), pd.DataFrame(index=names), pd.DataFrame(index=list(features)))
            if module.n_specific:
                mod[m].obsm["Z_s"] = array(codes[m])
        result = MuData(mod)
        result.obsm["Z_c"] = array(codes[None])
        return result

    def get_log_likelihood(
        self, mdata: MuData | None = None, *, n_samples: int = 100, indices: Sequence[int] | None = None
    ) -> np.ndarray:
        """Estimate of the log-likelihood of all that was measured of a cell, by importance sampling.

        Parameters
        ----------
        mdata
            Cells; those of the set-up by default.
        n_samples
            Samples of the posterior. The estimate is too low on average, and less so the more there are.
        indices
            Cells, by number, by name or as a mask; all by default.

        Returns
        -------
        float32 array ``(n_obs,)``, in nats.
        """
        check_whole("n_samples", n_samples, 1)
        parts = [self.module.log_evidence(batch, n_samples) for batch in self._batches(mdata, indices, n_samples)]
        return torch.cat(parts).float().cpu().numpy()

    # ---- helpers --------------------------------------------------------------------------------

    def _from(self, sources: list[str], target: str):
        """Latents to decode a modality from what others tell of it."""
        draw = self._prior_draws()

        def latents(batch: dict, n: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            z, _ = self.module.posteriors(batch)
            mask = batch["mask"]
            present = torch.stack([mask[m] if m in sources else torch.zeros_like(mask[m]) for m in self.modalities])
            known = present.any(0)
            # a cell of which nothing is known gets any code at all
            present[self.modalities.index(sources[0])] |= ~known
            if n is None:
                shared = self.module.joint_posterior(z, present).mean
            else:
                shared = self.module.shared_samples(z, present, n)
            return shared, draw(target, batch, n), known

        return latents

    def _prior_draws(self):
        """Function that gives the mean of a prior, ``(n_cells, d)``, or draws of it, ``(n, n_cells, d)``."""
        module, bank = self.module, {}

        def draw(modality: str | None, batch: dict, n: int | None) -> torch.Tensor:
            n_cells = len(batch["index"])
            if modality is not None and not module.n_specific:
                return torch.zeros(*(() if n is None else (n,)), n_cells, 0, device=self.device)
            if n is None:
                return module.prior_mean(modality).expand(n_cells, -1)
            if modality not in bank:  # a diffusion model takes its time: cells share draws
                bank[modality] = module.prior_sample(modality, N_PRIOR_DRAWS)
            return bank[modality][torch.randint(N_PRIOR_DRAWS, (n, n_cells), device=self.device)]

        return draw

    def _decoded(
        self, modality: str, latents, mdata, n_samples: int | None, give_mean: bool, indices, transform_batch=None
    ) -> np.ndarray:
        """Values of all cells, or draws of them with the draws first."""
        if n_samples is not None:
            check_whole("n_samples", n_samples, 1)
        draws = self._draws(modality, latents, mdata, n_samples, give_mean, indices, transform_batch)
        return np.concatenate([part.cpu().numpy() for part in draws], axis=0 if n_samples is None else 1)

    def _draws(
        self, modality: str, latents, mdata, n_samples: int | None, give_mean: bool, indices, transform_batch
    ) -> Iterator[torch.Tensor]:
        """Batch by batch, expected values ``(n, p)`` or draws ``(n_samples, n, p)``."""
        noisy = n_samples is not None and not give_mean
        choices = self._batch_choices(modality, transform_batch)
        for batch in self._batches(mdata, indices, n_samples or 1):
            z, w, known = latents(batch, n_samples)
            latent = torch.cat([z, w], dim=-1)
            latent = latent.reshape(-1, latent.shape[-1])
            cells = torch.arange(len(known), device=known.device).repeat(n_samples or 1)
            sizes = self._sizes(batch, modality, n_samples if noisy else None)
            if sizes is not None and not noisy:
                sizes = sizes.repeat(n_samples or 1)
            values = self._values(modality, latent, batch, cells, sizes, choices, draws=noisy)
            values = values.float().masked_fill(~known[cells].unsqueeze(1), torch.nan)
            yield values if n_samples is None else values.view(n_samples, len(known), -1)

    def _sizes(self, batch: dict, modality: str, n_samples: int | None) -> torch.Tensor | None:
        """Sizes that cells are decoded at; None if the likelihood has none."""
        takes = self.module.takes_size(batch, modality)
        return self.module.predicted_sizes(batch, modality, n_samples) if takes else None

    def _batch_choices(self, modality: str, transform_batch: str | Sequence[str] | None = None) -> torch.Tensor | None:
        """Which batches the cells of every batch are decoded as, ``(n_batch, n_batch)``; None without batches."""
        measured = self.module.batch_measured[self.modalities.index(modality)]
        if transform_batch is None:
            own = torch.eye(len(measured), dtype=torch.bool, device=self.device)
            lacking = ~measured if measured.any() else torch.zeros_like(measured)
            return torch.where(lacking[:, None], measured, own) if len(measured) else None
        if not len(measured):
            raise ValueError("`transform_batch` needs a `batch_key` in `setup_mudata`.")
        state = self.registry_["field_registries"][REGISTRY_KEYS.BATCH_KEY]["state_registry"]
        names = [str(name) for name in state["categorical_mapping"]]
        wanted = [str(name) for name in np.atleast_1d(transform_batch)]
        for name in wanted:
            if name not in names:
                raise ValueError(f"There is no batch {name!r}. {suggest(name, names)}")
        if not wanted:
            raise ValueError("`transform_batch` names no batch.")
        chosen = torch.tensor([name in wanted for name in names], device=self.device)
        return chosen.expand(len(names), -1)

    def _values(
        self, modality: str, latent: torch.Tensor, batch: dict, cells: torch.Tensor, sizes, choices, *, draws: bool
    ) -> torch.Tensor:
        """Draws, or expected values averaged over the batches that the cells are decoded as, ``(r, p)``."""
        sizes = None if sizes is None else sizes.reshape(-1)
        decode = partial(self.module.decode, modality, latent, batch, cells, size=sizes)
        value = (lambda distribution: distribution.sample()) if draws else expected_values
        if choices is None:
            return value(decode())
        allowed = choices[batch["batch"][cells]]
        n_allowed = allowed.sum(1)
        if n_allowed.max() == 1:
            return value(decode(as_batch=allowed.int().argmax(1)))
        if draws:
            return value(decode(as_batch=torch.multinomial(allowed.float(), 1).squeeze(1)))
        weights = (allowed / n_allowed.unsqueeze(1)).T.unsqueeze(2)
        used = allowed.any(0).nonzero().flatten()
        return sum(value(decode(as_batch=k.expand(len(cells)))) * weights[k] for k in used)


def _codes(posterior, n: int | None) -> torch.Tensor:
    return posterior.mean if n is None else posterior.sample(n)
