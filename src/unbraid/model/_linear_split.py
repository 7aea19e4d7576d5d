"""LinearSplit: the closed-form split that every other model must beat."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import pandas as pd
from lightning.pytorch import Trainer

from unbraid._messages import check_whole
from unbraid.data import split_indices
from unbraid.model.base import SplitModel
from unbraid.model.base._ratio_retrieval import RatioRetrievalMixin
from unbraid.module import LinearModule
from unbraid.train import fit_linear

if TYPE_CHECKING:
    from mudata import MuData

    from unbraid.module._canonical_selection import CanonicalSelection
    from unbraid.nn import InputTransform


class LinearSplit(RatioRetrievalMixin, SplitModel):
    r"""Shared = canonical variates, specific = principal components of the rest. Seconds, no tuning.

    **Shared.** Every modality is reduced to principal components and whitened with a ridge; the shared
    codes :math:`z_m = A_m^\top x_m` are the variates of regularised CCA (two modalities) or MAX-VAR
    generalised CCA (more), with unit variance. Ridge and dimensions are chosen by cross-validation: a
    dimension is shared if its held-out correlation exceeds what the best of all dimensions reaches
    when cells are re-paired at random and all is fitted anew, in 95 of 100 re-pairings.

    **Specific.** :math:`s_m = P_m^\top (x_m - B_m z_m)`, the principal components of what a linear
    regression on the modality's own shared code does not explain.

    With a ``batch_key`` every batch is centred by itself, so that differences between batches are
    neither shared nor specific. Cells that lack modalities take part in every covariance that they
    have data for, and their joint code is the mean of a one-factor model given what they have.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared
        Dimensions of the shared code; None lets the re-pairings decide.
    n_specific
        Dimensions of every specific code; None takes what explains 99.9 % of the residual, at most 50.
    n_components
        Principal components kept of a modality with more features.
    ridge
        Relative to the mean variance; None lets held-out information decide.
    input_transform
        What the model sees, per modality or for all; see :class:`~unbraid.nn.InputLayer`.
    registry
        Registry of a saved model, to load it without data.

    Notes
    -----
    ``model.history["linear/correlation"]`` holds the held-out correlations and
    ``model.history["linear/threshold"]`` what re-pairing reaches.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.LinearSplit.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.LinearSplit(mdata)
    >>> model.train()
    >>> model.write_latent()
    """

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int | None = None,
        n_specific: int | None = None,
        *,
        n_components: int = 100,
        ridge: float | None = None,
        input_transform: InputTransform | dict[str, InputTransform] | None = None,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(mdata, registry)
        self._warn_of_covariates("nowhere; what is to be taken out of the codes can be its `batch_key`")
        for name, value in {"n_shared": n_shared, "n_specific": n_specific, "n_components": n_components}.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        if ridge is not None and ridge <= 0:
            raise ValueError(f"`ridge` must be positive, got {ridge}.")
        self.n_shared, self.n_specific, self.n_components, self.ridge = n_shared, n_specific, n_components, ridge
        centred = self.registry_["setup_args"]["batch_key"] is not None
        self.module = LinearModule(self._specs(input_transform), center_batches=centred)
        self._finish(locals())

    def train(
        self,
        max_epochs: int | dict[str, int] | None = None,
        *,
        split_key: str | None = None,
        train_size: float | None = 1.0,
        validation_size: float | None = None,
        seed: int | None = None,
        n_permutations: int = 20,
        **options: Any,
    ) -> None:
        """Fit in closed form.

        Parameters
        ----------
        max_epochs
            0 or more: accepted, so that one call trains every model, and without effect.
        split_key
            ``obs`` column of the MuData with ``train``, ``val`` and ``test``; only ``train`` is used.
        train_size, validation_size
            Fractions of the cells; all are used by default, since ridge and rank are cross-validated.
        seed
            Seed of folds, re-pairings and the randomised principal components.
        n_permutations
            Random re-pairings, at least 2. Of these the 95 % quantile of a Gumbel distribution is estimated.
        **options
            Options of gradient training; without effect.

        Raises
        ------
        TypeError
            If an option is none of gradient training.
        ValueError
            If fewer than 10 training cells have two modalities, or there are fewer than 2 re-pairings.
        """
        check_whole("n_permutations", n_permutations, 2)
        known = {*signature(SplitModel.train).parameters, *signature(Trainer).parameters}
        if unknown := sorted(set(options) - known):
            raise TypeError(f"LinearSplit.train() got an unexpected option {unknown[0]!r}.")
        seed = self._training_seed(seed)
        self.adata_manager.validate()
        dataset = self.adata_manager.create_torch_dataset()
        labels = None if split_key is None else self._split_labels(split_key)
        sizes = {} if split_key else {"train_size": train_size, "validation_size": validation_size}
        parts = split_indices(dataset.n_obs, labels=labels, groups=dataset.groups, seed=seed, **sizes)
        self._check_parts(dataset.presence, parts)
        fit = fit_linear(
            self.module,
            dataset,
            parts["train"],
            n_shared=self.n_shared,
            n_specific=self.n_specific,
            n_components=self.n_components,
            ridge=self.ridge,
            n_permutations=n_permutations,
            seed=seed,
            name=type(self).__name__,
        )
        self.history_ = linear_history(fit.selection)
        self.train_indices_, self.validation_indices_, self.test_indices_ = parts.values()
        self.seed_, self.is_trained_ = seed, True


def linear_history(selection: CanonicalSelection) -> dict[str, pd.DataFrame]:
    """What the choice of ridge and rank goes by, as data frames."""
    dimension = pd.RangeIndex(len(selection.correlations), name="dimension")
    return {
        "linear/correlation": pd.DataFrame({"correlation": selection.correlations}, index=dimension),
        "linear/threshold": pd.DataFrame({"threshold": [selection.threshold]}),
        "linear/ridge": pd.DataFrame({"ridge": [selection.ridge]}),
    }
