"""How much a command says, and whether in color: what the user and the terminal want."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_QUIET = "PALINKA_QUIET"
# Other libraries' own ways of drawing no bars; read when they are imported.
_OTHERS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
_COLORS = {"red": 31, "green": 32, "yellow": 33, "bold": 1}


def is_quiet() -> bool:
    """Whether only results, warnings and errors are wanted: `--quiet`, or `PALINKA_QUIET=1`."""
    return os.environ.get(_QUIET, "0") not in ("", "0")


@contextmanager
def quieted(wanted: bool) -> Iterator[None]:
    """Be quiet within, if wanted; processes that are started within are quiet as well."""
    before = {name: os.environ.get(name) for name in (_QUIET, *_OTHERS)}
    if wanted or is_quiet():
        os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def colored(text: str, color: str, stream: TextIO | None = None) -> str:
    """Text as a stream should get it: in color on a terminal, and plain everywhere else.

    Args:
        text: What to write; nothing in it is escaped.
        color: `red`, `green`, `yellow` or `bold`.
        stream: Where it goes; standard output if left out.
    """
    stream = stream or sys.stdout
    # https://no-color.org: any value but the empty one.
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"
