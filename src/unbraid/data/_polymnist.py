"""PolyMNIST-Quadrant: digits in a quadrant, on five backgrounds."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import interpolate

from unbraid._messages import check_whole
from unbraid.data._arrays import images, pair

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FILES = {  # what holds what, whether it is the training part, and the number of dimensions
    "train-images-idx3-ubyte": ("images", True, 3),
    "train-labels-idx1-ubyte": ("labels", True, 1),
    "t10k-images-idx3-ubyte": ("images", False, 3),
    "t10k-labels-idx1-ubyte": ("labels", False, 1),
}
_QUADRANTS = np.array(["top left", "top right", "bottom left", "bottom right"])
_INK = 16  # of 255: above it a pixel belongs to the digit
_COLOR = {0: 0, 4: 2}  # modalities whose digit is red (channel 0) and blue (channel 2); others invert the background
_CHUNK = 1024


def polymnist_quadrant(
    mnist: str | Path | tuple[np.ndarray, np.ndarray],
    *,
    n_train: int = 5_000,
    n_val: int = 500,
    n_test: int = 1_000,
    size: int = 64,
    backgrounds: Sequence[str | Path | np.ndarray] | None = None,
    seed: int = 0,
) -> MuData:
    """PolyMNIST-Quadrant of IDMVAE: five images with the same digit, each in a quadrant of its own.

    The digit is what the modalities share; quadrant, background and handwriting are specific to each. A sample has one
    label; every modality draws an MNIST image of that digit, scales it to half the canvas and puts it into one of the
    four quadrants, at random, on a random piece of the modality's background. Modality ``m0`` has it in red and ``m4``
    in blue, as bright as the ink; in the others the digit's pixels have the background's colours inverted, as in
    PolyMNIST [2]_. This follows the code of IDMVAE's authors [1]_, which also says what counts as ink (more than 16 of
    255). Their data are ``n_train=220_000, n_val=5_000, n_test=10_000``.

    Parameters
    ----------
    mnist
        MNIST: a folder with its four official files (``train-images-idx3-ubyte``, ..., gzipped or not); or an ``.npz``
        with ``x_train``, ``y_train``, ``x_test`` and ``y_test`` (that of Keras) or ``X``, ``y`` and ``is_train``; or a
        pair of all images ``(n, 28, 28)`` (bytes) and their labels, of which the last seventh are the test digits.
    n_train, n_val, n_test
        Number of samples. ``train`` uses the first eleven twelfths of MNIST's training digits, ``val`` the others
        and ``test`` the test digits; no digit image is in two of them. A part larger than its digits repeats them.
    size
        Height and width of the canvas in pixels, even.
    backgrounds
        Five files or arrays ``(height, width, 3)`` (bytes) at least as large as the canvas. The authors' are web
        pictures, which are not part of this package. By default there are others: two photographs that come with
        scikit-learn (a Chinese temple, a flower) and three patterns made here (stripes, blots, chequers). Numbers on
        them are not comparable to the paper's.
    seed
        Of everything drawn.

    Returns
    -------
    MuData with modalities ``m0`` to ``m4``, see :func:`~unbraid.data.images`. ``obs`` has ``digit`` and ``split``
    (``train``, ``val``, ``test``); every modality's ``obs`` has ``quadrant`` and ``mnist_index``, the row of its image
    (training digits first). Pixels take ``60 * size**2`` bytes per sample: 1.6 GB by default.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message says which to download, and where to put them.
    ValueError
        If MNIST, the backgrounds or the size are not as said.

    References
    ----------
    .. [1] Zhang et al. (2026), Disentanglement of variations with multimodal generative modeling, section 4.1. ICLR.
    .. [2] Sutter et al. (2021), Generalized multimodal ELBO. ICLR.
    """
    check_whole("size", size, 8)
    if size % 2:
        raise ValueError(f"`size` must be even, so that it has quadrants, got {size}.")
    parts = {"train": n_train, "val": n_val, "test": n_test}
    for name, n in parts.items():
        check_whole(f"n_{name}", n, 0)
    pictures, labels, is_train = _read_mnist(mnist)
    fields = _backgrounds(size) if backgrounds is None else [_read_background(one, size) for one in backgrounds]
    if len(fields) != 5:
        raise ValueError(f"`backgrounds` must be five, one per modality, got {len(fields)}.")

    rng = np.random.default_rng(seed)
    training, test = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    held_out = len(training) - len(training) // 12
    pools = {"train": training[:held_out], "val": training[held_out:], "test": test}
    chosen = np.concatenate([_choose(labels, pools[name], n, name, rng) for name, n in parts.items()], axis=1)
    obs = pd.DataFrame(
        {
            "digit": pd.Categorical(labels[chosen[0]].astype(str)),
            "split": pd.Categorical(np.repeat(list(parts), list(parts.values())), categories=list(parts)),
        },
        index=[f"sample_{i}" for i in range(chosen.shape[1])],
    )
    modalities = {}
    for m, (rows, field) in enumerate(zip(chosen, fields, strict=True)):
        quadrant = rng.integers(4, size=len(rows))
        canvas = np.empty((len(rows), 3, size, size), dtype=np.uint8)
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            ink = _placed(pictures[rows[part]], quadrant[part], size)
            canvas[part] = _composed(_crops(field, len(ink), size, rng), ink, _COLOR.get(m))
        table = pd.DataFrame(
            {"quadrant": pd.Categorical(_QUADRANTS[quadrant], categories=_QUADRANTS), "mnist_index": rows},
            index=obs.index,
        )
        modalities[f"m{m}"] = adata = images(canvas, obs=table)
        adata.var_names = f"m{m}_" + adata.var_names
    return pair(modalities, obs)


# ---- composition --------------------------------------------------------------------------


def _choose(labels: np.ndarray, pool: np.ndarray, n: int, part: str, rng: np.random.Generator) -> np.ndarray:
    """Rows of MNIST, shape ``(5, n)``: in a column five images of one digit, each pool gone through in turn."""
    if n and not len(pool):
        raise ValueError(f"`mnist` has no digits for `n_{part}`={n}.")
    rounds = []
    while n > 0:
        digits = labels[rng.permutation(pool)[:n]]
        rows = np.empty((5, len(digits)), dtype=np.int64)
        for digit in np.unique(digits):
            where, candidates = digits == digit, pool[labels[pool] == digit]
            for row in rows:
                row[where] = rng.permutation(candidates)[: where.sum()]
        rounds.append(rows)
        n -= len(digits)
    return np.concatenate(rounds, axis=1) if rounds else np.empty((5, 0), dtype=np.int64)


def _placed(pictures: np.ndarray, quadrant: np.ndarray, size: int) -> np.ndarray:
    """Ink from 0 to 255 on empty canvases, shape ``(n, size, size)``."""
    half = size // 2
    scaled = interpolate(torch.from_numpy(pictures[:, None].astype(np.float32)), size=(half, half), mode="bilinear")
    # rows of the canvas as (vertical half, pixel, horizontal half, pixel)
    ink = np.zeros((len(pictures), 2, half, 2, half), dtype=np.uint8)
    ink[np.arange(len(ink)), quadrant // 2, :, quadrant % 2] = scaled[:, 0].round().byte().numpy()
    return ink.reshape(-1, size, size)


def _crops(field: np.ndarray, n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random pieces of a background ``(height, width, 3)``, shape ``(n, 3, size, size)``."""
    windows = np.lib.stride_tricks.sliding_window_view(field, (size, size), axis=(0, 1))
    return windows[rng.integers(windows.shape[0], size=n), rng.integers(windows.shape[1], size=n)]


