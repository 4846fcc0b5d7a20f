"""Where caches lie if nobody says otherwise."""

import os
from pathlib import Path

from palinka.errors import InputError
from palinka.paths import expanded


def default_cache_dir() -> Path:
    """`$PALINKA_CACHE`, or `~/.cache/palinka/activations`.

    Raises:
        InputError: If there is neither.
    """
    named = os.environ.get("PALINKA_CACHE")
    if named:
        return expanded(named)
    try:
        return Path("~/.cache/palinka/activations").expanduser()
    except RuntimeError as error:  # such as of a container's nameless user
        raise InputError(
            "there is no home folder to keep caches of activations in; set PALINKA_CACHE to a"
            " folder with room for them"
        ) from error
