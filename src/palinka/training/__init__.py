"""Training of sparse autoencoders: losses, metrics, constraints and the Lightning module."""

from palinka.training.losses import decorrelation_loss as decorrelation_loss
from palinka.training.losses import reconstruction_loss as reconstruction_loss
from palinka.training.losses import sparsity_loss as sparsity_loss
from palinka.training.metrics import DeadLatentTracker as DeadLatentTracker
from palinka.training.metrics import ReconstructionMetrics as ReconstructionMetrics
from palinka.training.metrics import SparsityMetrics as SparsityMetrics
from palinka.training.module import SparseAutoencoderModule as SparseAutoencoderModule
from palinka.training.sweep import SweepModule as SweepModule
