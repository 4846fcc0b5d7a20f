"""Activations on disk and in memory: harvested, cached, loaded in batches."""

from palinka.activations.cache import Cache
from palinka.activations.datamodule import ActivationDataModule
from palinka.activations.harvest import harvest
from palinka.activations.harvest_spec import HarvestSpec
from palinka.activations.input_statistics import InputStatistics
from palinka.activations.key import CacheKey, Layout
from palinka.activations.loader import ActivationLoader
from palinka.activations.memory import MemoryRows
from palinka.activations.rows import Context, RowSource
from palinka.activations.statistics import RowStatistics
from palinka.activations.writer import CacheWriter, ShardClaim

__all__ = [
    "ActivationDataModule",
    "ActivationLoader",
    "Cache",
    "CacheKey",
    "CacheWriter",
    "Context",
    "HarvestSpec",
    "InputStatistics",
    "Layout",
    "MemoryRows",
    "RowSource",
    "RowStatistics",
    "ShardClaim",
    "harvest",
]
