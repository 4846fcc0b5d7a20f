"""The commands on several devices: two processes of one machine."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMALL = [
    "--data.context_length=16", "--data.train_tokens=2048", "--data.validation_tokens=1024",
    "--data.batch_size=256", "--model.autoencoder.k=16", "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
]  # fmt: skip
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.mark.slow
def test_a_fit_starts_the_other_process_itself_and_ends_with_one_table(workspace: Path) -> None:
    command = [sys.executable, "-m", "palinka", "fit", *SMALL, *TWO]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("variance unexplained (FVU)") == 1
    assert ran.stdout.splitlines()[-1].endswith("tensorboard --logdir lightning_logs")
    assert len(list((workspace / "lightning_logs").iterdir())) == 1


@pytest.mark.slow
def test_analyses_after_a_fit_run_once_while_nobody_waits(
    workspace: Path, repository: Path, commands: Any
) -> None:
    config = repository / "configs" / "passage.yaml"
    arguments = [f"--config={config}", "--trainer.max_epochs=4", "--trainer.accelerator=cpu"]
    assert commands.run_on(2, workspace, ["fit", *arguments, *TWO]) == [0, 0]
    output = (workspace / "output.txt").read_text()
    assert output.count("results in") == 1
    (run,) = (workspace / "lightning_logs").iterdir()
    found = {path.name for path in (run / "analyses").iterdir()}
    assert {"statistics", "geography", "training"} <= found


@pytest.mark.slow
def test_latents_divided_over_two_devices_are_measured_on_one(
    workspace: Path, repository: Path, commands: Any
) -> None:
    config = f"--config={repository / 'configs' / 'sharded.yaml'}"
    small = ["--data.train_tokens=8192", "--data.validation_tokens=2048", "--trainer.max_epochs=1"]
    assert commands.run_on(2, workspace, ["fit", config, *small]) == [0, 0]
    last = "--ckpt_path=lightning_logs/version_0/checkpoints/last.ckpt"
    alone = ["--trainer.devices=1", "--trainer.strategy=auto"]
    assert commands.run(workspace, ["validate", config, *small, *alone, last]) == 0
    fitted, measured = (
        next(event.value for event in EventAccumulator(str(folder)).Reload().Scalars("val/fvu"))
        for folder in sorted((workspace / "lightning_logs").iterdir())
    )
    assert measured == pytest.approx(fitted, rel=1e-5)
