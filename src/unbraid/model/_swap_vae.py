"""SwapVAE: the generative model that we recommend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unbraid.model.base import DisentangledModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._independence import IndependenceChoice
    from unbraid.module._networks import Networks


class SwapVAE(DisentangledModel):
    r"""Multimodal variational autoencoder in which a modality is reconstructed from another one's shared latent.

    Bound, CrossMI and GenAug of :class:`IDMVAE`, with four changes:

    *Swap.* In MMVAE+ the z of modality m decodes m itself beside :math:`w_m`, so that z may keep what is private to m,
    and does. Here :math:`x_m` is decoded from :math:`w_m` and the z of *another* modality n of the same cell, drawn at
    random,

    .. math:: \log p(x_m \mid z_n, w_m) + \sum_{d \neq m} \log p(x_d \mid z_m, \tilde w_d) ,

    so that what is private has nowhere to go but :math:`w_m`. A cell with one modality uses its own z.

    *Detached priors.* Diffusion models of z and of every w are learned from the finished posterior means, in a stage of
    their own. A diffusion loss that reaches the encoders makes z easy to denoise, at the cost of what z holds; and from
    samples of the posteriors it would learn their noise.

    *Own scales.* The learned scale (dispersion) of a likelihood follows only what is decoded with its own w. In MMVAE+ it
    also follows what is decoded with :math:`\tilde w`, where the private part cannot be predicted; the inflated scale is
    noise on every value that is drawn, under which a weak shared signal is not seen. (Expected values show it.)

    *Independence*, if wanted: a penalty on what :math:`w_m` tells of the other modalities' z.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared, n_specific
        Dimensions of z and of every :math:`w_m`.
    encoders, decoders
        ``"mlp"``, ``"resnet"``, ``"text"``, a :class:`torch.nn.Module`, or one of them per modality.
    cross_information_weight, augmentation_weight
        Of the contrast between modalities, and of the contrast of re-encoded codes. See :class:`IDMVAE`.
    diffusion
        ``"detached"``; None samples from normal priors and needs no second stage.
    independence
        ``"hsic"`` and others, a name or weights by name; see :class:`~unbraid.model.base.ContrastiveModel`.
    beta
        Weight of the divergences.
    registry
        Registry of a saved model, to load it without data.
    **options
        As of :class:`IDMVAE`; ``likelihood_scale=None`` and ``swap=False`` undo the changes.

    Raises
    ------
    ValueError
        If an option has no such value or a weight is negative.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.SwapVAE.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.SwapVAE(mdata, n_shared=16, n_specific=16)
    >>> model.train()
    >>> model.write_latent()
    >>> prediction = model.impute("prot", interval=0.9)
    """

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 32,
        n_specific: int = 32,
        encoders: Networks = "mlp",
        decoders: Networks = "mlp",
        *,
        cross_information_weight: float = 80.0,
        augmentation_weight: float = 20.0,
        diffusion: Literal["detached"] | None = "detached",
        independence: IndependenceChoice = None,
        beta: float = 1.0,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        self.module = self._build_module(
            n_shared,
            n_specific,
            encoders=encoders,
            decoders=decoders,
            cross_information_weight=cross_information_weight,
            augmentation_weight=augmentation_weight,
            diffusion=diffusion,
            independence=independence,
            beta=beta,
            **{"swap": True, "likelihood_scale": "own", **options},
        )
        self._finish(locals())
