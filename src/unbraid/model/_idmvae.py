"""IDMVAE: MMVAE+ with information terms that part what is shared from what is not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from unbraid._messages import check_option
from unbraid.model.base import DisentangledModel

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._networks import Networks

PRESETS: dict[str, dict[str, Any]] = {
    "tcga": {"cross_information_weight": 10.0, "augmentation_weight": 0.001, "diffusion_weight": 0.1, "lr": 5e-4},
    "polymnist": {
        "cross_information_weight": 80.0,
        "augmentation_weight": 20.0,
        "posterior": "laplace",
        "posterior_scale": "softmax",
        "prior_scale": 1.0,
        "likelihood_scale": 0.75,
        "lr": 5e-4,
    },
    "cub": {
        "cross_information_weight": 40.0,
        "augmentation_weight": 0.05,
        "diffusion_weight": 0.1,
        "beta": 1.0,
        "lr": 1e-3,
    },
}


class IDMVAE(DisentangledModel):
    r"""Information-disentangled multimodal variational autoencoder.

    The bound of :class:`MMVAEPlus` with :math:`\beta = 2.5`, and two terms ([1]_, equation 2):

    .. math::
        \mathcal L = \mathcal L_{\mathrm{MMVAE+}} + \lambda_1 \mathcal L_{\mathrm{CrossMI}}
        + \lambda_2 \mathcal L_{\mathrm{GenAug}} \; (+\; \delta\, \mathcal L_{\mathrm{diffusion}})

    *CrossMI* contrasts the posterior means of z between the modalities of a cell, a lower bound of what they share.
    *GenAug* decodes the z of one cell with the w of another, encodes the result and contrasts its z with that of the
    first and, the other way round, its w with that of the second, so that z and w can be varied apart.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared, n_specific
        Dimensions of z and of every :math:`w_m` (16 and 32 for the paper's TCGA, 32 and 128 for PolyMNIST).
    encoders, decoders
        ``"mlp"``, ``"resnet"``, ``"text"``, a :class:`torch.nn.Module`, or one of them per modality.
    preset
        ``"tcga"``, ``"polymnist"`` or ``"cub"``: the paper's weights and learning rate. Options given by name win.
    cross_information_weight, augmentation_weight
        :math:`\lambda_1` and :math:`\lambda_2`.
    form
        ``"released"``: the released code's normalisation, on which the published weights were tuned; ``"paper"``.
    diffusion
        ``"additive"``, as released: diffusion models of the posterior means of z and w, beside the bound; ``"replace"``,
        as printed: in the place of the priors in the bound; ``"detached"``: learned when all else is; None has none.
    diffusion_weight
        :math:`\delta` of ``"additive"``.
    beta
        :math:`\beta`.
    registry
        Registry of a saved model, to load it without data.
    **options
        ``temperature``, ``augmentation_loss``, ``augmentation_partners``, ``augmentation_decodes``, ``negatives``,
        ``independence``, ``swap``: see :class:`~unbraid.model.base.DisentangledModel`; and those of
        :class:`MMVAEPlus`.

    Raises
    ------
    ValueError
        If an option has no such value or a weight is negative.

    Notes
    -----
    Released code and paper differ. The code sums CrossMI over ordered pairs divided by M - 1 and GenAug over
    modalities, M times the paper's averages; contrasts like SimCLR, with a temperature of 1 that leaves them a range of
    1 nat for 128 cells, hence the large weights; pairs cells by shifting the batch; re-encodes the decoder's mean; and
    adds the diffusion loss to a divergence from simple priors, which the paper says it replaces. Posteriors of the code
    are normal with priors of scale log 2 (Laplace and 1 in ``preset="polymnist"``).

    :math:`\lambda_1` decides: see the reproduction page, and :class:`SwapVAE` for what mends the rest.

    References
    ----------
    .. [1] Zhang et al. Disentanglement of variations with multimodal generative modeling. ICLR 2026.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.IDMVAE.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.IDMVAE(mdata, n_shared=16, n_specific=16)
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
        preset: Literal["tcga", "polymnist", "cub"] | None = None,
        cross_information_weight: float | None = None,
        augmentation_weight: float | None = None,
        form: Literal["released", "paper"] = "released",
        diffusion: Literal["additive", "replace", "detached"] | None = None,
        diffusion_weight: float | None = None,
        beta: float | None = None,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        check_option("`preset`", preset, (None, *PRESETS))
        named = {
            "cross_information_weight": cross_information_weight,
            "augmentation_weight": augmentation_weight,
            "diffusion_weight": diffusion_weight,
            "beta": beta,
        }
        defaults = {
            "cross_information_weight": 80.0,
            "augmentation_weight": 20.0,
            "diffusion_weight": 1.0,
            "beta": 2.5,
            "prior_scale": 1.0 if options.get("posterior") == "laplace" else math.log(2),
        }
        given = {name: value for name, value in named.items() if value is not None}
        self.module = self._build_module(
            n_shared,
            n_specific,
            encoders=encoders,
            decoders=decoders,
            form=form,
            diffusion=diffusion,
            **{**defaults, **PRESETS.get(preset, {}), **given, **options},
        )
        self._finish(locals())
