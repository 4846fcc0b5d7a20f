from typing import Any, Literal

import pytest

from palinka.analyses.run import check_options
from palinka.errors import InputError


def analysis(
    x: list[float],
    bins: int = 3,
    share: float = 0.5,
    shrinkage: float | Literal["auto", "none"] = "auto",
    exact: bool = False,
    seed: int = 0,
) -> None:
    """An analysis with every kind of option."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bins": 3, "share": 1, "exact": True, "seed": 0},
        {"share": 0.25, "shrinkage": 1},
        {"shrinkage": "none"},
    ],
)
def test_options_that_fit(options: dict[str, Any]) -> None:
    check_options("analysis", analysis, options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bin": 3}, "analysis has no option 'bin'; did you mean 'bins'?"),
        ({"x": 3}, "analysis has no option 'x'"),
        ({"bins": 3.0}, "the option bins is 3.0; expected a whole number"),
        ({"bins": True}, "the option bins is True; expected a whole number"),
        ({"share": "half"}, "the option share is 'half'; expected a number"),
        ({"shrinkage": "some"}, "shrinkage is 'some'; expected a number or 'auto' or 'none'"),
        ({"exact": 1}, "the option exact is 1; expected true or false"),
        ({"seed": -1}, "the option seed is -1; expected at least 0"),
    ],
)
def test_options_that_do_not(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        check_options("analysis", analysis, options)
    assert expected in str(caught.value)
