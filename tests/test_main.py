import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from palinka import __version__
from palinka.__main__ import main
from palinka.cli.commands import COMMANDS
from palinka.errors import is_quiet


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


@pytest.mark.parametrize("argument", ["--version", "--help", "--quiet"])
def test_version_and_help_leave_torch_alone(argument: str) -> None:
    modules = modules_after(argument)
    assert "palinka" in modules
    assert not modules & {"torch", "lightning", "numpy", "transformers", "tqdm"}


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
    assert 24 <= len(lines) <= 40
    assert max(map(len, lines)) <= 80
    for command in COMMANDS:
        assert any(line.strip().startswith(command) for line in lines)


def test_a_mistyped_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["havrest"]) == 2
    assert capsys.readouterr().err == (
        "palinka: error: there is no command 'havrest'; did you mean 'harvest'?\n"
    )


@pytest.mark.parametrize(("given", "meant"), [("--verson", "--version"), ("--quit", "--quiet")])
def test_a_mistyped_option_too(given: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([given]) == 2
    assert f"there is no option '{given}'; did you mean '{meant}'?" in capsys.readouterr().err


def tidied_up(name: str, arguments: list[str]) -> int:
    """Ends as Lightning does after Ctrl-C."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def interrupted(name: str, arguments: list[str]) -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", [tidied_up, interrupted])
def test_ctrl_c_ends_as_shells_expect(
    command: Callable[[str, list[str]], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("palinka.cli.commands.run", command)
    assert main(["cache", "list"]) == 130
    assert capsys.readouterr().err == "palinka: interrupted\n"


def test_an_exit_of_another_kind_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palinka.cli.commands.run", lambda name, arguments: sys.exit(3))
    with pytest.raises(SystemExit) as ended:
        main(["cache", "list"])
    assert ended.value.code == 3


@pytest.mark.parametrize("line", [["--quiet", "cache", "list"], ["cache", "list", "--quiet"]])
def test_quiet_may_stand_anywhere_and_holds_for_the_command(
    line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PALINKA_QUIET", raising=False)
    seen = []

    def run(name: str, arguments: list[str]) -> int:
        seen.append((name, arguments, is_quiet()))
        return 0

    monkeypatch.setattr("palinka.cli.commands.run", run)
    assert main(line) == 0
    assert seen == [("cache list", [], True)]
    assert not is_quiet()


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    finished = subprocess.run(
        [sys.executable, "-m", "palinka", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert finished.returncode == 141
    assert finished.stderr == ""


def test_the_module_runs_like_the_console_script() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "palinka", "--version"], capture_output=True, text=True, check=True
    )
    assert finished.stdout == f"palinka {__version__}\n"
