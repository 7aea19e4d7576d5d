"""What every method's torch side has in common: stages, latents, named loss terms."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import torch
from scvi.module.base import BaseModuleClass, LossOutput
from torch import nn
from torch.nn.functional import one_hot

from unbraid.nn import InputLayer, ModalitySpec, PerModality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

Kind = Literal["shared", "specific", "joint", "task", "residual"]


@dataclass(frozen=True)
class InnerLoop:
    """An auxiliary network that is refitted several steps within every step of a stage.

    Attributes
    ----------
    parts
        Names of the module's children that it trains, by ``module.inner_loss``.
    n_steps
        Steps per outer step.
    lr
        Learning rate of its own Adam.
    fresh_batches
        Draw a new batch for every inner step; otherwise the outer step's batch serves.
    """

    parts: tuple[str, ...]
    n_steps: int = 5
    lr: float = 1e-3
    fresh_batches: bool = False

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise ValueError(f"`n_steps` must be at least 1, got {self.n_steps}.")


@dataclass(frozen=True)
class Stage:
    """One stage of training: what is trained, and how. Everything else is frozen.

    Attributes
    ----------
    name
        Names the stage in ``history``, in the progress bar and in ``max_epochs={name: ...}``.
    parts
        Names of the module's children that are trained.
    lr, weight_decay
        Of Adam (AdamW with a weight decay).
    max_epochs
        Default number of epochs; None lets the size of the data decide.
    schedule
        ``"cosine"`` lets the learning rate fall to zero over the epochs.
    gradient_clip
        Largest norm of the gradient; None does not clip.
    inner
        An inner loop, if the method has one.
    early_stopping
        What early stopping does, where the user has it: ``"stop"`` when the validation loss no longer falls and take
        the weights of the best epoch; ``"best"``, only take these weights, for a loss that may rise before it falls;
        ``"never"``, for a game against an inner loop, whose loss is lowest before it has begun.
    n_steps
        Default number of steps, about; None leaves it to the model.
    """

    name: str
    parts: tuple[str, ...]
    lr: float = 1e-3
    weight_decay: float = 0.0
    max_epochs: int | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    gradient_clip: float | None = None
    inner: InnerLoop | None = None
    early_stopping: Literal["stop", "best", "never"] = "stop"
    n_steps: int | None = None


@dataclass
class Latents:
    """Latents of a batch of ``n`` cells.

    Attributes
    ----------
    mask
        Per modality, which cells have it: bool ``(n,)``.
    shared, specific
        Per modality, ``(n, n_latent)``; rows of cells that lack the modality are zero.
    joint
        Shared code of the cell from whichever modalities it has, ``(n, n_shared)``.
    params
        Whatever else a method needs later, by name.
    """

    mask: dict[str, torch.Tensor]
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    specific: dict[str, torch.Tensor] = field(default_factory=dict)
    joint: torch.Tensor | None = None
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Peers:
    """Which cells of a batch may be negatives of each other in a contrast. Rows are chosen as of a tensor.

    Attributes
    ----------
    groups
        Negatives come from a cell's own group only, such as its experimental batch: ``(n,)``; None for all.
    replicates
        Cells with the same one, such as profiles of one compound, are never negatives: ``(n,)``; None for none.
    """

    groups: torch.Tensor | None = None
    replicates: torch.Tensor | None = None

    def __getitem__(self, rows: torch.Tensor) -> Peers:
        return Peers(*(None if codes is None else codes[rows] for codes in (self.groups, self.replicates)))


def total_loss(terms: Mapping[str, tuple[float, Callable[[], torch.Tensor]]], n_obs: int) -> LossOutput:
    """Sum of weighted terms; a term of weight 0 is never computed.

    Parameters
    ----------
    terms
        Per name, its weight and a function that gives the scalar term.
    n_obs
        Cells of the batch.

    Returns
    -------
    The weighted sum, with every unweighted term under its name in ``extra_metrics``.
    """
    values = {name: term() for name, (weight, term) in terms.items() if weight != 0}
    loss = sum((terms[name][0] * value for name, value in values.items()), start=torch.zeros(()))
    return LossOutput(
        loss=loss, n_obs_minibatch=n_obs, extra_metrics={name: value.detach() for name, value in values.items()}
    )


def on_present_rows(
    function: Callable[..., torch.Tensor], mask: torch.Tensor, *inputs: torch.Tensor | None
) -> torch.Tensor:
    """Apply ``function`` to the rows of the cells that have the modality; the other rows are zero.

    What an absent cell's rows hold can therefore change nothing, batch statistics included.
    """
    if mask.all():
        return function(*inputs)
    values = function(*(None if x is None else x[mask] for x in inputs))
    return values.new_zeros(len(mask), values.shape[1]).index_put((mask.nonzero().squeeze(1),), values)


def over_pairs(
    function: Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor],
    codes: Mapping[str, torch.Tensor],
    mask: Mapping[str, torch.Tensor],
    groups: torch.Tensor | Peers | None = None,
) -> torch.Tensor:
    """Average of ``function(codes_m, codes_n, groups)`` over the pairs of modalities, on the cells with both."""
    values = []
    for m, n in combinations(codes, 2):
        both = mask[m] & mask[n]
        if both.all():
            values.append(function(codes[m], codes[n], groups))
        elif both.sum() > 1:
            values.append(function(codes[m][both], codes[n][both], None if groups is None else groups[both]))
    return sum(values) / len(values) if values else sum(code.sum() for code in codes.values()) * 0.0


def centered(x: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    """Rows less the mean of their group, so that what tells groups apart correlates with nothing."""
    if groups is None:
        return x
    _, group = groups.unique(return_inverse=True)
    count = torch.bincount(group).unsqueeze(1)
    mean = x.new_zeros(len(count), x.shape[1]).index_add(0, group, x) / count
    return x - mean[group]


class SplitModule(BaseModuleClass):
    """Base of all modules: M modalities in, shared and specific codes out.

    A subclass implements :attr:`stages`, :meth:`encode` and :meth:`loss` (and :meth:`inner_loss` if
    a stage has an inner loop).

    Parameters
    ----------
    specs
        The modalities, in the order of the set-up.
    """

    negatives: str = "all"  # cells that a contrast compares with: all, or those of the own "batch"

    def __init__(self, specs: Sequence[ModalitySpec]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.n_categories: tuple[int, ...] = ()  # of batch and categorical covariates, for networks that get them
        self.n_continuous = 0
        self.input_layers = PerModality({spec.name: InputLayer(spec) for spec in specs})

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in the order of the set-up."""
        return [spec.name for spec in self.specs]

    @property
    def device(self) -> torch.device:
        """Where the module lies; also for a module that has no parameters."""
        return next(tensor.device for group in (self.parameters(), self.buffers()) for tensor in group)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of latents that the method has."""
        return ("shared", "specific")

    @property
    def shared_slices(self) -> dict[Kind, slice]:
        """Where in the shared code its parts are, if it has any."""
        return {}

    @property
    @abstractmethod
    def stages(self) -> list[Stage]:
        """Stages of training, in order."""

    @abstractmethod
    def encode(self, batch: dict, *, give_mean: bool = True) -> Latents:
        """Encode a batch.

        Parameters
        ----------
        batch
            Batch of a :class:`~unbraid.data.MultimodalDataset`.
        give_mean
            The posterior's mean; otherwise a sample of it.
        """

    @abstractmethod
    def loss(self, batch: dict, stage: str) -> LossOutput:
        """Loss of a stage on a batch, with its terms by name."""

    def inner_loss(self, batch: dict, stage: str) -> torch.Tensor:
        """Loss of the auxiliary network of a stage's inner loop."""
        raise NotImplementedError(f"Stage {stage!r} of {type(self).__name__} has no inner loop.")

    def end_stage(self, stage: str, batches: Iterable[dict]) -> None:
        """Fit in closed form, on the training cells, what a finished stage leaves open; nothing by default.

        Parameters
        ----------
        stage
            Name of the stage, also of one that was given no epochs.
        batches
            All training cells, once; nothing is computed unless they are asked for.
        """

    def validate_stage(self, stage: str, train: Iterable[dict], validation: Iterable[dict]) -> dict[str, float]:
        """Quantities of all validation cells at once, after every epoch; none by default.

        A ``"loss"`` among them takes the place of the mean loss of the validation batches: early stopping follows it.

        Parameters
        ----------
        stage
            Name of the stage.
        train, validation
            All training and all validation cells, once; nothing is computed unless they are asked for.
        """
        return {}

    def extended_state(self, reference: SplitModule) -> dict[str, torch.Tensor]:
        """State of a module that knew fewer batches, made to fit this one; as it is by default."""
        return reference.state_dict()

    def widened_state(self, reference: SplitModule) -> dict[str, torch.Tensor]:
        """State of a module whose networks get covariates as their last inputs, with columns for new categories.

        A category that is new begins as the mean of the known ones.
        """
        own, extended = self.state_dict(), reference.state_dict()
        added = [after - before for before, after in zip(reference.n_categories, self.n_categories, strict=True)]
        for name, weight in reference.named_parameters():
            old = weight.detach()
            if old.ndim == 2 and own[name].shape[1] > old.shape[1]:
                widths = [old.shape[1] - reference.n_covariates, *reference.n_categories, self.n_continuous]
                first, *known, last = old.split(widths, 1)
                wider = [
                    torch.cat([block, block.mean(1, keepdim=True).expand(-1, n)], 1)
                    for block, n in zip(known, added, strict=True)
                ]
                extended[name] = torch.cat([first, *wider, last], 1)
        return extended

    def inputs(self, batch: dict) -> dict[str, torch.Tensor]:
        """What the encoders see, per modality."""
        sizes = batch["size_factor"]
        return {
            m: on_present_rows(self.input_layers[m], batch["mask"][m], batch["x"][m], sizes.get(m))
            for m in self.modalities
        }

    def covariates(self, batch: dict) -> torch.Tensor:
        """Batch and covariates that the networks get, shape ``(n, n_covariates)``."""
        codes = torch.cat([batch["batch"].unsqueeze(1), batch["categorical"]], dim=1)
        parts = [one_hot(codes[:, k], n) for k, n in enumerate(self.n_categories) if n]
        parts += [batch["continuous"]] if self.n_continuous else []
        return torch.cat([part.float() for part in parts], dim=1) if parts else batch["continuous"][:, :0]

    @property
    def n_covariates(self) -> int:
        """Columns of :meth:`covariates`."""
        return sum(self.n_categories) + self.n_continuous

    @staticmethod
    def units(batch: dict) -> torch.Tensor:
        """What is drawn independently, ``(n,)``: the group that a cell is a replicate of, or else the cell."""
        return batch.get("group", batch["index"])

    def groups(self, batch: dict) -> torch.Tensor | None:
        """Batch of every cell, if batches are taken apart."""
        return batch["batch"] if self.negatives == "batch" else None

    def peers(self, batch: dict) -> Peers:
        """Which cells may be negatives of each other in a contrast."""
        return Peers(self.groups(batch), batch.get("group"))

    def library_sizes(self, batch: dict, modality: str) -> torch.Tensor | None:
        """Expected total count of every cell, ``(n,)``; None for a modality that is no counts.

        A given size factor is put on the scale of the data's mean total; otherwise it is the cell's own total.
        """
        spec = self.specs[self.modalities.index(modality)]
        if not spec.is_count:
            return None
        sizes = batch["size_factor"].get(modality)
        if sizes is None:
            return batch["x"][modality].sum(dim=1)
        return sizes * float(spec.mean.sum() / spec.size_factor_reference)

    def parameters_of(self, parts: Sequence[str]) -> Iterator[nn.Parameter]:
        """Parameters of the named children, or of a child that is itself a parameter."""
        for part in parts:
            child = getattr(self, part)
            yield from [child] if isinstance(child, nn.Parameter) else child.parameters()

    # scvi-tools' names for the two halves of a forward pass; here `encode` is all there is
    def _get_inference_input(self, tensors: dict, **kwargs: Any) -> dict:
        return {"batch": tensors}

    def inference(self, batch: dict, **kwargs: Any) -> Latents:
        """Same as :meth:`encode`."""
        return self.encode(batch, **kwargs)

    def _get_generative_input(self, tensors: dict, inference_outputs: Latents, **kwargs: Any) -> dict:
        return {}

    def generative(self, **kwargs: Any) -> dict:
        """Nothing: a module without decoders generates nothing."""
        return {}

    def sample(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Not available without decoders."""
        raise NotImplementedError(f"{type(self).__name__} has no decoder to sample from.")
