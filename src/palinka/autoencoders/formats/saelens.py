"""Folders of SAELens v6: `cfg.json` beside `sae_weights.safetensors`.

Its top-k keeps exactly k values of a row, palinka's all that tie with the k-th largest. They
differ only where two values are equal to the last bit and above zero.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from palinka.autoencoders.files import Provenance, read_json, read_safetensors, write_files
from palinka.autoencoders.formats import common
from palinka.errors import InputError

CONFIG, WEIGHTS = FILES = ("cfg.json", "sae_weights.safetensors")

_COMMON = {"W_enc": "encoder.weight.T", "W_dec": "decoder_weight", "b_dec": "decoder_bias"}
_PLAIN = {**_COMMON, "b_enc": "encoder.bias"}
_ARCHITECTURES: dict[str, tuple[common.Kind, common.Keys]] = {
    "standard": ("relu", _PLAIN),
    "topk": ("topk", _PLAIN),
    "jumprelu": ("jumprelu", {**_PLAIN, "threshold": "threshold"}),
    "gated": (
        "gated",
        {**_COMMON, "b_gate": "gate_bias", "b_mag": "magnitude_bias", "r_mag": "log_magnitude"},
    ),
}
_VERSION = "6.0.0"  # SAELens would convert a configuration of an older one when reading it
_DEFAULT_K = 100
_PROVENANCE = {
    "language_model_name": "model_name",
    "language_model": "palinka_language_model",
    "site": "palinka_site",
    "module": "hf_hook_name",
    "hook": "hook_name",
    "corpus": "dataset_path",
    "context_length": "context_size",
    "bos": "prepend_bos",
}


def read(path: Path, weights: Path) -> tuple[common.StateTable, Provenance]:
    """Read the files of SAELens."""
    config = read_json(path)
    normalization = config.get("normalize_activations")
    if normalization not in ("none", "layer_norm", None, False):
        hint = "'none' and 'layer_norm' can be read: fold a constant in with SAELens"
        raise InputError(f"{path}: normalize_activations is {normalization!r}; {hint}")
    if (reshaping := config.get("reshape_activations")) not in ("none", "hook_z", None):
        hint = "'none' and 'hook_z' can be read"
        raise InputError(f"{path}: reshape_activations is {reshaping!r}; {hint}")
    architecture = _architecture(config, path)
    kind, keys = _ARCHITECTURES[architecture]
    tensors = common.read_tensors(read_safetensors(weights), keys, weights)
    latents, width = tensors["encoder.weight"].shape
    common.check_dimensions(config, path, d_in=width, d_sae=latents)
    rescales = common.setting(config, "rescale_acts_by_decoder_norm", bool, path, False)
    if rescales and kind == "topk":
        norms = tensors["decoder_weight"].norm(dim=1)
        tensors["encoder.weight"] = tensors["encoder.weight"] * norms[:, None]
        tensors["encoder.bias"] = tensors["encoder.bias"] * norms
        # A direction of zeros stays one.
        norms = norms.clamp(min=torch.finfo(norms.dtype).tiny)
        tensors["decoder_weight"] = tensors["decoder_weight"] / norms[:, None]
    table = common.StateTable(
        kind,
        tensors,
        k=common.read_k(config, latents, path, _DEFAULT_K) if kind == "topk" else 0,
        subtracts_bias=common.setting(config, "apply_b_dec_to_input", bool, path, True),
        layer_norm=normalization == "layer_norm",
    )
    return table, _provenance(config)


def write(table: common.StateTable, provenance: Provenance, folder: Path) -> None:
    """Write a folder that SAELens loads; a BatchTopK autoencoder as JumpReLU."""
    (latents, width), tensors = table.shape, dict(table.tensors)
    if table.kind == "batch_topk":
        tensors["threshold"] = tensors.pop("batch_threshold").expand(latents)
    top_k = {"k": table.k, "rescale_acts_by_decoder_norm": False}
    kind = "jumprelu" if table.kind == "batch_topk" else table.kind
    architecture = next(name for name, (known, _) in _ARCHITECTURES.items() if known == kind)
    metadata = {theirs: getattr(provenance, ours) for ours, theirs in _PROVENANCE.items()}
    # Where TransformerLens has no name for the site, the module's own has to do.
    metadata["hook_name"] = provenance.hook or provenance.module or provenance.site
    transformer = "HookedTransformer" if provenance.hook else "AutoModelForCausalLM"
    metadata["model_class_name"] = transformer
    config = {
        "architecture": architecture,
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": table.subtracts_bias,
        "normalize_activations": "layer_norm" if table.layer_norm else "none",
        # Heads are concatenated, as at attn.z.
        "reshape_activations": "hook_z" if str(provenance.hook).endswith("hook_z") else "none",
        **(top_k if table.kind == "topk" else {}),
        "metadata": {"sae_lens_version": _VERSION, **metadata},
    }
    weights = common.rename_tensors(tensors, _ARCHITECTURES[architecture][1])
    write_files(folder, {WEIGHTS: weights, CONFIG: config})


def _architecture(config: Mapping[str, Any], path: Path) -> str:
    architecture = config.get("architecture", "standard")
    if architecture == "standard":
        # Old versions name other activation functions beside it.
        activation = config.get("activation_fn_str", config.get("activation_fn"))
        if activation not in ("relu", None):
            architecture = f"standard with {activation}"
    if not isinstance(architecture, str) or architecture not in _ARCHITECTURES:
        hint = f"{', '.join(_ARCHITECTURES)} can be read, batchtopk and matryoshka as jumprelu"
        raise InputError(f"{path}: architecture is {architecture!r}; {hint}")
    return architecture


def _provenance(config: Mapping[str, Any]) -> Provenance:
    # Before version 6, the metadata stood beside the settings.
    metadata = common.mapping_in(config, "metadata") or config
    values = {ours: metadata.get(theirs) for ours, theirs in _PROVENANCE.items()}
    values["hook"] = hook = values["hook"] or metadata.get("hook_point")
    if not values["site"] and isinstance(hook, str):
        values["site"] = common.site_of_hook(hook)
    return Provenance.from_dict(values)
