"""FOCAL: modalities agree in the shared code, views in the specific one, and the two are orthogonal."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from unbraid._messages import check_option
from unbraid.model.base import ContrastiveModel
from unbraid.module import JointModule
from unbraid.objectives import nt_xent

if TYPE_CHECKING:
    import torch
    from mudata import MuData

    from unbraid.module import Peers
    from unbraid.module._contrastive import Augmentation, Codes, Encoders, IndependenceChoice, SharedObjective

PRESETS: dict[str, dict[str, Any]] = {
    "official": {"n_layers": 3, "n_hidden": 512, "weight_std": 0.01, "lr": 1e-4},
}


class FOCALModule(JointModule):
    """The one step of FOCAL; see :class:`~unbraid.model.FOCAL`."""

    def __init__(self, *args: Any, contrast: Literal["info_nce", "nt_xent"], **options: Any) -> None:
        super().__init__(*args, normalize_codes=False, **options)
        check_option("`contrast`", contrast, ("info_nce", "nt_xent"))
        self.contrast = contrast
        # FOCAL sums over both views what the base averages
        self.shared_factor, self.specific_factor = 2.0, self.specific_weight
        self.independence_weight = 2 * self.lambda_

    @property
    def _takes_cosines(self) -> bool:
        penalties = self.independence[self.modalities[0]].penalties
        return "orthogonality" in penalties and penalties["orthogonality"].options.get("kind") == "cosine"

    def info_nce(self, a: torch.Tensor, b: torch.Tensor, peers: Peers) -> torch.Tensor:
        """The chosen contrast at the module's temperature, also between modalities."""
        if self.contrast == "nt_xent":
            return nt_xent(a, b, temperature=self.present_temperature, **vars(peers))
        return super().info_nce(a, b, peers)

    def views_info_nce(self, specific: list[Codes], shared: list[Codes], batch: dict) -> torch.Tensor:
        """Contrast of the specific codes alone between two views of every modality, summed over modalities."""
        peers, mask, (first, second) = self.peers(batch), batch["mask"], specific
        return sum(self.info_nce(first[m][mask[m]], second[m][mask[m]], peers[mask[m]]) for m in self.modalities)

    def view_dependence(self, kind: str, specific: Codes, shared: Codes, batch: dict) -> torch.Tensor:
        """Penalty between a modality's two codes; cosines also between the specific codes of two modalities."""
        total = super().view_dependence(kind, specific, shared, batch)
        if kind == "orthogonality" and self._takes_cosines:
            for m, n in combinations(self.modalities, 2):
                both = batch["mask"][m] & batch["mask"][n]
                cosine = self.independence[m].penalties[kind]
                total = total + cosine(specific[m][both], cosine.scaled(specific[n][both]), None)
        return total


