from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.language_models import LanguageModelSpec
from palinka.language_models.token_text import joined_text, token_ids, token_texts

MINI = LanguageModelSpec("mini").tokenizer()


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def test_tokens_keep_their_spaces(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(mini_tokenizer, "I saw him.\n")
    assert token_texts(mini_tokenizer, ids) == ["I", " saw", " him", ".", "\n"]


def test_parts_of_a_character_show_their_bytes(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(byte_tokenizer, "é😀")
    assert token_texts(byte_tokenizer, ids) == [
        r"\xc3", r"\xa9", r"\xf0", r"\x9f", r"\x98", r"\x80",
    ]  # fmt: skip
    assert joined_text(byte_tokenizer, ids) == "é😀"
    assert joined_text(byte_tokenizer, ids[1:]) == r"\xa9😀"


def test_special_tokens_show_their_name(
    mini_tokenizer: PreTrainedTokenizerBase, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    assert token_texts(mini_tokenizer, [mini_tokenizer.eos_token_id]) == ["<|endoftext|>"]
    assert token_texts(byte_tokenizer, [byte_tokenizer.eos_token_id]) == ["<à la fin>"]


def test_sentence_pieces(piece_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(piece_tokenizer, "a him é")
    assert token_texts(piece_tokenizer, ids) == [" a", " him", " ", r"\xc3", r"\xa9"]
    assert joined_text(piece_tokenizer, ids) == " a him é"


@given(st.text(max_size=40))
def test_what_is_shown_is_what_the_tokens_say(text: str) -> None:
    ids = ids_of(MINI, text)
    assert joined_text(MINI, ids) == text
    for index, shown in zip(ids, token_texts(MINI, ids), strict=True):
        decoded = MINI.decode([index], clean_up_tokenization_spaces=False)
        assert shown == decoded or "\N{REPLACEMENT CHARACTER}" in decoded


def test_every_entry_of_the_vocabulary(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    everything = range(len(mini_tokenizer))
    expected = [
        mini_tokenizer.decode([index], clean_up_tokenization_spaces=False) for index in everything
    ]
    assert token_texts(mini_tokenizer, everything, "replace") == expected
    for shown, decoded in zip(token_texts(mini_tokenizer, everything), expected, strict=True):
        assert shown == decoded or "\N{REPLACEMENT CHARACTER}" in decoded


@given(st.text(max_size=40))
def test_nothing_is_put_around_a_text(text: str) -> None:
    expected = MINI.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert token_ids(MINI, [text]) == [expected]


def test_the_name_of_a_special_token_is_text() -> None:
    (ids,) = token_ids(MINI, ["<|endoftext|>"])
    assert MINI.eos_token_id not in ids
    assert len(ids) > 1
