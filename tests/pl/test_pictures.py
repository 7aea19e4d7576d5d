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


@pytest.fixture(scope="module")
def card():
    mdata = ub.data.simulate.citeseq(n_obs=200, n_genes=15, n_proteins=8, seed=0)
    rng = np.random.default_rng(0)
    for adata in mdata.mod.values():
        adata.obsm["Z_c"] = mdata.obsm["true_shared"] + rng.normal(size=mdata.obsm["true_shared"].shape)
        adata.obsm["Z_s"] = rng.normal(size=(200, 2))
    options = {"estimators": ("canonical",), "limits": False, "n_splits": 3, "progress": False}
    return ub.metrics.scorecard(mdata, labels="cell_type", batch="batch", **options), mdata


def test_every_finding_of_a_scorecard_is_drawn(card):
    card, mdata = card
    figure = ub.pl.scorecard(card)
    drawn = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    asked = card.table["question"].isin(["shared", "specific", "complete", "nuisance", "label"])
    assert len(drawn) == (asked & card.table["estimate"].notna()).sum()
    verdicts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert set(verdicts) >= set(card.table.loc[asked & card.table["verdict"].ne(""), "verdict"])
    same = ub.pl.scorecard(mdata), ub.pl.scorecard(card.table)
    assert {len(other.axes) for other in same} == {len(figure.axes)}


def test_budgets_add_up(card):
    figure = ub.pl.budget(card[0])
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["Information shared by the codes (nats)", "Variance of rna", "Variance of prot"]
    for ax in figure.axes[1:]:
        ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
        assert max(ends) == pytest.approx(1, abs=0.1)  # negative estimates are drawn as 0
    assert len(ub.pl.budget(card[0], by_label=False).axes[1].get_yticks()) == 1


def test_the_report_is_one_file_that_says_all(card, tmp_path):
    path = ub.pl.report(card[0], tmp_path / "card.html", title="My <card>")
    text = path.read_text()
    assert "My &lt;card&gt;" in text
    assert text.count("data:image/png;base64,") == 2
    assert "http" not in text.replace("http-equiv", "")
    for note in card[0].notes:
        assert note[:40] in text
    for word in ("Shared?", "Specific?", "Complete?", "methods section", "rna:Z_s"):
        assert word in text


def test_what_is_no_card_is_refused(mdata):
    with pytest.raises(KeyError, match="scorecard"):
        ub.pl.budget(mdata)
    with pytest.raises(TypeError, match="DataFrame"):
        ub.pl.scorecard(pd.DataFrame({"a": [1]}))


def test_a_traversal_draws_pictures_or_the_features_that_change(mdata):
    rng = np.random.default_rng(0)
    values = np.zeros((3, 5, 12))
    values[1, :, 7] = np.linspace(0, 2, 5)
    values[0, :, 2] = np.linspace(1, 0, 5)
    names = [f"gene_{k}" for k in range(12)]
    figure = ub.pl.traversal(values, names=names, n_features=2)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["gene_7", "gene_2"]
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["1", "2", "3"]
    rising, falling = panels[1].images[0].get_array()[0], panels[0].images[0].get_array()[1]
    assert np.allclose(rising, np.linspace(-0.5, 0.5, 5))
    assert np.allclose(falling, np.linspace(0.5, -0.5, 5))
    pictures = rng.uniform(-0.2, 1.2, size=(2, 4, 3 * 6 * 5))
    figure = ub.pl.traversal(pictures, shape=(3, 6, 5))
    sheet = figure.axes[0].images[0].get_array()
    assert sheet.shape == (12, 20, 3)
    assert np.allclose(sheet[6:, 5:10], pictures[1, 1].reshape(3, 6, 5).transpose(1, 2, 0).clip(0, 1))
    assert ub.pl.traversal(pictures[0, :, :30], shape=(1, 6, 5)).axes[0].images[0].get_array().shape == (6, 20)
    with pytest.raises(ValueError, match="none of a picture"):
        ub.pl.traversal(pictures, shape=(2, 6, 5))
    with pytest.raises(ValueError, match="must be finite"):
        ub.pl.traversal(values * np.nan)
    with pytest.raises(ValueError, match="2 names for 12 features"):
        ub.pl.traversal(values, names=["a", "b"])
