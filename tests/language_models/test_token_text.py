from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.language_models import LanguageModelSpec
from palinka.language_models.token_text import joined_text, token_ids, token_texts

MINI = LanguageModelSpec("mini").tokenizer()


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def test_tokens_keep_their_spaces() -> None:
    assert token_texts(MINI, ids_of(MINI, "I saw him.\n")) == ["I", " saw", " him", ".", "\n"]


def test_parts_of_a_character_show_their_bytes(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(byte_tokenizer, "é😀")
    assert token_texts(byte_tokenizer, ids) == [
        r"\xc3", r"\xa9", r"\xf0", r"\x9f", r"\x98", r"\x80",
    ]  # fmt: skip
    assert joined_text(byte_tokenizer, ids) == "é😀"
    assert joined_text(byte_tokenizer, ids[1:]) == r"\xa9😀"


def test_special_tokens_show_their_name(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    assert token_texts(MINI, [MINI.eos_token_id]) == ["<|endoftext|>"]
    assert token_texts(byte_tokenizer, [byte_tokenizer.eos_token_id]) == ["<à la fin>"]


def test_sentence_pieces(piece_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(piece_tokenizer, "a him é")
    assert token_texts(piece_tokenizer, ids) == [" a", " him", " ", r"\xc3", r"\xa9"]
    assert joined_text(piece_tokenizer, ids) == " a him é"


def test_every_entry_of_the_vocabulary() -> None:
    everything = range(len(MINI))
    decoded = [MINI.decode([index], clean_up_tokenization_spaces=False) for index in everything]
    assert token_texts(MINI, everything, "replace") == decoded
    for shown, expected in zip(token_texts(MINI, everything), decoded, strict=True):
        assert shown == expected or "\N{REPLACEMENT CHARACTER}" in expected


@given(st.text(max_size=40))
def test_a_text_is_tokenized_as_it_is(text: str) -> None:
    (ids,) = token_ids(MINI, [text])
    assert ids == MINI.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert joined_text(MINI, ids) == text


def test_the_name_of_a_special_token_is_text() -> None:
    (ids,) = token_ids(MINI, ["<|endoftext|>"])
    assert MINI.eos_token_id not in ids
    assert len(ids) > 1
