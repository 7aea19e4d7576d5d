"""Pictures are drawn from what is there, and change nothing."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import unbraid as ub

mpl.use("agg")


@pytest.fixture(scope="module")
def mdata():
    mdata = ub.data.simulate.citeseq(n_obs=120, n_genes=12, n_proteins=6, missing={"prot": 0.3}, seed=0)
    rng = np.random.default_rng(0)
    mdata.obsm["Z_c"] = rng.normal(size=(120, 3))
    for adata in mdata.mod.values():
        adata.obsm["Z_s"] = rng.normal(size=(adata.n_obs, 4))
    mdata["prot"].obsm["Z_s"][0] = np.nan  # a masked cell
    return mdata


def test_one_picture_per_code_and_colour(mdata):
    before = set(mdata.obsm), set(mdata["rna"].obsm), set(mdata.uns)
    figure = ub.pl.latents(mdata, color=["cell_type", "depth_rna"])
    assert len([ax for ax in figure.axes if ax.get_title()]) == 6
    titles = [ax.get_title() for ax in figure.axes[:3]]
    assert titles == ["shared (3 dimensions)", "specific: rna (4 dimensions)", "specific: prot (4 dimensions)"]
    assert (set(mdata.obsm), set(mdata["rna"].obsm), set(mdata.uns)) == before
    points = [ax.collections[0].get_offsets().shape[0] for ax in figure.axes[:3]]
    assert points == [120, 120, mdata["prot"].n_obs - 1]


def test_missing_codes_and_columns_are_named(mdata):
    with pytest.raises(KeyError, match="write_latent"):
        ub.pl.latents(mdata, prefix="Q")
    with pytest.raises(KeyError, match="cell_type"):
        ub.pl.latents(mdata, color="cell_typ")


def test_training_curves_pair_training_and_validation():
    frame = lambda name: pd.DataFrame({name: [3.0, 2.0]}, index=pd.Index([0, 1], name="epoch"))
    names = ["train_loss", "validation_loss", "info_nce_train", "info_nce_validation", "lr"]
    figure = ub.pl.training({f"shared/{name}": frame(name) for name in names})
    visible = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in visible] == ["shared: loss", "shared: info nce"]
    assert all(len(ax.lines) == 2 for ax in visible)
    with pytest.raises(ValueError, match="train the model first"):
        ub.pl.training({})
