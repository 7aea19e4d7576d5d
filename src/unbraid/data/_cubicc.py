"""CUBICC: birds and captions, grouped into eight kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import interpolate

from unbraid._messages import check_whole
from unbraid.data._arrays import PADDING, UNKNOWN, images, pair, read_picture, text
from unbraid.data._cub import _SOURCES, _categories, _check_files, _numbers, _read_captions, _read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mudata import MuData

_TENSORS = ("images", "captions", "labels", "original_labels")
_SPLITS = {"train": "train_split", "val": "validation_split", "test": "test_split"}
_RELEASE = "CUBICC.zip, to which https://github.com/epalu/CMVAE links (README, section CUBICC)"
_SIZES = {"val": 638, "test": 659}  # of 13,131 samples
_LENGTH, _MAX_WORDS, _N_CAPTIONS = 32, 1_590, 10


def cubicc(
    path: str | Path,
    *,
    captions: str | Path | None = None,
    size: int = 64,
    categories: Mapping[str, str] | None = None,
    seed: int = 0,
) -> MuData:
    """CUB Image-Captions for Clustering of CMVAE: birds of eight kinds, each of several sub-species, with captions.

    The data of DL2's second experiment: 22 species of CUB-200-2011 [1]_ with captions [2]_, grouped by [3]_ into
    blackbird, gull, jay, oriole, tanager, tern, warbler and wren. Read from what the authors of CMVAE publish, which
    fixes species, split and vocabulary; or made anew from the original pictures and captions, *which are not the same
    data* (see Notes).

    Parameters
    ----------
    path
        Either folder ``CUBICC`` of the authors, with ``images.pt``, ``captions.pt``, ``labels.pt``,
        ``original_labels.pt``, ``train_split.npy``, ``validation_split.npy``, ``test_split.npy`` and ``cub.vocab``; or
        folder ``CUB_200_2011``, see :func:`~unbraid.data.datasets.cub_captions`.
    captions
        Of ``CUB_200_2011`` alone: folder with the captions, ``text_c10`` in ``path`` by default.
    size
        Height and width that images are scaled to, in pixels.
    categories
        Of ``CUB_200_2011`` alone: kind of every species that is to be in the data, by its name without the number,
        e.g. ``{"Hooded_Oriole": "Oriole"}``. By default the last part of the name of all 60 species that end in one of
        the eight kinds.
    seed
        Of the split that is made of ``CUB_200_2011``.

    Returns
    -------
    MuData with modalities ``image`` (:func:`~unbraid.data.images`) and ``caption`` (:func:`~unbraid.data.text`, 32
    tokens); every caption makes a sample with its image. Columns of ``obs``: ``category``, the kind; ``species``; and
    ``split`` (``train``, ``val``, ``test``). Of the authors' files the first two are the numbers that the files have.
    Made from ``CUB_200_2011`` there is also ``image``, the file. Pixels take ``12 * size**2`` bytes per sample.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says which to download, and where to put them.
    ValueError
        If a file is not what its name says, an image has fewer than ten captions, or an argument of ``CUB_200_2011`` is
        given with the authors' files.
    KeyError
        If ``categories`` names a species that is not there.

    Notes
    -----
    Published are the eight kinds, that there are 13,150 samples of 22 species, and in DL2 the sizes of the split,
    11,834, 638 and 659. The 22 are named in a picture only, and the files of the authors are the only place where
    species and split of a sample are written; their numbers are kept, as it is not said which is which kind (samples in
    no part of the split are left out). That none of the three sizes is a multiple of ten says that captions of an image
    are in different parts, or that some are missing.

    Made anew, the data have 60 species unless ``categories`` chooses. The split has the proportions of DL2 (90.1, 4.9
    and 5.0 %), and all captions of an image are in one part: then no image is known from training, so numbers are not
    comparable to the papers'. The vocabulary is made as in :func:`~unbraid.data.text`, without punctuation.

    The reader of the authors' files follows their code and was tested on files of the same format made for the test,
    not on theirs.

    References
    ----------
    .. [1] Wah et al. (2011), The Caltech-UCSD Birds-200-2011 dataset. California Institute of Technology.
    .. [2] Reed et al. (2016), Learning deep representations of fine-grained visual descriptions. CVPR.
    .. [3] Palumbo et al. (2024), Deep generative clustering with multimodal diffusion variational autoencoders. ICLR.
    """
    check_whole("size", size, 1)
    folder = Path(path)
    if not (folder / "labels.pt").exists():
        return _made(folder, captions, size, categories, np.random.default_rng(seed))
    for name, given in {"captions": captions, "categories": categories}.items():
        if given is not None:
            raise ValueError(f"`{name}` is of CUB_200_2011; {folder} holds CUBICC as published: leave it out.")
    return _published(folder, size)


# ---- the authors' files -------------------------------------------------------------------


def _published(folder: Path, size: int) -> MuData:
    files = [f"{name}.pt" for name in _TENSORS] + [f"{name}.npy" for name in _SPLITS.values()] + ["cub.vocab"]
    if missing := [name for name in files if not (folder / name).exists()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}. Download {_RELEASE}, and unpack it there.")
    tensors = {name: _read_tensor(folder / f"{name}.pt") for name in _TENSORS}
    pictures, tokens = tensors["images"], tensors["captions"]
    words = _read_words(folder / "cub.vocab")
    n = len(tensors["labels"])
    if tokens.ndim != 3 or tokens.shape[2] != len(words):
        raise ValueError(
            f"{folder / 'captions.pt'} must have one of the {len(words):,} words of cub.vocab at every place, as 0 and "
            f"1, and has shape {tuple(tokens.shape)}."
        )
    for name, one in tensors.items():
        if len(one) != n or (name.endswith("labels") and one.ndim != 1):
            raise ValueError(f"{folder / name}.pt has shape {tuple(one.shape)}; labels.pt has {n:,} samples.")

    split = np.full(n, None, dtype=object)
    for part, name in _SPLITS.items():
        rows = np.load(folder / f"{name}.npy")
        if rows.size and not (0 <= rows.min() and rows.max() < n):
            raise ValueError(f"{folder / name}.npy names samples beyond the {n:,} of labels.pt.")
        split[rows] = part
    chosen = np.flatnonzero(pd.notna(split))
    obs = pd.DataFrame(
        {
            "category": pd.Categorical(tensors["labels"].numpy()[chosen].astype(int).astype(str)),
            "species": pd.Categorical(tensors["original_labels"].numpy()[chosen].astype(int).astype(str)),
            "split": pd.Categorical(split[chosen], categories=list(_SPLITS)),
        },
        index=[f"sample_{i}" for i in chosen],
    )
    pictures = pictures[chosen]
    if pictures.ndim == 4 and pictures.shape[2:] != (size, size):
        scaled = interpolate(pictures.float(), size=(size, size), mode="bilinear", antialias=True)
        pictures = scaled.clamp(pictures.min(), pictures.max())  # rounding goes a little beyond
    # padding and the end of the text become padding, and the unknown word ours
    special = {"<pad>": 0, "<eos>": 0, "<exc>": 1}
    others = [word for word in words if word not in special]
    number = special | {word: i for i, word in enumerate(others, start=2)}
    numbers = np.array([number[word] for word in words])[tokens.argmax(2).numpy()[chosen]]
    modalities = {
        "image": images(pictures.numpy(), obs_names=obs.index),
        "caption": text(numbers, vocabulary=[PADDING, UNKNOWN, *others], length=numbers.shape[1], obs_names=obs.index),
    }
    return pair(modalities, obs)


def _read_tensor(path: Path) -> torch.Tensor:
    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # the kinds of error of a broken file are many
        raise ValueError(f"{path} is no complete file of a tensor: {error}. Download {_RELEASE} anew.") from error
    return torch.stack(list(loaded)) if isinstance(loaded, list | tuple) else torch.as_tensor(loaded)


def _read_words(path: Path) -> list[str]:
    """The words of a vocabulary in the order of their numbers."""
    try:
        words = json.loads(path.read_text(encoding="utf-8"))["i2w"]
        return [words[str(i)] for i in range(len(words))]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no vocabulary (JSON with `i2w`): {error!r}. Download {_RELEASE} anew.") from error


# ---- made anew ----------------------------------------------------------------------------


def _made(
    folder: Path,
    captions: str | Path | None,
    size: int,
    categories: Mapping[str, str] | None,
    rng: np.random.Generator,
) -> MuData:
    caption_folder = folder / "text_c10" if captions is None else Path(captions)
    try:
        _check_files(folder, caption_folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} Or give the folder CUBICC of CMVAE: download {_RELEASE}.") from error
    table = _read_table(folder / "images.txt", ["image"])
    class_names = _read_table(folder / "classes.txt", ["name"])["name"].str.replace(r"^\d+\.", "", regex=True)
    table["species"] = _read_table(folder / "image_class_labels.txt", ["class"])["class"].map(class_names)
    if table["species"].isna().any():
        raise ValueError(f"{folder}: image {table['image'][table['species'].isna()].iloc[0]} has no class.")
    table["category"] = _categories(table["species"], categories)
    table = table[table["category"].notna()].copy()
    if table.empty:
        raise ValueError(f"{folder} has no image of a species with a category: name some in `categories`.")
    table["species"] = table["species"].astype("category")
    table["split"] = _split(len(table), rng)

    pictures, texts = np.empty((len(table), 3, size, size), dtype=np.uint8), []
    caption_files = {_numbers(file): file for file in caption_folder.glob("*/*.txt")}
    for i, name in enumerate(table["image"]):
        if _numbers(Path(name)) not in caption_files:
            raise FileNotFoundError(f"{caption_folder} has no captions of {name}. Download {_SOURCES['captions']}.")
        texts += _read_captions(caption_files[_numbers(Path(name))], _N_CAPTIONS)
        pictures[i], _ = read_picture(folder / "images" / name, size)
    rows = np.repeat(np.arange(len(table)), _N_CAPTIONS)
    which = np.tile(np.arange(_N_CAPTIONS), len(table))
    obs = table.iloc[rows].set_axis([f"image_{table.index[i]}_{k}" for i, k in zip(rows, which, strict=True)])
    modalities = {
        "image": images(pictures[rows], obs_names=obs.index),
        "caption": text(texts, length=_LENGTH, max_words=_MAX_WORDS, obs_names=obs.index),
    }
    return pair(modalities, obs)


def _split(n: int, rng: np.random.Generator) -> pd.Categorical:
    """Images in the proportions of DL2."""
    order, split, start = rng.permutation(n), np.full(n, "train", dtype=object), 0
    for part, size in _SIZES.items():
        stop = start + round(n * size / 13_131)
        split[order[start:stop]], start = part, stop
    return pd.Categorical(split, categories=list(_SPLITS))
