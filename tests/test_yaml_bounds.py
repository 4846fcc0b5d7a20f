import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from palinka.errors import DEEPEST, UnboundedError, check_bounds

MOST = 1000


def laughs(width: int, depth: int) -> str:
    lines = ["b0: &b0 word"]
    for level in range(1, depth + 1):
        lines.append(f"b{level}: &b{level} [{', '.join([f'*b{level - 1}'] * width)}]")
    return "\n".join(lines).ljust(2 * DEEPEST)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (laughs(10, 9), "stands for more than 1000 values"),
        (laughs(2, 40), "stands for more than 1000 values"),
        ("a: &a [" + "x, " * 100 + "*a]", r"the alias \*a stands inside of itself"),
        ("[" * 50_000, "nested more than 40 levels deep"),
        ("- " * 50_000, "nested more than 40 levels deep"),
        ("{a: " * 50_000 + "}" * 50_000, "nested more than 40 levels deep"),
        (f"a: '{'[' * 50_000}'", "nested more than 40 levels deep"),
        (f"a: {list(range(2000))}", "stands for more than 1000 values"),
    ],
)
def test_documents_beyond_the_bounds(text: str, problem: str) -> None:
    with pytest.raises(UnboundedError, match=problem):
        check_bounds(text, MOST)


def test_a_list_may_be_bounded_by_itself() -> None:
    text = f"a: {[0] * 40}\nb: {[[1] * 20] * 2}".ljust(2 * DEEPEST)
    check_bounds(text, MOST, longest=40)
    with pytest.raises(UnboundedError, match="a list of more than 39 values"):
        check_bounds(text, MOST, longest=39)


@pytest.mark.parametrize(
    "text",
    [
        laughs(2, 7),
        "[" * 39 + "]" * 39 + " " * 99,
        "a: 'b" * 99,
        "*x" + " " * 200,
        "\x07" * 200,
    ],
)
def test_other_documents_are_left_to_their_reader(text: str) -> None:
    check_bounds(text, MOST)


VALUES = st.recursive(
    st.integers(), lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(), inner)
)


def size(value: object) -> int:
    if isinstance(value, dict):
        return 1 + sum(size(key) + size(entry) for key, entry in value.items())
    return 1 + sum(map(size, value)) if isinstance(value, list) else 1


@given(VALUES)
def test_values_are_counted_as_they_stand(value: object) -> None:
    text = yaml.safe_dump(value).ljust(2 * DEEPEST)
    if isinstance(value, int):
        return
    check_bounds(text, size(value))
    if size(value) > 1:
        with pytest.raises(UnboundedError):
            check_bounds(text, size(value) - 1)
