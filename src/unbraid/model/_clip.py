"""CLIP: the contrastive floor, a shared code and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unbraid.model.base import ContrastiveModel

if TYPE_CHECKING:
    from typing import Any

    from mudata import MuData

    from unbraid.module._contrastive import Augmentation, Encoders


class CLIP(ContrastiveModel):
    r"""Contrastive pre-training of shared codes, for any number of modalities.

    Encoders :math:`f_m` are trained so that the codes of one cell agree and those of different cells
    do not: the average over pairs of modalities of the symmetric InfoNCE loss

    .. math::
        L = \tfrac12 \big[\mathrm{CE}(c_m, c_n) + \mathrm{CE}(c_n, c_m)\big], \qquad
        \mathrm{CE}(a, b) = -\frac1B \sum_i \log
        \frac{e^{\langle a_i, b_i\rangle/\tau}}{\sum_j e^{\langle a_i, b_j\rangle/\tau}}

    with codes on the unit sphere (Radford et al. 2021; the CLIP row of the DisentangledSSL and
    IndiSeek papers). There is no specific code.

    On the linear simulation of DisentangledSSL :class:`LinearSplit` reads more of what is shared and leaks less;
    on three CITE-seq sets its codes cover more of both modalities.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared
        Dimensions of the shared code.
    encoders
        ``"mlp"``, a :class:`torch.nn.Module`, or one of them per modality.
    temperature
        :math:`\tau`. ``learn_temperature=True`` learns it from there.
    augmentation
        Random views of the cells during training: ``"auto"``, a callable, or one per modality.
    lr
        Learning rate, falling to zero along a cosine.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all contrastive models: see :class:`~unbraid.model.base.ContrastiveModel`.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.CLIP.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.CLIP(mdata, n_shared=16)
    >>> model.train()
    >>> model.write_latent()
    """

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 32,
        encoders: Encoders = "mlp",
        *,
        temperature: float = 0.07,
        augmentation: Augmentation = None,
        lr: float = 1e-3,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        for name in ("independence", "independence_options", "specific_encoders"):
            if options.get(name) is not None:
                raise ValueError(f"CLIP has no specific code, and so no `{name}`. DisentangledSSL or IndiSeek have.")
        self.module = self._build_module(
            n_shared, 0, encoders=encoders, temperature=temperature, augmentation=augmentation, lr=lr, **options
        )
        self._finish(locals())
