"""Folders of EleutherAI's sparsify: `cfg.json` beside `sae.safetensors`, named by the hookpoint.

Its top-k keeps exactly k values of a row, ours all that tie with the k-th largest.
"""

import re
from pathlib import Path

from palinka.autoencoders.base import read_config, read_safetensors
from palinka.autoencoders.formats.common import (
    Origin,
    Plain,
    TopK,
    Weights,
    check_dimensions,
    check_k,
    setting,
    site_of_module,
    write_config,
    write_safetensors,
)
from palinka.errors import InputError

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
FILES = (CONFIG, WEIGHTS)

_DEFAULT_K = 32
_LONGEST_NAME = 100


def read(folder: Path) -> tuple[Plain, Origin]:
    """Read a hookpoint's folder that sparsify saved.

    Raises:
        InputError: If a file is missing or damaged, they do not fit together, or it is a
            transcoder.
    """
    path = folder / CONFIG
    config = read_config(path)
    for key in ("transcode", "skip_connection"):
        if setting(config, key, bool, path, False):
            raise InputError(
                f"{path}: {key} is true: it maps one site to another, and only autoencoders of one"
                " site can be read"
            )
    if (activation := setting(config, "activation", str, path, "topk")) != "topk":
        raise InputError(f"{path}: activation is {activation!r}; only 'topk' can be read")
    if setting(config, "signed", bool, path, False):
        raise InputError(f"{path}: signed is true; only latents above zero can be read")
    weights = Weights(read_safetensors(folder / WEIGHTS), folder / WEIGHTS)
    encoder = weights.matrix("encoder.weight")
    latents, width = encoder.shape
    check_dimensions(config, path, d_in=width)
    if config.get("num_latents"):  # 0 stands for the expansion factor times the width
        check_dimensions(config, path, num_latents=latents)
    plain = Plain(
        encoder=encoder,
        encoder_bias=weights.take("encoder.bias", latents),
        decoder=weights.take("W_dec", latents, width),
        decoder_bias=weights.take("b_dec", width),
        activation=TopK(check_k(setting(config, "k", int, path, _DEFAULT_K), latents, path)),
    )
    weights.check_all_taken()
    hookpoint = folder.resolve().name
    site = site_of_module(hookpoint)
    return plain, Origin(site=site, hook=hookpoint if site else None)


def hookpoint(origin: Origin) -> str:
    """The name of the folder that sparsify would look for, without anything that leads away.

    Args:
        origin: Where the autoencoder comes from; `hook` is its hookpoint where there is one.
    """
    name = re.sub(r"[^\w.\-]", "_", origin.hook or origin.site or "")
    return name.lstrip(".")[:_LONGEST_NAME] or "sae"


def write(plain: Plain, origin: Origin, folder: Path) -> None:
    """Write a folder that sparsify loads.

    Raises:
        InputError: If it is no top-k autoencoder, or the folder cannot be written.
    """
    activation = plain.activation
    if not isinstance(activation, TopK) or plain.normalizes:
        raise InputError(
            "sparsify knows no autoencoders but those with the k largest latents of each row, of"
            " activations as they are: choose --format saelens"
        )
    plain = plain.subtracting()
    norms = plain.decoder.norm(dim=1)
    write_safetensors(
        folder / WEIGHTS,
        {
            "encoder.weight": plain.encoder,
            "encoder.bias": plain.encoder_bias,
            "W_dec": plain.decoder,
            "b_dec": plain.decoder_bias,
        },
    )
    write_config(
        folder / CONFIG,
        {
            "activation": "topk",
            "expansion_factor": max(1, plain.latents // plain.width),
            "normalize_decoder": bool(((norms - 1).abs() < 1e-4).all()),
            "num_latents": plain.latents,
            "k": activation.k,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": plain.width,
        },
    )
