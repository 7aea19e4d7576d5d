"""CelebA-HQ: faces, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unbraid._messages import check_whole, suggest
from unbraid.data._arrays import images, pair, read_picture, text

if TYPE_CHECKING:
    from mudata import MuData

_DIALOG = "CelebA-Dialog of https://github.com/ziqihuangg/CelebA-Dialog (folder CelebA-Dialog-combined)"
_PLACES = {  # what is needed, where it may lie, and where it comes from
    "images": (("image", "CelebA-HQ-img"), f"image.zip of {_DIALOG}, or CelebAMask-HQ"),
    "captions": (
        ("text/captions_hq.json", "captions_hq.json", "text/celeba-caption", "celeba-caption"),
        f"text/captions_hq.json of {_DIALOG}, or the text of https://github.com/IIGROUP/MM-CelebA-HQ-Dataset",
    ),
    "attributes": (
        ("CelebAMask-HQ-attribute-anno.txt", "classification_label/CelebAMask-HQ-attribute-anno.txt"),
        f"classification_label of {_DIALOG}, or CelebAMask-HQ",
    ),
    "degrees": (
        ("combined_annotation_hq.txt", "classification_label/combined_annotation_hq.txt"),
        f"classification_label of {_DIALOG}",
    ),
}


def celeba_hq(path: str | Path, *, size: int = 64, length: int = 64, max_words: int = 1_000, seed: int = 0) -> MuData:
    """Faces of CelebA-HQ with captions, gender and six degrees of a smile: 29,999 samples, as in DL2.

    Images [1]_ with the captions and the fine-grained labels of CelebA-Dialog [2]_ or the captions of
    Multi-Modal-CelebA-HQ [3]_. Either label is a task, the other then belongs to the rest of what is shared.

    Parameters
    ----------
    path
        Folder with

        - the images ``0.jpg``, ``1.jpg``, ... in ``image/`` or ``CelebA-HQ-img/``;
        - the captions: ``text/captions_hq.json`` of CelebA-Dialog, of which ``overall_caption`` is read; or where there
          is none ``text/celeba-caption/`` of Multi-Modal-CelebA-HQ, ``0.txt`` and so on, of which the first line is
          read; both also without ``text/``;
        - ``CelebAMask-HQ-attribute-anno.txt``, the 40 binary attributes, and ``combined_annotation_hq.txt``, the five
          fine-grained labels; both also in ``classification_label/``.

        This is how CelebA-Dialog (30,000 images) lies when its ``image.zip`` is unpacked.
    size
        Height and width that images are scaled to, in pixels.
    length, max_words
        Tokens of a caption and size of the vocabulary; see :func:`~unbraid.data.text`.
    seed
        Of the split.

    Returns
    -------
    MuData with modalities ``image`` (:func:`~unbraid.data.images`) and ``caption`` (:func:`~unbraid.data.text`), of the
    images that have a caption and a degree of smile. Columns of ``obs``: ``image``, the file; ``gender``, ``female`` or
    ``male``; ``smile``, ordered, from ``0`` (none) to ``5`` (very big); ``smiling``, the binary attribute; and
    ``split``: a fifth, drawn at random, is ``test``, a tenth ``val`` and the rest ``train``. Pixels take
    ``12 * size**2`` bytes per sample: 1.5 GB by default.

    Raises
    ------
    FileNotFoundError
        If files are missing; the message says which to download, and where to put them.
    ValueError
        If a file is not what its name says, or no image has all that is needed.

    Notes
    -----
    The paper does not say which captions it has. Its 20,999, 3,000 and 6,000 samples are 29,999 together: as many as
    CelebA-Dialog labels and describes (``5380.jpg`` it leaves out), split 7 to 1 to 2, and a classifier reads all six
    degrees of a smile from the paper's captions, which only CelebA-Dialog's tell. Which images are in which part is not
    published: the sizes here are the paper's, the images are not. Pictures of one person may be in several parts.

    References
    ----------
    .. [1] Karras et al. (2018), Progressive growing of GANs for improved quality, stability, and variation. ICLR. Lee
       et al. (2020), MaskGAN: towards diverse and interactive facial image manipulation. CVPR.
    .. [2] Jiang et al. (2021), Talk-to-Edit: fine-grained facial editing via dialog. ICCV.
    .. [3] Xia et al. (2021), TediGAN: text-guided diverse face image generation and manipulation. CVPR.
    """
    check_whole("size", size, 1)
    found = _find(Path(path))
    captions = _read_captions(found["captions"])
    attributes = _read_labels(found["attributes"], ["Male", "Smiling"], {-1, 1})
    degrees = _read_labels(found["degrees"], ["Smiling"], set(range(6)))["Smiling"]
    names = [name for name in attributes.index if name in captions and name in degrees.index]
    if not names:
        raise ValueError(
            f"No image has a caption in {found['captions']} and labels in {found['attributes']} and "
            f"{found['degrees']}: the first calls them like {next(iter(captions), None)!r}, the others like "
            f"{attributes.index[0]!r} and {degrees.index[0]!r}."
        )
    attributes, degrees = attributes.loc[names], degrees.loc[names]
    pictures = np.empty((len(names), 3, size, size), dtype=np.uint8)
    for i, name in enumerate(names):
        if not (found["images"] / name).exists():
            raise FileNotFoundError(f"There is no {found['images'] / name}. Download {_PLACES['images'][1]}.")
        pictures[i], _ = read_picture(found["images"] / name, size)
    obs = pd.DataFrame(
        {
            "image": names,
            "gender": pd.Categorical(np.where(attributes["Male"] == 1, "male", "female"), ["female", "male"]),
            "smile": pd.Categorical(degrees.astype(str), list("012345"), ordered=True),
            "smiling": attributes["Smiling"].to_numpy() == 1,
            "split": _split(len(names), np.random.default_rng(seed)),
        },
        index=[f"image_{Path(name).stem}" for name in names],
    )
    caption = text([captions[name] for name in names], length=length, max_words=max_words, obs_names=obs.index)
    return pair({"image": images(pictures, obs_names=obs.index), "caption": caption}, obs)


# ---- helpers ------------------------------------------------------------------------------


def _find(folder: Path) -> dict[str, Path]:
    """The first place of each file that is there; one error about all that are missing."""
    found = {what: [folder / one for one in places if (folder / one).exists()] for what, (places, _) in _PLACES.items()}
    if missing := [f"{_PLACES[what][0][0]} (from {_PLACES[what][1]})" for what, there in found.items() if not there]:
        raise FileNotFoundError(f"{folder} lacks {'; '.join(missing)}. Download and put them there.")
    return {what: there[0] for what, there in found.items()}


def _read_captions(path: Path) -> dict[str, str]:
    """A caption for each image file, by its name."""
    if path.is_dir():
        lines = {file.stem: file.read_text(encoding="utf-8").strip().splitlines() for file in path.glob("*.txt")}
        return {f"{stem}.jpg": captions[0] for stem, captions in lines.items() if captions}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {name: entry["overall_caption"] for name, entry in table.items()}
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is no complete table of captions (JSON, an `overall_caption` for every image): {error!r}. "
            "Download it anew."
        ) from error


def _read_labels(path: Path, columns: list[str], values: set[int]) -> pd.DataFrame:
    """Columns of a table of whole numbers by the name of the image file.

    A first line with the number of images alone is skipped, and the names of the columns may or may not begin with one
    of the column of files.
    """
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    if lines and len(lines[0]) == 1:
        lines = lines[1:]
    n = len(lines[1]) - 1 if len(lines) > 1 else 0
    if not n or len(lines[0]) not in (n, n + 1):
        raise ValueError(f"{path} is no table of labels: it needs the names of the columns above the rows.")
    for line in lines[1:]:
        if len(line) != n + 1:
            raise ValueError(f"{path} has {len(line) - 1} labels of {line[0]}, and {n} of {lines[1][0]}.")
    names = lines[0][-n:]
    for column in columns:
        if column not in names:
            raise ValueError(f"{path} has no column {column!r}. {suggest(column, names)}")
    table = pd.DataFrame([line[1:] for line in lines[1:]], columns=names, index=[line[0] for line in lines[1:]])
    table = table[columns]
    wrong = ~table.isin(set(map(str, values)))
    if wrong.to_numpy().any():
        name, column = wrong.stack().idxmax()
        raise ValueError(
            f"{path} has {column} {table.loc[name, column]} of {name}; it must be one of "
            f"{', '.join(map(str, sorted(values)))}."
        )
    return table.astype(int)


def _split(n: int, rng: np.random.Generator) -> pd.Categorical:
    """Seven tenths, one and two."""
    order = rng.permutation(n)
    n_val, n_test = round(n / 10), round(n / 5)
    split = np.full(n, "train", dtype=object)
    split[order[:n_val]], split[order[n_val : n_val + n_test]] = "val", "test"
    return pd.Categorical(split, categories=["train", "val", "test"])
