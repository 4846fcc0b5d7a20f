import json

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from palinka.assets import mini_gpt2_folder, mini_sample_file

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(mini_gpt2_folder() / "tokenizer.json"))


def words(*groups: str) -> list[str]:
    listed = yaml.safe_load((mini_gpt2_folder() / "single_tokens.yaml").read_text())
    return [word for group in groups or listed for word in listed[group]]


def test_the_words_of_the_stimuli_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert words("pronouns") == ["him", "her"]
    assert words("punctuation") == [",", "."]
    similar = words("space", "interior", "fruit")
    assert len(similar) == len(set(similar)) == 34
    assert len(set(words("geography"))) >= 30
    broken = {word: tokenizer.encode(f" {word}").tokens for word in words()}
    assert {word: tokens for word, tokens in broken.items() if len(tokens) != 1} == {}


def test_the_model_is_a_small_gpt2_in_half_precision() -> None:
    config = json.loads((mini_gpt2_folder() / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["tie_word_embeddings"] is True
    assert (config["n_layer"], config["vocab_size"], config["n_positions"]) == (6, 8192, 256)
    weights = mini_gpt2_folder() / "model.safetensors"
    assert weights.stat().st_size < 16 * MEGABYTE
    with safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (this is no dict)
            assert file.get_tensor(name).dtype == torch.float16
            assert file.get_tensor(name).isfinite().all()


def test_the_sample_is_large_and_varied_text_of_the_model() -> None:
    assert mini_sample_file().stat().st_size < MEGABYTE
    sample = load_file(mini_sample_file())
    tokens, offsets = sample["tokens"], sample["offsets"]
    assert tokens.dtype == np.uint16
    assert len(tokens) >= 400_000
    assert tokens.max() < 8192
    assert (tokens != 0).all()  # no end-of-text token
    assert offsets.dtype == np.int64
    assert offsets[0] == 0
    assert offsets[-1] == len(tokens)
    assert (np.diff(offsets) >= 1).all()
    documents = np.split(tokens, offsets[1:-1])
    assert len(documents) >= 1500
    assert len({document.tobytes() for document in documents}) == len(documents)
    assert len(np.unique(tokens)) > 5000
    # A document that goes round in a loop has few different tokens.
    distinct = [len(np.unique(document)) / len(document) for document in documents]
    assert min(distinct) > 0.25
