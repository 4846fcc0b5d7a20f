"""palinka distils the activations of a language model into sparse features.

Everything named here loads on first use, so that `import palinka` is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palinka.autoencoders import (
        Autoencoder,
        BatchTopKAutoencoder,
        GatedAutoencoder,
        JumpReLUAutoencoder,
        KSparseAutoencoder,
        MatryoshkaAutoencoder,
        ReLUAutoencoder,
        TopKAutoencoder,
    )
    from palinka.data import ActivationDataModule
    from palinka.language_models import LanguageModel
    from palinka.training import SparseAutoencoderModule

__version__ = "0.1.0"

_HOME = {
    "ActivationDataModule": "palinka.data",
    "Autoencoder": "palinka.autoencoders",
    "BatchTopKAutoencoder": "palinka.autoencoders",
    "GatedAutoencoder": "palinka.autoencoders",
    "JumpReLUAutoencoder": "palinka.autoencoders",
    "KSparseAutoencoder": "palinka.autoencoders",
    "LanguageModel": "palinka.language_models",
    "MatryoshkaAutoencoder": "palinka.autoencoders",
    "ReLUAutoencoder": "palinka.autoencoders",
    "SparseAutoencoderModule": "palinka.training",
    "TopKAutoencoder": "palinka.autoencoders",
}
_ROOMS = ("analyses", "atlas", "autoencoders", "data", "language_models", "training")

__all__ = [
    "ActivationDataModule",
    "Autoencoder",
    "BatchTopKAutoencoder",
    "GatedAutoencoder",
    "JumpReLUAutoencoder",
    "KSparseAutoencoder",
    "LanguageModel",
    "MatryoshkaAutoencoder",
    "ReLUAutoencoder",
    "SparseAutoencoderModule",
    "TopKAutoencoder",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"palinka.{name}")
    raise AttributeError(f"module 'palinka' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})
