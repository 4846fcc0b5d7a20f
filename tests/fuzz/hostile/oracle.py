"""What may come of a hostile input: one line that refuses it, or success that means the same."""

import contextlib
import hashlib
import os
import re
import resource
import signal
import stat
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palinka.errors import InputError

SECONDS = 5.0
BYTES = 2**30
LONGEST_LINE = 2**16
# What ends a line, moves a terminal's cursor, turns the direction of text, or is half a character.
HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Verdict:
    """What came of one input.

    Attributes:
        outcome: `refused`, `accepted` or `finding`.
        defect: For a finding, what tells it from other defects: its kind and its place.
        details: The line or the traceback.
    """

    outcome: str
    defect: str = ""
    details: str = ""


class TooSlow(BaseException):
    """Raised where a call works or waits longer than it may."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Let nothing work longer than `SECONDS`, or take more memory than `BYTES` from here on.

    On a machine that others keep busy, so many seconds of work take longer; what waits without
    working is stopped after four times as long.
    """

    def stop(*_: Any) -> None:
        raise TooSlow

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = [signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)]
    resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 4 * SECONDS)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in zip((signal.SIGALRM, signal.SIGPROF), before, strict=True):
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def snapshot(folder: Path) -> dict[str, str]:
    """What lies below a folder: the kind of everything, the target or the bytes of it."""
    seen = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            what = f"link to {path.readlink()}"
        elif stat.S_ISREG(status.st_mode) and status.st_size < 2**24:
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            what = f"{stat.S_IFMT(status.st_mode)} {status.st_size}"
        seen[str(path.relative_to(folder))] = what
    return seen


def judge(call: Callable[[], Any], folder: Path, written: tuple[str, ...] = ()) -> Verdict:
    """Call what reads a hostile input, and look around afterwards.

    Args:
        call: Reads the input; raises AssertionError if what it took means something else.
        folder: The folder in which nothing may change.
        written: What may: the beginnings of relative paths.
    """
    before = snapshot(folder)
    try:
        with limits():
            call()
        verdict = Verdict("accepted")
    except InputError as error:
        line = str(error)
        if not line.strip() or HARMFUL.search(line) or len(line) > LONGEST_LINE:
            verdict = Verdict("finding", f"no line: {_place(error)}", repr(line)[:2000])
        else:
            verdict = Verdict("refused", details=line)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        kind = type(error).__name__
        verdict = Verdict("finding", f"{kind}: {_place(error)}", _shown(error))
    after = snapshot(folder)
    changed = [
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and not name.startswith(written or ("\0",))
    ]
    if changed:
        return Verdict("finding", f"wrote {sorted(changed)[0]}", f"{sorted(changed)}")
    return verdict


def _place(error: BaseException) -> str:
    """The last lines of the package and of all code that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/palinka/" in frame.filename]
    named = [f"{Path(f.filename).name}:{f.name}" for f in (*ours[-1:], *frames[-1:])]
    return " … ".join(dict.fromkeys(named))


def _shown(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    return text if len(text) < 8000 else f"{text[:4000]}\n…\n{text[-4000:]}"
