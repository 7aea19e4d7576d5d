"""CoMM: one representation of whatever a cell has, by contrast between masks and views."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from unbraid._messages import check_whole, suggest
from unbraid.data._cells import numbers_of
from unbraid.model.base import ContrastiveModel
from unbraid.model.base._latents import UNTRAINED
from unbraid.module import ContrastiveModule, Latents, on_present_rows, total_loss
from unbraid.module._contrastive import beside
from unbraid.nn import FusionTransformer
from unbraid.objectives import nt_xent

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from mudata import MuData
    from scvi.module.base import LossOutput

    from unbraid.module._contrastive import Augmentation, Codes, Encoders


class CoMMModule(ContrastiveModule):
    """Encoders, fusion and projection of CoMM; see :class:`~unbraid.model.CoMM`."""

    head_stage = ""  # the fused representation is taken as it is

    def __init__(
        self,
        specs: Sequence[Any],
        n_shared: int,
        n_specific: int = 0,
        *,
        n_token: int | None,
        n_heads: int | None,
        n_fusion_layers: int,
        n_projection_hidden: int,
        n_projection: int,
        **options: Any,
    ) -> None:
        for name, value in {"n_projection_hidden": n_projection_hidden, "n_projection": n_projection}.items():
            check_whole(name, value, 1)
        self.n_token = n_shared if n_token is None else n_token
        check_whole("n_token", self.n_token, 1)
        super().__init__(specs, self.n_token, 0, **options)
        self.n_shared = n_shared
        self.fusion = FusionTransformer(
            dict.fromkeys(self.modalities, self.n_token),
            width=n_shared,
            n_heads=gcd(n_shared, 8) if n_heads is None else n_heads,
            n_layers=n_fusion_layers,
            dropout=self.network_options["dropout"],
        )
        self.projection = nn.Sequential(
            nn.Linear(n_shared, n_projection_hidden),
            nn.BatchNorm1d(n_projection_hidden),
            nn.ReLU(),
            nn.Linear(n_projection_hidden, n_projection_hidden),
            nn.BatchNorm1d(n_projection_hidden),
            nn.ReLU(),
            nn.Linear(n_projection_hidden, n_projection),
        )

    @property
    def shared_parts(self) -> tuple[str, ...]:
        """Everything."""
        return (*super().shared_parts, "fusion", "projection")

    def shared_loss(self, batch: dict) -> LossOutput:
        """The mean over masks k of [NTX(z'_k, z''_all) + NTX(z''_k, z'_all)] / 2."""
        mask, peers = batch["mask"], self.peers(batch)
        # independent views, neither one an augmentation of the other
        tokens = [self.tokens(self.views(batch)[0], batch) for _ in range(2)]
        whole = [self.projected(view, mask) for view in tokens] if len(batch["index"]) > 1 else None

        def contrast(rows: torch.Tensor, *single: torch.Tensor) -> torch.Tensor:
            chosen = vars(peers[rows])
            pairs = zip(single, reversed(whole), strict=True)
            return sum(
                nt_xent(z, other[rows], temperature=self.present_temperature, **chosen) for z, other in pairs
            ) / 2  # fmt: skip

        def only(m: str) -> torch.Tensor:
            rows = mask[m]
            if rows.sum() < 2:  # nobody to be told apart from, and no batch statistics
                return self.fusion.class_token.sum() * 0.0
            here = {m: torch.ones_like(rows[rows])}
            return contrast(rows, *(self.projected({m: view[m][rows]}, here) for view in tokens))

        terms = {f"only_{m}": lambda m=m: only(m) for m in self.modalities}
        terms["all"] = lambda: contrast(torch.ones_like(mask[self.modalities[0]]), *whole)
        weight = 1 / len(terms) if whole is not None else 0.0
        return total_loss({name: (weight, term) for name, term in terms.items()}, len(batch["index"]))

    def projected(self, tokens: Codes, present: Codes) -> torch.Tensor:
        """Projections ``(n, n_projection)`` of the cells fused from what is ``present``."""
        return self.projection(self.fusion(tokens, present))

    def tokens(self, inputs: Codes, batch: dict) -> Codes:
        """Tokens of every modality, ``(n, t, n_token)``; zeros where a cell lacks the modality."""
        covariates = self.covariates(batch)
        return {
            m: on_present_rows(lambda x, m=m: self._flat(m, x), batch["mask"][m], beside(inputs[m], covariates))
            .unflatten(1, (-1, self.n_token))
            for m in self.modalities
        }  # fmt: skip

    def _flat(self, m: str, x: torch.Tensor) -> torch.Tensor:
        tokens = self.shared_encoders[m](x)
        if tokens.ndim not in (2, 3) or tokens.shape[-1] != self.n_token:
            raise ValueError(
                f"The encoder of modality {m!r} must give tokens of shape (n, {self.n_token}) or (n, t, {self.n_token}), "
                f"got {tuple(tokens.shape)}. Change it, or set `n_token`."
            )
        return tokens.flatten(1)

    def encode(self, batch: dict, *, give_mean: bool = True) -> Latents:
        """Fused representations: of every modality alone, and of all that the cell has.

        Tokens are ``params["tokens"]``.
        """
        mask = batch["mask"]
        tokens = self.tokens(self.inputs(batch), batch)
        shared = {m: self.fusion({m: tokens[m]}, mask) for m in self.modalities}
        joint = self.fusion(tokens, mask)
        return Latents(mask, shared, {}, joint, {"unnormalized_shared": shared, "tokens": tokens})


class CoMM(ContrastiveModel):
    r"""One representation of a cell from any of its modalities (Dufumier et al., ICLR 2025).

    As in [1]_, encoders turn every modality into tokens, a transformer fuses the tokens of any set of modalities into
    :math:`z`, and a projection head is trained on two random views :math:`X', X''` of all modalities:

    .. math::
        L = \frac{1}{M + 1} \sum_{k \in \{1, \dots, M, \mathrm{all}\}} \tfrac12 \big[
            \mathrm{NTX}(z'_k, z''_{\mathrm{all}}) + \mathrm{NTX}(z''_k, z'_{\mathrm{all}}) \big] ,

    with :math:`z_k` the projection of modality k alone. The terms of single modalities ask for what is shared
    and what is unique to one of them, the last one also for what only their combination tells. Nothing keeps
    the kinds of information apart: the representation holds all of them, and there is no specific code.

    The shared code of a modality is the cell fused from this modality alone, the joint one from all
    that the cell has; both are taken before the projection head and have no fixed length.

    On the linear simulation of DisentangledSSL :class:`LinearSplit` reads more of what is shared; on three CITE-seq
    sets its codes cover more of both modalities.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared
        Width of the transformer and of the fused representation (40 in the paper).
    encoders
        ``"mlp"`` (one token per cell), a :class:`torch.nn.Module` that gives tokens ``(n, n_token)`` or
        ``(n, t, n_token)``, or one of them per modality.
    n_token
        Width of the tokens; ``n_shared`` by default.
    n_heads
        Attention heads; by default 8, or fewer if 8 does not divide ``n_shared``.
    n_fusion_layers
        Layers of the transformer.
    n_projection_hidden, n_projection
        Widths of the projection head, Linear-BN-ReLU-Linear-BN-ReLU-Linear.
    temperature
        Of the normalised temperature-scaled cross-entropy.
    augmentation
        Random views: ``"auto"`` thins counts and puts noise and dropout on the rest; a callable, or one per modality.
        With None both views are the cell itself: then the last term can only spread cells apart.
    lr, weight_decay
        Of AdamW, as published.
    registry
        Registry of a saved model, to load it without data.
    **options
        Of all contrastive models: see :class:`~unbraid.model.base.ContrastiveModel`.

    Notes
    -----
    The defaults are those of the paper's experiments on MultiBench, which keep the learning rate constant
    (``schedule="constant"``).

    Cells that lack modalities take part: the term of modality k runs over the cells that have it, and only these
    pass through the head, whose batch statistics therefore know nothing of absent values; "all" is what the cell
    has. For a cell with one modality its two terms coincide and still compare views. A term with fewer than two
    cells in a batch counts as 0.

    References
    ----------
    .. [1] Dufumier et al. What to align in multimodal contrastive learning? ICLR 2025.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.CoMM.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.CoMM(mdata, n_shared=16)
    >>> model.train()
    >>> model.get_fused_representation(["rna"]).shape
    (500, 16)
    """

    _module_cls = CoMMModule
    _without = (
        "shared_objective", "shared_options", "kappa", "beta", "center_alignment", "specific_encoders", "independence",
        "independence_options", "n_inner_steps", "inner_lr", "fresh_inner_batches",
    )  # fmt: skip
    _because = "it learns one fused representation by NT-Xent."

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int = 40,
        encoders: Encoders = "mlp",
        *,
        n_token: int | None = None,
        n_heads: int | None = None,
        n_fusion_layers: int = 1,
        n_projection_hidden: int = 512,
        n_projection: int = 256,
        temperature: float = 0.1,
        augmentation: Augmentation = "auto",
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        registry: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(mdata, registry)
        self.module = self._build_module(
            n_shared,
            0,
            encoders=encoders,
            n_token=n_token,
            n_heads=n_heads,
            n_fusion_layers=n_fusion_layers,
            n_projection_hidden=n_projection_hidden,
            n_projection=n_projection,
            temperature=temperature,
            augmentation=augmentation,
            lr=lr,
            weight_decay=weight_decay,
            **options,
        )
        self._finish(locals())

    def get_fused_representation(
        self,
        modalities: Sequence[str] | None = None,
        mdata: MuData | None = None,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Representation of cells from some of their modalities.

        Parameters
        ----------
        modalities
            Which to look at; all by default.
        mdata
            Cells; those of the set-up by default.
        indices
            Cells, by number, by name or as a mask; all by default.

        Returns
        -------
        float32 array ``(n_obs, n_shared)``, one row per cell; NaN where the cell has none of the modalities.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        KeyError
            If a modality is unknown.
        ValueError
            If no modality is named.
        """
        self._check_if_trained(warn=False, message=UNTRAINED)
        chosen = self.modalities if modalities is None else [modalities] if isinstance(modalities, str) else modalities
        chosen = list(chosen)
        if not chosen:
            raise ValueError("`modalities` must name at least one modality.")
        for m in chosen:
            if m not in self.modalities:
                raise KeyError(f"No modality {m!r} in the model. {suggest(m, self.modalities)}")
        mdata = self._validate_anndata(mdata)
        rows = numbers_of(indices, mdata, "indices")
        values = []
        for batch, latents in self._encode(mdata, rows, None):
            mask, tokens = batch["mask"], latents.params["tokens"]
            none = ~torch.stack([mask[m] for m in chosen]).any(dim=0)
            fused = self.module.fusion({m: tokens[m] for m in chosen}, mask)
            values.append(fused.masked_fill(none[:, None], torch.nan))
        return torch.cat(values).float().cpu().numpy()
