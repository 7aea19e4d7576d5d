"""Measures of what an embedding holds. They take any embedding, whichever model made it."""

from unbraid.metrics._clustering import ClusteringResult, clustering
from unbraid.metrics._coherence import CoherenceResult, coherence
from unbraid.metrics._controls import negative_control, positive_control
from unbraid.metrics._cross_classification import CrossClassificationResult, cross_classification
from unbraid.metrics._dependence import DependenceResult, dependence
from unbraid.metrics._diff_fd import DiffFDResult, diff_fd
from unbraid.metrics._frechet import FrechetResult, frechet_distance
from unbraid.metrics._importance import MaskingImportance, masking_importance
from unbraid.metrics._mutual_information import MutualInformationResult, mutual_information
from unbraid.metrics._probe import ProbeResult, probe
from unbraid.metrics._rank_correlation import RankCorrelation, weight_rank_correlation
from unbraid.metrics._reconstruction import ReconstructionGain, reconstruction_gain
from unbraid.metrics._retrieval import RetrievalResult, retrieval
from unbraid.metrics._scib import ScibResult, scib
from unbraid.metrics._scorecard import Scorecard, scorecard

__all__ = [
    "ClusteringResult",
    "CoherenceResult",
    "CrossClassificationResult",
    "DependenceResult",
    "DiffFDResult",
    "FrechetResult",
    "MaskingImportance",
    "MutualInformationResult",
    "ProbeResult",
    "RankCorrelation",
    "ReconstructionGain",
    "RetrievalResult",
    "ScibResult",
    "Scorecard",
    "clustering",
    "coherence",
    "cross_classification",
    "dependence",
    "diff_fd",
    "frechet_distance",
    "masking_importance",
    "mutual_information",
    "negative_control",
    "positive_control",
    "probe",
    "reconstruction_gain",
    "retrieval",
    "scib",
    "scorecard",
    "weight_rank_correlation",
]
