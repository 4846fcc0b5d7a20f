import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from palinka.autoencoders import Autoencoder, InputScaling, ReLUAutoencoder
from palinka.autoencoders.formats import Provenance, fold, load, write
from palinka.errors import InputError

PROVENANCE = Provenance(site="blocks.6.mlp.post", hook="h.6.mlp.act")


def test_an_export_means_the_same_by_the_format(
    k_sparse: Any, folder: Path, x: Tensor, scaling: InputScaling, agree: Callable[..., None]
) -> None:
    inner = write(fold(k_sparse, scaling), PROVENANCE, "sparsify", folder)
    assert inner == folder / "h.6.mlp.act"
    w = load_file(inner / "sae.safetensors")
    assert w.keys() == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}
    config = json.loads((inner / "cfg.json").read_text())
    pre = ((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    top = pre.topk(config["k"], dim=-1)
    latents = torch.zeros_like(pre).scatter(-1, top.indices, top.values)
    agree(k_sparse.encode(scaling(x)), latents)
    agree(scaling.inverse(k_sparse(scaling(x)).reconstruction), latents @ w["W_dec"] + w["b_dec"])
    again, provenance = load(inner)
    assert provenance == PROVENANCE
    agree(again.encode(x), latents)


def test_no_name_of_a_site_leads_elsewhere(k_sparse: Autoencoder, folder: Path) -> None:
    for hook in ("../../etc", "/etc/passwd", "a\\b", "..", "."):
        inner = write(k_sparse, Provenance(hook=hook), "sparsify", folder)
        assert inner.resolve().parent == folder.resolve()


def test_only_top_k(folder: Path) -> None:
    with pytest.raises(InputError, match="choose --format saelens"):
        write(ReLUAutoencoder(4), PROVENANCE, "sparsify", folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"transcode": True}, "transcode is True"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"activation": "groupmax"}, "activation is 'groupmax'"),
        ({"signed": True}, "signed is True"),
        ({"k": 65}, "k is 65; expected 1 to 64"),
        ({"d_in": 5}, "d_in 5, but the weights beside it have 24"),
        ({"num_latents": 63}, "num_latents 63"),
    ],
)
def test_what_cannot_be_read(
    changes: dict[str, Any], expected: str, k_sparse: Any, folder: Path, change: Callable[..., None]
) -> None:
    inner = write(k_sparse, PROVENANCE, "sparsify", folder)
    change(inner / "cfg.json", num_latents=0)  # left to the expansion factor
    assert load(inner)[0].latent_dim == 64
    change(inner / "cfg.json", **changes)
    with pytest.raises(InputError, match=expected):
        load(inner)
