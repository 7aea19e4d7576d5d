"""``ub.tl.trusted_pairs``."""

import numpy as np
import pytest
from anndata import AnnData
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

import unbraid as ub
from unbraid.data import Pairs, read_pairs
from unbraid.metrics import clustering
from unbraid.tl import relevant_components, trusted_pairs


def noisy(noise, seed=0, n_obs=3_000):
    """Principal components of cells with two factors of ten classes each, and pairs about one of them."""
    mdata = ub.data.simulate.two_factors(n_obs, seed=seed)
    ub.pp.pairs_from_labels(mdata, "y_task", fraction=0.3, noise=noise, seed=seed)
    z = PCA(30, random_state=0).fit_transform(np.hstack([mdata[m].X for m in mdata.mod]))
    return z, read_pairs(mdata, "pairs"), mdata.obs["y_task"].to_numpy()


def right(pairs, labels):
    same = lambda rows: labels[rows[:, 0]] == labels[rows[:, 1]]
    return same(pairs.must).mean(), 1 - same(pairs.cannot).mean()


def accuracy(z, pairs, labels):
    found = KMeans(10, n_init=5, random_state=0).fit_predict(relevant_components(z, pairs, n_components=9))
    return clustering(None, labels, clusters=found, n_permutations=0).acc


@pytest.mark.parametrize(("noise", "at_most", "at_least"), [(0.1, 0.6, 0.97), (0.2, 0.4, 0.8)])
def test_right_pairs_are_found_among_many_wrong_ones(noise, at_most, at_least):
    z, pairs, labels = noisy(noise)
    found = trusted_pairs(z, pairs, 10)
    assert right(pairs, labels)[0] < at_most  # a tenth of random pairs are must-links: of flipped ones nine tenths
    assert min(right(found, labels)) > at_least
    assert len(found.must) > 0.9 * right(pairs, labels)[0] * len(pairs.must)
    assert accuracy(z, found, labels) > max(0.85, accuracy(z, pairs, labels) + 0.02)


def test_right_pairs_are_kept():
    z, pairs, _ = noisy(0.0)
    found = trusted_pairs(z, pairs, 10)
    assert len(found) > 0.97 * len(pairs)


def test_cells_in_any_order_and_data_of_any_kind():
    z, pairs, _ = noisy(0.1)
    found = trusted_pairs(z, pairs, 10)
    adata = AnnData(np.zeros((3_000, 1)), obsm={"Z": z}, obsp={"p": pairs.matrix(3_000)})
    again = trusted_pairs(adata, "p", 10, use_rep="Z")
    np.testing.assert_array_equal(found.must, again.must)
    np.testing.assert_array_equal(found.cannot, again.cannot)
    order = np.random.default_rng(0).permutation(3_000)
    place = np.argsort(order)  # where a cell is now
    moved = trusted_pairs(z[order], Pairs(place[pairs.must], place[pairs.cannot]), 10)
    # k-means starts elsewhere, so that a pair or two may be judged otherwise
    back = {tuple(sorted(row)) for row in order[moved.must].tolist()}
    assert len(back ^ set(map(tuple, found.must.tolist()))) <= 0.05 * len(found.must)


def test_wrong_input():
    x = np.random.default_rng(0).normal(size=(30, 2))
    pairs = Pairs([[0, 1], [2, 3]], [])
    with pytest.raises(ValueError, match="`n_clusters` must be at most 3, one more than the features"):
        trusted_pairs(x, pairs, 4)
    with pytest.raises(ValueError, match="`n_clusters` must be at most 4, the number of cells"):
        trusted_pairs(np.eye(4, 9), pairs, 5)
    with pytest.raises(ValueError, match="n_clusters"):
        trusted_pairs(x, pairs, 1)
    with pytest.raises(ValueError, match="max_iter"):
        trusted_pairs(x, pairs, 2, max_iter=0)
    with pytest.raises(ValueError, match="no must-links"):
        trusted_pairs(x, Pairs([], [[0, 1]]), 2)
    line = np.arange(6.0)[:, None]
    with pytest.raises(ValueError, match="None of the 3 must-links has both cells in one of 2 clusters"):
        trusted_pairs(line, Pairs([[0, 5], [1, 4], [2, 3]], []), 2)
    absent = x.copy()
    absent[3] = np.nan
    with pytest.raises(ValueError, match="1 of 30 cells have no embedding"):
        trusted_pairs(absent, pairs, 2)
