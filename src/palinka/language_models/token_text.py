"""Tokens as text, and text as token ids."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from palinka.errors import InputError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], offsets: bool = False
) -> "BatchEncoding":
    """Tokenize texts without special tokens, whose names in a text are plain text.

    To `input_ids` of each text, and with `offsets` `offset_mapping`, each token's place in it.
    """
    encoded: BatchEncoding = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=offsets,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # texts may be longer than the model's context: they are cut
    )
    return encoded


def token_ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """The ids that `tokenize` gives for each text, `(tokens,)`."""
    ids: list[list[int]] = tokenize(tokenizer, texts)["input_ids"] if texts else []
    return ids


def bos_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the token that contexts begin with where `bos` is true."""
    if not isinstance(tokenizer.bos_token_id, int):
        raise InputError("the tokenizer has no bos_token to begin a context with; set bos to false")
    return tokenizer.bos_token_id


def token_texts(
    tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], errors: str = "backslashreplace"
) -> list[str]:
    r"""The text of each token by itself, spaces included.

    A token that holds only a part of a character shows the part's bytes as `\xf0`, or as U+FFFD
    if `errors` is `replace`.
    """
    return [piece.decode("utf-8", errors) for piece in token_bytes(tokenizer, ids)]


def joined_text(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text of consecutive tokens; only characters cut off at either end show as bytes."""
    return b"".join(token_bytes(tokenizer, ids)).decode("utf-8", "backslashreplace")


def token_bytes(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[bytes]:
    """The bytes that each token stands for, also where they are only a part of a character.

    `tokenizer.decode` would put U+FFFD for a part of a character, and some tokenizers drop the
    space before a lone token.
    """
    byte_of = _bytes_of_letters()
    named = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)

    def to_bytes(index: int, token: str) -> bytes:
        if index in named:
            return named[index].encode()
        if byte_level:
            return bytes(byte_of[letter] for letter in token)
        # SentencePiece: `▁` is a space, `<0xF0>` a single byte.
        if len(token) == 6 and token.startswith("<0x"):
            return bytes.fromhex(token[3:5])
        return token.replace("▁", " ").encode()

    return list(map(to_bytes, ids, tokenizer.convert_ids_to_tokens(list(ids))))


@cache
def _bytes_of_letters() -> dict[str, int]:
    """The byte that each letter of byte-level vocabularies, all of them printable, stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()  # type: ignore[no-untyped-call]
    return {letter: byte for byte, letter in letters.items()}
