"""Where caches lie if nobody says otherwise."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """`$PALINKA_CACHE`, or `~/.cache/palinka/activations`."""
    named = os.environ.get("PALINKA_CACHE")
    return Path(named or "~/.cache/palinka/activations").expanduser()
