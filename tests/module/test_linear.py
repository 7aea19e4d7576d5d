"""The closed forms of LinearSplit against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import svdvals
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA

from unbraid.module._linear import (
    batch_means,
    common_rows,
    generalized_cca,
    principal_components,
    unit_columns,
)


def everyone(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {m: np.arange(len(x)) for m, x in data.items()}


def test_two_modalities_are_canonical_correlation_analysis(two_views):
    data = two_views(2_000, [0.9, 0.6, 0.3])
    maps = generalized_cca(data, everyone(data), 2_000, 1e-12, 3)
    z = {m: data[m] @ maps[m] for m in data}
    found = np.array([np.corrcoef(z["a"][:, j], z["b"][:, j])[0, 1] for j in range(3)])
    # canonical correlations = singular values of the product of orthonormal bases
    bases = [np.linalg.svd(x, full_matrices=False)[0] for x in data.values()]
    np.testing.assert_allclose(found, svdvals(bases[0].T @ bases[1])[:3], atol=1e-6)
    reference = CCA(n_components=3, max_iter=5_000, tol=1e-10).fit(data["a"], data["b"])
    for ours, theirs in zip(z["a"].T, reference.transform(data["a"]).T, strict=True):
        assert abs(np.corrcoef(ours, theirs)[0, 1]) > 0.999


def test_variates_have_unit_variance_and_are_uncorrelated(two_views):
    data = two_views(3_000, [0.8, 0.5])
    maps = generalized_cca(data, everyone(data), 3_000, 1e-10, 4)
    for m, x in data.items():
        np.testing.assert_allclose(np.cov((x @ maps[m]).T, bias=True), np.eye(4), atol=1e-4)


def test_three_modalities_find_what_all_share():
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(2_000, 2))
    data = {m: np.c_[shared, rng.normal(size=(2_000, 4))] @ rng.normal(size=(6, 6)) for m in "abc"}
    data = {m: x - x.mean(axis=0) for m, x in data.items()}
    maps = generalized_cca(data, everyone(data), 2_000, 1e-8, 2)
    for m, x in data.items():
        z = x @ maps[m]
        explained = np.linalg.lstsq(z, shared, rcond=None)[0]
        assert 1 - ((shared - z @ explained) ** 2).sum() / ((shared - shared.mean(0)) ** 2).sum() > 0.98


def test_missing_rows_use_every_pair_that_is_there(two_views):
    data = two_views(4_000, [0.9, 0.7])
    rng = np.random.default_rng(3)
    rows = {"a": np.arange(4_000), "b": np.sort(rng.permutation(4_000)[:2_500])}
    thinned = {"a": data["a"], "b": data["b"][rows["b"]]}
    full = generalized_cca(data, everyone(data), 4_000, 1e-8, 2)
    part = generalized_cca(thinned, rows, 4_000, 1e-8, 2)
    for m in data:
        for ours, theirs in zip((data[m] @ part[m]).T, (data[m] @ full[m]).T, strict=True):
            assert abs(np.corrcoef(ours, theirs)[0, 1]) > 0.98


def test_common_rows_match_cells_by_number():
    i, j = common_rows(np.array([0, 2, 5, 7]), np.array([2, 3, 7]), 9)
    assert i.tolist() == [1, 3]
    assert j.tolist() == [0, 2]


def test_streamed_principal_components_equal_those_in_memory():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 30)) @ np.diag(np.linspace(3, 0.2, 30)) @ rng.normal(size=(30, 30)) + 5.0
    blocks = lambda: ((x[k : k + 64], np.zeros(len(x[k : k + 64]), dtype=int)) for k in range(0, 500, 64))
    axes = principal_components(blocks, batch_means(blocks, 1), 4, seed=0, n_passes=8)
    reference = PCA(4).fit(x).components_.T
    np.testing.assert_allclose(np.abs(axes.T @ reference), np.eye(4), atol=1e-3)


def test_batch_means_are_those_of_every_batch():
    rng = np.random.default_rng(0)
    x, batch = rng.normal(size=(50, 3)), rng.integers(3, size=50)
    means = batch_means(lambda: [(x[:20], batch[:20]), (x[20:], batch[20:])], 4)
    expected = [x.mean(0), *(x[batch == k].mean(0) for k in range(3)), x.mean(0)]
    np.testing.assert_allclose(means, expected)


def test_unit_columns_leave_constant_columns_zero():
    x = np.c_[np.ones(5), np.arange(5.0)]
    unit = unit_columns(x)
    assert (unit[:, 0] == 0).all()
    assert np.linalg.norm(unit[:, 1]) == pytest.approx(1.0)