def _composed(crops: np.ndarray, ink: np.ndarray, color: int | None) -> np.ndarray:
    """Digits on their backgrounds: in one colour channel, or with the background inverted."""
    digit = 255 - crops
    if color is not None:
        digit = np.zeros_like(crops)
        digit[:, color] = ink
    return np.where((ink > _INK)[:, None], digit, crops)


# ---- backgrounds --------------------------------------------------------------------------


def _read_background(background: str | Path | np.ndarray, size: int) -> np.ndarray:
    if isinstance(background, str | Path):
        from PIL import Image

        with Image.open(background) as picture:
            background = np.asarray(picture.convert("RGB"))
    if background.dtype != np.uint8 or background.ndim != 3 or background.shape[2] != 3:
        raise ValueError(
            f"`backgrounds` must be bytes of shape (height, width, 3), got {background.dtype} {background.shape}."
        )
    if min(background.shape[:2]) < size:
        raise ValueError(f"A background of {background.shape[:2]} pixels is smaller than the canvas of `size` {size}.")
    return background


def _backgrounds(size: int) -> list[np.ndarray]:
    """Two photographs and three patterns; none of middling grey, whose inverse could not be told from it."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(20210405)
    side = max(400, size)
    y, x = np.mgrid[:side, :side]
    stripes = np.sin(2 * np.pi * (x + 0.6 * y + 12 * np.sin(y / 25)) / 22) > 0
    coarse = torch.from_numpy(rng.random((1, 1, side // 10, side // 10)))
    blots = interpolate(coarse, size=(side, side), mode="bicubic")[0, 0].numpy() > 0.5
    chequers = (x // 9 + y // 9) % 2 == 0
    patterns = [
        _two_colors(stripes, (20, 40, 110), (60, 10, 50), rng),
        _two_colors(blots, (235, 225, 150), (190, 250, 200), rng),
        _two_colors(chequers, (250, 200, 60), (225, 245, 90), rng),
    ]
    return [load_sample_image("china.jpg"), load_sample_image("flower.jpg"), *patterns]


def _two_colors(
    first: np.ndarray, color: tuple[int, ...], other: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """A pattern of two colours with a little noise."""
    pattern = np.where(first[..., None], color, other) + rng.normal(0, 10, (*first.shape, 3))
    return pattern.round().clip(0, 255).astype(np.uint8)


# ---- MNIST --------------------------------------------------------------------------------


def _read_mnist(mnist: str | Path | tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images as bytes ``(n, height, width)``, labels, and whether they are training digits."""
    if not isinstance(mnist, str | Path):
        if len(mnist) != 2:
            raise ValueError(
                f"`mnist` must be a file, a folder, or the pair (images, labels), got {len(mnist)} arrays."
            )
        pictures, labels = map(np.asarray, mnist)
        is_train = np.arange(len(labels)) < len(labels) - len(labels) // 7
    elif Path(mnist).suffix == ".npz":
        pictures, labels, is_train = _read_npz(Path(mnist))
    else:
        pictures, labels, is_train = _read_folder(Path(mnist))
    if pictures.ndim == 2 and pictures.shape[1] == 784:
        pictures = pictures.reshape(-1, 28, 28)
    if pictures.ndim != 3 or labels.shape != is_train.shape or labels.shape != (len(pictures),):
        raise ValueError(
            f"`mnist` must have images (n, 28, 28) and one label each, got {pictures.shape} and {labels.shape}."
        )
    if pictures.dtype != np.uint8:
        raise ValueError(f"`mnist` must have bytes (uint8, 0 to 255), got {pictures.dtype}.")
    return pictures, labels.astype(np.int64), is_train.astype(bool)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not path.exists():
        raise FileNotFoundError(f"No file {path}.")
    with np.load(path) as arrays:
        if {"X", "y", "is_train"} <= set(arrays):
            pictures, labels, is_train = arrays["X"], arrays["y"], arrays["is_train"].astype(bool)
            order = np.argsort(~is_train, kind="stable")
            return pictures[order], labels[order], is_train[order]
        if {"x_train", "y_train", "x_test", "y_test"} <= set(arrays):
            pictures = np.concatenate([arrays["x_train"], arrays["x_test"]])
            labels = np.concatenate([arrays["y_train"], arrays["y_test"]])
            return pictures, labels, np.arange(len(labels)) < len(arrays["y_train"])
        raise ValueError(
            f"{path} has the arrays {', '.join(arrays)}; it needs x_train, y_train, x_test and y_test, or X, y and "
            "is_train."
        )


