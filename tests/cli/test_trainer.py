import warnings

import pytest
import torch

from palinka.cli import trainer
from palinka.cli.trainer import Trainer
from palinka.errors import InputError


@pytest.mark.parametrize("precision", ["transformer-engine", "transformer-engine-float16"])
def test_precisions_of_the_transformer_engine_are_refused(precision: str) -> None:
    with pytest.raises(InputError, match=f"precision {precision} replaces layers"):
        Trainer(precision=precision, accelerator="cpu")


@pytest.mark.parametrize(
    ("precision", "tried"),
    [("bf16-mixed", torch.bfloat16), ("bf16-true", torch.bfloat16), ("16-true", torch.float16)],
)
def test_slow_precisions_are_warned_of(
    precision: str, tried: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "slow_products", lambda dtype: f"{dtype} is slow")
    with pytest.warns(UserWarning, match=f"{tried} is slow"):
        Trainer(precision=precision, accelerator="cpu", logger=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer(accelerator="cpu", logger=False)
