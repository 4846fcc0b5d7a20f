from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from palinka.autoencoders.files import Provenance, read_json
from palinka.autoencoders.formats import common

FILES = ("config.json", "ae.pt")

_WEIGHTS = {"encoder.weight": "encoder.weight", "decoder.weight": "decoder_weight.T"}
_LINEAR = {**_WEIGHTS, "encoder.bias": "encoder.bias"}
_TOPK = {**_LINEAR, "b_dec": "decoder_bias"}
_TRANSPOSED = {
    "W_enc": "encoder.weight.T", "b_enc": "encoder.bias",
    "W_dec": "decoder_weight", "b_dec": "decoder_bias",
}  # fmt: skip
_GATED = {
    **_WEIGHTS, "decoder_bias": "decoder_bias",
    "gate_bias": "gate_bias", "mag_bias": "magnitude_bias", "r_mag": "log_magnitude",
}  # fmt: skip
_IGNORED = ("k", "threshold", "group_sizes")
# Activation function, tensors, and whether the decoder's bias is subtracted, of each class.
_CLASSES: dict[str, tuple[common.Kind, common.Keys, bool]] = {
    "AutoEncoder": ("relu", {**_LINEAR, "bias": "decoder_bias"}, True),
    "AutoEncoderNew": ("relu", {**_LINEAR, "decoder.bias": "decoder_bias"}, False),
    "AutoEncoderTopK": ("topk", _TOPK, True),
    "BatchTopKSAE": ("batch_topk", {**_TOPK, "threshold": "batch_threshold"}, True),
    "MatryoshkaBatchTopKSAE": ("batch_topk", {**_TRANSPOSED, "threshold": "batch_threshold"}, True),
    "JumpReluAutoEncoder": ("jumprelu", {**_TRANSPOSED, "threshold": "threshold"}, False),
    "GatedAutoEncoder": ("gated", _GATED, True),
}


def read(path: Path, weights: Path) -> tuple[common.StateTable, Provenance]:
    """Read the files of dictionary_learning."""
    trainer = common.mapping_in(read_json(path), "trainer")
    stored = common.read_state_dict(weights)
    kind, keys, subtracts_bias = _CLASSES[_class_of(stored, trainer)]
    tensors = common.read_tensors(stored, keys, weights, _IGNORED if "topk" in kind else ())
    latents, width = tensors["encoder.weight"].shape
    common.check_dimensions(trainer, path, activation_dim=width, dict_size=latents)
    k = 0
    if "topk" in kind:
        as_number = stored["k"].tolist() if isinstance(stored.get("k"), Tensor) else None
        k = common.read_k({"k": as_number}, latents, weights)
    label = str(trainer.get("submodule_name"))
    in_layer = f"{label}_layer_{trainer.get('layer')}"
    site = common.site_of_module(label) or common.site_of_module(in_layer)
    known = {"language_model_name": trainer.get("lm_name"), "hook": trainer.get("submodule_name")}
    table = common.StateTable(kind, tensors, k, subtracts_bias)
    return table, Provenance.from_dict({**known, "site": site})


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
