"""Networks and what goes into them: encoders, decoders, critics, input scales, augmentations, samplers."""

from unbraid.nn._augmentation import BinomialThinning, NoiseDropout
from unbraid.nn._conditional_gaussian import ConditionalGaussian
from unbraid.nn._critic import PairCritic
from unbraid.nn._fusion import FusionTransformer
from unbraid.nn._input import COUNT_LIKELIHOODS, InputLayer, InputTransform, Likelihood, ModalitySpec
from unbraid.nn._likelihood import LikelihoodDecoder, log_likelihood, null_deviance
from unbraid.nn._mlp import MLP
from unbraid.nn._per_modality import PerModality
from unbraid.nn._residual import CrossFittedResidual
from unbraid.nn._von_mises_fisher import sample_von_mises_fisher

__all__ = [
    "BinomialThinning",
    "COUNT_LIKELIHOODS",
    "ConditionalGaussian",
    "CrossFittedResidual",
    "FusionTransformer",
    "InputLayer",
    "InputTransform",
    "Likelihood",
    "LikelihoodDecoder",
    "MLP",
    "ModalitySpec",
    "NoiseDropout",
    "PairCritic",
    "PerModality",
    "log_likelihood",
    "null_deviance",
    "sample_von_mises_fisher",
]
