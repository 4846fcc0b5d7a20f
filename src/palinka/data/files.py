"""Atomic writes and locks."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from palinka.errors import InputError

_ADVICE = {
    errno.ENOSPC: "no space left; free some or choose another cache folder, then run again",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another cache folder",
    errno.EROFS: "the file system is read-only; choose another cache folder",
    errno.EACCES: "permission denied; change the permissions or choose another cache folder",
    errno.EPERM: "permission denied; change the permissions or choose another cache folder",
    errno.ENOENT: "not found; if it was removed, remove its folder as well and harvest again",
    errno.ELOOP: "a symbolic link, which a cache does not contain; replace it by the file itself",
    errno.EIO: "the disk reports an input/output error; check it and restore the cache",
}


@contextmanager
def told_apart(path: Path) -> Iterator[None]:
    """Turn an `OSError` about `path` into an `InputError` that says what to do."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, error.strerror or str(error))
        raise InputError(f"{path}: {advice}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _locked(path: Path, wait: bool) -> BinaryIO | None:
    """The temporary file of `path`, empty and locked; None where another process has it.

    The lock lies on the file's inode. Whoever had it before may have renamed or removed the
    file, so that the name has to be looked up again after locking.
    """
    temporary = _temporary(path)
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(descriptor), temporary.stat(follow_symlinks=False)):
                os.ftruncate(descriptor, 0)
                return os.fdopen(descriptor, "wb")
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


class Replacement:
    """A new version of a file, under a temporary name that is also its lock."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file

    def commit(self) -> None:
        """Make the bytes durable, then give them the file's name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        _temporary(self.path).rename(self.path)
        sync_folder(self.path.parent)


@contextmanager
def replacement(path: Path, *, wait: bool = True) -> Iterator[Replacement | None]:
    """Write `path` anew, alone among all processes; without `commit`, nothing changes.

    A process that dies, however it does, keeps neither the lock nor the file's name; its
    temporary file is taken over by the next writer.

    Args:
        path: The file to be.
        wait: Whether to wait for another process that writes the same file; otherwise None is
            yielded instead.
    """
    with told_apart(path):
        file = _locked(path, wait)
    if file is None:
        yield None
        return
    new = Replacement(path, file)
    inode = os.fstat(file.fileno())
    try:
        yield new
    finally:
        # Removed while the lock is held: no other process can have started to write it.
        with suppress(FileNotFoundError):
            if os.path.samestat(inode, _temporary(path).stat(follow_symlinks=False)):
                _temporary(path).unlink()
        # What could not be written is no longer wanted, or has been reported.
        with suppress(OSError):
            file.close()


def discard_temporary(path: Path) -> None:
    """Remove what a dead process left under the temporary name of `path`.

    A file that a living process is writing stays.

    Raises:
        InputError: If it cannot be removed.
    """
    with replacement(path, wait=False):
        pass
