"""MMVAE+: shared and private latents, a mixture of experts, auxiliary priors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unbraid.model.base import GenerativeModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._networks import Networks


class MMVAEPlus(GenerativeModel):
    r"""Multimodal variational autoencoder with a mixture of experts and private latents that cannot cross.

    A shared latent z with the posterior :math:`q(z \mid X) = \frac{1}{|O|} \sum_{m \in O} q(z \mid x_m)` and a private
    one :math:`w_m \sim q(w_m \mid x_m)` per modality. The z of modality m decodes m with :math:`w_m`, and every other
    modality d with a :math:`\tilde w_d` from an auxiliary distribution :math:`r_d`, zero-centred with a learned scale, so
    that what crosses has to pass through z ([1]_, equation 5):

    .. math::
        \mathcal L = -\frac{1}{|O|} \sum_{m \in O} \mathbb E \log \frac{1}{K} \sum_k
        \frac{p(x_m \mid z_{mk}, w_{mk}) \prod_{d \in O,\, d \neq m} p(x_d \mid z_{mk}, \tilde w_{dk})\; [p(z_{mk})
        p(w_{mk})]^\beta}{[q(z_{mk} \mid X)\, q(w_{mk} \mid x_m)]^\beta}

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared, n_specific
        Dimensions of z and of every :math:`w_m`.
    encoders, decoders
        ``"mlp"``, ``"resnet"``, ``"text"``, a :class:`torch.nn.Module`, or one of them per modality.
    beta
        :math:`\beta` (2.5 for the paper's PolyMNIST). Other than 1 the ratios are no importance weights.
    estimator
        ``"elbo"``, ``"iwae"`` or ``"dreg"``; see :func:`~unbraid.objectives.evidence_bound`.
    n_importance
        Samples K per expert.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all generative models: see :class:`~unbraid.model.base.GenerativeModel`.

    Raises
    ------
    ValueError
        If an option has no such value.

    Notes
    -----
    Posteriors and priors are Laplace distributions with scales of constant sum, as in the paper. Its objective is a
    bound of the log evidence only where :math:`r_d = p(w_d)`. The released code's "DReG" has the gradient of IWAE; the
    one here is doubly reparameterised. At the end :meth:`translate` draws w from the prior, as the released code does.

    On a simulation with a weak shared signal z is what is private to every modality; see the reproduction page.

    References
    ----------
    .. [1] Palumbo et al. MMVAE+: Enhancing the generative quality of multimodal VAEs without compromises. ICLR 2023.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.MMVAEPlus.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.MMVAEPlus(mdata, n_shared=16, n_specific=16)
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
        estimator: str = "elbo",
        n_importance: int = 1,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        self.module = self._build_module(
            n_shared,
            n_specific,
            encoders=encoders,
            decoders=decoders,
            beta=beta,
            estimator=estimator,
            n_importance=n_importance,
            **{"posterior": "laplace", "posterior_scale": "softmax", **options},
        )
        self._finish(locals())
