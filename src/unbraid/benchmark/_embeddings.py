"""Joint embeddings of other packages, for tables in which they stand beside this one's models."""

from __future__ import annotations

import sys
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from scvi import settings
from scvi.model import TOTALVI

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

SHARED_SHARE = 0.1  # of what a factor explains of the modality that it explains most


def dense(x: Any) -> np.ndarray:
    """A float32 array of a matrix that may be sparse."""
    return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float32)


def fit_totalvi(
    mdata: MuData, *, n_latent: int, steps: int, seed: int, batch: Sequence[str] | None = None, held_out: bool = False
) -> TOTALVI:
    """TotalVI with its defaults.

    Parameters
    ----------
    mdata
        Counts of all cells in ``rna`` and ``prot``; left as it is.
    n_latent
        Dimensions.
    steps
        Of 256 cells, about.
    seed
        Of weights and training.
    batch
        Of every cell; one for all by default.
    held_out
        Train on the cells with ``obs["split"] == "train"`` alone.
    """
    settings.seed = seed
    mod = {
        m: AnnData(x, mdata[m].obs.copy(), mdata[m].var.copy())
        for m, x in {"rna": sparse.csr_matrix(mdata["rna"].X), "prot": dense(mdata["prot"].X)}.items()
    }
    mod["rna"].obs["totalvi_batch"] = "one" if batch is None else batch
    both = mudata.MuData(mod)
    names = {"rna_layer": "rna", "protein_layer": "prot", "batch_key": "rna"}
    TOTALVI.setup_mudata(both, modalities=names, batch_key="totalvi_batch")
    model = TOTALVI(both, n_latent=n_latent)
    rows = np.arange(mdata.n_obs)
    indexing = None
    if held_out:
        train = (mdata.obs["split"] == "train").to_numpy()
        indexing = [rows[train], rows[:0], rows[~train]]
    n_train = mdata.n_obs if indexing is None else len(indexing[0])
    model.train(
        max_epochs=max(1, round(steps * 256 / n_train)),
        accelerator="cpu",
        enable_progress_bar=False,
        batch_size=256,
        external_indexing=indexing,
        **({"early_stopping": False, "reduce_lr_on_plateau": False} if held_out else {}),
    )
    return model


def totalvi_codes(mdata: MuData, *, n_latent: int, steps: int, seed: int) -> dict[str, np.ndarray]:
    """The latent of totalVI, trained on the training cells: the code of the cell, and of either modality.

    Parameters
    ----------
    mdata, n_latent, steps, seed
        See :func:`fit_totalvi`.
    """
    model = fit_totalvi(mdata, n_latent=n_latent, steps=steps, seed=seed, held_out=True)
    z = np.asarray(model.get_latent_representation(), dtype=np.float32)
    return dict.fromkeys(("Z_c", "rna:Z_c", "prot:Z_c"), z)


def mofa_codes(mdata: MuData, *, n_factors: int, seed: int) -> dict[str, np.ndarray]:
    """Factors of MOFA+: shared ones as the code of the cell and of either modality, others as specific codes.

    On log-normalised counts, scaled per feature. It cannot read new cells, so it is given all. A factor is shared if in
    the modality that it explains less it still explains :data:`SHARED_SHARE` of what it does in the other; others belong
    to the modality that they explain. Factors that explain nothing are dropped.

    Parameters
    ----------
    mdata
        Counts of all cells in both modalities; left as it is.
    n_factors
        How many to begin with.
    seed
        Of the start.
    """
    import muon  # of the extra "baselines"

    mod = {}
    for m, adata in mdata.mod.items():
        given = AnnData(dense(adata.X).copy(), adata.obs[[]].copy(), adata.var[[]].copy())
        sc.pp.normalize_total(given)
        sc.pp.log1p(given)
        sc.pp.scale(given, max_value=10)
        mod[m] = given
    whole = mudata.MuData(mod)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        muon.tl.mofa(
            whole, use_var=None, n_factors=n_factors, scale_views=True, seed=seed, outfile=str(Path(folder) / "m.hdf5")
        )
    factors = np.asarray(whole.obsm["X_mofa"], dtype=np.float32)
    explained = np.stack([np.asarray(whole.uns["mofa"]["variance"][m]) for m in whole.mod]).clip(min=0)
    most = explained.max(axis=0)
    alive = most > 1e-2  # per cent
    shared = alive & (explained.min(axis=0) >= SHARED_SHARE * most)
    shared[np.where(alive, explained.min(axis=0), -1).argmax()] = True  # there is no joint code of no dimensions
    codes = dict.fromkeys(("Z_c", *(f"{m}:Z_c" for m in whole.mod)), factors[:, shared])
    for k, m in enumerate(whole.mod):
        codes[f"{m}:Z_s"] = factors[:, alive & ~shared & (explained.argmax(axis=0) == k)]
    return {name: z for name, z in codes.items() if z.shape[1]}
