"""The commands on several devices: two processes of one machine."""

import os
import subprocess
import sys
from pathlib import Path

from palinka.__main__ import main

SMALL = [
    "--data.context_length=16",
    "--data.train_tokens=2048",
    "--data.validation_tokens=1024",
    "--data.batch_size=256",
    "--model.autoencoder.k=16",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
]


def on_two_devices(command: str) -> str:
    """What a command prints, in a process of its own, since it starts another like itself."""
    options = ["--data.cache_dir=two", "--trainer.devices=2", "--trainer.strategy=ddp"]
    ran = subprocess.run(
        [sys.executable, "-m", "palinka", command, *SMALL, *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_two_devices_write_the_cache_of_one_and_end_a_fit_with_one_table(workspace: Path) -> None:
    assert main(["harvest", *SMALL, "--data.cache_dir=one"]) == 0
    on_two_devices("harvest")
    assert content(workspace / "one") == content(workspace / "two")

    printed = on_two_devices("fit")
    assert printed.count("fraction of variance unexplained") == 1
    assert printed.splitlines()[-1].endswith("tensorboard --logdir lightning_logs")
    assert len(list((workspace / "lightning_logs").iterdir())) == 1
