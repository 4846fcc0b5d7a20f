"""Harvest activations into a cache."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.data.cache import Cache
from palinka.data.corpora import Corpus
from palinka.data.format import CacheKey, Layout
from palinka.data.packing import Block, Split, split_of, token_blocks
from palinka.data.writer import CacheWriter, tidy
from palinka.errors import InputError, progress
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.language_models.cpu import choose_products, keep_freed_memory, products_at
from palinka.language_models.spec import find_device

# A window holds this many rows where its bytes allow: then a batch of 4,096 rows meets few
# rows of one context. The bounds depend on nothing of this machine, for the window decides
# which rows are shuffled with which, and with that the bytes on disk.
WINDOW_ROWS = 262_144
WINDOW_BYTES = 2 * 1024**3
# A forward pass of so many tokens keeps the processor busy and its intermediates small.
BATCH_TOKENS = 4_096


@dataclass(frozen=True)
class HarvestSpec:
    """The activations of one split of a corpus at one site of a language model.

    Attributes:
        language_model: The model; its weights are not loaded here.
        site: Where in the model, e.g. `blocks.middle.mlp.pre`.
        corpus: Where the text comes from.
        split: `"train"` or `"validation"`.
        context_length: Tokens in a block, which is one context of the model.
        validation_fraction: Share of the documents for validation; 0 for none.
        seed: Draws the documents for validation, and the order within the shards.
        bos: Whether each block starts with a BOS token.
        skip_first: Whether the first token of each block becomes no row.
        max_rows: At most so many rows; all of the split where it is None.
        dtype: How a number is stored: `float16`, `bfloat16` or `float32`.
        batch_blocks: Blocks per forward pass; as many as make about 4,096 tokens where it is
            None. It changes no more than the last bits of a row, and is not part of the key.
        target_site: A second site, whose activations of the same tokens stand to the right of
            the first's in each row; None for rows of one site.

    Raises:
        InputError: If a value is out of range, the model has no such site, or both are one.
    """

    language_model: LanguageModelSpec
    site: str
    corpus: Corpus
    split: Split = "train"
    context_length: int = 128
    validation_fraction: float = 0.05
    seed: int = 0
    bos: bool = False
    skip_first: bool = False
    max_rows: int | None = None
    dtype: str = "float16"
    batch_blocks: int | None = None
    target_site: str | None = None

    def __post_init__(self) -> None:
        if self.batch_blocks is not None and self.batch_blocks < 1:
            raise InputError(
                f"harvest_batch_size is {self.batch_blocks}; expected at least 1 block per "
                "forward pass, or null for about 4,096 tokens"
            )
        split_of(0, self.validation_fraction, self.seed)  # raises where there is no such fraction
        if len(set(self.resolved_sites)) < len(self.resolved_sites):
            raise InputError(
                f"target_site {self.target_site!r} is the site itself; leave it out for an "
                "autoencoder, or give the site that a transcoder writes to"
            )
        rows = self.layout.rows_per_block
        if self.max_rows is not None and self.max_rows < rows:
            raise InputError(
                f"{self.max_rows} rows are asked of the {self.split} split, and one context gives "
                f"{rows}; ask for at least {rows}, or choose a shorter context_length"
            )

    @cached_property
    def resolved_site(self) -> str:
        """The site's full name."""
        return self.language_model.resolve(self.site)

    @cached_property
    def resolved_sites(self) -> tuple[str, ...]:
        """The full names of the sites that a row is made of, from left to right."""
        sites = [self.site] if self.target_site is None else [self.site, self.target_site]
        return tuple(self.language_model.resolve(site) for site in sites)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """How many numbers of a row are of each of these sites."""
        return tuple(self.language_model.width(site) for site in self.resolved_sites)

    @cached_property
    def layout(self) -> Layout:
        """How the rows lie in the shards."""
        rows_per_block = max(1, self.context_length - self.skip_first)
        whole = Layout(
            width=sum(self.widths),
            dtype=self.dtype,
            context_length=self.context_length,
            blocks_per_shard=max(1, WINDOW_ROWS // rows_per_block),
            skip=int(self.skip_first),
            seed=self.seed,
        )
        affordable = max(1, WINDOW_BYTES // (whole.row_bytes * rows_per_block))
        return replace(whole, blocks_per_shard=min(whole.blocks_per_shard, affordable))

    @cached_property
    def key(self) -> CacheKey:
        """The address of the rows: no path, device or batch size is part of it."""
        return CacheKey(
            self.layout,
            {
                "language_model": self.language_model.fingerprint(),
                "site": self.resolved_site,
                **dict(zip(["target_site"], self.resolved_sites[1:], strict=False)),
                "corpus": self.corpus.fingerprint(),
                "split": self.split,
                "validation_fraction": self.validation_fraction,
                "split_seed": self.seed,
                "bos": self.bos,
                "max_rows": self.max_rows,
            },
        )

    @property
    def max_blocks(self) -> int | None:
        """At most so many blocks; None for all that the split has."""
        return None if self.max_rows is None else self.max_rows // self.layout.rows_per_block

    @property
    def blocks_per_batch(self) -> int:
        """Blocks per forward pass."""
        return self.batch_blocks or max(1, BATCH_TOKENS // self.context_length)

    def blocks(self) -> Iterator[Block]:
        """The token blocks that the rows come from, always the same ones.

        Raises:
            InputError: If the corpus cannot be read or does not fill a block of the split.
        """
        blocks = token_blocks(
            self.corpus,
            self.language_model.tokenizer(),
            context_length=self.context_length,
            split=self.split,
            validation_fraction=self.validation_fraction,
            seed=self.seed,
            bos=self.bos,
        )
        return islice(blocks, self.max_blocks)


SECONDS_BETWEEN_LOOKS = 1.0
# Narrower sites are those of small models, which are read quickly whatever multiplies.
WORTH_A_TRIAL = 640


def harvest(
    spec: HarvestSpec,
    root: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], object] = lambda: None,
    load: Callable[[], LanguageModel] | None = None,
) -> Cache:
    """Open the cache of `spec`, after harvesting what it lacks.

    An interrupted harvest goes on at the first missing shard. The bytes on disk are the same
    after any interruption and for any number of ranks: each shard begins with a forward pass
    of its own. A finished cache is opened without loading the model.

    Args:
        spec: What to harvest.
        root: The folder of all caches, which all ranks see.
        rank: This process among `world_size`; it writes every `world_size`-th shard.
        world_size: How many processes share the work.
        barrier: Waits until every rank has called it.
        load: Loads the model when it is first needed; defaults to `LanguageModel.load`.

    Raises:
        InputError: If the corpus or the model cannot be read, activations are not finite or do
            not fit into the stored dtype, or the folder cannot be written to.
    """
    folder = spec.key.folder(root)
    shards = 0
    with ExitStack() as at_work:
        if not Cache.exists(folder):
            writer = CacheWriter(root, spec.key)
            at_work.callback(writer.close)
            keep_freed_memory()
            at_work.enter_context(_products(spec))
            load = load or partial(LanguageModel.load, spec.language_model)
            harvester = _Harvester(spec, writer, rank, world_size, load)
            try:
                shards = harvester.fill()
                while harvester.left_by_others(shards):
                    harvester.fill()
            except BaseException:
                writer.abandon()
                raise
        barrier()
        # Another run may have finished the same cache between two ranks' looks at it: every
        # rank comes by both barriers either way.
        if rank == 0 and Cache.exists(folder):
            tidy(folder)  # whoever finished it may have been killed just then
        elif rank == 0:
            CacheWriter(root, spec.key).finish(shards)
        barrier()
    return Cache.open(folder, spec.key)


class _Harvester:
    """One rank's share of one harvest."""

    def __init__(
        self,
        spec: HarvestSpec,
        writer: CacheWriter,
        rank: int,
        world_size: int,
        load: Callable[[], LanguageModel],
    ) -> None:
        self.spec = spec
        self.writer = writer
        self.rank = rank
        self.world_size = world_size
        self.load = load
        self.model: LanguageModel | None = None
        self.buffer: torch.Tensor | None = None

    def fill(self) -> int:
        """Go through the whole split and write this rank's missing shards.

        Returns:
            How many shards the split has: known for certain only at the end of a corpus.
        """
        blocks = self.spec.blocks()
        shards = 0
        with self._bar() as bar:
            while window := list(islice(blocks, self.spec.layout.blocks_per_shard)):
                self._shard(shards, window, bar)
                shards += 1
        return shards

    def left_by_others(self, shards: int) -> bool:
        """Wait while another run writes shards of this rank; whether it left one undone."""
        while missing := [index for index in self.writer.missing(shards) if self._mine(index)]:
            for index in missing:
                with self.writer.claim(index) as claim:
                    if claim is not None:
                        return True
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return False

    def _mine(self, shard: int) -> bool:
        return shard % self.world_size == self.rank

    def _bar(self) -> AbstractContextManager[Any]:
        """Tokens that all ranks together have passed, as the first rank sees it."""
        if self.rank != 0:
            return nullcontext()
        blocks = self.spec.max_blocks
        total = None if blocks is None else blocks * self.spec.context_length
        return progress(f"harvesting {self.spec.split} activations", total, "tokens")

    def _shard(self, index: int, window: Sequence[Block], bar: Any) -> None:
        written = False
        if self._mine(index):
            with self.writer.claim(index) as claim:
                if claim is not None:
                    claim.write(
                        self._activations(window, bar),
                        np.stack([block.tokens for block in window]),
                        np.stack([block.documents for block in window]),
                        np.stack([block.positions for block in window]),
                    )
                    written = True
        if bar is not None and not written:
            bar.update(len(window) * self.spec.context_length)

    def _activations(self, window: Sequence[Block], bar: Any) -> torch.Tensor:
        """The rows of one shard in the order of blocks and positions, in the stored dtype."""
        layout = self.spec.layout
        if self.model is None:
            self.model = load_model(self.spec, self.load)
        if self.buffer is None:
            # One for all shards, since pages that are touched first are slow to come by.
            self.buffer = torch.empty(
                layout.blocks_per_shard * layout.rows_per_block,
                layout.width,
                dtype=layout.torch_dtype,
            )
        filled = 0
        for start in range(0, len(window), self.spec.blocks_per_batch):
            batch = window[start : start + self.spec.blocks_per_batch]
            rows = read_rows(self.spec, self.model, np.stack([block.tokens for block in batch]))
            check_finite(self.spec, rows, layout.torch_dtype)
            self.buffer[filled : filled + len(rows)].copy_(rows)
            filled += len(rows)
            if bar is not None:
                bar.update(len(batch) * self.spec.context_length)
        return self.buffer[:filled]


def _products(spec: HarvestSpec) -> AbstractContextManager[None]:
    """Multiply by the better of two libraries, if the model is on the CPU and torch as it was."""
    model = spec.language_model
    exact = model.dtype == "float32" and torch.get_float32_matmul_precision() == "highest"
    if not exact or spec.layout.width < WORTH_A_TRIAL or find_device(model.device).type != "cpu":
        return nullcontext()
    from lightning.pytorch.utilities import rank_zero_info  # which listing caches does without

    precision, reason = choose_products()
    rank_zero_info(reason)
    return products_at(precision)


def load_model(spec: HarvestSpec, load: Callable[[], LanguageModel]) -> LanguageModel:
    """Load the model, and make sure that the contexts fit into it.

    Raises:
        InputError: If they do not, or the model cannot be loaded.
    """
    model = load()
    if spec.context_length > model.context_length:
        raise InputError(
            f"context_length is {spec.context_length}, and {model.name} reads at most "
            f"{model.context_length} tokens at a time; give at most that"
        )
    return model


def read_rows(spec: HarvestSpec, model: LanguageModel, tokens: NDArray[np.int64]) -> torch.Tensor:
    """The rows of some blocks, `(blocks · (tokens - skip), width)`, as the model computes them.

    Args:
        spec: What is harvested.
        model: The language model.
        tokens: Token ids, `(blocks, tokens)`.

    Raises:
        InputError: If the device's memory does not hold the forward pass.
    """
    try:
        read = model.read_contexts(torch.from_numpy(tokens), spec.resolved_sites)
        sites = [read[site] for site in spec.resolved_sites]
        activations = sites[0] if len(sites) == 1 else torch.cat(sites, dim=-1)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"out of memory while reading {len(tokens)} blocks of {tokens.shape[1]} tokens at "
            f"once; give a smaller harvest_batch_size than {len(tokens)}"
        ) from error
    return activations[:, spec.layout.skip :].flatten(0, 1)


def check_finite(spec: HarvestSpec, rows: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse rows that hold NaN or infinities, or would once they are stored as `dtype`.

    Args:
        spec: What is harvested.
        rows: The rows, `(rows, width)`.
        dtype: How they are to be stored.

    Raises:
        InputError: If there are such rows; the message names the site.
    """
    sites = " or ".join(spec.resolved_sites)
    low, high = (float(extreme) for extreme in torch.aminmax(rows))
    limit = torch.finfo(dtype).max
    if -limit <= low and high <= limit:
        return
    if np.isfinite([low, high]).all():
        raise InputError(
            f"activations at {sites} go up to {max(-low, high):.4g}, more than "
            f"{spec.dtype} can hold ({limit:.4g}); set dtype to bfloat16 or float32"
        )
    raise InputError(
        f"activations at {sites} are NaN or infinite; check the weights of "
        f"{spec.language_model.name}, or compute in another dtype than "
        f"{spec.language_model.dtype}"
    )
