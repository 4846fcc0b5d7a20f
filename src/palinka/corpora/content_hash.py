"""One hash for the content of files, wherever they lie."""

import hashlib
from codecs import BOM_UTF8
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from palinka.errors import InputError


def content_hash(files: Iterable[tuple[str, Path]]) -> str:
    """The SHA-256, in hex, of the names and bytes of `files`, given as name and path.

    A UTF-8 byte order mark, which is not part of a text, does not count.

    Raises:
        InputError: If a file cannot be read.
    """
    digest = hashlib.sha256()
    for name, file in files:
        try:
            with file.open("rb") as stream:
                skip_byte_order_mark(stream)
                content = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise InputError(
                f"{file} cannot be read ({error.strerror}); check that it is there and readable"
            ) from error
        # A hash of fixed length after each name: no other names and contents read the same.
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + content)
    return digest.hexdigest()


def skip_byte_order_mark(stream: BinaryIO) -> None:
    """Move from the start of a file past a UTF-8 byte order mark, if it has one."""
    if stream.read(len(BOM_UTF8)) != BOM_UTF8:
        stream.seek(0)
