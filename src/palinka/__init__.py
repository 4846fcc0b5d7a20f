"""palinka distils the activations of a language model into sparse features.

Everything named here loads on first use, so that `import palinka` is cheap.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palinka.activations import ActivationDataModule as ActivationDataModule
    from palinka.autoencoders import Autoencoder as Autoencoder
    from palinka.autoencoders import BatchTopKAutoencoder as BatchTopKAutoencoder
    from palinka.autoencoders import GatedAutoencoder as GatedAutoencoder
    from palinka.autoencoders import JumpReLUAutoencoder as JumpReLUAutoencoder
    from palinka.autoencoders import KSparseAutoencoder as KSparseAutoencoder
    from palinka.autoencoders import MatryoshkaAutoencoder as MatryoshkaAutoencoder
    from palinka.autoencoders import ReLUAutoencoder as ReLUAutoencoder
    from palinka.autoencoders import TopKAutoencoder as TopKAutoencoder
    from palinka.language_models import LanguageModel as LanguageModel
    from palinka.training import SparseAutoencoderModule as SparseAutoencoderModule

__version__ = "0.1.0"

_HOME = {
    "ActivationDataModule": "palinka.activations",
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
_ROOMS = (
    "activations",
    "analyses",
    "atlas",
    "autoencoders",
    "callbacks",
    "corpora",
    "figures",
    "kernels",
    "language_models",
    "stimuli",
    "synthetic",
    "training",
)

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
