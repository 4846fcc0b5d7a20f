"""Activations held in memory, and input normalization."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.data.cache import Cache, Context
from palinka.data.corpora import Document
from palinka.data.format import RowStatistics
from palinka.data.harvest import HarvestSpec, check_finite, load_model, read_rows
from palinka.data.packing import Block, split_of, tokenize_documents
from palinka.errors import InputError, progress
from palinka.language_models import LanguageModel
from palinka.language_models.token_text import bos_id


class MemoryRows:
    """The in-memory twin of `Cache`, in the order of blocks and positions.

    Args:
        activations: Rows in the order of blocks and positions,
            `(blocks * (context_length - skip), width)`.
        tokens: Token ids, `(blocks, context_length)`.
        documents: Document number of each token, `(blocks, context_length)`.
        positions: Place of each token in its document, `(blocks, context_length)`.
        skip: Leading positions of each block that have no rows.
        identity: What a checkpoint remembers the rows by; a hash of the rows if not given.

    Attributes:
        statistics: Sums over all rows.

    Raises:
        InputError: If shapes do not fit, or a row holds NaN or infinities.
    """

    # Rows lie in the order of the text: only single ones make a shuffled order.
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
        blocks, context_length = tokens.shape
        rows_per_block = context_length - skip
        if (
            activations.ndim != 2
            or len(activations) != blocks * rows_per_block
            or not tokens.shape == documents.shape == positions.shape
        ):
            raise InputError(
                f"activations of shape {tuple(activations.shape)} given for {blocks} blocks of "
                f"{context_length} tokens, of which {skip} are skipped: expected "
                f"({blocks * rows_per_block}, width), and documents and positions like tokens"
            )
        bad = int((~torch.isfinite(activations)).any(dim=1).sum())
        if bad:
            raise InputError(
                f"{bad} of {len(activations)} rows hold NaN or infinities; check the language "
                "model and the dtype it runs in"
            )
        self._activations = activations.contiguous().cpu()
        self._tables = (tokens, documents, positions)
        self._skip = skip
        self._rows_per_block = rows_per_block
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
        """How many rows there are."""
        return len(self._activations)

    @property
    def width(self) -> int:
        """Numbers per row."""
        return self._activations.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """How a number is stored."""
        return self._activations.dtype

    def reader(self) -> "MemoryRows":
        """A reader of the rows, which is this object itself."""
        return self

    def read_into(self, out: torch.Tensor, runs: NDArray[np.int64]) -> None:
        """Fill `out`, `(rows, width)`, with runs of rows, one after the other."""
        lengths = runs[:, 1] - runs[:, 0]
        ends = np.cumsum(lengths)
        numbers = np.repeat(runs[:, 1] - ends, lengths) + np.arange(len(out))
        torch.index_select(self._activations, 0, torch.from_numpy(numbers), out=out)

    def close(self) -> None:
        """Nothing is held open."""

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """The rows from `start` to before `stop`, `(rows, width)`."""
        return self._activations[start:stop].clone()

    def context(self, row: int) -> Context:
        """The text that a row comes from."""
        if not 0 <= row < self.rows:
            raise InputError(f"row {row} asked of rows 0 to {self.rows - 1}")
        block, place = divmod(row, self._rows_per_block)
        offset = self._skip + place
        tokens, documents, positions = self._tables
        return Context(
            tokens=tokens[block].astype(np.int32),
            offset=offset,
            document=int(documents[block, offset]),
            position=int(positions[block, offset]),
        )


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
    model = load_model(spec, partial(LanguageModel.load, spec.language_model))
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


# Small enough for the processor's caches to help, large enough for one read.
CHUNK_NUMBERS = 2**22
WHOLE = slice(None)


@dataclass(frozen=True)
class InputStatistics:
    """An autoencoder's input is `(row - mean) * scale`.

    Attributes:
        mean: What is subtracted from each row, `(width,)`, float64; zeros for no centring.
        scale: What the difference is multiplied by; 1 for no scaling.
    """

    mean: NDArray[np.float64]
    scale: float


def input_statistics(
    rows: Cache | MemoryRows, *, center: bool, unit_norm: bool, columns: slice = WHOLE
) -> InputStatistics:
    """Measure the shift and the scale on all rows.

    With both on, the rows are read once more: the norms of centred rows do not follow from
    sums that were taken before the mean was known. Nor do those of a part of the columns.

    Args:
        rows: The training rows.
        center: Whether to shift by the mean row.
        unit_norm: Whether to scale so that the mean Euclidean norm, after centring if that is
            on, is 1.
        columns: The part of each row that is meant, from `start` to before `stop`.

    Raises:
        InputError: If all rows are equal (zero without `center`) and `unit_norm` is on.
    """
    statistics = rows.statistics
    whole = rows.width == len(range(*columns.indices(rows.width)))
    mean = statistics.mean[columns]
    mean = mean if center else np.zeros_like(mean)
    if not unit_norm:
        return InputStatistics(mean, 1.0)
    known = whole and not center
    norm = statistics.mean_norm if known else _mean_distance(rows, mean, columns)
    if norm == 0:
        raise InputError(
            f"all {rows.rows} training rows are {'equal' if center else 'zero'}, so that nothing "
            "scales them to unit norm; choose another site, or set unit_norm to false"
        )
    return InputStatistics(mean, 1.0 / norm)


def _mean_distance(rows: Cache | MemoryRows, mean: NDArray[np.float64], columns: slice) -> float:
    """The mean Euclidean distance of a row from `mean`."""
    center = torch.from_numpy(mean).float()
    step = max(1, CHUNK_NUMBERS // rows.width)
    total = 0.0
    with progress("measuring the rows' norms", rows.rows, "rows") as bar:
        for start in range(0, rows.rows, step):
            chunk = rows.read_rows(start, min(start + step, rows.rows))
            # Single precision keeps seven digits of each distance, and half the time.
            distances = torch.linalg.vector_norm(chunk[:, columns].float() - center, dim=1)
            total += float(distances.sum(dtype=torch.float64))
            bar.update(len(chunk))
    return total / rows.rows
