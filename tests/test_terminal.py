import io
import os
import subprocess
import sys

import pytest

from palinka.errors import colored, is_quiet, progress, suppress_progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "PALINKA_QUIET", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_only_a_terminal_gets_color(monkeypatch: pytest.MonkeyPatch) -> None:
    assert colored("error:", "red", Terminal()) == "\x1b[31merror:\x1b[0m"
    assert colored("error:", "red", io.StringIO()) == "error:"
    monkeypatch.setenv("TERM", "dumb")
    assert colored("error:", "red", Terminal()) == "error:"


@pytest.mark.parametrize(("value", "shown"), [("1", "x"), ("0", "x"), ("", "\x1b[1mx\x1b[0m")])
def test_no_color_of_any_value_but_the_empty_one(
    value: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    assert colored("x", "bold", Terminal()) == shown


def test_quiet_ends_with_its_block_and_reaches_what_is_started_in_it() -> None:
    with suppress_progress(wanted=True):
        assert is_quiet()
        assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert not is_quiet()
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    with suppress_progress(wanted=False):
        assert not is_quiet()


def test_the_environment_may_ask_for_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALINKA_QUIET", "0")
    assert not is_quiet()
    monkeypatch.setenv("PALINKA_QUIET", "1")
    with suppress_progress(wanted=False):
        assert is_quiet()


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_draws_no_bars(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("palinka.errors.DELAY_SECONDS", 0.0)
    with suppress_progress(quiet), progress("going on", 2, "steps") as bar:
        bar.update(2)
        assert list(track([1, 2], "through")) == [1, 2]
    assert (capsys.readouterr().err == "") == quiet


def test_quiet_holds_for_the_libraries_that_are_imported_in_it() -> None:
    script = (
        "from palinka.errors import suppress_progress\n"
        "with suppress_progress(wanted=True):\n"
        "    from transformers.utils import logging\n"
        "print(logging.is_progress_bar_enabled())"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
