"""Also on several processes, a variant of a sweep ends as a run of its own on as many."""

from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("sweep_processes.py")


@pytest.mark.slow
def test_on_two_processes_each_variant_ends_as_a_run_of_its_own(
    on_processes: Any, tmp_path: Path
) -> None:
    with on_processes(SCRIPT, 2, tmp_path):
        pass
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found["together"] == found["alone"]
    assert "b/val/fvu" in found["together"]
    for mine, alone in found["states"].values():
        torch.testing.assert_close(mine, alone, rtol=0, atol=0)
