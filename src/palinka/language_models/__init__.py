"""Language models: loading them, the names of their sites, reading and replacing activations."""

from palinka.language_models.activations import Activations
from palinka.language_models.language_model import LanguageModel
from palinka.language_models.spec import LanguageModelSpec
from palinka.language_models.tokens import Tokens

__all__ = [
    "Activations",
    "LanguageModel",
    "LanguageModelSpec",
    "Tokens",
]
