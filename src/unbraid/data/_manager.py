"""Registration of a MuData: an scvi-tools manager that takes missing modalities for what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import rich.pretty  # noqa: F401 - scvi-tools shows a registry with it, and newer versions of rich do not load it
from mudata import MuData
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager, AnnDataManagerValidationCheck
from scvi.data.fields import (
    MuDataCategoricalJointObsField,
    MuDataCategoricalObsField,
    MuDataNumericalJointObsField,
)

from unbraid._messages import suggest
from unbraid.data._dataset import MultimodalDataset
from unbraid.data._fields import ModalityField, positions
from unbraid.data._statistics import by_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class MultimodalManager(AnnDataManager):
    """Manager whose rows are the cells of the MuData, whichever modalities they have.

    scvi-tools' own manager asks for fully paired data, and misaligns rows when that check is
    switched off; this one hands out a :class:`~unbraid.data.MultimodalDataset` instead, which looks
    every cell up in every modality.
    """

    def __init__(self, fields=None, setup_method_args=None, validation_checks=None) -> None:
        checks = validation_checks or AnnDataManagerValidationCheck(check_fully_paired_mudata=False)
        super().__init__(fields=fields, setup_method_args=setup_method_args, validation_checks=checks)
        self._row_matrices: dict[str, tuple[Any, Any]] = {}

    @property
    def modality_fields(self) -> list[ModalityField]:
        """The fields that hold a modality, in the order of the setup."""
        return [field for field in self.fields if isinstance(field, ModalityField)]

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in the order of the setup."""
        return [field.mod_key for field in self.modality_fields]

    def register_fields(self, adata: MuData, source_registry: dict | None = None, **transfer_kwargs) -> None:
        """Check the MuData as a whole, then register field by field.

        Raises
        ------
        TypeError
            If ``adata`` is not a MuData.
        ValueError
            If no cell has two modalities (at set-up), if a query has none of the modalities, or if a
            cell has none.
        """
        if not isinstance(adata, MuData):
            raise TypeError(
                f"Expected a MuData, got {type(adata).__name__}. Make one of AnnData objects that share cell names: "
                "`mudata.MuData({'rna': adata_rna, 'prot': adata_prot})`."
            )
        if adata.is_view:
            raise ValueError("The MuData is a view. Run `mdata = mdata.copy()` first.")
        known = [name for name in self.modalities if name in adata.mod]
        if not known:
            raise ValueError(
                f"The MuData has none of the model's modalities {self.modalities}. It has {list(adata.mod)}."
            )
        for field in self.modality_fields:
            if source_registry is None or field.mod_key in adata.mod:
                field.validate_field(adata)
        self._check_covariates(adata, source_registry, **transfer_kwargs)
        if source_registry is None and (key := self._group_key) is not None:
            _obs_column(adata, key, "group_key")  # for its errors; a query has no need of groups
        self._check_presence(adata, query=source_registry is not None)
        super().register_fields(adata, source_registry, **transfer_kwargs)

    def _check_presence(self, mdata: MuData, *, query: bool) -> None:
        counts = sum((positions(mdata, f.mod_key, f._mask_key) >= 0).astype(int) for f in self.modality_fields)
        if (bare := int((counts == 0).sum())) > 0:
            raise ValueError(
                f"{bare} of {mdata.n_obs} cells have none of the modalities {self.modalities}. "
                "Remove them first, e.g. by subsetting the MuData, or name more `modalities`."
            )
        if not query and len(self.modalities) > 1 and counts.max() < 2:
            raise ValueError(
                f"No cell has two of the modalities {self.modalities}, so nothing tells what they share. Cell names "
                f"must agree between modalities; they read e.g. "
                f"{', '.join(f'{m}: {list(mdata.mod[m].obs_names[:1])}' for m in self.modalities)}."
            )

    def _check_covariates(
        self, mdata: MuData, source_registry: dict | None, extend_categories: bool = False, **kwargs
    ) -> None:
        arguments = self._registry.get("setup_args") or {}
        columns = {
            "batch_key": [arguments.get("batch_key")],
            "categorical_covariate_keys": arguments.get("categorical_covariate_keys") or [],
            "continuous_covariate_keys": arguments.get("continuous_covariate_keys") or [],
        }
        for argument, keys in columns.items():
            for key in (key for key in keys if key is not None):
                column = _obs_column(mdata, key, argument)
                if argument == "continuous_covariate_keys":
                    _check_numbers(column, key, argument)
                    continue
                if missing := int(column.isna().sum()):
                    raise ValueError(
                        f"`{argument}`: {missing} cells have no value in obs column {key!r}. Fill them in or remove "
                        "these cells; with MuData, set the column on `mdata.obs`, not on one modality only."
                    )
                if source_registry is None or extend_categories:
                    continue
                unseen = set(column.unique()) - set(_known_categories(source_registry, key, argument))
                if unseen:
                    what = "batches" if argument == "batch_key" else f"categories of {key!r}"
                    raise ValueError(
                        f"`{argument}`: the query has {what} that the model has not seen: "
                        f"{sorted(map(str, unseen))[:5]}. Use `load_query_data`, which admits new ones."
                    )

    @property
    def _group_key(self) -> str | None:
        return (self._registry.get("setup_args") or {}).get("group_key")

    @property
    def groups(self) -> np.ndarray | None:
        """Of which group every cell is a replicate, int64 ``(n_obs,)``; a cell without one is a group of its own.

        None if no column was named, or the MuData (of a query) has it not.
        """
        key = self._group_key
        if key is None or key not in self.adata.obs:
            return None
        codes = pd.factorize(self.adata.obs[key])[0].astype(np.int64)
        alone = codes < 0
        codes[alone] = codes.max(initial=-1) + 1 + np.arange(alone.sum())
        return codes

    def row_matrix(self, field: ModalityField) -> Any:
        """A modality's matrix with fast rows: CSC becomes an own CSR copy, made once."""
        data = field.matrix(self.adata)
        if getattr(data, "format", "csr") == "csr":
            return data
        cached = self._row_matrices.get(field.registry_key)
        if cached is None or cached[0] is not data:
            self._row_matrices[field.registry_key] = cached = (data, by_rows(data))
        return cached[1]

    def create_torch_dataset(self, *args, **kwargs) -> MultimodalDataset:
        """The registered cells as a dataset of batches."""
        return MultimodalDataset(self)


