"""Where text comes from, and how it becomes packed blocks of token ids."""

from palinka.corpora.blocks import token_blocks
from palinka.corpora.bundled_sample import BundledSample
from palinka.corpora.corpus import Corpus, Document
from palinka.corpora.hugging_face import HuggingFaceDataset
from palinka.corpora.packing import Block, Packing, pack
from palinka.corpora.passage import Passage
from palinka.corpora.split import Split, split_of
from palinka.corpora.text_files import TextFiles

__all__ = [
    "Block",
    "BundledSample",
    "Corpus",
    "Document",
    "HuggingFaceDataset",
    "Packing",
    "Passage",
    "Split",
    "TextFiles",
    "pack",
    "split_of",
    "token_blocks",
]
