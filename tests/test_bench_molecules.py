"""``unbraid.benchmark.molecules``."""

from __future__ import annotations

import pytest
from rdkit import Chem

from unbraid.benchmark.molecules import distinct_smiles, main


@pytest.mark.parametrize("n", [1, 7, 2_000])
def test_molecules_are_real_and_different(n):
    smiles = distinct_smiles(n)
    mols = [Chem.MolFromSmiles(one) for one in smiles]
    assert len(smiles) == n
    assert None not in mols
    assert len({Chem.MolToSmiles(mol) for mol in mols}) == n
    assert all(11 <= mol.GetNumHeavyAtoms() <= 46 for mol in mols)


def test_more_than_there_are():
    with pytest.raises(ValueError, match="at most 110592"):
        distinct_smiles(200_000)


def test_the_table(capsys):
    main(["--n", "60", "--featurizers", "morgan_count", "maccs", "--groups"])
    text = capsys.readouterr().out
    assert "60 molecules" in text
    rows = {line.rsplit(maxsplit=3)[0].strip(): line.split()[-3] for line in text.splitlines()[2:]}
    assert list(rows) == ["morgan_count", "maccs", "groups by scaffold", "groups by cluster"]
    assert rows["morgan_count"] == rows["maccs"] == "60"
