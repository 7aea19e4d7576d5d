"""The reader of the bone-marrow CITE-seq data, on small files in the form of the published ones."""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from unbraid.data import datasets

RNA, PROT, ANNOTATION = "GSM3681518_MNC_RNA_counts.tsv.gz", "GSM3681519_MNC_ADT_counts.tsv.gz", "bmcite_metadata.csv.gz"
CELLS = [f"{donor}_{'ACGT'[i % 4] * 4}{'ACGT'[i // 4] * 2}" for donor in "ab" for i in range(10)]
GENES, PROTEINS = [f"GENE{j}" for j in range(30)], ["CD3", "CD4", "CD8a", "HLA.DR"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    # addresses on this machine where nobody listens
    urls = {name: f"http://127.0.0.1:9/{name}" for name in datasets._BONE_MARROW_URLS}
    monkeypatch.setattr(datasets, "_BONE_MARROW_URLS", urls)


def counts(features: list[str], cells: list[str], seed: int) -> pd.DataFrame:
    values = np.random.default_rng(seed).poisson(1.5, (len(features), len(cells)))
    return pd.DataFrame(values, index=features, columns=cells)


def write_counts(path, table: pd.DataFrame, *, corner: str | None = None, barcode: str = "{}.1") -> None:
    """Features by cells as R writes them: no name above the features, and a full stop in the barcodes."""
    header = [barcode.format(cell) for cell in table.columns]
    lines = [header if corner is None else [corner, *header]]
    lines += [[name, *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    with gzip.open(path, "wt") as file:
        file.writelines("\t".join(line) + "\n" for line in lines)


def annotation(cells: list[str]) -> pd.DataFrame:
    """Columns and values of SeuratData's table."""
    rng = np.random.default_rng(9)
    return pd.DataFrame(
        {
            "orig.ident": "bmcite",
            "nCount_RNA": 100,
            "donor": ["batch1" if cell.startswith("a") else "batch2" for cell in cells],
            "celltype.l1": rng.choice(["T cell", "B cell"], len(cells)),
            "celltype.l2": rng.choice(["CD4 Naive", "Naive B", "gdT"], len(cells)),
            "RNA.weight": rng.random(len(cells)),
        },
        index=[f"{cell}-1" for cell in cells],
    )


@pytest.fixture
def folder(tmp_path):
    """All cells in both files, in different orders; the annotation knows 15 of the 20, in a third order."""
    rna, prot = counts(GENES, CELLS, 0), counts(PROTEINS, CELLS[::-1], 1)
    write_counts(tmp_path / RNA, rna)
    write_counts(tmp_path / PROT, prot)
    order = np.random.default_rng(2).permutation(CELLS)[:15]
    annotation(list(order)).to_csv(tmp_path / ANNOTATION)
    return tmp_path


def test_counts_follow_their_barcodes(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", UserWarning)
        mdata = datasets.bone_marrow_citeseq(folder)
    expected = pd.read_csv(folder / ANNOTATION, index_col=0)
    assert list(mdata.mod) == ["rna", "prot"]
    assert mdata.obs_names.tolist() == expected.index.tolist()
    names = [cell.removesuffix("-1") for cell in expected.index]
    for modality, table in {"rna": counts(GENES, CELLS, 0), "prot": counts(PROTEINS, CELLS[::-1], 1)}.items():
        adata = mdata[modality]
        assert sp.isspmatrix_csr(adata.X)
        assert adata.X.dtype == np.float32
        assert (adata.X.data > 0).all()
        assert adata.var_names.tolist() == table.index.tolist()
        assert adata.obs_names.tolist() == expected.index.tolist()
        np.testing.assert_array_equal(adata.X.toarray(), table[names].to_numpy().T)
    published = {"donor": "donor", "cell_type_l1": "celltype.l1", "cell_type_l2": "celltype.l2"}
    for column, name in published.items():
        assert mdata.obs[column].dtype == "category"
        assert mdata.obs[column].tolist() == expected[name].tolist()
    np.testing.assert_allclose(mdata.obs["wnn_rna_weight"], expected["RNA.weight"])


def test_the_weight_is_left_out_where_it_is_not_published(folder):
    annotation(CELLS).drop(columns="RNA.weight").to_csv(folder / ANNOTATION)
    assert list(datasets.bone_marrow_citeseq(folder).obs) == ["donor", "cell_type_l1", "cell_type_l2"]


def test_a_named_corner_and_hyphens_are_read_alike(folder):
    first = datasets.bone_marrow_citeseq(folder)
    write_counts(folder / RNA, counts(GENES, CELLS, 0), corner="", barcode="{}-1")
    again = datasets.bone_marrow_citeseq(folder)
    assert again.obs_names.tolist() == first.obs_names.tolist()
    assert (again["rna"].X != first["rna"].X).nnz == 0


def test_a_cell_without_proteins_is_absent_there(folder):
    names = [cell.removesuffix("-1") for cell in pd.read_csv(folder / ANNOTATION, index_col=0).index]
    write_counts(folder / PROT, counts(PROTEINS, CELLS[::-1], 1).drop(columns=names[3:5]))
    mdata = datasets.bone_marrow_citeseq(folder)
    assert mdata.n_obs == mdata["rna"].n_obs == 15
    absent = set(mdata.obs_names) - set(mdata["prot"].obs_names)
    assert absent == {f"{name}-1" for name in names[3:5]}
    assert mdata.obs["donor"].notna().all()
    table = counts(PROTEINS, CELLS[::-1], 1)[[name.removesuffix("-1") for name in mdata["prot"].obs_names]]
    np.testing.assert_array_equal(mdata["prot"].X.toarray(), table.to_numpy().T)


def test_an_annotated_cell_without_any_counts_is_reported(folder):
    annotation([*CELLS[:6], "b_nowhere"]).to_csv(folder / ANNOTATION)
    with pytest.warns(UserWarning, match="1 of the 7 cells of bmcite_metadata.csv.gz are in neither"):
        mdata = datasets.bone_marrow_citeseq(folder)
    assert mdata.n_obs == 6


def test_repeated_gene_symbols_are_made_unique(folder):
    table = counts(GENES, CELLS, 0)
    table.index = ["MATR3", "MATR3", *GENES[2:]]
    write_counts(folder / RNA, table)
    assert datasets.bone_marrow_citeseq(folder)["rna"].var_names[:2].tolist() == ["MATR3", "MATR3-1"]


def web_page(folder):
    (folder / RNA).write_text("<html>404</html>")


def other_table(folder):
    with gzip.open(folder / RNA, "wt") as file:
        file.write("gene,a_ACGT.1\nGENE0,3\n")


def cut_short(folder):
    whole = (folder / RNA).read_bytes()
    (folder / RNA).write_bytes(whole[: len(whole) // 2])


def last_row_cut(folder):
    with gzip.open(folder / RNA) as file:
        whole = file.read()
    with gzip.open(folder / RNA, "wb") as file:
        file.write(whole[:-7])


def normalised(folder):
    write_counts(folder / RNA, counts(GENES, CELLS, 0) / 7)


def words(folder):
    write_counts(folder / RNA, counts(GENES, CELLS, 0).replace(2, "two"))


def cell_twice(folder):
    write_counts(folder / RNA, counts(GENES, [*CELLS, CELLS[0]], 0))


def swapped(folder):
    write_counts(folder / RNA, counts(PROTEINS, CELLS, 1))
    write_counts(folder / PROT, counts(GENES, CELLS, 0))


def other_cells(folder):
    write_counts(folder / PROT, counts(PROTEINS, [f"cell{i}" for i in range(20)], 0))


def no_rows(folder):
    write_counts(folder / PROT, counts([], CELLS, 0))


def no_labels(folder):
    annotation(CELLS).drop(columns="celltype.l2").to_csv(folder / ANNOTATION)


def plain_annotation(folder):
    annotation(CELLS).to_csv(folder / "plain.csv")
    (folder / "plain.csv").rename(folder / ANNOTATION)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (web_page, f"{RNA} is no complete table of counts"),
        (other_table, f"{RNA} is no complete table of counts.*could not convert"),
        (cut_short, f"{RNA} is no complete table of counts.*Fetch it anew"),
        (last_row_cut, f"{RNA} is no complete table of counts.*row 30 has"),
        (normalised, f"{RNA} holds values that are no counts, such as 0\\."),
        (words, f"{RNA} is no complete table of counts.*two"),
        (cell_twice, f"{RNA} has the cell '{CELLS[0]}-1' more than once"),
        (swapped, "more genes than proteins. Have the files changed places"),
        (other_cells, f"{PROT} has none of the 15 cells of {ANNOTATION}.*'cell0-1'"),
        (no_rows, f"{PROT} is no complete table of counts.*no rows"),
        (no_labels, f"{ANNOTATION} has no column 'celltype.l2'; its columns are orig.ident, nCount_RNA"),
        (plain_annotation, f"{ANNOTATION} is no complete table of annotations"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_file_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        datasets.bone_marrow_citeseq(folder)


def test_what_to_fetch_and_where_to_put_it_is_said(folder):
    (folder / PROT).unlink()
    (folder / ANNOTATION).unlink()
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        datasets.bone_marrow_citeseq(folder)
    message = str(caught.value)
    for name in (PROT, ANNOTATION):
        assert f"http://127.0.0.1:9/{name} as {name}" in message
    assert RNA not in message
    assert str(folder) in message


def test_read_counts_of_several_digits_and_zeros(tmp_path):
    table = pd.DataFrame([[0, 10, 0, 12_345], [0, 0, 0, 0], [7, 0, 1, 0]], index=list("abc"), columns=list("wxyz"))
    write_counts(tmp_path / "t.tsv.gz", table.astype(object).replace(1, "1.0"))
    adata = datasets._read_counts_table(tmp_path / "t.tsv.gz")
    np.testing.assert_array_equal(adata.X.toarray(), table.to_numpy().T)
    assert adata.X.nnz == 4
