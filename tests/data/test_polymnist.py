"""PolyMNIST-Quadrant, on a tiny MNIST."""

import gzip
import struct

import numpy as np
import pytest

from unbraid.data import datasets
from unbraid.data._arrays import to_images

MODALITIES = ["m0", "m1", "m2", "m3", "m4"]


def mnist(n=240, seed=0):
    """Digits whose label can be read off them: row ``label + 8`` is inked, and the strength is the sample's own."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 10)
    pictures = np.zeros((n, 28, 28), dtype=np.uint8)
    pictures[np.arange(n), labels + 8, 4:24] = rng.integers(100, 256, size=(n, 1))
    return pictures, labels.astype(np.uint8)


def small(source=None, **options):
    flat = [np.full((40, 50, 3), level, dtype=np.uint8) for level in (10, 20, 30, 200, 240)]
    options = {"n_train": 30, "n_val": 6, "n_test": 8, "size": 32, "backgrounds": flat, **options}
    return datasets.polymnist_quadrant(mnist() if source is None else source, **options)


@pytest.fixture(scope="module")
def data():
    flat = [np.full((60, 70, 3), level, dtype=np.uint8) for level in (10, 20, 30, 200, 240)]
    return datasets.polymnist_quadrant(mnist(), n_train=330, n_val=10, n_test=34, size=56, backgrounds=flat)


def test_samples_share_the_digit_and_every_modality_has_an_image_of_its_own(data):
    pictures, labels = mnist()
    assert list(data.mod) == MODALITIES
    rows = np.stack([data[m].obs["mnist_index"] for m in MODALITIES])
    np.testing.assert_array_equal(labels[rows].astype(str), np.tile(data.obs["digit"].astype(str), (5, 1)))
    assert (rows[0] != rows[1]).mean() > 0.8
    assert data["m0"].X.shape == (374, 3 * 56 * 56)
    assert data["m0"].X.dtype == np.float32


def test_parts_have_digits_of_their_own(data):
    bounds = {"train": (0, 189), "val": (189, 206), "test": (206, 240)}  # 206 training digits, a twelfth held out
    for name, (low, high) in bounds.items():
        chosen = (data.obs["split"] == name).to_numpy()
        for m in MODALITIES:
            rows = data[m].obs["mnist_index"].to_numpy()[chosen]
            assert rows.min() >= low
            assert rows.max() < high
            # gone through in turn: none is drawn again before all have been
            assert np.bincount(rows[: high - low] - low).max() == 1
    assert data.obs["split"].value_counts().to_dict() == {"train": 330, "val": 10, "test": 34}


def test_digits_lie_in_their_quadrant_on_their_background(data):
    pictures, _ = mnist()
    for m, level in zip(MODALITIES, (10, 20, 30, 200, 240), strict=True):
        got = (to_images(data[m]) * 255).round().astype(int)
        for i in range(0, 374, 37):
            ink = np.zeros((56, 56), dtype=int)
            vertical, horizontal = data[m].obs["quadrant"].iloc[i].split()
            top, left = 28 * (vertical == "bottom"), 28 * (horizontal == "right")
            ink[top : top + 28, left : left + 28] = pictures[data[m].obs["mnist_index"].iloc[i]]
            expected = np.full((3, 56, 56), level)
            color = {"m0": 0, "m4": 2}.get(m)
            for channel in range(3):
                value = 255 - level if color is None else ink if channel == color else 0
                expected[channel] = np.where(ink > 16, value, expected[channel])
            np.testing.assert_array_equal(got[i], expected)


def test_quadrants_are_drawn_for_each_modality(data):
    quadrants = np.stack([data[m].obs["quadrant"].cat.codes for m in MODALITIES])
    for one in quadrants:
        assert np.bincount(one, minlength=4).min() > 374 / 4 - 5 * np.sqrt(374 * 3 / 16)
    assert abs((quadrants[0] == quadrants[1]).mean() - 0.25) < 0.1


def test_the_seed_decides():
    one, same, other = (small(seed=seed) for seed in (0, 0, 1))
    for m in MODALITIES:
        np.testing.assert_array_equal(one[m].X, same[m].X)
    assert one.obs.equals(same.obs)
    assert not np.array_equal(one["m0"].X, other["m0"].X)


def test_backgrounds_are_random_pieces():
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 60, 3))
    made = small(backgrounds=[ramp] * 5)
    rows = (to_images(made["m0"])[:, 2] * 255).round().min(axis=2)  # ink is red, so blue 0 there
    clear = np.where(rows > 0, rows - np.arange(32), np.nan)
    offsets = np.nanmedian(clear, axis=1)
    assert (np.nanmax(np.abs(clear - offsets[:, None]), axis=1) == 0).all()  # pieces are neither turned nor stretched
    assert len(np.unique(offsets)) > 25
    assert offsets.max() <= 168


def test_default_backgrounds_tell_the_modalities_apart():
    made = small(backgrounds=None)
    means = np.array([to_images(made[m]).mean(axis=(0, 2, 3)) for m in MODALITIES])
    distances = np.linalg.norm(means[:, None] - means[None], axis=2)
    assert distances[np.triu_indices(5, 1)].min() > 0.1
    # an inverted digit can be told from its background
    for m in ("m2", "m3"):
        assert np.abs(to_images(made[m]) - 0.5).mean() > 0.25


def write_idx(folder, pictures, labels, n_train, gz):
    for name, array in {
        "train-images-idx3-ubyte": pictures[:n_train],
        "train-labels-idx1-ubyte": labels[:n_train],
        "t10k-images-idx3-ubyte": pictures[n_train:],
        "t10k-labels-idx1-ubyte": labels[n_train:],
    }.items():
        content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        if gz:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("form", ["idx", "idx.gz", "keras", "flat"])
def test_all_forms_of_mnist_give_the_same(tmp_path, form):
    pictures, labels = mnist()
    n_train, source = 206, tmp_path
    if form.startswith("idx"):
        write_idx(tmp_path, pictures, labels, n_train, gz=form.endswith("gz"))
    else:
        source = tmp_path / "mnist.npz"
        if form == "keras":
            parts = {"x_train": pictures[:n_train], "y_train": labels[:n_train]}
            np.savez(source, **parts, x_test=pictures[n_train:], y_test=labels[n_train:])
        else:  # test digits first
            order = np.r_[n_train:240, :n_train]
            np.savez(source, X=pictures[order].reshape(240, -1), y=labels[order], is_train=order < n_train)
    expected, got = small(), small(source)
    for m in MODALITIES:
        np.testing.assert_array_equal(got[m].X, expected[m].X)
        np.testing.assert_array_equal(got[m].obs["mnist_index"], expected[m].obs["mnist_index"])


def test_missing_files_are_named_with_their_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks train-images-idx3-ubyte\.gz, .*Download them from https://"):
        small(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No file .*mnist\.npz"):
        small(tmp_path / "mnist.npz")


def test_wrong_files_are_recognised(tmp_path):
    write_idx(tmp_path, *mnist(), 206, gz=False)
    images, labels = (tmp_path / f"train-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    content = images.read_bytes()
    images.write_bytes(labels.read_bytes())
    with pytest.raises(ValueError, match="no idx file of bytes in 3 dimensions: it begins with 00000801, not 00000803"):
        small(tmp_path)
    images.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="should hold 161,504 values and holds 161,503"):
        small(tmp_path)
    images.write_bytes(content)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="no complete gzip file"):
        small(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 33}, "`size` must be even"),
        ({"size": 42}, r"\(40, 50\) pixels is smaller than the canvas of `size` 42"),
        ({"backgrounds": [np.zeros((60, 60, 3), dtype=np.uint8)]}, "must be five, one per modality, got 1"),
        ({"backgrounds": [np.zeros((60, 60))] * 5}, "must be bytes of shape"),
        ({"n_val": -1}, "`n_val` must be a whole number"),
        ({"source": (np.zeros((9, 28, 28)), np.zeros(9))}, "must have bytes"),
        ({"source": (np.zeros((9, 28, 28), np.uint8), np.zeros(8))}, "one label each"),
        ({"source": (np.zeros((9, 28, 28), np.uint8), np.zeros(9))}, "has no digits for `n_val`"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_backgrounds_may_be_files(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((40, 40), 50, dtype=np.uint8)).save(tmp_path / "grey.png")
    made = small(backgrounds=[tmp_path / "grey.png"] * 5)
    assert np.median(made["m1"].X) == np.float32(50 / 255)
