"""One staged Lightning plan for all methods."""

from unbraid.train._callbacks import BestWeights, EpochCheckpoint, StageProgress
from unbraid.train._linear import LinearFit, components_of_the_rest, fit_linear
from unbraid.train._plan import StagedPlan
from unbraid.train._runner import RunOptions, resumed_seed, run_stages

__all__ = [
    "BestWeights",
    "EpochCheckpoint",
    "LinearFit",
    "RunOptions",
    "StageProgress",
    "StagedPlan",
    "components_of_the_rest",
    "fit_linear",
    "resumed_seed",
    "run_stages",
]
