from pathlib import Path

import pytest
import torch

from palinka import float32_products
from palinka.float32_products import choose_precision, choose_products, try_precisions


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
        chosen, reason = choose_products()
        assert chosen == precision
        assert library in reason.split(";")[0]
        assert "4.0e-07" in reason
        assert "3.0e-07" in reason
