"""What is registered: the modalities of a MuData, where their values lie, and what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mudata import MuData

from unbraid._messages import suggest
from unbraid.data import MultimodalManager, build_fields, read_pairs, registry_key
from unbraid.nn import COUNT_LIKELIHOODS, ModalitySpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unbraid.nn import InputTransform, Likelihood


class SetupMixin:
    """Set-up of a MuData for a model, and what the model reads of it afterwards."""

    _min_modalities = 2
    _takes_pairs = False
    _takes_categories = False

    @classmethod
    def setup_anndata(cls, adata: Any, **kwargs: Any) -> None:
        """Not available: cells come as a MuData."""
        raise NotImplementedError(
            f"{cls.__name__} takes a MuData: put the modalities into one, `mudata.MuData({{'rna': ..., 'prot': ...}})`, "
            f"and call `{cls.__name__}.setup_mudata`."
        )

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        modalities: Sequence[str] | None = None,
        layers: dict[str, str] | None = None,
        likelihoods: dict[str, Likelihood] | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        pairs_key: str | None = None,
        size_factor_key: str | dict[str, str] | None = None,
        mask_keys: dict[str, str] | None = None,
        group_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register a MuData: what its modalities are, and where their values lie.

        The data are read once and neither copied nor changed; ``obs``, ``obsm`` and ``uns`` of the MuData receive
        scvi-tools' registry entries (``_scvi_...``). A cell may lack modalities: it is then simply
        not in ``mdata.mod[modality]``.

        Parameters
        ----------
        mdata
            Cells in at least two modalities.
        modalities
            Names in ``mdata.mod``; all of them by default.
        layers
            Per modality, the layer that holds the values, ``X`` where none is named; ``"obsm:KEY"``
            takes an embedding.
        likelihoods
            Per modality, what the values are. By default read off the values: whole non-negative
            numbers are counts (``"nb"``), or ``"bernoulli"`` if none exceeds 1; the rest is ``"normal"``. Images of
            :func:`~unbraid.data.images` are ``"laplace"``, texts of :func:`~unbraid.data.text` ``"categorical"``.
        batch_key
            Column of ``mdata.obs``.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of ``mdata.obs``.
        pairs_key
            Key of ``mdata.obsp`` with must-link (1) and cannot-link (-1) pairs of cells, for models that take them; see
            :func:`unbraid.pp.pairs_from_labels`. They are read when training starts.
        size_factor_key
            Numeric ``obs`` column of the count modalities, or one per modality; the cell's total by
            default.
        mask_keys
            Per modality, a boolean column of its ``obs``: cells with False were not measured. Use it
            for zero-padded data; values of these cells are never looked at.
        group_key
            Column of ``mdata.obs`` whose values have replicates, such as the compound of every profile of a drug
            screen. Replicates are never negatives of each other in a contrast, and a random split keeps them on one
            side. A cell without a value has no replicates.
        **kwargs
            For loading: ``source_registry`` and ``extend_categories``.

        Raises
        ------
        TypeError
            If ``mdata`` is not a MuData.
        KeyError
            If a modality, layer or column does not exist.
        ValueError
            If values are NaN, infinite, not numeric, negative under a count likelihood, or constant; if
            names are duplicated; if no cell has two modalities; or if a cell has none.
        """
        if not isinstance(mdata, MuData):
            raise TypeError(
                f"{cls.__name__} needs a MuData, got {type(mdata).__name__}. Make one of AnnData objects that share "
                "cell names: `mudata.MuData({'rna': adata_rna, 'prot': adata_prot})`."
            )
        if modalities is None:
            modalities = list(mdata.mod)
        modalities = [modalities] if isinstance(modalities, str) else list(modalities or [])
        as_list = lambda keys: None if keys is None else [keys] if isinstance(keys, str) else list(keys)
        if len(set(modalities)) < max(cls._min_modalities, len(modalities)):
            raise ValueError(
                f"{cls.__name__} needs a MuData with at least {cls._min_modalities} modalities, each named once; "
                f"got {modalities}."
            )
        if pairs_key is not None:
            if not cls._takes_pairs:
                raise ValueError(f"{cls.__name__} does not use pairs of cells: leave out `pairs_key`.")
            if kwargs.get("source_registry") is None:
                read_pairs(mdata, pairs_key)  # for its errors; a query has no need of pairs
        if isinstance(size_factor_key, str):
            holders = [m for m in modalities if m in mdata.mod and size_factor_key in mdata.mod[m].obs]
            if not holders:
                raise KeyError(f"`size_factor_key`: no modality has an obs column {size_factor_key!r}.")
            size_factor_key = dict.fromkeys(holders, size_factor_key)
        per_modality = {
            "layers": layers, "likelihoods": likelihoods, "mask_keys": mask_keys, "size_factor_key": size_factor_key
        }  # fmt: skip
        for argument, mapping in per_modality.items():
            if mapping is not None and not isinstance(mapping, dict):
                raise TypeError(f"`{argument}` maps modalities to values, e.g. {{{modalities[0]!r}: ...}}.")
            for name in mapping or {}:
                if name not in modalities:
                    raise KeyError(f"`{argument}` names {name!r}, which is not a modality. {suggest(name, modalities)}")
        # copies: what the user does to these dictionaries later is not the registry's business
        per_modality = {argument: mapping and dict(mapping) for argument, mapping in per_modality.items()}
        covariates = {
            "batch_key": batch_key,
            "categorical_covariate_keys": as_list(categorical_covariate_keys),
            "continuous_covariate_keys": as_list(continuous_covariate_keys),
        }
        setup_method_args = cls._get_setup_method_args(
            cls=cls,
            mdata=mdata,
            modalities=modalities,
            pairs_key=pairs_key,
            group_key=group_key,
            **per_modality,
            **covariates,
        )
        fields = build_fields(modalities, **{name: given or {} for name, given in per_modality.items()}, **covariates)
        manager = MultimodalManager(fields, setup_method_args=setup_method_args)
        manager.register_fields(mdata, **kwargs)
        cls.register_manager(manager)

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in the order of the set-up."""
        return list(self.registry_["setup_args"]["modalities"])

    def _specs(self, input_transform: InputTransform | dict[str, InputTransform] | None) -> list[ModalitySpec]:
        """What the module must know about the modalities; counts default to log1p, the rest to scale."""
        if isinstance(input_transform, dict):
            for name in input_transform:
                if name not in self.modalities:
                    raise KeyError(
                        f"`input_transform` names {name!r}, which is not a modality. {suggest(name, self.modalities)}"
                    )
        specs = []
        for name in self.modalities:
            state = self.registry_["field_registries"][registry_key(name)]["state_registry"]
            likelihood = state["likelihood"]
            chosen = input_transform.get(name) if isinstance(input_transform, dict) else input_transform
            if chosen in ("log1p", "clr", "pearson") and state["minimum"] < 0:
                raise ValueError(
                    f"Modality {name!r} has negative values, so `input_transform` cannot be {chosen!r}. "
                    "Use 'scale' or 'standardize', or point `layers` to the counts."
                )
            if likelihood == "categorical" and not self._takes_categories:
                raise ValueError(
                    f"Modality {name!r} holds categories, such as the numbers of words, which {type(self).__name__} would "
                    "take for amounts. Use a generative model with a text encoder, or give it columns of 0 and 1."
                )
            default = "identity" if likelihood in ("bernoulli", "categorical") else "scale"
            specs.append(
                ModalitySpec(
                    name,
                    len(state["feature_names"]),
                    likelihood,
                    chosen or ("log1p" if likelihood in COUNT_LIKELIHOODS else default),
                    state["mean"],
                    state["standard_deviation"],
                    state["size_factor_reference"],
                    state.get("shape"),
                    state.get("n_categories"),
                )
            )
        return specs
