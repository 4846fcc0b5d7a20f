"""Training callbacks."""

from palinka.analyses.run import AnalysisEntry, HeatmapEntry
from palinka.training.callbacks.checkpoints import RunCheckpoints, rewind_logs
from palinka.training.callbacks.latent_evolution import LatentEvolution
from palinka.training.callbacks.latent_report import LatentWriter, ReportLatents
from palinka.training.callbacks.loss_recovered import LanguageModelMetrics
from palinka.training.callbacks.run_analyses import RunAnalyses
from palinka.training.callbacks.summary import (
    SweepFindings,
    final_report,
    shell_path,
    sweep_report,
)
from palinka.training.callbacks.tensorboard import (
    FeatureHistograms,
    TensorBoardDashboard,
    ThroughputMonitor,
    tensorboard_writers,
)
from palinka.training.callbacks.variants import VariantLogger, log_folder, with_variants

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
    "VariantLogger",
    "final_report",
    "log_folder",
    "rewind_logs",
    "shell_path",
    "sweep_report",
    "tensorboard_writers",
    "with_variants",
]
