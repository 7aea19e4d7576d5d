"""The experiments with contrastive models: from data to their tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import spearmanr

import unbraid as ub
from unbraid.benchmark import (
    citeseq_ranks,
    contrastive_table,
    disentangled_ssl,
    disentangled_ssl_mixed,
)

# --- CITE-seq ranks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cells():
    return ub.data.simulate.citeseq(400, n_genes=80, n_proteins=12, n_cell_types=4, missing={"prot": 0.1}, seed=0)


@pytest.fixture(scope="module")
def prepared(cells):
    return citeseq_ranks.prepare(cells, "cell_type", n_genes=40, n_components=10)


def test_inputs_are_fitted_on_training_cells_and_leave_out_incomplete_ones(cells, prepared):
    complete = cells.obs_names.isin(cells["rna"].obs_names) & cells.obs_names.isin(cells["prot"].obs_names)
    assert prepared.n_obs == complete.sum() == 360
    assert prepared.obs["split"].value_counts().to_dict() == {"train": round(360 * 15_000 / 30_672), "test": 184}
    assert (prepared.obs["cell_type"] == cells.obs["cell_type"].reindex(prepared.obs_names)).all()
    assert prepared["rna"].shape == (360, 10)
    assert prepared.var_names.is_unique
    train = (prepared.obs.loc[prepared["rna"].obs_names, "split"] == "train").to_numpy()
    for modality in ("rna", "prot"):
        x = prepared[modality].X
        assert x.dtype == np.float32
        np.testing.assert_allclose(x[train].mean(axis=0), 0, atol=1e-4)
        assert np.abs(x[~train].mean(axis=0)).max() > 1e-3


def test_protein_values_are_seurats_log_ratios(cells, prepared):
    counts = np.array(cells["prot"][prepared["prot"].obs_names].X, dtype=float)
    expected = np.empty_like(counts)
    for i, x in enumerate(counts):
        expected[i] = np.log1p(x / np.exp(np.log1p(x[x > 0]).sum() / len(x)))
    train = (prepared.obs.loc[prepared["prot"].obs_names, "split"] == "train").to_numpy()
    np.testing.assert_allclose(prepared["prot"].X, expected - expected[train].mean(axis=0), atol=1e-5)


def test_test_cells_change_no_training_input(cells, prepared):
    test = prepared.obs_names[prepared.obs["split"] == "test"]
    changed = cells.copy()
    rows = changed["rna"].obs_names.get_indexer(test)
    x = changed["rna"].X.tolil()
    x[rows[:50]] = 5
    changed["rna"].X = sp.csr_matrix(x, dtype=np.float32)
    again = citeseq_ranks.prepare(changed, "cell_type", n_genes=40, n_components=10)
    train = (prepared.obs["split"] == "train").to_numpy()
    np.testing.assert_allclose(again["rna"].X[train], prepared["rna"].X[train], atol=1e-4)


class Codes:
    """A trained model: its codes are given."""

    def __init__(self, codes):
        self.codes = codes

    def get_latent_representation(self, mdata, kind, modality, indices):
        return self.codes[kind, modality][indices]


def test_ranks_are_those_of_neighbours_found_one_cell_at_a_time(prepared):
    rng = np.random.default_rng(0)
    types = prepared.obs["cell_type"].cat.codes.to_numpy()
    signal = {"rna": np.array([0.0, 1.0, 2.0, 3.0]), "prot": np.array([3.0, 1.0, 2.0, 0.0])}
    codes = {}
    for kind in ("shared", "specific"):
        for m, strength in signal.items():
            codes[kind, m] = rng.normal(size=(prepared.n_obs, 3)) + 2 * np.eye(4, 3)[types] * strength[types, None]
    weights = rng.random(prepared.n_obs)
    (row,) = citeseq_ranks.rank_rows(prepared, {"given": Codes(codes)}, "cell_type", weights=weights, n_clusterings=1)

    test = np.flatnonzero(prepared.obs["split"] == "test")
    theta = []
    for i in test:
        same = {}
        for m in signal:
            z = codes["specific", m][test]
            distance = np.linalg.norm(z - codes["specific", m][i], axis=1)
            near = test[np.argsort(distance)[1:11]]
            same[m] = (types[near] == types[i]).sum()
        theta.append(np.log((same["rna"] + 1) / (same["prot"] + 1)))
    means = pd.Series(theta).groupby(types[test]).mean()
    expected = spearmanr(means, pd.Series(weights).groupby(types).mean()).statistic  # weights: of all cells
    assert row["rho"] == pytest.approx(expected)
    assert row["n_types"] == 4
    assert row["n_test"] == len(test)
    assert 0 < row["NMI all"] <= 1


def test_a_bad_file_is_named(cells):
    with pytest.raises(KeyError, match="No modality 'ADT'"):
        citeseq_ranks.prepare(cells, "cell_type", prot="ADT")
    with pytest.raises(KeyError, match="No column 'celltype'.*Did you mean 'cell_type'"):
        citeseq_ranks.prepare(cells, "celltype")
    logs = cells.copy()
    logs["rna"].X = logs["rna"].X.log1p()
    with pytest.raises(ValueError, match="'rna' must hold raw counts in X, but there is"):
        citeseq_ranks.prepare(logs, "cell_type")


def test_every_lambda_is_a_method_of_its_own():
    made = citeseq_ranks.builders(["LinearSplit", "DisentangledSSL"], epochs=1, learning_rate=0.01, lambdas=[0.1, 10.0])
    assert list(made) == ["LinearSplit", "DisentangledSSL, lambda 0.1", "DisentangledSSL, lambda 10"]


def test_from_counts_to_the_table(cells, tmp_path, capsys):
    path, out = tmp_path / "cells.h5mu", tmp_path / "ranks.csv"
    data = cells.copy()
    data.obs["rna_weight"] = np.random.default_rng(0).random(data.n_obs)
    data.write(path)
    options = ["--label", "cell_type", "--weights", "rna_weight", "--epochs", "1", "--seeds", "1", "--threads", "1"]
    options += ["--clusterings", "0", "--methods", "LinearSplit", "DisentangledSSL"]
    citeseq_ranks.main(["--data", str(path), *options, "--out", str(out)])
    rows = pd.read_csv(out)
    assert rows["method"].tolist() == ["LinearSplit", "DisentangledSSL"]
    assert rows["rho"].between(-1, 1).all()
    printed = capsys.readouterr().out
    assert "| method | rho | rho published (bone marrow) |" in printed
    assert "\n| DisentangledSSL | " in printed


def test_the_published_correlation_stands_beside_indiseeks():
    rows = pd.DataFrame(
        {"method": ["IndiSeek, lambda 10", "LinearSplit"], "seed": 0, "seconds": 1.0, "rho": [0.5, 0.25]}
    )
    table = citeseq_ranks.summary(rows).set_index("method")
    assert table["rho published (bone marrow)"].tolist() == ["0.910", ""]
    assert table["rho"].tolist() == ["0.500", "0.250"]


# --- the contrastive table ------------------------------------------------------------------------------------------


def test_the_true_latents_pass_the_probes_they_should():
    mdata = contrastive_table.load_simulation(4_000)
    row = contrastive_table.probe_row(contrastive_table.codes_of(None, mdata), mdata, "simulation")
    assert min(row["[Z_c]: Y_c"], row["Z_c: Y_c"], row["Z_s1: Y_s1"]) > 0.74
    assert max(row["[Z_c]: Y_s1"], row["Z_c: Y_s2"], row["Z_s1: Y_c"]) < 0.56
    for adata in mdata.mod.values():
        train = (mdata.obs["split"] == "train").to_numpy()
        np.testing.assert_allclose(np.cov(adata.obsm["whitened"][train], rowvar=False), np.eye(100), atol=1e-3)


def test_every_method_of_the_table_is_a_model_with_known_options():
    for name, method in contrastive_table.METHODS.items():
        assert not method.model or hasattr(ub.model, method.model), name
    assert set(contrastive_table.DEFAULT_METHODS) <= set(contrastive_table.METHODS)


def test_a_table_of_cells_from_counts_to_markdown(tmp_path, capsys):
    path, out = tmp_path / "cells.h5mu", tmp_path / "rows.csv"
    data = ub.data.simulate.citeseq(600, n_genes=60, n_proteins=12, n_cell_types=4, missing={"prot": 0.1}, seed=0)
    data.obs["type"] = data.obs["cell_type"].astype(str).where(np.arange(data.n_obs) % 10 > 0, "unknown")
    data.write(path)
    options = [
        "--data",
        str(path),
        "--label",
        "type",
        "--methods",
        "LinearSplit",
        "CLIP",
        "--seeds",
        "1",
        "--steps",
        "2",
    ]
    contrastive_table.main([*options, "--out", str(out)])
    rows = pd.read_csv(out).set_index("method")
    assert rows["n_obs"].tolist() == [540, 540]
    assert rows["chance"].tolist() == [0.25, 0.25]
    assert rows.loc["LinearSplit", ["label in Z_c", "label in Z_s rna", "coverage prot"]].between(0, 1).all()
    assert np.isfinite(rows.loc["LinearSplit", "leak rna"])
    assert np.isnan(rows.loc["CLIP", "leak rna"])  # no specific code
    printed = capsys.readouterr().out
    assert printed.startswith("| method | seeds | label in Z_c |")
    assert contrastive_table.load_cells(path, "type", n_genes=30)["rna"].n_vars == 30
    assert "label" not in contrastive_table.load_cells(path, None).obs
    contrastive_table.main(["--data", str(path), "--label", "none", "--methods", "LinearSplit", "--seeds", "1"])
    assert capsys.readouterr().out.startswith("| method | seeds | leak rna |")


def test_a_table_of_a_given_code(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    options = ["--indiseek", "2", "--methods", "LinearSplit", "CLIP", "--seeds", "1", "--steps", "2", "--no-card"]
    contrastive_table.main([*options, "--out", str(out)])
    row = pd.read_csv(out).set_index("method").loc["LinearSplit"]
    assert row[["Z_c: R2 of c", "Z_s: R2 private"]].min() > 0.99
    # x4, the product of the code's coordinates, is no linear function of them and stays: a third of what varies
    assert row["importance"] == pytest.approx(2 / 3, abs=0.03)
    assert row["dCor(Z_s, c)"] > 2 * row["null"]
    assert pd.read_csv(out)["importance"].isna().tolist() == [False, True]  # CLIP has no specific code
    with pytest.raises(SystemExit):
        contrastive_table.main([*options, "--data", "cells.h5mu"])
    assert "give one of them" in capsys.readouterr().err


def test_a_table_names_what_a_file_lacks(cells, tmp_path):
    cells.write(tmp_path / "cells.h5mu")
    with pytest.raises(KeyError, match="No column 'celltype'.*Did you mean 'cell_type'"):
        contrastive_table.load_cells(tmp_path / "cells.h5mu", "celltype")
    with pytest.raises(KeyError, match="No modality 'ADT'"):
        contrastive_table.load_cells(tmp_path / "cells.h5mu", "cell_type", prot="ADT")


# --- DisentangledSSL's simulations -----------------------------------------------------------------------------------


def test_the_grid_of_a_seed_is_whole_before_the_next_and_step_2_follows_its_step_1():
    grid = {"rivals": ["FOCAL"], "weights": [1.0, 2.0], "rival_lambdas": [0.0, 0.5]}
    asked = list(disentangled_ssl.rows(2, betas=[0.0, 0.1, 9.0], lambdas=[0.0, 3.0], beta_of_step_2=0.1, **grid))
    named = [" ".join(f"{row[key]:g}" for key in disentangled_ssl.GRID if row[key] == row[key]) for row in asked]
    of_a_seed = ["0", "0.1", "0.1 0", "0.1 3", "9", "1 0", "1 0.5", "2 0", "2 0.5"]
    assert named == ["", *of_a_seed, *of_a_seed]
    assert [row["seed"] for row in asked] == [0] * 10 + [1] * 9
    (_, *others) = disentangled_ssl.rows(1, betas=[9.0], lambdas=[], beta_of_step_2=0.1, **{**grid, "rivals": []})
    assert [row["beta"] for row in others] == [9.0]


def test_rows_are_probed_resumed_and_share_their_step_1(tmp_path, monkeypatch, capsys):
    trained, fit = [], disentangled_ssl.fit

    def recorded(model_class, mdata, epochs, seed, **options):
        trained.append((model_class.__name__, options.get("beta"), options.get("lambda_")))
        return fit(model_class, mdata, epochs, seed, **options)

    monkeypatch.setattr(disentangled_ssl, "fit", recorded)
    out = tmp_path / "rows.csv"
    size = ["--n-obs", "400", "--seeds", "1", "--epochs", "1", "1", "--threads", "1", "--out", str(out)]
    options = ["--betas", "0.1", "--weights", "2", "--rival-lambdas", "0.5"]
    disentangled_ssl.main([*size, *options, "--lambdas", "0", "0.1"])
    step_1 = ("DisentangledSSL", 0.1, None)
    step_2 = [("DisentangledSSL", 0.1, 0.0), ("DisentangledSSL", 0.1, 0.1)]
    assert trained == [step_1, *step_2, ("JointOpt", None, 0.5), ("FOCAL", None, 0.5)]

    rows = pd.read_csv(out)
    assert rows["model"].tolist() == ["LinearSplit"] + ["DisentangledSSL"] * 3 + ["JointOpt", "FOCAL"]
    shared = [column for column in rows if column.startswith("[Z_c]: ")]
    specific = [column for column in rows if column.startswith(("Z_s1: ", "Z_s2: "))]
    assert (len(shared), len(specific)) == (3, 6)
    assert rows[shared].ge(0.3).all(axis=None)
    assert rows[specific].notna().all(axis=1).tolist() == [True, False, True, True, True, True]
    assert rows[shared].iloc[1:4].nunique().eq(1).all()  # step 2 leaves the shared code alone
    printed = capsys.readouterr().out
    assert "Z_s1 (the best, a 0.01 to 0.1): Y_c 0.538 to 0.543, Y_s1 0.593 to 0.630 |" in printed
    assert "[Z_c]: Y_c 0.778, Y_s1 0.668, Y_s2 0.676 |" in printed

    trained.clear()
    disentangled_ssl.main([*size, *options, "--lambdas", "0", "0.1", "10"])
    assert trained == [step_1, ("DisentangledSSL", 0.1, 10.0)]
    assert len(pd.read_csv(out)) == 7


def test_published_points_are_those_of_their_setting():
    assert disentangled_ssl.published("DisentangledSSL", 0.0, np.nan) == ""
    assert disentangled_ssl.published("LinearSplit", np.nan, np.nan) == ""
    assert disentangled_ssl.published("DisentangledSSL", 0.1, 0.0) == "Z_s1 (beta 0.1): Y_c 0.670, Y_s1 0.740"
    assert disentangled_ssl.published("JointOpt", np.nan, 0.0).endswith("Y_c 0.710, Y_s1 0.750")


def test_a_probe_reads_a_label_from_its_own_code_only():
    mdata = ub.data.simulate.disentangled_ssl(1_000, seed=0)
    scores = disentangled_ssl.probes({"Z": mdata.obs[["y_specific_x1"]].to_numpy(dtype=float)}, mdata)
    assert scores["Z: Y_s1"] == 1
    assert max(scores["Z: Y_c"], scores["Z: Y_s2"]) < 0.6


def test_views_of_the_mixed_simulation_leave_unmixed_features_alone():
    torch.manual_seed(0)
    x = torch.randn(3_000, 100) + 5
    view = disentangled_ssl_mixed.MixedNoiseDropout()(x)
    assert torch.equal(view[:, 85:], x[:, 85:])
    changed = (view != x)[:, :85]
    n_changed = changed.sum(dim=1)
    assert sorted(set(n_changed.clamp(max=9).tolist())) == [0, 8, 9]  # as it was; a tenth of 85 dropped; noise
    assert changed.any(dim=0).all()
    assert set(view[:, :85][n_changed == 8][changed[n_changed == 8]].tolist()) == {0.0}


def test_the_weight_ratio_is_that_of_the_inner_products_diagonal():
    weight = torch.randn(7, 100, generator=torch.Generator().manual_seed(0))
    weight[:, 85:] *= 3
    diagonal = np.diag(weight.numpy().T @ weight.numpy())
    expected = diagonal[85:].mean() / diagonal[:85].mean()
    assert disentangled_ssl_mixed.weight_ratio(weight) == pytest.approx(expected)
    assert 6 < expected < 13


def test_the_mixed_simulation_from_data_to_the_table(tmp_path, capsys):
    out = tmp_path / "rows.csv"
    options = ["--n-obs", "400", "--seeds", "2", "--betas", "10", "--epochs", "1", "--threads", "1", "--out", str(out)]
    disentangled_ssl_mixed.main(options)
    rows = pd.read_csv(out)
    assert rows["model"].tolist() == ["LinearSplit", "DisentangledSSL", "DisentangledSSL"]
    assert rows[["Z_c1: Y_c", "Z_c1: Y_s1", "Z_c1: Y_s2"]].ge(0.3).all(axis=None)
    assert np.isnan(rows.loc[0, "ratio x1"])
    np.testing.assert_allclose(rows.loc[1:, ["ratio x1", "ratio x2"]], 1, atol=0.2)  # hardly trained
    assert capsys.readouterr().out.splitlines()[-1].endswith("| nearly 80 |")
