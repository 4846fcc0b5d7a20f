"""Activations held in memory, and input normalization."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.data.cache import Cache, RowContext
from palinka.data.format import TABLES, RowStatistics
from palinka.data.harvest import HarvestSpec, load_model, read_rows
from palinka.data.packing import Context, documents_of_split, tokenize_documents
from palinka.errors import InputError, progress
from palinka.language_models import LanguageModel
from palinka.language_models.token_text import bos_id


class MemoryRows:
    """In-memory counterpart of `Cache`, in the order of the text.

    Of rows `(rows, width)`, with the token, document and position of each.
    """

    # Neighboring rows are of one context: a shuffled order keeps none of them together.
    run_rows = 1

    def __init__(self, activations: torch.Tensor, text: Context, identity: str) -> None:
        self._activations = activations
        self._text = text
        self.identity = identity
        self.rows, self.width = activations.shape
        self.dtype = activations.dtype
        self.statistics = RowStatistics.of(activations.to(torch.float64).numpy())

    def __repr__(self) -> str:
        return f"MemoryRows({self.rows:,} rows of {self.width} {self.dtype})"

    def reader(self) -> "MemoryRows":
        """Create a reader of the rows, which is this object itself."""
        return self

    def read_into(self, out: torch.Tensor, runs: NDArray[np.int64]) -> None:
        """Fill `out`, `(rows, width)`, with runs of rows, `(runs, 2)`, one after the other."""
        lengths = runs[:, 1] - runs[:, 0]
        ends = np.cumsum(lengths)
        numbers = np.repeat(runs[:, 1] - ends, lengths) + np.arange(len(out))
        torch.index_select(self._activations, 0, torch.from_numpy(numbers), out=out)

    def close(self) -> None:
        """Do nothing; a reader of a cache closes its files."""

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Copy the rows from `start` to before `stop`, `(rows, width)`."""
        return self._activations[start:stop].clone()

    def tokens(self) -> NDArray[np.int32]:
        """Return the token id of each row, `(rows,)`."""
        return self._text.tokens.astype(np.int32)

    def context(self, row: int) -> RowContext:
        """Return the text around a row, which is all of the text."""
        document, position = int(self._text.documents[row]), int(self._text.positions[row])
        return RowContext(self._text.tokens.astype(np.int32), row, document, position)


def read(spec: HarvestSpec) -> MemoryRows:
    """Read each document by itself, in the model's dtype, cut to `context_length` if longer."""
    model = load_model(spec, partial(LanguageModel.load, spec.language_model))
    rows: list[torch.Tensor] = []
    kept: list[Context] = []
    with progress(f"reading {spec.split} activations", None, "tokens") as bar:
        for size, alike in groupby(contexts(spec), lambda context: context.tokens.size):
            while batch := list(islice(alike, spec.contexts_per_batch)):
                tokens = np.stack([one.tokens for one in batch])
                rows.append(read_rows(spec, model, tokens, None).cpu())
                kept += batch
                bar.total = spec.tokens(bar.n + size * len(batch), batch[-1])
                bar.update(size * len(batch))
    if not rows:
        raise InputError(f"the {spec.split} split has no tokens to read: give more documents")
    skip, most = spec.layout.skip, spec.max_rows
    text = Context(*(np.concatenate([vars(c)[n][skip:] for c in kept])[:most] for n in TABLES))
    return MemoryRows(torch.cat(rows)[:most], text, identity_of(spec))


def identity_of(spec: HarvestSpec) -> str:
    """Identity of in-memory rows in a checkpoint, unlike that of any cache."""
    settings = {**spec.key.settings, "packing": "documents as they are"}
    return replace(spec.key, settings=settings).digest


def contexts(spec: HarvestSpec) -> Iterator[Context]:
    """Tokenize the contexts of the rows of `read`, in the order of the text."""
    tokenizer = spec.language_model.tokenizer()
    bos = [bos_id(tokenizer)] if spec.bos else []
    content = spec.context_length - len(bos)
    rows = 0
    documents = documents_of_split(spec.corpus, spec.split, spec.validation_fraction, spec.seed)
    for index, tokens in tokenize_documents(documents, tokenizer):
        for start in range(0, len(tokens), content):
            if spec.max_rows is not None and rows >= spec.max_rows:
                return
            ids = np.concatenate([np.array(bos, np.int64), tokens[start : start + content]])
            if ids.size > spec.layout.skip:
                positions = np.arange(ids.size) + (start - len(bos))
                positions[: len(bos)] = -1
                yield Context(ids, np.full(ids.size, index), positions)
                rows += ids.size - spec.layout.skip


CHUNK_NUMBERS = 2**22  # small enough for the processor's caches, large enough for one read


class InputStatistics(NamedTuple):
    """Normalization of an autoencoder's input, `(row - mean) * scale`, with a float64 mean."""

    mean: NDArray[np.float64]
    scale: float


def input_statistics(
    rows: Cache | MemoryRows, columns: slice, *, center: bool, unit_norm: bool
) -> InputStatistics:
    """Mean and scale over all rows, of some columns; `unit_norm` follows any centering."""
    mean = rows.statistics.mean[columns]
    mean = mean if center else np.zeros_like(mean)
    if not unit_norm:
        return InputStatistics(mean, 1.0)
    # Norms of centered rows, or of a part of the columns, do not follow from the stored sums.
    known = len(mean) == rows.width and not center
    total = rows.statistics.sum_of_norms if known else _sum_of_distances(rows, mean, columns)
    if total == 0:
        fault = f"all {rows.rows} training rows are {'equal' if center else 'zero'}"
        raise InputError(f"{fault}; choose another site, or set unit_norm to false")
    return InputStatistics(mean, 1.0 / (total / rows.rows))


def _sum_of_distances(rows: Cache | MemoryRows, mean: NDArray[np.float64], columns: slice) -> float:
    """Sum up the Euclidean distance of each row from `mean`."""
    center = torch.from_numpy(mean).float()
    step = max(1, CHUNK_NUMBERS // rows.width)
    total = 0.0
    with progress("measuring the rows' norms", rows.rows, "rows") as bar:
        for start in range(0, rows.rows, step):
            chunk = rows.read_rows(start, min(start + step, rows.rows))
            # Single precision keeps seven digits of each distance, in half the time.
            distances = torch.linalg.vector_norm(chunk[:, columns].float() - center, dim=1)
            total += float(distances.sum(dtype=torch.float64))
            bar.update(len(chunk))
    return total
