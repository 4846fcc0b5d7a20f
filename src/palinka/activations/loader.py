"""Shuffled batches of rows for training, with an exact state."""

from collections.abc import Iterator

import torch

from palinka.activations.rows import RowSource


class ActivationLoader:
    """Iterates over batches of rows, each epoch in a new seeded order.

    Global batch `b` is rows `b * batch_size * world_size` onward of the epoch's row stream;
    rank `r` gets its `r`-th part. Without `set_epoch`, each iteration is the next epoch.

    Args:
        source: A `Cache` or `MemoryRows`.
        batch_size: Rows per batch and rank.
        seed: Seeds the order; the same on all ranks.
        shuffle: Whether to shuffle; otherwise the order on disk.
        drop_last: Whether to leave out the rows that do not fill the last global batch;
            otherwise they are divided evenly over the ranks.
        rank: This process among `world_size`.
        world_size: How many processes share each global batch.
        prefetch: How many batches are read ahead.
        pin_memory: Whether batches lie in pinned memory, for copies to a CUDA device.

    Attributes:
        wait_seconds: How long the consumer has waited for batches so far, in all.

    Raises:
        InputError: If a number is out of range, or if `drop_last` leaves no batch.
    """

    wait_seconds: float

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
        raise NotImplementedError

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Batches in the stored dtype, `(batch, width)`, from the loaded state or a new epoch."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a state loaded for this epoch stays."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int | str]:
        """The place after the last batch that was handed out, the same on every rank."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Let the next iteration go on at a place saved on any number of ranks.

        Raises:
            InputError: If the state belongs to other rows or another order.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End all iterations and their threads."""
        raise NotImplementedError
