import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from palinka.autoencoders import Autoencoder, InputScaling
from palinka.autoencoders.formats import Provenance, fold, load, write
from palinka.errors import InputError

Agree = Callable[[Tensor, Tensor], None]
Change = Callable[..., None]


def theirs(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and reconstructions by the equations of the format."""
    config = json.loads((folder / "cfg.json").read_text())
    w = load_file(folder / "sae_weights.safetensors")
    x = x - w["b_dec"] if config["apply_b_dec_to_input"] else x
    if config["architecture"] == "gated":
        magnitude = (x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
        latents = magnitude * (x @ w["W_enc"] + w["b_gate"] > 0)
    else:
        pre = x @ w["W_enc"] + w["b_enc"]
        latents = pre.relu()
        if config["architecture"] == "topk":
            top = pre.topk(config["k"], dim=-1)
            latents = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
        elif config["architecture"] == "jumprelu":
            latents = latents * (pre > w["threshold"])
    return latents, latents @ w["W_dec"] + w["b_dec"]


TENSORS = {
    "standard": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "topk": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "jumprelu": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "gated": {"W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"},
}


def test_an_export_means_the_same_by_the_format(
    ours: Autoencoder, folder: Path, x: Tensor, scaling: InputScaling, agree: Agree
) -> None:
    write(fold(ours, scaling), Provenance(), "saelens", folder)
    latents, reconstruction = theirs(folder, x)
    agree(ours.encode(scaling(x)), latents)
    agree(scaling.inverse(ours.decode(latents)), reconstruction)
    config = json.loads((folder / "cfg.json").read_text())
    assert load_file(folder / "sae_weights.safetensors").keys() == TENSORS[config["architecture"]]
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6


def test_an_export_is_read_back(ours: Autoencoder, folder: Path, x: Tensor, agree: Agree) -> None:
    site, hook = "blocks.6.mlp.pre", "blocks.6.mlp.hook_pre"
    module = "transformer.h.6.mlp.c_fc"
    provenance = Provenance(site, "gpt2@abc", "gpt2", hook, module, "books", 128, bos=True)
    write(ours, provenance, "saelens", folder)
    again, read = load(folder)
    assert read == provenance
    assert not again.training
    agree(ours.encode(x), again.encode(x))
    agree(ours(x).reconstruction, again(x).reconstruction)


def test_heads_are_concatenated(ours: Any, folder: Path) -> None:
    provenance = Provenance("blocks.6.attn.z", hook="blocks.6.attn.hook_z")
    write(ours, provenance, "saelens", folder)
    assert json.loads((folder / "cfg.json").read_text())["reshape_activations"] == "hook_z"
    assert load(folder)[1].site == "blocks.6.attn.z"


def test_a_rescaled_top_k_is_read_as_it_selects(
    k_sparse: Any, folder: Path, x: Tensor, agree: Agree, change: Change
) -> None:
    write(k_sparse, Provenance(hook="blocks.6.hook_resid_pre"), "saelens", folder)
    change(folder / "cfg.json", rescale_acts_by_decoder_norm=True)
    w = load_file(folder / "sae_weights.safetensors")
    norms = w["W_dec"].norm(dim=1)
    pre = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    top = pre.topk(5, dim=-1)
    latents = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
    again, provenance = load(folder)
    assert provenance.site == "blocks.5.resid"  # by its hook
    agree(again.encode(x), latents)
    agree(again(x).reconstruction, latents / norms @ w["W_dec"] + w["b_dec"])


def test_layer_normed_activations_come_back(
    k_sparse: Any, folder: Path, x: Tensor, scaling: InputScaling, agree: Agree, change: Change
) -> None:
    write(k_sparse, Provenance(), "saelens", folder)
    change(folder / "cfg.json", normalize_activations="layer_norm")
    mean, deviation = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
    latents, reconstruction = theirs(folder, (x - mean) / (deviation + 1e-5))
    again = load(folder)[0]
    agree(again.encode(x), latents)
    agree(again(x).reconstruction, reconstruction * deviation + mean)
    with pytest.raises(InputError, match="cannot be folded into the weights"):
        fold(again, scaling)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations"),
        ({"reshape_activations": "hook_q"}, "reshape_activations"),
        ({"architecture": ["topk"]}, "architecture is ['topk']"),
        ({"architecture": "gated"}, "lacks the weight 'b_gate'"),
        ({"d_in": 25}, "d_in 25"),
        ({"k": None}, "k is 100; expected 1 to 64"),
        ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1; expected true or false"),
    ],
)
def test_what_cannot_be_read(
    changes: dict[str, Any], expected: str, k_sparse: Any, folder: Path, change: Change
) -> None:
    write(k_sparse, Provenance(), "saelens", folder)
    change(folder / "cfg.json", **changes)
    with pytest.raises(InputError, match=re.escape(expected)):
        load(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "expected"),
    [
        ("b_dec", torch.zeros(25), "'b_dec' of shape (25,); expected (24,)"),
        ("W_dec", torch.zeros(24, 64), "'W_dec' of shape (24, 64); expected (64, 24)"),
        ("W_enc", torch.zeros(0, 64), "'W_enc' of shape (0, 64), not a matrix"),
        ("W_enc", torch.zeros(24, 64, dtype=torch.complex64), "not a tensor of floating-point"),
        ("more", torch.zeros(1), "unexpected weight 'more'"),
    ],
)
def test_weights_that_do_not_fit(
    name: str, tensor: Tensor, expected: str, k_sparse: Autoencoder, folder: Path
) -> None:
    write(k_sparse, Provenance(), "saelens", folder)
    path = folder / "sae_weights.safetensors"
    save_file({**load_file(path), name: tensor}, path)
    with pytest.raises(InputError, match=re.escape(expected)):
        load(folder)
