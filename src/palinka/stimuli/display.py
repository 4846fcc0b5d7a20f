"""Tokens as text for people, also where a character is split over several of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Byte-level vocabularies write every byte as a letter: printable Latin-1 as itself, the others
# as the letters from U+0100 on, in order (Radford et al. 2019).
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
_BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + index): byte for index, byte in enumerate(_OTHERS)
}


def display_tokens(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    r"""The text of each token by itself, spaces included.

    A token that holds only a part of a character shows the part's bytes as `\xf0`.
    """
    return [_text(piece) for piece in token_bytes(tokenizer, ids)]


def decoded_tokens(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """The text of each token by itself, for comparing; U+FFFD for parts of a character."""
    return [piece.decode("utf-8", errors="replace") for piece in token_bytes(tokenizer, ids)]


def display_text(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text of consecutive tokens; only characters cut off at either end show as bytes."""
    return _text(b"".join(token_bytes(tokenizer, ids)))


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", errors="backslashreplace")


def token_bytes(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[bytes]:
    """The bytes that each token stands for, also where they are only a part of a character.

    `tokenizer.decode` would put U+FFFD for a part of a character, and some tokenizers drop the
    space before a lone token.
    """
    named = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)
    of_letters = _bytes_of_letters if byte_level else _bytes_of_piece
    return [
        named[index].encode() if index in named else of_letters(token)
        for index, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True)
    ]


def _bytes_of_letters(token: str) -> bytes:
    return bytes(_BYTE_OF_LETTER[letter] for letter in token)


def _bytes_of_piece(token: str) -> bytes:
    """The bytes of a SentencePiece token: `▁` is a space, `<0xF0>` a single byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()
