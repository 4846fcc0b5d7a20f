import subprocess
import sys
from pathlib import Path

import pytest

from palinka.analyses.stats.compiled import compiled, threads

REPOSITORY = Path(__file__).parents[3]


def output_of(*command: str, **environment: str) -> str:
    environment |= {"PATH": "/usr/bin", "PYTHONPATH": str(REPOSITORY / "src")}
    run = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_loop_computes_what_it_did():
    assert compiled(lambda n: n / 2)(7) == 3.5


def test_without_a_folder_to_write_to_loops_still_run(tmp_path: Path):
    """Neither the source's folder nor the user's cache can be written to, as in some containers."""
    package, blocked = tmp_path / "loops.py", tmp_path / "blocked"
    package.write_text(
        "from palinka.analyses.stats.compiled import compiled\n"
        "@compiled\n"
        "def twice(n):\n"
        "    return 2 * n\n"
        "print(twice(21))\n"
    )
    blocked.write_text("a file where a folder should be")
    (tmp_path / "__pycache__").write_text("the same")
    home = str(blocked)
    assert output_of("-B", str(package), HOME=home, XDG_CACHE_HOME=home) == "42\n"


@pytest.mark.parametrize("wanted", ["1", "2"])
def test_threads_are_as_many_as_numba_may_use(wanted):
    code = "from palinka.analyses.stats.compiled import threads; print(threads())"
    assert output_of("-c", code, NUMBA_NUM_THREADS=wanted) == f"{wanted}\n"
    assert threads() >= 1
