import pytest
from hypothesis import given
from hypothesis import strategies as st

from palinka.analyses.stimuli import Carrier, Match, Occurrences, Passage, Words
from palinka.analyses.stimuli.base import join_problems, prepared_items, tokens_at
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec
from palinka.language_models.token_text import token_texts

LISTS = {"a": ["one", "two", "three"], "b": ["x", "y", "z"]}
MINI = LanguageModelSpec("mini").tokenizer()


def test_the_hash_is_that_of_the_content() -> None:
    # Findings name it: it may change with a new major version only.
    expected = "87f2b0afa2380c9c38637c5e858f869a2b5441a78dffbee080e4c89d08482db3"
    assert Words(LISTS).hash == expected
    tuples = {name: tuple(items) for name, items in LISTS.items()}
    assert Words(tuples, name="another file").hash == expected
    different = [
        Words(LISTS),
        Words({"b": LISTS["b"], "a": LISTS["a"]}),  # the order counts
        Words({"a": LISTS["a"], "c": LISTS["b"]}),
        Words({"a": LISTS["a"][::-1], "b": LISTS["b"]}),
        Carrier(LISTS, "The {word}"),
        Carrier(LISTS, "The {word}", pool="mean"),
        Occurrences("a, b", {"comma": Match([","])}, 1, 1),
        Occurrences("a, b", {"comma": Match([","], not_in_numbers=True)}, 1, 1),
    ]
    assert len({stimuli.hash for stimuli in different}) == len(different)


def test_refusals_name_the_stimuli() -> None:
    for name, shown in (("", "occurrences stimuli"), ("commas.yaml", r"commas\.yaml")):
        stimuli = Occurrences("a, b", {"comma": Match([","])}, 1, 1, name=name)
        with pytest.raises(InputError, match=rf"^{shown}: conditions\.comma: 1 matches"):
            stimuli.prepare(MINI)


def test_a_long_list_of_problems_is_cut() -> None:
    assert join_problems(["one", "two", "one"]) == "one; two"
    assert join_problems([str(index) for index in range(10)]).endswith("7; and 2 more")


@given(st.text(max_size=20), st.text(min_size=1, max_size=10), st.text(max_size=20))
def test_positions_are_the_tokens_with_a_byte_of_the_word(
    before: str, word: str, after: str
) -> None:
    word = "".join(word.split()) or "é"
    start, stop = len(before.encode()), len((before + word).encode())
    span = len(before), len(before + word)
    (ids,), (positions,), (texts,) = tokens_at(MINI, [before + word + after], [span])
    expected, byte = [], 0
    for position, index in enumerate(ids):
        end = byte + len(MINI.convert_ids_to_tokens(index))  # one letter per byte
        if byte < stop and end > start:
            expected.append(position)
        byte = end
    assert positions == expected
    assert texts == token_texts(MINI, [ids[position] for position in expected])


def test_a_tokenizer_without_places_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="Slow gives no positions"):
        Passage("a").prepare(Slow())  # type: ignore[arg-type]


def test_the_summary_shows_no_markup_and_conditions_in_the_order_of_their_first_item() -> None:
    words = ["**a**", "`b`", "<b>c</b>", "d\ne", "f``g", "sixth", "last"]
    conditions = ["x|y"] * 5 + ["a", "x|y"]
    prepared = prepared_items("words", MINI, [[1]] * 7, [[0]] * 7, words, conditions)
    assert prepared.summary().splitlines() == [
        "- `x|y`: 6 items, such as",
        "    - `**a**`",
        "    - `` `b` ``",
        "    - `<b>c</b>`",
        "    - `d↵e`",
        "    - ```f``g```",
        "- `a`: 1 items, such as",
        "    - `sixth`",
    ]
