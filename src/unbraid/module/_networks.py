"""Encoders and decoders of a modality: built by name, or the user's own."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from unbraid.nn import LikelihoodDecoder, ResNetDecoder, ResNetEncoder, TextDecoder, TextEncoder, hidden_network

if TYPE_CHECKING:
    from unbraid.nn import ModalitySpec

NetworkName = Literal["mlp", "resnet", "text"]
Networks = NetworkName | nn.Module | dict[str, NetworkName | nn.Module]
NAMES = ("mlp", "resnet", "text")


def encoder_of(
    choice: Networks, spec: ModalitySpec, n_covariates: int, *, n_hidden: int, n_layers: int, **options: Any
) -> tuple[nn.Module, int]:
    """The encoder of a modality up to its last hidden layer, and the width of this.

    Parameters
    ----------
    choice
        ``"mlp"``; ``"resnet"`` for images and ``"text"`` for texts; a network of one's own, from ``(n, n_features +
        n_covariates)`` to ``(n, any width)``; or one of them per modality (``"mlp"`` for those not named).
    spec
        The modality.
    n_covariates
        Columns that come after the features.
    n_hidden, n_layers, **options
        Of the perceptron; ``n_hidden`` is the width of the others too.
    """
    own = _choice(choice, spec, "Encoder")
    if isinstance(own, nn.Module):
        network = deepcopy(own)
        return network, _width(network, spec, n_covariates)
    if own == "mlp":
        if spec.likelihood == "categorical":
            raise ValueError(
                f"Modality {spec.name!r} holds categories, such as the numbers of words, which a perceptron would take for "
                f"amounts. Set `encoders={{{spec.name!r}: 'text'}}`, or give a network of your own."
            )
        return hidden_network(spec.n_features + n_covariates, n_hidden, n_layers, **options), n_hidden
    _check_place(own, spec, n_covariates)
    if own == "resnet":
        network = ResNetEncoder(spec.shape, n_hidden)
    else:
        network = TextEncoder(spec.shape[0], spec.n_categories, n_hidden)
    return nn.Sequential(network, nn.ReLU()), n_hidden


def decoder_of(
    choice: Networks, spec: ModalitySpec, n_in: int, n_covariates: int, *, scale: float | None, **options: Any
) -> LikelihoodDecoder:
    """The decoder of a modality with its likelihood.

    Parameters
    ----------
    choice
        As for :func:`encoder_of`; a network of one's own maps ``(n, n_in + n_covariates)`` to ``(n, outputs)``, see
        :class:`~unbraid.nn.LikelihoodDecoder`.
    spec
        The modality.
    n_in, n_covariates
        Width of the latent, and columns that come after it.
    scale
        Fixed scale of a normal or Laplace likelihood; of no meaning to the others.
    **options
        Of the perceptron.
    """
    own = _choice(choice, spec, "Decoder")
    network = None
    if isinstance(own, nn.Module):
        network = deepcopy(own)
    elif own != "mlp":
        _check_place(own, spec, 0)
        if own == "resnet":
            network = ResNetDecoder(n_in + n_covariates, spec.shape)
        else:
            network = TextDecoder(n_in + n_covariates, spec.shape[0], spec.n_categories)
    scale = scale if spec.likelihood in ("normal", "laplace") else None
    return LikelihoodDecoder(spec, n_in, n_covariates=n_covariates, network=network, scale=scale, **options)


def _choice(choice: Networks, spec: ModalitySpec, part: str) -> NetworkName | nn.Module:
    own = choice.get(spec.name, "mlp") if isinstance(choice, dict) else choice
    if not isinstance(own, nn.Module) and own not in NAMES:
        raise ValueError(
            f"{part} of modality {spec.name!r} is {', '.join(map(repr, NAMES))} or a torch Module, got {own!r}."
        )
    return own


def _check_place(name: NetworkName, spec: ModalitySpec, n_covariates: int) -> None:
    n_dimensions, maker = (3, "images") if name == "resnet" else (1, "text")
    if spec.shape is None or len(spec.shape) != n_dimensions or (name == "text" and spec.n_categories is None):
        raise ValueError(
            f"Modality {spec.name!r}: {name!r} needs an array made by `unbraid.data.{maker}`, which notes its shape. "
            "Use 'mlp' for features without a place."
        )
    if n_covariates:
        raise ValueError(f"Modality {spec.name!r}: {name!r} takes no covariates; leave out `encode_covariates`.")


def _width(network: nn.Module, spec: ModalitySpec, n_covariates: int) -> int:
    was_training = network.training
    with torch.no_grad():
        shape = tuple(network.eval()(torch.zeros(2, spec.n_features + n_covariates)).shape)
    network.train(was_training)
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(
            f"The encoder of modality {spec.name!r} must map (n, {spec.n_features + n_covariates}) to (n, width); "
            f"2 rows became shape {shape}."
        )
    return shape[1]
