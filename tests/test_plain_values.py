from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import pytest

from palinka.errors import admits_null, type_mismatch


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (True, bool, None),
        (1, bool, "true or false"),
        ("no", bool, "true or false"),
        (1, int, None),
        (True, int, "a whole number"),
        (1.0, int, "a whole number"),
        (1, float, None),
        (float("nan"), float, None),
        (True, float, "a number"),
        ("1", float, "a number"),
        ("x", str, None),
        (None, int | None, None),
        ("x", int | None, "a whole number or null"),
        ({}, int | str, "a whole number or text"),
        ("a", Literal["a", 1], None),
        (True, Literal["a", 1], "'a' or 1"),
        ("c", float | Literal["a", "b"], "a number or 'a' or 'b'"),
        ("anything", Any, None),
        ("anything", TypeVar("T"), None),
        ("anything", Sequence[int], None),
        ("anything", int | Sequence[int], None),
    ],
)  # fmt: skip
def test_what_is_expected_instead(value: object, hint: Any, expected: str | None) -> None:
    assert type_mismatch(value, hint) == expected


@pytest.mark.parametrize("hint", [None, Any, int | None, list[int] | None, object, TypeVar("T")])
def test_hints_that_admit_null(hint: Any) -> None:
    assert admits_null(hint)


@pytest.mark.parametrize("hint", [int, int | str, list[int], Callable[[int], int], Literal["a"]])
def test_hints_that_do_not(hint: Any) -> None:
    assert not admits_null(hint)
