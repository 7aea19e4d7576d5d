"""JointOpt: what DisentangledSSL learns in two steps, learned at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unbraid._messages import check_option
from unbraid.model.base import ContrastiveModel
from unbraid.module import JointModule

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._contrastive import Augmentation, Encoders, IndependenceChoice, SharedObjective

PRESETS: dict[str, dict[str, Any]] = {
    "official": {"n_layers": 3, "n_hidden": 512, "weight_std": 0.01, "lr": 1e-4},
}


class JointOptModule(JointModule):
    """The one step of JointOpt; see :class:`~unbraid.model.JointOpt`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.shared_factor = 2 / (1 + self.specific_weight)
        self.specific_factor = self.specific_weight / (1 + self.specific_weight)


class JointOpt(ContrastiveModel):
    r"""Shared and specific codes optimised jointly, the variant that DisentangledSSL compares itself with.

    The same encoders as in :class:`DisentangledSSL`, shared :math:`z_m \sim \mathrm{vMF}(\mu_m, \kappa)`,
    :math:`\mu_m = c_m / \|c_m\|`, :math:`c_m = f_m(x_m)`, and specific :math:`s_m = h_m([x_m, c_m])`, are trained
    together (Appendix H.1 of [1]_, after [2]_). With primes for a second random view of the cell

    .. math::
        L &= \frac{2}{1 + a} L_c + \frac{a}{1 + a} L_s + \lambda L_o , \\
        L_c &= \tfrac12 \big[ \mathrm{InfoNCE}(z_1, z_2) + \mathrm{InfoNCE}(z_1', z_2') \big] , \\
        L_s &= \sum_m \mathrm{InfoNCE}\big([s_m, c_n], [s_m', c_n']\big) , \\
        L_o &= \tfrac12 \sum_m \big[ O(s_m, c_m) + O(s_m', c_m') \big] .

    Nothing is frozen and no gradient is stopped: the specific terms move the shared codes too, so that nothing keeps
    specific information out of them. With more than two modalities :math:`L_c` averages over their pairs, each on the
    cells that have both, and :math:`c_n` is the mean of the other modalities that the cell has.

    On the linear simulation of DisentangledSSL :class:`LinearSplit` is better in every measure; on three CITE-seq
    sets its codes cover more of both modalities, and on two of them (1,000 and 6,855 cells) they leak less.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared, n_specific
        Dimensions of the codes (the paper's simulation has 100 and 100). ``n_specific=0`` leaves :math:`L_c` alone.
    encoders
        ``"mlp"``, a :class:`torch.nn.Module`, or one of them per modality.
    preset
        ``"official"``: three layers of width 512, weights from N(0, 0.01^2), Adam at 1e-4. None: the defaults of
        all contrastive models, which suit small data better. Options given by name win.
    specific_weight
        The paper's :math:`a`: how much the specific codes' contrast counts against the shared one.
    lambda_
        Weight of the penalty, on the scale of the released code; see the notes.
    shared_objective
        ``"vmf"``, ``"info_nce"``, ``"deep_cca"``, ``"vicreg"`` or ``"barlow_twins"``.
    kappa
        Concentration of the posterior; None makes codes deterministic.
    beta
        Weight of the alignment of step 1 of :class:`DisentangledSSL`, which JointOpt has not.
    independence
        The penalty; see :class:`~unbraid.model.base.ContrastiveModel` for all of them. ``"residual"`` needs a
        frozen shared code and is not available.
    orthogonality_kind
        ``"rows"``, ``"columns"`` or ``"correlation"``; see :func:`~unbraid.objectives.orthogonality`.
    divide_by_batch
        Divide ``"rows"`` by the batch size, with which it grows.
    normalize_codes
        Give :math:`s_m` and :math:`c_n` length 1 before they are put together in :math:`L_s`.
    temperature
        Of InfoNCE.
    augmentation
        Random views: ``"auto"`` thins counts and puts noise and dropout on the rest; a callable, or one per modality.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all contrastive models: see :class:`~unbraid.model.base.ContrastiveModel`.

    Raises
    ------
    ValueError
        If an option has no such value, a weight is negative, or ``independence`` has ``"residual"``.

    Notes
    -----
    The released code, followed here, divides the contrasts by :math:`1 + a`; the paper prints them without, its
    shared objective once per direction, so that its weight of the penalty is :math:`(1 + a)` times this ``lambda_``.
    The code has three linear layers here, as the text says, but two in DisentangledSSL; its orthogonality is that of
    DisentangledSSL (``orthogonality_kind``), and its second view an augmentation of the first.

    Penalties other than the orthogonality get the shared code standardised over the batch, as it moves.

    References
    ----------
    .. [1] Wang et al. An information criterion for controlled disentanglement of multimodal data. ICLR 2025.
    .. [2] Pan et al. Disentangled information bottleneck. AAAI 2021.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.JointOpt.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.JointOpt(mdata, n_shared=16, n_specific=16, specific_weight=1.0)
    >>> model.train()
    >>> model.write_latent()
    """

    _module_cls = JointOptModule

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 32,
        n_specific: int = 32,
        encoders: Encoders = "mlp",
        *,
        preset: Literal["official"] | None = None,
        specific_weight: float = 1.0,
        lambda_: float = 0.1,
        shared_objective: SharedObjective = "vmf",
        kappa: float | None = 1000.0,
        beta: float = 0.0,
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
        check_option("`preset`", preset, (None, *PRESETS))
        check_option("`orthogonality_kind`", orthogonality_kind, ("rows", "columns", "correlation"))
        self.module = self._build_module(
            n_shared,
            n_specific,
            encoders=encoders,
            specific_weight=specific_weight,
            lambda_=lambda_,
            shared_objective=shared_objective,
            kappa=kappa,
            beta=beta,
            independence=independence,
            normalize_codes=normalize_codes,
            orthogonality={"kind": orthogonality_kind, "divide_by_batch": divide_by_batch},
            temperature=temperature,
            augmentation=augmentation,
            **{**PRESETS.get(preset, {}), **options},
        )
        self._finish(locals())
