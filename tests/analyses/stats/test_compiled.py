import subprocess
import sys
from pathlib import Path

import pytest

from palinka.analyses.stats.compiled import compiled

SOURCE = """
from palinka.analyses.stats.compiled import compiled, threads
@compiled
def twice(n):
    return 2 * n
print(twice(21), threads())
"""


def test_a_loop_computes_what_it_did():
    assert compiled(lambda n: n / 2)(7) == 3.5


@pytest.mark.parametrize("threads", ["1", "2"])
def test_loops_run_without_a_folder_to_write_to_and_on_as_many_threads_as_wanted(
    tmp_path: Path, threads: str
):
    """Neither the source's folder nor the user's cache can be written to, as in some containers."""
    package, blocked = tmp_path / "loops.py", tmp_path / "blocked"
    package.write_text(SOURCE)
    for file in (blocked, tmp_path / "__pycache__"):
        file.write_text("a file where a folder should be")
    environment = {
        "PATH": "/usr/bin", "PYTHONPATH": str(Path(__file__).parents[3] / "src"),
        "HOME": str(blocked), "XDG_CACHE_HOME": str(blocked), "NUMBA_NUM_THREADS": threads,
    }  # fmt: skip
    command = [sys.executable, "-B", str(package)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.stdout == f"42 {threads}\n", run.stderr
