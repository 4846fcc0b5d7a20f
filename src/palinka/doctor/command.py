"""The command `palinka doctor`: what is installed here, and whether it works."""

import importlib
from collections.abc import Iterator, Sequence
from functools import partial

from palinka.doctor.finding import Finding, State, within
from palinka.plain_parser import PlainParser
from palinka.printable import printable
from palinka.terminal import colored, is_quiet

_COLORS = {State.FINE: "green", State.REMARK: "yellow", State.BROKEN: "red"}
# Where each is looked at, and for how many seconds at most; importing from a slow disk takes time.
LOOKS = {
    "versions": ("software:software", 20.0),
    "processor": ("machine:processor", 60.0),
    "accelerator": ("machine:accelerators", 30.0),
    "matrix products": ("machine:products", 20.0),
    "compiled loops": ("machine:loops", 60.0),
    "bundled model": ("bundled:bundled_model", 90.0),
    "caches": ("folders:caches", 10.0),
    "models": ("folders:models", 10.0),
    "working folder": ("folders:here", 10.0),
    "hub": ("hub:hub", 6.0),
}


def run(arguments: Sequence[str]) -> int:
    """Run `palinka doctor`.

    Args:
        arguments: What follows `palinka doctor` on the command line.

    Returns:
        The exit status: 0, or 1 if something that palinka needs does not work.

    Raises:
        InputError: If the command line cannot be understood.
    """
    _parser().parse_args(arguments)
    broken = False
    for finding in look():
        broken |= finding.state is State.BROKEN
        if finding.state is not State.FINE or not is_quiet():
            mark = colored(f"{finding.state.value:<5}", _COLORS[finding.state])
            print(f"{mark}{finding.name:<17}{printable(finding.text)}", flush=True)
    return int(broken)


def look() -> Iterator[Finding]:
    """Look at one thing after the other, and at none for longer than its seconds."""
    for name, (where, seconds) in LOOKS.items():
        yield from within(seconds, name, partial(_look, where))


def _look(where: str) -> list[Finding]:
    """Import what looks only now: what palinka is built on may be broken."""
    module, _, function = where.partition(":")
    found: list[Finding] = getattr(importlib.import_module(f"palinka.doctor.{module}"), function)()
    return found


def parsers() -> dict[str, PlainParser]:
    """The parser of `palinka doctor`."""
    return {"doctor": _parser()}


def _parser() -> PlainParser:
    return PlainParser(
        "palinka doctor",
        description="Look at versions, devices, matrix products, folders and the hub. The exit"
        " status is 0, or 1 if something that palinka needs does not work.",
    )
