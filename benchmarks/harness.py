"""Time fast paths against plain transcriptions of what they compute, in one process.

A benchmark is a script beside this one that ends in a call of `report`:

    report(
        "unit_tuning",
        "Tests of single units",
        [Case("100 × 3,072", plain=lambda: ..., fast=lambda: ..., check=agree, target=10)],
    )

Plain and fast take turns, so that whatever else the machine does meets both; their medians are
compared. `check` gets what both returned, raises if they disagree, and says how closely they
agree. The table goes to the terminal and to `benchmarks/results/<name>.md`.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "scipy", "numba", "torch", "palinka")


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: What is timed, with its sizes.
        plain: The slow transcription.
        fast: The library's own.
        check: From both results to a few words on how closely they agree; raises if they do not.
        target: How many times faster it has to be, if that was promised.
        rounds: How often both are timed, by turns.
        repeats: Calls of `fast` per round, of which the mean counts; for calls of microseconds.
    """

    name: str
    plain: Callable[[], Any]
    fast: Callable[[], Any]
    check: Callable[[Any, Any], str]
    target: float | None = None
    rounds: int = 5
    repeats: int = 1


@dataclass(frozen=True)
class Measurement:
    """The medians of one case, in seconds; `first` is the fast path's first call."""

    case: Case
    plain: float
    fast: float
    first: float
    agreement: str

    @property
    def ratio(self) -> float:
        """How many times faster the fast path is."""
        return self.plain / self.fast


def seconds(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Mean time of a call, and what the last one returned."""
    result = None
    start = time.perf_counter()
    for _ in range(repeats):
        result = function()
    return (time.perf_counter() - start) / repeats, result


def measure(case: Case) -> Measurement:
    """Warm up, time both sides by turns, and compare what they return."""
    first, _ = seconds(case.fast)
    plain, fast = [], []
    for _ in range(case.rounds):
        elapsed, expected = seconds(case.plain)
        plain.append(elapsed)
        elapsed, result = seconds(case.fast, case.repeats)
        fast.append(elapsed)
    return Measurement(case, median(plain), median(fast), first, case.check(expected, result))


def machine() -> str:
    """The processor, its cores, how many threads may be used, and the versions at work."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{cpu}, {os.cpu_count()} cores (OMP_NUM_THREADS: {threads}; load: {load}), "
        f"{platform.system()}, Python {platform.python_version()}, {packages}; "
        f"{time.strftime('%Y-%m-%d')}"
    )


def duration(elapsed: float) -> str:
    """Seconds in the unit that suits them, to three digits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if elapsed * factor >= 1.0:
            return f"{elapsed * factor:.3g} {unit}"
    return f"{elapsed * 1e6:.3g} µs"


def table(measurements: Sequence[Measurement]) -> str:
    """The measurements as a markdown table."""
    lines = [
        "| case | plain | fast | ratio | promised | agreement | rounds | first call |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for m in measurements:
        promised = "" if m.case.target is None else f"at least {m.case.target:g}"
        lines.append(
            f"| {m.case.name} | {duration(m.plain)} | {duration(m.fast)} | {m.ratio:.3g} "
            f"| {promised} | {m.agreement} | {m.case.rounds} | {duration(m.first)} |"
        )
    return "\n".join(lines)


def report(name: str, title: str, cases: Sequence[Case], remarks: str = "") -> list[Measurement]:
    """Measure all cases, print the table and write it to `benchmarks/results/<name>.md`.

    Args:
        name: The file's name, without its ending.
        title: The page's heading.
        cases: The rows.
        remarks: What a reader must know about the plain side, in markdown.
    """
    measurements = [measure(case) for case in cases]
    parts = (
        f"# {title}",
        table(measurements),
        remarks,
        f"Medians of interleaved rounds after a warm-up. {machine()}.",
    )
    page = "\n\n".join(part for part in parts if part) + "\n"
    print(page)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")
    return measurements
