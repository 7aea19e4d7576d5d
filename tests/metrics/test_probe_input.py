"""What `unbraid.metrics.probe` takes, leaves out and refuses."""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from unbraid.metrics import probe


@pytest.fixture
def annotated(rng):
    """RNA of cells 0-99, protein of cells 20-119; the label is in both, donor in the MuData."""
    label = np.array(["B", "T"])[np.arange(120) % 2]
    z = rng.normal(size=(120, 3)) + 3 * (label == "T")[:, None]
    names = [f"cell{i}" for i in range(120)]
    rna, prot = (
        AnnData(z[rows].astype(np.float32), obs=pd.DataFrame({"cell_type": label[rows]}, index=names[rows]))
        for rows in (slice(0, 100), slice(20, 120))
    )
    prot.obs["passage"] = np.where(prot.obs["cell_type"] == "T", 2, 1)
    rna.obsm["Z_s"], prot.obsm["Z_s"] = z[:100], z[20:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"rna": rna, "prot": prot})
    mdata.obs = pd.DataFrame({"donor": [f"d{i % 11}" for i in range(120)], "label": label}, index=names).loc[
        mdata.obs_names
    ]
    mdata.obsm["Z_c"] = z[[int(name[4:]) for name in mdata.obs_names]]
    return mdata


# ---- what is left out


def test_unlabelled_and_missing_rows_are_left_out_and_counted(rng, two_gaussians):
    x, y = two_gaussians(rng, 200)
    labels = np.where(y == 1, "T", "B").astype(object)
    complete = probe(x[30:], labels[30:])
    labels[:10] = None
    labels[10:20] = np.nan
    x[15:30] = np.nan
    result = probe(x, labels)
    assert (result.n_obs, result.n_dropped) == (170, 30)
    assert dataclasses.replace(result, n_dropped=0) == complete
    number = np.where(np.arange(200) < 30, np.nan, rng.normal(size=200))
    assert probe(x, number).n_dropped == 30


