"""JSON files that end with the checksum of all that comes before it."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from palinka.activations.files import replacement, told_apart
from palinka.activations.key import JSON
from palinka.errors import InputError

# Far above the manifest of a billion rows; what is larger is not read into memory.
_LARGEST_BYTES = 256 * 2**20


def _seal(body: bytes) -> bytes:
    return b'"checksum": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


_SEAL_BYTES = len(_seal(b""))


def sealed(members: Mapping[str, JSON]) -> bytes:
    """A JSON object, one member a line, whose last member is the checksum."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)},\n"
        for name, value in members.items()
    ]
    body = ("{\n" + "".join(lines)).encode()
    return body + _seal(body)


def write_sealed(path: Path, members: Mapping[str, JSON]) -> None:
    """Write a sealed JSON file, durably and all at once."""
    with told_apart(path), replacement(path) as new:
        assert new is not None
        new.file.write(sealed(members))
        new.commit()


def read_sealed(path: Path) -> dict[str, JSON]:
    """The members of a sealed JSON file, without the checksum.

    Raises:
        InputError: If the file cannot be read, is no ordinary file, or a bit of it has changed.
    """
    with told_apart(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
    body = content[:-_SEAL_BYTES]
    if len(content) > _LARGEST_BYTES or content[-_SEAL_BYTES:] != _seal(body):
        raise InputError(
            f"{path}: damaged, its checksum does not match; remove the folder and harvest again"
        )
    try:
        members = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON; remove the folder and harvest again") from error
    members.pop("checksum")
    return dict(members)
