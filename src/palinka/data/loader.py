"""Shuffled batches of activations."""

import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from palinka.data.cache import Cache
from palinka.data.format import permutation
from palinka.data.memory import MemoryRows
from palinka.errors import InputError


class BatchBuffers:
    """At most `keep` batch buffers, reusable once the last reference to their memory is gone.

    Fresh memory costs page faults, which take longer than reading into it. Pinned memory is
    left to torch's own allocator, which also tracks copies that are still under way.
    """

    def __init__(self, width: int, dtype: torch.dtype, keep: int, pin_memory: bool) -> None:
        self._width, self._dtype = width, dtype
        self._keep, self._pin_memory = keep, pin_memory
        self._kept: list[tuple[NDArray[np.uint8], weakref.ref[NDArray[np.uint8]]]] = []

    def take(self, rows: int) -> torch.Tensor:
        """Return an uninitialized tensor, `(rows, width)`."""
        if self._pin_memory or not rows:
            return torch.empty(rows, self._width, dtype=self._dtype, pin_memory=self._pin_memory)
        size = rows * self._width * self._dtype.itemsize
        free = [i for i, (m, of) in enumerate(self._kept) if of() is None and len(m) >= size]
        memory = self._kept.pop(free[0])[0] if free else np.empty(size, np.uint8)
        # Every tensor on this memory keeps the lease alive, views of views included.
        lease = memory[:size]
        if len(self._kept) < self._keep:
            self._kept.append((memory, weakref.ref(lease)))
        return torch.from_numpy(lease).view(self._dtype).view(rows, self._width)


