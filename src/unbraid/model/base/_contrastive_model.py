"""The user's side of the contrastive family."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from unbraid.model.base._latents import UNTRAINED
from unbraid.model.base._split_model import SplitModel
from unbraid.module import ContrastiveModule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

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
        information; the default when a ``batch_key`` was registered. ``"all"`` compares with all.
    ``encode_covariates``
        Whether encoders get batch and covariates as input (not by default).
    ``input_transform``
        What encoders see, per modality or for all: ``"log1p"`` (default for counts), ``"clr"``,
        ``"scale"`` (default for continuous values), ``"standardize"`` or ``"identity"`` (default for
        ``bernoulli``); see :class:`~unbraid.nn.InputLayer`.
    ``specific_encoders``
        Networks of the specific codes, as ``encoders`` for the shared ones.
    ``n_hidden``, ``n_layers``, ``norm``, ``dropout``, ``weight_std``
        Of the multilayer perceptrons; see :class:`~unbraid.nn.MLP`.
    ``weight_decay``, ``schedule``
        Of Adam: ``"cosine"`` (default) lets the learning rate fall to zero, ``"constant"`` does not.
    """

    _module_cls = ContrastiveModule

    def _build_module(
        self,
        n_shared: int,
        n_specific: int,
        *,
        negatives: Literal["batch", "all"] | None = None,
        encode_covariates: bool = False,
        input_transform: InputTransform | dict[str, InputTransform] | None = None,
        **module_options: Any,
    ) -> ContrastiveModule:
        for name, size in {"n_shared": n_shared, "n_specific": n_specific}.items():
            if size < (1 if name == "n_shared" else 0):
                raise ValueError(f"`{name}` must be positive, got {size}.")
        setup, stats = self.registry_["setup_args"], self.summary_stats
        covariates = (setup["categorical_covariate_keys"] or []) + (setup["continuous_covariate_keys"] or [])
        if covariates and not encode_covariates:
            warnings.warn(
                f"{type(self).__name__} uses the covariates {covariates} only with `encode_covariates=True`.",
                UserWarning,
                stacklevel=4,
            )
        negatives = negatives or ("all" if setup["batch_key"] is None else "batch")
        if negatives == "batch" and setup["batch_key"] is None:
            raise ValueError("`negatives='batch'` needs a `batch_key` in `setup_mudata`.")
        if encode_covariates:
            categorical = self.registry_["field_registries"][REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]
            module_options["n_categories"] = [stats.n_batch, *categorical.get("n_cats_per_key", [])]
            module_options["n_continuous"] = stats.get("n_extra_continuous_covs", 0)
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
            Numbers of cells; all by default.

        Returns
        -------
        float32 array ``(n_obs, n_shared)``, one row per cell; NaN where the cell lacks the modality.
        """
        self._check_if_trained(warn=False, message=UNTRAINED)
        self._check_request("shared", modality)
        mdata = self._validate_anndata(mdata)
        rows = np.arange(mdata.n_obs) if indices is None else self._cell_numbers(indices, mdata.n_obs)
        codes = [
            latents.params["unnormalized_shared"][modality].masked_fill(~batch["mask"][modality][:, None], torch.nan)
            for batch, latents in self._encode(mdata, rows, None)
        ]
        return torch.cat(codes).float().cpu().numpy()
