import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from palinka.language_models import cpu


@pytest.mark.parametrize(
    ("vendor", "error", "chosen"),
    [
        ("AuthenticAMD", 4e-7, "medium"),
        ("AuthenticAMD", 3e-3, "highest"),  # rounded to bfloat16
        ("AuthenticAMD", float("nan"), "highest"),
        ("GenuineIntel", 1e-8, "highest"),
        (None, 3e-7, "highest"),
    ],
)
def test_onednn_is_chosen_where_mkl_is_slow_and_it_is_as_exact(
    vendor: str | None, error: float, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "PROCESSOR", tmp_path / "cpuinfo")
    if vendor is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id : {vendor}\n")
    monkeypatch.setattr(cpu, "try_precisions", lambda: {"highest": 3e-7, "medium": error})
    precision, reason = cpu.select_matmul_backend()
    assert precision == chosen
    assert ("oneDNN" if chosen == "medium" else "torch") in reason.split(";")[0]
    assert f"{error:.1e}" in reason
    assert "3.0e-07" in reason


def test_a_trial_is_reproducible_and_changes_nothing() -> None:
    before, errors = torch.get_float32_matmul_precision(), cpu.try_precisions()
    assert torch.get_float32_matmul_precision() == before
    assert 1e-9 < errors["highest"] < 1e-5
    assert cpu.try_precisions() == errors


def test_slow_products_are_named_with_their_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "slowdown", lambda dtype: 81.7)
    assert "bfloat16 products take 82 times as long" in str(cpu.slow_products(torch.bfloat16))
    monkeypatch.setattr(cpu, "slowdown", lambda dtype: 0.4)
    assert cpu.slow_products(torch.bfloat16) is None


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's instruction sets are x86's")
def test_a_processor_with_avx2_alone_is_recognized() -> None:
    program = """
from palinka.language_models import LanguageModel, LanguageModelSpec
from palinka.cli.trainer import Trainer
Trainer(precision="bf16-mixed", accelerator="cpu", logger=False)
LanguageModel.load(LanguageModelSpec(dtype="bfloat16", device="cpu"))
LanguageModel.load(LanguageModelSpec(device="cpu"))
"""
    ran = run(program, ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")
    assert ran.stderr.count("bfloat16 products take") == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_freed_memory_is_used_again() -> None:
    program = """
import resource, torch
from palinka.language_models.cpu import disable_malloc_trim
accepted = disable_malloc_trim()
for _ in range(12):  # aligned pieces do not fit at once where the last one was
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(1 << 24)
print(accepted, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    accepted, faults = run(program).stdout.split()
    if accepted == "False":
        pytest.skip("another allocator than glibc's")
    assert int(faults) < 3 * 16_384  # of five times the 16,384 pages of 64 MiB
