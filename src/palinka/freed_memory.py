"""Keeping memory that tensors have freed, for the next that are made."""

import ctypes
import sys

# Of glibc's <malloc.h>.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Above any tensor that is made and freed at every step.
LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory of the CPU, instead of giving it back to the system.

    By default glibc asks the system for every tensor of tens of megabytes, and gives it back when
    it is freed. The first write to each of its pages then waits for the system, at every step
    again: on a virtual machine that can take longer than what is computed. A process keeps its
    largest size from then on.

    Returns:
        Whether the system's allocator could be told; those that cannot are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "gnu_get_libc_version"):
        return False
    told = [library.mallopt(name, LARGEST) for name in (MMAP_THRESHOLD, TRIM_THRESHOLD)]
    return all(told)
