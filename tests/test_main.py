import os
import subprocess
import sys
from collections.abc import Callable

import pytest

import palinka
from palinka.__main__ import COMMANDS, main
from palinka.errors import is_quiet


def python(*arguments: str) -> str:
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return ran.stdout


def test_importing_the_package_loads_nothing_heavy_and_names_everything() -> None:
    script = "import palinka, sys; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert python("-c", script).strip() == "False"
    script = "import palinka.cli.analyze, sys; print({'lightning', 'scipy.stats'} & {*sys.modules})"
    assert python("-c", script).strip() == "set()"  # seconds each
    for name in palinka.__all__:
        assert getattr(palinka, name) is not None
    assert set(palinka.__all__) <= set(dir(palinka))
    with pytest.raises(AttributeError, match="no attribute 'Autoencoders'"):
        palinka.Autoencoders  # noqa: B018


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert python("-m", "palinka", "--version") == f"palinka {palinka.__version__}\n"
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 24 <= len(lines) <= 40
    assert max(map(len, lines)) <= 80
    for command in COMMANDS:
        assert any(line.strip().startswith(command) for line in lines)


def test_a_mistyped_command_or_option_is_answered_with_the_nearest(
    refused: Callable[..., str],
) -> None:
    assert refused("havrest") == "there is no command 'havrest' (did you mean 'harvest'?)"
    assert refused("train") == "there is no command 'train' (did you mean 'fit'?)"
    assert refused("--quit") == "there is no option '--quit' (did you mean '--quiet'?)"


@pytest.mark.parametrize("tidied_up", [False, True])
def test_ctrl_c_ends_as_shells_expect_and_another_exit_stays(
    tidied_up: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str, arguments: list[str]) -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if tidied_up:  # as by Lightning
                sys.exit(1)
            raise

    monkeypatch.setattr("palinka.cli.commands.run", interrupted)
    assert main(["cache", "list"]) == 130
    assert capsys.readouterr().err == "palinka: interrupted\n"
    monkeypatch.setattr("palinka.cli.commands.run", lambda name, arguments: sys.exit(3))
    with pytest.raises(SystemExit, match="3"):
        main(["cache", "list"])


def test_quiet_may_stand_anywhere_and_holds_for_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def run(name: str, arguments: list[str]) -> int:
        seen.append((name, arguments, is_quiet()))
        return 0

    monkeypatch.delenv("PALINKA_QUIET", raising=False)
    monkeypatch.setattr("palinka.cli.commands.run", run)
    for line in (["--quiet", "cache", "list"], ["cache", "list", "--quiet"]):
        assert main(line) == 0
    assert seen == [("cache list", [], True)] * 2
    assert not is_quiet()


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "palinka", "--help"]
    finished = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (finished.returncode, finished.stderr) == (141, "")
