"""The `LightningDataModule` of activations."""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn

from palinka.data import memory
from palinka.data.cache import Cache, default_cache_dir
from palinka.data.corpora import BundledSample, Corpus
from palinka.data.harvest import HarvestSpec, harvest
from palinka.data.loader import ActivationLoader
from palinka.data.memory import InputStatistics, MemoryRows
from palinka.data.packing import Context, Split
from palinka.errors import InputError, expanded
from palinka.language_models import LanguageModel, LanguageModelSpec

MAX_VERIFIED_BYTES = 4 * 1024**3  # hashed in seconds; `harvest` alone verifies larger caches
RUNS = 64  # of neighboring rows that `training_rows` takes


def plain_arguments(
    language_model: LanguageModelSpec, corpus: Corpus, cache_dir: Path
) -> dict[str, Any]:
    """Write the data module's arguments that are objects as a YAML file gives them."""
    kind = type(corpus)
    # By the convention of the corpora, an argument is kept under its own name.
    values = {name: getattr(corpus, name, None) for name in inspect.signature(kind).parameters}
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
    arguments = {name: v for name, v in plain.items() if isinstance(v, bool | int | float | str)}
    class_path = f"{kind.__module__}.{kind.__qualname__}"
    return {
        "language_model": asdict(language_model),
        "corpus": {"class_path": class_path, "init_args": arguments},
        "cache_dir": str(cache_dir),
        # Lets Lightning's `load_from_checkpoint` build the corpus from its class path.
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }


