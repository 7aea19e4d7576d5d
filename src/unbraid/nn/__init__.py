"""Networks and what goes into them: encoders, input scales, augmentations, samplers."""

from unbraid.nn._augmentation import BinomialThinning, NoiseDropout
from unbraid.nn._input import COUNT_LIKELIHOODS, InputLayer, InputTransform, Likelihood, ModalitySpec
from unbraid.nn._mlp import MLP
from unbraid.nn._per_modality import PerModality
from unbraid.nn._von_mises_fisher import sample_von_mises_fisher

__all__ = [
    "BinomialThinning",
    "COUNT_LIKELIHOODS",
    "InputLayer",
    "InputTransform",
    "Likelihood",
    "MLP",
    "ModalitySpec",
    "NoiseDropout",
    "PerModality",
    "sample_von_mises_fisher",
]
