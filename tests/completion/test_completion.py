"""The scripts, in the shells that are installed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from palinka.__main__ import main
from palinka.cli import commands
from palinka.cli.completion import SCRIPTS, Line, grammar


@pytest.fixture(scope="module")
def lines() -> dict[str, Line]:
    return grammar(commands.parsers())


@pytest.fixture(scope="module")
def scripts(lines: dict[str, Line], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    does = {name: command.does for name, command in commands.COMMANDS.items()}
    for shell, script in SCRIPTS.items():
        (folder / shell).write_text(script(does, lines), encoding="utf-8")
    return folder


TYPED = [
    ("ca", {"cache"}),
    ("cache re", {"remove"}),
    ("cache remove --inc", {"--incomplete"}),
    ("completion z", {"zsh"}),
    ("fit --data.dt", {"--data.dtype"}),
    ("fit --data.dtype bf", {"bfloat16"}),
    ("fit --data.center t", {"true"}),
    ("fit --data.seed 3 --model.autoencoder KS", {"KSparseAutoencoder"}),
    ("fit --model.autoencoder.latent", {"--model.autoencoder.latent_dim"}),
    ("atlas serve --po", {"--port"}),
    ("atlas s", {"serve"}),
    ("doctor --qu", {"--quiet"}),
]


def completed_by_bash(script: Path, typed: str) -> set[str]:
    words = ["palinka", *typed.split(" ")]
    program = (
        f'source "{script}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _palinka;'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return lines_of(["bash", "--norc", "-c", program, "bash", *words])


def completed_by_fish(script: Path, typed: str) -> set[str]:
    program = f'source "{script}"; complete -C "palinka {typed}"'
    return {line.partition("\t")[0] for line in lines_of(["fish", "--no-config", "-c", program])}


def lines_of(command: list[str]) -> set[str]:
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stderr == ""
    return set(ran.stdout.split("\n")) - {""}


@pytest.mark.parametrize(("typed", "expected"), TYPED)
def test_bash_completes(typed: str, expected: set[str], scripts: Path) -> None:
    assert completed_by_bash(scripts / "bash", typed) == expected


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
@pytest.mark.parametrize(("typed", "expected"), TYPED[::3])
def test_fish_completes(typed: str, expected: set[str], scripts: Path) -> None:
    assert completed_by_fish(scripts / "fish", typed) == expected


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_takes_the_script(scripts: Path) -> None:
    program = (
        "autoload -U compinit; compinit -D -u; source $1;"
        "print -r -- $_comps[palinka]; whence -w _palinka"
    )
    command = ["zsh", "-fc", program, "zsh", str(scripts / "zsh")]
    assert lines_of(command) == {"_palinka", "_palinka: function"}


def test_a_value_of_equals_is_completed_as_one_of_its_own(scripts: Path) -> None:
    typed = "fit --data.dtype = bf"
    assert completed_by_bash(scripts / "bash", typed) == {"bfloat16"}
    assert completed_by_bash(scripts / "bash", "fit --data.dtype =") == {
        "float16",
        "bfloat16",
        "float32",
    }


def test_what_takes_a_file_is_left_to_the_shell(scripts: Path) -> None:
    assert completed_by_bash(scripts / "bash", "fit --config qu") == set()


def test_descriptions_hold_nothing_that_a_shell_would_obey(lines: dict[str, Line]) -> None:
    texts = [option.does for line in lines.values() for option in line.options]
    assert len(texts) > 500
    assert not set("".join(texts)) & set("`$\"'\\[]:;\n")


def test_the_command_prints_the_script(
    lines: dict[str, Line], scripts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "fish"]) == 0
    assert capsys.readouterr().out == (scripts / "fish").read_text(encoding="utf-8")
    assert main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err
