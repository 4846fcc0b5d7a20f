import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli import Passage
from palinka.analyses.stimuli.passage import first_token
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec

MINI = LanguageModelSpec("mini").tokenizer()
WORDS = ["Hungary", "Danube", "wormwood", "worm", "café", "😀", "glass", "."]


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=20), st.data())
def test_the_mask_is_that_of_the_definition(words: list[str], data: st.DataObject) -> None:
    text = "In " + " ".join(words)
    category = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, unique=True))
    ids = MINI.encode(text, add_special_tokens=False)
    firsts = [MINI.encode(f" {word}", add_special_tokens=False)[0] for word in category]
    stimuli = Passage(text, {"c": category})
    missing = [word for word, first in zip(category, firsts, strict=True) if first not in ids]
    if missing:
        with pytest.raises(InputError) as caught:
            stimuli.prepare(MINI)
        assert f"categories.c: {', '.join(map(repr, missing))}: not in" in str(caught.value)
        return
    prepared = stimuli.prepare(MINI)
    assert prepared.tokens == (tuple(ids),)
    assert prepared.targets == {"c": tuple(index in firsts for index in ids)}


def test_every_token_is_an_item() -> None:
    prepared = Passage("To Rome, or to Vienna.", {"c": ["Rome", "Vienna"]}).prepare(MINI)
    assert prepared.pool == ((),)
    assert prepared.conditions == ()
    assert prepared.labels == prepared.display[0]
    assert prepared.labels == ("To", " Rome", ",", " or", " to", " Vienna", ".")
    assert prepared.targets["c"] == (False, True, False, False, False, True, False)
    assert prepared.summary() == "- `c`: 2 of 7 tokens, such as\n    - ` Rome`\n    - ` Vienna`"
    bare = Passage("To Rome.").prepare(MINI)
    assert (bare.targets, bare.summary()) == ({}, "- 3 tokens")


def test_the_first_token_where_a_space_is_put_in_front(
    piece_tokenizer: PreTrainedTokenizerBase,
) -> None:
    him = piece_tokenizer.convert_tokens_to_ids("▁him")
    assert first_token(piece_tokenizer, "him") == him


@pytest.mark.parametrize(
    ("text", "categories", "problem"),
    [
        (" \n", {}, "text: blank"),
        ("a", {"c": []}, r"categories\.c: empty"),
        ("a", {"c": ["x", " y"]}, r"categories\.c\[1\]: ' y'"),
        ("Rome, (Rome)", {"a": ["Rome"]}, r"categories\.a: 'Rome': not in"),  # no space before
        (
            "Rome, or to Rome.",
            {"a": ["Rome", "Paris"], "b": ["to"], "c": ["London", "Rome", "Berlin"]},
            "categories.a: 'Paris'; categories.c: 'London', 'Berlin': not in the passage",
        ),
    ],
)
def test_what_makes_no_passage(text: str, categories: dict[str, list[str]], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Passage(text, categories).prepare(MINI)
