"""Activations held in memory, and input normalization."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.data.cache import TABLES, Cache, RowContext
from palinka.data.format import RowStatistics
from palinka.data.harvest import HarvestSpec, check_finite, load_model, read_rows
from palinka.data.packing import Context, documents_of_split, tokenize_documents
from palinka.errors import InputError, progress
from palinka.language_models import LanguageModel
from palinka.language_models.token_text import bos_id


class MemoryRows:
    """In-memory counterpart of `Cache`, in the order of contexts and positions.

    Args:
        activations: Rows, `(contexts * (context_length - skip), width)`.
        tokens: Token ids, `(contexts, context_length)`.
        documents: Document number of each token, `(contexts, context_length)`.
        positions: Place of each token in its document, `(contexts, context_length)`.
        skip: Leading positions of each context that have no rows.
        identity: Identity that a checkpoint remembers; default a hash of the rows.

    Attributes:
        statistics: Sums over all rows.
    """

    # Rows lie in the order of the text: a shuffled order keeps none of them together.
    run_rows = 1

    def __init__(
        self,
        activations: torch.Tensor,
        tokens: NDArray[np.int64],
        documents: NDArray[np.int64],
        positions: NDArray[np.int64],
        skip: int = 0,
        identity: str | None = None,
    ) -> None:
        contexts, context_length = tokens.shape
        if (
            activations.ndim != 2
            or len(activations) != contexts * (context_length - skip)
            or not tokens.shape == documents.shape == positions.shape
        ):
            raise InputError(
                f"activations of shape {tuple(activations.shape)} given for {contexts} contexts of "
                f"{context_length} tokens, of which {skip} are skipped: expected "
                f"({contexts * (context_length - skip)}, width), and documents and positions like "
                "tokens"
            )
        if not torch.isfinite(activations).all():
            raise InputError(
                "activations hold NaN or infinities; check the language model and the dtype it "
                "runs in"
            )
        self._activations = activations.contiguous().cpu()
        self._tables = (tokens, documents, positions)
        self._skip = skip
        self.statistics = RowStatistics.of(self._activations.to(torch.float64).numpy())
        self.identity = identity or self._hash()

    def _hash(self) -> str:
        described = f"{self.dtype} {tuple(self._activations.shape)} {self._skip}"
        checksum = hashlib.sha256(described.encode())
        checksum.update(self._activations.view(torch.uint8).numpy().data)
        for table in self._tables:
            checksum.update(np.ascontiguousarray(table, "<i8").data)
        return checksum.hexdigest()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._activations)

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self._activations.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Stored type."""
        return self._activations.dtype

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
        """Do nothing, as a reader of a cache closes its files."""

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Copy the rows from `start` to before `stop`, `(rows, width)`."""
        return self._activations[start:stop].clone()

    def context(self, row: int) -> RowContext:
        """Return the text around a row."""
        if not 0 <= row < self.rows:
            raise InputError(f"row {row} asked of rows 0 to {self.rows - 1}")
        tokens, documents, positions = self._tables
        context, place = divmod(row, tokens.shape[1] - self._skip)
        offset = self._skip + place
        return RowContext(
            tokens=tokens[context].astype(np.int32),
            offset=offset,
            document=int(documents[context, offset]),
            position=int(positions[context, offset]),
        )


def read_in_memory(spec: HarvestSpec) -> MemoryRows:
    """Read every document by itself, without packing.

    A document of at most `context_length` tokens is one forward pass. A longer one is cut into
    contexts of that length, of which the last may be shorter. The rows stay in the dtype that
    the model computes in: `spec.dtype` is how numbers are stored on disk.

    Args:
        spec: What to read; the rows take their identity from it.
    """
    model = load_model(spec, partial(LanguageModel.load, spec.language_model))
    skip = spec.layout.skip
    rows: list[torch.Tensor] = []
    kept: list[Context] = []
    with progress(f"reading {spec.split} activations", None, "tokens") as bar:
        for _, alike in groupby(contexts_in_memory(spec), key=lambda context: context.tokens.size):
            while batch := list(islice(alike, spec.contexts_per_batch)):
                read = read_rows(spec, model, np.stack([one.tokens for one in batch])).cpu()
                check_finite(spec, read, read.dtype)
                rows.append(read)
                kept += batch
                bar.update(batch[0].tokens.size * len(batch))
    if not rows:
        raise InputError(
            f"the {spec.split} split has no tokens to read: give more documents, or set "
            "validation_fraction to 0 so that validation uses the training rows"
        )
    tokens, documents, positions = (
        # All rows as one context: then the text around a row is all of the text.
        np.concatenate([getattr(context, name)[skip:] for context in kept])[None, : spec.max_rows]
        for name in TABLES
    )
    activations = torch.cat(rows)[: spec.max_rows]
    return MemoryRows(activations, tokens, documents, positions, identity=identity_of(spec))


def identity_of(spec: HarvestSpec) -> str:
    """Identity of in-memory rows in a checkpoint, unlike that of any cache."""
    settings = {**spec.key.settings, "packing": "documents as they are"}
    return replace(spec.key, settings=settings).digest


def contexts_in_memory(spec: HarvestSpec) -> Iterator[Context]:
    """Tokenize the contexts of the rows of `read_in_memory`, in the order of the text."""
    tokenizer = spec.language_model.tokenizer()
    bos = [bos_id(tokenizer)] if spec.bos else []
    content = spec.context_length - len(bos)
    if content < 1:
        raise InputError(f"context_length is {spec.context_length}; expected at least 2 with bos")
    rows = 0
    documents = documents_of_split(spec.corpus, spec.split, spec.validation_fraction, spec.seed)
    for index, tokens in tokenize_documents(documents, tokenizer):
        for start in range(0, len(tokens), content):
            if spec.max_rows is not None and rows >= spec.max_rows:
                return
            ids = np.concatenate([np.array(bos, np.int64), tokens[start : start + content]])
            if ids.size <= spec.layout.skip:
                continue
            positions = np.arange(ids.size) + (start - len(bos))
            positions[: len(bos)] = -1
            yield Context(ids, np.full(ids.size, index), positions)
            rows += ids.size - spec.layout.skip


# Small enough for the processor's caches to help, large enough for one read.
CHUNK_NUMBERS = 2**22


@dataclass(frozen=True)
class InputStatistics:
    """Normalization of an autoencoder's input, `(row - mean) * scale`.

    Attributes:
        mean: Subtracted from each row, `(width,)`, float64; zeros for no centering.
        scale: Factor of the difference; 1 for no scaling.
    """

    mean: NDArray[np.float64]
    scale: float


def input_statistics(
    rows: Cache | MemoryRows,
    *,
    center: bool,
    unit_norm: bool,
    columns: slice,
) -> InputStatistics:
    """Measure mean and scale on all rows.

    The norms of centered rows, or of a part of the columns, do not follow from the sums that are
    stored, so that the rows are read once more for them.

    Args:
        rows: The training rows.
        center: Whether to shift by the mean row.
        unit_norm: Whether to scale to a mean Euclidean norm, after any centering, of 1.
        columns: Part of each row; `slice(None)` for all of it.

    Raises:
        InputError: If all rows are equal (zero without `center`) and `unit_norm` is on.
    """
    statistics = rows.statistics
    mean = statistics.mean[columns]
    known = len(mean) == rows.width and not center
    mean = mean if center else np.zeros_like(mean)
    if not unit_norm:
        return InputStatistics(mean, 1.0)
    norm = statistics.mean_norm if known else _mean_distance(rows, mean, columns)
    if norm == 0:
        raise InputError(
            f"all {rows.rows} training rows are {'equal' if center else 'zero'}, so that nothing "
            "scales them to unit norm; choose another site, or set unit_norm to false"
        )
    return InputStatistics(mean, 1.0 / norm)


def _mean_distance(rows: Cache | MemoryRows, mean: NDArray[np.float64], columns: slice) -> float:
    """Measure the mean Euclidean distance of a row from `mean`."""
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
    return total / rows.rows