def build_fields(
    modalities: Sequence[str],
    layers: dict[str, str],
    likelihoods: dict[str, str],
    mask_keys: dict[str, str],
    size_factor_key: dict[str, str],
    batch_key: str | None,
    categorical_covariate_keys: list[str] | None,
    continuous_covariate_keys: list[str] | None,
) -> list:
    """The fields of a set-up: one per modality, then batch and covariates of the MuData's ``obs``."""
    return [
        *(
            ModalityField(m, layers.get(m), likelihoods.get(m), mask_keys.get(m), size_factor_key.get(m))
            for m in modalities
        ),
        MuDataCategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key, mod_key=None),
        MuDataCategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys, mod_key=None),
        MuDataNumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys, mod_key=None),
    ]


def _obs_column(mdata: MuData, key: str, argument: str) -> pd.Series:
    if key in mdata.obs:
        return mdata.obs[key]
    holders = [name for name, adata in mdata.mod.items() if key in adata.obs]
    if holders:
        raise KeyError(
            f"`{argument}`: {key!r} is an obs column of modality {holders[0]!r}, not of the MuData. Copy it up: "
            f"`mdata.obs[{key!r}] = mdata[{holders[0]!r}].obs[{key!r}].reindex(mdata.obs_names)`."
        )
    raise KeyError(f"`{argument}`: no obs column {key!r} in the MuData. {suggest(key, mdata.obs.columns)}")


def _known_categories(registry: dict, key: str, argument: str) -> np.ndarray:
    fields = registry["field_registries"]
    if argument == "batch_key":
        return fields[REGISTRY_KEYS.BATCH_KEY]["state_registry"]["categorical_mapping"]
    return fields[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]["mappings"][key]


def _check_numbers(column: pd.Series, key: str, argument: str) -> None:
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            f"`{argument}`: obs column {key!r} must hold finite numbers in every cell; "
            f"{int((~np.isfinite(values)).sum())} cells do not. Use `categorical_covariate_keys` for categories."
        )
