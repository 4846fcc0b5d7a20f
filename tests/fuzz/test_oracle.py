"""A judge that lets everything pass would find nothing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import oracle
from hostile.oracle import Verdict, judge

from palinka.errors import InputError


def refuse(line: str) -> Callable[[], None]:
    def call() -> None:
        error = InputError("")
        error.args = (line,)
        raise error

    return call


def fail(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def test_one_line_is_a_refusal_and_success_is_none(tmp_path: Path) -> None:
    assert judge(refuse("the file: what to do"), tmp_path).outcome == "refused"
    assert judge(lambda: None, tmp_path) == Verdict("accepted")


@pytest.mark.parametrize(
    "call",
    [
        refuse("two\nlines"),
        refuse(" "),
        refuse("\x1b[2J"),
        refuse("x" * 10**6),
        fail(ValueError("other")),
        fail(KeyError("other")),
        fail(AssertionError("another meaning")),
        fail(SystemExit(2)),
        fail(MemoryError()),
        lambda: bytearray(2**31),
        lambda: time.sleep(9),
    ],
)
def test_everything_else_is_a_finding(
    call: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "SECONDS", 0.3)
    verdict = judge(call, tmp_path)
    assert verdict.outcome == "finding"
    assert verdict.defect


def test_what_was_written_is_a_finding_wherever_it_may_not_be(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")

    def write() -> None:
        (tmp_path / "outside" / "secret").write_text("y")

    assert judge(write, tmp_path).defect == "wrote outside/secret"
    assert judge((tmp_path / "new").touch, tmp_path).defect == "wrote new"
    assert judge((tmp_path / "output").touch, tmp_path, ("output",)).outcome == "accepted"
    assert judge((tmp_path / "new").unlink, tmp_path).defect == "wrote new"
