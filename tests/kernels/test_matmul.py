import pytest
import torch

from palinka.kernels.matmul import Trial, choose_precision, try_precisions


@pytest.mark.parametrize(
    ("medium", "chosen"),
    [
        (Trial(0.5, 4e-7), "medium"),
        (Trial(0.5, 3e-3), "highest"),  # rounded to bfloat16
        (Trial(0.5, float("nan")), "highest"),
        (Trial(0.95, 3e-7), "highest"),
        (Trial(2.0, 1e-8), "highest"),
    ],
)
def test_only_what_is_faster_and_as_exact_is_chosen(medium: Trial, chosen: str) -> None:
    assert choose_precision({"highest": Trial(1.0, 3e-7), "medium": medium}) == chosen


def test_a_trial_measures_both_and_changes_nothing() -> None:
    before = torch.get_float32_matmul_precision()
    trials = try_precisions()
    assert torch.get_float32_matmul_precision() == before
    assert 1e-9 < trials["highest"].error < 1e-5
    assert all(0 < trial.seconds < 60 for trial in trials.values())
