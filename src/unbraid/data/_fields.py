"""The registry entry of one modality: where its values lie, what they are, which cells have them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import rich.table
from anndata import AnnData
from scvi.data.fields import BaseAnnDataField

from unbraid._messages import suggest
from unbraid.data._arrays import ARRAY_KEY
from unbraid.data._statistics import NotFiniteError, value_statistics
from unbraid.nn import COUNT_LIKELIHOODS, Likelihood

if TYPE_CHECKING:
    from typing import Any

    from mudata import MuData

    from unbraid.data._statistics import ValueStatistics

REGISTRY_PREFIX = "X_"


def registry_key(modality: str) -> str:
    """Key of a modality's field in the registry; scvi-tools takes no dots there."""
    return REGISTRY_PREFIX + modality.replace("%", "%25").replace(".", "%2E")


def positions(mdata: MuData, modality: str, mask_key: str | None = None) -> np.ndarray:
    """Row of every cell of the MuData in one modality, -1 where the cell lacks it.

    Parameters
    ----------
    mdata
        The MuData.
    modality
        Name in ``mdata.mod``; a modality that is not there is absent from every cell.
    mask_key
        Boolean column of ``mdata.mod[modality].obs``: rows with False count as absent.

    Returns
    -------
    int64 array of shape ``(mdata.n_obs,)``.

    Raises
    ------
    ValueError
        If the modality's cells are no longer those that the MuData knows.
    """
    if modality not in mdata.mod:
        return np.full(mdata.n_obs, -1, dtype=np.int64)
    adata = mdata.mod[modality]
    # obsmap is 1-based, 0 = absent, and unsigned: widen before subtracting
    rows = np.asarray(mdata.obsmap.get(modality, np.zeros(mdata.n_obs))).ravel().astype(np.int64) - 1
    found = rows[rows >= 0]
    fits = len(found) == adata.n_obs and found.max(initial=-1) < adata.n_obs
    if not fits or not np.array_equal(_objects(mdata.obs_names[rows >= 0]), _objects(adata.obs_names[found])):
        raise ValueError(
            f"The MuData no longer matches the cells of modality {modality!r} (it was changed in place). "
            "Run `mdata.update()` first."
        )
    if mask_key is not None and len(found):
        measured = adata.obs[mask_key].to_numpy(dtype=bool)
        rows = np.where((rows >= 0) & measured[np.maximum(rows, 0)], rows, -1)
    return rows


def _objects(array: Any) -> np.ndarray:
    return np.asarray(array, dtype=object)


def _names(array: Any) -> np.ndarray:
    return _objects(array).astype(str)


