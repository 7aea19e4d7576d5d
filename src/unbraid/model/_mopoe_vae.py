"""MoPoE-VAE: one shared latent, a mixture of products of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unbraid.model.base import GenerativeModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._networks import Networks


class MoPoEVAE(GenerativeModel):
    r"""Multimodal variational autoencoder with a mixture of products of experts.

    One latent z explains all modalities. Every non-empty subset A of the modalities that a cell has gives a posterior
    :math:`q_A(z \mid X) \propto \prod_{m \in A} q(z \mid x_m)`, and their mixture is the posterior of the cell [1]_:

    .. math::
        \mathcal L = -\mathbb E_{A} \mathbb E_{z \sim q_A} \sum_d \log p(x_d \mid z)
        + \beta\, \frac{1}{\#A} \sum_A \mathrm{KL}(q_A \,\|\, p(z))

    with one subset drawn per cell for the first term. There is no specific latent.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`; at most 10 modalities.
    n_shared
        Dimensions of z.
    encoders, decoders
        ``"mlp"``, ``"resnet"``, ``"text"``, a :class:`torch.nn.Module`, or one of them per modality.
    beta
        :math:`\beta` (5 in the released code, 2.5 in the comparison of IDMVAE).
    prior_expert
        Whether :math:`\mathcal N(0, I)` is an expert: of the subset of all modalities that the cell has (``"joint"``, as
        released), of ``"all"`` or of ``"none"``.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all generative models: see :class:`~unbraid.model.base.GenerativeModel`. Posteriors are normal.

    Raises
    ------
    ValueError
        If an option has no such value, or there are more than 10 modalities.

    Notes
    -----
    The released code draws subsets by cutting the batch into equal parts; here every cell draws its own, of those
    whose modalities it has.

    References
    ----------
    .. [1] Sutter et al. Generalized multimodal ELBO. ICLR 2021, equation 6.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.MoPoEVAE.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.MoPoEVAE(mdata, n_shared=16)
    >>> model.train()
    >>> model.write_latent()
    """

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 32,
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
            0,
            encoders=encoders,
            decoders=decoders,
            experts="mopoe",
            prior_expert=prior_expert,
            beta=beta,
            **{"posterior_scale": "exp", **options},
        )
        self._finish(locals())
