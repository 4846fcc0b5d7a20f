"""Sparse autoencoders: plain modules, independent of training."""

from palinka.autoencoders.base import Autoencoder, AutoencoderOutput, InputScaling, SparseOutput
from palinka.autoencoders.batch_topk import BatchTopKAutoencoder
from palinka.autoencoders.gated import GatedAutoencoder
from palinka.autoencoders.jumprelu import JumpReLUAutoencoder
from palinka.autoencoders.ksparse import KSparseAutoencoder, LayerNormalizedAutoencoder
from palinka.autoencoders.matryoshka import MatryoshkaAutoencoder
from palinka.autoencoders.relu import ReLUAutoencoder
from palinka.autoencoders.topk import TopKAutoencoder

__all__ = [
    "Autoencoder",
    "AutoencoderOutput",
    "BatchTopKAutoencoder",
    "GatedAutoencoder",
    "InputScaling",
    "JumpReLUAutoencoder",
    "KSparseAutoencoder",
    "LayerNormalizedAutoencoder",
    "MatryoshkaAutoencoder",
    "ReLUAutoencoder",
    "SparseOutput",
    "TopKAutoencoder",
]
