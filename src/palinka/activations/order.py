"""The order of rows in an epoch: short runs of neighbors, the runs permuted."""

import numpy as np
from numpy.typing import NDArray

from palinka.activations.permutation import permutation


class RowOrder:
    """A stream of all rows, cut into runs that come in a seeded order.

    Run `i` is rows `i * run_rows` to before `(i + 1) * run_rows`; the last may be shorter.

    Args:
        rows: How many rows there are.
        run_rows: Rows per run.
        seeds: What the order depends on; without seeds, rows keep their own order.
    """

    def __init__(self, rows: int, run_rows: int, *seeds: int) -> None:
        self._rows = rows
        self._run_rows = run_rows if seeds else max(1, rows)
        runs = -(-rows // self._run_rows)
        self._runs = permutation(runs, *seeds) if seeds else np.arange(runs)
        self._missing = runs * self._run_rows - rows
        self._shorter = int(np.flatnonzero(self._runs == runs - 1)[0]) if runs else 0

    def slice(self, start: int, stop: int) -> NDArray[np.int64]:
        """Places `start` to before `stop` of the stream, as runs of rows, `(runs, 2)`."""
        if start >= stop:
            return np.empty((0, 2), np.int64)
        places = np.arange(self._place(start), self._place(stop - 1) + 1)
        first = self._runs[places] * self._run_rows
        last = np.minimum(first + self._run_rows, self._rows)
        first[0] += start - self._start(int(places[0]))
        last[-1] -= self._start(int(places[-1]) + 1) - stop
        return np.stack((first, last), axis=1)

    def _start(self, place: int) -> int:
        """Where in the stream the run at a place starts."""
        return place * self._run_rows - (self._missing if place > self._shorter else 0)

    def _place(self, position: int) -> int:
        """The run that holds a position of the stream."""
        if position < self._start(self._shorter + 1):
            return position // self._run_rows
        return (position + self._missing) // self._run_rows
