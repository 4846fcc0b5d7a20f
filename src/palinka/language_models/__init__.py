"""Language models: loading them, the names of their sites, reading and replacing activations."""

from palinka.language_models.model import Activations, LanguageModel, Tokens
from palinka.language_models.spec import LanguageModelSpec

__all__ = [
    "Activations",
    "LanguageModel",
    "LanguageModelSpec",
    "Tokens",
]
