"""How much every cell's identity owes to each modality."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from unbraid._messages import check_option, check_range, check_whole, suggest
from unbraid.metrics._lookup import embedding_of, values_of
from unbraid.metrics._rows import present_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

Method = Literal["neighbors", "wnn"]


def modality_weights(
    mdata: MuData,
    *,
    labels: ArrayLike | str | None = None,
    specific: str | Mapping[str, str] = "Z_s",
    modalities: Sequence[str] | None = None,
    method: Method = "neighbors",
    n_neighbors: int | None = None,
    smoothing: float = 1.0,
    key_added: str | None = None,
    seed: int = 0,
    inplace: bool = True,
) -> pd.DataFrame | None:
    r"""How much every cell's identity owes to each modality.

    `"neighbors"` asks in which modality's specific code a cell's neighbours have its label (the :math:`\theta` of
    IndiSeek [1]_). `"wnn"` are the weights of weighted nearest neighbours [2]_, which need no labels, computed by
    muon. :func:`unbraid.metrics.weight_rank_correlation` compares the two.

    Parameters
    ----------
    mdata
        Modalities with codes in their `obsm`.
    labels
        For `"neighbors"`: cell types, a column of `mdata.obs` (or `"rna:column"`), or `n_obs` labels.
    specific
        Key of `mdata[m].obsm`, or a mapping from modality to key. For `"wnn"` any representation, such as `"X_pca"`.
    modalities
        Two modalities or more; default all. The order decides what the log-ratio is of.
    method
        See above.
    n_neighbors
        Number of neighbours without the cell itself; default 10 for `"neighbors"`, 20 for `"wnn"`.
    smoothing
        What is added to the number of neighbours of the cell's label, for `"neighbors"`. 0 gives infinite values where
        there is none.
    key_added
        Default `"theta"`, respectively `"wnn"`. See Returns.
    seed
        Seed of muon's approximate neighbours.
    inplace
        False: leave `mdata` as it is and return the table.

    Returns
    -------
    None, or with `inplace=False` the columns as a table. Cells that lack a modality, a code or a label have NaN. Columns
    of `mdata.obs`:

    - `"neighbors"`: `theta` (two modalities) or `theta:{m}` for each of more; and `theta_share:{m}`, the share of the
      neighbours that have the cell's label, :math:`\beta_m`.
    - `"wnn"`: `wnn:{m}`, weights that sum to 1.

    `mdata.uns[key_added]` says how it was done, and for how many cells.

    Raises
    ------
    ImportError
        `"wnn"` without muon: `pip install "unbraid[baselines]"`.
    KeyError
        A modality, code or column is not there.
    ValueError
        Labels are missing for `"neighbors"`; a code is infinite, or NaN in a part of a row; there are no more cells
        than neighbours; an option is unknown or out of range.

    Notes
    -----
    With :math:`b_m` of the :math:`k` nearest neighbours (Euclidean, cells with all modalities and a label, without the
    cell itself) having the cell's label, and smoothing :math:`a`,

    .. math::

        \theta = \log \frac{b_1 + a}{b_2 + a} .

    The paper has :math:`a = 0`, which is undefined where no neighbour has the label. Of more than two modalities,
    :math:`\theta_m = \log (b_m + a) - \frac{1}{M - 1} \sum_{l \ne m} \log (b_l + a)`: the log-ratio to the geometric
    mean of the others, which for two modalities is :math:`\theta` and :math:`-\theta`. A label with few cells has few
    neighbours of its kind in any code, and values near zero.

    For `"wnn"`, every cell's code is scaled to length 1 first, as in the original method; the first call in a process
    compiles muon's distances, which takes a minute or more. Chance has no say here:
    these are descriptions of cells. Intervals and p-values come with the comparison of types.

    References
    ----------
    .. [1] IndiSeek, section 4.
    .. [2] Hao et al. (2021), Integrated analysis of multimodal single-cell data. Cell 184, 3573-3587.

    Examples
    --------
    >>> ub.tl.modality_weights(mdata, labels="cell_type")  # doctest: +SKIP
    >>> ub.tl.modality_weights(mdata, method="wnn", specific="X_pca")  # doctest: +SKIP
    >>> ub.metrics.weight_rank_correlation("theta", "wnn:rna", groups="cell_type", data=mdata)  # doctest: +SKIP
    """
    check_option("method", method, get_args(Method))
    check_range("smoothing", smoothing, smoothing >= 0, "0 or more")
    n_neighbors = {"neighbors": 10, "wnn": 20}[method] if n_neighbors is None else n_neighbors
    check_whole("n_neighbors", n_neighbors, 1)
    names = list(mdata.mod) if modalities is None else list(modalities)
    for name in names:
        if name not in mdata.mod:
            raise KeyError(f"modalities: no modality {name!r} in the MuData. {suggest(name, mdata.mod)}")
    if len(names) < 2:
        raise ValueError(f"modalities must be at least two, to be weighed against each other; there is {names}.")
    key_added = key_added or {"neighbors": "theta", "wnn": "wnn"}[method]

    codes, keys = {}, {}
    for name in names:
        keys[name] = specific if isinstance(specific, str) else specific.get(name)
        if keys[name] is None:
            raise KeyError(f"specific names no code of modality {name!r}.")
        codes[name] = embedding_of(mdata, f"{name}:{keys[name]}")
    keep = np.logical_and.reduce(
        [present_rows(code, f"specific (of modality {name!r})") for name, code in codes.items()]
    )
    if method == "neighbors":
        if labels is None:
            raise ValueError("labels are needed: the neighbours are asked whether they have the cell's own.")
        label = values_of(mdata, labels, "labels", mdata.n_obs)
        keep &= label.notna().to_numpy()
    cells = np.flatnonzero(keep)
    if len(cells) <= n_neighbors:
        raise ValueError(
            f"{len(cells)} cells have all of {names}{' and a label' if method == 'neighbors' else ''}; with "
            f"n_neighbors = {n_neighbors} more are needed."
        )
    codes = {name: code[cells] for name, code in codes.items()}
    if method == "neighbors":
        found = _theta(codes, pd.factorize(label.iloc[cells])[0], n_neighbors, smoothing, key_added)
    else:
        found = _wnn(codes, n_neighbors, seed, key_added)

    table = pd.DataFrame(index=mdata.obs_names)
    for column, values in found.items():
        spread = np.full(mdata.n_obs, np.nan)
        spread[cells] = values
        table[column] = spread
    if not inplace:
        return table
    for column in table:
        mdata.obs[column] = table[column]
    parameters = {"method": method, "modalities": names, "specific": [keys[name] for name in names]}
    parameters |= {"n_neighbors": n_neighbors, "n_obs": len(cells), "n_dropped": mdata.n_obs - len(cells)}
    mdata.uns[key_added] = parameters | ({"smoothing": smoothing} if method == "neighbors" else {"seed": seed})
    return None


def _theta(
    codes: dict[str, NDArray], label: NDArray, n_neighbors: int, smoothing: float, key: str
) -> dict[str, NDArray]:
    same = {}
    for name, code in codes.items():
        neighbors = NearestNeighbors(n_neighbors=n_neighbors).fit(code).kneighbors(return_distance=False)
        same[name] = (label[neighbors] == label[:, None]).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(np.stack(list(same.values())) + smoothing)
        theta = log - (log.sum(axis=0) - log) / (len(log) - 1)
    names = list(codes)
    found = {key: log[0] - log[1]} if len(names) == 2 else {f"{key}:{m}": t for m, t in zip(names, theta, strict=True)}
    return found | {f"{key}_share:{name}": count / n_neighbors for name, count in same.items()}


def _wnn(codes: dict[str, NDArray], n_neighbors: int, seed: int, key: str) -> dict[str, NDArray]:
    try:
        import muon
    except ImportError as error:
        raise ImportError("method='wnn' needs muon. Run: pip install 'unbraid[baselines]'") from error
    import mudata
    import scanpy as sc
    from anndata import AnnData

    names = pd.Index([f"{i}" for i in range(len(next(iter(codes.values()))))])
    mods = {}
    for name, code in codes.items():
        length = np.linalg.norm(code, axis=1, keepdims=True)
        adata = AnnData(obs=pd.DataFrame(index=names))
        adata.obsm["code"] = (code / np.where(length > 0, length, 1.0)).astype(np.float32)
        sc.pp.neighbors(adata, n_neighbors=n_neighbors + 1, use_rep="code", random_state=seed)  # counts the cell itself
        mods[name] = adata
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joint = mudata.MuData(mods)
        muon.pp.neighbors(
            joint,
            n_neighbors=n_neighbors,
            n_bandwidth_neighbors=min(20, len(names) - 1),
            n_multineighbors=min(200, len(names) - 2),
            random_state=seed,
        )
    return {f"{key}:{name}": joint.obs[f"{name}:mod_weight"].to_numpy(dtype=float) for name in codes}
