"""Autoencoders as other libraries save them."""

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file

from hostile.containers import change_checkpoint, change_safetensors
from hostile.folders import change_folder
from hostile.target import Target
from hostile.texts import change_bytes
from hostile.values import change
from palinka.autoencoders.formats import load

WIDTH, LATENTS = 6, 10
_WIDE, _TALL = (WIDTH, LATENTS), (LATENTS, WIDTH)


def _tensors(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name.replace("__", "."): torch.rand(shape) for name, shape in shapes.items()}


def _write(folder: Path, config: str, content: Any, weights: str, tensors: dict[str, Any]) -> None:
    folder.mkdir()
    if config:
        (folder / config).write_text(json.dumps(content))
    if weights.endswith(".safetensors"):
        save_file(tensors, folder / weights)
    else:
        torch.save(tensors, folder / weights)


def write_saelens(folder: Path) -> None:
    """All architectures, each in a folder."""
    common = {"W_enc": _WIDE, "W_dec": _TALL, "b_dec": (WIDTH,)}
    particular: dict[str, dict[str, tuple[int, ...]]] = {
        "standard": {"b_enc": (LATENTS,)},
        "topk": {"b_enc": (LATENTS,)},
        "jumprelu": {"b_enc": (LATENTS,), "threshold": (LATENTS,)},
        "gated": {"b_gate": (LATENTS,), "b_mag": (LATENTS,), "r_mag": (LATENTS,)},
    }
    for name, shapes in particular.items():
        config = {
            "architecture": name, "d_in": WIDTH, "d_sae": LATENTS, "k": 3, "dtype": "float32",
            "apply_b_dec_to_input": True, "normalize_activations": "none",
            "metadata": {"hook_name": "blocks.3.mlp.hook_post", "model_name": "gpt2"},
        }  # fmt: skip
        tensors = _tensors(**common, **shapes)
        _write(folder / name, "cfg.json", config, "sae_weights.safetensors", tensors)


def write_sparsify(folder: Path) -> None:
    """A top-k autoencoder."""
    config = {"activation": "topk", "d_in": WIDTH, "num_latents": LATENTS, "k": 3, "signed": False}
    tensors = _tensors(encoder__weight=_TALL, encoder__bias=(LATENTS,), W_dec=_TALL, b_dec=(WIDTH,))
    _write(folder / "h.3.mlp.act", "cfg.json", config, "sae.safetensors", tensors)


def write_dictionary_learning(folder: Path) -> None:
    """Every class that it has."""
    pair = {"encoder__weight": _TALL, "decoder__weight": _WIDE}
    transposed = {"W_enc": _WIDE, "W_dec": _TALL, "b_enc": (LATENTS,), "b_dec": (WIDTH,)}
    k = {"k": torch.tensor(3)}
    threshold = {"threshold": torch.tensor(0.5)}
    top_k = {**_tensors(**pair, encoder__bias=(LATENTS,), b_dec=(WIDTH,)), **k}
    kinds = {
        "AutoEncoder": _tensors(**pair, encoder__bias=(LATENTS,), bias=(WIDTH,)),
        "AutoEncoderTopK": top_k,
        "BatchTopKSAE": {**top_k, **threshold},
        "GatedAutoEncoder": _tensors(
            **pair, gate_bias=(LATENTS,), mag_bias=(LATENTS,), r_mag=(LATENTS,),
            decoder_bias=(WIDTH,),
        ),
        "JumpReluAutoEncoder": _tensors(**transposed, threshold=(LATENTS,)),
        "MatryoshkaBatchTopKSAE": {
            **_tensors(**transposed), **k, **threshold, "group_sizes": torch.tensor([4, 6]),
        },
    }  # fmt: skip
    for name, tensors in kinds.items():
        trainer = {
            "dict_class": name, "activation_dim": WIDTH, "dict_size": LATENTS, "k": 3,
            "submodule_name": "resid_post_layer_3", "lm_name": "gpt2", "layer": 3,
        }  # fmt: skip
        _write(folder / name, "config.json", {"trainer": trainer}, "ae.pt", tensors)


def write_openai(folder: Path) -> None:
    """With a decoder of its own, and tied."""
    biases = {"pre_bias": (WIDTH,), "latent_bias": (LATENTS,)}
    own = _tensors(encoder__weight=_TALL, decoder__weight=_WIDE, **biases)
    tied = _tensors(encoder__weight=_TALL, decoder__linear__weight=_TALL, **biases)
    state = {"k": 3, "postact_fn": "ReLU"}
    top_k = {**own, "activation": "TopK", "activation_state_dict": state}
    for name, stored in (("relu", own), ("tied", tied), ("topk", top_k)):
        _write(folder / name, "", None, "autoencoder.pt", stored)


class ForeignFolder(Target):
    """Every library's folders, of every architecture that it has."""

    name = "imports"

    def prepare(self) -> None:
        torch.manual_seed(0)
        for write in (write_saelens, write_sparsify, write_dictionary_learning, write_openai):
            library = self.originals / write.__name__.removeprefix("write_")
            library.mkdir()
            write(library)
        for folder in sorted(self.originals.glob("*/*")):
            load(folder)

    def change(self, random: Random, inside: Path) -> None:
        folders = sorted(inside.glob("*/*"))
        self.folder = random.choice(folders).relative_to(inside)
        folder = inside / self.folder
        kind = random.random()
        file = random.choice(sorted(folder.iterdir()))
        if kind < 0.1:
            change_folder(random, folder, inside.parent / "outside")
        elif kind < 0.2:
            file.write_bytes(change_bytes(random, file.read_bytes()))
        elif file.suffix == ".json":
            file.write_text(json.dumps(change(random, json.loads(file.read_bytes()))))
        elif file.suffix == ".safetensors":
            file.write_bytes(change_safetensors(random, file.read_bytes()))
        else:
            file.write_bytes(change_checkpoint(random, file.read_bytes()))

    def read(self, inside: Path) -> None:
        autoencoder, origin = load(inside / self.folder)
        assert (autoencoder.input_dim, autoencoder.latent_dim) == (WIDTH, LATENTS)
        latents = autoencoder.encode(torch.rand(2, WIDTH))
        assert autoencoder.decode(latents).shape == (2, WIDTH)
        for text in origin.described().values():
            assert not isinstance(text, str) or len(text) <= 1000
