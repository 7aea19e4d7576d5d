"""Unbraid: a split that starts linear and leaves that only where held-out cells gain by it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from unbraid._messages import check_option
from unbraid.data import MAX_VALIDATION_OBS, BlockSampler, CachedDataset, block_loader, split_indices
from unbraid.model._linear_split import linear_history
from unbraid.model._unbraid_report import UnbraidReport
from unbraid.model.base import SplitModel
from unbraid.model.base._latents import UNTRAINED
from unbraid.model.base._ratio_retrieval import RatioRetrievalMixin
from unbraid.module._unbraid import CANDIDATES, UnbraidModule
from unbraid.train import fit_linear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mudata import MuData

    from unbraid.data import MultimodalDataset
    from unbraid.module._independence import IndependenceChoice
    from unbraid.nn import InputTransform

PENALTIES = {"adversarial": 1.0, "hsic": 0.5}
LEAST_VALIDATION = 50  # cells, or groups of replicates; fewer cannot choose between candidates


class Unbraid(RatioRetrievalMixin, SplitModel):
    r"""The linear split, corrected by networks where held-out cells say that they help. Our first recommendation.

    **Shared.** Three candidates are fitted, and the one that tells most of held-out pairs is taken:

    - *linear*: the canonical variates :math:`A_m^\top x_m` of :class:`LinearSplit`;
    - *shared*: :math:`A_m^\top x_m + g_m(x_m)`, with networks that begin at zero and learn by the Eckart-Young loss
      of canonical correlation [1]_;
    - *scratch*: networks alone, which maximise squared canonical correlations [2]_.

    Canonical axes are fitted again after every epoch. A dimension is kept if its held-out correlation :math:`\rho_j`
    is above what the best of all dimensions reaches with re-paired cells. Candidates and epochs are compared by the
    held-out InfoNCE bound of the canonical log-likelihood ratio (:func:`~unbraid.objectives.canonical_log_ratio`), so
    that a network replaces the linear map only where it gains: by 0.2 % at least, and by two standard errors of the
    difference on the same cells, three if fewer than 2,000 cells are for training. Epoch, correlations and temperature
    that a half of these cells is judged with are those that the other half chooses.

    **Joint.** The code of a cell is the mean of a one-factor model given the modalities S that it has,
    :math:`\sqrt\rho \sum_{m \in S} z_m / (1 + (|S| - 1) \rho)`; never the codes side by side, whose difference leaks.

    **Specific.** What a linear and a cross-fitted nonlinear regression on the shared code leave of the modality,
    :math:`r_m` (:class:`~unbraid.nn.CrossFittedResidual`, mean and scale, of each component where cells that the
    regression has not learned from are surely predicted better by it), is encoded,
    :math:`s_m = P_m^\top r_m + h_m(r_m, c_m)`, and decoded again, with a penalty on what :math:`s_m` tells of the shared
    code :math:`c_m`: an adversary that predicts :math:`c_m`, and a light HSIC. The axes :math:`P_m` are the few above
    Kaiser's rule, unless more of them leak no more. Of every modality the epoch is taken at which held-out cells lose
    least of their residual and leak least (R2 of a kernel regression of :math:`c_m`): with few cells an early one.

    With a ``batch_key`` every batch is centred by itself and pairs are compared within batches. Cells that lack
    modalities take part in whatever they have data for.

    Parameters
    ----------
    mdata
        MuData registered by :meth:`setup_mudata`.
    n_shared
        Dimensions of the shared code; None lets the re-pairings decide.
    n_specific
        Dimensions of every specific code; None lets the data decide.
    condition
        What specific codes are to be free of: the modality's ``"own"`` shared code, which every cell has, or the
        cell's ``"joint"`` one, from whichever modalities it has.
    independence
        Penalties on specific codes, with their weights; see :class:`~unbraid.model.base.ContrastiveModel`. None takes
        ``{"adversarial": 1.0, "hsic": 0.5}``, ``{}`` none at all.
    n_components
        Principal components kept of a modality with more features.
    ridge
        Of the linear split, relative to the mean variance; None lets held-out information decide.
    n_hidden, n_layers, dropout
        Of all networks. With fewer than 2,000 training cells the dropout is at least 0.3.
    lr
        Of the networks of the shared code.
    input_transform
        What the model sees, per modality or for all; see :class:`~unbraid.nn.InputLayer`.
    registry
        Registry of a saved model, to load it without data.

    Notes
    -----
    Stages are ``"shared"``, ``"scratch"``, ``"residual"`` and ``"specific"``; a stage without epochs leaves its network
    out, and without any the model is :class:`LinearSplit` with whitened specific codes. Training reads principal
    components, which are computed once and kept in memory (4 bytes for each component of each cell).

    The choice of a candidate needs validation cells. Where a split names fewer than 50, a tenth of the training cells
    are taken (at most 2,000), which the linear split itself may still learn from; if these are too few as well, the
    shared code stays linear.

    Leave ``batch_size`` at 512. Correlations of k dimensions take several times k cells, and from batches of 64 and less codes
    leak more and specific ones hold less; a smaller batch saves no memory, as only components are read.

    References
    ----------
    .. [1] Chapman, Wells and Lawry Aguila. Unconstrained stochastic CCA: unifying multiview and self-supervised
       learning. ICLR 2024.
    .. [2] Andrew, Arora, Bilmes and Livescu. Deep canonical correlation analysis. ICML 2013.

    Examples
    --------
    >>> mdata = ub.data.simulate.citeseq(n_obs=500)
    >>> ub.model.Unbraid.setup_mudata(mdata, batch_key="batch")
    >>> model = ub.model.Unbraid(mdata)
    >>> model.train()
    >>> print(model.report())
    >>> model.write_latent()
    """

    _least_batch_size = 128

    def __init__(
        self,
        mdata: MuData | None = None,
        n_shared: int | None = None,
        n_specific: int | None = None,
        *,
        condition: Literal["own", "joint"] = "own",
        independence: IndependenceChoice = None,
        n_components: int = 100,
        ridge: float | None = None,
        n_hidden: int = 256,
        n_layers: int = 3,
        dropout: float = 0.1,
        lr: float = 2e-3,
        input_transform: InputTransform | dict[str, InputTransform] | None = None,
        registry: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(mdata, registry)
        self._warn_of_covariates("nowhere; what is to be taken out of the codes can be its `batch_key`")
        for name, value in {"n_shared": n_shared, "n_specific": n_specific, "n_components": n_components}.items():
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        check_option("`condition`", condition, ("own", "joint"))
        if ridge is not None and ridge <= 0:
            raise ValueError(f"`ridge` must be positive, got {ridge}.")
        self.n_components, self.ridge = n_components, ridge
        self.module = UnbraidModule(
            self._specs(input_transform),
            center_batches=self.registry_["setup_args"]["batch_key"] is not None,
            n_shared=n_shared,
            n_specific=n_specific,
            condition=condition,
            independence=PENALTIES if independence is None else independence,
            n_hidden=n_hidden,
            n_layers=n_layers,
            dropout=dropout,
            lr=lr,
        )
        self._finish(locals())

    # ---- training -------------------------------------------------------------------------

    def _start(self, dataset: Any, parts: dict[str, np.ndarray], seed: int) -> CachedDataset:
        """Fit the linear split, and keep the components of all cells that training reads in memory."""
        module, whole = self.module.cpu(), parts["train"]
        module.judges = self._hold_out(dataset, parts, seed)
        module.forget_judgements()
        begins = not module.started
        if begins:
            fit = fit_linear(
                module,
                dataset,
                whole,
                n_shared=module.n_kept,
                n_specific=1,
                n_components=self.n_components,
                ridge=self.ridge,
                seed=seed,
                name=type(self).__name__,
            )
            self.history_ = linear_history(fit.selection)
            module.start(fit, parts["train"], seed)
        validation = parts["validation"]
        cached = self._cached(dataset, np.concatenate([parts["train"], validation]))
        if begins and module.judges:
            module.judge_linear(block_loader(cached, BlockSampler(validation, 4_096)))
        return cached

    @staticmethod
    def _hold_out(dataset: MultimodalDataset, parts: dict[str, np.ndarray], seed: int) -> bool:
        """See to it that there are cells to choose by, at the cost of the training cells; False if these are too few."""
        paired = dataset.presence.sum(axis=1) > 1
        units = np.arange(dataset.n_obs) if dataset.groups is None else dataset.groups
        n_units = lambda *rows: len(np.unique(units[(rows := np.concatenate(rows))][paired[rows]]))
        if n_units(parts["validation"]) >= LEAST_VALIDATION:
            return True
        train = parts["train"]
        share = min(len(train) // 10, MAX_VALIDATION_OBS) / len(train)
        groups = None if dataset.groups is None else dataset.groups[train]
        chosen = train[split_indices(len(train), validation_size=share, groups=groups, seed=seed)["validation"]]
        if n_units(parts["validation"], chosen) < LEAST_VALIDATION:
            what = "training cells" if groups is None else "groups of training cells"
            warnings.warn(
                f"{n_units(train)} {what} with two modalities are too few to hold {LEAST_VALIDATION} of them out and "
                "tell whether networks help: the shared code stays linear.",
                UserWarning,
                stacklevel=4,
            )
            return False
        parts["train"] = np.setdiff1d(train, chosen)
        parts["validation"] = np.union1d(parts["validation"], chosen)
        return True

    def _cached(self, dataset: Any, indices: np.ndarray) -> CachedDataset:
        """Components, masks and batches of these cells."""
        self.module.eval()
        blocks = []
        with torch.no_grad():
            for batch in block_loader(dataset, BlockSampler(indices, 2_048)):
                sizes = self.module.sizes(batch)
                blocks.append({"components": self.module.components(batch), "mask": batch["mask"], "sizes": sizes})
        whole = {
            name: {m: torch.cat([block[name][m] for block in blocks]) for m in blocks[0][name]} for name in blocks[0]
        }
        codes = {"batch": dataset.batch, "group": dataset.groups, "index": np.arange(dataset.n_obs)}
        whole |= {name: torch.as_tensor(values[indices]) for name, values in codes.items() if values is not None}
        return CachedDataset(whole, indices, dataset.n_obs)

    # ---- what was found ---------------------------------------------------------------------

    def report(self) -> UnbraidReport:
        """What is shared, how sure that is, and whether networks earned their place.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        """
        self._check_if_trained(warn=False, message=UNTRAINED)
        module = self.module
        rows = {
            name: {
                "information": float(candidate.information),
                "standard_error": float(candidate.information_error),
                "n_kept": int(candidate.kept.sum()),
            }
            for name in CANDIDATES
            for candidate in [getattr(module, name)]
        }
        chosen = CANDIDATES[int(module.chosen)]
        value, error = rows[chosen]["information"], rows[chosen]["standard_error"]
        return UnbraidReport(
            chosen=chosen,
            candidates=pd.DataFrame.from_dict(rows, orient="index"),
            n_shared=module.n_shared,
            n_specific={m: module.specific[m].axes.shape[1] for m in self.modalities},
            correlations=module.candidate.correlation.cpu().numpy(),
            kept=module.candidate.kept.cpu().numpy(),
            threshold=float(module.candidate.threshold),
            information=value,
            interval=(value - 1.96 * error, value + 1.96 * error),
        )

    # ---- back to the data -------------------------------------------------------------------

    def reconstruct(
        self,
        modality: str,
        mdata: MuData | None = None,
        *,
        use: Literal["both", "shared", "specific"] = "both",
        transformed: bool = False,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        """A modality as its own codes have it.

        Parameters
        ----------
        modality
            Which one.
        mdata
            Cells; those of the set-up by default.
        use
            Both codes, or one of them with the other at its mean.
        transformed
            Give what the model sees (log-normalised values for counts), not values on the scale of the data.
        indices
            Cells, by number, by name or as a mask; all by default.

        Returns
        -------
        float32 array ``(n_obs, n_features)``, one row per cell; NaN where the cell lacks the modality. Counts are
        expected counts at the cell's own size.
        """
        check_option("`use`", use, ("both", "shared", "specific"))
        self._check_modality(modality)
        module, values = self.module, []
        for batch in self._batches(mdata, indices):
            latents = module.encode(batch)
            c = module.conditions(latents.shared, latents.joint, latents.mask)[modality]
            s = latents.specific[modality]
            c, s = (torch.zeros_like(c) if use == "specific" else c), (None if use == "shared" else s)
            x = module.decode(modality, c, s, module.batch_codes(batch))
            values.append(self._values(modality, x, batch, transformed))
        return torch.cat(values).cpu().numpy()

    def translate(
        self,
        source: str,
        target: str,
        mdata: MuData | None = None,
        *,
        transformed: bool = False,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        r"""What one modality tells of another: the other decoded from :math:`E[z_t \mid z_s] = \rho z_s`.

        The target's specific code is at its mean, so that only what is shared varies.

        Parameters
        ----------
        source, target
            Modalities.
        mdata
            Cells; those of the set-up by default. They need not have the target.
        transformed, indices
            As in :meth:`reconstruct`.

        Returns
        -------
        float32 array ``(n_obs, n_target_features)``; NaN where the cell lacks the source. Counts are at the cell's own
        size, or at the one that its other modalities predict if the target was not measured.
        """
        self._check_modality(source)
        self._check_modality(target)
        return self._from_others([source], target, mdata, transformed, indices)

    def impute(
        self,
        modality: str,
        mdata: MuData | None = None,
        *,
        transformed: bool = False,
        indices: Sequence[int] | None = None,
    ) -> np.ndarray:
        """A modality of every cell from all of its other modalities, as if it had not been measured.

        Parameters
        ----------
        modality
            Which one.
        mdata
            Cells; those of the set-up by default. They need not have the modality.
        transformed, indices
            As in :meth:`reconstruct`.

        Returns
        -------
        float32 array ``(n_obs, n_features)``; NaN where the cell has no other modality.
        """
        self._check_modality(modality)
        others = [m for m in self.modalities if m != modality]
        return self._from_others(others, modality, mdata, transformed, indices)

    def counterfactual(
        self,
        modality: str,
        shared_from: Sequence[int],
        specific_from: Sequence[int],
        mdata: MuData | None = None,
        *,
        shared_modality: str | None = None,
        transformed: bool = False,
    ) -> np.ndarray:
        """A modality with the shared code of some cells and the specific code of others.

        Parameters
        ----------
        modality
            Which one.
        shared_from, specific_from
            Numbers of cells, equally many; row i of the result has the shared code of the i-th of the first and the
            specific code of the i-th of the second.
        mdata
            Cells; those of the set-up by default.
        shared_modality
            Modality that the shared code is read from, as in :meth:`translate`; by default ``modality`` itself. Of a
            molecule that was never screened there is no phenotype to read it from.
        transformed
            As in :meth:`reconstruct`.

        Returns
        -------
        float32 array ``(n, n_features)``; counts at the size of the cells of ``shared_from``. NaN where the cells lack
        what is read from them.

        Raises
        ------
        ValueError
            If there are not equally many.
        """
        source = self._check_counterfactual(modality, shared_from, specific_from, shared_modality)
        module, parts = self.module, []
        # one pass after the other: two that take turns would leave inference mode on for good
        specific = [
            (module.encode(batch).specific[modality], batch["mask"][modality])
            for batch in self._batches(mdata, specific_from)
        ]
        for batch, (s, known) in zip(self._batches(mdata, shared_from), specific, strict=True):
            latents, mask = module.encode(batch), batch["mask"]
            if source == modality:
                c = module.conditions(latents.shared, latents.joint, mask)[modality]
            else:
                c = module.expected_condition(modality, {source: latents.shared[source]}, mask)
            x = module.decode(modality, c, s, module.batch_codes(batch))
            x = self._values(modality, x, batch, transformed, mask[source])
            parts.append(x.masked_fill(~known[:, None], torch.nan))
        return torch.cat(parts).cpu().numpy()

    def _from_others(self, sources, target: str, mdata, transformed: bool, indices) -> np.ndarray:
        module, values = self.module, []
        for batch in self._batches(mdata, indices):
            mask = batch["mask"]
            shared, _ = module.shared_codes(module.components(batch), mask)
            given = {m: shared[m] for m in sources}
            found = module.expected_condition(target, given, mask)
            x = module.decode(target, found, None, module.batch_codes(batch))
            known = torch.stack([mask[m] for m in sources]).any(dim=0)
            values.append(self._values(target, x, batch, transformed, known))
        return torch.cat(values).cpu().numpy()

    def _values(self, m: str, x: torch.Tensor, batch: dict, transformed: bool, known=None) -> torch.Tensor:
        """Decoded values on the scale of the data, NaN for cells of which nothing is known."""
        module, mask = self.module, batch["mask"][m]
        if not transformed:
            x = module.input_layers[m].inverse(x, module.predicted_sizes(batch, m) if m in module.counted else None)
        return x.masked_fill(~(mask if known is None else known)[:, None], torch.nan)
