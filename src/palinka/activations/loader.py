"""Shuffled batches of rows for training, with an exact state."""

import weakref
from collections.abc import Generator, Iterator
from contextlib import closing
from types import SimpleNamespace

import torch

from palinka.activations.buffers import BatchBuffers
from palinka.activations.order import RowOrder
from palinka.activations.read_ahead import ReadAhead
from palinka.activations.rows import RowSource
from palinka.errors import InputError

# Besides the batches read ahead: the one in use, the one before it, which its name still holds
# while the next is asked for, and one to spare.
_BUFFERS_IN_USE = 3


class ActivationLoader:
    """Iterates over batches of rows, each epoch in a new seeded order.

    Global batch `b` is rows `b * batch_size * world_size` onward of the epoch's row stream;
    rank `r` gets its `r`-th part. Each iteration is the next epoch, unless `set_epoch` chooses
    another. A batch's memory is used again only when nobody refers to it any longer.

    Args:
        source: A `Cache` or `MemoryRows`.
        batch_size: Rows per batch and rank.
        seed: Seeds the order; the same on all ranks.
        shuffle: Whether to shuffle; otherwise the order on disk.
        drop_last: Whether to leave out the rows that do not fill the last global batch;
            otherwise they are divided evenly over the ranks, some of which may get none.
        rank: This process among `world_size`.
        world_size: How many processes share each global batch.
        prefetch: How many batches are read ahead.
        pin_memory: Whether batches lie in pinned memory, for copies to a CUDA device.

    Attributes:
        wait_seconds: How long the consumer has waited for batches so far, in all.

    Raises:
        InputError: If a number is out of range, or if `drop_last` leaves no batch.
    """

    def __init__(
        self,
        source: RowSource,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1 or prefetch < 1:
            raise InputError(
                f"batch_size is {batch_size} and prefetch {prefetch}: both must be at least 1"
            )
        if not 0 <= rank < world_size:
            raise InputError(f"rank is {rank}: it must be from 0 to {world_size - 1}")
        self.source = source
        self.batch_size = batch_size
        self.wait_seconds = 0.0
        self._global_batch = batch_size * world_size
        self._seed = seed
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._rank = rank
        self._world_size = world_size
        self._prefetch = prefetch
        self._pin_memory = pin_memory
        # Place of the rows handed out, and where the next iteration starts: None for the epoch
        # after that place.
        self._place = (0, 0)
        self._next: tuple[int, int] | None = (0, 0)
        self._running: weakref.WeakSet[ReadAhead[torch.Tensor]] = weakref.WeakSet()
        if not len(self):
            raise InputError(
                f"{source.rows} rows do not fill one batch of {self._global_batch} "
                f"({batch_size} on each of {world_size} devices): lower batch_size or use more text"
            )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._batches(self.source.rows)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Batches in the stored dtype, `(batch, width)`, from the loaded state or a new epoch."""
        # Only now, at the first batch, is the place known: Lightning makes the iterator before
        # it tells the epoch.
        epoch, served = self._next or (self._place[0] + 1, 0)
        if not self._batches(self.source.rows - served):
            epoch, served = epoch + 1, 0
        self._place, self._next = (epoch, served), None
        with closing(ReadAhead(self._read(epoch, served), self._prefetch)) as batches:
            self._running.add(batches)
            for batch in batches:
                self.wait_seconds += batches.wait_seconds
                served = min(served + self._global_batch, self.source.rows)
                self._place = (epoch, served)
                yield batch
                del batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a state loaded for that epoch stays."""
        if self._next is None or self._next[0] != epoch:
            self._place = self._next = (epoch, 0)

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Leads Lightning to `set_epoch`, which it looks for on a loader's samplers only."""
        return SimpleNamespace(sampler=self)

    def state_dict(self) -> dict[str, int | str]:
        """The place after the last batch that was handed out, the same on every rank."""
        epoch, served = self._place
        return {**self._order_settings(), "epoch": epoch, "rows_served": served}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Let the next iteration go on at a place saved on any number of ranks.

        Raises:
            InputError: If the state belongs to other rows or another order.
        """
        for name, value in self._order_settings().items():
            if state.get(name) != value:
                raise InputError(
                    f"the saved place in the data has {name} {state.get(name)!r}, these "
                    f"activations have {value!r}: resume with the settings of the first run"
                )
        epoch, served = state["epoch"], state["rows_served"]
        if not (isinstance(epoch, int) and isinstance(served, int) and epoch >= 0 <= served):
            raise InputError(f"epoch {epoch!r}, row {served!r} is no place in the data")
        self._place = self._next = (epoch, served)

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
        if self._drop_last:
            return rows // self._global_batch
        return -(-rows // self._global_batch)

    def _read(self, epoch: int, start: int) -> Generator[torch.Tensor, None, None]:
        """This rank's batches of an epoch, from a place in its stream."""
        source = self.source
        seeds = (self._seed, epoch) if self._shuffle else ()
        order = RowOrder(source.rows, source.run_rows, *seeds)
        keep = self._prefetch + _BUFFERS_IN_USE
        buffers = BatchBuffers(source.width, source.dtype, keep, self._pin_memory)
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
