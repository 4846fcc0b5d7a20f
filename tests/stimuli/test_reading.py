"""The strict reader, on a dataclass of every type that it knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from palinka.analyses.stimuli.load import parse_mapping, read_fields
from palinka.errors import InputError


@dataclass(frozen=True)
class Inner:
    strings: Sequence[str]
    flag: bool = False


@dataclass(frozen=True)
class Outer:
    text: str
    count: int
    inner: Mapping[str, Inner]
    choice: Literal["last", "mean"] = "last"
    limit: int | None = None
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    hidden: str = field(default="", kw_only=True)


def read(content: str) -> dict[str, Any]:
    return read_fields(parse_mapping(content), Outer, also=("kind",))


VALID = "text: a\ncount: 3\ninner: {x: {strings: [',', é], flag: true}}\n"


def test_every_type() -> None:
    more = "choice: mean\nlimit: 250\nlists: {v: ['no', '3.5'], n: [x]}\nkind: any"
    assert read(VALID + more) == {
        "text": "a",
        "count": 3,
        "inner": {"x": Inner((",", "é"), True)},
        "choice": "mean",
        "limit": 250,
        "lists": {"v": ("no", "3.5"), "n": ("x",)},
    }


def test_anchors_are_followed() -> None:
    content = "text: &t abc\ncount: 1\ninner: {x: {strings: [*t]}}"
    assert read(content)["inner"]["x"].strings == ("abc",)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "empty; expected `kind:`"),
        ("- a\n- b", "the file (line 1): a list; expected keys"),
        ("just text", "the file (line 1): 'just text'; expected keys"),
        ("a: [", "not YAML: "),
        ("a: \x07", "not YAML: "),
        ("[" * 1_000, "nested more than 40 levels deep"),
        ("a: &a [*a]" + " " * 100, "the alias *a stands inside of itself"),
        ("a: 1\n---\nb: 2", "not YAML: "),
        ("--- !!int\na: 1", "the file (line 1): keys with values tagged 'tag:yaml.org,2002:int'"),
        (VALID.replace("[',', é]", "!!set [a]"), "a list tagged 'tag:yaml.org,2002:set'"),
        ("a: 1\na: 2", "the file (line 2): the key 'a' comes twice"),
        ("no: 1", "a key (line 1): YAML reads no as a truth value; expected text: put it in "),
        ("3: 1", "a key (line 1): YAML reads 3 as a number"),
        ("? [a]\n: 1", "a key (line 1): a list; expected text"),
        ("count: 1\ninner: {x: {strings: [a]}}", "text: missing"),
        (VALID + "lmit: 3", "lmit (line 4): there is no such key; did you mean 'limit'?"),
        (VALID + "hidden: x", "hidden (line 4): there is no such key; choose from kind, text, "),
        (VALID + "<<: {limit: 3}", "a key (line 4): the tag 'tag:yaml.org,2002:merge'"),
        (VALID.replace("flag", "flagg"), "inner.x.flagg (line 3): there is no such key; did you"),
        (VALID.replace("text: a", "text: no"), "text (line 1): YAML reads no as a truth value"),
        (VALID.replace("text: a", "text: 3.5"), "text (line 1): YAML reads 3.5 as a number"),
        (VALID.replace("text: a", "text: 2020-01-01"), "YAML reads 2020-01-01 as a date"),
        (VALID.replace("text: a", "text: null"), "YAML reads null as nothing"),
        (VALID.replace("text: a", "text: ="), "text (line 1): the tag "),
        (VALID.replace("text: a", "text:"), "text (line 1): empty; expected text"),
        (VALID.replace("text: a", "text: ' '"), "text (line 1): empty; expected text"),
        (VALID.replace("text: a", "text: [a]"), "text (line 1): a list; expected text"),
        (VALID.replace("text: a", "text: {a: b}"), "text (line 1): keys with values; expected"),
        (VALID.replace("text: a", "text: !!python/name:os.system a"), "the tag "),
        (VALID.replace("3", "many"), "count (line 2): 'many'; expected a whole number"),
        (VALID.replace("3", "3.5"), "count (line 2): '3.5'; expected a whole number"),
        (VALID.replace("3", "true"), "count (line 2): 'true'; expected a whole number"),
        (VALID.replace("3", "[3]"), "count (line 2): a list; expected a whole number"),
        (VALID.replace("3", "!!int x"), "count (line 2): 'x'; expected a whole number"),
        (VALID.replace("3", "!!int '{a: b}'"), "count (line 2): '{a: b}'; expected a whole"),
        (VALID.replace("3", "!!int '!!python/name:os.abort'"), "expected a whole number"),
        (VALID.replace("3", "9" * 5_000), "…'; expected a whole number"),
        (VALID.replace("3", ""), "count (line 2): empty; expected a whole number"),
        (VALID.replace("true", "'true'"), "inner.x.flag (line 3): 'true'; expected true or false"),
        (VALID.replace("[',', é]", "é"), "inner.x.strings (line 3): 'é'; expected a list"),
        (VALID.replace("[',', é]", "[]"), "inner.x.strings (line 3): empty; expected at least"),
        (VALID.replace("[',', é]", "[a, yes]"), "inner.x.strings[1] (line 3): YAML reads yes as"),
        (VALID.replace("{strings", "[{strings").replace("}}", "}]}"), "inner.x (line 3): a list"),
        (VALID + "lists: {}", "lists (line 4): empty; expected at least one entry"),
        (VALID + "lists: {v: {a: b}}", "lists.v (line 4): keys with values; expected a list"),
        (VALID + "choice: meen", "choice (line 4): 'meen'; did you mean 'mean'?"),
        (VALID + "choice: x", "choice (line 4): 'x'; choose from last, mean"),
        (VALID + "limit: null", "limit (line 4): 'null'; expected a whole number"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(content: str, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        read(content)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_a_character_is_refused() -> None:
    # By the loader in C, where there is one.
    with pytest.raises(InputError, match=r"half of a character|invalid Unicode character"):
        read(VALID.replace("text: a", r'text: "\ud83d"'))


@pytest.mark.parametrize(
    "harmful",
    ["!!python/object/apply:os.abort []", "!!python/name:os.abort", "!!python/module:antigravity"],
)
def test_a_file_cannot_run_code(harmful: str) -> None:
    with pytest.raises(InputError, match=r"text \(line 1\): "):
        read(VALID.replace("text: a", f"text: {harmful}"))


TEXT = st.text(min_size=1, max_size=10).filter(
    lambda text: text.strip() != "" and not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
)


@given(TEXT, st.integers(0, 10**6), st.lists(TEXT, min_size=1, max_size=4))
def test_what_is_written_is_read(text: str, count: int, strings: list[str]) -> None:
    content = yaml.safe_dump({"text": text, "count": count, "inner": {text: {"strings": strings}}})
    assert read(content) == {
        "text": text,
        "count": count,
        "inner": {text: Inner(tuple(strings))},
    }


@given(st.text(max_size=60))
def test_no_text_runs_past_the_reader(content: str) -> None:
    with pytest.raises(InputError, match=r"\A.*\Z"):  # `text` and the others are missing at least
        read(content)
