import io
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palinka.errors import (
    InputError,
    atomic_write,
    checks_strings,
    colored,
    counted,
    did_you_mean,
    escape_control_chars,
    expanded,
    is_quiet,
    progress,
    shell_path,
    suppress_progress,
    track,
    type_mismatch,
)


def test_one_thing_is_singular() -> None:
    numbers = [counted(n, "dead latents") for n in (0, 1, 1000)]
    assert numbers == ["0 dead latents", "1 dead latent", "1,000 dead latents"]


def test_a_suggestion_is_the_nearest_name_or_a_short_list() -> None:
    assert did_you_mean("teid", ["tied", "k"]) == " (did you mean 'tied'?)"
    assert did_you_mean("xyz", ["fill", "empty", "fill"]) == "; choose from empty, fill"
    assert did_you_mean("xyz", ["fill", "empty"], most=1) == did_you_mean("xyz", []) == ""


def test_a_message_is_one_line_of_which_both_ends_are_shown() -> None:
    assert str(InputError("file a\nb\x1b[31m: missing")) == r"file a\nb\x1b[31m: missing"
    line = str(InputError("begins" + "x" * 10**6 + "ends"))
    assert (line[:6], line[-4:], len(line) < 21_000) == ("begins", "ends", True)


@pytest.mark.parametrize("killed", [False, True])
def test_a_file_changes_only_once_its_new_version_is_complete(killed: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old and longer")
    child = os.fork()
    if child == 0:
        try:
            with atomic_write(path) as file:
                file.write(b"torn " * 1000)
                file.flush()
                if killed:
                    signal.raise_signal(signal.SIGKILL)
                raise KeyboardInterrupt
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert path.read_bytes() == b"old and longer"
    assert killed or [found.name for found in tmp_path.iterdir()] == ["file"]
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old and longer"
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Straße, 日本, שלום, 😀\u00a0!", "Straße, 日本, שלום, 😀\u00a0!"),
        ("one\r\ntwo\u2028three", r"one\r\ntwo\u2028three"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\ud83d\x00\x9b", r"\ud83d\x00\x9b"),
        ("👩\u200d🔬 \u0645\u06cc\u200c\u062e", "👩\u200d🔬 \u0645\u06cc\u200c\u062e"),
        ("\u200da\u200db\u200d", r"\u200da\u200db\u200d"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, expected: str) -> None:
    assert escape_control_chars(text) == expected


@given(st.text(st.characters(exclude_categories=())))
def test_the_result_is_one_line_that_stays_as_it_is(text: str) -> None:
    shown = escape_control_chars(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert escape_control_chars(shown) == shown


def test_a_folder_is_typed_relative_and_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell_path(tmp_path / "my runs") == "'my runs'"
    assert shell_path(tmp_path / "\x1b[2J") == r"'\x1b[2J'"


def test_variables_and_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTS", "/some/texts")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert expanded("$TEXTS/books") == Path("/some/texts/books")
    assert expanded("~/books") == Path("/home/someone/books")
    assert expanded(Path("books")) == Path("books")
    with pytest.raises(InputError, match="variable NOWHERE is not set"):
        expanded("$NOWHERE/books")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (True, bool, None),
        ("no", bool, "true or false"),
        (True, int, "a whole number"),
        (1, float, None),
        ("1", float, "a number"),
        ("x", int | None, "a whole number or null"),
        ({}, int | str, "a whole number or text"),
        (True, Literal["a", 1], "'a' or 1"),
        ("anything", TypeVar("T"), None),
        ("anything", int | Sequence[int], None),
        (5, Sequence[int], "a list"),
        ("him_her", dict[str, str] | None, "a mapping or null"),
    ],
)
def test_what_is_expected_instead(value: object, hint: Any, expected: str | None) -> None:
    assert type_mismatch(value, hint) == expected


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "PALINKA_QUIET", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_strings_are_checked_where_they_are_given() -> None:
    @checks_strings
    def half(x: float, rounded: Literal["up", "down"] = "up", *, names: Sequence[str] = ()) -> str:
        return f"{x} {rounded} {names}"

    assert half(1.0, "down", names="ab") == "1.0 down ab"
    for arguments, options, message in (
        ((1.0, "upp"), {}, "rounded is 'upp'; expected 'up' or 'down'"),
        ((), {"x": "1"}, "x is '1'; expected a number"),
    ):
        with pytest.raises(InputError, match=message):
            half(*arguments, **options)
    with pytest.raises(TypeError, match=r"half\(\) got an unexpected keyword argument 'round'"):
        half(1.0, round="up")  # type: ignore[call-arg]


def test_only_a_terminal_gets_color(monkeypatch: pytest.MonkeyPatch) -> None:
    assert colored("error:", "red", Terminal()) == "\x1b[31merror:\x1b[0m"
    assert colored("error:", "red", io.StringIO()) == "error:"
    for value, shown in (("1", "x"), ("0", "x"), ("", "\x1b[1mx\x1b[0m")):
        monkeypatch.setenv("NO_COLOR", value)
        assert colored("x", "bold", Terminal()) == shown
    monkeypatch.setenv("TERM", "dumb")
    assert colored("error:", "red", Terminal()) == "error:"


def test_quiet_ends_with_its_block_and_may_be_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with suppress_progress(wanted=True):
        assert is_quiet()
        assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == os.environ["TQDM_DISABLE"] == "1"
    assert not is_quiet()
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
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
