from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palinka.data import Packing, pack
from palinka.errors import InputError

END, BOS = 900, 901

documents_of_any_length = st.lists(st.lists(st.integers(0, 800), max_size=40), max_size=12)


def plain_pack(
    documents: list[tuple[int, list[int]]], context_length: int, bos: int | None
) -> list[list[tuple[int, int, int]]]:
    """Token by token: each block is a list of (token, document, position)."""
    stream = [
        (token, index, position)
        for index, tokens in documents
        for position, token in enumerate([*tokens, END])
    ]
    blocks = []
    content = context_length - (bos is not None)
    while len(stream) >= content:
        block, stream = stream[:content], stream[content:]
        head = [] if bos is None else [(bos, block[0][1], -1)]
        blocks.append(head + block)
    return blocks


@given(documents_of_any_length, st.integers(2, 50), st.booleans(), st.integers(1, 5))
def test_equals_a_plain_transcription(
    texts: list[list[int]], context_length: int, bos: bool, stride: int
) -> None:
    # The indices of a split's documents have gaps.
    documents = [(stride * index, tokens) for index, tokens in enumerate(texts)]
    bos_token = BOS if bos else None
    arrays = [(index, np.array(tokens, dtype=np.int64)) for index, tokens in documents]
    packed = [
        list(zip(block.tokens, block.documents, block.positions, strict=True))
        for block in pack(arrays, context_length, END, bos_token)
    ]
    assert packed == plain_pack(documents, context_length, bos_token)


@given(documents_of_any_length, st.integers(2, 50), st.booleans())
def test_every_token_appears_once_and_in_order(
    texts: list[list[int]], context_length: int, bos: bool
) -> None:
    arrays = [(index, np.array(tokens, dtype=np.int64)) for index, tokens in enumerate(texts)]
    blocks = list(pack(arrays, context_length, END, BOS if bos else None))
    packed = [token for block in blocks for token in block.tokens if token != BOS]
    stream = [token for tokens in texts for token in [*tokens, END]]
    assert packed == stream[: len(packed)]
    assert len(stream) - len(packed) < context_length - bos
    for block in blocks:
        for token, document, position in zip(
            block.tokens, block.documents, block.positions, strict=True
        ):
            if position >= 0:
                assert token == [*texts[document], END][position]


def test_arrays_are_int64_of_the_context_length() -> None:
    (block,) = pack([(0, np.arange(6, dtype=np.uint16))], 5, END, BOS)
    for array in (block.tokens, block.documents, block.positions):
        assert array.dtype == np.int64
        assert array.shape == (5,)


def test_a_block_is_there_before_the_next_document_is_read() -> None:
    read: list[int] = []

    def documents() -> Iterator[tuple[int, np.ndarray]]:
        for index in range(10):
            read.append(index)
            yield index, np.zeros(3, dtype=np.int64)

    blocks = pack(documents(), 8, END)
    next(blocks)
    assert read == [0, 1]
    next(blocks)
    assert read == [0, 1, 2, 3]


@pytest.mark.parametrize(("context_length", "bos"), [(0, False), (-3, False), (1, True)])
def test_refuses_a_context_without_room_for_a_token(context_length: int, bos: bool) -> None:
    with pytest.raises(InputError, match=f"context_length is {context_length}; expected at least"):
        Packing(context_length, bos)
    with pytest.raises(InputError, match="context_length"):
        next(pack([], context_length, END, BOS if bos else None))
