"""Caltech-UCSD Birds: photographs and what people say of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unbraid._messages import check_whole, suggest
from unbraid.data._arrays import images, pair, read_picture, text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mudata import MuData

_CATEGORIES = ("Blackbird", "Gull", "Jay", "Oriole", "Tanager", "Tern", "Warbler", "Wren")
_HEAD = frozenset({"beak", "crown", "forehead", "left eye", "right eye"})
_BODY = frozenset({"back", "belly", "breast", "left leg", "left wing", "right leg", "right wing", "tail"})
_TOO_CLOSE = 0.05  # of the picture's width
_SOURCES = {
    "images": "CUB_200_2011.tgz of https://www.vision.caltech.edu/datasets/cub_200_2011/",
    "captions": "the captions of Reed et al. (2016), cvpr2016_cub.tar.gz of https://github.com/reedscot/cvpr2016",
}


def cub_captions(
    path: str | Path,
    *,
    captions: str | Path | None = None,
    size: int = 64,
    n_captions: int = 10,
    length: int = 32,
    max_words: int = 1_590,
    categories: Mapping[str, str] | None = None,
    seed: int = 0,
) -> MuData:
    """Birds of CUB-200-2011 with captions: 11,788 images of 200 species, as in IDMVAE.

    Images [1]_ and captions [2]_ in the preparation of [3]_. Colours of the bird are in picture and caption alike; where its
    head points is in the picture alone.

    Parameters
    ----------
    path
        Folder ``CUB_200_2011`` with ``images/``, ``images.txt``, ``classes.txt``, ``image_class_labels.txt``,
        ``train_test_split.txt`` and ``parts/``.
    captions
        Folder with one ``.txt`` per image, one caption a line, in the same subfolders and with the same numbers as the
        images; by default ``text_c10`` in ``path``.
    size
        Height and width that images are scaled to, in pixels.
    n_captions
        Captions of an image that are read, at most 10; each makes a sample with the same image.
    length, max_words
        Tokens of a caption and size of the vocabulary; see :func:`~unbraid.data.text`. Those of IDMVAE are the
        defaults, whose tokens include punctuation, so its vocabulary is not word for word the same.
    categories
        Category of every species that has one, by its name without the number, e.g. ``{"Hooded_Oriole": "Oriole"}``.
        By default the last part of the name if it is one of the eight of IDMVAE: blackbird, gull, jay, oriole,
        tanager, tern, warbler, wren. That makes 60 species; the papers take 22 of them, which they name in a picture
        only.
    seed
        Of the split.

    Returns
    -------
    MuData with modalities ``image`` (:func:`~unbraid.data.images`) and ``caption`` (:func:`~unbraid.data.text`).
    Columns of ``obs``: ``image``, the file; ``species``; ``category``, missing for other species; ``direction``,
    ``left`` or ``right``; ``split``, that of IDMVAE: of the images with a category a tenth are ``val`` and a tenth
    ``test``, all captions of an image together, and the rest is ``train``; and ``official_split``, ``train`` or
    ``test``. Pixels take ``12 * size**2`` bytes per sample: 5.8 GB of all captions by default.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says which to download, and where to put them.
    ValueError
        If a file is not what its name says, or an image has fewer captions than are to be read.
    KeyError
        If ``categories`` names a species that is not there.

    Notes
    -----
    The direction is found from the places of the bird's parts (IDMVAE, appendix C.1): ``left`` if the visible parts of
    the head lie, on average, to the left of the visible parts of the body. The paper shows the two groups in a picture
    and does not say when they are too close. Here the head is beak, crown, forehead and eyes, the body back, belly,
    breast, legs, wings and tail (nape and throat lie between them), and images without a visible part of either, or
    with less than a twentieth of their width between them, have no direction. The paper had the directions of its
    validation and test images checked by people.

    References
    ----------
    .. [1] Wah et al. (2011), The Caltech-UCSD Birds-200-2011 dataset. California Institute of Technology.
    .. [2] Reed et al. (2016), Learning deep representations of fine-grained visual descriptions. CVPR.
    .. [3] Zhang et al. (2026), Disentanglement of variations with multimodal generative modeling. ICLR.
    """
    check_whole("size", size, 1)
    check_whole("n_captions", n_captions, 1)
    folder = Path(path)
    caption_folder = folder / "text_c10" if captions is None else Path(captions)
    _check_files(folder, caption_folder)
    table = _read_table(folder / "images.txt", ["image"])
    class_names = _read_table(folder / "classes.txt", ["name"])["name"].str.replace(r"^\d+\.", "", regex=True)
    table["species"] = _read_table(folder / "image_class_labels.txt", ["class"])["class"].map(class_names)
    if table["species"].isna().any():
        raise ValueError(f"{folder}: image {table['image'][table['species'].isna()].iloc[0]} has no class.")
    obs = pd.DataFrame({"image": table["image"], "species": table["species"].astype("category")})
    obs["category"] = _categories(table["species"], categories)
    is_train = _read_table(folder / "train_test_split.txt", ["train"])["train"].reindex(table.index) == "1"

    pictures = np.empty((len(table), 3, size, size), dtype=np.uint8)
    widths = np.empty(len(table))
    caption_files, texts = {_numbers(file): file for file in caption_folder.glob("*/*.txt")}, []
    for i, name in enumerate(table["image"]):
        if _numbers(Path(name)) not in caption_files:
            raise FileNotFoundError(f"{caption_folder} has no captions of {name}. Download {_SOURCES['captions']}.")
        texts += _read_captions(caption_files[_numbers(Path(name))], n_captions)
        pictures[i], widths[i] = read_picture(folder / "images" / name, size)

    obs["direction"] = _directions(folder / "parts", pd.Series(widths, index=table.index))
    obs["split"] = _split(obs["category"].notna().to_numpy(), np.random.default_rng(seed))
    obs["official_split"] = pd.Categorical(np.where(is_train, "train", "test"), categories=["train", "test"])
    rows = np.repeat(np.arange(len(table)), n_captions)
    which = np.tile(np.arange(n_captions), len(table))
    obs = obs.iloc[rows].set_axis([f"image_{table.index[i]}_{k}" for i, k in zip(rows, which, strict=True)])
    modalities = {
        "image": images(pictures[rows], obs_names=obs.index),
        "caption": text(texts, length=length, max_words=max_words, obs_names=obs.index),
    }
    return pair(modalities, obs)


# ---- helpers ------------------------------------------------------------------------------


def _check_files(folder: Path, captions: Path) -> None:
    names = ["images", "images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"]
    names += ["parts/parts.txt", "parts/part_locs.txt"]
    if missing := [name for name in names if not (folder / name).exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}. Download {_SOURCES['images']}, unpack it, and give the folder "
            "CUB_200_2011."
        )
    if not captions.is_dir():
        raise FileNotFoundError(
            f"There is no folder {captions}. Download {_SOURCES['captions']}, and put the folder text_c10 there or "
            "name it in `captions`."
        )


def _read_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """Lines of a number, the index, and as many words as there are columns; the last may hold spaces."""
    lines = [line.strip().split(maxsplit=len(columns)) for line in path.read_text().splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        if len(line) != len(columns) + 1:
            raise ValueError(f"Line {number} of {path} does not hold {len(columns) + 1} values.")
    return pd.DataFrame([line[1:] for line in lines], columns=columns, index=[line[0] for line in lines])


def _numbers(path: Path) -> tuple[str, ...]:
    """Those of species and image, ``018`` and ``0046_18``, as captions may spell a species' name otherwise."""
    return path.parent.name.split(".")[0], *path.stem.split("_")[-2:]


