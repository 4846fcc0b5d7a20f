"""Activations of a small corpus, read once and kept in memory."""

from collections.abc import Iterator
from itertools import groupby, islice

import numpy as np
import torch

from palinka.activations.harvest import check_finite, load_model, read_rows
from palinka.activations.harvest_spec import HarvestSpec
from palinka.activations.memory import MemoryRows
from palinka.corpora import Block, Document, split_of
from palinka.corpora.tokenization import tokenize_documents
from palinka.errors import InputError
from palinka.progress import progress
from palinka.tokenization import bos_id


def read_in_memory(spec: HarvestSpec) -> MemoryRows:
    """Read every document as it stands: nothing comes after it, and none of it is dropped.

    A document of at most `context_length` tokens is one forward pass. A longer one is cut into
    contexts of that length, of which the last is as short as it comes. The rows stay in the
    dtype that the model computes in: `spec.dtype` is how numbers are stored on disk.

    Args:
        spec: What to read; the rows take their identity from it.

    Raises:
        InputError: If the model or the corpus cannot be read, the split has no tokens, or
            activations are not finite.
    """
    model = load_model(spec, spec.language_model.load)
    skip = spec.layout.skip
    rows: list[torch.Tensor] = []
    kept: list[Block] = []
    count = 0
    with progress(f"reading {spec.split} activations", None, "tokens") as bar:
        for batch in _batches(spec):
            read = read_rows(spec, model, np.stack([piece.tokens for piece in batch])).cpu()
            check_finite(spec, read, read.dtype)
            rows.append(read)
            kept += batch
            count += len(read)
            bar.update(batch[0].tokens.size * len(batch))
            if spec.max_rows is not None and count >= spec.max_rows:
                break
    if not rows:
        raise InputError(
            f"the {spec.split} split has no tokens to read: give more documents, or set "
            "validation_fraction to 0 so that validation uses the training rows"
        )
    tokens, documents, positions = (
        # All rows as one block: then the text around a row is all of the text.
        np.concatenate([getattr(piece, name)[skip:] for piece in kept])[None, : spec.max_rows]
        for name in ("tokens", "documents", "positions")
    )
    activations = torch.cat(rows)[: spec.max_rows]
    return MemoryRows(activations, tokens, documents, positions, identity=identity_of(spec))


def identity_of(spec: HarvestSpec) -> str:
    """What a checkpoint remembers in-memory rows by: unlike that of any cache."""
    key = spec.key
    return type(key)(key.layout, {**key.settings, "packing": "documents as they are"}).digest


def contexts_in_memory(spec: HarvestSpec) -> Iterator[Block]:
    """The contexts that the rows of `read_in_memory` come from, in the order of the text."""
    left = spec.max_rows
    for piece in _pieces(spec):
        if left is not None and left <= 0:
            return
        yield piece
        if left is not None:
            left -= piece.tokens.size - spec.layout.skip


def _batches(spec: HarvestSpec) -> Iterator[list[Block]]:
    """Neighbouring pieces of one length, as many as go through the model at once."""
    for _, alike in groupby(_pieces(spec), key=lambda piece: piece.tokens.size):
        while batch := list(islice(alike, spec.blocks_per_batch)):
            yield batch


def _pieces(spec: HarvestSpec) -> Iterator[Block]:
    """The documents of the split, cut where they are longer than the context."""
    tokenizer = spec.language_model.tokenizer()
    bos = [bos_id(tokenizer)] if spec.bos else []
    content = spec.context_length - len(bos)
    if content < 1:
        raise InputError(f"context_length is {spec.context_length}; expected at least 2 with bos")
    for index, tokens in tokenize_documents(_documents(spec), tokenizer):
        for start in range(0, len(tokens), content):
            piece = np.concatenate([np.array(bos, np.int64), tokens[start : start + content]])
            if piece.size <= spec.layout.skip:
                continue
            positions = np.arange(piece.size) + (start - len(bos))
            positions[: len(bos)] = -1
            yield Block(piece, np.full(piece.size, index), positions)


def _documents(spec: HarvestSpec) -> Iterator[tuple[int, Document]]:
    for index, document in enumerate(spec.corpus.documents()):
        if split_of(index, spec.validation_fraction, spec.seed) == spec.split:
            yield index, document
