"""Readers, on small files of the official formats."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from unbraid.data import datasets


def write_10x(path, n_cells: int, types: dict[str, int], seed: int = 0) -> np.ndarray:
    """A feature-barcode matrix as Cell Ranger 3 writes it; returns cells by features."""
    n_features = sum(types.values())
    counts = np.random.default_rng(seed).poisson(1.0, size=(n_cells, n_features)).astype("int32")
    matrix = sp.csc_matrix(counts.T)  # features by cells, column-compressed
    labels = [kind for kind, n in types.items() for _ in range(n)]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array([f"ACGT{i}-1".encode() for i in range(n_cells)])
        group["data"], group["indices"] = matrix.data, matrix.indices.astype("int64")
        group["indptr"], group["shape"] = matrix.indptr.astype("int64"), np.array(matrix.shape, dtype="int32")
        features = group.create_group("features")
        features["_all_tag_keys"] = np.array([b"genome"])
        features["id"] = np.array([f"ENS{i}".encode() for i in range(n_features)])
        features["name"] = np.array([f"F{i // 2 if i < 2 else i}".encode() for i in range(n_features)])
        features["feature_type"] = np.array([label.encode() for label in labels])
        features["genome"] = np.array([b"GRCh38"] * n_features)
    return counts


def test_feature_types_become_modalities(tmp_path):
    path = tmp_path / "matrix.h5"
    counts = write_10x(path, 7, {"Gene Expression": 5, "Antibody Capture": 3})
    mdata = datasets.read_10x(path)
    assert list(mdata.mod) == ["rna", "prot"]
    np.testing.assert_array_equal(mdata["rna"].X.toarray(), counts[:, :5])
    np.testing.assert_array_equal(mdata["prot"].X.toarray(), counts[:, 5:])
    assert mdata["rna"].var_names.is_unique  # two genes share a symbol
    assert mdata.obs_names[0] == "ACGT0-1"


def test_one_feature_type_is_refused(tmp_path):
    path = tmp_path / "matrix.h5"
    write_10x(path, 5, {"Gene Expression": 4})
    with pytest.raises(ValueError, match="at least two feature types"):
        datasets.read_10x(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.h5"):
        datasets.read_10x(tmp_path / "absent.h5")


def test_a_file_put_by_hand_is_checked_and_read(tmp_path, monkeypatch):
    import pooch

    name = datasets._PBMC5K_URL.rsplit("/", 1)[1]
    write_10x(tmp_path / name, 6, {"Gene Expression": 4, "Antibody Capture": 2})
    digest = pooch.file_hash(tmp_path / name, alg="md5")
    monkeypatch.setattr(datasets, "_PBMC5K_HASH", f"md5:{digest}")
    assert datasets.pbmc5k_citeseq(tmp_path)["prot"].n_vars == 2


def test_what_to_download_and_where_to_put_it_is_said(tmp_path, monkeypatch):
    # an address on this machine where nobody listens
    monkeypatch.setattr(datasets, "_PBMC5K_URL", "http://127.0.0.1:9/5k_matrix.h5")
    with pytest.raises(OSError, match=r"Fetch it from http://127\.0\.0\.1:9/5k_matrix\.h5 .* put it there"):
        datasets.pbmc5k_citeseq(tmp_path)