def _read_captions(path: Path, n: int) -> list[str]:
    found = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if len(found) < n:
        raise ValueError(f"{path} has {len(found)} captions; `n_captions` is {n}.")
    return found[:n]


def _categories(species: pd.Series, categories: Mapping[str, str] | None) -> pd.Categorical:
    known = sorted(species.unique())
    if categories is None:
        last = {name: name.rsplit("_", 1)[-1] for name in known}
        categories = {name: word for name, word in last.items() if word in _CATEGORIES}
    for name in categories:
        if name not in known:
            raise KeyError(f"`categories` names {name!r}, which is no species. {suggest(name, known)}")
    return pd.Categorical(species.map(categories))


def _directions(folder: Path, widths: pd.Series) -> pd.Categorical:
    """Where the head lies beside the body, of the images that ``widths`` is of."""
    parts = _read_table(folder / "parts.txt", ["part"])["part"]
    places = _read_table(folder / "part_locs.txt", ["part", "x", "y", "visible"])
    places = places[places["visible"] == "1"]
    names = places["part"].map(parts)
    x = places["x"].astype(float)
    head, body = (x[names.isin(group)].groupby(level=0).mean().reindex(widths.index) for group in (_HEAD, _BODY))
    offset = ((head - body) / widths).to_numpy()
    direction = np.where(offset < 0, "left", "right").astype(object)
    direction[~(np.abs(offset) >= _TOO_CLOSE)] = None  # too close, or not a number
    return pd.Categorical(direction, categories=["left", "right"])


def _split(has_category: np.ndarray, rng: np.random.Generator) -> pd.Categorical:
    order = rng.permutation(np.flatnonzero(has_category))
    tenth = len(order) // 10
    split = np.full(len(has_category), "train", dtype=object)
    split[order[:tenth]], split[order[tenth : 2 * tenth]] = "val", "test"
    return pd.Categorical(split, categories=["train", "val", "test"])
