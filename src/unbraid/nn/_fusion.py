"""One representation of a cell from tokens of the modalities that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from unbraid._messages import check_whole, suggest
from unbraid.nn._per_modality import PerModality

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class FusionTransformer(nn.Module):
    """Fuse the tokens of any subset of modalities, as CoMM does.

    Every modality's tokens go through a linear adapter and get the modality's learned embedding; a
    transformer encoder reads them behind a class token, whose output is the fused representation. Modalities that a
    cell lacks are masked out of the attention. Tokens have no positions: their order within a modality does not
    matter.

    Parameters
    ----------
    n_in
        Width of the tokens of every modality.
    width
        Width of the transformer and of the fused representation.
    n_heads
        Number of attention heads; divides ``width``.
    n_layers
        Number of transformer layers.
    n_hidden
        Width of the feed-forward part; by default four times ``width``.
    dropout
        Dropout rate.

    Raises
    ------
    ValueError
        If ``n_heads`` does not divide ``width``, or there is no modality.

    Notes
    -----
    The defaults are those of CoMM's experiments on MultiBench [1]_: one layer, eight heads, width 40.

    References
    ----------
    .. [1] Dufumier et al. What to align in multimodal contrastive learning? ICLR 2025.

    Examples
    --------
    >>> import torch
    >>> from unbraid.nn import FusionTransformer
    >>> fusion = FusionTransformer({"rna": 16, "prot": 8})
    >>> tokens = {"rna": torch.randn(3, 16), "prot": torch.randn(3, 8)}
    >>> present = {"rna": torch.tensor([True, True, False]), "prot": torch.tensor([True, False, False])}
    >>> fused = fusion(tokens, present)
    >>> fused.shape, fused[2].abs().sum().item()
    (torch.Size([3, 40]), 0.0)
    """

    def __init__(
        self,
        n_in: Mapping[str, int],
        *,
        width: int = 40,
        n_heads: int = 8,
        n_layers: int = 1,
        n_hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("n_heads", n_heads), ("n_layers", n_layers)):
            check_whole(name, value, 1)
        if width % n_heads:
            raise ValueError(f"`n_heads` must divide `width`, got {n_heads} heads for a width of {width}.")
        if not n_in:
            raise ValueError("`n_in` must name at least one modality.")
        self.adapters = PerModality({m: nn.Linear(d, width) for m, d in n_in.items()})
        self.class_token = nn.Parameter(torch.randn(width) * 0.02)
        self.modality_embedding = nn.Parameter(torch.randn(len(n_in), width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, n_heads, n_hidden or 4 * width, dropout, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)

    def forward(self, tokens: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Fused representation of every cell.

        Parameters
        ----------
        tokens
            Per modality, shape ``(n, d)`` for one token per cell or ``(n, t, d)`` for several. A modality that is left
            out is absent from every cell. Values of cells that lack the modality do not matter, NaN included.
        present
            Which cells have the modality, per modality of ``tokens``, boolean, shape ``(n,)``.

        Returns
        -------
        Shape ``(n, width)``; zeros for a cell without any modality.

        Raises
        ------
        ValueError
            If a modality is unknown, lacks its entry in ``present``, or shapes do not fit; or if there are no tokens.
        """
        self._check(tokens, present)
        n = len(next(iter(tokens.values())))
        sequence = [self.class_token.expand(n, 1, -1)]
        absent = [torch.zeros(n, 1, dtype=torch.bool, device=self.class_token.device)]
        for i, m in enumerate(self.adapters):
            if m not in tokens:
                continue
            values = tokens[m] if tokens[m].ndim == 3 else tokens[m].unsqueeze(1)
            missing = ~present[m]
            # an attention weight of 0 does not silence a NaN
            values = values.masked_fill(missing[:, None, None], 0.0)
            sequence.append(self.adapters[m](values) + self.modality_embedding[i])
            absent.append(missing[:, None].expand(-1, values.shape[1]))
        mask, joined = torch.cat(absent, dim=1), torch.cat(sequence, dim=1)
        if not n:  # PyTorch's attention cannot reshape an empty mask
            return joined[:, 0]
        fused = self.transformer(joined, src_key_padding_mask=mask)[:, 0]
        return fused.masked_fill(mask[:, 1:].all(dim=1, keepdim=True), 0.0)

    def _check(self, tokens: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
        if not tokens:
            raise ValueError("`tokens` must have at least one modality.")
        n = len(next(iter(tokens.values())))
        for m, values in tokens.items():
            if m not in self.adapters:
                raise ValueError(f"`tokens`: no modality {m!r}. {suggest(m, self.adapters)}")
            if m not in present:
                raise ValueError(f"`present` must say which cells have modality {m!r}.")
            width = self.adapters[m].in_features
            if values.ndim not in (2, 3) or len(values) != n or values.shape[-1] != width:
                raise ValueError(
                    f"Tokens of modality {m!r} must have shape ({n}, {width}) or ({n}, t, {width}), "
                    f"got {tuple(values.shape)}."
                )
            if present[m].shape != (n,) or present[m].dtype != torch.bool:
                raise ValueError(
                    f"`present` of modality {m!r} must be boolean of shape ({n},), "
                    f"got {present[m].dtype} of shape {tuple(present[m].shape)}."
                )
