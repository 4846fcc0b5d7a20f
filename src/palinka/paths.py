"""Paths as people write them in a configuration."""

import os
import re
from pathlib import Path

from palinka.errors import InputError

_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


def expanded(path: str | Path) -> Path:
    """Put the home folder for `~`, and their values for `$NAME` and `${NAME}`.

    Args:
        path: A path in which environment variables may stand.

    Raises:
        InputError: If a variable is not set, there is no such user, or no file can be named so.
    """
    if "\0" in str(path):
        raise InputError(f"{path}: no file has a NUL in its name; check the path")

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise InputError(f"{path}: the environment variable {name} is not set; set it first")
        return os.environ[name]

    try:
        return Path(_VARIABLE.sub(value, str(path))).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no such user's home folder; check the path") from error
