"""Completion scripts, in the shells that are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from palinka.__main__ import main
from palinka.cli.completion import script


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("scripts") / "bash"
    file.write_text(script("bash"), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ca", "cache"),
        ("cache re", "remove"),
        ("cache remove --inc", "--incomplete"),
        ("completion z", "zsh"),
        ("fit --data.dt", "--data.dtype"),
        ("fit --data.dtype bf", "bfloat16"),
        ("fit --data.center t", "true"),
        ("fit --data.seed 3 --model.autoencoder KS", "KSparseAutoencoder"),
        ("fit --model.autoencoder.latent", "--model.autoencoder.latent_dim"),
        ("atlas s", "serve"),
        ("atlas serve --po", "--port"),
        ("doctor --qu", "--quiet"),
    ],
)
def test_bash_completes(typed: str, expected: str, bash: Path) -> None:
    program = (
        f'source "{bash}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_palinka;'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    words = ["palinka", *typed.split(" ")]
    command = ["bash", "--norc", "-c", program, "bash", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == [expected]


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


def test_an_unknown_shell_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err
