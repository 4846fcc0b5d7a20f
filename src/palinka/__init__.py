"""Sparse autoencoders on language-model activations, and statistics of their features.

Everything named here loads on first use, so that `import palinka` is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palinka.autoencoders import Autoencoder as Autoencoder
    from palinka.autoencoders import BatchTopKAutoencoder as BatchTopKAutoencoder
    from palinka.autoencoders import GatedAutoencoder as GatedAutoencoder
    from palinka.autoencoders import JumpReLUAutoencoder as JumpReLUAutoencoder
    from palinka.autoencoders import KSparseAutoencoder as KSparseAutoencoder
    from palinka.autoencoders import MatryoshkaAutoencoder as MatryoshkaAutoencoder
    from palinka.autoencoders import ReLUAutoencoder as ReLUAutoencoder
    from palinka.autoencoders import TopKAutoencoder as TopKAutoencoder
    from palinka.data import ActivationDataModule as ActivationDataModule
    from palinka.evaluation.explain import explain as explain
    from palinka.language_models import LanguageModel as LanguageModel
    from palinka.training import SparseAutoencoderModule as SparseAutoencoderModule

__version__ = "0.1.0"

_AUTOENCODERS = (
    "Autoencoder", "BatchTopKAutoencoder", "GatedAutoencoder", "JumpReLUAutoencoder",
    "KSparseAutoencoder", "MatryoshkaAutoencoder", "ReLUAutoencoder", "TopKAutoencoder",
)  # fmt: skip
_HOME = dict.fromkeys(_AUTOENCODERS, "autoencoders") | {
    "ActivationDataModule": "data",
    "LanguageModel": "language_models",
    "SparseAutoencoderModule": "training",
    "explain": "evaluation.explain",
}
_ROOMS = ("analyses", "atlas", "autoencoders", "data", "evaluation", "language_models", "training")

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"palinka.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'palinka' has no attribute '{name}'")
    return getattr(importlib.import_module(f"palinka.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})