class RowOrder:
    """Order of all rows, shuffled by seeds in runs of `run_rows`; as they are without seeds."""

    def __init__(self, rows: int, run_rows: int, *seeds: int) -> None:
        run_rows = run_rows if seeds else max(1, rows)
        self._first = permutation(-(-rows // run_rows), *seeds) * run_rows
        self._last = np.minimum(self._first + run_rows, rows)
        self._ends = np.cumsum(self._last - self._first)

    def slice(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return places `start` to before `stop` of the stream, as runs of rows, `(runs, 2)`."""
        if start >= stop:
            return np.empty((0, 2), np.int64)
        left, right = np.searchsorted(self._ends, [start + 1, stop])
        runs = np.stack((self._first[left : right + 1], self._last[left : right + 1]), axis=1)
        runs[0, 0] = runs[0, 1] - (self._ends[left] - start)
        runs[-1, 1] -= self._ends[right] - stop
        return runs


T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Reads at most `ahead` items of a generator ahead, in a thread, until `close`.

    An exception in the thread is raised where the item would have come.
    """

    def __init__(self, items: Generator[T, None, None], ahead: int) -> None:
        self.wait_seconds = 0.0  # of the consumer, for the latest item
        self._items = items
        self._pool = ThreadPoolExecutor(1, "read-ahead")
        self._ready = deque(self._pool.submit(next, items) for _ in range(ahead))

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._ready:
            raise StopIteration
        started = time.perf_counter()
        item = self._ready.popleft().result()
        self.wait_seconds = time.perf_counter() - started
        self._ready.append(self._pool.submit(next, self._items))
        return item

    def close(self) -> None:
        """End the thread, and with it the iteration."""
        if sys.is_finalizing():  # the thread has ended
            return
        self._ready.clear()
        # Garbage may be collected in its own reading thread, which cannot wait for itself.
        wait = not threading.current_thread().name.startswith("read-ahead")
        self._pool.shutdown(wait, cancel_futures=True)
        if wait:
            self._items.close()


_READ_AHEAD = 2  # batches
# Besides these: the one in use, the one before, still named while the next is read, and a spare.
_BUFFERS = _READ_AHEAD + 3


class ActivationLoader:
    """Iterates over batches of rows, each epoch in a new seeded order.

    Rank `r` of `world_size` gets the `r`-th part of each global batch, `batch_size * world_size`
    rows. Each iteration is the next epoch, unless `set_epoch` chooses another. A batch's memory is
    used again once nothing refers to it.

    Args:
        source: A `Cache` or `MemoryRows`.
        batch_size: Rows per batch and rank.
        seed: Seeds the order; the same on all ranks.
        shuffle: Whether to shuffle; otherwise the order on disk.
        drop_last: Whether to drop the rows that do not fill the last global batch; otherwise
            they are divided evenly over the ranks, some of which may get none.
        rank: This process among `world_size`.
        pin_memory: Whether batches lie in pinned memory, for copies to a CUDA device.

    Attributes:
        wait_seconds: Time that the consumer has waited for batches so far.
    """

    def __init__(
        self, source: Cache | MemoryRows, batch_size: int, *, seed: int = 0, shuffle: bool = True,
        drop_last: bool = True, rank: int = 0, world_size: int = 1, pin_memory: bool = False,
    ) -> None:  # fmt: skip
        self.source = source
        self.batch_size = batch_size
        self.wait_seconds = 0.0
        self._global_batch = batch_size * world_size
        self._seed, self._shuffle, self._drop_last = seed, shuffle, drop_last
        self._rank, self._world_size, self._pin_memory = rank, world_size, pin_memory
        # Epoch and samples seen, and the same where the next iteration starts; None: an epoch on.
        self._place = (0, 0)
        self._next: tuple[int, int] | None = (0, 0)
        self._running: weakref.WeakSet[ReadAhead[torch.Tensor]] = weakref.WeakSet()
        if not len(self):
            batch = f"{self._global_batch} ({batch_size} on each of {world_size} devices)"
            raise InputError(f"{source.rows} rows do not fill one batch of {batch}; lower it")

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return self._batches(self.source.rows)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Iterate over `(batch, width)`, from the loaded state or through a new epoch."""
        # At the first batch, since Lightning makes the iterator before it sets the epoch.
        epoch, seen = self._next or (self._place[0] + 1, 0)
        if not self._batches(self.source.rows - seen):
            epoch, seen = epoch + 1, 0
        self._place, self._next = (epoch, seen), None
        with closing(ReadAhead(self._read(epoch, seen), _READ_AHEAD)) as batches:
            self._running.add(batches)
            for batch in batches:
                self.wait_seconds += batches.wait_seconds
                seen = min(seen + self._global_batch, self.source.rows)
                self._place = (epoch, seen)
                yield batch
                del batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a state loaded for that epoch stays."""
        if self._next is None or self._next[0] != epoch:
            self._place = self._next = (epoch, 0)

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Object through which Lightning finds `set_epoch`, as it does on samplers only."""
        return SimpleNamespace(sampler=self)

    def state_dict(self) -> dict[str, int | str]:
        """Return the place after the last batch that was yielded, the same on every rank."""
        epoch, seen = self._place
        return {**self._order_settings(), "epoch": epoch, "samples_seen": seen}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Resume at a place that was saved on any number of ranks; reject that of other rows."""
        for name, value in self._order_settings().items():
            if state.get(name) != value:
                saved = f"the saved place has {name} {state.get(name)!r}, this run {value!r}"
                raise InputError(f"{saved}: resume with the settings of the first run")
        self._place = self._next = (int(state["epoch"]), int(state["samples_seen"]))

    def close(self) -> None:
        """End all iterations and their threads."""
        for batches in list(self._running):
            batches.close()

    def _order_settings(self) -> dict[str, int | str]:
        return {
            "rows_identity": self.source.identity,
            "rows": self.source.rows,
            "run_rows": self.source.run_rows,
            "seed": self._seed,
            "shuffle": self._shuffle,
        }

    def _batches(self, rows: int) -> int:
        return (rows if self._drop_last else rows + self._global_batch - 1) // self._global_batch

    def _read(self, epoch: int, start: int) -> Generator[torch.Tensor, None, None]:
        """Read this rank's batches of an epoch, from a place in its stream."""
        source = self.source
        seeds = (self._seed, epoch) if self._shuffle else ()
        order = RowOrder(source.rows, source.run_rows, *seeds)
        buffers = BatchBuffers(source.width, source.dtype, _BUFFERS, self._pin_memory)
        with closing(source.reader()) as reader:
            for batch in range(self._batches(source.rows - start)):
                first = start + batch * self._global_batch
                rows = min(self._global_batch, source.rows - first)
                mine = first + rows * self._rank // self._world_size
                others = first + rows * (self._rank + 1) // self._world_size
                out = buffers.take(others - mine)
                reader.read_into(out, order.slice(mine, others))
                yield out
                del out
