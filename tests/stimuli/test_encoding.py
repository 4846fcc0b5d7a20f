import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli import Passage
from palinka.analyses.stimuli.base import encode, first_token
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec
from palinka.language_models.token_text import token_ids

MINI = LanguageModelSpec("mini").tokenizer()


@given(st.text(max_size=20), st.text(min_size=1, max_size=10), st.text(max_size=20))
def test_positions_are_the_tokens_with_a_byte_of_the_word(
    before: str, word: str, after: str
) -> None:
    word = "".join(word.split()) or "é"
    start, stop = len(before.encode()), len((before + word).encode())
    (encoded,) = encode(MINI, [before + word + after])
    expected, byte = [], 0
    for position, index in enumerate(encoded.ids):
        end = byte + len(MINI.convert_ids_to_tokens(index))  # one letter per byte
        if byte < stop and end > start:
            expected.append(position)
        byte = end
    assert list(encoded.positions(len(before), len(before + word))) == expected


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

    with pytest.raises(InputError, match="Slow does not say where"):
        Passage("a").prepare(Slow())  # type: ignore[arg-type]
