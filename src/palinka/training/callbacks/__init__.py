"""Training callbacks."""

from palinka.analyses.run import AnalysisEntry, HeatmapEntry
from palinka.training.callbacks.checkpoints import RunCheckpoints
from palinka.training.callbacks.latent_evolution import LatentEvolution
from palinka.training.callbacks.latent_report import LatentWriter, ReportLatents
from palinka.training.callbacks.loss_recovered import LanguageModelMetrics
from palinka.training.callbacks.run_analyses import RunAnalyses
from palinka.training.callbacks.summary import SweepFindings
from palinka.training.callbacks.tensorboard import (
    FeatureHistograms,
    TensorBoardDashboard,
    ThroughputMonitor,
)

__all__ = [
    "AnalysisEntry",
    "FeatureHistograms",
    "HeatmapEntry",
    "LanguageModelMetrics",
    "LatentEvolution",
    "LatentWriter",
    "ReportLatents",
    "RunAnalyses",
    "RunCheckpoints",
    "SweepFindings",
    "TensorBoardDashboard",
    "ThroughputMonitor",
]
