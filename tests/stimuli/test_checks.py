import pytest

from palinka.analyses.stimuli.base import check_counts, check_trimmed, check_words, listed
from palinka.errors import InputError


def test_three_items_are_enough() -> None:
    conditions = {"verbs": ["go", "come", "sit down"]}
    check_words(conditions, "conditions")
    check_counts(conditions, "conditions", "sentence")


@pytest.mark.parametrize(
    ("conditions", "problem"),
    [
        ({}, "groups: empty"),
        ({"a": ["x", "y", "z"], "b": ["x", "y"]}, r"groups\.b: 2 words; .* at least 3"),
        ({"a": ["x"]}, r"groups\.a: 1 word; .* at least 3"),
        ({"a": ["x", "y", " z"]}, r"groups\.a\[2\]: ' z'"),
    ],
)
def test_too_few_or_blank(conditions: dict[str, list[str]], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        check_words(conditions, "groups")


@pytest.mark.parametrize("text", ["", " ", "\n", " a", "a\t", "\N{NO-BREAK SPACE}a"])
def test_white_space_around_text(text: str) -> None:
    with pytest.raises(InputError, match=r"key\[1\]"):
        check_trimmed(["fine", text], "key")


def test_a_long_list_of_problems_is_cut() -> None:
    assert listed(["one", "two"]) == "one; two"
    assert listed([str(index) for index in range(10)]).endswith("7; and 2 more")
