"""The experiments on pairs of cells, small."""

import numpy as np
import pandas as pd
import pytest

import unbraid as ub
from unbraid.benchmark import generative_images, pairs, pairs_asked, pairs_cells, pairs_images


def test_simulation(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    asked = ["--methods", "RCA + k-means", "DL2", "C-IDEC", "--n-obs", "400", "--fraction", "1", "--seeds", "1"]
    pairs.main([*asked, "--steps", "20", "--out", str(out)])
    rows = pd.read_csv(out).set_index("method")
    assert rows.loc["RCA + k-means", "ACC"] > 0.8
    assert (
        rows.loc["DL2", ["ACC", "t: T", "r: R", "w: T", "z: R", "u: T", "w: T drawn", "cross", "joint"]]
        .between(0, 1)
        .all()
    )
    assert np.isnan(rows.loc["C-IDEC", "r: R"])
    capsys.readouterr()
    pairs.main([*asked, "--steps", "20", "--out", str(out)])
    printed = capsys.readouterr()
    assert printed.err == ""  # nothing is run twice
    assert "| DL2 |" in printed.out


def test_pairs_are_of_training_cells_and_weights_reach_the_model(tmp_path):
    mdata = ub.data.simulate.two_factors(300, seed=0)
    pairs.add_pairs(mdata, 0.5, 0.2, 0)
    found = ub.data.read_pairs(mdata, "pairs")
    assert len(found) == 150
    split, task = mdata.obs["split"].to_numpy(), mdata.obs["y_task"].to_numpy()
    assert (split[np.concatenate([found.must, found.cannot])] == "train").all()
    wrong = (task[found.must[:, 0]] != task[found.must[:, 1]]).sum()
    wrong += (task[found.cannot[:, 0]] == task[found.cannot[:, 1]]).sum()
    assert wrong == 30
    model = pairs.fit(mdata, pairs.METHODS["DL2"], 3, 0, 10, must_link_weight=0.5)
    assert model.module.must_link_weight == 0.5
    assert model.module.cannot_link_weight == 10.0


def test_readers_read_cells_that_lack_a_modality():
    mdata = ub.data.simulate.two_factors(600, missing=0.3, seed=0)
    readers = pairs.linear_readers(mdata)
    for m, adata in mdata.mod.items():
        truth = mdata.obs.loc[adata.obs_names, "y_task"].astype(str)
        assert (readers["y_task"][m].predict(adata.X) == truth).mean() > 0.8


@pytest.mark.filterwarnings("ignore:Some cells have zero counts:UserWarning")
def test_cells(tmp_path, capsys):
    mdata = ub.data.simulate.citeseq(400, n_genes=60, n_proteins=12, n_cell_types=4, seed=0)
    mdata.obs["type"] = mdata.obs["cell_type"].astype(str)
    mdata.obs.loc[mdata.obs_names[:40], "type"] = "unknown"
    mdata.write(tmp_path / "cells.h5mu")
    out = tmp_path / "rows.csv"
    pairs_cells.main(
        ["--data", str(tmp_path / "cells.h5mu"), "--label", "type", "--unlabelled", "unknown", "--shares", "0.2",
         "--methods", "classifier", "RCA + k-means", "CMVAE", "DL2", "--seeds", "1", "--steps", "6", "--out", str(out)]
    )  # fmt: skip
    rows = pd.read_csv(out).set_index("method")
    assert rows.loc["classifier", "ACC"] > 0.4  # by chance .25
    assert rows["ACC"].between(0.25, 1).all()
    assert rows["annotated"].to_dict()["CMVAE"] == 0
    assert rows["annotated"].to_dict()["DL2"] == pytest.approx(0.2 * 0.8 * 360, abs=8)
    assert "| classifier |" in capsys.readouterr().out


def test_asking(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    asked = ["--n-obs", "400", "--start", "40", "--questions", "10", "--rounds", "1", "--steps", "10", "--seeds", "1"]
    pairs_asked.main([*asked, "--out", str(out)])
    rows = pd.read_csv(out).set_index(["strategy", "asked"])
    assert rows["pairs"].tolist() == [40, 50, 40, 50]
    assert rows.loc[("suggested", 0), "ACC"] == rows.loc[("random", 0), "ACC"]
    assert rows[["ACC", "RCA"]].stack().between(0, 1).all()
    assert "| random | 10 |" in capsys.readouterr().out


@pytest.fixture
def mnist(tmp_path):
    """A file of pictures in which a bar is at the height that the digit says."""
    rng = np.random.default_rng(0)
    digits = np.tile(np.arange(10), 40)
    pictures = (rng.random((400, 28, 28)) * 30).astype(np.uint8)
    for i, digit in enumerate(digits):
        pictures[i, 2 + 2 * digit : 5 + 2 * digit, 4:24] = 255
    np.savez(tmp_path / "mnist.npz", X=pictures, y=digits, is_train=np.arange(400) < 300)
    return str(tmp_path / "mnist.npz")


def test_generated_images(mnist, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    generative_images.main(
        ["--mnist", mnist, "--n-train", "300", "--n-test", "60", "--seeds", "1", "--modalities", "m0", "m4",
         "--methods", "LinearSplit", "MMVAE", "SwapVAE", "--steps", "4", "--reader-steps", "200", "--out", str(out)]
    )  # fmt: skip
    rows = pd.read_csv(out).set_index("method")
    assert (rows["modalities"] == "m0 m4").all()
    assert (rows["real p"] > 0.5).all()  # chance is a quarter
    assert rows[["z: s", "z: p"]].stack().between(0, 1).all()
    assert rows.loc["SwapVAE", ["w drawn: p", "self s", "self p", "cross s", "joint"]].between(0, 1).all()
    assert rows.loc["MMVAE", ["w: s", "self p"]].isna().all()  # it has no w
    assert rows.loc["LinearSplit", ["cross s", "joint"]].isna().all()
    with pytest.raises(SystemExit):
        generative_images.main(["--mnist", mnist, "--modalities", "m5"])
    assert "invalid choice: 'm5'" in capsys.readouterr().err


def test_images(mnist, tmp_path, capsys):
    out = tmp_path / "rows.csv"
    pairs_images.main(
        ["--mnist", mnist, "--n-train", "300", "--n-test", "60", "--size", "20", "--seeds", "1",
         "--methods", "DL2", "MMVAE+", "VolMaxDCC", "--steps", "4", "--reader-steps", "20", "--out", str(out)]
    )  # fmt: skip
    rows = pd.read_csv(out).set_index("method")
    assert rows.loc["MMVAE+", ["t: T", "cross", "joint"]].between(0, 1).all()
    assert (rows.loc["MMVAE+", ["U-FD", "C-FD"]] > 0).all()
    assert np.isnan(rows.loc["MMVAE+", "ACC"])
    assert rows.loc[["DL2", "VolMaxDCC"], "ACC"].between(0, 1).all()
    capsys.readouterr()
