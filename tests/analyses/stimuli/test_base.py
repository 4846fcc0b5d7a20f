import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli import Carrier, Match, Occurrences, Passage, Words
from palinka.analyses.stimuli.base import (
    check_counts,
    check_trimmed,
    check_words,
    first_token,
    join_problems,
    marked,
    prepared_items,
    tokens_within,
)
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec
from palinka.language_models.token_text import token_ids, tokenize

LISTS = {"a": ["one", "two", "three"], "b": ["x", "y", "z"]}


def test_equal_content_has_an_equal_hash() -> None:
    words = Words(LISTS)
    assert len(words.hash) == 64
    tuples = {name: tuple(items) for name, items in LISTS.items()}
    assert Words(tuples, name="another file").hash == words.hash


def test_the_hash_is_the_same_tomorrow() -> None:
    """Findings name it: it may change with a new major version only."""
    expected = "87f2b0afa2380c9c38637c5e858f869a2b5441a78dffbee080e4c89d08482db3"
    assert Words(LISTS).hash == expected


def test_other_content_has_another_hash() -> None:
    words = Words(LISTS)
    assert Words({"b": LISTS["b"], "a": LISTS["a"]}).hash != words.hash  # the order counts
    assert Words({"a": LISTS["a"], "c": LISTS["b"]}).hash != words.hash
    assert Words({"a": LISTS["a"][::-1], "b": LISTS["b"]}).hash != words.hash
    carrier = Carrier(LISTS, "The {word}")
    assert carrier.hash != words.hash
    assert Carrier(LISTS, "The {word}", pool="mean").hash != carrier.hash
    comma = Occurrences("a, b", {"comma": Match([","])}, 1, 1)
    point = Occurrences("a, b", {"comma": Match([","], not_in_numbers=True)}, 1, 1)
    assert comma.hash != point.hash


def test_refusals_name_the_stimuli(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    occurrences = Occurrences("a, b", {"comma": Match([","])}, 1, 1)
    with pytest.raises(InputError, match=r"^occurrences stimuli: conditions\.comma: 1 matches"):
        occurrences.prepare(mini_tokenizer)
    named = Occurrences("a, b", {"comma": Match([","])}, 1, 1, name="commas.yaml")
    with pytest.raises(InputError, match=r"^commas\.yaml: conditions\.comma: 1 matches"):
        named.prepare(mini_tokenizer)


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
    assert join_problems(["one", "two"]) == "one; two"
    assert join_problems([str(index) for index in range(10)]).endswith("7; and 2 more")


MINI = LanguageModelSpec("mini").tokenizer()


@given(st.text(max_size=20), st.text(min_size=1, max_size=10), st.text(max_size=20))
def test_positions_are_the_tokens_with_a_byte_of_the_word(
    before: str, word: str, after: str
) -> None:
    word = "".join(word.split()) or "é"
    start, stop = len(before.encode()), len((before + word).encode())
    encoded = tokenize(MINI, [before + word + after], offsets=True)
    (ids,), (spans,) = encoded["input_ids"], encoded["offset_mapping"]
    expected, byte = [], 0
    for position, index in enumerate(ids):
        end = byte + len(MINI.convert_ids_to_tokens(index))  # one letter per byte
        if byte < stop and end > start:
            expected.append(position)
        byte = end
    assert list(tokens_within(spans, len(before), len(before + word))) == expected


@given(st.text(min_size=1, max_size=12).filter(lambda word: word == word.strip() != ""))
def test_the_first_token_of_a_word_has_its_space(word: str) -> None:
    assert first_token(MINI, word) == token_ids(MINI, [f" {word}"])[0][0]


def test_the_first_token_where_a_space_is_put_in_front(
    piece_tokenizer: PreTrainedTokenizerBase,
) -> None:
    him = piece_tokenizer.convert_tokens_to_ids("▁him")
    assert first_token(piece_tokenizer, "him") == him


def test_a_tokenizer_without_places_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="Slow gives no positions"):
        Passage("a").prepare(Slow())  # type: ignore[arg-type]


def test_the_summary_shows_no_markup(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    words = ["**a**", "`b`", "<b>c</b>", "d\ne", "f``g", "sixth"]
    prepared = prepared_items("words", mini_tokenizer, [[1]] * 6, [[0]] * 6, words, ["x|y"] * 6)
    assert prepared.summary().splitlines() == [
        "- `x|y`: 6 items, such as",
        "    - `**a**`",
        "    - `` `b` ``",
        "    - `<b>c</b>`",
        "    - `d↵e`",
        "    - ```f``g```",
    ]


def test_conditions_in_the_order_of_their_first_item(
    mini_tokenizer: PreTrainedTokenizerBase,
) -> None:
    prepared = prepared_items(
        "words", mini_tokenizer, [[1]] * 3, [[0]] * 3, ["p", "q", "r"], ["z", "a", "z"]
    )
    heads = [line for line in prepared.summary().splitlines() if line.startswith("- ")]
    assert heads == ["- `z`: 2 items, such as", "- `a`: 1 items, such as"]


def test_the_brackets_leave_spaces_outside(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = mini_tokenizer.encode("I saw him, then.", add_special_tokens=False)
    assert marked(mini_tokenizer, ids, 2) == "I saw [him], then."
    assert marked(mini_tokenizer, ids, 3) == "I saw him[,] then."