def test_rare_classes_are_left_out_by_name(rng, two_gaussians):
    x, y = two_gaussians(rng, 100)
    labels = np.array(["B", "T"])[y].astype(object)
    labels[:3] = "mast"
    with pytest.warns(UserWarning, match=r"n_splits = 5 observations are left out: mast \(3\)") as record:
        result = probe(x, labels)
    assert record[0].filename == __file__
    assert (result.n_obs, result.n_dropped, result.n_classes) == (97, 3, 2)
    assert probe(x, labels, n_splits=3).n_classes == 3
    labels[:40] = "mast"  # many, but of two donors
    with pytest.warns(UserWarning, match=r"5 groups are left out: mast \(2\)"):
        probe(x, labels, groups=np.arange(100) // 20 * 100 + np.where(np.arange(100) < 40, 0, np.arange(100) % 10))


def test_max_obs_limits_the_observations(rng, two_gaussians):
    x, y = two_gaussians(rng, 500)
    result = probe(x, y, max_obs=120)
    assert (result.n_obs, result.n_dropped) == (120, 0)
    assert probe(x, y, max_obs=5000) == probe(x, y)


# ---- task


@pytest.mark.parametrize(
    ("target", "metric"),
    [
        (np.arange(120) % 2 == 0, "balanced_accuracy"),
        (np.arange(120) % 20, "balanced_accuracy"),
        (np.arange(120) % 21, "r2"),
        (np.arange(120) % 2.0, "r2"),
        (np.array(["a", "b"])[np.arange(120) % 2], "balanced_accuracy"),
        (["a", "b", None] * 40, "balanced_accuracy"),
        ([0.5, 1.5, None] * 40, "r2"),
        (pd.Series([1, 2, None] * 40, dtype="Int64"), "balanced_accuracy"),
        (pd.Series([True, False, None] * 40, dtype="boolean"), "balanced_accuracy"),
        (pd.Series([0.5, 2, None] * 40, dtype="Float64"), "r2"),
        (pd.Categorical([1.5, 2.5] * 60, categories=[1.5, 2.5, 3.5]), "balanced_accuracy"),
        (pd.Index(["a", "b"] * 60), "balanced_accuracy"),
    ],
)
def test_auto_tells_classes_from_numbers(rng, target, metric):
    assert probe(rng.normal(size=(120, 2)), target, n_splits=2, n_permutations=0).metric == metric


def test_task_overrules_auto(rng):
    x, y = rng.normal(size=(60, 2)), np.arange(60) % 3
    assert probe(x, y, task="regression", n_permutations=0).metric == "r2"
    assert probe(x, y.astype(float), task="classification", n_permutations=0).n_classes == 3


# ---- AnnData and MuData


def test_anndata_is_read_by_key(annotated):
    adata = annotated["rna"]
    expected = probe(adata.obsm["Z_s"], adata.obs["cell_type"].to_numpy())
    assert probe(adata, "cell_type", use_rep="Z_s") == expected
    assert probe(adata, adata.obs["cell_type"].to_numpy(), use_rep="Z_s") == expected
    in_x = probe(adata, "cell_type", use_rep="X")
    adata.X = sparse.csr_matrix(adata.X)
    assert probe(adata, "cell_type", use_rep="X") == in_x


def test_mudata_is_read_by_key(annotated):
    result = probe(annotated, "label", use_rep="Z_c", groups="donor", n_splits=3)
    assert (result.n_obs, result.n_dropped, result.n_groups) == (120, 0, 11)
    assert result.score > 0.9


def test_a_colon_reaches_into_a_modality(annotated):
    result = probe(annotated, "label", use_rep="rna:Z_s")
    assert (result.n_obs, result.n_dropped) == (100, 20)
    assert result.score > 0.9
    both = probe(annotated, "prot:cell_type", use_rep="rna:Z_s", groups="donor")
    assert (both.n_obs, both.n_dropped) == (80, 40)
    assert both.score > 0.9
    assert probe(annotated, "prot:passage", use_rep="rna:X").metric == "balanced_accuracy"  # integers remain such
    annotated["rna"].X = sparse.csr_matrix(annotated["rna"].X)
    assert probe(annotated, "label", use_rep="rna:X").n_obs == 100


def test_a_series_in_another_order_is_aligned(annotated, rng):
    adata = annotated["rna"]
    shuffled = adata.obs["cell_type"].iloc[rng.permutation(100)]
    assert probe(adata, shuffled, use_rep="Z_s") == probe(adata, "cell_type", use_rep="Z_s")
    frame = pd.DataFrame(adata.obsm["Z_s"], index=adata.obs_names)
    assert probe(frame, shuffled) == probe(adata, "cell_type", use_rep="Z_s")


@pytest.mark.parametrize(
    ("of", "target", "options", "message"),
    [
        ("rna", "cell_typ", {"use_rep": "Z_s"}, "'cell_typ' is not in data.obs. Did you mean 'cell_type'?"),
        (
            "rna",
            "cell_type",
            {"use_rep": "Z_p"},
            "'Z_p' is not in data.obsm. Did you mean 'Z_s'? There is: 'Z_s', 'X'.",
        ),
        ("rna", "cell_type", {"use_rep": "Z_s", "groups": "donor"}, "'donor' is not in data.obs."),
        (None, "cell_type", {"use_rep": "Z_c"}, "data['rna'].obs, not in data.obs: write 'rna:cell_type'"),
        (None, "label", {"use_rep": "Z_s"}, "data['rna'].obsm, not in data.obsm: write 'rna:Z_s'"),
        (None, "label", {"use_rep": "X"}, "no X of its own: write 'rna:X'"),
        (None, "rna:celltype", {"use_rep": "Z_c"}, "'celltype' is not in data['rna'].obs. Did you mean 'cell_type'?"),
        (None, "label", {"use_rep": "rma:Z_s"}, "Did you mean 'rna:Z_s'? There is: 'Z_c', 'rna:Z_s'"),
    ],
)
def test_an_unknown_key_is_answered_with_those_that_are_there(annotated, of, target, options, message):
    with pytest.raises(KeyError) as error:
        probe(annotated[of] if of else annotated, target, **options)
    assert message in error.value.args[0]


# ---- errors


def with_value(value, columns=slice(None)):
    x = np.random.default_rng(0).normal(size=(20, 3))
    x[4, columns] = value
    return x


X20 = with_value(0)
Y20 = np.arange(20) % 2


@pytest.mark.parametrize(
    ("data", "target", "options", "message"),
    [
        (with_value(np.nan, 1), Y20, {}, "1 of 20 rows of the embedding are NaN in some features"),
        (with_value(np.inf, 1), Y20, {}, "1 of 20 rows of the embedding are infinite"),
        (X20, np.where(Y20 == 0, np.inf, Y20), {}, "10 of 20 targets are infinite"),
        (X20, Y20[:19], {}, "target has 19 values, but the embedding has 20 rows"),
        (X20, Y20, {"groups": Y20[:9]}, "groups has 9 values"),
        (X20, Y20, {"groups": np.where(Y20, 1.0, np.nan)}, "10 of 20 observations have no group"),
        (X20, np.ones(20), {}, r"constant \(1\)"),
        (X20, np.ones(20, dtype=int), {}, "needs two classes of at least n_splits = 5 observations, but 1 of 1"),
        (X20, np.arange(20) // 17, {}, r"but 1 of 2 classes have so many; too few: 1 \(3\)"),
        (X20, [str(i) for i in range(20)], {}, "and 10 more"),
        (X20, Y20, {"groups": Y20}, "at least n_splits = 5 groups"),
        (X20[:9], np.arange(9.0), {}, "9 observations have both .* at least 10"),
        (X20, np.arange(20.0), {"groups": Y20}, "2 groups have both .* at least 5"),
        (np.full((20, 3), np.nan), np.arange(20.0), {}, "0 observations"),
        (X20[:, 0], Y20, {}, r"shape \(n_obs, n_features\), not \(20,\)"),
        (X20[:, :0], Y20, {}, "shape"),
        (X20.astype(str).astype(object) + "x", Y20, {}, "array of numbers"),
        (X20, np.stack([Y20, Y20], axis=1), {}, "target must have one dimension, not 2"),
        (X20, "cell_type", {}, "target='cell_type' names a column of obs, but data is an array"),
        (X20, Y20, {"use_rep": "Z"}, "data is the embedding itself"),
        (AnnData(X20), Y20, {}, "Name the embedding with use_rep; there is X"),
        (X20, ["a", "b"] * 10, {"task": "regression"}, "cannot be taken for numbers"),
        (X20, pd.date_range("2020", periods=20), {}, "neither classes nor numbers"),
        (X20, Y20, {"kind": "quadratic"}, "kind must be one of 'linear', 'boosted', not 'quadratic'"),
        (X20, Y20, {"task": "ranking"}, "task must be one of"),
        (X20, Y20, {"n_splits": 1}, "n_splits must be at least 2, not 1"),
        (X20, Y20, {"n_permutations": -1}, "n_permutations must be"),
        (X20, Y20, {"confidence": 95}, "confidence must be between 0 and 1, not 95"),
        (X20, Y20, {"max_obs": 3}, "max_obs must be at least twice n_splits"),
    ],
)
def test_errors_name_what_is_wrong(data, target, options, message):
    with pytest.raises(ValueError, match=message):
        probe(data, target, **options)
