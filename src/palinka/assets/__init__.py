"""The files that come with the package: a mini GPT-2 and a sample of tokens that it wrote."""

from pathlib import Path

__all__ = ["mini_gpt2_folder", "mini_sample_file"]

_ASSETS = Path(__file__).parent


def mini_gpt2_folder() -> Path:
    """The bundled mini GPT-2: weights, configuration and tokenizer."""
    return _ASSETS / "mini_gpt2"


def mini_sample_file() -> Path:
    """The bundled sample of text, as tokens of the mini GPT-2, in one safetensors file."""
    return _ASSETS / "mini_sample.safetensors"
