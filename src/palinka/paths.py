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
        InputError: If a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise InputError(f"{path}: the environment variable {name} is not set; set it first")
        return os.environ[name]

    return Path(_VARIABLE.sub(value, str(path))).expanduser()
