"""What `unbraid.metrics.cross_classification` promises."""

import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

from unbraid.metrics import probe
from unbraid.metrics._cross_classification import cross_classification

QUICK = {"n_permutations": 9, "n_splits": 3}


@pytest.fixture
def digits(rng):
    """A shared label in z, a private one in w."""
    digit, quadrant = rng.integers(3, size=300), rng.integers(2, size=300)
    z = 4 * np.eye(3)[digit] + rng.normal(size=(300, 3))
    w = 4 * np.eye(2)[quadrant] + rng.normal(size=(300, 2))
    return {"z": z, "w": w}, {"digit": digit, "quadrant": np.array(["left", "right"])[quadrant]}


EXPECTED = {"z": {"digit": "high", "quadrant": "low"}, "w": {"digit": "low", "quadrant": "high"}}


def test_each_label_is_read_off_its_latent(digits):
    latents, labels = digits
    result = cross_classification(None, latents, labels, expected=EXPECTED, margin=0.2)
    scores = result.matrix()
    assert list(scores.index) == ["z", "w"]
    assert list(scores.columns) == ["digit", "quadrant"]
    assert np.diag(scores).min() > 0.9
    assert abs(scores.loc["w", "digit"] - 1 / 3) < 0.12
    assert result.matrix("chance").loc["z"].tolist() == pytest.approx([1 / 3, 1 / 2], abs=0.05)
    assert result.matrix("found").to_numpy().tolist() == [["high", "low"], ["low", "high"]]
    assert result.table["as_expected"].tolist() == [True] * 4
    assert result.table["n_obs"].tolist() == [300] * 4


def test_a_leak_is_not_as_expected(digits):
    latents, labels = digits
    latents["w"] = np.hstack([latents["w"], latents["z"]])
    table = cross_classification(None, latents, labels, expected={"w": {"digit": "low"}}, **QUICK).table
    row = table[(table["latent"] == "w") & (table["label"] == "digit")].iloc[0]
    assert (row["found"], row["expected"], row["as_expected"]) == ("high", "low", False)
    assert table["expected"].notna().sum() == 1
    assert table["as_expected"].notna().sum() == 1


def test_few_observations_do_not_show_that_nothing_is_there(rng):
    """Absence is claimed only if the interval ends below the margin."""
    x, y = rng.normal(size=(40, 2)), np.arange(40) % 2
    (row,) = cross_classification(None, {"z": x}, {"y": y}, expected={"z": {"y": "low"}}).table.itertuples()
    assert (row.found, row.as_expected) == ("unclear", None)
    x, y = rng.normal(size=(4000, 2)), np.arange(4000) % 2
    (row,) = cross_classification(None, {"z": x}, {"y": y}, expected={"z": {"y": "low"}}).table.itertuples()
    assert (row.found, row.as_expected) == ("low", True)


def test_a_row_is_a_probe(digits):
    latents, labels = digits
    donor = np.arange(300) // 10
    table = cross_classification(None, latents, labels, groups=donor, seed=3, **QUICK).table
    expected = probe(latents["w"], labels["digit"], groups=donor, seed=3, **QUICK)
    row = table[(table["latent"] == "w") & (table["label"] == "digit")].iloc[0]
    assert (row["score"], row["low"], row["high"]) == (expected.score, *expected.interval)
    assert (row["chance"], row["p_value"], row["n_groups"]) == (expected.chance, expected.p_value, 30)
    assert (row["metric"], row["n_classes"], row["n_features"], row["n_samples"]) == ("balanced_accuracy", 3, 2, 1)


def test_numbers_are_read_too(digits, rng):
    latents, _ = digits
    table = cross_classification(None, latents, {"depth": latents["z"][:, 0] + rng.normal(size=300)}, **QUICK).table
    assert table["metric"].tolist() == ["r2", "r2"]
    assert table["found"].tolist() == ["high", "low"]


# ---- posterior samples


