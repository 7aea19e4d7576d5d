"""Tumours, on tiny files of the published formats."""

import numpy as np
import pandas as pd
import pytest

from unbraid.data import datasets

N, P = 60, 5
NAMES = [f"tcga-{i:02}-01" for i in range(N)]
VIEWS = {"mrna": "mRNAseq", "protein": "RPPA", "methylation": "Methylation", "mirna": "miRNAseq"}


def values(m):
    """Numbers that tell modality, tumour and component apart."""
    return 1_000.0 * (list(VIEWS).index(m) + 1) + 10.0 * np.arange(N)[:, None] + np.arange(P)


def present(m):
    """The modality's tumours: those of proteins are the even ones."""
    return np.arange(N) % 2 == 0 if m == "protein" else np.arange(N) < N - 4 if m == "mirna" else np.ones(N, bool)


def days():
    """Last follow-up and death, and the label that follows."""
    kinds = [(400, None, "alive"), (None, 100, "dead"), (500, 365, "dead"), (None, 900, None), (200, None, None)]
    return [kinds[i % 5] for i in range(N)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cleaned").mkdir()
    rng = np.random.default_rng(0)
    for m, name in VIEWS.items():
        rows = rng.permutation(np.flatnonzero(present(m)))
        table = pd.DataFrame(values(m)[rows], columns=[str(k) for k in range(P)])
        table.insert(0, "Hybridization REF", [NAMES[i] for i in rows])
        table.to_csv(tmp_path / "cleaned" / f"{name}_kpca.csv", index=False)
    lines = ["A line above the names of the columns", "Hybridization REF,days_to_last_followup,days_to_death"]
    lines += [f"{name},{a or ''},{b or ''}" for name, (a, b, _) in zip(NAMES, days(), strict=True)]
    (tmp_path / "clinical_label.csv").write_text("\n".join(lines))
    return tmp_path


def arrays(kind, path, **changed):
    """The same as an npz under the names of DeepIMV (0) or IDMVAE (1)."""
    found = {}
    for i, (m, name) in enumerate(VIEWS.items()):
        found[(name, f"view{i}")[kind]] = np.where(present(m)[:, None], values(m), np.nan)
    found["label"] = np.array([{"alive": 0, "dead": 1, None: -1}[what] for *_, what in days()], dtype=float)
    np.savez(path, **{name: x for name, x in (found | changed).items() if x is not None})
    return path


def check(mdata, modalities, rows):
    number = mdata.obs_names.str.extract(r"(\d+)")[0].astype(int).to_numpy()
    np.testing.assert_array_equal(np.sort(number), rows)
    assert list(mdata.mod) == list(modalities)
    for m in modalities:
        own = mdata[m].obs_names.str.extract(r"(\d+)")[0].astype(int).to_numpy()
        np.testing.assert_array_equal(np.sort(own), np.sort(number[present(m)[number]]))
        np.testing.assert_array_equal(mdata[m].X, values(m)[own].astype(np.float32))
    label = mdata.obs["mortality_1yr"]
    assert [None if pd.isna(x) else x for x in label] == [days()[i][2] for i in number]
    split = mdata.obs["split"]
    assert label[split != "train"].notna().all()
    assert (split == "val").sum() == (split == "test").sum() == round(len(rows) / 20)


def test_the_folder_of_the_notebook(folder):
    check(datasets.tcga_mortality(folder), ["mrna", "mirna"], np.arange(N - 4))


@pytest.mark.parametrize("kind", [0, 1])
def test_arrays_of_either_name(tmp_path, kind):
    mdata = datasets.tcga_mortality(arrays(kind, tmp_path / "t.npz"))
    check(mdata, ["mrna", "mirna"], np.arange(N - 4))


def test_tumours_that_lack_modalities(folder):
    every = list(VIEWS)
    check(datasets.tcga_mortality(folder, modalities=every, complete=False), every, np.arange(N))
    check(datasets.tcga_mortality(folder, modalities=every), every, np.arange(0, N - 4, 2))


def test_the_split_follows_the_seed(folder):
    splits = [datasets.tcga_mortality(folder, seed=s).obs["split"].astype(str) for s in (0, 0, 1)]
    assert splits[0].equals(splits[1])
    assert not splits[0].equals(splits[2])


def test_a_model_takes_them(folder):
    import unbraid as ub

    mdata = datasets.tcga_mortality(folder, modalities=["mrna", "protein"], complete=False)
    for adata in mdata.mod.values():
        adata.X = np.random.default_rng(0).normal(size=adata.shape).astype(np.float32)
    ub.model.IDMVAE.setup_mudata(mdata)
    model = ub.model.IDMVAE(mdata, n_shared=2, n_specific=2, n_hidden=4, preset="tcga")
    model.train(max_epochs=1, split_key="split", progress_bar=False, accelerator="cpu")
    assert model.get_latent_representation().shape == (N, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ["mrna", "rppa"]}, "There is no modality 'rppa'"),
        ({"modalities": ["mrna"]}, "two or more different"),
        ({"modalities": ["mrna", "mrna"]}, "two or more different"),
    ],
)
def test_modalities_that_do_not_exist(folder, options, message):
    with pytest.raises(ValueError, match=message):
        datasets.tcga_mortality(folder, **options)


def test_files_that_are_missing(folder, tmp_path):
    (folder / "cleaned" / "miRNAseq_kpca.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no .*miRNAseq_kpca.csv\. They are made by"):
        datasets.tcga_mortality(folder)
    with pytest.raises(FileNotFoundError, match=r"There is no .*t.npz\. They are made by"):
        datasets.tcga_mortality(tmp_path / "t.npz")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"view3": None}, "has no 'miRNAseq' or 'view3': view0"),
        ({"label": None}, "has no 'label'"),
        ({"label": np.zeros((N, 5))}, r"'label' has the shape \(60, 5\)"),
        ({"view3": values("mirna")[:9]}, "arrays differ in length: .*'mirna': 9"),
        ({"view3": values("mrna")}, "mrna and mirna are the same numbers"),
        ({"view3": np.full((N, P), np.nan)}, "no tumour has all of mrna, mirna"),
    ],
)
def test_arrays_that_are_not_as_said(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        datasets.tcga_mortality(arrays(1, tmp_path / "t.npz", **changed))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("clinical_label.csv", "x\nHybridization REF,days_to_death\na,1", "no column 'days_to_last_followup'"),
        ("cleaned/miRNAseq_kpca.csv", "name,0\na,1", "no column 'Hybridization REF'"),
        ("cleaned/miRNAseq_kpca.csv", "Hybridization REF,0\na,x", "values that are no numbers"),
    ],
)
def test_tables_that_are_not_as_said(folder, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        datasets.tcga_mortality(folder)
