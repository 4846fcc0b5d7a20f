"""Training of sparse autoencoders: losses, metrics, constraints and the Lightning module."""

from palinka.training.losses import decorrelation_loss, reconstruction_loss, sparsity_loss
from palinka.training.metrics import DeadLatentTracker, ReconstructionMetrics, SparsityMetrics
from palinka.training.module import SparseAutoencoderModule
from palinka.training.sweep import SweepModule

__all__ = [
    "DeadLatentTracker",
    "ReconstructionMetrics",
    "SparseAutoencoderModule",
    "SparsityMetrics",
    "SweepModule",
    "decorrelation_loss",
    "reconstruction_loss",
    "sparsity_loss",
]
