import pytest
from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli import Carrier, Match, Occurrences, Words
from palinka.errors import InputError

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
