"""One hash for the content of files, wherever they lie."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from palinka.errors import InputError


def content_hash(files: Iterable[tuple[str, Path]]) -> str:
    """The SHA-256, in hex, of the names and bytes of `files`, given as name and path.

    Raises:
        InputError: If a file cannot be read.
    """
    digest = hashlib.sha256()
    for name, file in files:
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise InputError(
                f"{file} cannot be read ({error.strerror}); check that it is there and readable"
            ) from error
        # A hash of fixed length after each name: no other names and contents read the same.
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + content)
    return digest.hexdigest()
