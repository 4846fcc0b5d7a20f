"""State dicts of OpenAI's sparse_autoencoder: a folder with a single `.pt` file."""

from pathlib import Path

from palinka.autoencoders.formats.common import (
    StateTable,
    mapping_in,
    read_k,
    read_state_dict,
    read_tensors,
    setting,
)
from palinka.autoencoders.provenance import Provenance
from palinka.errors import InputError

FILES = ("*.pt",)

_KEYS = {
    "encoder.weight": "encoder.weight",
    "latent_bias": "encoder.bias",
    "pre_bias": "decoder_bias",
}
_OWN_DECODER = {"decoder.weight": "decoder_weight.T"}
_TIED_DECODER = {"decoder.linear.weight": "decoder_weight"}
# Settings, and counts during training.
_IGNORED = (
    "activation",
    "activation_state_dict",
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
)


def read(path: Path) -> tuple[StateTable, Provenance]:
    """Read a file of OpenAI's library."""
    stored = read_state_dict(path)
    decoder = _TIED_DECODER if "decoder.linear.weight" in stored else _OWN_DECODER
    tensors = read_tensors(stored, {**_KEYS, **decoder}, path, _IGNORED)
    activation = setting(stored, "activation", str, path, "ReLU")
    if activation == "ReLU":
        return StateTable("relu", tensors), Provenance()
    if activation != "TopK":
        raise InputError(f"{path}: activation is {activation!r}; ReLU and TopK can be read")
    state = mapping_in(stored, "activation_state_dict")
    if setting(state, "postact_fn", str, path, "ReLU") != "ReLU":
        raise InputError(
            f"{path}: postact_fn is {state['postact_fn']!r}, which leaves negative latents; only"
            " ReLU can be read"
        )
    k = read_k(state, len(tensors["encoder.bias"]), path, 0)
    return StateTable("topk", tensors, k, layer_norm=True), Provenance()
