"""Sparse autoencoders: plain modules, independent of training."""

from palinka.autoencoders.base import Autoencoder as Autoencoder
from palinka.autoencoders.base import AutoencoderOutput as AutoencoderOutput
from palinka.autoencoders.base import InputScaling as InputScaling
from palinka.autoencoders.base import SparseOutput as SparseOutput
from palinka.autoencoders.batch_topk import BatchTopKAutoencoder as BatchTopKAutoencoder
from palinka.autoencoders.gated import GatedAutoencoder as GatedAutoencoder
from palinka.autoencoders.jumprelu import JumpReLUAutoencoder as JumpReLUAutoencoder
from palinka.autoencoders.ksparse import KSparseAutoencoder as KSparseAutoencoder
from palinka.autoencoders.ksparse import LayerNormalizedAutoencoder as LayerNormalizedAutoencoder
from palinka.autoencoders.matryoshka import MatryoshkaAutoencoder as MatryoshkaAutoencoder
from palinka.autoencoders.relu import ReLUAutoencoder as ReLUAutoencoder
from palinka.autoencoders.topk import TopKAutoencoder as TopKAutoencoder
