"""What is harvested: everything that determines the rows of one split."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from palinka.activations.key import CacheKey, Layout
from palinka.corpora import Block, Corpus, Split, split_of, token_blocks
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec

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
