"""Going through something long in pieces that bound the memory."""

from collections.abc import Iterator


def blocks(length: int, size: int) -> Iterator[slice]:
    """Divide `length` entries into slices of `size` or fewer, in order; `size` is at least 1."""
    size = max(1, size)
    for start in range(0, length, size):
        yield slice(start, min(length, start + size))
