"""DisentangledSSL: shared codes on the sphere first, then what they leave over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from unbraid.model.base import ContrastiveModel
from unbraid.module import ViewsModule, total_loss

if TYPE_CHECKING:
    from mudata import MuData
    from scvi.module.base import LossOutput

    from unbraid.module._contrastive import Augmentation, Encoders, IndependenceChoice, SharedObjective

PRESETS: dict[str, dict[str, Any]] = {
    "official": {"n_layers": 2, "n_hidden": 512, "weight_std": 0.01, "lr": 1e-4},
    "paper": {"n_layers": 3, "n_hidden": 512, "weight_std": 0.01, "lr": 1e-4},
}


class DisentangledSSLModule(ViewsModule):
    """Both steps of DisentangledSSL; see :class:`~unbraid.model.DisentangledSSL`."""

    def specific_loss(self, batch: dict) -> LossOutput:
        """Step 2: sum_m InfoNCE(u_m, u_m') + lambda / 2 sum_m [O(s_m, c_m) + O(s_m', c_m')] (equations 4 and 11)."""
        views = self.views(batch, 2)
        with torch.no_grad():
            shared = [self.shared_codes(view, batch) for view in views]
        specific = [self.specific_codes(view, c, batch) for view, c in zip(views, shared, strict=True)]
        terms = {
            "specific_info_nce": (1.0, lambda: self.views_info_nce(specific, shared, batch)),
            **self.independence_terms(lambda kind: self.views_dependence(kind, specific, shared, batch)),
        }
        return total_loss(terms, len(batch["index"]))


class DisentangledSSL(ContrastiveModel):
    r"""Shared and specific codes in two steps (Wang et al., ICLR 2025).

    **Step 1** learns shared codes :math:`z_m \sim \mathrm{vMF}(\mu_m, \kappa)`, :math:`\mu_m = f_m(x_m) /
    \|f_m(x_m)\|`, with as little else in them as possible:

    .. math:: L_c = \mathrm{InfoNCE}(z_1, z_2) - \beta\, \mathbb E \langle \mu_1, \mu_2 \rangle ,

    where the second term is the KL divergence between the two posteriors, its constant
    :math:`\kappa A_d(\kappa)` absorbed in :math:`\beta`. **Step 2** freezes the shared encoders and
    learns specific codes :math:`s_m = h_m([x_m, c_m])` that, together with the other modality's shared
    code, tell the cell from all others, and that are orthogonal to their own shared code:

    .. math::
        L_s = \sum_m \mathrm{InfoNCE}\big([s_m, c_{n}], [s_m', c_{n}']\big)
              + \frac{\lambda}{2} \sum_m \big[ O(s_m, c_m) + O(s_m', c_m') \big] ,

    with primes for a second random view of the cell. With more than two modalities step 1 averages
    over their pairs, and :math:`c_n` is the mean of the other modalities that the cell has.

    On the paper's own, linear simulation :class:`LinearSplit` is better in every measure, in seconds; on three CITE-seq
    sets its codes cover more of both modalities, on two of them its protein codes leak less, and on the one with labels
    cell types are read better from its shared code.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared, n_specific
        Dimensions of the codes (the paper's simulation has 100 and 100). ``n_specific=0`` leaves out step 2.
    encoders
        ``"mlp"``, a :class:`torch.nn.Module`, or one of them per modality.
    preset
        ``"official"``: two linear layers, as the released code and its figures; ``"paper"``: three, as
        the text. Both: width 512, weights from N(0, 0.01^2), Adam at 1e-4. None: the defaults of all
        contrastive models, which suit small data better. Options given by name win.
    kappa
        Concentration of the posterior; None makes codes deterministic.
    beta
        Weight of the alignment.
    lambda_
        Weight of the orthogonality.
    orthogonality_kind
        ``"rows"``: the released code, for which the published :math:`\lambda` were chosen; ``"columns"``: the
        paper's words; ``"correlation"``: columns centred; see :func:`~unbraid.objectives.orthogonality`.
    divide_by_batch
        Divide ``"rows"`` by the batch size, with which it grows.
    temperature
        Of InfoNCE.
    augmentation
        Random views: ``"auto"`` thins counts and puts noise and dropout on the rest; a callable, or one per modality.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all contrastive models: see :class:`~unbraid.model.base.ContrastiveModel`.

    Notes
    -----
    The released code and the paper differ in the depth of the encoders (``preset``) and in the
    orthogonality (``orthogonality_kind``). The second view is an augmentation of the first, as in the
    released code.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.DisentangledSSL.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.DisentangledSSL(mdata, n_shared=16, n_specific=16)
    >>> model.train()
    >>> model.write_latent()
    """

    _module_cls = DisentangledSSLModule

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 32,
        n_specific: int = 32,
        encoders: Encoders = "mlp",
        *,
        preset: Literal["official", "paper"] | None = None,
        shared_objective: SharedObjective = "vmf",
        kappa: float | None = 1000.0,
        beta: float = 1.0,
        lambda_: float = 0.1,
        independence: IndependenceChoice = "orthogonality",
        orthogonality_kind: Literal["rows", "columns", "correlation"] = "rows",
        divide_by_batch: bool = False,
        normalize_codes: bool = False,
        temperature: float = 0.07,
        augmentation: Augmentation = "auto",
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"`preset` is one of {list(PRESETS)} or None, got {preset!r}.")
        self.module = self._build_module(
            n_shared,
            n_specific,
            encoders=encoders,
            shared_objective=shared_objective,
            kappa=kappa,
            beta=beta,
            lambda_=lambda_,
            independence=independence,
            normalize_codes=normalize_codes,
            orthogonality={"kind": orthogonality_kind, "divide_by_batch": divide_by_batch},
            temperature=temperature,
            augmentation=augmentation,
            **{**PRESETS.get(preset, {}), **options},
        )
        self._finish(locals())
