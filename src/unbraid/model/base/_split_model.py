"""The user's side of every model: training, query data."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import replace
from inspect import signature
from numbers import Real
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Trainer
from mudata import MuData
from scvi import settings
from scvi.model.base import BaseModelClass

from unbraid._messages import check_whole, suggest
from unbraid.data import (
    MultimodalDataModule,
    PairDataset,
    read_pairs,
    registry_key,
    split_indices,
)
from unbraid.model.base._latents import LatentMixin
from unbraid.model.base._setup import SetupMixin
from unbraid.train import RunOptions, resumed_seed, run_stages

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from unbraid.data import MultimodalDataset
    from unbraid.module import SplitModule

# Steps of a stage when the user names no epochs; small data repeat themselves at most so many times.
DEFAULT_STEPS, MAX_DEFAULT_EPOCHS = 1_000, 100


class SplitModel(SetupMixin, LatentMixin, BaseModelClass):
    """Base of all models: a MuData in, shared and specific latents out.

    A subclass builds ``self.module`` in its ``__init__`` from :meth:`_specs` and ends it with
    ``self._finish(locals())``.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    registry
        Registry of a saved model, to load it without data.
    """

    module: SplitModule
    _default_batch_size = 512
    _least_batch_size = 2  # fewer cells are too few for what the model estimates from a batch
    _pairs_per_batch = 32
    _drop_last = False

    def __init__(self, mdata: MuData | None = None, registry: dict | None = None) -> None:
        name = type(self).__name__
        if registry is None and not isinstance(mdata, MuData):
            raise TypeError(f"Expected the MuData of `{name}.setup_mudata`, got {type(mdata).__name__}.")
        try:
            super().__init__(mdata, registry=registry)
        except ValueError:  # scvi-tools' own words send the user to `setup_anndata`
            raise ValueError(
                f"This MuData is not set up for {name}, nor is a copy of one that is. "
                f"Call `{name}.setup_mudata(mdata)` first."
            ) from None
        self.seed_: int | None = None
        self.history_ = {}

    def _finish(self, arguments: dict[str, Any]) -> None:
        """Last line of a model's ``__init__``: note what it was called with."""
        self.init_params_ = self._get_init_params(arguments)
        self.init_params_["non_kwargs"].pop("mdata", None)
        sizes = ", ".join(f"{spec.name} ({spec.n_features}, {spec.likelihood})" for spec in self.module.specs)
        self._model_summary_string = f"{type(self).__name__} of {sizes}"
        self.module.eval()

    def _warn_of_covariates(self, when: str, stacklevel: int = 3) -> None:
        setup = self.registry_["setup_args"]
        covariates = (setup["categorical_covariate_keys"] or []) + (setup["continuous_covariate_keys"] or [])
        if covariates:
            message = f"{type(self).__name__} uses the covariates {covariates} {when}."
            warnings.warn(message, UserWarning, stacklevel=stacklevel)

    def _init_arguments(self) -> dict[str, Any]:
        """What the model was called with."""
        arguments = dict(self.init_params_["non_kwargs"])
        for extra in self.init_params_["kwargs"].values():
            arguments.update(extra)
        return arguments

    # ---- training -------------------------------------------------------------------------

    def train(
        self,
        max_epochs: int | dict[str, int] | None = None,
        batch_size: int | None = None,
        lr: float | dict[str, float] | None = None,
        weight_decay: float | None = None,
        *,
        split_key: str | None = None,
        train_size: float | None = None,
        validation_size: float | None = None,
        early_stopping: bool = True,
        early_stopping_patience: int = 10,
        early_stopping_min_delta: float = 0.0,
        accelerator: str = "auto",
        devices: int | str | list[int] = "auto",
        strategy: Any = "auto",
        seed: int | None = None,
        checkpoint_dir: str | None = None,
        resume: bool = False,
        progress_bar: bool | None = None,
        datasplitter_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model, stage by stage.

        Training again goes on from the present weights. The user's random state is left alone.

        Parameters
        ----------
        max_epochs
            Epochs of every stage, or per stage. By default about 1,000 steps per stage, at most 100 epochs.
        batch_size
            Cells of a batch; no more than there are cells.
        lr
            Learning rate of every stage, or per stage.
        weight_decay
            Weight decay of every stage.
        split_key
            ``obs`` column of the MuData with ``train``, ``val`` and ``test``.
        train_size, validation_size
            Fractions of the cells; by default a tenth (at most 2,000 cells) is for validation. Groups of the
            ``group_key`` stay together.
        early_stopping
            End a stage when the validation loss no longer falls, and take the weights of its best epoch.
        early_stopping_patience, early_stopping_min_delta
            Validations to wait, and the smallest improvement that counts.
        accelerator, devices, strategy
            As in Lightning and scvi-tools.
        seed
            Seed of split, order, views and posterior samples; by default ``scvi.settings.seed``, else drawn.
        checkpoint_dir
            Folder that receives the state of training after every epoch.
        resume
            Go on from ``checkpoint_dir``: the result is that of an uninterrupted run.
        progress_bar
            One bar per stage; by default unless ``enable_progress_bar=False``.
        datasplitter_kwargs
            Options of the loader, e.g. ``{"num_workers": 2, "drop_last": True}``.
        **trainer_kwargs
            Further options of :class:`lightning.pytorch.Trainer`.

        Raises
        ------
        ValueError
            If an option is impossible, before training starts.
        FloatingPointError
            If the loss becomes NaN.
        """
        if seed is None and resume and checkpoint_dir is not None:
            seed = resumed_seed(checkpoint_dir)
        seed = self._training_seed(seed)
        manager = self.adata_manager
        manager.validate()
        batch_size = self._default_batch_size if batch_size is None else batch_size
        check_whole("batch_size", batch_size, 2)
        dataset = manager.create_torch_dataset()
        parts = split_indices(
            dataset.n_obs,
            train_size=train_size,
            validation_size=validation_size,
            labels=None if split_key is None else self._split_labels(split_key),
            groups=dataset.groups,
            seed=seed,
        )
        self._check_parts(dataset.presence, parts)
        if batch_size < min(self._least_batch_size, len(parts["train"])):
            warnings.warn(
                f"{type(self).__name__} learns from correlations within a batch, for which {batch_size} cells are few: its "
                f"codes leak more than from a `batch_size` of {self._default_batch_size}, the default.",
                UserWarning,
                stacklevel=2,
            )
        stages = self._stages(lr, weight_decay)
        epochs = self._epochs(max_epochs, stages, len(parts["train"]), batch_size)
        if unknown := sorted(set(trainer_kwargs) - set(signature(Trainer).parameters)):
            raise TypeError(f"{type(self).__name__}.train() got an unexpected option {unknown[0]!r}.")
        dataset = self._start(dataset, parts, seed)
        loader_options = {"drop_last": self._drop_last, **(datasplitter_kwargs or {})}
        datamodule = MultimodalDataModule(
            dataset, parts, min(batch_size, len(parts["train"])), seed=seed, **loader_options
        )
        stages = self._stages(lr, weight_decay)  # again: a start may know better
        shown = trainer_kwargs.pop("enable_progress_bar", True)
        show = shown if progress_bar is None else progress_bar
        options = RunOptions(
            seed=seed,
            early_stopping=early_stopping,
            patience=early_stopping_patience,
            min_delta=early_stopping_min_delta,
            accelerator=accelerator,
            devices=devices,
            strategy=strategy,
            checkpoint_dir=checkpoint_dir,
            resume=resume,
            progress_bar=show,
            trainer_options=trainer_kwargs,
        )
        history = run_stages(self.module, stages, epochs, datamodule, options)
        self._append_history(history)
        self.train_indices_, self.validation_indices_, self.test_indices_ = parts.values()
        self.seed_, self.is_trained_ = seed, True

    def _start(self, dataset: MultimodalDataset, parts: dict[str, np.ndarray], seed: int) -> Dataset:
        """What comes before the stages, such as a fit in closed form.

        Returns the cells that the stages read: by default those that were given, with their pairs if there are any.
        """
        key = self.registry_["setup_args"].get("pairs_key")
        if key is None or key not in self.adata.obsp:
            return dataset
        pairs = read_pairs(self.adata, key)
        names = self.adata.obs_names.to_numpy()
        self.pairs_ = {kind: names[rows] for kind, rows in {"must": pairs.must, "cannot": pairs.cannot}.items()}
        return PairDataset(dataset, pairs, parts["train"], n_pairs=self._pairs_per_batch, seed=seed)

    def _training_seed(self, seed: int | None) -> int:
        """Seed of a training, after a look whether there is something to train on."""
        self._check_data()
        seed = settings.seed if seed is None else seed
        if seed is None:
            with torch.random.fork_rng(devices=[]):  # drawn from the user's random state without moving it
                seed = torch.randint(2**31, ()).item()
        check_whole("seed", seed, 0)
        return int(seed)

    def _check_data(self) -> None:
        if self.adata is None:
            raise ValueError(
                f"The model was loaded without data. Pass a MuData, or load it with `{type(self).__name__}.load("
                "folder, mdata)`."
            )

    def _split_labels(self, split_key: str):
        obs = self.adata.obs
        if split_key not in obs:
            raise KeyError(f"`split_key`: no obs column {split_key!r} in the MuData. {suggest(split_key, obs.columns)}")
        return obs[split_key]

    def _check_parts(self, presence: np.ndarray, parts: dict[str, np.ndarray]) -> None:
        paired = int((presence[parts["train"]].sum(axis=1) > 1).sum())
        if paired < 2:
            raise ValueError(
                f"Only {paired} training cells have two modalities; at least 2 are needed to learn what is shared. "
                "Raise `train_size`, or check `split_key`."
            )

    def _stages(self, lr: float | dict[str, float] | None, weight_decay: float | None):
        stages = self.module.stages
        rates = lr if isinstance(lr, dict) else {} if lr is None else {stage.name: lr for stage in stages}
        self._check_stage_names("lr", rates)
        for name, value in [*(("lr", rate) for rate in rates.values()), ("weight_decay", weight_decay or 0.0)]:
            if not (isinstance(value, Real) and 0 <= value < np.inf):
                raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}.")
        changes = {} if weight_decay is None else {"weight_decay": weight_decay}
        return [replace(stage, lr=rates.get(stage.name, stage.lr), **changes) for stage in stages]

    def _epochs(self, max_epochs, stages, n_train: int, batch_size: int) -> dict[str, int]:
        steps = -(-n_train // batch_size)
        default = lambda n_steps: max(1, min(MAX_DEFAULT_EPOCHS, -(-n_steps // steps)))
        if max_epochs is None or isinstance(max_epochs, dict):
            given = max_epochs or {}
            self._check_stage_names("max_epochs", given)
        else:
            given = {stage.name: max_epochs for stage in stages}
        epochs = {
            stage.name: given.get(stage.name, stage.max_epochs or default(stage.n_steps or DEFAULT_STEPS))
            for stage in stages
        }
        for n in epochs.values():
            check_whole("max_epochs", n, 0)
        return {name: int(n) for name, n in epochs.items()}

    def _check_stage_names(self, argument: str, mapping: dict[str, Any]) -> None:
        names = [stage.name for stage in self.module.stages]
        for name in mapping:
            if name not in names:
                raise KeyError(f"`{argument}` names {name!r}, which is not a stage. {suggest(name, names)}")

    def _append_history(self, history: dict) -> None:
        for key, frame in history.items():
            if (before := self.history_.get(key)) is not None:
                frame = frame.set_axis(frame.index + len(before), axis=0)
                frame = pd.concat([before, frame]).rename_axis("epoch")
            self.history_[key] = frame

    # ---- query data -----------------------------------------------------------------------

    def _validate_anndata(self, adata: MuData | None = None, copy_if_view: bool = True) -> MuData:
        if adata is None:
            self._check_data()
        elif not isinstance(adata, MuData):
            raise TypeError(f"Expected a MuData with any of {self.modalities}, got {type(adata).__name__}.")
        elif adata.is_view:
            raise ValueError("The MuData is a view. Run `mdata = mdata.copy()` first.")
        return super()._validate_anndata(adata, copy_if_view=copy_if_view)

    def get_var_names(self, legacy_mudata_format: bool = False) -> dict[str, np.ndarray] | np.ndarray:
        """Registered features per modality (one after the other in the legacy format); what :meth:`save` notes."""
        fields = self.registry_["field_registries"]
        names = {m: fields[registry_key(m)]["state_registry"]["feature_names"] for m in self.modalities}
        return np.concatenate(list(names.values())) if legacy_mudata_format else names

    @classmethod
    def load(cls, dir_path: str, adata: MuData | bool | None = None, **kwargs: Any) -> SplitModel:
        """Load a saved model, with its data or with others; see scvi-tools' ``BaseModelClass.load``.

        Features are matched by name, and modalities may be missing. ``adata=False`` loads the model
        alone; it then takes any MuData in :meth:`get_latent_representation`.

        Parameters
        ----------
        dir_path
            Folder that the model was saved to.
        adata
            MuData; None takes the one saved with the model.
        **kwargs
            ``accelerator``, ``device`` and ``prefix``.
        """
        if adata is not None and adata is not False and not isinstance(adata, MuData):
            raise TypeError(f"Expected a MuData (or False to load the model alone), got {type(adata).__name__}.")
        with warnings.catch_warnings():  # we match names ourselves, and refuse what does not match
            warnings.filterwarnings("ignore", message="`var_names` for the loaded")
            return super().load(dir_path, adata=adata, **kwargs)

    @classmethod
    def load_query_data(cls, mdata: MuData, reference_model: SplitModel | str | PathLike) -> SplitModel:
        """A trained model on new cells, which may come from new batches and may lack modalities.

        Parameters
        ----------
        mdata
            New cells; features are matched by name.
        reference_model
            Trained model, or the folder that it was saved to.

        Returns
        -------
        A trained model of the same class on ``mdata``; ``train()`` goes on from its weights.
        """
        reference = reference_model
        if isinstance(reference, str | PathLike):
            reference = cls.load(reference, adata=False)
        if type(reference) is not cls:
            raise TypeError(f"The reference is a {type(reference).__name__}: use its own `load_query_data`.")
        registry = reference.registry_
        cls.setup_mudata(mdata, source_registry=registry, extend_categories=True, **registry["setup_args"])
        model = cls(mdata, **deepcopy(reference._init_arguments()))
        try:
            model.module.load_state_dict(model.module.extended_state(reference.module))
        except RuntimeError as error:
            raise ValueError(
                "The encoders of this model take the batch as input, so they cannot read new batches. "
                "Train with `encode_covariates=False` for data from batches yet unseen."
            ) from error
        model.module.to(reference.device).eval()
        model.is_trained_, model.seed_ = reference.is_trained_, reference.seed_
        return model
