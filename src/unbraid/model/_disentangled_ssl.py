"""DisentangledSSL: shared codes on the sphere first, then what they leave over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.functional import normalize

from unbraid.model.base import ContrastiveModel
from unbraid.module import ContrastiveModule, Stage, total_loss
from unbraid.nn import sample_von_mises_fisher
from unbraid.objectives import info_nce, orthogonality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mudata import MuData
    from scvi.module.base import LossOutput

    from unbraid.module._contrastive import Augmentation, Encoders

PRESETS: dict[str, dict[str, Any]] = {
    "official": {"n_layers": 2, "n_hidden": 512, "weight_std": 0.01, "lr": 1e-4},
    "paper": {"n_layers": 3, "n_hidden": 512, "weight_std": 0.01, "lr": 1e-4},
}


class DisentangledSSLModule(ContrastiveModule):
    """Both steps of DisentangledSSL; see :class:`~unbraid.model.DisentangledSSL`."""

    def __init__(
        self,
        *args: Any,
        kappa: float | None,
        beta: float,
        lambda_: float,
        orthogonality_kind: Literal["rows", "columns", "correlation"],
        divide_by_batch: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if kappa is not None and kappa <= 0:
            raise ValueError(f"`kappa` must be positive, or None for deterministic codes; got {kappa}.")
        if beta < 0 or lambda_ < 0:
            raise ValueError(f"`beta` and `lambda_` cannot be negative, got {beta} and {lambda_}.")
        self.kappa, self.beta, self.lambda_ = kappa, beta, lambda_
        self.orthogonality_kind, self.divide_by_batch = orthogonality_kind, divide_by_batch

    @property
    def stages(self) -> list[Stage]:
        """Step 1 trains the shared encoders, step 2 the specific ones with the shared ones frozen."""
        shared, specific = ("shared_encoders",), ("specific_encoders",)
        stages = [Stage("shared", shared, **self.optimisation), Stage("specific", specific, **self.optimisation)]
        return stages if self.n_specific else stages[:1]

    def posterior_sample(self, mean_direction: torch.Tensor) -> torch.Tensor:
        """Z ~ vMF(mu, kappa)."""
        return mean_direction if self.kappa is None else sample_von_mises_fisher(mean_direction, self.kappa)

    def loss(self, batch: dict, stage: str) -> LossOutput:
        """Loss of step 1 or of step 2."""
        return self.shared_loss(batch) if stage == "shared" else self.specific_loss(batch)

    def shared_loss(self, batch: dict) -> LossOutput:
        """Step 1: InfoNCE(z_1, z_2) - beta E<mu_1, mu_2>, averaged over pairs of modalities."""
        (view,) = self.views(batch)
        mean = {m: normalize(code, dim=1) for m, code in self.shared_codes(view, batch).items()}
        sample = {m: self.posterior_sample(mu) for m, mu in mean.items()}
        terms = {
            "info_nce": (1.0, lambda: self.pairwise_info_nce(sample, batch)),
            "alignment": (-self.beta, lambda: self.pairwise_alignment(mean, batch)),
        }
        return total_loss(terms, len(batch["index"]))

    def specific_loss(self, batch: dict) -> LossOutput:
        """Step 2: sum_m InfoNCE(u_m, u_m') + lambda / 2 sum_m [O(s_m, c_m) + O(s_m', c_m')]."""
        views = self.views(batch, 2)
        with torch.no_grad():
            shared = [self.shared_codes(view, batch) for view in views]
        specific = [self.specific_codes(view, c, batch) for view, c in zip(views, shared, strict=True)]
        terms = {
            "specific_info_nce": (1.0, lambda: self._views_info_nce(specific, shared, batch)),
            "orthogonality": (self.lambda_, lambda: self._orthogonality(specific, shared, batch)),
        }
        return total_loss(terms, len(batch["index"]))

    def _views_info_nce(self, specific: list[Mapping], shared: list[Mapping], batch: dict) -> torch.Tensor:
        """InfoNCE between two views of u_m = [s_m, code of the cell's other modalities] (eq. 4), summed over m."""
        groups, mask, total = self.groups(batch), batch["mask"], 0.0
        for m in self.modalities:
            others = [n for n in self.modalities if n != m]
            n_others = sum(mask[n].int() for n in others)
            rows = mask[m] & (n_others > 0)
            u = []
            for s, c in zip(specific, shared, strict=True):
                other = sum(c[n] for n in others) / n_others.clamp(min=1).unsqueeze(1)
                u.append(torch.cat([s[m], other], dim=1)[rows])
            g = None if groups is None else groups[rows]
            total = total + info_nce(u[0], u[1], temperature=self.temperature, groups=g)
        return total

    def _orthogonality(self, specific: list[Mapping], shared: list[Mapping], batch: dict) -> torch.Tensor:
        """Half the sum over modalities and both views of the orthogonality loss (eq. 11)."""
        total = 0.0
        for m in self.modalities:
            rows = batch["mask"][m]
            for s, c in zip(specific, shared, strict=True):
                total = total + orthogonality(
                    s[m][rows], c[m][rows], kind=self.orthogonality_kind, divide_by_batch=self.divide_by_batch
                )
        return 0.5 * total


class DisentangledSSL(ContrastiveModel):
    r"""Shared and specific codes in two steps (Wang et al., ICLR 2025).

    **Step 1** learns shared codes :math:`z_m \sim \mathrm{vMF}(\mu_m, \kappa)`, :math:`\mu_m = f_m(x_m) / \|f_m(x_m)\|`,
    with as little else in them as possible:

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
        kappa: float | None = 1000.0,
        beta: float = 1.0,
        lambda_: float = 0.1,
        orthogonality_kind: Literal["rows", "columns", "correlation"] = "rows",
        divide_by_batch: bool = False,
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
            kappa=kappa,
            beta=beta,
            lambda_=lambda_,
            orthogonality_kind=orthogonality_kind,
            divide_by_batch=divide_by_batch,
            temperature=temperature,
            augmentation=augmentation,
            **{**PRESETS.get(preset, {}), **options},
        )
        self._finish(locals())