def test_samples_hold_what_means_do_not(rng):
    """A label in the posterior's variance is invisible in its mean, and hardly there in one sample's sign."""
    y = np.arange(400) % 2
    mean, sd = np.zeros((400, 1)), np.where(y, 3.0, 0.1)[:, None]
    samples = np.abs(mean + sd * rng.normal(size=(5, 400, 1)))
    table = cross_classification(None, {"mean": mean + 1e-3, "samples": samples}, {"y": y}, **QUICK).table
    of_mean, of_samples = table.itertuples()
    assert of_mean.score == 0.5
    assert of_samples.score > 0.8
    assert (of_samples.n_samples, of_samples.n_obs) == (5, 400)


def test_noise_in_samples_counts(rng):
    """The label is plain in the means, but a sample is mostly noise."""
    y = np.arange(300) % 2
    mean = y[:, None] + 0.01 * rng.normal(size=(300, 1))
    samples = mean + 3 * rng.normal(size=(4, 300, 1))
    table = cross_classification(None, {"mean": mean, "samples": samples}, {"y": y}, **QUICK).table
    assert table["score"][0] == 1
    assert table["score"][1] < 0.7


def test_samples_are_averaged_probes(rng):
    y = rng.integers(2, size=90)
    samples = y[:, None] + 2 * rng.normal(size=(3, 90, 2))
    (row,) = cross_classification(None, {"z": samples}, {"y": y}, **QUICK).table.itertuples()
    probes = [probe(sample, y, **QUICK) for sample in samples]
    assert row.score == pytest.approx(np.mean([p.score for p in probes]))
    assert (row.low, row.high) == pytest.approx(tuple(np.mean([p.interval for p in probes], axis=0)))
    assert row.p_value == pytest.approx(min(1, 2 * np.mean([p.p_value for p in probes])))


def test_samples_do_not_pass_for_observations(rng):
    """The same sample ten times is one sample."""
    y = np.arange(60) % 2
    x = y[:, None] + rng.normal(size=(60, 2))
    one, ten = (
        cross_classification(None, {"z": np.repeat(x[None], k, axis=0)}, {"y": y}, **QUICK).table.iloc[0]
        for k in (1, 10)
    )
    assert (ten["score"], ten["low"], ten["high"]) == pytest.approx((one["score"], one["low"], one["high"]))
    assert ten["n_obs"] == 60


def test_missing_rows_and_labels_are_left_out(digits):
    latents, labels = digits
    labels["quadrant"] = labels["quadrant"].astype(object)
    latents["w"][:20], labels["quadrant"][10:30] = np.nan, None
    result = cross_classification(None, {**latents, "samples": np.stack([latents["w"]] * 2)}, labels, **QUICK)
    assert result.matrix("n_dropped").loc["z"].tolist() == [0, 20]
    assert result.matrix("n_dropped").loc["w"].tolist() == [20, 30]
    assert result.matrix("n_dropped").loc["samples"].tolist() == [20, 30]


# ---- MuData


@pytest.fixture
def mdata(digits):
    latents, labels = digits
    names = [f"cell{i}" for i in range(300)]
    rna = AnnData(np.zeros((250, 1), np.float32), obs=pd.DataFrame(index=names[:250]))
    prot = AnnData(np.zeros((300, 1), np.float32), obs=pd.DataFrame(index=names))
    rna.obsm["Z_s"], prot.obs["quadrant"] = latents["w"][:250], labels["quadrant"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"rna": rna, "prot": prot})
    mdata = mdata[names].copy()
    mdata.obsm["Z_c"] = latents["z"]
    mdata.obs["digit"] = pd.Categorical(labels["digit"])
    mdata.obs["donor"] = np.arange(300) // 10
    return mdata


