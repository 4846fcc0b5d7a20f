import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from palinka.autoencoders import BatchTopKAutoencoder
from palinka.autoencoders.formats import load
from palinka.errors import InputError

WIDTH, LATENTS, K = 6, 20, 3


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def saved(folder: Path, weights: dict[str, Any], **trainer: Any) -> Path:
    torch.save(weights, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    return folder


def linear(**more: Any) -> dict[str, Any]:
    weights = {"encoder.weight": random(LATENTS, WIDTH), "decoder.weight": random(WIDTH, LATENTS)}
    return {**weights, **more}


def top_k(**more: Any) -> dict[str, Any]:
    threshold = {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.7)}
    biases = {"encoder.bias": random(LATENTS), "b_dec": random(WIDTH)}
    return linear(**{**biases, **threshold, **more})


@pytest.fixture
def x() -> Tensor:
    return random(50, WIDTH)


Agree = Callable[[Tensor, Tensor], None]


def test_top_k_and_batch_top_k_with_its_threshold(tmp_path: Path, x: Tensor, agree: Agree) -> None:
    w = top_k()
    ours, _ = load(saved(tmp_path, w, dict_class="AutoEncoderTopK"))
    pre = ((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    top = pre.topk(K, dim=-1)
    latents = torch.zeros_like(pre).scatter(-1, top.indices, top.values)
    agree(ours.encode(x), latents)
    agree(ours(x).reconstruction, latents @ w["decoder.weight"].T + w["b_dec"])
    ours, _ = load(saved(tmp_path, w, dict_class="BatchTopKSAE"))
    assert type(ours) is BatchTopKAutoencoder
    agree(ours.encode(x), pre * (pre > 0.7))
    untrained = {**w, "threshold": torch.tensor(-1.0)}
    ours, _ = load(saved(tmp_path, untrained, dict_class="BatchTopKSAE"))
    agree(ours.encode(x), pre)


@pytest.mark.parametrize("name", ["bias", "decoder.bias"])
def test_relu(name: str, tmp_path: Path, x: Tensor, agree: Agree) -> None:
    w = linear(**{"encoder.bias": random(LATENTS), name: random(WIDTH)})
    ours, _ = load(saved(tmp_path, w))
    read = x - w["bias"] if name == "bias" else x
    latents = (read @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    agree(ours.encode(x), latents)
    agree(ours(x).reconstruction, latents @ w["decoder.weight"].T + w[name])


def test_gated(tmp_path: Path, x: Tensor, agree: Agree) -> None:
    names = ("r_mag", "gate_bias", "mag_bias")
    w = linear(
        decoder_bias=random(WIDTH), **{n: random(LATENTS) * (i + 1) for i, n in enumerate(names)}
    )
    ours, _ = load(saved(tmp_path, w))
    read = (x - w["decoder_bias"]) @ w["encoder.weight"].T
    latents = (w["r_mag"].exp() * read + w["mag_bias"]).relu() * (read + w["gate_bias"] > 0)
    agree(ours.encode(x), latents)
    agree(ours(x).reconstruction, latents @ w["decoder.weight"].T + w["decoder_bias"])


def test_jump_relu(tmp_path: Path, x: Tensor, agree: Agree) -> None:
    w = {
        "W_enc": random(WIDTH, LATENTS),
        "b_enc": random(LATENTS),
        "W_dec": random(LATENTS, WIDTH) + 1,
        "b_dec": random(WIDTH),
        "threshold": random(LATENTS),  # some of them negative, which is the same as none
    }
    ours, _ = load(saved(tmp_path, w))
    pre = x @ w["W_enc"] + w["b_enc"]
    latents = (pre * (pre > w["threshold"])).relu()
    agree(ours.encode(x), latents)
    agree(ours(x).reconstruction, latents @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(
    ("label", "site"),
    [("resid_post_layer_3", "blocks.3.resid"), ("resid_post", "blocks.3.resid"), ("odd", None)],
)
def test_the_site(label: str, site: str | None, tmp_path: Path) -> None:
    folder = saved(tmp_path, top_k(), lm_name="gpt2", layer=3, submodule_name=label)
    _, provenance = load(folder)
    assert (provenance.language_model_name, provenance.site) == ("gpt2", site)


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch planted",)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (top_k(more=torch.zeros(1)), "unexpected weight 'more'"),
        (top_k(k=torch.tensor(1.5)), "k is 1.5"),
        (top_k(k=torch.tensor([3])), "k is [3]"),
        (top_k(b_dec=[0.0] * WIDTH), "'b_dec' is not a tensor"),
        ({**top_k(), "planted": Planted()}, "more than tensors"),
        ([1, 2], "no named tensors"),
    ],
)
def test_hostile_weights(
    weights: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(expected)):
        load(saved(tmp_path, weights))
    assert not (tmp_path / "planted").exists()


def test_files_that_do_not_fit_and_of_another_kind(tmp_path: Path) -> None:
    folder = saved(tmp_path, top_k(), dict_size=21)
    with pytest.raises(InputError, match="dict_size 21, but the weights beside it have 20"):
        load(folder)
    for content in (b"", b"PK", b"\x80\x02]q\x00."):
        (folder / "ae.pt").write_bytes(content)
        with pytest.raises(InputError, match="holds more than tensors, or is torn"):
            load(folder)
