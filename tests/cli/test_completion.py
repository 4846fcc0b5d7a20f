"""Completion scripts, in the shells that are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from palinka.__main__ import main

EXPECTED = {
    "ca": "cache",
    "cache re": "remove",
    "cache remove --inc": "--incomplete",
    "fit --data.dtype bf": "bfloat16",
    "fit --data.center t": "true",
    "fit --data.seed 3 --model.autoencoder KS": "KSparseAutoencoder",
    "fit --model.autoencoder.latent": "--model.autoencoder.latent_dim",
    "atlas s": "serve",
    "doctor --qu": "--quiet",
}


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out, encoding="utf-8")
    program = (
        f'source "{tmp_path / "script"}"; for line; do COMP_WORDS=(palinka $line);'
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _shtab_palinka;"
        'echo "${COMPREPLY[@]}"; done'
    )
    command = ["bash", "--norc", "-c", program, "bash", *EXPECTED]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert dict(zip(EXPECTED, ran.stdout.splitlines(), strict=True)) == EXPECTED


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_their_script(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out, encoding="utf-8")
    ran = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
