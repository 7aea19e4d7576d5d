"""What `unbraid.metrics.scib` promises."""

import builtins
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

from unbraid.metrics._scib import scib


def test_what_is_missing_is_said_with_its_mend(monkeypatch):
    plain_import = builtins.__import__

    def without_scib(name, *args, **kwargs):
        if name.startswith("scib_metrics"):
            raise ImportError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_scib)
    with pytest.raises(ImportError, match=r'pip install "unbraid\[metrics\]"'):
        scib(np.zeros((200, 2)), labels=np.arange(200) % 2)


@pytest.fixture
def mdata(rng):
    """Z_c holds the cell type; Z_s of RNA the batch; protein lacks ten cells."""
    pytest.importorskip("scib_metrics")
    cell_type, batch = np.arange(150) % 3, np.arange(150) // 3 % 2
    names = [f"cell{i}" for i in range(150)]
    rna = AnnData(np.zeros((150, 1), np.float32), obs=pd.DataFrame(index=names))
    prot = AnnData(np.zeros((140, 1), np.float32), obs=pd.DataFrame(index=names[:140]))
    rna.obsm["Z_s"] = 6 * np.eye(2)[batch] + rng.normal(size=(150, 2))
    prot.obsm["Z_s"] = rng.normal(size=(140, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"rna": rna, "prot": prot})
    mdata = mdata[names].copy()
    mdata.obsm["Z_c"] = 6 * np.eye(3)[cell_type] + rng.normal(size=(150, 3))
    mdata.obs["cell_type"], mdata.obs["batch"] = cell_type, batch
    return mdata


def test_biology_is_told_from_batch(mdata):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    result = scib(mdata, use_rep=["Z_c", "rna:Z_s"], labels="cell_type", batch="batch", unintegrated="rna:Z_s")
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    score = result.matrix()
    assert list(score.columns) == ["Z_c", "rna:Z_s"]
    assert set(result.table["kind"]) == {"Bio conservation", "Batch correction", "Aggregate score"}
    assert score.loc["KMeans NMI", "Z_c"] > 0.95 > 0.1 > score.loc["KMeans NMI", "rna:Z_s"]
    assert score.loc["iLISI", "Z_c"] > 0.8 > 0.2 > score.loc["iLISI", "rna:Z_s"]
    assert score.loc["PCR comparison", "Z_c"] > 0.9 > 0.1 > score.loc["PCR comparison", "rna:Z_s"]
    chance = result.matrix("chance")
    assert chance.loc["KMeans NMI", "Z_c"] < 0.1
    assert chance.loc["iLISI", "rna:Z_s"] > 0.8
    bio, batches = score.loc["Bio conservation", "Z_c"], score.loc["Batch correction", "Z_c"]
    assert score.loc["Total", "Z_c"] == pytest.approx(0.6 * bio + 0.4 * batches)
    assert (result.n_obs, result.n_dropped, result.n_labels, result.n_batches) == (150, 0, 3, 2)
    assert str(result).endswith("(n = 150, 3 labels, 2 batches)")
    assert "uns" not in dir(mdata) or not mdata.uns  # nothing is left in the data
    assert set(mdata["rna"].obsm) == {"Z_s"}


def test_scores_are_those_of_the_functions(mdata):
    import scib_metrics

    x, labels = mdata.obsm["Z_c"], mdata.obs["cell_type"].to_numpy()
    result = scib({"ours": x}, labels=labels, n_permutations=0)
    assert result.matrix().loc["Silhouette label", "ours"] == pytest.approx(
        float(scib_metrics.silhouette_label(x.astype(np.float32), labels)), abs=1e-5
    )
    assert set(result.table["kind"]) == {"Bio conservation", "Aggregate score"}
    assert result.n_batches is None
    assert np.isnan(result.table["chance"]).all()


def test_missing_rows_are_left_out_of_all(mdata):
    result = scib(mdata, use_rep=["Z_c", "prot:Z_s"], labels="cell_type", n_permutations=0, max_obs=120)
    assert (result.n_obs, result.n_dropped) == (120, 10)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"use_rep": "Z"}, KeyError, "'Z' is not in data.obsm"),
        ({"use_rep": []}, ValueError, "There is no embedding"),
        ({"labels": np.zeros(150)}, ValueError, "labels has a single value: there is nothing to keep"),
        ({"batch": np.zeros(150)}, ValueError, "batch has a single value: leave batch out"),
        ({"batch": np.zeros(9)}, ValueError, "batch has 9 values"),
        ({"unintegrated": np.zeros((9, 2))}, ValueError, "Embedding 'unintegrated' has 9 rows"),
        ({"labels": np.where(np.arange(150) < 60, np.arange(150) % 2, np.nan)}, ValueError, "60 observations can be"),
        ({"max_obs": 50}, ValueError, "`max_obs`"),
        ({"n_permutations": -1}, ValueError, "`n_permutations`"),
    ],
)
def test_errors_name_what_is_wrong(mdata, options, error, message):
    with pytest.raises(error, match=message):
        scib(mdata, **{"use_rep": "Z_c", "labels": "cell_type"} | options)


def test_order_of_observations_does_not_matter(mdata, rng):
    order = rng.permutation(150)
    x, labels = mdata.obsm["Z_c"], mdata.obs["cell_type"].to_numpy()
    here, there = (scib(x[i], labels=labels[i]) for i in (np.arange(150), order))
    pd.testing.assert_frame_equal(here.table, there.table)