class FOCAL(ContrastiveModel):
    r"""Shared and specific codes learned together by contrast, orthogonal sample by sample.

    Codes are deterministic: shared :math:`c_m = f_m(x_m)` and specific :math:`s_m = h_m([x_m, c_m])`. With primes for a
    second random view of the cell, as FOCAL [1]_ is compared with in [2]_,

    .. math::
        L = \sum_{\text{views}} \mathrm{InfoNCE}(c_1, c_2) + a \sum_m \mathrm{InfoNCE}(s_m, s_m')
            + \lambda \sum_{\text{views}} \Big[ \sum_m \cos_+(s_m, c_m) + \sum_{m < n} \cos_+(s_m, s_n) \Big] ,

    where :math:`\cos_+` is the mean over cells of :math:`\max(0, \cos)`. Everything is trained at once and no gradient
    is stopped. Shared codes find their cell in the other modality, specific codes in another view of their own. The
    specific contrast is content with any information, shared information included, and only the last term works
    against this: see the notes. With more than two modalities the first term averages over their pairs; terms between
    modalities take the cells that have both.

    On the linear simulation of DisentangledSSL :class:`LinearSplit` is better in every measure, and the specific code
    reads what is shared better than what is specific; on three CITE-seq sets its codes cover more and leak less.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared, n_specific
        Dimensions of the codes, equal for the cosine. ``n_specific=0`` leaves the first term alone.
    encoders
        ``"mlp"``, a :class:`torch.nn.Module`, or one of them per modality.
    preset
        ``"official"``: three layers of width 512, weights from N(0, 0.01^2), Adam at 1e-4, as in the comparison.
        None: the defaults of all contrastive models, which suit small data better. Options given by name win.
    specific_weight
        :math:`a`, the weight of the specific codes' contrast.
    lambda_
        Weight of the penalty, per view.
    contrast
        ``"info_nce"`` as in the comparison; ``"nt_xent"`` as FOCAL's own code, where rows of the same view or
        modality are negatives of each other too. It serves all codes, the shared ones unless ``shared_objective``
        is one of correlation.
    shared_objective
        ``"info_nce"``, ``"vmf"`` (with ``kappa`` and ``beta``), ``"deep_cca"``, ``"vicreg"`` or ``"barlow_twins"``.
    independence
        ``"orthogonality"`` are the cosines. Other penalties, and other kinds of orthogonality by
        ``independence_options={"orthogonality": {"kind": ...}}``, compare every specific code with its own shared
        one only, not specific codes with each other; see :class:`~unbraid.model.base.ContrastiveModel` for all of
        them. ``"residual"`` needs a frozen shared code and is not available.
    hinge
        Take :math:`\max(0, \cos)` of every cell, as FOCAL's own code does. Without, as in the comparison, opposite
        directions are rewarded; see the notes.
    temperature
        Of the contrasts.
    augmentation
        Random views: ``"auto"`` thins counts and puts noise and dropout on the rest; a callable, or one per modality.
        Without views there is nothing for the specific codes to be robust to.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all contrastive models: see :class:`~unbraid.model.base.ContrastiveModel`.

    Raises
    ------
    ValueError
        If an option has no such value, a weight is negative, ``independence`` has ``"residual"``, or the cosine is
        asked of codes of unequal widths.

    Notes
    -----
    FOCAL's own code differs from the comparison's in three respects. It takes both codes as halves of one encoder's
    output; it contrasts by NT-Xent (``contrast``); and its cosines are hinged (``hinge``), with weight 3 where
    both contrasts have weight 1. Its fourth term ranks distances within and between time series and is left out, as
    cells are no sequences. It also sums the shared contrast over pairs of more than two modalities.

    A cosine of 0 in every cell is no independence: the shared code turned by a right angle has it. Expect shared
    information in the specific codes whatever ``lambda_`` is; another ``independence`` removes more of it. Without
    the hinge a specific code may even reach the smallest penalty as the *negative* of the shared one.

    Penalties other than the orthogonality get the shared code standardised over the batch, as it moves.

    References
    ----------
    .. [1] Liu et al. FOCAL: contrastive learning for multimodal time-series sensing signals in factorized orthogonal
       latent space. NeurIPS 2023.
    .. [2] Wang et al. An information criterion for controlled disentanglement of multimodal data. ICLR 2025.
       Appendix H.1.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.FOCAL.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.FOCAL(mdata, n_shared=16, n_specific=16)
    >>> model.train()
    >>> model.write_latent()
    """

    _module_cls = FOCALModule

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 32,
        n_specific: int = 32,
        encoders: Encoders = "mlp",
        *,
        preset: Literal["official"] | None = None,
        specific_weight: float = 1.0,
        lambda_: float = 1.0,
        contrast: Literal["info_nce", "nt_xent"] = "info_nce",
        shared_objective: SharedObjective = "info_nce",
        independence: IndependenceChoice = "orthogonality",
        hinge: bool = True,
        temperature: float = 0.07,
        augmentation: Augmentation = "auto",
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        check_option("`preset`", preset, (None, *PRESETS))
        self.module = self._build_module(
            n_shared,
            n_specific,
            encoders=encoders,
            specific_weight=specific_weight,
            lambda_=lambda_,
            contrast=contrast,
            shared_objective=shared_objective,
            independence=independence,
            orthogonality={"kind": "cosine", "hinge": hinge},
            temperature=temperature,
            augmentation=augmentation,
            **{**PRESETS.get(preset, {}), **options},
        )
        self._finish(locals())
