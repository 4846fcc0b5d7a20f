from pathlib import Path

import pytest

from palinka.errors import InputError, expanded


def test_variables_and_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTS", "/some/texts")
    monkeypatch.setenv("HOME", "/home/someone")
    assert expanded("$TEXTS/books") == Path("/some/texts/books")
    assert expanded("${TEXTS}books") == Path("/some/textsbooks")
    assert expanded("~/books") == Path("/home/someone/books")
    assert expanded(Path("books")) == Path("books")


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(InputError, match="variable NOWHERE is not set"):
        expanded("$NOWHERE/books")


def test_names_that_no_file_can_have() -> None:
    with pytest.raises(InputError, match=r"a\\x00b: no file has a NUL in its name"):
        expanded("a\0b")
    with pytest.raises(InputError, match="there is no such user's home folder"):
        expanded("~nobody-of-this-name/x")
