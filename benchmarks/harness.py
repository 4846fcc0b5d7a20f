"""Time fast paths against their references, in one process.

A benchmark is a script next to this one that ends in a call of `report`:

    report(
        "unit_tuning",
        "Tests of single units",
        [
            Case(
                "100 × 3,072",
                ours=lambda: ...,
                rivals=[
                    Rival("plain loops", lambda: ..., check=agree, at_least=10),
                    Rival("reading the input", lambda: ..., at_most=3),
                ],
            )
        ],
    )

All sides of a case take turns, so that whatever else the machine does meets each of them; their
medians are compared. `at_least` says how many times as long as ours a competitor must take,
`at_most` how many times as long as a bound ours may take. The page goes to the terminal and to
`benchmarks/results/<name>.md`.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from machine import machine

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Rival:
    """Reference of a case: a plain transcription, another library, or a bound.

    Attributes:
        name: Who it is.
        run: One call of it.
        at_least: How many times as long as ours it has to take, if that was promised.
        at_most: How many times as long as this bound ours may take, if that was promised.
        check: From its first result and ours to a few words on how closely they agree; raises if
            they do not.
        agreement: The same, where it was established before.
        warm_up: Whether its first call is left out of the count.
    """

    name: str
    run: Callable[[], Any]
    at_least: float | None = None
    at_most: float | None = None
    check: Callable[[Any, Any], str] | None = None
    agreement: str = ""
    warm_up: bool = True


@dataclass(frozen=True)
class Case:
    """Several sides that do the same work.

    Attributes:
        name: What is timed, with its sizes.
        ours: One call of the library's own.
        rivals: What it is compared with.
        missing: Rivals that could not be asked, and why.
        rounds: How often all sides are timed, by turns.
        repeats: Calls of ours per round, of which the mean counts; for calls of microseconds.
    """

    name: str
    ours: Callable[[], Any]
    rivals: Sequence[Rival]
    missing: Mapping[str, str] = field(default_factory=dict)
    rounds: int = 5
    repeats: int = 1


@dataclass(frozen=True)
class Row:
    """One line of a table, in words."""

    case: str
    side: str
    time: str
    cpu: str = ""
    ratio: str = ""
    promised: str = ""
    agreement: str = ""


@dataclass(frozen=True)
class Seconds:
    """Wall time and the CPU time of all threads, of one call."""

    wall: float
    cpu: float


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[Seconds, Any]:
    """Mean time of a call, and what the last one returned."""
    result = None
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        result = function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Seconds(wall / repeats, cpu / repeats), result


def measure(case: Case) -> list[Row]:
    """Warm up, let all sides take turns, and compare what they return."""
    # A collection in the middle of one side's turn would be another side's litter.
    gc.collect()
    gc.disable()
    try:
        first, ours = timed(case.ours)
        results = [rival.run() if rival.warm_up else None for rival in case.rivals]
        own: list[Seconds] = []
        others: list[list[Seconds]] = [[] for _ in case.rivals]
        for _ in range(case.rounds):
            own.append(timed(case.ours, case.repeats)[0])
            for place, rival in enumerate(case.rivals):
                elapsed, result = timed(rival.run)
                others[place].append(elapsed)
                results[place] = result if results[place] is None else results[place]
                del result
            gc.collect()
    finally:
        gc.enable()
    mine = medians(own)
    rows = [
        Row(case.name, "palinka", duration(mine.wall), duration(mine.cpu))
        if case.repeats == 1
        else Row(
            case.name,
            "palinka",
            duration(mine.wall),
            duration(mine.cpu),
            agreement=f"first call {duration(first.wall)}",
        )
    ]
    for rival, times, result in zip(case.rivals, others, results, strict=True):
        agreement = rival.check(result, ours) if rival.check else rival.agreement
        theirs = medians(times)
        rows.append(
            Row(
                "",
                rival.name,
                duration(theirs.wall),
                duration(theirs.cpu),
                *compared(mine.wall, theirs.wall, rival.at_least, rival.at_most),
                agreement,
            )
        )
    rows += [Row("", name, "not run", agreement=reason) for name, reason in case.missing.items()]
    return rows


def medians(times: Sequence[Seconds]) -> Seconds:
    """The medians of wall and CPU time."""
    return Seconds(median(t.wall for t in times), median(t.cpu for t in times))


def compared(
    ours: float, theirs: float, at_least: float | None = None, at_most: float | None = None
) -> tuple[str, str]:
    """The ratio of two quantities of which less is better, and what was promised of it."""
    if at_most is not None:
        ratio = ours / theirs
        return f"{ratio:.4g} times it", f"at most {at_most:g}: {_kept(ratio <= at_most)}"
    ratio = theirs / ours
    if at_least is None:
        return f"{ratio:.3g}", ""
    return f"{ratio:.3g}", f"at least {at_least:g}: {_kept(ratio >= at_least)}"


def _kept(promise: bool) -> str:
    return "met" if promise else "**missed**"


def duration(elapsed: float) -> str:
    """Seconds in the unit that suits them, to three digits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if elapsed * factor >= 1.0:
            return f"{elapsed * factor:.3g} {unit}"
    return f"{elapsed * 1e6:.3g} µs"


def table(rows: Sequence[Row]) -> str:
    """Rows as a markdown table."""
    lines = [
        "| case | side | time | CPU time | ratio | promised | agreement |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    lines += [
        f"| {r.case} | {r.side} | {r.time} | {r.cpu} | {r.ratio} | {r.promised} | {r.agreement} |"
        for r in rows
    ]
    return "\n".join(lines)


def publish(name: str, title: str, body: str, remarks: str = "") -> None:
    """Print a page and write it to `benchmarks/results/<name>.md`.

    Args:
        name: The file's name, without its ending.
        title: The page's heading.
        body: The table.
        remarks: What a reader must know about the sides, in markdown.
    """
    parts = (f"# {title}", body, remarks, machine())
    page = "\n\n".join(part for part in parts if part) + "\n"
    print(page, flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")


def report(name: str, title: str, cases: Sequence[Case], remarks: str = "") -> None:
    """Measure all cases and publish the table.

    Args:
        name: The file's name, without its ending.
        title: The page's heading.
        cases: What is measured.
        remarks: What a reader must know about the sides, in markdown.
    """
    rows = [row for case in cases for row in measure(case)]
    how = (
        "Medians of interleaved rounds after a warm-up; the ratio is the side's time by palinka's."
    )
    publish(name, title, table(rows), "\n\n".join(part for part in (remarks, how) if part))
