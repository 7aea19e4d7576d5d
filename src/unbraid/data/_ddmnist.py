"""DDMNISTMM: two digits side by side, on three backgrounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import interpolate

from unbraid._messages import check_whole
from unbraid.data._arrays import images, pair
from unbraid.data._polymnist import _CHUNK, _backgrounds, _composed, _crops, _read_background, _read_mnist

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mudata import MuData

_SIDES = ("left", "right")


def ddmnist(
    mnist: str | Path | tuple[np.ndarray, np.ndarray],
    *,
    n_train: int = 5_000,
    n_val: int = 500,
    n_test: int = 1_000,
    size: int = 56,
    backgrounds: Sequence[str | Path | np.ndarray] | None = None,
    seed: int = 0,
) -> MuData:
    """DDMNISTMM of DL2: three images with the same two digits, side by side.

    The labels of the two digits are all that the modalities share; the left one is the task, the right one the rest.
    A sample has two labels from 0 to 9, each equally likely and independent of the other. Every modality draws an MNIST
    image of either label, scales it to half the canvas and puts it into its half of a random piece of the modality's
    background, whose colours are inverted where the digit is [1]_. The paper's data are ``n_train=60_000,
    n_val=5_000, n_test=5_000``.

    Parameters
    ----------
    mnist
        MNIST: a folder with its four official files (``train-images-idx3-ubyte``, ..., gzipped or not); or an ``.npz``
        with ``x_train``, ``y_train``, ``x_test`` and ``y_test`` (that of Keras) or ``X``, ``y`` and ``is_train``; or a
        pair of all images ``(n, 28, 28)`` (bytes) and their labels, of which the last seventh are the test digits.
    n_train, n_val, n_test
        Number of samples. ``train`` uses the first eleven twelfths of MNIST's training digits, ``val`` the others
        and ``test`` the test digits; no digit image is in two of them. Images are drawn with replacement.
    size
        Height and width of the canvas in pixels, even. At the paper's 56 the digits are as large as in MNIST.
    backgrounds
        Three files or arrays ``(height, width, 3)`` (bytes) at least as large as the canvas. The authors' are web
        pictures, which are not part of this package. By default there are three patterns made here (stripes, blots,
        chequers), none of middling grey, on which an inverted digit could not be seen. Numbers on them are not
        comparable to the paper's.
    seed
        Of everything drawn.

    Returns
    -------
    MuData with modalities ``m0``, ``m1`` and ``m2``, see :func:`~unbraid.data.images`. ``obs`` has ``left`` and
    ``right``, the labels, and ``split`` (``train``, ``val``, ``test``); every modality's ``obs`` has
    ``left_mnist_index`` and ``right_mnist_index``, the rows of its images (training digits first). Pixels take
    ``36 * size**2`` bytes per sample: 0.7 GB by default, 7.9 GB for the paper's sizes.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message says which to download, and where to put them.
    ValueError
        If MNIST, the backgrounds or the size are not as said, or a part of MNIST lacks a digit.

    Notes
    -----
    The paper's algorithm 1 draws the two labels *inside* the loop over modalities. Taken literally, modalities would
    have labels of their own and share nothing at all, against the paper's text, which says that the labels are shared:
    here they are drawn once per sample, and images and pieces of background once per modality.

    The paper does not say how high in the canvas the digits stand, nor what counts as digit. Here they stand in the
    middle, and a pixel belongs to the digit where its ink is above 16 of 255, as in
    :func:`~unbraid.data.datasets.polymnist_quadrant`.

    References
    ----------
    .. [1] Dual-level disentanglement (DL2): task-adaptive disentanglement for resolving the task-generation dilemma,
       appendix G.1, algorithm 1.
    """
    check_whole("size", size, 8)
    if size % 2:
        raise ValueError(f"`size` must be even, so that it has halves, got {size}.")
    parts = {"train": n_train, "val": n_val, "test": n_test}
    for name, n in parts.items():
        check_whole(f"n_{name}", n, 0)
    pictures, labels, is_train = _read_mnist(mnist)
    if backgrounds is None:
        fields = _backgrounds(size)[2:]  # the patterns
    else:
        fields = [_read_background(one, size) for one in backgrounds]
    if len(fields) != 3:
        raise ValueError(f"`backgrounds` must be three, one per modality, got {len(fields)}.")

    rng = np.random.default_rng(seed)
    training, test = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    held_out = len(training) - len(training) // 12
    pools = {"train": training[:held_out], "val": training[held_out:], "test": test}
    digits = rng.integers(10, size=(sum(parts.values()), 2))
    split = np.repeat(list(parts), list(parts.values()))
    obs = pd.DataFrame(
        {side: pd.Categorical.from_codes(digits[:, i], categories=list("0123456789")) for i, side in enumerate(_SIDES)},
        index=[f"sample_{i}" for i in range(len(digits))],
    )
    obs["split"] = pd.Categorical(split, categories=list(parts))
    modalities = {}
    for m, field in enumerate(fields):
        rows = np.empty_like(digits)
        for name, pool in pools.items():
            rows[split == name] = _drawn(labels, pool, digits[split == name], name, rng)
        canvas = np.empty((len(rows), 3, size, size), dtype=np.uint8)
        for start in range(0, len(rows), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            ink = _side_by_side(pictures[rows[chunk]], size)
            canvas[chunk] = _composed(_crops(field, len(ink), size, rng), ink, None)
        table = pd.DataFrame({f"{side}_mnist_index": rows[:, i] for i, side in enumerate(_SIDES)}, index=obs.index)
        modalities[f"m{m}"] = adata = images(canvas, obs=table)
        adata.var_names = f"m{m}_" + adata.var_names
    return pair(modalities, obs)


def _drawn(labels: np.ndarray, pool: np.ndarray, digits: np.ndarray, part: str, rng: np.random.Generator) -> np.ndarray:
    """Rows of MNIST with the given labels, from the pool of a part, with replacement; the shape of ``digits``."""
    rows = np.empty_like(digits)
    for digit in np.unique(digits):
        candidates = pool[labels[pool] == digit]
        if not len(candidates):
            raise ValueError(f"`mnist` has no {digit} for `n_{part}`={len(digits)}: give it images of every digit.")
        where = digits == digit
        rows[where] = rng.choice(candidates, size=where.sum())
    return rows


def _side_by_side(pictures: np.ndarray, size: int) -> np.ndarray:
    """Ink of two pictures a sample, ``(n, 2, height, width)``, on empty canvases ``(n, size, size)``."""
    half, top = size // 2, (size - size // 2) // 2
    scaled = interpolate(torch.from_numpy(pictures.astype(np.float32)), size=(half, half), mode="bilinear")
    ink = np.zeros((len(pictures), size, size), dtype=np.uint8)
    ink[:, top : top + half] = np.concatenate(list(scaled.round().byte().numpy().swapaxes(0, 1)), axis=2)
    return ink
