"""Two processes must judge an autoencoder as one does."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMALL = [
    "--data.context_length=64",
    "--data.train_tokens=2048",
    "--data.validation_tokens=1920",
    "--data.batch_size=256",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
# Thirty contexts in batches of seven: unequal shares.
JUDGED = ["--trainer.callbacks+=LanguageModelMetrics", "--trainer.callbacks.batch_size=7"]


MEASURED = ("ce_", "loss_recovered", "kl", "fvu")


def judged(folder: Path) -> dict[str, float]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        name: events.Scalars(name)[-1].value
        for name in events.Tags()["scalars"]
        if name.startswith(("val/", "val_interval/")) and any(part in name for part in MEASURED)
    }


@pytest.mark.slow
def test_two_processes_find_what_one_finds(workspace: Path, commands: Any) -> None:
    assert commands.run_on(2, workspace, ["fit", *SMALL, *TWO, *JUDGED]) == [0, 0]
    last = "--ckpt_path=lightning_logs/version_0/checkpoints/last.ckpt"
    assert commands.run(workspace, ["validate", *SMALL, *JUDGED, last]) == 0
    assert commands.run_on(2, workspace, ["validate", *SMALL, *TWO, *JUDGED, last]) == [0, 0]
    fitted, one, two = (judged(workspace / "lightning_logs" / f"version_{n}") for n in range(3))
    assert {"val/kl", "val_interval/kl/low", "val/loss_recovered_mean"} <= set(one)
    assert two == pytest.approx(one, rel=1e-6)
    assert fitted == pytest.approx(one, rel=1e-6)
