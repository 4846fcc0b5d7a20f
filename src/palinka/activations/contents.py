"""Which files may lie in a cache's folder."""

import re

from palinka.activations.manifest import MANIFEST_NAME

# What a harvest says of the cache before there is a manifest.
DESCRIPTION_NAME = "harvest.json"
TEMPORARY_SUFFIX = ".tmp"

_PART = re.compile(
    rf"({re.escape(MANIFEST_NAME)}|{re.escape(DESCRIPTION_NAME)}"
    rf"|shard-[0-9]{{5,20}}\.(safetensors|json))({re.escape(TEMPORARY_SUFFIX)})?"
)


def is_part(name: str) -> bool:
    """Whether a file of this name belongs to a cache, finished or not."""
    return _PART.fullmatch(name) is not None


def is_leftover(name: str) -> bool:
    """Whether a file of this name belongs to a cache, but not once it is finished."""
    return is_part(name) and name != MANIFEST_NAME and not name.endswith(".safetensors")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one of a cache that is being written."""
    return is_part(name) and name.endswith(TEMPORARY_SUFFIX)
