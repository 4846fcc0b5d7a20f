"""Data: text, tokens, activations on disk and in memory, batches."""

from typing import TYPE_CHECKING, Any

from palinka.data.cache import Cache, RowContext
from palinka.data.corpora import (
    BundledSample,
    Corpus,
    Document,
    HuggingFaceDataset,
    Passage,
    TextFiles,
)
from palinka.data.format import CacheKey, Layout
from palinka.data.harvest import HarvestSpec, harvest
from palinka.data.loader import ActivationLoader
from palinka.data.memory import MemoryRows
from palinka.data.packing import Context, Split, pack, split_of
from palinka.data.synthetic import SyntheticData, mean_max_cosine
from palinka.data.writer import CacheWriter

if TYPE_CHECKING:
    from palinka.data.datamodule import ActivationDataModule

__all__ = [
    "ActivationDataModule",
    "ActivationLoader",
    "BundledSample",
    "Cache",
    "CacheKey",
    "CacheWriter",
    "Context",
    "Corpus",
    "Document",
    "HarvestSpec",
    "HuggingFaceDataset",
    "Layout",
    "MemoryRows",
    "Passage",
    "RowContext",
    "Split",
    "SyntheticData",
    "TextFiles",
    "harvest",
    "mean_max_cosine",
    "pack",
    "split_of",
]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and reading a cache does not need it.
    if name == "ActivationDataModule":
        from palinka.data.datamodule import ActivationDataModule

        return ActivationDataModule
    raise AttributeError(f"module 'palinka.data' has no attribute {name!r}")