class ActivationDataModule(pl.LightningDataModule):
    """Activations of a language model at one site, or two, in shuffled batches.

    Missing shards are harvested before training, on one process per node. The cache's name
    follows from everything that determines its rows, so that nothing is harvested twice, and
    nothing stale is used. Training and validation rows come from different documents.

    Args:
        language_model: `mini`, `smollm2`, a hub name, a folder or a GGUF file; or its `name`
            with `revision`, `gguf_file`, `dtype` and `device`.
        site: Site in the model, e.g. `blocks.middle.mlp.pre`, `hidden.4` or a module's path.
        corpus: Source of the text; default the bundled sample.
        batch_size: Rows per batch on each device; null for all rows of a split at once.
        context_length: Tokens in a context.
        validation_fraction: Share of the documents for validation; 0 to validate on training rows.
        train_tokens: Maximum number of training rows; null for all.
        validation_tokens: Maximum number of validation rows; null for all.
        bos: Begin each context with the tokenizer's BOS token.
        skip_first: Drop the first token of each context, often an attention sink.
        dtype: Stored type on disk.
        cache_dir: The folder of all caches; default `$PALINKA_CACHE`, or `palinka/activations`
            in `$XDG_CACHE_HOME` or `~/.cache`.
        in_memory: Keep the activations of a small corpus in memory, unrounded, not in a cache,
            and read it anew for each run. Each document is then read by itself, without packing:
            a passage no longer than `context_length` in one forward pass.
        center: Subtract the mean training row from the input.
        unit_norm: Scale the input to a mean norm of 1.
        seed: Seed of the validation documents and the order of rows.
        harvest_batch_size: Contexts per forward pass; null for about 4,096 tokens.
        verify_shards: Compare the checksum of each shard on first use: the first batches then
            take as long as reading the cache once.
        target_site: Site that a transcoder predicts from `site`: rows then hold both, side by
            side, each with its own `center` and `unit_norm`.
    """

    def __init__(
        self, language_model: LanguageModelSpec | str = "mini", site: str = "blocks.middle.mlp.pre",
        corpus: Corpus | None = None, batch_size: int | None = 4096, context_length: int = 128,
        validation_fraction: float = 0.05, train_tokens: int | None = None,
        validation_tokens: int | None = None, bos: bool = False, skip_first: bool = False,
        dtype: Literal["float16", "bfloat16", "float32"] = "float16",
        cache_dir: str | Path | None = None, in_memory: bool = False, center: bool = False,
        unit_norm: bool = False, seed: int = 0, harvest_batch_size: int | None = None,
        verify_shards: bool = False, target_site: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1, or null for all")
        if validation_tokens is not None and validation_fraction == 0:
            raise InputError("validation_tokens is given, validation_fraction is 0; leave one out")
        if isinstance(language_model, str):
            language_model = LanguageModelSpec(language_model)
        self.batch_size = batch_size
        self.cache_dir = expanded(cache_dir) if cache_dir else default_cache_dir()
        self.in_memory = in_memory
        self.center = center
        self.unit_norm = unit_norm
        self.seed = seed
        self.verify_shards = verify_shards
        self.train_spec = train = HarvestSpec(
            language_model,
            site,
            BundledSample() if corpus is None else corpus,
            context_length=context_length,
            validation_fraction=validation_fraction,
            seed=seed,
            bos=bos,
            skip_first=skip_first,
            max_rows=train_tokens,
            dtype=dtype,
            batch_contexts=harvest_batch_size,
            target_site=target_site,
        )
        self.validation_spec = train
        if validation_fraction:
            self.validation_spec = replace(train, split="validation", max_rows=validation_tokens)
        self._rows: dict[Split, Cache | MemoryRows] = {}
        self._loaders: list[ActivationLoader] = []
        # Not for the logger: the module's hyperparameters go there, and names must not clash.
        self.save_hyperparameters(ignore=["language_model", "corpus", "cache_dir"], logger=False)
        arguments = plain_arguments(language_model, self.train_spec.corpus, self.cache_dir)
        self.save_hyperparameters(arguments, logger=False)

    def __repr__(self) -> str:
        spec = self.train_spec
        where = f"{spec.language_model.name} at {spec.site}, {type(spec.corpus).__name__}"
        opened = "".join(f", {rows!r}" for rows in self._rows.values())
        return f"ActivationDataModule({where}, batch_size={self.batch_size}{opened})"

    __str__ = __repr__

    @property
    def width(self) -> int:
        """Width of the site."""
        return self.train_spec.widths[0]

    @property
    def target_width(self) -> int | None:
        """Width of the target site; None if there is none."""
        return sum(self.train_spec.widths[1:]) or None

    @property
    def cache_identity(self) -> str:
        """Identity of the training rows in a checkpoint, known before they are harvested."""
        spec = self.train_spec
        return memory.identity_of(spec) if self.in_memory else spec.key.digest

    @property
    def source(self) -> dict[str, str | bool]:
        """Language model, sites and BOS token of the rows, as a checkpoint remembers them."""
        sites = self.train_spec.resolved_sites
        return {
            "language_model": self.train_spec.language_model.identity(),
            **dict(zip(["site", "target_site"], sites, strict=False)),
            "bos": self.train_spec.bos,
        }

    @cached_property
    def input_statistics(self) -> InputStatistics:
        """Mean and scale of `center` and `unit_norm`, from the training rows."""
        return self._statistics(slice(self.width))

    @cached_property
    def target_statistics(self) -> InputStatistics | None:
        """Mean and scale of the target site; None if there is none."""
        return self._statistics(slice(self.width, None)) if self.target_width else None

    @cached_property
    def loaded_language_model(self) -> LanguageModel:
        """The language model, loaded on first use and freed at the end of the run."""
        return LanguageModel.load(self.train_spec.language_model)

    @property
    def validation_rows(self) -> Cache | MemoryRows:
        """Validation rows, with their statistics and the text around them."""
        return self._open(self.validation_spec)

    def validation_contexts(self) -> Iterator[Context]:
        """Go through the contexts of the validation rows, in the order of the text.

        The first `validation_spec.layout.skip` tokens of each have no row.
        """
        rows = self.validation_rows
        return rows.contexts() if isinstance(rows, Cache) else memory.contexts(self.validation_spec)

    def training_rows(self, count: int) -> torch.Tensor:
        """Sample at most `count` training rows, `(rows, width)`, the same on every process.

        They are as stored, before `center` and `unit_norm`, in short runs from all over the split.
        """
        rows = self._open(self.train_spec)
        count = min(count, rows.rows)
        run = -(-count // RUNS)
        starts = np.linspace(0, rows.rows - run, count // run, dtype=np.int64)
        return torch.cat([rows.read_rows(start, start + run) for start in starts.tolist()])

    def harvest(
        self, rank: int = 0, world_size: int = 1, barrier: Callable[[], object] = lambda: None,
        specs: Sequence[HarvestSpec] | None = None, max_verified: float = math.inf,
    ) -> dict[Cache, float]:  # fmt: skip
        """Harvest the missing shards of both splits, or of `specs`, and verify existing caches.

        Caches of more than `max_verified` bytes are not verified. The other arguments are those of
        `palinka.data.harvest`. Returns the seconds that each cache took; 0 for existing ones.
        """
        if self.in_memory:
            raise InputError("in_memory is true, so nothing is harvested; set it to false")
        load = cache(partial(LanguageModel.load, self.train_spec.language_model))  # once for both
        specs = specs or [self.train_spec, self.validation_spec]
        existed = {spec: Cache.exists(spec.key.folder(self.cache_dir)) for spec in specs}
        for spec, known in existed.items():
            if not known:
                next(spec.contexts())  # rejects an empty split before the other is harvested
        work = partial(harvest, rank=rank, world_size=world_size, barrier=barrier, load=load)
        seconds = {}
        for spec, known in existed.items():
            begun = time.perf_counter()
            harvested = work(spec, self.cache_dir)
            seconds[harvested] = 0.0 if known else time.perf_counter() - begun
            if known and rank == 0 and harvested.bytes <= max_verified:
                harvested.verify()
        return seconds

    def verify(self) -> list[Cache]:
        """Compare every checksum of the caches of both splits, which are returned."""
        if self.in_memory:
            raise InputError("in_memory is true, so nothing can be verified; set it to false")
        caches, problems = [], []
        for spec in dict.fromkeys((self.train_spec, self.validation_spec)):
            try:
                found = Cache.open(spec.key.folder(self.cache_dir), spec.key)
                found.verify()
                caches.append(found)
            except InputError as error:
                problems.append(f"{spec.split} split: {error}")
        if problems:
            raise InputError(" · ".join(problems))
        return caches

    def prepare_data(self) -> None:
        """Harvest the missing shards of the run's splits, on the first process of each node."""
        if self.in_memory:
            self.setup("")  # so that faults show before there are logs
        else:
            self.harvest(specs=self._needed(), max_verified=MAX_VERIFIED_BYTES)

    def setup(self, stage: str) -> None:
        """Open the caches, or read the corpus into memory."""
        for spec in self._needed():
            self._open(spec)

    def train_dataloader(self) -> ActivationLoader:
        """Load training rows, `(batch_size, width)`, without an incomplete batch.

        They are shuffled, unless the batch is a single one, or for `trainer.overfit_batches`.
        """
        return self._loader(self.train_spec, training=True)

    def val_dataloader(self) -> ActivationLoader:
        """Load all validation rows in order, `(batch_size, width)` and a shorter last batch."""
        return self._loader(self.validation_spec, training=False)

    test_dataloader = predict_dataloader = val_dataloader

    def teardown(self, stage: str) -> None:
        """Stop loader threads and free the model."""
        while self._loaders:
            self._loaders.pop().close()
        self.__dict__.pop("loaded_language_model", None)

    def _needed(self) -> list[HarvestSpec]:
        """Splits that the run reads: the evaluation of a checkpoint takes no training rows."""
        if self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:
            return [self.train_spec, self.validation_spec]
        return [self.validation_spec]

    def _statistics(self, columns: slice) -> InputStatistics:
        rows = self._open(self.train_spec)
        return memory.input_statistics(rows, columns, center=self.center, unit_norm=self.unit_norm)

    def _open(self, spec: HarvestSpec) -> Cache | MemoryRows:
        if spec.split not in self._rows:
            if self.in_memory:
                self._rows[spec.split] = memory.read(spec)
            else:
                folder, verify = spec.key.folder(self.cache_dir), self.verify_shards
                self._rows[spec.split] = Cache.open(folder, spec.key, verify_shards=verify)
        return self._rows[spec.split]

    def _loader(self, spec: HarvestSpec, *, training: bool) -> ActivationLoader:
        rows = self._open(spec)
        trainer: Any = self.trainer
        # Devices that shard one autoencoder's latents share a rank.
        share = trainer.distributed_sampler_kwargs if trainer else None
        ranks = share["num_replicas"] if share else 1
        all_rows = max(1, rows.rows // ranks) if training else -(-rows.rows // ranks)
        overfit = trainer is not None and trainer.overfit_batches > 0
        loader = ActivationLoader(
            rows,
            self.batch_size or all_rows,
            seed=self.seed,
            shuffle=training and self.batch_size is not None and not overfit,
            drop_last=training,
            rank=share["rank"] if share else 0,
            world_size=ranks,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
        )
        self._loaders.append(loader)
        return loader
