"""Folders of EleutherAI's sparsify, `cfg.json` and `sae.safetensors`, named by hookpoint.

Its top-k keeps exactly k values of a row, palinka's all that tie with the k-th largest.
"""

import re
from pathlib import Path

from palinka.autoencoders.files import Provenance, read_json, read_safetensors, write_files
from palinka.autoencoders.formats import common
from palinka.errors import InputError

CONFIG, WEIGHTS = FILES = ("cfg.json", "sae.safetensors")

_KEYS = {
    "encoder.weight": "encoder.weight",
    "encoder.bias": "encoder.bias",
    "W_dec": "decoder_weight",
    "b_dec": "decoder_bias",
}
# Settings that can be read with one value only, which is the library's default.
_FIXED = {"transcode": False, "skip_connection": False, "activation": "topk", "signed": False}
_DEFAULT_K = 32
_MAX_NAME = 100


def read(path: Path, weights: Path) -> tuple[common.StateTable, Provenance]:
    """Read the files of one hookpoint."""
    config = read_json(path)
    for key, only in _FIXED.items():
        if (value := common.setting(config, key, type(only), path, only)) != only:
            raise InputError(f"{path}: {key} is {value!r}; only {only!r} can be read")
    tensors = common.read_tensors(read_safetensors(weights), _KEYS, weights)
    latents, width = tensors["encoder.weight"].shape
    common.check_dimensions(config, path, d_in=width)
    if config.get("num_latents"):  # 0 stands for the expansion factor times the width
        common.check_dimensions(config, path, num_latents=latents)
    hookpoint = path.parent.resolve().name
    site = common.site_of_module(hookpoint)
    table = common.StateTable("topk", tensors, common.read_k(config, latents, path, _DEFAULT_K))
    return table, Provenance(site=site, hook=hookpoint if site else None)


def hookpoint(provenance: Provenance) -> str:
    """Name of the folder that sparsify looks for, without path separators."""
    name = re.sub(r"[^\w.\-]", "_", provenance.hook or provenance.site or "")
    return name.lstrip(".")[:_MAX_NAME] or "sae"


def write(table: common.StateTable, provenance: Provenance, folder: Path) -> None:
    """Write a folder that sparsify loads, of a top-k autoencoder of plain activations."""
    if table.kind != "topk" or table.layer_norm:
        raise InputError("sparsify takes only top-k without layer norm: choose --format saelens")
    table = table.with_subtracted_bias()
    latents, width = table.shape
    norms = table.tensors["decoder_weight"].norm(dim=1)
    config = {
        "activation": "topk",
        "expansion_factor": max(1, latents // width),
        "normalize_decoder": bool(((norms - 1).abs() < 1e-4).all()),
        "num_latents": latents,
        "k": table.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": width,
    }
    write_files(folder, {WEIGHTS: common.rename_tensors(table.tensors, _KEYS), CONFIG: config})
