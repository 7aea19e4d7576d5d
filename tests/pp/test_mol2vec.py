"""``ub.pp.Mol2vec``."""

from __future__ import annotations

import collections
import gzip
import os
import pickle
import sys
import types

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

import unbraid as ub
from unbraid.pp import Mol2vec, _molecules

CH3, OH = "2246728737", "864662311"  # Morgan identifiers of the atoms of methanol
ACETAMIDE = "CC(N)=O"


def sentence(smiles, radius):
    """Identifiers atom by atom, of radius 0 first: the alternating sentence of Mol2vec."""
    output = rdFingerprintGenerator.AdditionalOutput()
    output.AllocateBitInfoMap()
    mol = Chem.MolFromSmiles(smiles)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius)
    generator.GetSparseCountFingerprint(mol, additionalOutput=output)
    at = {place: str(word) for word, places in output.GetBitInfoMap().items() for place in places}
    return [at[i, r] for i in range(mol.GetNumAtoms()) for r in range(radius + 1) if (i, r) in at]


def vectors_of(words, n=5):
    return np.random.default_rng(0).normal(size=(len(words), n)).astype(np.float32)


def write_text(path, words, vectors):
    lines = [f"{len(words)} {vectors.shape[1]}"]
    lines += [" ".join([word, *map(repr, map(float, row))]) for word, row in zip(words, vectors, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def embed(mol2vec, *smiles):
    return ub.pp.molecules(smiles, mol2vec, progress_bar=False)


# ---- molecules -----------------------------------------------------------------------------------------


def test_methanol_by_hand(tmp_path):
    # its words: the carbon, the bond seen from one end, the oxygen; each once
    words = sentence("CO", 1)
    assert len(words) == 3
    assert {CH3, OH} < set(words)
    bond = next(word for word in words if word not in (CH3, OH))
    path = write_text(tmp_path / "model.txt", [CH3, OH, bond, "UNK"], np.diag([1.0, 10, 100, 1000]))
    assert embed(Mol2vec(path), "CO").X.tolist() == [[1, 10, 100, 0]]
    assert embed(Mol2vec(path, radius=0), "CO").X.tolist() == [[1, 10, 0, 0]]
    # two methyls are counted twice, what the model does not know is UNK
    ethane = embed(Mol2vec(path), "CC").X[0]
    assert ethane[:3].tolist() == [2, 0, 0]
    assert ethane[3] == 1000 * (len(sentence("CC", 1)) - 2)


def test_a_sum_over_the_sentence(tmp_path):
    for radius in (0, 1, 2):
        words = sentence(ACETAMIDE, radius)
        known = sorted(set(words))[1:]  # one of them the model does not know, and it has no UNK
        vectors = vectors_of(known)
        adata = embed(Mol2vec(write_text(tmp_path / "model.txt", known, vectors), radius=radius), ACETAMIDE, "[Xe]")
        expected = sum(vectors[known.index(word)] for word in words if word in known)
        np.testing.assert_allclose(adata.X[0], expected, rtol=1e-5)
        assert not adata.X[1].any()
    assert adata.X.dtype == np.float32
    assert adata.var_names.tolist() == [f"mol2vec_{i}" for i in range(5)]
    assert adata.uns["molecules"]["featurizer"] == "mol2vec"


def test_one_molecule_at_a_time(tmp_path):
    mol2vec = Mol2vec(write_text(tmp_path / "model.txt", [CH3, "UNK"], vectors_of([CH3, "UNK"])))
    row = mol2vec(Chem.MolFromSmiles(ACETAMIDE))
    assert row.shape == (5,)
    np.testing.assert_array_equal(row, embed(mol2vec, ACETAMIDE).X[0])


def test_with_a_reference_and_processes(tmp_path, monkeypatch):
    mol2vec = Mol2vec(write_text(tmp_path / "model.txt", [CH3, "UNK"], vectors_of([CH3, "UNK"])))
    smiles = ["C" * n for n in range(1, 30)]
    reference = embed(mol2vec, *smiles)
    monkeypatch.setattr(_molecules, "CHUNK", 5)
    monkeypatch.setattr(_molecules, "WORTH_PROCESSES", 0.0)
    again = ub.pp.molecules(smiles, mol2vec, reference=reference, n_jobs=2, progress_bar=False)
    np.testing.assert_array_equal(again.X, reference.X)


# ---- files ---------------------------------------------------------------------------------------------

WORDS = [CH3, OH, "UNK", "10565946"]


@pytest.fixture
def gensim(monkeypatch):
    """Classes with the names of gensim's, which are there while a model is written and gone when it is read."""
    places = {
        "Word2Vec": "gensim.models.word2vec",
        "KeyedVectors": "gensim.models.keyedvectors",
        "Vocab": "gensim.models.keyedvectors",
    }
    classes = {name: type(name, (), {"__module__": module}) for name, module in places.items()}
    for name, module in places.items():
        there = sys.modules.get(module) or types.ModuleType(module)
        monkeypatch.setitem(sys.modules, module, there)
        monkeypatch.setattr(there, name, classes[name], raising=False)
    monkeypatch.setitem(sys.modules, "gensim", types.ModuleType("gensim"))

    def dump(model, path, protocol):
        path.write_bytes(pickle.dumps(model, protocol=protocol))
        for module in {"gensim", *places.values()}:
            monkeypatch.delitem(sys.modules, module)
        return path

    return types.SimpleNamespace(**classes, dump=dump)


def thing(cls, **attributes):
    self = cls()
    self.__dict__.update(attributes)
    return self


def training_state():
    """What a model of gensim keeps besides its vectors."""
    return {
        "random": np.random.RandomState(1),
        "hashfxn": hash,
        "raw_vocab": collections.defaultdict(int, {"a": 1}),
        "alpha": 0.025,
        "running_training_loss": np.float32(3),
        "callbacks": (),
        "cum_table": np.arange(5, dtype=np.uint32),
        "comment": None,
    }


def check_read(path, vectors):
    mol2vec = Mol2vec(path)
    assert mol2vec.vocabulary == {word: row for row, word in enumerate(WORDS)}
    np.testing.assert_array_equal(mol2vec.vectors, vectors)
    assert mol2vec.vectors.dtype == np.float32


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("name", ["vectors", "syn0"])
def test_gensim_3(gensim, tmp_path, name, aside):
    vectors = vectors_of(WORDS)
    vocab = {word: thing(gensim.Vocab, index=i, count=9, sample_int=1) for i, word in enumerate(WORDS)}
    keyed = thing(gensim.KeyedVectors, vocab=vocab, index2word=list(WORDS), vector_size=5)
    model = thing(gensim.Word2Vec, wv=keyed, syn1neg=vectors + 1, **training_state())
    if aside:  # as gensim does with arrays above 10 MB
        vars(keyed)["__numpys"] = [name]
        vars(model)["__recursive_saveloads"] = ["wv"]
        np.save(tmp_path / f"model_300dim.pkl.wv.{name}.npy", vectors)
    else:
        vars(keyed)[name] = vectors
    check_read(gensim.dump(model, tmp_path / "model_300dim.pkl", protocol=2), vectors)


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("whole", [True, False])
def test_gensim_4(gensim, tmp_path, whole, aside):
    vectors = vectors_of(WORDS)
    keyed = thing(gensim.KeyedVectors, index_to_key=list(WORDS), key_to_index={w: i for i, w in enumerate(WORDS)})
    if aside:
        vars(keyed)["__numpys"] = ["vectors"]
        np.save(tmp_path / f"model.pkl{'.wv' if whole else ''}.vectors.npy", vectors)
    else:
        keyed.vectors = vectors
    model = thing(gensim.Word2Vec, wv=keyed, **training_state()) if whole else keyed
    check_read(gensim.dump(model, tmp_path / "model.pkl", protocol=4), vectors)


def test_a_missing_part_is_named(gensim, tmp_path):
    keyed = thing(gensim.KeyedVectors, index_to_key=list(WORDS), **{"__numpys": ["vectors"]})
    path = gensim.dump(thing(gensim.Word2Vec, wv=keyed), tmp_path / "model.pkl", protocol=4)
    with pytest.raises(FileNotFoundError, match=r"model\.pkl\.wv\.vectors\.npy, which is not there. Put it beside"):
        Mol2vec(path)


def test_text_and_gzip(tmp_path):
    vectors = vectors_of(WORDS)
    path = write_text(tmp_path / "model.vec", WORDS, vectors)
    check_read(path, vectors)
    (tmp_path / "model.vec.gz").write_bytes(gzip.compress(path.read_bytes()))
    check_read(str(tmp_path / "model.vec.gz"), vectors)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.mkdir, "mkdir"), (eval, "builtins.eval"), (getattr, "builtins.getattr"), (np.load, "numpy.load")],
)
def test_code_in_a_file_is_not_run(gensim, tmp_path, function, name, protocol):
    made = tmp_path / "made"
    argument = f"__import__('os').mkdir({str(made)!r})" if function is eval else str(made)
    keyed = thing(gensim.KeyedVectors, index_to_key=list(WORDS), vectors=vectors_of(WORDS))
    model = thing(gensim.Word2Vec, wv=keyed, extra=Evil(function, *[argument] * (2 if function is getattr else 1)))
    path = gensim.dump(model, tmp_path / "model.pkl", protocol)
    with pytest.raises(ValueError, match=rf"{name}`, which no word2vec model needs. It is not read"):
        Mol2vec(path)
    assert not made.exists()


