"""From a MuData to the cells and codes that a verdict on features takes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from unbraid._messages import check_option, suggest
from unbraid.metrics._lookup import embedding_of, values_of
from unbraid.metrics._rows import codes_of, present_rows
from unbraid.tl._feature_models import Likelihood

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mudata import MuData
    from numpy.typing import ArrayLike, NDArray

FEWEST_OBS = 50


@dataclass(frozen=True)
class Sample:
    """Cells that have the modality and all codes, in an order that does not depend on theirs."""

    x: NDArray | sparse.csr_array  # (n, features)
    likelihood: Likelihood
    codes: list[NDArray]  # shared of the others, own specific
    size: NDArray | None  # (n,) size factors of counts
    is_size_given: bool
    batch: NDArray  # (n,) codes
    groups: NDArray | None

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, rows: NDArray) -> Sample:
        take = lambda values: None if values is None else values[rows]
        return Sample(
            self.x[rows],
            self.likelihood,
            [code[rows] for code in self.codes],
            take(self.size),
            self.is_size_given,
            self.batch[rows],
            take(self.groups),
        )


def modalities_of(mdata: MuData, modalities: Sequence[str] | None) -> list[str]:
    names = list(mdata.mod) if modalities is None else list(modalities)
    for name in names:
        if name not in mdata.mod:
            raise KeyError(f"modalities: no modality {name!r} in the MuData. {suggest(name, mdata.mod)}")
    if len(names) < 2:
        raise ValueError(f"modalities must be at least two, that something can be shared; there is {names}.")
    return names


def codes_for(
    mdata: MuData, name: str, others: list[str], shared: str, specific: str | None, degree: int
) -> tuple[list[NDArray], str]:
    """Codes in the order of `mdata.obs`, NaN where a cell lacks them, and where the shared one is from."""
    if all(shared in mdata.mod[other].obsm for other in others):
        of_others = np.concatenate([embedding_of(mdata, f"{other}:{shared}") for other in others], axis=1)
        source = "of the other modalities: " + ", ".join(others)
    elif shared in mdata.obsm:
        lacking = [other for other in others if shared not in mdata.mod[other].obsm]
        warnings.warn(
            f"mdata[{lacking[0]!r}].obsm has no {shared!r}, so {name!r} is judged by the joint code mdata.obsm[{shared!r}]. "
            "It has seen the features it explains: their own noise may count as shared.",
            UserWarning,
            stacklevel=3,
        )
        of_others, source = embedding_of(mdata, shared), "joint: own noise may count as shared"
    else:
        of_others, source = embedding_of(mdata, f"{others[0]}:{shared}"), ""  # raises, in the user's words
    own = np.zeros((mdata.n_obs, 0)) if specific is None else embedding_of(mdata, f"{name}:{specific}")
    return [_polynomial(code, degree) for code in (of_others, own)], source


def _polynomial(code: NDArray, degree: int) -> NDArray:
    if degree == 1:
        return code
    centred = (code - np.nanmean(code, axis=0)) / np.maximum(np.nanstd(code, axis=0), 1e-12)
    i, j = np.triu_indices(code.shape[1])
    return np.concatenate([centred, centred[:, i] * centred[:, j]], axis=1)


def read_sample(
    mdata: MuData,
    name: str,
    codes: list[NDArray],
    layers: Mapping[str, str],
    likelihoods: Mapping[str, Likelihood],
    size_factors: Mapping[str, str],
    batch: ArrayLike | str | None,
    groups: ArrayLike | str | None,
) -> Sample:
    adata = mdata.mod[name]
    layer = layers.get(name)
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"layers: modality {name!r} has no layer {layer!r}. {suggest(layer, adata.layers)}")
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        raise ValueError(f"Modality {name!r} has no X: name the layer that holds its values in layers.")

    row = mdata.obsmap[name].ravel().astype(int) - 1
    keep = row >= 0
    for code, kind in zip(codes, ("shared", "specific"), strict=True):
        if code.shape[1]:
            keep &= present_rows(code, f"{kind} (for modality {name!r})")
    strata = {}
    for option, values in {"batch": batch, "groups": groups}.items():
        if values is None:
            continue
        column = values_of(mdata, values, option, mdata.n_obs)
        strata[option] = np.full(mdata.n_obs, -1)
        strata[option][keep] = codes_of(column[keep], option)
    cells = np.flatnonzero(keep)
    if len(cells) < FEWEST_OBS:
        raise ValueError(
            f"{len(cells)} cells have modality {name!r} and all codes; a verdict needs at least {FEWEST_OBS}. "
            "With more than two modalities, name fewer in modalities."
        )
    cells = cells[np.argsort(mdata.obs_names.to_numpy().astype(str)[cells], kind="stable")]
    x = sparse.csr_array(x)[row[cells]] if sparse.issparse(x) else np.asarray(x)[row[cells]]
    values = x.data if sparse.issparse(x) else x
    if not np.isfinite(values).all():
        raise ValueError(f"Modality {name!r} holds NaN or infinite values: impute them, or remove these cells.")
    likelihood = _likelihood(name, values, likelihoods.get(name))

    size = None
    if likelihood != "normal":
        size = np.asarray(x.sum(axis=1), dtype=float).ravel()
        if name in size_factors:
            column = values_of(adata, size_factors[name], f"size_factors[{name!r}]", adata.n_obs)
            size = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)[row[cells]]
            if bad := int((~(np.isfinite(size) & (size > 0))).sum()):
                raise ValueError(f"size_factors[{name!r}] must be positive numbers; {bad} cells have none.")
        seen = size > 0  # a cell without a single count says nothing about any feature
        x, cells, size = x[seen], cells[seen], size[seen] / size[seen].mean()
    return Sample(
        x,
        likelihood,
        [code[cells] for code in codes],
        size,
        name in size_factors,
        strata["batch"][cells] if "batch" in strata else np.zeros(len(cells), dtype=int),
        strata["groups"][cells] if "groups" in strata else None,
    )


def _likelihood(name: str, values: NDArray, given: str | None) -> Likelihood:
    is_whole = bool((values >= 0).all() and (values == np.rint(values)).all())
    if given is None:
        return ("bernoulli" if values.max(initial=0) <= 1 else "poisson") if is_whole else "normal"
    check_option(f"likelihoods[{name!r}]", given, get_args(Likelihood))
    if (given == "poisson" and (values < 0).any()) or (given == "bernoulli" and not np.isin(values, (0, 1)).all()):
        rule = "negative values" if given == "poisson" else "values other than 0 and 1"
        raise ValueError(
            f"Modality {name!r} has {rule} under the likelihood {given!r}. Name the layer with the right values in "
            f"layers, or set likelihoods={{{name!r}: 'normal'}}."
        )
    return given
