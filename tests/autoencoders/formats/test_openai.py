"""The fixtures are written by hand: the library is in no package index."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from palinka.autoencoders import LayerNormalizedAutoencoder
from palinka.autoencoders.formats import load
from palinka.errors import InputError

WIDTH, LATENTS, K = 6, 20, 3
Agree = Callable[[Tensor, Tensor], None]


def weights(**more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "pre_bias": (WIDTH,),
        "encoder.weight": (LATENTS, WIDTH),
        "latent_bias": (LATENTS,),
        "decoder.weight": (WIDTH, LATENTS),
    }
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**drawn, "stats_last_nonzero": torch.zeros(LATENTS, dtype=torch.long), **more}


def saved(folder: Path, content: dict[str, Any]) -> Path:
    torch.save(content, folder / "layer_8.pt")
    return folder


@pytest.fixture
def x() -> Tensor:
    return torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1)) * 3 + 2


@pytest.mark.parametrize("named", [{}, {"activation": "ReLU", "activation_state_dict": {}}])
def test_relu(named: dict[str, Any], tmp_path: Path, x: Tensor, agree: Agree) -> None:
    w = weights(**named)
    ours, _ = load(saved(tmp_path, w))
    latents = ((x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]).relu()
    agree(ours.encode(x), latents)
    agree(ours(x).reconstruction, latents @ w["decoder.weight"].T + w["pre_bias"])


def test_top_k_of_layer_normed_activations(tmp_path: Path, x: Tensor, agree: Agree) -> None:
    w = weights(activation="TopK", activation_state_dict={"k": K, "postact_fn": "ReLU"})
    ours, _ = load(saved(tmp_path, w))
    assert type(ours) is LayerNormalizedAutoencoder
    mean = x.mean(dim=-1, keepdim=True)
    deviation = (x - mean).std(dim=-1, keepdim=True)
    normed = (x - mean) / (deviation + 1e-5)
    pre = (normed - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    top = pre.topk(K, dim=-1)
    latents = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
    reconstruction = latents @ w["decoder.weight"].T + w["pre_bias"]
    agree(ours.encode(x), latents)
    agree(ours.decode(latents), reconstruction)
    agree(ours(x).reconstruction, reconstruction * deviation + mean)
    folder = tmp_path / "again"
    ours.save_pretrained(folder)
    agree(load(folder)[0](x).reconstruction, ours(x).reconstruction)


def test_a_tied_decoder(tmp_path: Path, x: Tensor, agree: Agree) -> None:
    w = weights()
    del w["decoder.weight"]
    w["decoder.linear.weight"] = w["encoder.weight"]
    ours, _ = load(saved(tmp_path, w))
    agree(ours.dictionary, w["encoder.weight"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"activation": "Tanh"}, "activation is 'Tanh'"),
        ({"activation": "TopK"}, "k is 0; expected 1 to 20"),
        (
            {"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "Identity"}},
            "postact_fn is 'Identity'",
        ),
        ({"other": torch.zeros(7)}, "unexpected weight 'other'"),
    ],
)
def test_what_cannot_be_read(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        load(saved(tmp_path, weights(**changes)))
