"""Centering and scaling of the activations, taken into the weights."""

from typing import Any

import torch
from torch import Tensor

from palinka.autoencoders.base import Autoencoder
from palinka.autoencoders.formats.architectures import is_known
from palinka.autoencoders.ksparse import KSparseAutoencoder
from palinka.autoencoders.layer_normalized import LayerNormalizedAutoencoder
from palinka.autoencoders.scaling import InputScaling
from palinka.errors import InputError

# A mean and a scale.
Constants = tuple[Tensor, float]


@torch.no_grad()
def fold(
    autoencoder: Autoencoder, scaling: InputScaling, target_scaling: InputScaling | None = None
) -> Autoencoder:
    """An autoencoder of raw activations that does what one did with centered and scaled ones.

    Its latents are the same, and its reconstruction is what `inverse` of the scaling makes of the
    other's. Where there is a scale, directions that had norm 1 have norm `1 / scale`, and what was
    tied is not any longer.

    Args:
        autoencoder: Stays as it is.
        scaling: What the activations went through.
        target_scaling: What those went through that a transcoder gives.

    Returns:
        A new autoencoder of the same class, on the CPU.

    Raises:
        InputError: If its class is one of somebody else's, which may do more with activations.
    """
    read = _constants(scaling)
    written = read if target_scaling is None else _constants(target_scaling)
    kind, config = type(autoencoder), dict(autoencoder.config())
    weights = {name: tensor.detach().cpu() for name, tensor in autoencoder.state_dict().items()}
    if any(scale != 1.0 or bool(mean.any()) for mean, scale in (read, written)):
        if not is_known(kind) or kind is LayerNormalizedAutoencoder:
            raise InputError(
                f"centering and scaling cannot be taken into the weights of a {kind.__name__}:"
                " keep the checkpoint, or train without center and unit_norm"
            )
        weights = {name: tensor.double() for name, tensor in weights.items()}
        if isinstance(autoencoder, KSparseAutoencoder):
            _untie(config, weights, read, written)
        _fold(config, weights, read, written)
    folded = kind(**config)
    stored = folded.state_dict()
    folded.load_state_dict({name: t.to(stored[name].dtype) for name, t in weights.items()})
    return folded.train(autoencoder.training)


def _constants(scaling: InputScaling) -> Constants:
    return scaling.mean.double().cpu(), float(scaling.scale)


def _untie(
    config: dict[str, Any], weights: dict[str, Tensor], read: Constants, written: Constants
) -> None:
    """Give a k-sparse autoencoder the parameters that folding needs."""
    config["decoder_bias"] = True
    weights.setdefault("decoder_bias", torch.zeros_like(written[0]))
    if "output_dim" in config:
        config["encoder_bias"] = True
        weights.setdefault(
            "encoder.bias", weights["encoder.weight"].new_zeros(config["latent_dim"])
        )
    if config["tied"] and read[1] != 1.0:
        config["tied"] = False
        weights["decoder_weight"] = weights["encoder.weight"]


def _fold(
    config: dict[str, Any], weights: dict[str, Tensor], read: Constants, written: Constants
) -> None:
    if read[1] != 1.0:
        weights["encoder.weight"] = weights["encoder.weight"] * read[1]
    if written[1] != 1.0:
        weights["decoder_weight"] = weights["decoder_weight"] / written[1]
        config["unit_norm"] = False
    weights["decoder_bias"] = weights["decoder_bias"] / written[1] + written[0]
    # Where the decoder's bias is subtracted before encoding, the mean is subtracted with it.
    if "output_dim" in config or not config.get("subtract_decoder_bias", True):
        _shift_biases(weights, weights["encoder.weight"] @ read[0])


def _shift_biases(weights: dict[str, Tensor], shift: Tensor) -> None:
    if "gate_bias" in weights:
        magnitude = weights["log_magnitude"].exp()
        weights["gate_bias"] = weights["gate_bias"] - shift
        weights["magnitude_bias"] = weights["magnitude_bias"] - magnitude * shift
    else:
        weights["encoder.bias"] = weights["encoder.bias"] - shift