def test_mudata_is_read_by_key(mdata, digits):
    latents, labels = digits
    result = cross_classification(mdata, ["Z_c", "rna:Z_s"], ["digit", "prot:quadrant"], groups="donor", **QUICK)
    assert list(result.matrix().index) == ["Z_c", "rna:Z_s"]
    assert result.matrix("n_obs").loc["rna:Z_s"].tolist() == [250, 250]
    assert np.diag(result.matrix()).min() > 0.9
    mixed = cross_classification(
        mdata, {"ours": "Z_c", "other": latents["w"]}, {"d": "digit", "q": labels["quadrant"]}, groups="donor", **QUICK
    )
    assert mixed.matrix().loc["ours", "d"] == result.matrix().loc["Z_c", "digit"]
    assert mixed.matrix().loc["other", "q"] > 0.9
    with pytest.raises(KeyError, match="Did you mean 'digit'"):
        cross_classification(mdata, ["Z_c"], ["digits"])
    with pytest.raises(KeyError, match="'Z_s' is in data"):
        cross_classification(mdata, "Z_s", "digit")


# ---- errors, law, result

X20 = np.random.default_rng(0).normal(size=(20, 3))
Y20 = np.arange(20) % 2


@pytest.mark.parametrize(
    ("latents", "labels", "options", "error", "message"),
    [
        ({}, {"y": Y20}, {}, ValueError, "latents is empty"),
        ({"z": X20}, [], {}, ValueError, "labels is empty"),
        ([X20], {"y": Y20}, {}, ValueError, "latents must be names, or a mapping"),
        (["Z_c"], {"y": Y20}, {}, ValueError, "latents has the key 'Z_c', but there is no data"),
        ({"z": X20}, ["y"], {}, ValueError, "labels has the key 'y', but there is no data"),
        ({"z": X20[:, 0]}, {"y": Y20}, {}, ValueError, r"Latent 'z' must have shape .* not \(20,\)"),
        ({"z": X20[None, None]}, {"y": Y20}, {}, ValueError, r"not \(1, 1, 20, 3\)"),
        ({"z": X20}, {"y": Y20[:7]}, {}, ValueError, r"labels\['y'\] has 7 values"),
        ({"z": np.where(X20 == X20[4, 1], np.inf, X20)}, {"y": Y20}, {}, ValueError, "Latent 'z', label 'y': 1 of 20"),
        ({"z": X20}, {"y": Y20}, {"groups": Y20[:3]}, ValueError, "groups has 3 values"),
        ({"z": X20}, {"y": Y20}, {"margin": 0}, ValueError, "margin must be between"),
        ({"z": X20}, {"y": Y20}, {"expected": {"w": {}}}, KeyError, "expected names the latent 'w'. There is: 'z'"),
        ({"z": X20}, {"y": Y20}, {"expected": {"z": {"x": "low"}}}, KeyError, "expected names the label 'x'"),
        ({"z": X20}, {"y": Y20}, {"expected": {"z": {"y": "no"}}}, ValueError, "must be one of 'high', 'low'"),
    ],
)
def test_errors_name_what_is_wrong(latents, labels, options, error, message):
    with pytest.raises(error, match=message):
        cross_classification(None, latents, labels, **options)


def test_order_of_observations_does_not_matter(digits, rng):
    latents, labels = digits
    latents["samples"] = np.stack([latents["z"], latents["z"] + 1])
    order = rng.permutation(300)
    here = cross_classification(None, latents, labels, **QUICK)
    there = cross_classification(
        None, {k: v[..., order, :] for k, v in latents.items()}, {k: v[order] for k, v in labels.items()}, **QUICK
    )
    pd.testing.assert_frame_equal(here.table, there.table)


def test_result_reads_as_a_matrix(digits):
    latents, labels = digits
    result = cross_classification(None, latents, labels, expected={"z": {"quadrant": "high"}}, **QUICK)
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["z", "w"]
    assert ", chance 0." in lines[-1]
    assert lines[-2].endswith("(!)")  # not as expected
    frame = result.to_frame()
    frame["score"] = 0
    assert (result.table["score"] > 0).all()
    with pytest.raises(KeyError, match="Did you mean 'score'"):
        result.matrix("scores")
