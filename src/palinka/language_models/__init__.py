"""Language models, whose activations are read and replaced at named sites."""

from palinka.language_models.model import Activations, LanguageModel, Tokens
from palinka.language_models.spec import LanguageModelSpec

__all__ = ["Activations", "LanguageModel", "LanguageModelSpec", "Tokens"]