def _read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    paths = {name: [path for path in (folder / name, folder / f"{name}.gz") if path.exists()] for name in _FILES}
    if missing := [f"{name}.gz" for name, found in paths.items() if not found]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)} of MNIST. Download them from {_MNIST_URL} and put them there."
        )
    read = {(kind, train): _read_idx(paths[name][0], ndim) for name, (kind, train, ndim) in _FILES.items()}
    pictures, labels = (np.concatenate([read[kind, True], read[kind, False]]) for kind in ("images", "labels"))
    return pictures, labels, np.arange(len(labels)) < len(read["labels", True])


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Bytes of an idx file: two zeros, 8 for bytes, the number of dimensions, big-endian sizes, values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is no complete gzip file: {error}. Download it anew from {_MNIST_URL}.") from error
    start = 4 * (ndim + 1)
    if content[:4] != bytes([0, 0, 8, ndim]) or len(content) < start:
        raise ValueError(
            f"{path} is no idx file of bytes in {ndim} dimensions: it begins with {content[:4].hex()}, not "
            f"{bytes([0, 0, 8, ndim]).hex()}. Download it anew from {_MNIST_URL}."
        )
    shape = struct.unpack(f">{ndim}I", content[4:start])
    if len(content) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(
            f"{path} should hold {np.prod(shape, dtype=np.int64):,} values and holds {len(content) - start:,}. "
            f"Download it anew from {_MNIST_URL}."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
