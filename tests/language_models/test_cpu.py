import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from palinka.language_models import cpu as float32_products
from palinka.language_models.cpu import (
    choose_precision,
    select_matmul_backend,
    slow_products,
    try_precisions,
)


@pytest.mark.parametrize(
    ("maker", "error", "chosen"),
    [
        ("AuthenticAMD", 4e-7, "medium"),
        ("AuthenticAMD", 3e-3, "highest"),  # rounded to bfloat16
        ("AuthenticAMD", float("nan"), "highest"),
        ("GenuineIntel", 1e-8, "highest"),
    ],
)
def test_onednn_is_chosen_where_mkl_is_slow_and_it_is_as_exact(
    maker: str, error: float, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = tmp_path / "cpuinfo"
    processor.write_text(f"processor : 0\nvendor_id : {maker}\n")
    monkeypatch.setattr(float32_products, "PROCESSOR", processor)
    assert choose_precision({"highest": 3e-7, "medium": error}) == chosen


def test_where_nobody_tells_the_maker_torch_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float32_products, "PROCESSOR", tmp_path / "missing")
    assert choose_precision({"highest": 3e-7, "medium": 3e-7}) == "highest"


def test_a_trial_finds_the_same_errors_again_and_changes_nothing() -> None:
    before = torch.get_float32_matmul_precision()
    errors = try_precisions()
    assert torch.get_float32_matmul_precision() == before
    assert 1e-9 < errors["highest"] < 1e-5
    assert try_precisions() == errors


def test_what_is_chosen_is_said_with_both_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"highest": 3e-7, "medium": 4e-7}
    monkeypatch.setattr(float32_products, "try_precisions", lambda: errors)
    for slow, precision, library in ((True, "medium", "oneDNN"), (False, "highest", "torch")):
        monkeypatch.setattr(float32_products, "mkl_is_slow", lambda slow=slow: slow)
        chosen, reason = select_matmul_backend()
        assert chosen == precision
        assert library in reason.split(";")[0]
        assert "4.0e-07" in reason
        assert "3.0e-07" in reason


def test_slow_products_are_named_with_their_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32_products, "slowdown", lambda dtype: 81.7)
    line = slow_products(torch.bfloat16)
    assert line is not None
    assert line.startswith("bfloat16 products take 82 times as long")
    assert "32-true" in line
    assert "\n" not in line
    monkeypatch.setattr(float32_products, "slowdown", lambda dtype: 0.4)
    assert slow_products(torch.bfloat16) is None


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="what oneDNN may use is of x86 alone")
def test_a_processor_with_avx2_alone_is_recognized() -> None:
    script = """
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.cli.trainer import Trainer
Trainer(precision="bf16-mixed", accelerator="cpu", logger=False)
LanguageModel.load(LanguageModelSpec(dtype="bfloat16", device="cpu"))
LanguageModel.load(LanguageModelSpec(device="cpu"))
"""
    without = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    env = {**os.environ, **without, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=env, check=True, capture_output=True, text=True
    )
    assert ran.stderr.count("bfloat16 products take") == 2


PROGRAM = """
import resource, torch
from palinka.language_models.cpu import disable_malloc_trim
told = disable_malloc_trim()
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
