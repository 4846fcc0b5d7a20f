import subprocess
import sys
from pathlib import Path

import pytest

from palinka.analyses.stats.compiled import compiled, threads

REPOSITORY = Path(__file__).parents[3]


def halves(n):
    return n / 2


def test_a_loop_computes_what_it_did():
    assert compiled(halves)(7) == 3.5


def test_without_a_folder_to_write_to_loops_still_run(tmp_path: Path):
    """Neither the source's folder nor the user's cache can be written to, as in some containers."""
    package = tmp_path / "loops.py"
    package.write_text(
        "from palinka.analyses.stats.compiled import compiled\n"
        "@compiled\n"
        "def twice(n):\n"
        "    return 2 * n\n"
        "print(twice(21))\n"
    )
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    (tmp_path / "__pycache__").write_text("the same")
    environment = {
        "HOME": str(blocked),
        "XDG_CACHE_HOME": str(blocked),
        "PATH": "/usr/bin",
        "PYTHONPATH": str(REPOSITORY / "src"),
    }
    run = subprocess.run(
        [sys.executable, "-B", str(package)], env=environment, capture_output=True, text=True
    )
    assert run.stdout == "42\n", run.stderr


@pytest.mark.parametrize("wanted", ["1", "2"])
def test_threads_are_as_many_as_numba_may_use(wanted):
    code = "from palinka.analyses.stats.compiled import threads; print(threads())"
    environment = {
        "NUMBA_NUM_THREADS": wanted,
        "PATH": "/usr/bin",
        "PYTHONPATH": str(REPOSITORY / "src"),
    }
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.stdout == f"{wanted}\n", run.stderr
    assert threads() >= 1
