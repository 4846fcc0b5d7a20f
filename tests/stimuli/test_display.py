from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.language_models.token_text import decoded_tokens, display_text, display_tokens


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def test_tokens_keep_their_spaces(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(mini_tokenizer, "I saw him.\n")
    assert display_tokens(mini_tokenizer, ids) == ["I", " saw", " him", ".", "\n"]


def test_parts_of_a_character_show_their_bytes(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(byte_tokenizer, "é😀")
    assert display_tokens(byte_tokenizer, ids) == [
        r"\xc3", r"\xa9", r"\xf0", r"\x9f", r"\x98", r"\x80",
    ]  # fmt: skip
    assert display_text(byte_tokenizer, ids) == "é😀"
    assert display_text(byte_tokenizer, ids[1:]) == r"\xa9😀"


def test_special_tokens_show_their_name(
    mini_tokenizer: PreTrainedTokenizerBase, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    assert display_tokens(mini_tokenizer, [mini_tokenizer.eos_token_id]) == ["<|endoftext|>"]
    assert display_tokens(byte_tokenizer, [byte_tokenizer.eos_token_id]) == ["<à la fin>"]


def test_sentence_pieces(piece_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(piece_tokenizer, "a him é")
    assert display_tokens(piece_tokenizer, ids) == [" a", " him", " ", r"\xc3", r"\xa9"]
    assert display_text(piece_tokenizer, ids) == " a him é"


@given(st.text(max_size=40))
def test_what_is_shown_is_what_the_tokens_say(text: str) -> None:
    tokenizer = _mini()
    ids = ids_of(tokenizer, text)
    assert display_text(tokenizer, ids) == text
    for index, shown in zip(ids, display_tokens(tokenizer, ids), strict=True):
        decoded = tokenizer.decode([index], clean_up_tokenization_spaces=False)
        assert shown == decoded or "\N{REPLACEMENT CHARACTER}" in decoded


def test_every_entry_of_the_vocabulary(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    everything = range(len(mini_tokenizer))
    expected = [
        mini_tokenizer.decode([index], clean_up_tokenization_spaces=False) for index in everything
    ]
    assert decoded_tokens(mini_tokenizer, everything) == expected
    for shown, decoded in zip(display_tokens(mini_tokenizer, everything), expected, strict=True):
        assert shown == decoded or "\N{REPLACEMENT CHARACTER}" in decoded


def _mini() -> PreTrainedTokenizerBase:
    from palinka.data.packing import _mini_tokenizer

    return _mini_tokenizer()
