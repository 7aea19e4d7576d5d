"""What a scorecard is made of: codes, data, strata and units of a sample of observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV

from unbraid._messages import suggest
from unbraid.metrics._lookup import embedding_of, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData
    from numpy.typing import NDArray

N_COMPONENTS = 30  # principal components that stand for a modality's data
LEAST_OBS = 100
N_FEATURES = 2_000  # most variable features whose variance is accounted for


@dataclass(frozen=True)
class Modality:
    """One modality of the sampled observations; rows of those that lack it are NaN."""

    name: str
    present: NDArray  # (n,)
    shared: NDArray | None  # (n, d)
    shared_key: str
    specific: NDArray | None  # (n, d)
    specific_key: str
    values: NDArray  # (n, n_features) on the scale of the accounts: log-normalised counts, or standardised values
    reproducible: (
        NDArray | None
    )  # (n_features,) variance that is not noise, from two halves of the counts; None without
    components: NDArray  # (n, n_components)
    nuisance: dict[str, NDArray]  # log depth, mitochondrial share


@dataclass(frozen=True)
class CardInput:
    """The sampled observations."""

    names: pd.Index
    modalities: dict[str, Modality]
    joint: NDArray | None  # (n, d) the shared code of the observation
    joint_key: str
    has_views: bool  # shared codes of modalities are predictions of the joint code
    fold: NDArray  # (n,)
    batch: NDArray | None  # (n,) codes
    labels: NDArray | None
    units: NDArray | None  # of the bootstrap: groups
    columns: dict[str, pd.Series]  # batch, labels, group as given
    n_given: int
    notes: list[str]

    def strata(self, *names: str) -> NDArray | None:
        """Codes of the crossed columns."""
        given = [getattr(self, name) for name in names if getattr(self, name) is not None]
        return np.unique(np.stack(given, axis=1), axis=0, return_inverse=True)[1].ravel() if given else None


def read(
    mdata: MuData,
    shared: str | Mapping[str, str],
    specific: str | Mapping[str, str] | None,
    *,
    modalities: Sequence[str] | None,
    layers: Mapping[str, str] | None,
    labels: str | None,
    batch: str | None,
    group: str | None,
    split_key: str | None,
    max_obs: int | None,
    n_splits: int,
    seed: int,
) -> CardInput:
    """Check what was given and draw the sample."""
    names = list(mdata.mod) if modalities is None else list(modalities)
    for name in names:
        if name not in mdata.mod:
            raise KeyError(f"modalities: no modality {name!r}. {suggest(name, mdata.mod)}")
    if len(names) < 2:
        raise ValueError(f"A scorecard compares modalities and needs two; there is {', '.join(names) or 'none'}.")
    for argument, given in (("shared", shared), ("specific", specific), ("layers", layers)):
        for name in given if isinstance(given, Mapping) else ():
            if name not in names:
                raise KeyError(f"{argument}: no modality {name!r} on this card. {suggest(name, names)}")
    n = mdata.n_obs
    rng = np.random.default_rng(seed)
    columns = {
        argument: values_of(mdata, column, argument, n)
        for argument, column in (("batch", batch), ("labels", labels), ("group", group))
        if column is not None
    }
    for argument in ("batch", "group"):
        if argument in columns and columns[argument].isna().any():
            raise ValueError(
                f"{argument}: {int(columns[argument].isna().sum())} observations have none; give them one."
            )

    present = np.stack([np.asarray(mdata.obsmap[name]).ravel().astype(int) > 0 for name in names], axis=1)
    rows = np.flatnonzero(present.sum(1) >= 2)
    notes = []
    if split_key is not None:
        part = values_of(mdata, split_key, "split_key", n).astype(str).to_numpy()
        rows = rows[part[rows] == "test"]
        if len(rows) == 0:
            raise ValueError(f"split_key: no observation with two modalities is 'test' in {split_key!r}.")
    else:
        notes.append(
            "The observations may be those that the model was trained on: what it memorised of them counts as shared. "
            "Give split_key to judge held-out observations alone."
        )
    if group is None:
        notes.append(
            "Intervals are over observations, not over independent units: cells of one donor are not independent, and "
            "the intervals are too narrow for statements about other donors. Give group."
        )
    if max_obs is not None and len(rows) > max_obs:
        rows = np.sort(rng.choice(rows, max_obs, replace=False))
    if len(rows) < LEAST_OBS:
        raise ValueError(
            f"A scorecard needs at least {LEAST_OBS} observations with two modalities; there are {len(rows)}."
        )
    columns = {key: column.iloc[rows].reset_index(drop=True) for key, column in columns.items()}
    codes = {key: _codes(column) for key, column in columns.items()}
    fold = _folds(codes.get("group"), len(rows), n_splits, rng)

    read_modalities = {
        name: _modality(mdata, name, rows, shared, specific, (layers or {}).get(name), rng) for name in names
    }
    joint_key = shared if isinstance(shared, str) and shared in mdata.obsm else ""
    joint = _complete(embedding_of(mdata, joint_key)[rows], joint_key) if joint_key else None
    has_views = False
    missing = [name for name, modality in read_modalities.items() if modality.shared is None]
    if missing and joint is None:
        raise KeyError(
            f"shared: no {shared!r} in mdata.obsm, nor in obsm of modality {missing[0]!r}. "
            f"{suggest(str(shared), [*mdata.obsm, *mdata.mod[missing[0]].obsm])}"
        )
    if missing:
        has_views = True
        notes.append(
            "The shared code belongs to the observation and has no version per modality: its versions are held-out "
            "predictions of it from each modality alone (ridge regression on principal components)."
        )
        read_modalities = {name: _with_view(m, joint, joint_key, fold) for name, m in read_modalities.items()}
    return CardInput(
        names=mdata.obs_names[rows],
        modalities=read_modalities,
        joint=joint,
        joint_key=joint_key,
        has_views=has_views,
        fold=fold,
        batch=codes.get("batch"),
        labels=codes.get("labels"),
        units=codes.get("group"),
        columns=columns,
        n_given=n,
        notes=notes,
    )


def _codes(column: pd.Series) -> NDArray:
    """0 to n - 1; missing values are a class of their own."""
    return np.unique(column.astype(object).where(column.notna(), "missing").astype(str), return_inverse=True)[1]


def _folds(groups: NDArray | None, n: int, n_splits: int, rng: np.random.Generator) -> NDArray:
    if groups is None:
        return rng.permutation(np.arange(n) % n_splits)
    n_groups = groups.max() + 1
    if n_groups < n_splits:
        raise ValueError(f"group: {n_groups} groups cannot fill n_splits = {n_splits} folds.")
    sizes, fold_sizes, fold = np.bincount(groups), np.zeros(n_splits), np.empty(n_groups, dtype=int)
    for g in np.argsort(-sizes, kind="stable"):  # the largest group first, into the emptiest fold
        fold[g] = fold_sizes.argmin()
        fold_sizes[fold[g]] += sizes[g]
    return fold[groups]


def _modality(
    mdata: MuData,
    name: str,
    rows: NDArray,
    shared: str | Mapping[str, str],
    specific: str | Mapping[str, str] | None,
    layer: str | None,
    rng: np.random.Generator,
) -> Modality:
    adata = mdata.mod[name]
    position = np.asarray(mdata.obsmap[name]).ravel().astype(int)[rows] - 1

    def code(given: str | Mapping[str, str] | None, argument: str) -> tuple[NDArray | None, str]:
        if given is None or (isinstance(given, Mapping) and name not in given):
            return None, ""
        if isinstance(given, str):
            if given not in adata.obsm:
                if argument == "specific":
                    raise KeyError(
                        f"specific: no {given!r} in obsm of modality {name!r}. {suggest(given, adata.obsm)} "
                        "Pass a mapping from modality to key, or None if the embedding has no specific part."
                    )
                return None, ""
            key = f"{name}:{given}"
        else:
            key = given[name] if ":" in given[name] or given[name] in mdata.obsm else f"{name}:{given[name]}"
        values = embedding_of(mdata, key)[rows]
        values[position < 0] = np.nan
        absent = np.isnan(values).all(axis=1)  # also of observations that a model was told to leave out
        _complete(values[~absent], key)
        return values, key

    shared_code, shared_key = code(shared, "shared")
    specific_code, specific_key = code(specific, "specific")
    present = position >= 0
    for values in (shared_code, specific_code):
        if values is not None:
            present = present & ~np.isnan(values).any(axis=1)
    if present.sum() < LEAST_OBS:
        raise ValueError(f"Modality {name!r} has codes of {int(present.sum())} observations; a card needs {LEAST_OBS}.")
    raw = _raw(adata, layer, name)[position[present]]
    values, reproducible, nuisance = _account_scale(raw, adata.var_names, name, rng)
    n_components = min(N_COMPONENTS, values.shape[1], len(values) - 1)
    components = PCA(n_components, svd_solver="covariance_eigh").fit_transform(values) if n_components else values
    return Modality(
        name=name,
        present=present,
        shared=shared_code,
        shared_key=shared_key,
        specific=specific_code,
        specific_key=specific_key,
        values=_spread(values, present),
        reproducible=reproducible,
        components=_spread(components, present),
        nuisance={key: _spread(column[:, None], present)[:, 0] for key, column in nuisance.items()},
    )


def _raw(adata: AnnData, layer: str | None, name: str) -> NDArray | sparse.csr_array:
    if layer is None or layer == "X":
        values = adata.X
        if values is None:
            raise ValueError(f"Modality {name!r} has no X: name a layer for it, layers={{{name!r}: ...}}.")
    elif layer.startswith("obsm:"):
        if layer[5:] not in adata.obsm:
            raise KeyError(f"layers: no {layer[5:]!r} in obsm of {name!r}. {suggest(layer[5:], adata.obsm)}")
        values = adata.obsm[layer[5:]]
    elif layer in adata.layers:
        values = adata.layers[layer]
    else:
        raise KeyError(f"layers: no layer {layer!r} in modality {name!r}. {suggest(layer, adata.layers)}")
    return sparse.csr_array(values) if sparse.issparse(values) else np.asarray(values)


def is_count(adata: AnnData, layer: str | None, name: str) -> bool:
    """Whether the data of a modality are counts."""
    values = _raw(adata, layer, name)
    return _are_counts(values.data if sparse.issparse(values) else values)


def _are_counts(numbers: NDArray) -> bool:
    return numbers.size > 0 and numbers.min() >= 0 and bool((numbers == np.round(numbers)).all())


def _account_scale(
    raw: NDArray | sparse.csr_array, features: pd.Index, name: str, rng: np.random.Generator
) -> tuple[NDArray, NDArray | None, dict[str, NDArray]]:
    """Values as their variance is accounted for, their variance that is not noise, and nuisances."""
    numbers = raw.data if sparse.issparse(raw) else raw
    if not np.isfinite(numbers).all():
        raise ValueError(f"Modality {name!r} has values that are missing or infinite: fill or drop these features.")
    if not _are_counts(numbers):
        dense = raw.toarray() if sparse.issparse(raw) else raw
        dense = dense[:, np.argsort(-dense.var(0), kind="stable")[:N_FEATURES]]
        dense = dense[:, dense.std(0) > 0].astype(np.float64)
        return (dense - dense.mean(0)) / dense.std(0), None, {}
    counts = sparse.csr_array(raw).astype(np.float64)
    depth = counts.sum(axis=1)
    nuisance = {"depth": np.log1p(depth)} if counts.max() > 1 or np.ptp(depth) > 0 else {}
    mitochondrial = np.array([str(feature).lower().startswith("mt-") for feature in features])
    if len(features) == counts.shape[1] and mitochondrial.any():
        nuisance["mitochondrial share"] = counts[:, mitochondrial].sum(axis=1) / np.maximum(depth, 1)
    target = np.median(depth[depth > 0]) if (depth > 0).any() else 1.0

    def normalised(part: sparse.csr_array) -> sparse.csr_array:
        scaled = part.multiply((target / np.maximum(part.sum(axis=1), 1))[:, None]).tocsr()
        scaled.data = np.log1p(scaled.data)
        return scaled

    scaled = normalised(counts)
    mean = np.asarray(scaled.mean(axis=0)).ravel()
    variance = np.asarray(scaled.multiply(scaled).mean(axis=0)).ravel() - mean**2
    chosen = np.argsort(-variance, kind="stable")[:N_FEATURES]
    chosen = chosen[variance[chosen] > 1e-12]
    half = counts.copy()
    half.data = rng.binomial(counts.data.astype(np.int64), 0.5).astype(np.float64)
    one, two = (normalised(part)[:, chosen].toarray() for part in (half, sparse.csr_array(counts - half)))
    correlation = ((one - one.mean(0)) * (two - two.mean(0))).mean(0) / np.maximum(one.std(0) * two.std(0), 1e-12)
    correlation = np.clip(correlation, 0, 1)
    values = scaled[:, chosen].toarray()
    # Spearman-Brown: the whole is less noisy than its halves
    return values - values.mean(0), values.var(0) * 2 * correlation / (1 + correlation), nuisance


def _with_view(modality: Modality, joint: NDArray, joint_key: str, fold: NDArray) -> Modality:
    """The joint code as far as this modality alone predicts it."""
    view = np.full_like(joint, np.nan)
    here = modality.present
    for k in np.unique(fold):
        train, test = here & (fold != k), here & (fold == k)
        ridge = RidgeCV(alphas=train.sum() * np.logspace(-4, 1, 6))
        scale = modality.components[train].std(0)
        view[test] = ridge.fit(modality.components[train] / scale, joint[train]).predict(
            modality.components[test] / scale
        )
    return Modality(**{**vars(modality), "shared": view, "shared_key": f"{joint_key} from {modality.name}"})


def _spread(values: NDArray, present: NDArray) -> NDArray:
    spread = np.full((len(present), values.shape[1]), np.nan)
    spread[present] = values
    return spread


def _complete(values: NDArray, key: str) -> NDArray:
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise ValueError(f"{key!r}: {bad} of {len(values)} rows have values that are missing or infinite.")
    return values
