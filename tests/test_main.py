import subprocess
import sys

import pytest

from palinka import __version__
from palinka.__main__ import COMMANDS, main


def modules_after(*arguments: str) -> set[str]:
    """The modules that a command has imported by the time it ends."""
    script = (
        "import sys; from palinka.__main__ import main; status = main(sys.argv[1:]);"
        "print('\\n'.join(sys.modules)); sys.exit(status)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    return {finished.stdout.splitlines()[0], *finished.stdout.splitlines()}


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_version_and_help_leave_torch_alone(argument: str) -> None:
    modules = modules_after(argument)
    assert "palinka" in modules
    assert not modules & {"torch", "lightning", "numpy", "transformers"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import palinka, sys; print('torch' in sys.modules or 'numpy' in sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == "False"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"palinka {__version__}\n"


def test_help_names_every_command_and_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    for command in COMMANDS:
        assert any(line.strip().startswith(command) for line in lines)


def test_a_mistyped_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["havrest"]) == 2
    assert capsys.readouterr().err == (
        "palinka: error: there is no command 'havrest': did you mean 'harvest'?\n"
    )


def test_the_module_runs_like_the_console_script() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "palinka", "--version"], capture_output=True, text=True, check=True
    )
    assert finished.stdout == f"palinka {__version__}\n"
