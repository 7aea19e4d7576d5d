"""MMVAE: one shared latent, a mixture of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unbraid.model.base import GenerativeModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._networks import Networks


class MMVAE(GenerativeModel):
    r"""Multimodal variational autoencoder with a mixture of experts.

    One latent z explains all modalities. Its posterior is the mixture :math:`q(z \mid X) = \frac{1}{|O|} \sum_{m \in O}
    q(z \mid x_m)` over the modalities O that a cell has, and a sample of every expert decodes all of them [1]_:

    .. math::
        \mathcal L = -\frac{1}{|O|} \sum_{m \in O} \mathbb E_{z_m \sim q(z \mid x_m)} \log \frac{1}{K} \sum_k
        \frac{p(z_{mk}) \prod_{d \in O} p(x_d \mid z_{mk})}{q(z_{mk} \mid X)}

    There is no specific latent: z holds what is shared and what is not, as far as it helps reconstruction.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared
        Dimensions of z.
    encoders, decoders
        ``"mlp"``, ``"resnet"``, ``"text"``, a :class:`torch.nn.Module`, or one of them per modality.
    beta
        Weight of the divergence.
    estimator
        ``"elbo"``, ``"iwae"`` or ``"dreg"`` (the paper's); see :func:`~unbraid.objectives.evidence_bound`.
    n_importance
        Samples K per expert (the paper has 30).
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
    Posteriors and prior are Laplace distributions with scales of constant sum, as in the paper.

    References
    ----------
    .. [1] Shi et al. Variational mixture-of-experts autoencoders for multi-modal deep generative models. NeurIPS 2019.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.MMVAE.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.MMVAE(mdata, n_shared=16)
    >>> model.train()
    >>> model.impute("prot").shape
    (500, 30)
    """

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 32,
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
            0,
            encoders=encoders,
            decoders=decoders,
            beta=beta,
            estimator=estimator,
            n_importance=n_importance,
            **{"posterior": "laplace", "posterior_scale": "softmax", **options},
        )
        self._finish(locals())
