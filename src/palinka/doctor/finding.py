"""One thing that the doctor has looked at, and looking with a time limit."""

import threading
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


class State(Enum):
    """How something is."""

    FINE = "ok"
    REMARK = "note"
    """Palinka works, though not with this, or not as fast as it could."""
    BROKEN = "bad"
    """Palinka, or a command of it, does not work."""


class Finding(NamedTuple):
    """What was found.

    Attributes:
        name: What was looked at.
        text: How it is, and if need be what to do, on one line.
        state: Whether that is as it should be.
    """

    name: str
    text: str
    state: State = State.FINE


Look = Callable[[], list[Finding]]


def within(seconds: float, name: str, look: Look) -> list[Finding]:
    """Look at something, but not for longer than so many seconds.

    A folder on a server that is gone, a name that nobody resolves or a broken driver may keep one
    waiting for ever. Whoever waits for them then is a thread that ends with the process.

    Args:
        seconds: How long.
        name: What is looked at.
        look: Looks at it; what it raises is a finding, too.
    """
    found: list[list[Finding]] = []

    def work() -> None:
        try:
            found.append(look())
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            found.append([Finding(name, text, State.BROKEN)])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        return [Finding(name, f"no answer within {seconds:g} seconds", State.BROKEN)]
    return found[0]