def test_gensims_own_functions_do_nothing(gensim, tmp_path):
    keyed = thing(gensim.KeyedVectors, index_to_key=list(WORDS), vectors=vectors_of(WORDS), extra=Evil(gensim.Vocab, 7))
    check_read(gensim.dump(keyed, tmp_path / "model.pkl", protocol=4), keyed.vectors)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": 1}), "no word2vec model of gensim"),
        (pickle.dumps([1, 2])[:-4], "cannot be read as a model that gensim saved"),
        (b"hello world\n", "neither a model that gensim saved nor one in the text format"),
        (b"", "neither a model"),
        (b"3 2\na 1 2\nb 1\nc 1 2\n", "neither a model"),
        (b"3 2\na 1 2\nb 1 2\n", "neither a model"),
        (b"1 2\na 1 x\n", "neither a model"),
        (b"0 0\n", "has 0 words"),
        (b"2 2\na 1 2\na 1 2\n", "'a' twice"),
        (b"1 2\na 1 nan\n", "not finite"),
        (b"1 3\na" + np.arange(3, dtype=np.float32).tobytes(), r"`save_word2vec_format\(path, binary=False\)`"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Mol2vec(tmp_path / "model")


def test_other_mistakes_are_named(gensim, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Mol2vec(tmp_path / "nowhere.pkl")
    with pytest.raises(ValueError, match="radius"):
        Mol2vec(write_text(tmp_path / "model.txt", WORDS, vectors_of(WORDS)), radius=-1)
    keyed = thing(gensim.KeyedVectors, index_to_key=WORDS[:2], vectors=vectors_of(WORDS))
    with pytest.raises(ValueError, match=r"has 2 words and vectors of shape \(4, 5\)"):
        Mol2vec(gensim.dump(keyed, tmp_path / "model.pkl", protocol=4))
