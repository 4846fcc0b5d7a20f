"""Folders of dictionary_learning: `ae.pt` beside `config.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from palinka.autoencoders.base import read_config
from palinka.autoencoders.formats.common import (
    BatchTopK,
    Gate,
    Origin,
    Plain,
    ReLU,
    Threshold,
    TopK,
    Weights,
    check_dimensions,
    check_k,
    object_of,
    read_state_dict,
    site_of_label,
    text_of,
)
from palinka.errors import InputError

CONFIG, WEIGHTS = "config.json", "ae.pt"
FILES = (CONFIG, WEIGHTS)


def read(folder: Path) -> tuple[Plain, Origin]:
    """Read a folder that dictionary_learning saved.

    Raises:
        InputError: If a file is missing or damaged, or they do not fit together.
    """
    path = folder / CONFIG
    trainer = object_of(read_config(path), "trainer")
    weights = Weights(read_state_dict(folder / WEIGHTS), folder / WEIGHTS)
    if "W_enc" in weights:
        plain = _transposed(weights, path)
    elif "r_mag" in weights:
        plain = _gated(weights)
    elif "k" in weights:
        plain = _top_k(weights, trainer, path)
    else:
        plain = _relu(weights)
    weights.check_all_taken()
    check_dimensions(trainer, path, activation_dim=plain.width, dict_size=plain.latents)
    return plain, _origin(trainer)


def _relu(weights: Weights) -> Plain:
    encoder, decoder = _pair(weights)
    latents, width = encoder.shape
    # The older class has one bias and subtracts it, the newer one that of the decoder.
    subtracts = "bias" in weights
    return Plain(
        encoder=encoder,
        encoder_bias=weights.take("encoder.bias", latents),
        decoder=decoder,
        decoder_bias=weights.take("bias" if subtracts else "decoder.bias", width),
        activation=ReLU(),
        subtracts=subtracts,
    )


def _gated(weights: Weights) -> Plain:
    encoder, decoder = _pair(weights)
    latents, width = encoder.shape
    return Plain(
        encoder=encoder,
        encoder_bias=weights.take("gate_bias", latents),
        decoder=decoder,
        decoder_bias=weights.take("decoder_bias", width),
        activation=Gate(weights.take("mag_bias", latents), weights.take("r_mag", latents)),
    )


def _top_k(weights: Weights, trainer: Mapping[str, Any], path: Path) -> Plain:
    encoder, decoder = _pair(weights)
    latents, width = encoder.shape
    k = check_k(_whole(weights.take("k"), weights.path), latents, path)
    threshold = weights.take("threshold") if "threshold" in weights else None
    of_batch = trainer.get("dict_class") == "BatchTopKSAE"
    return Plain(
        encoder=encoder,
        encoder_bias=weights.take("encoder.bias", latents),
        decoder=decoder,
        decoder_bias=weights.take("b_dec", width),
        activation=BatchTopK(k, threshold) if of_batch and threshold is not None else TopK(k),
    )


def _transposed(weights: Weights, path: Path) -> Plain:
    """The two classes whose weights lie the other way round."""
    encoder = weights.matrix("W_enc").T
    latents, width = encoder.shape
    matryoshka = "group_sizes" in weights
    weights.skip("group_sizes")
    if matryoshka:
        k = check_k(_whole(weights.take("k"), weights.path), latents, path)
        activation: BatchTopK | Threshold = BatchTopK(k, weights.take("threshold"))
    else:
        activation = Threshold(weights.take("threshold", latents))
    return Plain(
        encoder=encoder,
        encoder_bias=weights.take("b_enc", latents),
        decoder=weights.take("W_dec", latents, width),
        decoder_bias=weights.take("b_dec", width),
        activation=activation,
        subtracts=matryoshka,
    )


def _pair(weights: Weights) -> tuple[Tensor, Tensor]:
    encoder = weights.matrix("encoder.weight")
    latents, width = encoder.shape
    return encoder, weights.take("decoder.weight", width, latents).T


def _whole(number: Tensor, path: Path) -> int:
    value = float(number)
    if not value.is_integer():
        raise InputError(f"{path}: k is {value}; expected a whole number")
    return int(value)


def _origin(trainer: Mapping[str, Any]) -> Origin:
    label, layer = text_of(trainer, "submodule_name"), trainer.get("layer")
    site = site_of_label(label) if label else None
    if site is None and label and type(layer) is int:
        site = site_of_label(f"{label}_layer_{layer}")
    return Origin(language_model=text_of(trainer, "lm_name"), site=site, hook=label)
