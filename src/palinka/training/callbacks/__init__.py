"""Training callbacks."""

from palinka.analyses.run import AnalysisEntry as AnalysisEntry
from palinka.analyses.run import HeatmapEntry as HeatmapEntry
from palinka.training.callbacks.checkpoints import RunCheckpoints as RunCheckpoints
from palinka.training.callbacks.latent_evolution import LatentEvolution as LatentEvolution
from palinka.training.callbacks.latent_report import LatentWriter as LatentWriter
from palinka.training.callbacks.latent_report import ReportLatents as ReportLatents
from palinka.training.callbacks.loss_recovered import LanguageModelMetrics as LanguageModelMetrics
from palinka.training.callbacks.run_analyses import RunAnalyses as RunAnalyses
from palinka.training.callbacks.summary import SweepFindings as SweepFindings
from palinka.training.callbacks.tensorboard import FeatureHistograms as FeatureHistograms
from palinka.training.callbacks.tensorboard import TensorBoardDashboard as TensorBoardDashboard
from palinka.training.callbacks.tensorboard import ThroughputMonitor as ThroughputMonitor
