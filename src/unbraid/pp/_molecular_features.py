"""What a molecule is, and numbers that describe it.

Worker processes run this file alone: it must need nothing else of this package, whose import costs seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from numpy.typing import ArrayLike, NDArray
    from rdkit.Chem import Mol

FINGERPRINTS = ("morgan", "morgan_count", "feature_morgan", "feature_morgan_count", "maccs")
FEATURIZERS = (*FINGERPRINTS, "descriptors")
IDENTITY = ("canonical_smiles", "compound", "scaffold", "problem")

# Metals that make salts of organic acids; any other metal is a part of the molecule that it is in.
_SALT_METALS = "Li,Na,K,Rb,Cs,Mg,Ca,Sr,Ba,Zn,Al,Ag"
_OTHER_METALS = (*range(21, 30), 31, *range(39, 47), *range(48, 51), *range(57, 85), *range(89, 104))


def read_chunk(
    smiles: Sequence[str], *, standardize: bool, features: str | None, options: dict[str, Any]
) -> tuple[list[tuple[str, str, str, str]], sparse.csr_matrix | NDArray | None]:
    """Identities and features of some molecules.

    Parameters
    ----------
    smiles
        SMILES, none of them empty.
    standardize
        Whether to take the standardised parent, see :func:`parent_of`.
    features
        One of ``FEATURES``, or None.
    options
        Of the features.

    Returns
    -------
    For each SMILES the values of ``IDENTITY``, of which ``problem`` is empty where the molecule could be read; and the
    features of those that could, one row each, None if there are none.
    """
    from rdkit import rdBase

    with rdBase.BlockLogs():
        parent = parent_of() if standardize else None
        read = [_read(one, parent) for one in smiles]
        mols = [mol for mol, _ in read if mol is not None]
        values = FEATURES[features](mols, **options) if mols and features else None
    return [identity for _, identity in read], values


def _read(smiles: str, parent: Callable[[Mol], Mol] | None) -> tuple[Mol | None, tuple[str, str, str, str]]:
    from rdkit import Chem
    from rdkit.Chem.Scaffolds.MurckoScaffold import GetScaffoldForMol

    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        return None, ("", "", "", _problem(smiles))
    try:
        canonical = Chem.MolToSmiles(mol if parent is None else parent(mol))
        # anew from the canonical form: some descriptors depend on the order of atoms
        mol = Chem.MolFromSmiles(canonical)
        if mol is None:
            return None, ("", "", "", f"its standard form {canonical} is no molecule")
        has_dative = "->" in canonical or "<-" in canonical
        key = Chem.MolToInchiKey(_without_dative_bonds(mol) if has_dative else mol) or canonical
        scaffold = Chem.MolToSmiles(GetScaffoldForMol(mol), isomericSmiles=False)
    except (ValueError, RuntimeError) as error:
        return None, ("", "", "", f"RDKit cannot standardise it ({str(error).strip().splitlines()[0]})")
    return mol, (canonical, key, scaffold, "")


def _without_dative_bonds(mol: Mol) -> Mol:
    """For InChI, which knows none, and then gives one key to all ways of writing a complex."""
    from rdkit import Chem

    plain = Chem.RWMol(mol)
    for donor, acceptor in mol.GetSubstructMatches(Chem.MolFromSmarts("*->*")):
        plain.RemoveBond(donor, acceptor)
    return plain


def _problem(smiles: str) -> str:
    from rdkit import Chem

    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    problems = [] if mol is None else [problem.Message() for problem in Chem.DetectChemistryProblems(mol)]
    return f"no possible molecule ({problems[0]})" if problems else "no SMILES"


def parent_of() -> Callable[[Mol], Mol]:
    """The function that takes a molecule to its standardised parent.

    Covalently written salts are taken apart, functional groups are drawn in one way, the largest organic fragment is
    kept and its charges are neutralised. A molecule without carbon, or with a metal that makes more than salts, keeps
    its parts and charges: the largest fragment of cisplatin would be ammonia.
    """
    from rdkit import Chem
    from rdkit.Chem.MolStandardize import rdMolStandardize

    disconnector = rdMolStandardize.MetalDisconnector()
    disconnector.SetMetalNof(Chem.MolFromSmarts(f"[{_SALT_METALS}]~[#7,#8,F]"))
    disconnector.SetMetalNon(Chem.MolFromSmarts(f"[{_SALT_METALS}]~[#16,Cl,Br,I]"))
    normalizer, reionizer = rdMolStandardize.Normalizer(), rdMolStandardize.Reionizer()
    choice = rdMolStandardize.CleanupParameters()
    choice.preferOrganic = True
    choice.largestFragmentChooserCountHeavyAtomsOnly = True  # with hydrogens, lysine is larger than aspirin
    largest = rdMolStandardize.LargestFragmentChooser(choice)
    # by force: or an inner salt and its hydrochloride (betaine) would be two compounds
    uncharger = rdMolStandardize.Uncharger(canonicalOrder=True, force=True)

    carbon = Chem.MolFromSmarts("[#6]")
    other_metal = Chem.MolFromSmarts("[" + ",".join(f"#{number}" for number in _OTHER_METALS) + "]")

    def parent(mol: Mol) -> Mol:
        disconnector.DisconnectInPlace(mol)
        normalizer.normalizeInPlace(mol)
        reionizer.reionizeInPlace(mol)
        if mol.HasSubstructMatch(carbon) and not mol.HasSubstructMatch(other_metal):
            largest.chooseInPlace(mol)
            uncharger.unchargeInPlace(mol)
        return mol

    return parent


# ---- features: molecules in, a matrix out -------------------------------------------------


def fingerprints(mols: Sequence[Mol], *, kind: str, n_features: int, radius: int) -> sparse.csr_matrix:
    """Fingerprints of molecules.

    Parameters
    ----------
    mols
        Molecules.
    kind
        One of ``FINGERPRINTS``.
    n_features
        Bits that Morgan environments are folded to.
    radius
        Of Morgan environments, in bonds.

    Returns
    -------
    Bits or counts, shape ``(len(mols), n_features)``, float32.
    """
    from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors

    if kind == "maccs":
        rows = [dict.fromkeys(rdMolDescriptors.GetMACCSKeysFingerprint(mol).GetOnBits(), 1) for mol in mols]
    else:
        options = {"radius": radius, "fpSize": n_features}
        if kind.startswith("feature"):
            options["atomInvariantsGenerator"] = rdFingerprintGenerator.GetMorganFeatureAtomInvGen()
        generator = rdFingerprintGenerator.GetMorganGenerator(**options)
        if kind.endswith("count"):
            rows = [generator.GetCountFingerprint(mol).GetNonzeroElements() for mol in mols]
        else:
            rows = [dict.fromkeys(generator.GetFingerprint(mol).GetOnBits(), 1) for mol in mols]
    starts = np.cumsum([0, *map(len, rows)])
    columns = np.fromiter((column for row in rows for column in row), np.int32, starts[-1])
    counts = np.fromiter((count for row in rows for count in row.values()), np.float32, starts[-1])
    matrix = sparse.csr_matrix((counts, columns, starts), shape=(len(rows), n_features))
    matrix.sort_indices()
    return matrix


def descriptors(mols: Sequence[Mol], *, names: Sequence[str]) -> NDArray[np.float64]:
    """RDKit's descriptors as they are, shape ``(len(mols), len(names))``, NaN where one is not defined.

    Parameters
    ----------
    mols
        Molecules.
    names
        Names of descriptors.
    """
    from rdkit.Chem import Descriptors

    values = np.empty((len(mols), len(names)))
    for i, mol in enumerate(mols):
        row = Descriptors.CalcMolDescriptors(mol, missingVal=np.nan)
        values[i] = [row[name] for name in names]
    return values


def word_sums(
    mols: Sequence[Mol], *, vocabulary: dict[str, int], vectors: NDArray[np.float32], radius: int
) -> NDArray[np.float32]:
    """Sums of the vectors of substructures (:class:`Mol2vec`), shape ``(len(mols), n_dimensions)``.

    Parameters
    ----------
    mols
        Molecules.
    vocabulary
        Row of ``vectors`` by word.
    vectors
        Shape ``(n_words, n_dimensions)``.
    radius
        Of the environments of atoms that are words.
    """
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    generator = GetMorganGenerator(radius=radius)
    unknown = vocabulary.get("UNK", -1)
    sums = np.zeros((len(mols), vectors.shape[1]), dtype=np.float32)
    for i, mol in enumerate(mols):
        # how often each word is in the sentence of a molecule; a sum does not need their order
        counts = generator.GetSparseCountFingerprint(mol).GetNonzeroElements()
        rows = np.array([vocabulary.get(str(word), unknown) for word in counts], dtype=np.int64)
        known = rows >= 0
        weights = np.fromiter(counts.values(), dtype=np.float64, count=len(counts))
        sums[i] = weights[known] @ vectors[rows[known]]
    return sums


def own_features(mols: Sequence[Mol], *, function: Callable[[Mol], ArrayLike]) -> NDArray[np.float32]:
    """Values of the user's function, shape ``(len(mols), n)``.

    Parameters
    ----------
    mols
        Molecules.
    function
        Of one molecule, to n numbers.
    """
    from rdkit import Chem

    rows = []
    for mol in mols:
        try:
            row = np.asarray(function(mol), dtype=np.float32)
        except Exception as error:
            error.add_note(f"This was in `featurizer`, of {Chem.MolToSmiles(mol)}.")
            raise
        if row.ndim != 1 or not len(row) or (rows and row.shape != rows[0].shape) or not np.isfinite(row).all():
            what = f"shape {row.shape}" if np.isfinite(row).all() else "numbers that are not finite"
            raise ValueError(
                f"`featurizer` must give a row of finite numbers, as many for every molecule; it gave {what} for "
                f"{Chem.MolToSmiles(mol)}" + (f" after {rows[0].shape}." if rows else ".")
            )
        rows.append(row)
    return np.stack(rows)


FEATURES = {
    "fingerprints": fingerprints,
    "descriptors": descriptors,
    "word_sums": word_sums,
    "own_features": own_features,
}
