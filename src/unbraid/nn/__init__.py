"""Networks and what goes into them: encoders, decoders, critics, input scales, augmentations, samplers."""

from unbraid.nn._augmentation import BinomialThinning, NoiseDropout
from unbraid.nn._conditional_gaussian import ConditionalGaussian
from unbraid.nn._critic import PairCritic
from unbraid.nn._fusion import FusionTransformer
from unbraid.nn._image import ResNetDecoder, ResNetEncoder
from unbraid.nn._input import COUNT_LIKELIHOODS, InputLayer, InputTransform, Likelihood, ModalitySpec
from unbraid.nn._likelihood import LikelihoodDecoder, expected_values, log_likelihood, null_deviance
from unbraid.nn._mixture_prior import MixturePrior, ProductPrior
from unbraid.nn._mlp import MLP
from unbraid.nn._per_modality import PerModality
from unbraid.nn._posterior import (
    LatentFamily,
    Posterior,
    PosteriorEncoder,
    ScaleForm,
    hidden_network,
    product_of_experts,
    scale_of,
    subsets,
)
from unbraid.nn._prior import DiffusionPrior, Prior
from unbraid.nn._residual import CrossFittedResidual
from unbraid.nn._size import SizePredictor, size_features
from unbraid.nn._text import TextDecoder, TextEncoder
from unbraid.nn._von_mises_fisher import sample_von_mises_fisher

__all__ = [
    "BinomialThinning",
    "COUNT_LIKELIHOODS",
    "ConditionalGaussian",
    "CrossFittedResidual",
    "DiffusionPrior",
    "FusionTransformer",
    "InputLayer",
    "InputTransform",
    "LatentFamily",
    "Likelihood",
    "LikelihoodDecoder",
    "MLP",
    "MixturePrior",
    "ModalitySpec",
    "NoiseDropout",
    "PairCritic",
    "PerModality",
    "Posterior",
    "PosteriorEncoder",
    "Prior",
    "ProductPrior",
    "ResNetDecoder",
    "ResNetEncoder",
    "ScaleForm",
    "SizePredictor",
    "TextDecoder",
    "TextEncoder",
    "expected_values",
    "hidden_network",
    "log_likelihood",
    "null_deviance",
    "product_of_experts",
    "sample_von_mises_fisher",
    "scale_of",
    "size_features",
    "subsets",
]
