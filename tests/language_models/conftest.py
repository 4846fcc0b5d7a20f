import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from palinka.assets import mini_gpt2_folder
from palinka.language_models import LanguageModel

ENDS = {"vocab_size": 8192, "bos_token_id": 0, "eos_token_id": 0}
GPT2 = {"n_positions": 64, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 40, **ENDS}
SIZES = {"max_position_embeddings": 64, "hidden_size": 24, "intermediate_size": 40, **ENDS}
LLAMA = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, **SIZES}
WIDE = {**LLAMA, "head_dim": 8}  # heads together wider than the residual stream
NEO = {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4, **SIZES}
NEOX = {"num_hidden_layers": 3, "num_attention_heads": 3, "rotary_pct": 0.5, **SIZES}
GEMMA = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 4, "query_pre_attn_scalar": 8, "pad_token_id": 0, **WIDE,
}  # fmt: skip
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 20.0}
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(**GPT2),
    "gpt_neo": GPTNeoConfig(num_layers=3, num_heads=4, **NEO),
    "gpt_neox": GPTNeoXConfig(**NEOX),
    "gpt_neox_serial": GPTNeoXConfig(use_parallel_residual=False, **NEOX),
    "llama": LlamaConfig(**LLAMA),
    "mistral": MistralConfig(**LLAMA),
    "qwen2": Qwen2Config(**LLAMA),
    "qwen3": Qwen3Config(**WIDE),
    "gemma2": Gemma2Config(**GEMMA, **CAPS),
    "gemma3_text": Gemma3TextConfig(**GEMMA),
    "phi": PhiConfig(num_hidden_layers=3, num_attention_heads=3, **SIZES),
    "phi3": Phi3Config(pad_token_id=0, **LLAMA),
    "olmo2": Olmo2Config(pad_token_id=0, **LLAMA),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose every parameter matters, with the mini model's tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for name, config in {**CONFIGS, "relu": GPT2Config(activation_function="relu", **GPT2)}.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for path, parameter in model.named_parameters():
            norm = parameter.ndim == 1 and ("norm" in path or "ln_" in path)
            nn.init.normal_(parameter, mean=float(norm), std=0.3)
        model.save_pretrained(root / name)
        for file in mini_gpt2_folder().glob("tokenizer*"):
            shutil.copy(file, root / name)
    return {folder.name: folder for folder in root.iterdir()}


@pytest.fixture(scope="session")
def models(folders: dict[str, Path]) -> dict[str, LanguageModel]:
    return {
        name: LanguageModel.from_pretrained(str(folder), device="cpu")
        for name, folder in folders.items()
    }


def unhooked(model: LanguageModel) -> Iterator[LanguageModel]:
    """Check after the test that no hook is left, but for those of transformers."""
    yield model
    for module in model.model.modules():
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
            assert not hook.__module__.startswith("palinka")


@pytest.fixture(params=sorted(CONFIGS))
def any_model(
    request: pytest.FixtureRequest, models: dict[str, LanguageModel]
) -> Iterator[LanguageModel]:
    yield from unhooked(models[request.param])


@pytest.fixture
def gpt2(models: dict[str, LanguageModel]) -> Iterator[LanguageModel]:
    yield from unhooked(models["gpt2"])


@pytest.fixture
def relu_gpt2(models: dict[str, LanguageModel]) -> Iterator[LanguageModel]:
    """A model whose MLPs are what a transcoder computes."""
    yield from unhooked(models["relu"])


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [
        "I saw him at the market.",
        "Yes",
        "The river was wide, and the water was still.",
        "He gave her the letter and said nothing more about the matter for a long time.",
    ]
