"""Data: text, tokens, activations on disk and in memory, batches."""

from typing import TYPE_CHECKING, Any

from palinka.data.cache import Cache as Cache
from palinka.data.cache import RowContext as RowContext
from palinka.data.corpora import BundledSample as BundledSample
from palinka.data.corpora import Corpus as Corpus
from palinka.data.corpora import Document as Document
from palinka.data.corpora import HuggingFaceDataset as HuggingFaceDataset
from palinka.data.corpora import Passage as Passage
from palinka.data.corpora import TextFiles as TextFiles
from palinka.data.format import CacheKey as CacheKey
from palinka.data.format import Layout as Layout
from palinka.data.harvest import HarvestSpec as HarvestSpec
from palinka.data.harvest import harvest as harvest
from palinka.data.loader import ActivationLoader as ActivationLoader
from palinka.data.memory import MemoryRows as MemoryRows
from palinka.data.packing import Context as Context
from palinka.data.packing import Split as Split
from palinka.data.packing import pack as pack
from palinka.data.packing import split_of as split_of
from palinka.data.synthetic import Correlation as Correlation
from palinka.data.synthetic import Firing as Firing
from palinka.data.synthetic import Hierarchy as Hierarchy
from palinka.data.synthetic import Magnitudes as Magnitudes
from palinka.data.synthetic import StructuredData as StructuredData
from palinka.data.synthetic import mean_max_cosine as mean_max_cosine
from palinka.data.writer import CacheWriter as CacheWriter

if TYPE_CHECKING:
    from palinka.data.datamodule import ActivationDataModule as ActivationDataModule


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import, and reading a cache does not need it.
    if name == "ActivationDataModule":
        from palinka.data.datamodule import ActivationDataModule

        return ActivationDataModule
    raise AttributeError(f"module 'palinka.data' has no attribute {name!r}")
