"""Activations on disk and in memory: harvested, cached, loaded in batches."""

from typing import TYPE_CHECKING, Any

from palinka.activations.cache import Cache
from palinka.activations.harvest import harvest
from palinka.activations.harvest_spec import HarvestSpec
from palinka.activations.input_statistics import InputStatistics
from palinka.activations.key import CacheKey, Layout
from palinka.activations.loader import ActivationLoader
from palinka.activations.memory import MemoryRows
from palinka.activations.rows import Context, RowSource
from palinka.activations.statistics import RowStatistics
from palinka.activations.writer import CacheWriter, ShardClaim

if TYPE_CHECKING:
    from palinka.activations.datamodule import ActivationDataModule

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


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and whoever looks at caches does without it.
    if name == "ActivationDataModule":
        from palinka.activations.datamodule import ActivationDataModule

        return ActivationDataModule
    raise AttributeError(f"module 'palinka.activations' has no attribute {name!r}")
