"""Writing a cache, shard by shard, so that it can be stopped at any moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.activations.cache import Cache
from palinka.activations.key import CacheKey


class ShardClaim:
    """The right to write one shard, held by this process alone; from `CacheWriter.claim`."""

    def write(
        self,
        activations: torch.Tensor,
        tokens: NDArray[np.int64],
        documents: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> None:
        """Shuffle the rows by token and write them as one shard, durably.

        Args:
            activations: Rows in the order of blocks and positions (leading `skip` positions of
                each block left out), in the layout's dtype, on any device,
                `(blocks * rows_per_block, width)`.
            tokens: Token ids, `(blocks, context_length)`.
            documents: Document number of each token, `(blocks, context_length)`.
            positions: Place of each token in its document, `(blocks, context_length)`.

        Raises:
            InputError: If shapes or dtype do not fit the layout, if a row holds NaN or
                infinities, or if the file cannot be written (no space left, read-only). Nothing
                half-written stays behind.
        """
        raise NotImplementedError


class CacheWriter:
    """Writes one cache; any number of processes may do so at the same time.

    ::

        writer = CacheWriter(root, key)
        for index in range(shards):            # several ranks: each its own share, or all of them
            with writer.claim(index) as shard:
                if shard is not None:          # None: done, or in the hands of another process
                    shard.write(activations, tokens, documents, positions)
        cache = writer.finish(shards)

    Args:
        root: Folder of all caches; the cache's own folder is `key.folder(root)`.
        key: What determines the rows.

    Raises:
        InputError: If the folder cannot be made or written to.
    """

    def __init__(self, root: Path, key: CacheKey) -> None:
        self.key = key
        self.folder = key.folder(root)

    @property
    def finished(self) -> bool:
        """Whether the manifest is there, and the cache therefore complete."""
        raise NotImplementedError

    def done(self, index: int) -> bool:
        """Whether shard `index` is complete."""
        raise NotImplementedError

    def missing(self, shards: int) -> list[int]:
        """Which of the first `shards` shards are not complete yet, in ascending order."""
        raise NotImplementedError

    @contextmanager
    def claim(self, index: int) -> Iterator[ShardClaim | None]:
        """Take a shard for this process, if it is neither done nor taken.

        A claim ends with the `with` block, or with the process, however it dies. What an
        unfinished claim wrote is removed.
        """
        raise NotImplementedError
        yield None

    def finish(self, shards: int) -> Cache:
        """Write the manifest over `shards` shards, which makes the folder a cache, and open it.

        Does nothing but open the cache where the manifest is there already.

        Raises:
            InputError: If shards are missing; the message names the first.
        """
        raise NotImplementedError
