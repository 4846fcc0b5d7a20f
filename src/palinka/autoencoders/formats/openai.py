from pathlib import Path

from palinka.autoencoders.files import Provenance
from palinka.autoencoders.formats import common
from palinka.errors import InputError

FILES = ("*.pt",)

_ENCODER = {"encoder.weight": "encoder.weight", "latent_bias": "encoder.bias"}
_UNTIED = {**_ENCODER, "pre_bias": "decoder_bias", "decoder.weight": "decoder_weight.T"}
_TIED = {**_ENCODER, "pre_bias": "decoder_bias", "decoder.linear.weight": "decoder_weight"}
# Settings, and counts during training.
_IGNORED = (
    "activation", "activation_state_dict", "stats_last_nonzero",
    "latents_activation_frequency", "latents_mean_square",
)  # fmt: skip


def read(path: Path) -> tuple[common.StateTable, Provenance]:
    """Read a file of OpenAI's library."""
    stored = common.read_state_dict(path)
    keys = _TIED if "decoder.linear.weight" in stored else _UNTIED
    tensors = common.read_tensors(stored, keys, path, _IGNORED)
    activation = common.setting(stored, "activation", str, path, "ReLU")
    if activation == "ReLU":
        return common.StateTable("relu", tensors), Provenance()
    if activation != "TopK":
        raise InputError(f"{path}: activation is {activation!r}; ReLU and TopK can be read")
    state = common.mapping_in(stored, "activation_state_dict")
    if (function := common.setting(state, "postact_fn", str, path, "ReLU")) != "ReLU":
        raise InputError(f"{path}: postact_fn is {function!r}; only ReLU can be read")
    k = common.read_k(state, len(tensors["encoder.bias"]), path)
    return common.StateTable("topk", tensors, k, layer_norm=True), Provenance()
