"""Mol2vec: molecules as the sum of learned vectors of their substructures."""

from __future__ import annotations

import codecs
import collections
import gzip
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unbraid._messages import check_whole
from unbraid.pp._molecular_features import word_sums

if TYPE_CHECKING:
    from typing import Any, BinaryIO

    from numpy.typing import NDArray
    from rdkit.Chem import Mol


class Mol2vec:
    """Featurizer of :func:`molecules` that reads a model of Mol2vec.

    Each atom's Morgan environments of radius 0 to ``radius`` are words, and a molecule is the sum of the vectors of its
    words [1]_. A word that the model does not know takes the vector of ``"UNK"``, if there is one, or counts nothing.

    Parameters
    ----------
    path
        A word2vec model: a file that gensim (1 to 4) saved, such as ``model_300dim.pkl`` of the authors, beside which
        its ``.npy`` files must lie if it has any; or the text format of word2vec (first line: number of words and of
        dimensions). Either may be gzipped. gensim is not needed, and no code of the file is run.
    radius
        Largest radius of environments, in bonds: what the model was trained with. That of ``model_300dim.pkl`` is 1.

    Attributes
    ----------
    vocabulary
        Row of ``vectors`` by word.
    vectors
        Shape ``(n_words, n_dimensions)``, float32.
    radius
        As given.

    Raises
    ------
    FileNotFoundError
        If the file, or one that belongs to it, is not there.
    ValueError
        If the file is no such model, or contains anything but a model.

    Notes
    -----
    The model's authors trained it with :math:`r = 1` on 20 million molecules without stereochemistry. It is no part of
    this package: see https://github.com/samoturk/mol2vec.

    References
    ----------
    .. [1] Jaeger, Fulle, Turk (2018), Mol2vec: unsupervised machine learning approach with chemical intuition. Journal
       of Chemical Information and Modeling 58, 27-35.

    Examples
    --------
    >>> import unbraid as ub
    >>> adata = ub.pp.molecules(smiles, ub.pp.Mol2vec("model_300dim.pkl"))  # doctest: +SKIP
    """

    def __init__(self, path: str | Path, radius: int = 1) -> None:
        check_whole("radius", radius, 0)
        self.radius = int(radius)
        words, vectors = _read(Path(path))
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if self.vectors.ndim != 2 or len(words) != len(self.vectors) or not self.vectors.size:
            raise ValueError(f"{path} has {len(words)} words and vectors of shape {self.vectors.shape}.")
        if not np.isfinite(self.vectors).all():
            raise ValueError(f"{path} has vectors that are not finite.")
        self.vocabulary = {}
        for row, word in enumerate(words):
            if self.vocabulary.setdefault(str(word), row) != row:
                raise ValueError(f"{path} has the word {word!r} twice.")

    def __call__(self, mol: Mol) -> NDArray[np.float32]:
        """The vector of a molecule, shape ``(n_dimensions,)``.

        Parameters
        ----------
        mol
            Molecule.
        """
        return word_sums([mol], **self.options)[0]

    @property
    def options(self) -> dict[str, Any]:
        """What the features of molecules depend on."""
        return {"vocabulary": self.vocabulary, "vectors": self.vectors, "radius": self.radius}


# ---- files --------------------------------------------------------------------------------


def _read(path: Path) -> tuple[list[str], NDArray]:
    """Words and vectors of a model."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if is_gzip else path.open("rb") as file:
        is_pickle = file.peek(1)[:1] == b"\x80"
        return _read_pickle(file, path) if is_pickle else _read_text(file, path)


def _read_text(file: BinaryIO, path: Path) -> tuple[list[str], NDArray]:
    try:
        n_words, n_dimensions = map(int, file.readline().split())
        words, vectors = [], np.empty((n_words, n_dimensions), dtype=np.float32)
        for row in range(n_words):
            word, *numbers = file.readline().split()
            words.append(word.decode())
            vectors[row : row + 1] = np.array(numbers, dtype=np.float32).reshape(1, n_dimensions)
    except ValueError as error:
        raise ValueError(
            f"{path} is neither a model that gensim saved nor one in the text format of word2vec, whose first line has "
            "the number of words and of dimensions, and each other one a word and its numbers. Binary vectors can be "
            "saved as text by gensim: `save_word2vec_format(path, binary=False)`."
        ) from error
    return words, vectors


def _read_pickle(file: BinaryIO, path: Path) -> tuple[list[str], NDArray]:
    try:
        model = _ModelUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a model that gensim saved: {error}") from error
    # gensim 1 and later keep words and vectors in `wv`; they can also be saved alone
    has_part = isinstance(model, _Inert) and isinstance(vars(model).get("wv"), _Inert)
    keyed = vars(model.wv if has_part else model) if isinstance(model, _Inert) else {}
    words = keyed.get("index_to_key") or keyed.get("index2word")  # gensim 4, gensim 1 to 3
    names = [name for name in ("vectors", "syn0") if name in keyed or name in keyed.get("__numpys", [])]
    if not words or not names:
        raise ValueError(f"{path} is no word2vec model of gensim: it has no words and vectors.")
    vectors = keyed.get(names[0])
    if vectors is None:  # large arrays are files of their own
        beside = path.with_name(".".join([path.name, *(["wv"] if has_part else []), names[0], "npy"]))
        if not beside.exists():
            raise FileNotFoundError(f"{path} has its vectors in {beside}, which is not there. Put it beside the model.")
        vectors = np.load(beside, allow_pickle=False)
    return list(words), vectors


class _Inert:
    """Stands for any class or function of gensim: keeps its attributes, and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _to_bytes(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in old pickles."""
    return codecs.latin_1_encode(text)[0]


class _ModelUnpickler(pickle.Unpickler):
    """Reads arrays, plain values and empty shells of gensim's classes; imports nothing and refuses all else."""

    # how NumPy pickles arrays and numbers, under the names of NumPy 1 and 2
    _numpy = {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float32().__reduce__()[0]}
    _allowed = {
        **{f"numpy.core.multiarray.{name}": function for name, function in _numpy.items()},
        **{f"numpy._core.multiarray.{name}": function for name, function in _numpy.items()},
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        "collections.defaultdict": collections.defaultdict,
        "collections.OrderedDict": collections.OrderedDict,
        **{f"builtins.{kind.__name__}": kind for kind in (int, float, str, list, tuple, dict, set, frozenset)},
        "builtins.long": int,
        "builtins.unicode": str,
        "_codecs.encode": _to_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("__builtin__", "builtins")  # up to protocol 2, names are those of Python 2
        if f"{module}.{name}" in self._allowed:
            return self._allowed[f"{module}.{name}"]
        # random numbers and the hash are for training on
        if (
            module.split(".")[0] == "gensim"
            or module.startswith("numpy.random")
            or (module, name) == ("builtins", "hash")
        ):
            return type(name, (_Inert,), {})
        raise ValueError(
            f"The file refers to `{module}.{name}`, which no word2vec model needs. It is not read, since reading it "
            "might run code that came with it."
        )
