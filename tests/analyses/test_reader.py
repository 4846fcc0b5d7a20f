from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from palinka.analyses.reader import ActivationReader, Encoder
from palinka.analyses.stimuli import load_stimuli
from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec, Tokens
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks.run_analyses import encoder_of

SITE = "blocks.3.mlp.pre"


def test_an_items_vector_is_the_mean_over_its_tokens(
    mini: ActivationReader, stimuli: Callable[..., str]
) -> None:
    groups = {"animals": ["horses", "dog", "birdcage"], "food": ["bread", "an apple", "soup"]}
    prepared = load_stimuli(stimuli(kind="words", conditions=groups)).prepare(mini.model.tokenizer)
    assert max(map(len, prepared.tokens)) > 1
    pooled = mini.pooled(prepared, map(mini.view, [SITE, "hidden.0"]))
    for (site, _), vectors in pooled.items():
        for row, ids in zip(vectors, prepared.tokens, strict=True):
            alone = mini.model.read(Tokens.of([list(ids)]), [site])[site][0]
            np.testing.assert_allclose(row, alone.mean(dim=0).numpy(), rtol=2e-5, atol=2e-5)


def test_every_token_of_a_text_is_read_without_its_padding(mini: ActivationReader) -> None:
    texts = [[5, 6, 7, 8], [9, 10]]
    read = list(mini.every_token(texts, SITE))
    assert [acts.shape for acts in read] == [(4, 512), (2, 512)]
    alone = mini.model.read(Tokens.of([texts[1]]), [SITE])[SITE][0]
    np.testing.assert_allclose(read[1], alone.numpy(), rtol=2e-5, atol=2e-5)


def test_patterns_stand_for_sites_in_the_models_order(mini: ActivationReader) -> None:
    assert mini.sites("hidden.*") == [f"hidden.{layer}" for layer in range(7)]
    assert mini.sites(["blocks.middle.attn.q", "hidden.0"]) == ["blocks.3.attn.q", "hidden.0"]
    with pytest.raises(InputError, match="no site of mini matches"):
        mini.sites("layers.*")


def test_latents_are_what_the_module_makes_of_the_neurons(mini: ActivationReader) -> None:
    torch.manual_seed(0)
    module = SparseAutoencoderModule(KSparseAutoencoder(512, latent_dim=64, k=5))
    module.scaling.set(torch.randn(512), 0.3)
    reader = ActivationReader(mini.language_model, [encoder_of(module, {"site": SITE})])
    (acts,) = mini.every_token([[5, 6, 7, 8]], SITE)
    (latents,) = reader.every_token([[5, 6, 7, 8]], SITE)
    expected = module.encode(torch.from_numpy(acts)).detach().numpy()
    np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-6)
    assert (latents != 0).sum(axis=1).tolist() == [5] * 4
    assert reader.units == "latents"


def test_an_autoencoder_of_another_place_is_refused(tmp_path: Path) -> None:
    spec = LanguageModelSpec("mini")
    autoencoder = KSparseAutoencoder(512, latent_dim=64, k=5)
    autoencoder.save_pretrained(tmp_path / "sae")
    of_folder = ActivationReader(spec, [Encoder.from_folder(tmp_path / "sae")])
    assert of_folder.sites(SITE) == [SITE]
    with pytest.raises(InputError, match=r"width 512, and hidden\.2 of mini is 128"):
        of_folder.sites("hidden.2")

    module = SparseAutoencoderModule(autoencoder)
    elsewhere = encoder_of(module, {"site": SITE, "language_model": spec.identity()})
    with pytest.raises(InputError, match=r"trained at blocks\.3\.mlp\.pre, and blocks\.1"):
        ActivationReader(spec, [elsewhere]).sites("blocks.1.mlp.pre")
    other = encoder_of(module, {"site": SITE, "language_model": "gpt2@abc"})
    with pytest.raises(InputError, match="trained on the language model gpt2@abc"):
        ActivationReader(spec, [other])
