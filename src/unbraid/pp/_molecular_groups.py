"""Groups of molecules that belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unbraid._messages import check_option, check_range
from unbraid.pp._molecules import as_series, invalid_text, read_molecules

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

GROUPINGS = ("compound", "scaffold", "cluster")


def molecular_groups(
    smiles: Sequence[str] | pd.Series,
    by: Literal["compound", "scaffold", "cluster"] = "scaffold",
    *,
    similarity: float = 0.6,
) -> pd.Series:
    """The compound, scaffold or cluster that each molecule belongs to.

    For :func:`split`, or to resample by: molecules of one group are not independent. Groups of every kind keep each
    compound together, whatever SMILES or salt it is given as (see :func:`molecules` on standardisation), and do not
    depend on the order of rows.

    Parameters
    ----------
    smiles
        One SMILES per row; rows may repeat a molecule.
    by
        - ``"compound"``: the same molecule, stereoisomers apart;
        - ``"scaffold"``: the same rings and links between them (Bemis-Murcko, [1]_), without stereochemistry. A
          compound without rings has no scaffold, and is a group of its own;
        - ``"cluster"``: similar molecules. Centres are chosen so that no two are as similar as ``similarity`` and every
          molecule is to one of them (sphere exclusion, [2]_), then each molecule goes to the most similar centre.
          Molecules near the border of two clusters may be more similar than that to each other.
    similarity
        Of clusters: Tanimoto similarity of Morgan bits (radius 2, 2,048 bits), above 0 and up to 1. Higher makes more
        and tighter clusters.

    Returns
    -------
    Labels by row, named ``by``: the InChIKey of the compound, the SMILES of the scaffold (the InChIKey of a compound
    without), or the canonical SMILES of the centre of the cluster. The index is that of ``smiles``.

    Raises
    ------
    ValueError
        If SMILES are missing or invalid, or options are wrong.

    See Also
    --------
    split : whole groups to training, validation and test.

    References
    ----------
    .. [1] Bemis, Murcko (1996), The properties of known drugs. 1. Molecular frameworks. Journal of Medicinal Chemistry
       39, 2887-2893.
    .. [2] Gobbi, Lee (2003), DISE: directed sphere exclusion. Journal of Chemical Information and Computer Sciences 43,
       317-323.

    Examples
    --------
    >>> import unbraid as ub
    >>> ub.pp.molecular_groups(["Cc1ccccc1", "Nc1ccccc1.Cl", "CCO"], by="scaffold").tolist()
    ['c1ccccc1', 'c1ccccc1', 'LFQSCWFLJHTTHZ-UHFFFAOYSA-N']
    """
    check_option("`by`", by, GROUPINGS)
    check_range("`similarity`", similarity, 0 < similarity <= 1, "above 0 and up to 1")
    given = as_series(smiles)
    read = read_molecules(given)
    if (read.problem != "").any():
        raise ValueError(f"{invalid_text(given, read.problem)} Correct them, or take these rows out first.")
    compound = read.table["compound"].to_numpy()[read.number]
    index = smiles.index if isinstance(smiles, pd.Series) else None
    if by == "compound":
        return pd.Series(compound, index=index, name=by)
    # one form of each compound decides, or tautomers that share a key might differ in scaffold
    forms = read.table.sort_values("canonical_smiles").drop_duplicates("compound").set_index("compound")
    if by == "scaffold":
        label = forms["scaffold"].where(forms["scaffold"] != "", forms.index.to_series())
    else:
        label = _clusters(forms["canonical_smiles"], similarity)
    return pd.Series(label.loc[compound].to_numpy(), index=index, name=by)


def _clusters(smiles: pd.Series, similarity: float) -> pd.Series:
    """The centre that each of some distinct molecules is most similar to, in their order."""
    from rdkit import Chem, rdBase
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
    from rdkit.DataStructs import BulkTanimotoSimilarity
    from rdkit.SimDivFilters.rdSimDivPickers import LeaderPicker

    with rdBase.BlockLogs():
        generator = GetMorganGenerator(radius=2, fpSize=2048)
        prints = [generator.GetFingerprint(Chem.MolFromSmiles(one)) for one in smiles]
    centres = np.array(LeaderPicker().LazyBitVectorPick(prints, len(prints), 1 - similarity))
    of_centres = [prints[centre] for centre in centres]
    nearest = np.arange(len(prints))
    for other in np.setdiff1d(nearest, centres):
        nearest[other] = centres[np.argmax(BulkTanimotoSimilarity(prints[other], of_centres))]
    return pd.Series(smiles.to_numpy()[nearest], index=smiles.index)
