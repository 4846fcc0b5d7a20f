"""Memory for batches that is used again once nobody refers to it."""

import weakref

import numpy as np
import torch
from numpy.typing import NDArray


class BatchBuffers:
    """Hands out tensors; their memory comes back when the last reference to it is gone.

    Fresh memory costs page faults, which take longer than reading into it. Pinned memory is
    left to torch's own allocator, which also knows of copies that are still under way.

    Args:
        width: Numbers per row.
        dtype: Type of the tensors.
        keep: How many buffers to keep for use again.
        pin_memory: Whether to hand out pinned memory.
    """

    def __init__(self, width: int, dtype: torch.dtype, keep: int, pin_memory: bool) -> None:
        self._width = width
        self._dtype = dtype
        self._keep = keep
        self._pin_memory = pin_memory
        self._kept: list[tuple[NDArray[np.uint8], weakref.ref[NDArray[np.uint8]]]] = []

    def take(self, rows: int) -> torch.Tensor:
        """A tensor of any content, `(rows, width)`."""
        if self._pin_memory or not rows:
            return torch.empty(rows, self._width, dtype=self._dtype, pin_memory=self._pin_memory)
        size = rows * self._width * self._dtype.itemsize
        memory = self._free(size)
        # Every tensor on this memory keeps the lease alive, views of views included.
        lease = memory[:size]
        if len(self._kept) < self._keep:
            self._kept.append((memory, weakref.ref(lease)))
        return torch.from_numpy(lease).view(self._dtype).view(rows, self._width)

    def _free(self, size: int) -> NDArray[np.uint8]:
        for place, (memory, lease) in enumerate(self._kept):
            if lease() is None and len(memory) >= size:
                del self._kept[place]
                return memory
        return np.empty(size, np.uint8)
