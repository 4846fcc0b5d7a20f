"""Progress bars for whatever may take longer than two seconds."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm.auto import tqdm

from palinka.terminal import is_quiet

T = TypeVar("T")

# Shorter work ends without ever drawing a bar.
DELAY_SECONDS = 2.0


def _refresh_seconds() -> float:
    """Seldom in a log file, where every refresh is a line that stays."""
    return 0.1 if sys.stderr.isatty() else 5.0


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Go through `iterable`, with a bar once it has taken more than two seconds."""
    yield from tqdm(
        iterable,
        desc=description,
        total=total,
        delay=DELAY_SECONDS,
        disable=is_quiet(),
        mininterval=_refresh_seconds(),
        dynamic_ncols=True,
    )


@contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Any]:
    """A bar that the caller moves with `.update(n)`; its rate is in `unit` per second.

    Args:
        description: What is going on, for the left edge of the bar.
        total: How many units there will be, if known.
        unit: The unit's name, such as `"tokens"`.
    """
    with tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        unit_scale=True,
        delay=DELAY_SECONDS,
        disable=is_quiet(),
        mininterval=_refresh_seconds(),
        dynamic_ncols=True,
    ) as bar:
        yield bar
