import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from palinka.language_models.cpu import keep_freed_memory
told = keep_freed_memory()
for _ in range(12):  # aligned pieces do not fit at once where the last one was
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(1 << 24)
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    told, faults = run.stdout.split()
    if told == "False":
        pytest.skip("another allocator than glibc's")
    assert int(faults) < 3 * 16_384  # of five times the 16,384 pages of 64 MiB
