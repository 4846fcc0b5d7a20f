import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from palinka.assets import mini_gpt2_folder
from palinka.language_models import LanguageModel

VOCABULARY = 8192
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    **ENDS,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=24, n_layer=3, n_head=4, n_inner=40, **ENDS
    ),
    "gpt_neo": GPTNeoConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        hidden_size=24,
        num_layers=3,
        attention_types=[[["global", "local", "global"], 1]],
        num_heads=4,
        intermediate_size=40,
        window_size=4,
        **ENDS,
    ),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        rotary_pct=0.5,
        max_position_embeddings=64,
        **ENDS,
    ),
    "llama": LlamaConfig(**LLAMA_LIKE),
    "mistral": MistralConfig(**LLAMA_LIKE),
    "qwen2": Qwen2Config(**LLAMA_LIKE),
}
TEXTS = [
    "I saw him at the market.",
    "Yes",
    "The river was wide, and the water was still.",
    "He gave her the letter and said nothing more about the matter for a long time.",
]


def save_random_model(config: PretrainedConfig, folder: Path) -> Path:
    """A model whose every parameter matters, with the mini model's tokenizer beside it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, mean="norm" in name or "ln_" in name, std=0.3)
            else:
                nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    for file in mini_gpt2_folder().glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_random_model(config, root / name) for name, config in CONFIGS.items()}


@pytest.fixture(scope="session")
def models(folders: dict[str, Path]) -> dict[str, LanguageModel]:
    return {
        name: LanguageModel.from_pretrained(str(folder), device="cpu")
        for name, folder in folders.items()
    }


@pytest.fixture(params=sorted(CONFIGS))
def any_model(request: pytest.FixtureRequest, models: dict[str, LanguageModel]) -> LanguageModel:
    model = models[request.param]
    assert count_hooks(model) == 0
    return model


@pytest.fixture
def gpt2(models: dict[str, LanguageModel]) -> LanguageModel:
    return models["gpt2"]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


def count_hooks(model: LanguageModel) -> int:
    """Hooks other than those that transformers leaves behind to collect hidden states."""
    return sum(
        hook.__module__.startswith("palinka")
        for module in model.model.modules()
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    )


@pytest.fixture(scope="session")
def hooks_left() -> object:
    return count_hooks


@pytest.fixture(scope="session")
def save_random() -> object:
    return save_random_model
