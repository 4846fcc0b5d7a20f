from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.language_models import LanguageModelSpec
from palinka.language_models.token_text import joined_text, token_ids, token_texts

MINI = LanguageModelSpec("mini").tokenizer()


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def test_tokens_keep_their_spaces_and_show_bytes_and_special_names(
    byte_tokenizer: PreTrainedTokenizerBase, piece_tokenizer: PreTrainedTokenizerBase
) -> None:
    smile = [r"\xc3", r"\xa9", r"\xf0", r"\x9f", r"\x98", r"\x80"]
    pieces = [" a", " him", " ", r"\xc3", r"\xa9"]
    for tokenizer, text, expected, joined in (
        (MINI, "I saw him.\n", ["I", " saw", " him", ".", "\n"], "I saw him.\n"),
        (byte_tokenizer, "é😀", smile, "é😀"),
        (piece_tokenizer, "a him é", pieces, " a him é"),
    ):
        ids = ids_of(tokenizer, text)
        assert token_texts(tokenizer, ids) == expected
        assert joined_text(tokenizer, ids) == joined
    assert joined_text(byte_tokenizer, ids_of(byte_tokenizer, "é😀")[1:]) == r"\xa9😀"
    for tokenizer, name in ((MINI, "<|endoftext|>"), (byte_tokenizer, "<à la fin>")):
        assert token_texts(tokenizer, [tokenizer.eos_token_id]) == [name]


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
    (name,) = token_ids(MINI, ["<|endoftext|>"])
    assert MINI.eos_token_id not in name
