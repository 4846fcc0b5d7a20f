"""The real libraries load what we write, and we load what they write."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from palinka.autoencoders import Autoencoder, InputScaling
from palinka.autoencoders.formats import Provenance, fold, load, write

Agree = Callable[[Tensor, Tensor], None]
Randomize = Callable[[Any], Any]
WIDTH, LATENTS, K = 24, 64, 5  # of the fixtures
PROVENANCE = Provenance(
    language_model_name="gpt2", site="blocks.6.mlp.pre", hook="blocks.6.mlp.hook_pre"
)


def test_saelens_loads_our_export(
    ours: Autoencoder, tmp_path: Path, x: Tensor, scaling: InputScaling, agree: Agree
) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    write(fold(ours, scaling), PROVENANCE, "saelens", tmp_path)
    theirs = sae_lens.SAE.load_from_disk(tmp_path)
    latents = ours.encode(scaling(x))
    agree(latents, theirs.encode(x))
    agree(scaling.inverse(ours.decode(latents)), theirs(x))
    assert theirs.cfg.metadata.hook_name == "blocks.6.mlp.hook_pre"


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("topk", {"k": 5}),
        ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True, "apply_b_dec_to_input": False}),
        ("topk", {"k": 5, "normalize_activations": "layer_norm"}),
        ("jumprelu", {}),
        ("gated", {"apply_b_dec_to_input": False}),
    ],
)
def test_we_load_what_saelens_saved(
    architecture: str, settings: Any, tmp_path: Path, x: Tensor, agree: Agree, randomized: Randomize
) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    config = {"architecture": architecture, "d_in": WIDTH, "d_sae": LATENTS, **settings}
    theirs = randomized(sae_lens.SAE.from_dict(config))
    theirs.save_model(tmp_path)
    ours = load(tmp_path)[0]
    agree(ours.encode(x), theirs.encode(x))
    # Decoded from our own latents, which theirs holds in other units where it rescales.
    agree(ours(x).reconstruction, theirs(x))


def test_sparsify_loads_our_export(
    k_sparse: Autoencoder, tmp_path: Path, x: Tensor, scaling: InputScaling, agree: Agree
) -> None:
    sparsify = pytest.importorskip("sparsify")
    provenance = Provenance(site="blocks.6.mlp.post", hook="h.6.mlp.act")
    folder = write(fold(k_sparse, scaling), provenance, "sparsify", tmp_path)
    assert folder == tmp_path / "h.6.mlp.act"
    theirs = sparsify.SparseCoder.load_many(str(tmp_path), local=True)["h.6.mlp.act"]
    output = theirs(x)
    latents = torch.zeros(len(x), 64).scatter(1, output.latent_indices, output.latent_acts)
    agree(k_sparse.encode(scaling(x)), latents)
    agree(scaling.inverse(k_sparse(scaling(x)).reconstruction), output.sae_out)


def test_we_load_what_sparsify_saved(
    tmp_path: Path, x: Tensor, agree: Agree, randomized: Randomize
) -> None:
    sparsify = pytest.importorskip("sparsify")
    config = sparsify.SparseCoderConfig(num_latents=LATENTS, k=K)
    theirs = randomized(sparsify.SparseCoder(WIDTH, config))
    theirs.save_to_disk(tmp_path / "h.6.mlp.act")
    ours = load(tmp_path / "h.6.mlp.act")[0]
    output = theirs(x)
    latents = torch.zeros(len(x), 64).scatter(1, output.latent_indices, output.latent_acts)
    agree(ours.encode(x), latents)
    agree(ours(x).reconstruction, output.sae_out)


@pytest.mark.parametrize(
    "name",
    [
        "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder",
        "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
    ],
)  # fmt: skip
def test_we_load_what_dictionary_learning_saved(
    name: str,
    tmp_path: Path,
    x: Tensor,
    agree: Agree,
    randomized: Randomize,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It imports this for what it does with language models, and asks for an old version.
    without = ModuleType("nnsight")
    without.LanguageModel = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nnsight", without)
    dictionary = pytest.importorskip("dictionary_learning.dictionary")
    top_k = pytest.importorskip("dictionary_learning.trainers.top_k")
    batch = pytest.importorskip("dictionary_learning.trainers.batch_top_k")
    nested = pytest.importorskip("dictionary_learning.trainers.matryoshka_batch_top_k")
    kind = next(getattr(m, name) for m in (dictionary, top_k, batch, nested) if hasattr(m, name))
    more: dict[str, Any] = {"k": K} if "TopK" in name else {}
    if name.startswith("Matryoshka"):
        more["group_sizes"] = [16, LATENTS - 16]
    theirs = randomized(kind(WIDTH, LATENTS, **more))
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": WIDTH, "dict_size": LATENTS}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    ours = load(tmp_path)[0]
    agree(ours.encode(x), theirs.encode(x))
    agree(ours(x).reconstruction, theirs(x))
