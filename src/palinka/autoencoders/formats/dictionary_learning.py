"""Folders of dictionary_learning: `ae.pt` beside `config.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from palinka.autoencoders.files import read_json
from palinka.autoencoders.formats.common import (
    Keys,
    Kind,
    StateTable,
    check_dimensions,
    mapping_in,
    read_k,
    read_state_dict,
    read_tensors,
    site_of_module,
)
from palinka.autoencoders.provenance import Provenance

CONFIG, WEIGHTS = FILES = ("config.json", "ae.pt")

_WEIGHTS = {"encoder.weight": "encoder.weight", "decoder.weight": "decoder_weight.T"}
_LINEAR = {**_WEIGHTS, "encoder.bias": "encoder.bias"}
_TOPK = {**_LINEAR, "b_dec": "decoder_bias"}
_TRANSPOSED = {
    "W_enc": "encoder.weight.T",
    "b_enc": "encoder.bias",
    "W_dec": "decoder_weight",
    "b_dec": "decoder_bias",
}
_GATED = {
    **_WEIGHTS,
    "gate_bias": "gate_bias",
    "mag_bias": "magnitude_bias",
    "r_mag": "log_magnitude",
    "decoder_bias": "decoder_bias",
}
_IGNORED = ("k", "threshold", "group_sizes")
# Activation function, tensors, and whether the decoder's bias is subtracted, of each class.
_CLASSES: dict[str, tuple[Kind, Keys, bool]] = {
    "AutoEncoder": ("relu", {**_LINEAR, "bias": "decoder_bias"}, True),
    "AutoEncoderNew": ("relu", {**_LINEAR, "decoder.bias": "decoder_bias"}, False),
    "AutoEncoderTopK": ("topk", _TOPK, True),
    "BatchTopKSAE": ("batch_topk", {**_TOPK, "threshold": "batch_threshold"}, True),
    "MatryoshkaBatchTopKSAE": (
        "batch_topk",
        {**_TRANSPOSED, "threshold": "batch_threshold"},
        True,
    ),
    "JumpReluAutoEncoder": ("jumprelu", {**_TRANSPOSED, "threshold": "threshold"}, False),
    "GatedAutoEncoder": ("gated", _GATED, True),
}


def read(folder: Path) -> tuple[StateTable, Provenance]:
    """Read a folder of dictionary_learning."""
    path = folder / WEIGHTS
    trainer = mapping_in(read_json(folder / CONFIG), "trainer")
    stored = read_state_dict(path)
    name = _class_of(stored, trainer)
    kind, keys, subtracts_bias = _CLASSES[name]
    ignored = _IGNORED if "topk" in kind else ()
    tensors = read_tensors(stored, keys, path, set(ignored) - keys.keys())
    k = 0
    if "topk" in kind:
        stored_k = stored["k"].tolist() if isinstance(stored.get("k"), Tensor) else None
        k = read_k({"k": stored_k}, len(tensors["encoder.bias"]), path, 0)
    table = StateTable(kind, tensors, k, subtracts_bias)
    sizes = {"activation_dim": table.width, "dict_size": table.latents}
    check_dimensions(trainer, folder / CONFIG, **sizes)
    return table, _provenance(trainer)


def _class_of(stored: Mapping[str, Any], trainer: Mapping[str, Any]) -> str:
    """Class that saved the weights, by their names."""
    if "W_enc" in stored:
        return "MatryoshkaBatchTopKSAE" if "group_sizes" in stored else "JumpReluAutoEncoder"
    if "r_mag" in stored:
        return "GatedAutoEncoder"
    if "k" in stored:
        batch = trainer.get("dict_class") == "BatchTopKSAE" and "threshold" in stored
        return "BatchTopKSAE" if batch else "AutoEncoderTopK"
    return "AutoEncoder" if "bias" in stored else "AutoEncoderNew"


def _provenance(trainer: Mapping[str, Any]) -> Provenance:
    label, layer = trainer.get("submodule_name"), trainer.get("layer")
    site = None
    if isinstance(label, str):
        site = site_of_module(label) or site_of_module(f"{label}_layer_{layer}")
    return Provenance.from_dict(
        {"language_model_name": trainer.get("lm_name"), "site": site, "hook": label}
    )
