"""Files of others, of which only ordinary ones are read."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from palinka.errors import InputError


def open_ordinary(path: Path) -> BinaryIO:
    """Open a file for reading, without ever waiting for one that is no file.

    Reading from a pipe or a device would take forever, or all memory.

    Args:
        path: The file; symbolic links are followed.

    Raises:
        InputError: If it is a pipe, a device or a folder, or cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}; check the path") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "Is a directory" if stat.S_ISDIR(mode) else "it is a pipe or a device"
        raise InputError(f"{path} cannot be read: {what}; give a file")
    return os.fdopen(descriptor, "rb")


def read_ordinary(path: Path, largest: int) -> bytes:
    """The bytes of an ordinary file.

    Args:
        path: The file.
        largest: How many bytes are read at most.

    Raises:
        InputError: If it is no ordinary file, cannot be read, or is larger.
    """
    with open_ordinary(path) as file:
        try:
            content = file.read(largest + 1) if _size(file) <= largest else b""
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; check the disk") from error
        if max(len(content), _size(file)) > largest:
            raise InputError(
                f"{path} has {_size(file)} bytes; expected at most {largest}: divide it"
            )
    return content


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size
