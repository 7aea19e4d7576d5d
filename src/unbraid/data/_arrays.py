"""Images and texts as modalities: flat rows in an AnnData, and back."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

ARRAY_KEY = "unbraid_array"  # in `uns`: what a row is when it is no list of features
PADDING, UNKNOWN = "<padding>", "<unknown>"  # tokens 0 and 1 of every vocabulary


def images(values: np.ndarray, *, obs: pd.DataFrame | None = None, obs_names: Sequence[str] | None = None) -> AnnData:
    """Images as a modality.

    Parameters
    ----------
    values
        Shape ``(n, channels, height, width)``, or ``(n, height, width)`` of one channel: unsigned bytes from 0 to 255,
        or floating-point numbers from 0 to 1.
    obs
        Table about the images, one row each.
    obs_names
        Names of the images, by which modalities are paired; those of ``obs`` by default, else ``0``, ``1``, ...

    Returns
    -------
    AnnData with one row per image. ``X`` holds the pixels from 0 to 1 (float32), channel by channel and row by row;
    the pixel in channel 0, row 3 and column 17 is called ``c0y3x17``. ``uns["unbraid_array"]`` notes the shape.
    Models take such values for ``"laplace"``, unless ``likelihoods`` says otherwise or all of them are 0 or 1.

    Raises
    ------
    ValueError
        If the shape or the values are not those of images, or there are not as many names as images.

    See Also
    --------
    to_images : the way back.

    Examples
    --------
    >>> import numpy as np
    >>> from mudata import MuData
    >>> import unbraid as ub
    >>> pictures = ub.data.images(np.zeros((2, 3, 8, 8), dtype=np.uint8), obs_names=["a", "b"])
    >>> captions = ub.data.text(["a small bird", "a gull"], obs_names=["a", "b"])
    >>> MuData({"image": pictures, "caption": captions}).shape
    (2, 195)
    """
    values = np.asarray(values)
    if values.ndim == 3:
        values = values[:, None]
    if values.ndim != 4 or 0 in values.shape[1:]:
        raise ValueError(
            f"Images must have shape (n, channels, height, width) or (n, height, width), got {values.shape}."
        )
    n, *shape = values.shape
    if shape[-1] in (3, 4) and shape[0] > 4:
        raise ValueError(
            f"Images must have their channels before height and width, got {values.shape}. "
            "Use `values.transpose(0, 3, 1, 2)`."
        )
    flat = values.reshape(n, -1)
    if flat.dtype == np.uint8:
        flat = np.divide(flat, 255, dtype=np.float32)
    elif flat.dtype.kind not in "fb" or not ((flat >= 0) & (flat <= 1)).all():
        raise ValueError(
            f"Images must hold unsigned bytes (uint8, 0 to 255) or floating-point numbers from 0 to 1; these are "
            f"{flat.dtype}" + (f" from {flat.min():g} to {flat.max():g}." if flat.dtype.kind in "iuf" else ".")
        )
    channels, height, width = shape
    names = [f"c{c}y{y}x{x}" for c in range(channels) for y in range(height) for x in range(width)]
    return _adata(flat, names, obs, obs_names, kind="image", shape=np.array(shape))


def to_images(values: AnnData | np.ndarray, shape: Sequence[int] | None = None) -> np.ndarray:
    """Images from flat rows.

    Parameters
    ----------
    values
        AnnData of :func:`images`, or rows such as generated ones, shape ``(n, channels * height * width)``.
    shape
        ``(channels, height, width)``; an AnnData of :func:`images` knows it.

    Returns
    -------
    Shape ``(n, channels, height, width)``, the values as they are.

    Raises
    ------
    ValueError
        If the shape is not known or does not fit.
    """
    if shape is None:
        shape = _noted(values, "image")["shape"]
    rows = _rows(values)
    if len(shape) != 3 or rows.shape[1] != np.prod(shape):
        raise ValueError(f"{rows.shape[1]} values per row are no images of `shape` {tuple(map(int, shape))}.")
    return rows.reshape(-1, *(int(size) for size in shape))


def text(
    texts: Sequence[str] | Sequence[Sequence[int]] | np.ndarray,
    *,
    vocabulary: Sequence[str] | None = None,
    max_words: int | None = None,
    length: int | None = None,
    obs: pd.DataFrame | None = None,
    obs_names: Sequence[str] | None = None,
) -> AnnData:
    """Texts as a modality: one token per column.

    Words are runs of letters and digits, in lower case; apostrophes and hyphens inside a word belong to it and other
    punctuation is left out.

    Parameters
    ----------
    texts
        Strings, or sequences of token numbers with 0 for padding and 1 for unknown words.
    vocabulary
        Words in the order of their numbers, the first two of them ``"<padding>"`` and ``"<unknown>"``: that of another
        text, ``adata.uns["unbraid_array"]["vocabulary"]``. By default the words of ``texts``, the most frequent first.
    max_words
        Largest size of a vocabulary made here, padding and unknown included; rarer words become unknown.
    length
        Number of columns: longer texts are cut off, shorter ones padded. By default that of the longest text.
    obs
        Table about the texts, one row each.
    obs_names
        Names of the texts, by which modalities are paired; those of ``obs`` by default, else ``0``, ``1``, ...

    Returns
    -------
    AnnData with one row per text and ``X`` of token numbers (float32, whole), shape ``(n, length)``.
    ``uns["unbraid_array"]`` notes length and vocabulary, and models take the values for ``"categorical"``.

    Raises
    ------
    ValueError
        If no text has a word, a token has no place in the vocabulary, the vocabulary does not begin with the two
        special tokens or names a word twice, or there are not as many names as texts.

    See Also
    --------
    to_strings : the way back.

    Examples
    --------
    >>> import unbraid as ub
    >>> captions = ub.data.text(["A bird, a red bird!", "the gull"])
    >>> captions.X.tolist()
    [[2.0, 3.0, 2.0, 5.0, 3.0], [6.0, 4.0, 0.0, 0.0, 0.0]]
    >>> ub.data.to_strings(captions)
    ['a bird a red bird', 'the gull']
    """
    texts = list(texts)
    are_strings = [isinstance(one, str) for one in texts]
    if any(are_strings) and not all(are_strings):
        raise ValueError("`texts` must be strings or sequences of token numbers, not both.")
    if vocabulary is not None:
        vocabulary = _checked_vocabulary(vocabulary)
    if any(are_strings):
        sequences = [_words(one) for one in texts]
        if vocabulary is None:
            counts = Counter(word for words in sequences for word in words)
            # by frequency, and alphabetical among equals, so that the order of the texts does not matter
            ranked = sorted(counts, key=lambda word: (-counts[word], word))
            if max_words is not None:
                ranked = ranked[: max(max_words - 2, 0)]
            vocabulary = [PADDING, UNKNOWN, *ranked]
        number = {word: i for i, word in enumerate(vocabulary)}
        sequences = [[number.get(word, 1) for word in words] for words in sequences]
    else:
        sequences = [np.asarray(one) for one in texts]
        for one in sequences:
            if one.ndim != 1 or (one.size and not ((one >= 0) & (one == np.floor(one))).all()):
                raise ValueError("Token numbers must be sequences of whole numbers of at least 0.")
        if vocabulary is None:
            largest = max((int(one.max()) for one in sequences if one.size), default=1)
            vocabulary = [PADDING, UNKNOWN, *map(str, range(2, largest + 1))]
    length = max(map(len, sequences), default=0) if length is None else length
    if length < 1:
        raise ValueError("`texts` hold no word.")
    tokens = np.zeros((len(sequences), length), dtype=np.float32)
    for row, one in zip(tokens, sequences, strict=True):
        row[: len(one)] = one[:length]
    if tokens.max(initial=0) >= len(vocabulary):
        raise ValueError(f"Token {tokens.max():g} has no place in the vocabulary of {len(vocabulary):,} words.")
    names = [f"token{i}" for i in range(length)]
    noted = {"shape": np.array([length]), "vocabulary": np.array(vocabulary, dtype=object)}
    return _adata(tokens, names, obs, obs_names, kind="text", **noted)


def to_strings(values: AnnData | np.ndarray, vocabulary: Sequence[str] | None = None) -> list[str]:
    """Texts from rows of token numbers, padding left out.

    Parameters
    ----------
    values
        AnnData of :func:`text`, or rows such as generated ones, shape ``(n, length)``.
    vocabulary
        Words in the order of their numbers; an AnnData of :func:`text` knows it.

    Raises
    ------
    ValueError
        If the vocabulary is not known, or a token has no place in it.
    """
    words = np.asarray(_noted(values, "text")["vocabulary"] if vocabulary is None else vocabulary, dtype=object)
    tokens = _rows(values)
    if not ((tokens >= 0) & (tokens < len(words)) & (tokens == np.floor(tokens))).all():
        raise ValueError(f"Tokens must be whole numbers from 0 to {len(words) - 1}, the last of the vocabulary.")
    return [" ".join(words[row[row > 0].astype(int)]) for row in tokens]


def pair(mod: Mapping[str, AnnData], obs: pd.DataFrame) -> mudata.MuData:
    """MuData of modalities, with columns about every row; cells may lack some of the modalities.

    Parameters
    ----------
    mod
        The modalities.
    obs
        Columns about every row, indexed by its name; its order is kept.
    """
    # mudata 0.3 pulls the modalities' columns up, with a warning, unless told not to; 0.4 has no such option
    quiet = mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()
    with quiet:
        mdata = mudata.MuData(dict(mod), obs=pd.DataFrame(index=obs.index))
        for column in obs:
            mdata.obs[column] = obs[column].reindex(mdata.obs_names)
    return mdata


def read_picture(path: Path, size: int) -> tuple[np.ndarray, int]:
    """An image file as bytes ``(3, size, size)``, and its width in pixels.

    Parameters
    ----------
    path
        The file.
    size
        Height and width to scale it to.

    Raises
    ------
    ValueError
        If it is no complete image.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            width = picture.width
            scaled = picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except OSError as error:
        raise ValueError(f"{path} is no complete image: {error}. Unpack it anew.") from error
    return np.asarray(scaled).transpose(2, 0, 1), width


