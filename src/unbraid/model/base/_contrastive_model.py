"""The user's side of the contrastive family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS

from unbraid.data._cells import numbers_of
from unbraid.model.base._latents import UNTRAINED
from unbraid.model.base._split_model import SplitModel
from unbraid.module import ContrastiveModule, independence_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    import numpy as np
    from mudata import MuData

    from unbraid.nn import InputTransform


class ContrastiveModel(SplitModel):
    """Base of the models that learn by contrast; builds the module from the registry.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    registry
        Registry of a saved model, to load it without data.

    Notes
    -----
    Every contrastive model takes these ``**options``:

    ``negatives``
        ``"batch"`` compares a cell with cells of its own batch only, so that batch is no shared
        information; the default when a ``batch_key`` was registered. ``"all"`` compares with all. Replicates of one
        group, if a ``group_key`` was registered, are never negatives of each other.
    ``positives``
        ``"own"``: a cell's shared code is to find that of its own other modality. ``"replicates"``: those of all cells
        of its group (and batch, with ``negatives="batch"``); see :func:`~unbraid.objectives.info_nce`.
    ``encode_covariates``
        Whether encoders get batch and covariates as input (not by default).
    ``input_transform``
        What encoders see, per modality or for all: ``"log1p"`` (default for counts), ``"clr"``,
        ``"pearson"``, ``"scale"`` (default for continuous values), ``"standardize"`` or ``"identity"`` (default for
        ``bernoulli``); see :class:`~unbraid.nn.InputLayer`.
    ``shared_objective``
        What makes shared codes agree: ``"info_nce"``; ``"vmf"``, the same on samples of von Mises-Fisher posteriors
        (``kappa``) minus ``beta`` times their alignment (with ``center_alignment=True`` about their mean, so that a
        large ``beta`` cannot be served by codes that are all the same); ``"deep_cca"``, ``"vicreg"`` or
        ``"barlow_twins"`` (with ``shared_options``), whose codes are no directions: after training, deep CCA's are
        turned to canonical axes of unit variance, the others standardised.
    ``learn_temperature``
        Learn the temperature of InfoNCE, from ``temperature`` on and never below 0.01.
    ``independence``, for models with specific codes
        The penalty on what a specific code z tells of the shared code c: a name, several with their weights
        (``{"adversarial": 1.0, "hsic": 0.5}``), or None. Options of each: ``independence_options={name: {...}}``.

        - ``"orthogonality"``: linear dependence only; see :func:`~unbraid.objectives.orthogonality`.
        - ``"club"``: an upper bound of the mutual information, with a Gaussian q(z | c) that is refitted; its
          ``log_variance`` is bounded (``"tanh"``) or ``"free"``. See :func:`~unbraid.objectives.club`.
        - ``"nce_club"``: the bound of FactorCL, with a critic; its cost grows with the square of the batch.
        - ``"hsic"``, ``"dcor"``: normalised kernel dependence, squared distance correlation of the batch.
        - ``"predictability"``: R2 of a network that predicts z from c. Scale-free; sees means only.
        - ``"adversarial"``: R2 of a network that predicts c from z, no less than 0.
        - ``"density_ratio"``: a discriminator of paired from re-paired codes. Sees dependence of any form.
        - ``"residual"``: no penalty. The encoder sees what a cross-fitted regression on the modality's own shared
          code leaves of its inputs, in mean and scale; see :class:`~unbraid.nn.CrossFittedResidual`. For methods whose
          shared code is frozen.

        Penalties but the orthogonality see the specific code standardised over the batch, so that no code
        escapes by shrinking; ``{"standardize": False}`` shows it as it is.
    ``n_inner_steps``, ``inner_lr``, ``fresh_inner_batches``
        Steps that the penalties' networks are refitted for within every step (3), their learning rate
        (1e-3), and whether each step draws cells of its own or takes those of the outer step (the default).
    ``specific_encoders``
        Networks of the specific codes, as ``encoders`` for the shared ones.
    ``n_hidden``, ``n_layers``, ``norm``, ``dropout``, ``weight_std``
        Of the multilayer perceptrons; see :class:`~unbraid.nn.MLP`.
    ``weight_decay``, ``schedule``
        Of Adam: ``"cosine"`` (default) lets the learning rate fall to zero, ``"constant"`` does not.
    """

    _module_cls = ContrastiveModule
    _decodes = False
    # options of the family that make no sense for a method, and why
    _without: tuple[str, ...] = ()
    _because = ""

    def _build_module(
        self,
        n_shared: int,
        n_specific: int,
        *,
        negatives: Literal["batch", "all"] | None = None,
        encode_covariates: bool = False,
        input_transform: InputTransform | dict[str, InputTransform] | None = None,
        orthogonality: dict[str, Any] | None = None,
        **module_options: Any,
    ) -> ContrastiveModule:
        if without := [name for name in self._without if name in module_options]:
            raise ValueError(f"{type(self).__name__} has no option `{without[0]}`: {self._because}")
        if "orthogonality" in independence_weights(module_options.get("independence")):
            penalties = dict(module_options.get("independence_options") or {})
            given = penalties.get("orthogonality", {})
            # the method's own options, unless the user asks for another kind
            own = orthogonality or {}
            penalties["orthogonality"] = given if given.get("kind", own.get("kind")) != own.get("kind") else own | given
            module_options["independence_options"] = penalties
        for name, size in {"n_shared": n_shared, "n_specific": n_specific}.items():
            if size < (1 if name == "n_shared" else 0):
                raise ValueError(f"`{name}` must be positive, got {size}.")
        setup, stats = self.registry_["setup_args"], self.summary_stats
        if not encode_covariates:
            self._warn_of_covariates("only with `encode_covariates=True`", stacklevel=4)
        negatives = negatives or ("all" if setup["batch_key"] is None else "batch")
        if negatives == "batch" and setup["batch_key"] is None:
            raise ValueError("`negatives='batch'` needs a `batch_key` in `setup_mudata`.")
        if module_options.get("positives") == "replicates" and setup.get("group_key") is None:
            raise ValueError("`positives='replicates'` needs a `group_key` in `setup_mudata`.")
        if encode_covariates:
            categorical = self.registry_["field_registries"][REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
            module_options["n_categories"] = [stats.n_batch, *categorical.get("n_cats_per_key", [])]
            module_options["n_continuous"] = stats.get("n_extra_continuous_covs", 0)
        if self._decodes and setup["batch_key"] is not None:
            module_options["n_batches"] = stats.n_batch
        return self._module_cls(
            self._specs(input_transform), n_shared, n_specific, negatives=negatives, **module_options
        )

    def get_unnormalized_shared(
        self, modality: str, mdata: MuData | None = None, indices: Sequence[int] | None = None
    ) -> np.ndarray:
        """Shared codes before they are put on the sphere, as some papers probe them.

        Parameters
        ----------
        modality
            Whose code.
        mdata
            Cells; those of the set-up by default.
        indices
            Cells, by number, by name or as a mask; all by default.

        Returns
        -------
        float32 array ``(n_obs, n_shared)``, one row per cell; NaN where the cell lacks the modality.
        """
        self._check_if_trained(warn=False, message=UNTRAINED)
        self._check_request("shared", modality)
        mdata = self._validate_anndata(mdata)
        rows = numbers_of(indices, mdata, "indices")
        codes = [
            latents.params["unnormalized_shared"][modality].masked_fill(~batch["mask"][modality][:, None], torch.nan)
            for batch, latents in self._encode(mdata, rows, None)
        ]
        return torch.cat(codes).float().cpu().numpy()
