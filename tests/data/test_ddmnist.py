"""DDMNISTMM, on a tiny MNIST."""

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from unbraid.data._arrays import to_images
from unbraid.data._ddmnist import ddmnist

LEVELS = {"m0": 10, "m1": 90, "m2": 240}  # of the flat backgrounds


def mnist(n=240, seed=0):
    """Digits whose label can be read off them: row ``label + 8`` is inked, and the strength is the sample's own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 10  # so that every part has every digit
    pictures = np.zeros((n, 28, 28), dtype=np.uint8)
    pictures[np.arange(n), labels + 8, 4:24] = rng.integers(100, 256, size=(n, 1))
    return pictures, labels.astype(np.uint8)


def small(source=None, **options):
    flat = [np.full((60, 70, 3), level, dtype=np.uint8) for level in LEVELS.values()]
    options = {"n_train": 30, "n_val": 6, "n_test": 8, "backgrounds": flat, **options}
    return ddmnist(mnist() if source is None else source, **options)


@pytest.fixture(scope="module")
def data():
    return small(n_train=1_200, n_val=50, n_test=150)


def drawn(data, m):
    return data[m].obs[["left_mnist_index", "right_mnist_index"]].to_numpy()


def test_labels_are_shared_and_images_are_each_modalitys_own(data):
    _, labels = mnist()
    assert list(data.mod) == ["m0", "m1", "m2"]
    assert data["m1"].X.shape == (1_400, 3 * 56 * 56)
    shared = data.obs[["left", "right"]].astype(str).to_numpy()
    for m in data.mod:
        np.testing.assert_array_equal(labels[drawn(data, m)].astype(str), shared)
    # some 20 images of a digit: modalities, and the sides of a sample with the same digit twice, seldom have the same
    assert (drawn(data, "m0") == drawn(data, "m1")).mean() < 0.15
    assert (drawn(data, "m0")[:, 0] == drawn(data, "m0")[:, 1]).mean() < 0.05


def test_labels_are_uniform_and_independent_of_each_other(data):
    table = np.histogram2d(data.obs["left"].cat.codes, data.obs["right"].cat.codes, bins=10)[0]
    assert table.sum() == 1_400
    assert chi2_contingency(table).pvalue > 0.001
    for axis in (0, 1):
        assert np.abs(table.sum(axis=axis) - 140).max() < 5 * np.sqrt(140)


def test_parts_have_digits_of_their_own(data):
    bounds = {"train": (0, 189), "val": (189, 206), "test": (206, 240)}  # 206 training digits, a twelfth held out
    for name, (low, high) in bounds.items():
        rows = np.stack([drawn(data, m)[data.obs["split"] == name] for m in data.mod])
        assert rows.min() >= low
        assert rows.max() < high
    assert data.obs["split"].value_counts().to_dict() == {"train": 1_200, "test": 150, "val": 50}


def test_digits_stand_in_the_middle_of_their_half_with_the_background_inverted(data):
    pictures, _ = mnist()
    for m, level in LEVELS.items():
        got = (to_images(data[m]) * 255).round().astype(int)
        for i in range(0, 1_400, 97):
            left, right = drawn(data, m)[i]
            ink = np.zeros((56, 56), dtype=int)
            ink[14:42, :28], ink[14:42, 28:] = pictures[left], pictures[right]
            expected = np.where(ink > 16, 255 - level, level)
            np.testing.assert_array_equal(got[i], np.broadcast_to(expected, (3, 56, 56)))


def test_a_smaller_canvas_has_smaller_digits():
    whole = np.full((240, 28, 28), 255, dtype=np.uint8)
    made = small((whole, mnist()[1]), size=24)
    got = (to_images(made["m0"]) * 255).round()
    expected = np.full((24, 24), 10)
    expected[6:18] = 245
    np.testing.assert_array_equal(got, np.broadcast_to(expected, (44, 3, 24, 24)))


def test_pieces_of_background_are_drawn_for_each_modality():
    # a background that says where it is: the row in red, the column in blue
    y, x = np.mgrid[:150, :200].astype(np.uint8)
    made = small((np.zeros((240, 28, 28), dtype=np.uint8), mnist()[1]), backgrounds=[np.stack([y, y, x], axis=2)] * 3)
    places = []
    for m in made.mod:
        got = (to_images(made[m]) * 255).round()
        top, left = got[:, 0, 0, 0], got[:, 2, 0, 0]
        np.testing.assert_array_equal(got[:, 0], (top[:, None, None] + np.arange(56)[:, None]) * np.ones(56))
        np.testing.assert_array_equal(got[:, 2], (left[:, None, None] + np.arange(56)) * np.ones((56, 1)))
        assert top.max() <= 150 - 56
        assert left.max() <= 200 - 56
        places.append(np.stack([top, left]))
    assert not np.array_equal(places[0], places[1])
    assert len(np.unique(places[0], axis=1).T) > 40


def test_default_backgrounds_tell_the_modalities_apart_and_show_the_digits():
    made = small(backgrounds=None)
    means = np.array([to_images(made[m]).mean(axis=(0, 2, 3)) for m in made.mod])
    assert min(np.linalg.norm(means[i] - means[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1
    blank = small((np.zeros((240, 28, 28), dtype=np.uint8), mnist()[1]), backgrounds=None)
    for m in made.mod:
        change = np.abs(to_images(made[m]) - to_images(blank[m])).max(axis=1)  # over the colours
        assert change[change > 0].min() > 0.25


def test_the_seed_decides():
    one, same, other = (small(seed=seed) for seed in (0, 0, 1))
    for m in one.mod:
        np.testing.assert_array_equal(one[m].X, same[m].X)
    assert one.obs.equals(same.obs)
    assert not one.obs.equals(other.obs)


def test_parts_may_be_empty():
    assert small(n_val=0, n_test=0).n_obs == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 33}, "`size` must be even"),
        ({"size": 62}, r"\(60, 70\) pixels is smaller than the canvas of `size` 62"),
        ({"backgrounds": [np.zeros((60, 60, 3), dtype=np.uint8)] * 5}, "must be three, one per modality, got 5"),
        ({"n_test": -1}, "`n_test` must be a whole number"),
        ({"source": (np.zeros((9, 28, 28)), np.zeros(9))}, "must have bytes"),
        ({"source": (np.zeros((70, 28, 28), np.uint8), np.zeros(70))}, r"has no \d for `n_train`=30: give it images"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_missing_files_are_named_with_their_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks train-images-idx3-ubyte\.gz, .*Download them from https://"):
        small(tmp_path)
