"""The experiment of the flagship, and the embeddings of other packages that it is compared with."""

import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.linear_model import LinearRegression

import unbraid as ub
from unbraid.benchmark import _embeddings, flagship


@pytest.fixture
def cells_file(tmp_path):
    data = ub.data.simulate.citeseq(500, n_genes=60, n_proteins=16, n_cell_types=4, seed=0)
    data.write(tmp_path / "cells.h5mu")
    return tmp_path / "cells.h5mu"


@pytest.fixture(scope="module")
def factors():
    """Counts of 400 cells with one shared factor and one of each modality's own, and these factors."""
    rng = np.random.default_rng(0)
    truth = dict(zip(("shared", "rna", "prot"), rng.normal(size=(3, 400)), strict=True))
    mod = {}
    for m, n_features in {"rna": 60, "prot": 30}.items():
        half = n_features // 2
        sign = np.where(np.arange(n_features) % 2, 1.0, -1.0)  # totals stay about the same
        logs = np.where(np.arange(n_features) < half, truth["shared"][:, None], truth[m][:, None]) * sign
        counts = rng.poisson(20 * np.exp(0.7 * logs)).astype(np.float32)
        mod[m] = AnnData(counts, pd.DataFrame(index=[f"c{i}" for i in range(400)]))
    data = mudata.MuData(mod)
    data.obs["split"] = pd.Categorical(np.where(np.arange(400) % 5, "train", "test"))
    return data, truth


def explained(z, y):
    return LinearRegression().fit(z[::2], y[::2]).score(z[1::2], y[1::2])


def test_codes_get_what_they_hold(factors):
    data, _ = factors
    targets = flagship.principal_targets(data)
    first, rest = targets["prot"][:, :3], targets["prot"][:, 3:]
    noise = np.random.default_rng(1).normal(size=(400, 2)).astype(np.float32)
    codes = {"Z_c": noise, "rna:Z_c": targets["rna"], "rna:Z_s": noise, "prot:Z_c": first, "prot:Z_s": rest}
    row = flagship.data_row(codes, data, targets)
    assert row["rna from Z_c"] == pytest.approx(1, abs=1e-3)
    assert 0.3 < row["prot from Z_c"] < 0.95
    assert row["prot from both"] == pytest.approx(1, abs=1e-3)
    assert max(row["rna from Z_s"], row["rna Z_s: prot Z_c"]) < 0.02
    leaking = flagship.data_row({**codes, "rna:Z_s": targets["prot"]}, data, targets)
    assert leaking["rna Z_s: prot Z_c"] == pytest.approx(1, abs=1e-3)
    assert leaking["rna Z_s: prot Z_c (MLP)"] > 0.5
    assert "top-1" not in row  # nothing retrieves


def test_factors_are_sorted_by_what_they_explain(factors):
    pytest.importorskip("muon")
    data, truth = factors
    before = {m: adata.X.copy() for m, adata in data.mod.items()}
    codes = _embeddings.mofa_codes(data, n_factors=6, seed=0)
    assert all(np.array_equal(data[m].X, x) for m, x in before.items())
    assert explained(codes["Z_c"], truth["shared"]) > 0.9
    for m in ("rna", "prot"):
        assert codes[f"{m}:Z_c"] is codes["Z_c"]
        assert explained(codes[f"{m}:Z_s"], truth[m]) > 0.9
        assert explained(codes[f"{m}:Z_s"], truth["shared"]) < 0.1


def test_totalvi_learns_from_training_cells_alone(factors):
    data, _ = factors
    codes = _embeddings.totalvi_codes(data, n_latent=4, steps=4, seed=0)
    assert codes["Z_c"].shape == (400, 4)
    other = data.copy()
    test = np.flatnonzero(other.obs["split"] == "test")
    other["rna"].X[test] = other["rna"].X[test[::-1]]
    again = _embeddings.totalvi_codes(other, n_latent=4, steps=4, seed=0)["Z_c"]
    train = (data.obs["split"] == "train").to_numpy()
    np.testing.assert_allclose(again[train], codes["Z_c"][train], atol=1e-5)
    assert np.abs(again[~train] - codes["Z_c"][~train]).max() > 1e-3


def test_a_table_with_embeddings_of_others(cells_file, tmp_path, capsys):
    pytest.importorskip("muon")
    out = tmp_path / "rows.csv"
    options = ["--data", str(cells_file), "--label", "cell_type", "--seeds", "1", "--steps", "4"]
    flagship.main([*options, "--methods", "LinearSplit", "totalVI", "MOFA+", "--out", str(out)])
    rows = pd.read_csv(out).set_index("method")
    assert rows[["rna from Z_c", "prot from Z_c", "label in Z_c"]].notna().all(axis=None)
    assert rows["MRR"].notna().tolist() == [True, False, False]
    assert capsys.readouterr().out.startswith("| method | seeds |")
    with pytest.raises(SystemExit):
        flagship.main([*options, "--methods", "totalVI", "--missing", "0.3"])
    assert "of which none are missing" in capsys.readouterr().err


def test_finished_rows_are_not_run_again(tmp_path, capsys):
    options = ["--n-obs", "200", "--methods", "LinearSplit", "--seeds", "1", "--out", str(tmp_path / "rows.csv")]
    flagship.main(options)
    first = capsys.readouterr()
    flagship.main(options)
    second = capsys.readouterr()
    assert second.out == first.out
    assert "LinearSplit" in first.err
    assert "LinearSplit" not in second.err


def test_probes_of_few_cells_have_cells_of_their_own(capsys):
    data = flagship.load_simulation(200, noise=0.1, missing=0.2, seed=0)
    assert pd.crosstab(data.obs["split"], data.obs["probe"]).stack().to_dict() == {
        ("test", "none"): 0, ("test", "test"): 2_000, ("test", "train"): 2_000,
        ("train", "none"): 200, ("train", "test"): 0, ("train", "train"): 0,
    }  # fmt: skip
    whole = flagship.load_simulation(4_000, noise=0.1, missing=0.0, seed=0)
    assert (whole.obs["split"].astype(str) == whole.obs["probe"]).all()
    flagship.main(["--n-obs", "200", "300", "--missing", "0.2", "--methods", "LinearSplit", "--seeds", "1"])
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| n_obs | method | seeds | Z_c: c |")
    assert [line.split(" | ")[0] for line in table[2:]] == ["| 200", "| 300"]
    n = [float(line.split(" | ")[3]) for line in table[2:]]
    assert 0 < n[0] < n[1] + 0.05
