"""The command `palinka`, with shards of few rows, so that a small harvest has many of them.

Started by `test_harvest_killed.py` as a program.
"""

import importlib
import sys
from collections.abc import Sequence

from palinka.__main__ import main

ROWS_PER_SHARD = 64


def run(arguments: Sequence[str]) -> int:
    """Run a command of palinka."""
    spec = importlib.import_module("palinka.data.harvest")
    spec.WINDOW_ROWS = ROWS_PER_SHARD
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
