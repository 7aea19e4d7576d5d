"""How long ``ub.pp.molecules`` and ``ub.pp.molecular_groups`` take.

Run it with::

    python -m unbraid.benchmark.molecules --n 100000
    python -m unbraid.benchmark.molecules --n 10000 --featurizers descriptors --groups

The molecules are different, of drug-like size (11 to 46 heavy atoms, 28 on average), and made by putting substituents
on scaffolds.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from typing import TYPE_CHECKING

import joblib
import pandas as pd

from unbraid.pp import molecular_groups, molecules

if TYPE_CHECKING:
    from collections.abc import Sequence

# three different places each, so that no two choices of substituents are one molecule
SCAFFOLDS = (
    "c1({})nc2cc({})ccc2n1{}",
    "N1({})CCN(c2ncc({})c({})n2)CC1",
    "C(=O)({})Nc1ccc({})c(O{})c1",
    "c1({})cc(NC(=O){})n({})n1",
    "O=C(N{})c1sc({})nc1{}",
    "O({})C1CC(C(=O)N{})N({})C1",
    "c1({})ccc2c(c1)c({})cc(=O)n2{}",
    "S({})(=O)(=O)N1CCC(C(=O)N{})C(O{})C1",
)
SUBSTITUENTS = (
    *("C", "CC", "C(C)C", "CCOC", "CC(F)(F)F", "CCN(C)C", "C1CC1", "C1CCCCC1", "CC1CCCO1", "CCN1CCOCC1"),
    *("c1ccccc1", "c1ccc(F)cc1", "c1ccc(Cl)cc1", "c1cccc(OC)c1", "c1ccc(C#N)cc1", "c1ccncc1", "c1cnc(C)nc1"),
    *("c1ccsc1", "c1ccc2[nH]ccc2c1", "Cc1ccccc1", "Cc1ccc(S(C)(=O)=O)cc1", "CCc1ccccc1Cl", "C[C@H](O)C", "CC(=O)NC"),
)


def distinct_smiles(n: int) -> list[str]:
    """SMILES of different molecules.

    Parameters
    ----------
    n
        How many: up to 110,592.
    """
    most = len(SCAFFOLDS) * len(SUBSTITUENTS) ** 3
    if n > most:
        raise ValueError(f"`n` must be at most {most}, got {n}.")
    choices = list(product(SCAFFOLDS, SUBSTITUENTS, SUBSTITUENTS, SUBSTITUENTS))
    # spread over all scaffolds and substituents
    step = most // n
    texts = []
    for scaffold, *groups in choices[: step * n : step]:
        # the scaffold has rings 1 and 2
        texts.append(scaffold.format(*(_renumbered(group, 4 + 2 * i) for i, group in enumerate(groups))))
    return texts


def _renumbered(group: str, first: int) -> str:
    return group.replace("1", str(first)).replace("2", str(first + 1))


def main(argv: Sequence[str] | None = None) -> None:
    """Time the calls and print a table.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="number of molecules")
    parser.add_argument("--featurizers", nargs="*", default=["morgan_count"])
    parser.add_argument("--groups", action="store_true", help="scaffolds and clusters too")
    parser.add_argument("--n-jobs", type=int, default=None, help="of `molecules`; all cores by default")
    arguments = parser.parse_args(argv)

    smiles = distinct_smiles(arguments.n)
    rows = []
    for featurizer in arguments.featurizers:
        start = time.perf_counter()
        adata = molecules(smiles, featurizer, n_jobs=arguments.n_jobs)
        rows.append([featurizer, adata.obs["compound"].nunique(), time.perf_counter() - start])
    for by in ("scaffold", "cluster") if arguments.groups else ():
        start = time.perf_counter()
        groups = molecular_groups(smiles, by)
        rows.append([f"groups by {by}", groups.nunique(), time.perf_counter() - start])
    table = pd.DataFrame(rows, columns=["what", "different", "seconds"])
    table["molecules/s"] = len(smiles) / table["seconds"]
    print(f"{len(smiles)} molecules, {arguments.n_jobs or joblib.cpu_count()} processes at most")
    print(table.round(1).to_string(index=False))


if __name__ == "__main__":
    main()
