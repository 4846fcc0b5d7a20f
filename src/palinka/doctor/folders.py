"""Where palinka and what it is built on write, and whether there is room."""

import os
import shutil
import tempfile
from pathlib import Path

from palinka.activations.cache_dir import default_cache_dir
from palinka.doctor.finding import Finding, State

# A cache of a few million rows of a small model takes more.
_LITTLE = 10 * 1000**3


def caches() -> list[Finding]:
    """The folder of activations."""
    return [_folder("caches", default_cache_dir(), "set PALINKA_CACHE", needed=True)]


def models() -> list[Finding]:
    """The folder in which the Hugging Face hub keeps models."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return [_folder("models", Path(HF_HUB_CACHE), "set HF_HOME", needed=False)]


def here() -> list[Finding]:
    """The working folder, in which a fit writes its logs unless told otherwise."""
    return [_folder("working folder", Path.cwd(), "give --trainer.default_root_dir", needed=False)]


def _folder(name: str, folder: Path, remedy: str, *, needed: bool) -> Finding:
    broken = State.BROKEN if needed else State.REMARK
    there = folder
    while not there.exists():
        there = there.parent
    try:
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable")
        tempfile.TemporaryFile(dir=there).close()  # what a read-only file system refuses to root
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(name, f"{folder}: {error.strerror}; {remedy} to another folder", broken)
    text = f"{folder}, {free / 1000**3:.1f} GB free"
    if needed and free < _LITTLE:
        return Finding(name, f"{text}, which is little: {remedy} to a roomier one", State.REMARK)
    return Finding(name, text if there == folder else f"{text} (not there yet)")
