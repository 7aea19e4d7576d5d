"""Counts like those of CITE-seq and DOGMA-seq, with known shared and specific programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unbraid._messages import check_whole
from unbraid.data.simulate._assays import ASSAYS, N_STATES, TRUTH, Factors, counts, labels, presence
from unbraid.data.simulate._common import assemble, cell_names

if TYPE_CHECKING:
    from mudata import MuData


def citeseq(
    n_obs: int = 2_000,
    *,
    n_genes: int = 500,
    n_proteins: int = 30,
    n_peaks: int = 0,
    n_cell_types: int = 6,
    n_batches: int = 2,
    n_shared: int = 4,
    n_specific: int | Mapping[str, int] = 3,
    shared_strength: float = 0.7,
    specific_strength: float = 0.7,
    batch_strength: float = 0.2,
    depth_sd: float = 0.4,
    depth_correlation: float = 0.7,
    protein_background: float = 0.2,
    missing: float | Mapping[str, float] = 0.0,
    seed: int = 0,
) -> MuData:
    r"""Count data of cells measured by RNA, surface proteins and, if asked for, chromatin accessibility.

    Cell :math:`i` has a shared vector :math:`z_i` (its cell type as one-hot code, and continuous programs that vary
    within types), for every modality :math:`m` a specific vector :math:`w_i^m` (one of three states as one-hot
    code, and continuous programs), a batch :math:`b_i` and a depth :math:`\ell_i^m`. All of these are independent,
    except that the depths of one cell's modalities correlate. Feature :math:`j` has mean

    .. math::

        \mu_{ij} = \ell_i^m \, a_j \, e^{\beta_{b_i j}}
                   \big[ (1 - g) \exp(z_i^\top V_j + w_i^{m\top} U_j) + g \big]

    with abundance :math:`a_j` and background :math:`g`, which is zero but for proteins. RNA and proteins are
    negative-binomial with this mean; a peak counts the open ones of two alleles,
    :math:`\mathrm{Bin}(2, 1 - e^{-\mu_{ij} / 2})`. :math:`V_j` is zero unless the feature is ``shared`` or ``both``,
    :math:`U_j` unless it is ``specific`` or ``both``; a ``noise`` feature follows batch and depth alone.

    Parameters
    ----------
    n_obs
        Number of cells.
    n_genes, n_proteins, n_peaks
        Number of features of each modality, at least 4. Without peaks there is no ATAC modality.
    n_cell_types, n_batches
        Number of cell types and batches, equally likely.
    n_shared
        Number of continuous programs that all modalities share.
    n_specific
        Number of continuous programs of each modality, in addition to its three-state program; by modality as a
        mapping, with 3 for those it does not name.
    shared_strength, specific_strength
        Standard deviation, over the features that carry it, of what the type (the state) adds to the log-mean, and
        again of what the continuous programs add together.
    batch_strength
        Standard deviation over features of each batch's shift of the log-mean, in every modality. 0 for no effect.
    depth_sd
        Standard deviation of the log-depth.
    depth_correlation
        Correlation of the log-depths of two modalities of a cell: a technical factor that is shared and not biology.
    protein_background
        Share of a protein's counts that carries no biology, at average expression.
    missing
        Fraction of the cells that lack each modality, rounded down to whole cells, or a mapping from modality. No cell
        lacks all of them, and as few as possible lack two; otherwise absence is at random.
    seed
        Seed of NumPy's default generator. A cell's counts do not change with ``missing``, nor RNA and protein with
        ``n_peaks``.

    Returns
    -------
    MuData with the raw counts as float32 in ``X`` of modalities ``rna`` (CSR), ``prot`` (dense) and ``atac`` (CSR).
    Cells that lack a modality are not in it. The truth, also for cells that lack the modality where it is in ``obs``:

    - ``obsm["true_shared"]``: :math:`z`, ``(n_obs, n_cell_types + n_shared)``;
    - ``mod[m].obsm["true_specific"]``: :math:`w^m`, ``(n_obs of m, 3 + n_specific)``;
    - ``obs["cell_type"]``, ``obs["batch"]``, and for each modality ``obs["{m}_program"]`` (the three-state program)
      and ``obs["depth_{m}"]`` (the factor :math:`\ell`, of median 1);
    - ``mod[m].var["truth"]``: ``shared``, ``specific``, ``both`` or ``noise``;
    - ``mod[m].varm["shared_loadings"]``, ``["specific_loadings"]``, ``["batch_loadings"]``: :math:`V, U, \beta`, one
      row for each feature;
    - ``uns["simulation"]``: recipe and parameters.
    """
    sizes = {"rna": n_genes, "prot": n_proteins} | ({"atac": n_peaks} if n_peaks != 0 else {})
    n_specific = _per_modality("n_specific", n_specific, sizes, default=3)
    missing = _per_modality("missing", missing, sizes, default=0.0)
    strengths = {"shared": shared_strength, "specific": specific_strength, "batch": batch_strength}

    at_least_one = {"n_obs": n_obs, "n_cell_types": n_cell_types, "n_batches": n_batches}
    for name, value in at_least_one.items():
        check_whole(name, value, 1)
    for name, value in zip(("n_genes", "n_proteins", "n_peaks"), sizes.values(), strict=False):
        check_whole(name, value, len(TRUTH))
    for name, value in {"n_shared": n_shared, **{f"n_specific[{m!r}]": n for m, n in n_specific.items()}}.items():
        check_whole(name, value, 0)
    for name, value in {**{f"{k}_strength": v for k, v in strengths.items()}, "depth_sd": depth_sd}.items():
        if not 0 <= value < np.inf:
            raise ValueError(f"`{name}` must be finite and not negative, got {value!r}.")
    if not 0 <= depth_correlation <= 1:
        raise ValueError(f"`depth_correlation` must be between 0 and 1, got {depth_correlation!r}.")
    if not 0 <= protein_background < 1:
        raise ValueError(f"`protein_background` must be at least 0 and below 1, got {protein_background!r}.")

    # One stream for each purpose, so that a change of one argument leaves the rest as it was.
    cell_rng, absence_rng, *assay_rngs = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(5))
    names = cell_names(n_obs)
    present = presence(missing, n_obs, absence_rng)

    shared = Factors.draw(cell_rng, n_obs, n_labels=n_cell_types, n_programs=n_shared)
    batch = cell_rng.integers(n_batches, size=n_obs)
    common_depth = cell_rng.normal(size=n_obs)
    obs = pd.DataFrame({"cell_type": labels("type", shared.label, n_cell_types)}, index=names)
    obs["batch"] = labels("batch", batch, n_batches)

    mod = {}
    for (modality, n_features), rng in zip(sizes.items(), assay_rngs, strict=False):
        specific = Factors.draw(rng, n_obs, n_labels=N_STATES, n_programs=n_specific[modality])
        own_depth = rng.normal(size=n_obs)
        log_depth = np.sqrt(depth_correlation) * common_depth + np.sqrt(1 - depth_correlation) * own_depth
        depth = np.exp(depth_sd * log_depth)
        here = present[modality]
        mod[modality] = counts(
            rng,
            ASSAYS[modality],
            n_features,
            factors={"shared": shared, "specific": specific},
            batch=Factors(batch, n_batches, np.empty((n_obs, 0))),
            depth=depth,
            strengths=strengths,
            background=protein_background if modality == "prot" else 0.0,
            present=here,
        )
        mod[modality].obs_names = names[here]
        mod[modality].obsm["true_specific"] = specific.values[here].astype(np.float32)
        obs[f"{modality}_program"] = labels("state", specific.label, N_STATES)
        obs[f"depth_{modality}"] = depth

    parameters = {**at_least_one, "n_features": sizes, "n_shared": n_shared, "n_specific": n_specific}
    parameters |= {"strengths": strengths, "depth_sd": depth_sd, "depth_correlation": depth_correlation}
    parameters |= {"protein_background": protein_background, "missing": missing, "seed": seed}
    return assemble(mod, obs, shared=shared.values, simulation={"recipe": "citeseq", "parameters": parameters})


def _per_modality(name, value, modalities, *, default):
    """One value for each modality from one value for all or a mapping."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(modalities, value)
    if unknown := [key for key in value if key not in modalities]:
        raise ValueError(f"`{name}` names {unknown}, but the modalities are {list(modalities)}.")
    return {modality: value.get(modality, default) for modality in modalities}