# ---- helpers ------------------------------------------------------------------------------


def _adata(
    x: np.ndarray, names: list[str], obs: pd.DataFrame | None, obs_names: Sequence[str] | None, **noted: Any
) -> AnnData:
    """AnnData of flat rows with what they are in ``uns``."""
    for argument, given in {"obs": obs, "obs_names": obs_names}.items():
        if given is not None and len(given) != len(x):
            raise ValueError(f"`{argument}` must have one row for each of the {len(x)} samples, got {len(given)}.")
    index = obs.index if obs_names is None and obs is not None else range(len(x)) if obs_names is None else obs_names
    table = (
        pd.DataFrame(index=pd.Index(index).astype(str)) if obs is None else obs.set_axis(pd.Index(index).astype(str))
    )
    return AnnData(x.astype(np.float32, copy=False), obs=table, var=pd.DataFrame(index=names), uns={ARRAY_KEY: noted})


def _rows(values: AnnData | np.ndarray) -> np.ndarray:
    rows = np.asarray(values.X if isinstance(values, AnnData) else values)
    if rows.ndim != 2:
        raise ValueError(f"`values` must have one flat row per sample, got shape {rows.shape}.")
    return rows


def _noted(values: AnnData | np.ndarray, kind: str) -> Mapping[str, Any]:
    noted = values.uns.get(ARRAY_KEY, {}) if isinstance(values, AnnData) else {}
    if noted.get("kind") != kind:
        needed = {"image": "`shape`", "text": "`vocabulary`"}[kind]
        raise ValueError(
            f"Only an AnnData of `unbraid.data.{kind.replace('image', 'images')}` knows its {needed}: give {needed}."
        )
    return noted


def _words(one: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", one.lower())


def _checked_vocabulary(vocabulary: Sequence[str]) -> list[str]:
    vocabulary = [str(word) for word in vocabulary]
    if vocabulary[:2] != [PADDING, UNKNOWN]:
        raise ValueError(
            f"`vocabulary` must begin with {PADDING!r} and {UNKNOWN!r}, tokens 0 and 1: put them in front."
        )
    if len(set(vocabulary)) < len(vocabulary):
        raise ValueError(f"`vocabulary` names {Counter(vocabulary).most_common(1)[0][0]!r} more than once.")
    return vocabulary
