from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import GPT2Config, GPTNeoConfig, LlamaConfig

from palinka.assets import mini_gpt2_folder
from palinka.cli.parser import ArgumentParser


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Programs whose command lines are parsed, once for each time."""
    found: list[str] = []
    parse = ArgumentParser.parse_args

    def spy(parser: ArgumentParser, *args: Any, **options: Any) -> Any:
        found.append(parser.prog)
        return parse(parser, *args, **options)

    monkeypatch.setattr(ArgumentParser, "parse_args", spy)
    return found


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random models of the families that configurations take from the hub."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(mini_gpt2_folder())
    size = len(tokenizer)
    gpt2 = GPT2Config(vocab_size=size, n_embd=16, n_layer=6, n_head=2, n_positions=256)
    gpt_neo = GPTNeoConfig(
        vocab_size=size, hidden_size=16, num_layers=10, num_heads=2, max_position_embeddings=256,
        attention_types=[[["global", "local"], 5]],
    )  # fmt: skip
    llama = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models")
    for config in (gpt2, gpt_neo, llama):
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder / config.model_type)
        tokenizer.save_pretrained(folder / config.model_type)
    return folder
