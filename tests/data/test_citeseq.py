"""Simulated CITE-seq: counts, programs that are shared or specific, batches, depth, and cells that lack a modality."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_predict, cross_val_score

from unbraid.data import simulate


def dense(x) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.asarray(x)


@pytest.fixture(scope="module")
def cells():
    return simulate.citeseq(1_200, n_genes=400, n_peaks=200)


def log_normalized(x) -> np.ndarray:
    x = dense(x)
    total = x.sum(axis=1, keepdims=True)
    x = np.log1p(x / total * np.median(total))
    return (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)


def probe(x: np.ndarray, y) -> float:
    return cross_val_score(LogisticRegression(C=0.01, max_iter=200), x, y, cv=3).mean()


def test_citeseq_counts_are_whole_and_stored_as_promised(cells):
    assert list(cells.mod) == ["rna", "prot", "atac"]
    assert isinstance(cells["prot"].X, np.ndarray)
    for name in ("rna", "atac"):
        assert sp.isspmatrix_csr(cells[name].X)
        assert (cells[name].X.data > 0).all()
    for adata in cells.mod.values():
        counts = dense(adata.X)
        assert counts.min() >= 0
        np.testing.assert_array_equal(counts, np.round(counts))
    assert set(np.unique(cells["atac"].X.data)) == {1, 2}
    assert 0.05 < cells["rna"].X.nnz / np.prod(cells["rna"].shape) < 0.2


@pytest.mark.parametrize("modality", ["rna", "prot", "atac"])
def test_citeseq_programs_are_in_their_own_modality_only(cells, modality):
    x = log_normalized(cells[modality].X)
    assert probe(x, cells.obs["cell_type"]) > 0.5  # chance is 1 / 6
    for name in cells.mod:
        accuracy = probe(x, cells.obs[f"{name}_program"])
        if name == modality:
            assert accuracy > 0.7
        else:
            assert accuracy == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize("modality", ["rna", "prot"])
def test_citeseq_continuous_programs_are_shared_or_specific_as_planted(cells, modality):
    x = log_normalized(cells[modality].X)
    other = {"rna": "prot", "prot": "rna"}[modality]
    truth = {
        "shared": cells.obsm["true_shared"][:, 6:],
        "own": cells[modality].obsm["true_specific"][:, 3:],
        "other": cells[other].obsm["true_specific"][:, 3:],
    }
    r2 = {
        key: 1 - ((z - cross_val_predict(Ridge(300), x, z, cv=3)) ** 2).mean(axis=0) / z.var(axis=0)
        for key, z in truth.items()
    }
    assert r2["shared"].min() > 0.3
    assert r2["own"].min() > 0.3
    assert r2["other"].max() < 0.05


@pytest.mark.parametrize("modality", ["rna", "prot"])
def test_citeseq_batch_is_visible_in_both_and_gone_at_strength_zero(cells, modality):
    assert probe(log_normalized(cells[modality].X), cells.obs["batch"]) > 0.65
    without = simulate.citeseq(600, n_genes=200, batch_strength=0)
    assert probe(log_normalized(without[modality].X), without.obs["batch"]) == pytest.approx(0.5, abs=0.08)


def test_citeseq_depth_is_in_the_counts_and_shared_between_modalities(cells):
    log_depth = {m: np.log(cells.obs[f"depth_{m}"].to_numpy()) for m in cells.mod}
    for name, adata in cells.mod.items():
        total = np.asarray(adata.X.sum(axis=1)).ravel()
        assert np.corrcoef(np.log1p(total), log_depth[name])[0, 1] > 0.6
        assert log_depth[name].std() == pytest.approx(0.4, abs=0.04)
    assert np.corrcoef(log_depth["rna"], log_depth["prot"])[0, 1] == pytest.approx(0.7, abs=0.06)
    assert np.abs(np.corrcoef(log_depth["rna"], cells.obsm["true_shared"].T)[0, 1:]).max() < 0.1


def test_citeseq_loadings_are_zero_where_the_feature_is_not_of_that_kind(cells):
    for adata in cells.mod.values():
        truth = adata.var["truth"]
        assert set(truth) == {"shared", "specific", "both", "noise"}
        for source in ("shared", "specific"):
            carries = (adata.varm[f"{source}_loadings"] != 0).any(axis=1)
            np.testing.assert_array_equal(carries, truth.isin([source, "both"]))
            assert (
                adata.varm[f"{source}_loadings"].shape[1]
                == {
                    "shared": cells.obsm["true_shared"],
                    "specific": adata.obsm["true_specific"],
                }[source].shape[1]
            )


def test_citeseq_truth_begins_with_the_one_hot_labels(cells):
    types = cells.obs["cell_type"].cat.codes
    np.testing.assert_array_equal(cells.obsm["true_shared"][:, :6], np.eye(6)[types])
    for name, adata in cells.mod.items():
        states = cells.obs[f"{name}_program"].cat.codes
        np.testing.assert_array_equal(adata.obsm["true_specific"][:, :3], np.eye(3)[states])


@pytest.mark.parametrize(
    ("missing", "n_peaks"),
    [({"rna": 0.3, "prot": 0.2}, 0), (0.5, 0), ({"prot": 0.25}, 40), (0.6, 40), (0.0, 0)],
)
def test_citeseq_missing_cells_are_absent_and_all_else_is_unchanged(missing, n_peaks):
    arguments = {"n_obs": 200, "n_genes": 50, "n_proteins": 10, "n_peaks": n_peaks}
    whole = simulate.citeseq(**arguments)
    mdata = simulate.citeseq(**arguments, missing=missing)
    fractions = missing if isinstance(missing, dict) else dict.fromkeys(mdata.mod, missing)
    for name, adata in mdata.mod.items():
        assert adata.n_obs == 200 - round(200 * fractions.get(name, 0))
        np.testing.assert_array_equal(dense(adata.X), dense(whole[name][adata.obs_names].X))
        np.testing.assert_array_equal(adata.obsm["true_specific"], whole[name][adata.obs_names].obsm["true_specific"])
    assert set().union(*(adata.obs_names for adata in mdata.mod.values())) == set(whole.obs_names)
    assert mdata.obs.equals(whole.obs)
    np.testing.assert_array_equal(mdata.obsm["true_shared"], whole.obsm["true_shared"])


def test_citeseq_truth_follows_the_rows_of_each_modality():
    mdata = simulate.citeseq(300, n_genes=50, n_proteins=10, missing={"rna": 0.4, "prot": 0.3})
    for name, adata in mdata.mod.items():
        position = mdata.obs_names.get_indexer(adata.obs_names)
        np.testing.assert_array_equal(np.asarray(mdata.obsmap[name]).ravel()[position], np.arange(adata.n_obs) + 1)
        states = mdata.obs.loc[adata.obs_names, f"{name}_program"].cat.codes
        np.testing.assert_array_equal(adata.obsm["true_specific"][:, :3].argmax(axis=1), states)


def test_citeseq_peaks_change_neither_rna_nor_protein():
    without, with_peaks = (simulate.citeseq(80, n_genes=40, n_proteins=10, n_peaks=n) for n in (0, 30))
    assert list(without.mod) == ["rna", "prot"]
    for name in ("rna", "prot"):
        np.testing.assert_array_equal(dense(without[name].X), dense(with_peaks[name].X))


def test_citeseq_draws_in_chunks_without_losing_a_row(monkeypatch):
    monkeypatch.setattr("unbraid.data.simulate._assays.CHUNK", 7 * 40)
    mdata = simulate.citeseq(100, n_genes=40, n_proteins=10, missing={"rna": 0.9})
    assert mdata["rna"].shape == (10, 40)
    assert mdata["prot"].shape == (100, 10)
    assert mdata["rna"].X.nnz > 0


def test_citeseq_takes_counts_of_programs_by_modality():
    mdata = simulate.citeseq(60, n_genes=40, n_proteins=10, n_shared=0, n_cell_types=1, n_specific={"prot": 0})
    assert mdata.obsm["true_shared"].shape == (60, 1)
    assert mdata["rna"].obsm["true_specific"].shape == (60, 6)
    assert mdata["prot"].obsm["true_specific"].shape == (60, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"missing": 0.6}, "leaves cells without any modality"),
        ({"missing": {"rna": 1.0}}, "`missing` must be at least 0 and below 1, got 1.0 for 'rna'"),
        ({"missing": {"adt": 0.1}}, r"`missing` names \['adt'\], but the modalities are \['rna', 'prot'\]"),
        ({"missing": {"atac": 0.1}}, "`missing` names"),
        ({"n_genes": 3}, "`n_genes` must be a whole number of at least 4"),
        ({"n_peaks": 2}, "`n_peaks` must be a whole number of at least 4"),
        ({"n_cell_types": 0}, "`n_cell_types`"),
        ({"n_shared": -1}, "`n_shared`"),
        ({"n_specific": {"rna": -1}}, r"`n_specific\['rna'\]`"),
        ({"batch_strength": -0.1}, "`batch_strength`"),
        ({"depth_sd": float("nan")}, "`depth_sd`"),
        ({"depth_correlation": 1.2}, "`depth_correlation`"),
        ({"protein_background": 1}, "`protein_background`"),
    ],
)
def test_citeseq_names_a_bad_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate.citeseq(20, **arguments)
