"""One staged Lightning plan for all methods."""

from unbraid.train._callbacks import BestWeights, EpochCheckpoint, StageProgress
from unbraid.train._plan import StagedPlan
from unbraid.train._runner import RunOptions, resumed_seed, run_stages

__all__ = ["BestWeights", "EpochCheckpoint", "RunOptions", "StageProgress", "StagedPlan", "resumed_seed", "run_stages"]
