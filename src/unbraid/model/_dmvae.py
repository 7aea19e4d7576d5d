"""DMVAE: shared and private latents, a product of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unbraid.model.base import GenerativeModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._networks import Networks


class DMVAE(GenerativeModel):
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
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all generative models: see :class:`~unbraid.model.base.GenerativeModel`; the published weights
        :math:`\lambda_m` are ``likelihood_weights``. Posteriors are normal.

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

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.DMVAE.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.DMVAE(mdata, n_shared=16, n_specific=16)
    >>> model.train()
    >>> model.write_latent()
    """

    _needs_specific = True

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
            **{"posterior_scale": "exp", **options},
        )
        self._finish(locals())
