"""What the generative models with information terms share."""

from __future__ import annotations

from typing import Any, Literal

from unbraid.model.base._generative_model import GenerativeModel
from unbraid.module import DisentangledVAE


class DisentangledModel(GenerativeModel):
    """Base of the generative models with information terms.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    registry
        Registry of a saved model, to load it without data.

    Notes
    -----
    Beside the options of :class:`GenerativeModel` these take:

    ``temperature``, ``form``
        Of the contrasts (1 by default), and ``"released"`` or ``"paper"``; see :class:`~unbraid.model.IDMVAE`.
    ``negatives``
        ``"batch"`` contrasts a cell with cells of its own batch only, the default when a ``batch_key`` was registered;
        ``"all"`` with all.
    ``augmentation_loss``
        ``"contrast"``, or ``"least_squares"`` of posterior means, with a smaller weight (0.75 in the paper).
    ``augmentation_partners``
        Whose latent is put in place of a cell's own: that of the next cell of the batch (``"roll"``), of a random one
        (``"permutation"``), or a draw of the prior (``"prior"``).
    ``augmentation_decodes``
        What is encoded again: the ``"mean"`` of the decoder, or a ``"sample"`` (normal and Laplace likelihoods only).
    ``swap``
        Decode a modality with another modality's z; see :class:`~unbraid.model.SwapVAE`.
    ``diffusion_options``
        ``{"n_hidden": 512, "n_steps": 1000}`` of the diffusion models.
    ``independence``, ``independence_options``, ``n_inner_steps``, ``inner_lr``
        Penalties on what w tells of the other modalities' z; see :class:`ContrastiveModel`.
    """

    _module_cls = DisentangledVAE
    _needs_specific = True

    def _build_module(
        self, n_shared: int, n_specific: int, *, negatives: Literal["batch", "all"] | None = None, **options: Any
    ) -> DisentangledVAE:
        batch_key = self.registry_["setup_args"]["batch_key"]
        negatives = negatives or ("all" if batch_key is None else "batch")
        if negatives == "batch" and batch_key is None:
            raise ValueError("`negatives='batch'` needs a `batch_key` in `setup_mudata`.")
        return super()._build_module(n_shared, n_specific, negatives=negatives, **options)
