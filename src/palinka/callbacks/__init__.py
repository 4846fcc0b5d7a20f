"""What watches a run and reports on it, and analyses of neurons and latents with a model."""

from palinka.callbacks.analysis_entry import AnalysisEntry, HeatmapEntry
from palinka.callbacks.dashboard import TensorBoardDashboard, tensorboard_writers
from palinka.callbacks.event_files import rewind_events
from palinka.callbacks.forming_latents import FormingLatents
from palinka.callbacks.histograms import FeatureHistograms
from palinka.callbacks.language_model_metrics import LanguageModelMetrics
from palinka.callbacks.latents import LatentWriter
from palinka.callbacks.report import as_typed, final_report
from palinka.callbacks.report_latents import ReportLatents
from palinka.callbacks.run_analyses import RunAnalyses
from palinka.callbacks.run_checkpoints import RunCheckpoints
from palinka.callbacks.sweep_findings import SweepFindings, sweep_report
from palinka.callbacks.throughput import ThroughputMonitor
from palinka.callbacks.variant_logger import VariantLogger, with_variants

__all__ = [
    "AnalysisEntry",
    "FeatureHistograms",
    "FormingLatents",
    "HeatmapEntry",
    "LanguageModelMetrics",
    "LatentWriter",
    "ReportLatents",
    "RunAnalyses",
    "RunCheckpoints",
    "SweepFindings",
    "TensorBoardDashboard",
    "ThroughputMonitor",
    "VariantLogger",
    "as_typed",
    "final_report",
    "rewind_events",
    "sweep_report",
    "tensorboard_writers",
    "with_variants",
]
