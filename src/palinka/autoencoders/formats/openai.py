"""State dicts of OpenAI's sparse_autoencoder: a folder with a single `.pt` file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palinka.autoencoders.formats.common import (
    Activation,
    Origin,
    Plain,
    ReLU,
    TopK,
    Weights,
    check_k,
    object_of,
    read_state_dict,
    setting,
)
from palinka.errors import InputError

# What it counted while it was trained.
_COUNTS = (
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
)


def read(path: Path) -> tuple[Plain, Origin]:
    """Read a file that OpenAI's library saved.

    Raises:
        InputError: If it is damaged, or holds something else.
    """
    stored = read_state_dict(path)
    weights = Weights(stored, path)
    weights.skip("activation", "activation_state_dict", *_COUNTS)
    encoder = weights.matrix("encoder.weight")
    latents, width = encoder.shape
    if "decoder.linear.weight" in weights:  # tied: the decoder holds the encoder
        decoder = weights.take("decoder.linear.weight", latents, width)
    else:
        decoder = weights.take("decoder.weight", width, latents).T
    activation = _activation(stored, latents, path)
    plain = Plain(
        encoder=encoder,
        encoder_bias=weights.take("latent_bias", latents),
        decoder=decoder,
        decoder_bias=weights.take("pre_bias", width),
        activation=activation,
        normalizes=isinstance(activation, TopK),
    )
    weights.check_all_taken()
    return plain, Origin()


def _activation(stored: Mapping[str, Any], latents: int, path: Path) -> Activation:
    name = setting(stored, "activation", str, path, "ReLU")
    if name == "ReLU":
        return ReLU()
    if name != "TopK":
        raise InputError(f"{path}: activation is {name!r}; ReLU and TopK can be read")
    state = object_of(stored, "activation_state_dict")
    if setting(state, "postact_fn", str, path, "ReLU") != "ReLU":
        raise InputError(
            f"{path}: postact_fn is {state['postact_fn']!r}, which leaves negative latents; only"
            " ReLU can be read"
        )
    return TopK(check_k(setting(state, "k", int, path, 0), latents, path))
