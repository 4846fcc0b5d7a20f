"""Between our architectures and what every library stores of one."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from palinka.autoencoders.base import Autoencoder
from palinka.autoencoders.batch_topk import BatchTopKAutoencoder
from palinka.autoencoders.formats.plain import (
    Activation,
    BatchTopK,
    Gate,
    Plain,
    ReLU,
    Threshold,
    TopK,
)
from palinka.autoencoders.gated import GatedAutoencoder
from palinka.autoencoders.jumprelu import JumpReLUAutoencoder
from palinka.autoencoders.ksparse import KSparseAutoencoder
from palinka.autoencoders.layer_normalized import LayerNormalizedAutoencoder
from palinka.autoencoders.matryoshka import MatryoshkaAutoencoder
from palinka.autoencoders.relu import ReLUAutoencoder
from palinka.autoencoders.topk import TopKAutoencoder
from palinka.errors import InputError

# What an autoencoder makes of its encoder's values. A subclass may compute something else, so
# that only these very classes are known.
_ACTIVATIONS: dict[type[Autoencoder], Callable[[Any], Activation]] = {
    KSparseAutoencoder: lambda ours: TopK(ours.k),
    LayerNormalizedAutoencoder: lambda ours: TopK(ours.k),
    TopKAutoencoder: lambda ours: TopK(ours.k),
    BatchTopKAutoencoder: lambda ours: BatchTopK(ours.k, ours.threshold),
    MatryoshkaAutoencoder: lambda ours: BatchTopK(ours.k, ours.threshold),
    ReLUAutoencoder: lambda _: ReLU(),
    JumpReLUAutoencoder: lambda ours: Threshold(ours.threshold),
    GatedAutoencoder: lambda ours: Gate(ours.magnitude_bias, ours.log_magnitude),
}


def is_known(kind: type[Autoencoder]) -> bool:
    """Whether a class is one of these, and no subclass of one."""
    return kind in _ACTIVATIONS


@torch.no_grad()
def plain(autoencoder: Autoencoder) -> Plain:
    """The weights of an autoencoder, as other libraries can hold them.

    Raises:
        InputError: If it is of a class that no other library knows, or a transcoder.
    """
    if autoencoder.is_transcoder:
        raise InputError("a transcoder can be saved in palinka's own format only: choose that")
    activation = _ACTIVATIONS.get(type(autoencoder))
    if activation is None:
        raise InputError(
            f"a {type(autoencoder).__name__} is of no architecture that other libraries know:"
            " save it in palinka's own format"
        )
    ours = cast(Any, autoencoder)
    bias = ours.gate_bias if isinstance(autoencoder, GatedAutoencoder) else ours.encoder.bias
    read = ours.decoder_bias
    weight: Tensor = ours.encoder.weight.detach()
    zeros = weight.new_zeros
    return Plain(
        encoder=weight,
        encoder_bias=zeros(autoencoder.latent_dim) if bias is None else bias.detach(),
        decoder=autoencoder.dictionary.detach(),
        decoder_bias=zeros(autoencoder.input_dim) if read is None else read.detach(),
        activation=activation(ours),
        subtracts=getattr(ours, "subtract_decoder_bias", True),
        normalizes=isinstance(autoencoder, LayerNormalizedAutoencoder),
    )


@torch.no_grad()
def built(weights: Plain) -> Autoencoder:
    """An autoencoder of ours with given weights, on the CPU.

    Raises:
        InputError: If none of ours computes the same.
    """
    if weights.normalizes and not isinstance(weights.activation, TopK):
        raise InputError(
            "activations that are layer-normed before encoding are known here with top-k only, not"
            f" with {type(weights.activation).__name__}"
        )
    if weights.normalizes:
        weights = weights.subtracting()
    ours = _made(weights)
    own = {
        "encoder.weight": weights.encoder,
        "decoder_weight": weights.decoder,
        "decoder_bias": weights.decoder_bias,
    }
    match weights.activation:
        case Threshold(threshold):
            # A threshold below zero does what zero does, since a ReLU comes first.
            own["log_threshold"] = threshold.clamp(min=0).log()
        case BatchTopK(_, threshold):
            own["threshold"] = threshold.clamp(min=0)
        case Gate(magnitude_bias, log_magnitude):
            own["magnitude_bias"], own["log_magnitude"] = magnitude_bias, log_magnitude
    gated = isinstance(weights.activation, Gate)
    own["gate_bias" if gated else "encoder.bias"] = weights.encoder_bias
    ours.load_state_dict(own)
    return ours


def _made(weights: Plain) -> Autoencoder:
    """An autoencoder of the right class and size, with fresh weights."""
    size, read = (weights.width, weights.latents), weights.subtracts
    match weights.activation:
        case TopK(k) if weights.normalizes:
            return LayerNormalizedAutoencoder(
                *size, k, tied=False, encoder_bias=True, decoder_bias=True
            )
        case TopK(k):
            return TopKAutoencoder(*size, k, subtract_decoder_bias=read, unit_norm=False)
        case BatchTopK(k):
            return BatchTopKAutoencoder(*size, k, subtract_decoder_bias=read, unit_norm=False)
        case ReLU():
            return ReLUAutoencoder(*size, subtract_decoder_bias=read, unit_norm=False)
        case Threshold():
            return JumpReLUAutoencoder(*size, subtract_decoder_bias=read, unit_norm=False)
        case Gate():
            return GatedAutoencoder(*size, subtract_decoder_bias=read, unit_norm=False)
