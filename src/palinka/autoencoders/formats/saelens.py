"""Folders of SAELens v6: `cfg.json` beside `sae_weights.safetensors`.

Its top-k keeps exactly k values of a row, ours all that tie with the k-th largest. They differ
only where two values are equal to the last bit and above zero.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palinka.autoencoders.base import read_config, read_safetensors
from palinka.autoencoders.formats.common import (
    Activation,
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
    origin_of,
    setting,
    site_of_hook,
    text_of,
    write_config,
    write_safetensors,
)
from palinka.errors import InputError

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FILES = (CONFIG, WEIGHTS)

# A configuration of an older version would be rewritten when it is read.
_VERSION = "6.0.0"
_DEFAULT_K = 100


def read(folder: Path) -> tuple[Plain, Origin]:
    """Read a folder that SAELens saved.

    Raises:
        InputError: If a file is missing or damaged, they do not fit together, or the activations
            are changed before encoding in a way that weights cannot hold.
    """
    path = folder / CONFIG
    config = read_config(path)
    normalization = config.get("normalize_activations")
    if normalization not in ("none", "layer_norm", None, False):
        raise InputError(
            f"{path}: normalize_activations is {normalization!r}; 'none' and 'layer_norm' can be"
            " read: fold it in with SAELens if it is a constant"
        )
    if (reshaping := config.get("reshape_activations")) not in ("none", None):
        raise InputError(f"{path}: reshape_activations is {reshaping!r}; 'none' can be read")
    weights = Weights(read_safetensors(folder / WEIGHTS), folder / WEIGHTS)
    encoder = weights.matrix("W_enc").T
    latents, width = encoder.shape
    check_dimensions(config, path, d_in=width, d_sae=latents)
    architecture = _architecture(config, path)
    rescales = setting(config, "rescale_acts_by_decoder_norm", bool, path, False)
    bias = weights.take("b_gate" if architecture == "gated" else "b_enc", latents)
    decoder = weights.take("W_dec", latents, width)
    if rescales and architecture == "topk":
        norms = decoder.norm(dim=1)
        encoder, bias = encoder * norms[:, None], bias * norms
        # A direction of zeros stays one.
        decoder = decoder / norms.clamp(min=torch.finfo(norms.dtype).tiny)[:, None]
    plain = Plain(
        encoder=encoder,
        encoder_bias=bias,
        decoder=decoder,
        decoder_bias=weights.take("b_dec", width),
        activation=_activation(architecture, config, weights, latents, path),
        subtracts=setting(config, "apply_b_dec_to_input", bool, path, True),
        normalizes=normalization == "layer_norm",
    )
    weights.check_all_taken()
    return plain, _origin(config)


def write(plain: Plain, origin: Origin, folder: Path) -> None:
    """Write a folder that SAELens loads.

    Raises:
        InputError: If the folder cannot be written.
    """
    architecture, particular, settings = _particulars(plain)
    write_safetensors(
        folder / WEIGHTS,
        {
            "W_enc": plain.encoder.T,
            "b_gate" if architecture == "gated" else "b_enc": plain.encoder_bias,
            "W_dec": plain.decoder,
            "b_dec": plain.decoder_bias,
            **particular,
        },
    )
    write_config(
        folder / CONFIG,
        {
            "architecture": architecture,
            "d_in": plain.width,
            "d_sae": plain.latents,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": plain.subtracts,
            "normalize_activations": "layer_norm" if plain.normalizes else "none",
            "reshape_activations": "none",
            **settings,
            "metadata": _metadata(origin),
        },
    )


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    architecture = config.get("architecture", "standard")
    if architecture in ("standard", "topk", "jumprelu", "gated"):
        of_old = {"standard": config.get("activation_fn_str", config.get("activation_fn"))}
        if of_old.get(architecture, "relu") in ("relu", None):
            return str(architecture)
        architecture = f"{architecture} with {of_old[architecture]}"
    raise InputError(
        f"{path}: architecture is {architecture!r}; standard, topk, jumprelu and gated can be"
        " read (SAELens saves batchtopk and matryoshka for inference as jumprelu)"
    )


def _activation(
    architecture: str, config: Mapping[str, Any], weights: Weights, latents: int, path: Path
) -> Activation:
    if architecture == "topk":
        return TopK(check_k(setting(config, "k", int, path, _DEFAULT_K), latents, path))
    if architecture == "jumprelu":
        return Threshold(weights.take("threshold", latents))
    if architecture == "gated":
        return Gate(weights.take("b_mag", latents), weights.take("r_mag", latents))
    return ReLU()


def _particulars(plain: Plain) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The name of an architecture, and the tensors and settings that only it has."""
    match plain.activation:
        case ReLU():
            return "standard", {}, {}
        case TopK(k):
            return "topk", {}, {"k": k, "rescale_acts_by_decoder_norm": False}
        case Threshold(threshold):
            return "jumprelu", {"threshold": threshold}, {}
        case BatchTopK(_, threshold):
            return "jumprelu", {"threshold": threshold.expand(plain.latents)}, {}
        case Gate(magnitude_bias, log_magnitude):
            return "gated", {"b_mag": magnitude_bias, "r_mag": log_magnitude}, {}


def _metadata(origin: Origin) -> dict[str, Any]:
    return {
        "sae_lens_version": _VERSION,
        "model_name": origin.language_model,
        # Where TransformerLens has no name for the site, the module's own has to do.
        "model_class_name": "HookedTransformer" if origin.hook else "AutoModelForCausalLM",
        "hook_name": origin.hook or origin.module or origin.site,
        "hf_hook_name": origin.module,
        "context_size": origin.context_length,
        "dataset_path": origin.corpus,
        "prepend_bos": origin.bos,
        "palinka_site": origin.site,
        "palinka_language_model": origin.identity,
    }


def _origin(config: Mapping[str, Any]) -> Origin:
    # Before version 6, all of it stood beside the rest.
    metadata = object_of(config, "metadata") or config
    hook = text_of(metadata, "hook_name") or text_of(metadata, "hook_point")
    site = text_of(metadata, "palinka_site") or (site_of_hook(hook) if hook else None)
    return origin_of(
        {
            "language_model_name": metadata.get("model_name"),
            "language_model": metadata.get("palinka_language_model"),
            "site": site,
            "module": metadata.get("hf_hook_name"),
            "hook": hook,
            "corpus": metadata.get("dataset_path"),
            "context_length": metadata.get("context_size"),
            "bos": metadata.get("prepend_bos"),
        }
    )
