"""Names of findings as names of files, on any system and whatever the names hold."""

import hashlib
import unicodedata
from collections.abc import Iterable

# With an ending it stays far below the 255 bytes that file systems allow.
_LONGEST_BYTES = 150
# Windows keeps these for devices, with any ending.
_DEVICES = {"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(10)}


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A file name without its ending for each name, all of them different.

    Letters and digits of every script stay, and so do `-`, `_` and `.`; everything else becomes
    `-`. A name that is too long, reserved, or would be the same file as an earlier one ends in
    eight digits of its hash.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        letters = (c if c.isalnum() or c in "-_." else "-" for c in name)
        plain = "".join(letters).encode("utf-8", "replace").decode()
        if _is_unusable(plain) or _folded(plain) in taken:
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            start = plain.encode()[:_LONGEST_BYTES].decode(errors="ignore")
            plain = f"{start}-{digest}".lstrip("-")
        taken.add(_folded(plain))
        found[name] = plain
    return found


def _is_unusable(plain: str) -> bool:
    device = plain.partition(".")[0].lower() in _DEVICES
    return device or not plain.strip(".") or len(plain.encode()) > _LONGEST_BYTES


def _folded(plain: str) -> str:
    """What file systems that ignore case, or compose accents, take for the same name."""
    return unicodedata.normalize("NFC", plain).casefold()
