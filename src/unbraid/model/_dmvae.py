"""DMVAE: shared and private latents, a product of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unbraid.model.base import DisentangledModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._networks import Networks


class DMVAE(DisentangledModel):
    r"""Private-shared disentangled multimodal variational autoencoder with a product of experts.

    The shared latent z of a cell has the posterior :math:`q(z \mid X) \propto p(z) \prod_{m \in O} q(z \mid x_m)`, every
    modality a private one :math:`w_m \sim q(w_m \mid x_m)`. The product and every :math:`q(z \mid x_m)` alone each
    decode all modalities, beside the posterior of the *decoded* modality's private latent [1]_: with S running over
    these sources,

    .. math::
        \mathcal L = \sum_{S} \Big[ \sum_{m \in O} \big( -\lambda_m \mathbb E \log p(x_m \mid z_S, w_m)
        + \beta\, \mathrm{KL}(q(w_m \mid x_m) \| p) \big) + \beta\, \mathrm{KL}(q_S(z) \| p) \Big]

    Since :math:`w_m` is there whatever z comes from, nothing but its divergence keeps what is shared out of it.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared, n_specific
        Dimensions of z and of every :math:`w_m`.
    encoders, decoders
        ``"mlp"``, ``"resnet"``, ``"text"``, a :class:`torch.nn.Module`, or one of them per modality.
    beta
        :math:`\beta`.
    prior_expert
        Whether :math:`\mathcal N(0, I)` is an expert of the product (``"joint"``, as published), of every source
        (``"all"``) or of none.
    cross_information_weight
        Weight of an InfoNCE between the modalities' posterior means of z (``form="paper"``), added to the loss where
        codes are to retrieve each other, as in the drug screens of [2]_. 0, as published, leaves it out.
    temperature
        Of the InfoNCE.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all generative models, and of those with information terms: see
        :class:`~unbraid.model.base.GenerativeModel` and :class:`~unbraid.model.base.DisentangledModel`; the published
        weights :math:`\lambda_m` are ``likelihood_weights``. Posteriors are normal.

    Raises
    ------
    ValueError
        If an option has no such value.

    Notes
    -----
    The released script sets the reconstructions of the product to 0 and keeps its divergence; the paper does not,
    and neither is it done here.

    References
    ----------
    .. [1] Lee and Pavlovic. Private-shared disentangled multimodal VAE for learning of latent representations.
       CVPR Workshops 2021.
    .. [2] Wang et al. An information criterion for controlled disentanglement of multimodal data. ICLR 2025.
       Appendix H.3.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.DMVAE.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.DMVAE(mdata, n_shared=16, n_specific=16)
    >>> model.train()
    >>> model.write_latent()
    """

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 32,
        n_specific: int = 32,
        encoders: Networks = "mlp",
        decoders: Networks = "mlp",
        *,
        beta: float = 1.0,
        prior_expert: Literal["joint", "all", "none"] = "joint",
        cross_information_weight: float = 0.0,
        temperature: float = 0.1,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        self.module = self._build_module(
            n_shared,
            n_specific,
            encoders=encoders,
            decoders=decoders,
            experts="poe",
            specific="posterior",
            prior_expert=prior_expert,
            beta=beta,
            cross_information_weight=cross_information_weight,
            temperature=temperature,
            **{"posterior_scale": "exp", "form": "paper", **options},
        )
        self._finish(locals())