class ModalityField(BaseAnnDataField):
    """Field of one modality: one matrix, its likelihood, and the cells that have it.

    Parameters
    ----------
    modality
        Name in ``mdata.mod``.
    source
        ``None`` for ``X``, ``"obsm:KEY"`` for an embedding, else the name of a layer.
    likelihood
        What the values are; ``None`` reads it off the values: whole non-negative numbers are
        ``"bernoulli"`` when none exceeds 1 and ``"nb"`` otherwise, the rest is ``"normal"``, and ``"laplace"`` in
        images of :func:`~unbraid.data.images`. Texts of :func:`~unbraid.data.text` are ``"categorical"``.
    mask_key
        Boolean column of the modality's ``obs``: False means not measured.
    size_factor_key
        Numeric column of the modality's ``obs`` that divides counts; ``None`` takes the cell's total.
    """

    def __init__(
        self,
        modality: str,
        source: str | None = None,
        likelihood: Likelihood | None = None,
        mask_key: str | None = None,
        size_factor_key: str | None = None,
    ) -> None:
        super().__init__()
        self._modality, self._source = modality, source
        self._likelihood, self._mask_key, self._size_factor_key = likelihood, mask_key, size_factor_key

    @property
    def registry_key(self) -> str:
        return registry_key(self._modality)

    @property
    def attr_name(self) -> str:
        if self._source is None or self._source == "X":
            return "X"
        return "obsm" if self._source.startswith("obsm:") else "layers"

    @property
    def attr_key(self) -> str | None:
        return None if self.attr_name == "X" else self._source.removeprefix("obsm:")

    @property
    def mod_key(self) -> str:
        return self._modality

    @property
    def is_empty(self) -> bool:
        return False

    # ---- what the user may have got wrong -------------------------------------------------

    def validate_field(self, mdata: MuData) -> None:
        """Check names and shapes; the values are read by :meth:`register_field`.

        Raises
        ------
        KeyError
            If the modality, layer, ``obsm`` key or ``obs`` column does not exist.
        ValueError
            If rows or features cannot be told apart, or no cell has the modality.
        """
        name = self._modality
        if name not in mdata.mod:
            raise KeyError(f"No modality {name!r} in the MuData. {suggest(name, mdata.mod)}")
        adata = mdata.mod[name]
        if not isinstance(adata, AnnData):
            raise TypeError(f"Modality {name!r} must be an AnnData, got {type(adata).__name__}.")
        if adata.is_view:
            raise ValueError(
                f"Modality {name!r} is a view of other data. Run `mdata.mod[{name!r}] = mdata[{name!r}].copy()` first."
            )
        if "/" in name:
            raise ValueError(
                f"Modality {name!r}: a name with a slash cannot be written to a file. "
                f"Use another, e.g. {name.replace('/', '_')!r}."
            )
        if self.attr_name != "X":
            store = getattr(adata, self.attr_name)
            if self.attr_key not in store:
                kind = "layer" if self.attr_name == "layers" else "obsm key"
                raise KeyError(
                    f"Modality {name!r} has no {kind} {self.attr_key!r}. {suggest(self.attr_key, store.keys())} "
                    f"Leave it out of `layers` to use `X`; write 'obsm:KEY' for an embedding."
                )
        for option, key in {"mask_keys": self._mask_key, "size_factor_key": self._size_factor_key}.items():
            if key is not None and key not in adata.obs:
                raise KeyError(
                    f"`{option}`: modality {name!r} has no obs column {key!r}. {suggest(key, adata.obs.columns)}"
                )
        if self._likelihood is not None and self._likelihood not in get_args(Likelihood):
            raise ValueError(
                f"Modality {name!r}: unknown likelihood {self._likelihood!r}. "
                f"{suggest(self._likelihood, get_args(Likelihood))}"
            )
        if not adata.obs_names.is_unique:
            raise ValueError(
                f"Modality {name!r} has duplicate cell names, so its rows cannot be matched to other modalities. "
                f"Make them unique, e.g. `mdata[{name!r}].obs_names_make_unique(); mdata.update()`."
            )
        if self.attr_name != "obsm" and not adata.var_names.is_unique:
            raise ValueError(
                f"Modality {name!r} has duplicate feature names. "
                f"Run `mdata[{name!r}].var_names_make_unique(); mdata.update()`."
            )
        if self._mask_key is not None and not adata.obs[self._mask_key].isin([0, 1]).all():
            raise ValueError(f"`mask_keys`: {self._mask_key!r} of modality {name!r} must be True or False everywhere.")
        positions(mdata, name, self._mask_key)

    def matrix(self, mdata: MuData) -> Any:
        """The modality's matrix as it lies in the MuData: dense, sparse or backed."""
        adata = mdata.mod[self._modality]
        data = adata.X if self.attr_name == "X" else getattr(adata, self.attr_name)[self.attr_key]
        return data.to_numpy() if isinstance(data, pd.DataFrame) else data

    def _array(self, adata: AnnData, n_features: int) -> dict[str, Any]:
        """What :func:`~unbraid.data.images` and :func:`~unbraid.data.text` noted of the modality's array."""
        noted = {} if self.attr_name == "obsm" else adata.uns.get(ARRAY_KEY, {})
        shape = tuple(int(size) for size in noted.get("shape", ()))
        vocabulary = _names(noted["vocabulary"]) if "vocabulary" in noted else None
        return {
            "kind": noted.get("kind"),
            # of a part of the pixels the places are not known
            "shape": shape if shape and np.prod(shape) == n_features else None,
            "vocabulary": vocabulary,
            "n_categories": None if vocabulary is None else len(vocabulary),
        }

    def _feature_names(self, adata: AnnData, data: Any) -> np.ndarray:
        if self.attr_name != "obsm":
            return _names(adata.var_names)
        frame = adata.obsm[self.attr_key]
        columns = frame.columns if isinstance(frame, pd.DataFrame) else range(data.shape[1])
        return _names(list(columns))

    def _checked_statistics(self, mdata: MuData):
        """Read every value once; complain in the user's words."""
        name, data = self._modality, self.matrix(mdata)
        where = f"Modality {name!r} ({'X' if self.attr_name == 'X' else f'{self.attr_name}[{self.attr_key!r}]'})"
        if data is None:
            raise ValueError(f"{where} is empty. Name the layer that holds the values in `layers={{{name!r}: ...}}`.")
        if getattr(data, "ndim", 2) != 2 or data.shape[1] == 0:
            raise ValueError(f"{where} must be a matrix of cells by features, got shape {data.shape}.")
        if np.dtype(data.dtype).kind not in "iufb":
            raise ValueError(
                f"{where} is not numeric (dtype {data.dtype}). Convert it, e.g. with `.astype('float32')`."
            )
        rows = positions(mdata, name, self._mask_key)
        rows = np.sort(rows[rows >= 0])
        if len(rows) == 0:
            raise ValueError(f"{where} has no cell. Leave it out of `modalities`, or check its mask.")
        try:
            return data, value_statistics(data, rows), where
        except NotFiniteError as error:
            raise ValueError(
                f"{where} holds NaN, infinite or float32-overflowing values in {error.rows} cells. "
                f"Remove these cells from `mdata.mod[{name!r}]` (a cell may lack a modality), or impute them."
            ) from None

    # ---- registration ---------------------------------------------------------------------

    def register_field(self, mdata: MuData) -> dict:
        """Read the values once and note what the models need to know about them.

        Raises
        ------
        ValueError
            If values are NaN, infinite, not numeric, negative under a count likelihood, no numbers of categories
            under ``"categorical"``, or all equal.
        """
        self.validate_field(mdata)
        data, stats, where = self._checked_statistics(mdata)
        name = self._modality
        if stats.n_obs < 2:
            raise ValueError(f"{where} has {stats.n_obs} cell; a model needs at least 2 cells of every modality.")
        if not stats.standard_deviation.any():
            raise ValueError(f"{where} is constant: every cell has the same values. Leave it out of `modalities`.")
        array = self._array(mdata.mod[name], data.shape[1])
        likelihood = self._likelihood or _likelihood_of(stats, array["kind"])
        self._check_support(likelihood, stats, where, array["n_categories"])
        reference = 1.0
        if likelihood in COUNT_LIKELIHOODS:
            sizes = self.size_factors(mdata)
            sizes = stats.totals if sizes is None else sizes[positions(mdata, name, self._mask_key) >= 0]
            reference = float(np.median(sizes[sizes > 0]))
        return {
            "feature_names": self._feature_names(mdata.mod[name], data),
            "likelihood": likelihood,
            "minimum": stats.minimum,
            "mean": stats.mean.astype(np.float32),
            "standard_deviation": stats.standard_deviation.astype(np.float32),
            "size_factor_reference": reference,
            "shape": array["shape"],
            "vocabulary": array["vocabulary"],
            "n_categories": array["n_categories"],
            "present": True,
        }

    def _check_support(self, likelihood: str, stats: ValueStatistics, where: str, n_categories: int | None) -> None:
        mend = f"Point `layers` to the right matrix, or set `likelihoods={{{self._modality!r}: 'normal'}}`."
        if likelihood in COUNT_LIKELIHOODS:
            if stats.minimum < 0:
                raise ValueError(f"{where} has negative values under the count likelihood {likelihood!r}. {mend}")
            if not stats.integer:
                warnings.warn(
                    f"{where} has non-integer values under the count likelihood {likelihood!r}. "
                    f"If these are normalised values: {mend}",
                    UserWarning,
                    stacklevel=2,
                )
        if likelihood == "bernoulli" and (stats.minimum < 0 or stats.maximum > 1):
            raise ValueError(f"{where} has values outside [0, 1] under the likelihood 'bernoulli'. {mend}")
        if likelihood == "categorical":
            if not (stats.integer and stats.minimum >= 0):
                raise ValueError(
                    f"{where} has values that are no whole numbers from 0 under the likelihood 'categorical'. {mend}"
                )
            if n_categories is not None and stats.maximum >= n_categories:
                raise ValueError(
                    f"{where} holds the token {stats.maximum:g}, but its vocabulary has {n_categories:,} words, "
                    f"numbered from 0. Make it anew with `unbraid.data.text`, or set `likelihoods={{{self._modality!r}: "
                    "...}`."
                )

    def transfer_field(self, state_registry: dict, mdata: MuData, **kwargs) -> dict:
        """Fit query data to the registered features.

        Features are matched by name: another order is put right, further features are left out. A
        modality that the query lacks is absent from all its cells.

        Raises
        ------
        ValueError
            If registered features are missing from the query, or its values or its vocabulary are unusable.
        """
        if self._modality in mdata.mod:
            self.validate_field(mdata)
        if not (positions(mdata, self._modality, self._mask_key) >= 0).any():
            return {**state_registry, "present": False}
        data, stats, where = self._checked_statistics(mdata)
        self._check_support(state_registry["likelihood"], stats, where, state_registry.get("n_categories"))
        self._check_vocabulary(self._array(mdata.mod[self._modality], data.shape[1])["vocabulary"], state_registry)
        self.columns(mdata, state_registry["feature_names"])
        return {**state_registry, "present": True}

    def _check_vocabulary(self, found: np.ndarray | None, state_registry: dict) -> None:
        wanted = state_registry.get("vocabulary")
        if wanted is not None and found is not None and not np.array_equal(wanted, found):
            raise ValueError(
                f"Modality {self._modality!r} has another vocabulary than the model was set up with, so its tokens mean "
                "other words. Make it with that one: `unbraid.data.text(..., vocabulary=...)`."
            )

    def columns(self, mdata: MuData, wanted: np.ndarray) -> np.ndarray | None:
        """Where the registered features lie in the MuData's matrix; None if it has them as they are.

        Raises
        ------
        ValueError
            If features are missing.
        """
        found = self._feature_names(mdata.mod[self._modality], self.matrix(mdata))
        if np.array_equal(wanted, found):
            return None
        columns = pd.Index(found).get_indexer(pd.Index(wanted))
        if (missing := wanted[columns < 0]).size:
            raise ValueError(
                f"Modality {self._modality!r} lacks {missing.size} of the {wanted.size} features that the model was "
                f"set up with, e.g. {', '.join(map(repr, missing[:5].tolist()))}; it has e.g. "
                f"{', '.join(map(repr, found[:3].tolist()))}. Rename or add them; order and further features do not "
                "matter."
            )
        return columns

    def size_factors(self, mdata: MuData) -> np.ndarray | None:
        """Given size factors in the order of ``mdata.obs``; 1 where the cell lacks the modality.

        Raises
        ------
        ValueError
            If a size factor is not a positive number.
        """
        if self._size_factor_key is None or self._modality not in mdata.mod or not mdata.mod[self._modality].n_obs:
            return None
        column = mdata.mod[self._modality].obs[self._size_factor_key]
        rows = positions(mdata, self._modality, self._mask_key)
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)[np.maximum(rows, 0)]
        values[rows < 0] = 1.0
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(
                f"Size factors {self._size_factor_key!r} of modality {self._modality!r} must be positive numbers."
            )
        return values

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Number of features, under ``n_X_<modality>``."""
        return {f"n_{self.registry_key}": len(state_registry["feature_names"])}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table:
        """One row: source, likelihood, features."""
        table = rich.table.Table(title=f"Modality {self._modality!r}")
        for title in ("source", "likelihood", "features"):
            table.add_column(title)
        table.add_row(self._source or "X", state_registry["likelihood"], str(len(state_registry["feature_names"])))
        return table


def _likelihood_of(stats: ValueStatistics, kind: str | None) -> Likelihood:
    """What the values look like, and what the modality is."""
    if kind == "text":
        return "categorical"
    if stats.integer and stats.minimum >= 0:
        return "bernoulli" if stats.maximum <= 1 else "nb"
    return "laplace" if kind == "image" else "normal"
