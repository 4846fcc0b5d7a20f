"""Harvest activations into a cache."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from palinka.data import packing
from palinka.data.cache import Cache
from palinka.data.corpora import Corpus
from palinka.data.format import CacheKey, Layout
from palinka.data.inventory import remove_cache
from palinka.data.writer import CacheWriter, tidy
from palinka.errors import InputError, progress
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.language_models.cpu import disable_malloc_trim, matmul_precision, select_matmul_backend
from palinka.language_models.spec import find_device
from palinka.language_models.token_text import bos_id

# Rows of a window, if its bytes allow: then a batch of 4,096 rows meets few rows of one context.
# The bounds depend on nothing of this machine, for the window decides which rows are shuffled
# with which, and with that the bytes on disk.
WINDOW_ROWS = 262_144
WINDOW_BYTES = 2 * 1024**3
BATCH_TOKENS = 4_096  # of a forward pass: keeps the processor busy, with small intermediates
SECONDS_BETWEEN_CHECKS = 1.0
MIN_TRIAL_WIDTH = 640  # narrower sites are of small models, where a trial does not pay


@dataclass(frozen=True)
class HarvestSpec:
    """The activations of one split of a corpus at one site of a language model.

    Attributes are those of `ActivationDataModule`, where `max_rows` are the tokens of the split and
    `batch_contexts`, which is not in the key, the `harvest_batch_size`.
    """

    language_model: LanguageModelSpec
    site: str
    corpus: Corpus
    split: packing.Split = "train"
    context_length: int = 128
    validation_fraction: float = 0.05
    seed: int = 0
    bos: bool = False
    skip_first: bool = False
    max_rows: int | None = None
    dtype: str = "float16"
    batch_contexts: int | None = None
    target_site: str | None = None

    def __post_init__(self) -> None:
        batch = self.batch_contexts
        if batch is not None and batch < 1:
            raise InputError(f"harvest_batch_size is {batch}; expected at least 1, or null")
        if self.context_length == 1 and self.bos:
            raise InputError("context_length is 1; expected at least 2, one beside the BOS token")
        packing.split_of(0, self.validation_fraction, self.seed)  # rejects a fraction out of range
        if len(set(self.resolved_sites)) < len(self.resolved_sites):
            raise InputError(f"target_site {self.target_site!r} is the site itself; give another")
        rows = self.layout.rows_per_context
        if self.max_rows is not None and self.max_rows < rows:
            raise InputError(f"{self.max_rows} rows are less than one context; give {rows} or more")

    @cached_property
    def resolved_sites(self) -> tuple[str, ...]:
        """Full names of the sites that a row is made of, from left to right."""
        sites = [self.site] if self.target_site is None else [self.site, self.target_site]
        return tuple(self.language_model.sites.resolve(site) for site in sites)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Width of each of these sites."""
        return tuple(self.language_model.sites.width(site) for site in self.resolved_sites)

    @cached_property
    def layout(self) -> Layout:
        """Row layout of the shards."""
        rows = max(1, self.context_length - self.skip_first)
        whole = Layout(
            width=sum(self.widths),
            dtype=self.dtype,
            context_length=self.context_length,
            contexts_per_shard=max(1, WINDOW_ROWS // rows),
            skip=int(self.skip_first),
            seed=self.seed,
        )
        affordable = max(1, WINDOW_BYTES // (whole.row_bytes * rows))
        return replace(whole, contexts_per_shard=min(whole.contexts_per_shard, affordable))

    @cached_property
    def key(self) -> CacheKey:
        """Address of the rows, independent of paths, device and batch size."""
        settings = {
            "language_model": self.language_model.fingerprint(),
            **dict(zip(["site", "target_site"], self.resolved_sites, strict=False)),
            "corpus": self.corpus.fingerprint(),
            "split": self.split,
            "validation_fraction": self.validation_fraction,
            "split_seed": self.seed,
            "bos": self.bos,
            "max_rows": self.max_rows,
        }
        return CacheKey(self.layout, settings)

    @property
    def max_contexts(self) -> int | None:
        """Maximum number of contexts; None for all."""
        return None if self.max_rows is None else self.max_rows // self.layout.rows_per_context

    def tokens(self, read: int, last: packing.Context) -> int | None:
        """Estimate the tokens of the split when some are read; None if nothing is known."""
        contexts, documents = self.max_contexts, self._documents
        found = [] if contexts is None else [contexts * self.context_length]
        found += [read * documents // (int(last.documents[-1]) + 1)] if documents else []
        return min(found, default=None)

    @cached_property
    def _documents(self) -> int | None:
        return self.corpus.document_count()

    @property
    def contexts_per_batch(self) -> int:
        """Contexts per forward pass."""
        return self.batch_contexts or max(1, BATCH_TOKENS // self.context_length)

    def contexts(self) -> Iterator[packing.Context]:
        """Tokenize and pack the contexts that the rows come from, always the same ones."""
        tokenizer = self.language_model.tokenizer()
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no eos_token to set between documents; set one")
        bos = bos_id(tokenizer) if self.bos else None
        documents = packing.documents_of_split(
            self.corpus, self.split, self.validation_fraction, self.seed
        )
        tokens = packing.tokenize_documents(documents, tokenizer)
        contexts = packing.pack(tokens, self.context_length, tokenizer.eos_token_id, bos)
        return islice(contexts, self.max_contexts)


def harvest(
    spec: HarvestSpec, root: Path, *, rank: int = 0, world_size: int = 1,
    barrier: Callable[[], object] = lambda: None, load: Callable[[], LanguageModel] | None = None,
) -> Cache:  # fmt: skip
    """Open the cache of `spec`, after harvesting its missing shards.

    The bytes on disk are the same after any interruption and for any number of ranks: each shard
    begins with a forward pass of its own. A finished cache is opened without loading the model.

    Args:
        spec: What to harvest.
        root: The folder of all caches, which all ranks share.
        rank: This process among `world_size`; it writes every `world_size`-th shard.
        world_size: Number of processes that share the work.
        barrier: Waits until every rank has called it.
        load: Loads the model when it is first needed; defaults to `LanguageModel.load`.
    """
    folder = spec.key.folder(root)
    shards = 0
    if not Cache.exists(folder):
        writer = CacheWriter(root, spec.key)
        disable_malloc_trim()
        load = load or partial(LanguageModel.load, spec.language_model)
        model = cache(partial(load_model, spec, load))
        try:
            with _products(spec):
                shards = _fill(spec, writer, model, rank, world_size)
                while _wait_for_other_runs(writer, range(rank, shards, world_size)):
                    _fill(spec, writer, model, rank, world_size)
        except BaseException:
            if folder.is_dir() and not any(folder.glob("shard-*")):  # nor claimed by another run
                with suppress(InputError):
                    remove_cache(folder)
            raise
    barrier()
    # Another run may have finished the cache meanwhile; every rank passes both barriers anyway.
    if rank == 0 and Cache.exists(folder):
        tidy(folder)  # a run that is killed right after the manifest leaves records behind
    elif rank == 0:
        CacheWriter(root, spec.key).finish(shards)
    barrier()
    return Cache.open(folder, spec.key)


def _fill(
    spec: HarvestSpec, writer: CacheWriter, model: Callable[[], LanguageModel], rank: int,
    world_size: int,
) -> int:  # fmt: skip
    """Write this rank's missing shards; returns the number of shards of the split."""
    layout = spec.layout
    contexts = spec.contexts()
    shards = passed = 0
    # For all shards, since pages that are touched first are slow.
    size = layout.contexts_per_shard * layout.rows_per_context
    buffer = torch.empty(size, layout.width, dtype=layout.torch_dtype)
    # The tokens that all ranks together have passed, as the first rank sees it.
    shown = progress(f"harvesting {spec.split} activations", None, "tokens")
    with nullcontext(tqdm(disable=True)) if rank else shown as bar:
        while window := list(islice(contexts, layout.contexts_per_shard)):
            bar.total = spec.tokens(passed + len(window) * spec.context_length, window[-1])
            claim = writer.claim(shards) if shards % world_size == rank else nullcontext()
            with claim as mine:
                if mine:
                    filled = 0
                    for start in range(0, len(window), spec.contexts_per_batch):
                        batch = window[start : start + spec.contexts_per_batch]
                        tokens = np.stack([context.tokens for context in batch])
                        rows = read_rows(spec, model(), tokens, layout.torch_dtype)
                        buffer[filled : filled + len(rows)].copy_(rows)
                        filled += len(rows)
                        bar.update(tokens.size)
                    writer.write(shards, buffer[:filled], window)
            shards += 1
            passed += len(window) * spec.context_length
            bar.update(passed - bar.n)  # of shards that this rank does not write
        bar.total = passed
    return shards


def _wait_for_other_runs(writer: CacheWriter, shards: Iterable[int]) -> bool:
    """Wait while other runs write some shards; True if one of them is left undone."""
    while missing := [index for index in shards if not writer.done(index)]:
        for index in missing:
            with writer.claim(index) as mine:
                if mine:
                    return True
        time.sleep(SECONDS_BETWEEN_CHECKS)
    return False


def _products(spec: HarvestSpec) -> AbstractContextManager[None]:
    model = spec.language_model
    exact = model.dtype == "float32" and torch.get_float32_matmul_precision() == "highest"
    device = find_device(model.device)  # rejects an unknown one before the cache's folder is made
    if not exact or spec.layout.width < MIN_TRIAL_WIDTH or device.type != "cpu":
        return nullcontext()
    precision, reason = select_matmul_backend()
    logging.getLogger(__name__).debug(reason)
    return matmul_precision(precision)


def load_model(spec: HarvestSpec, load: Callable[[], LanguageModel]) -> LanguageModel:
    """Load the model, and check that the contexts fit into it."""
    model = load()
    if (given := spec.context_length) > (most := model.context_length):
        raise InputError(f"context_length is {given}; {model.spec.name} reads at most {most}")
    return model


def read_rows(
    spec: HarvestSpec, model: LanguageModel, tokens: NDArray[np.int64], dtype: torch.dtype | None
) -> torch.Tensor:
    """Compute the rows of contexts, `(contexts, tokens)`, which `dtype` must be able to hold.

    They are in the model's dtype, on its device, `(contexts * (tokens - skip), width)`.
    """
    try:
        read = model.read_contexts(torch.from_numpy(tokens), spec.resolved_sites)
        sites = [read[site] for site in spec.resolved_sites]
        activations = sites[0] if len(sites) == 1 else torch.cat(sites, dim=-1)
    except torch.OutOfMemoryError as error:
        fault = f"out of memory while reading {len(tokens)} contexts at once"
        raise InputError(f"{fault}; give a smaller harvest_batch_size") from error
    rows = activations[:, spec.layout.skip :].flatten(0, 1)
    low, high = (float(extreme) for extreme in torch.aminmax(rows))
    limit = torch.finfo(dtype or rows.dtype).max
    if -limit <= low and high <= limit:
        return rows
    fault = f"are NaN or infinite; check the weights of {model.spec.name}, or use another dtype"
    if np.isfinite([low, high]).all():
        largest = f"{max(-low, high):.4g}, more than {spec.dtype} can hold ({limit:.4g})"
        fault = f"go up to {largest}; store bfloat16 or float32"
    raise InputError(f"activations at {' or '.join(spec.resolved_sites)} {fault}")
