"""Every p-value and interval against what `benchmarks/validity.py` claims of it."""

import runpy
from pathlib import Path

import pytest

CASES = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "validity.py"))["CASES"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.analysis}, {case.design}")
def test_claims_hold(case):
    assert [row for row in case.rows() if not row.holds()] == []
