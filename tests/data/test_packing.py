import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.data import BundledSample, Context, Corpus, Document, Split, pack, split_of
from palinka.data import packing as module
from palinka.data.packing import documents_of_split, tokenize_documents
from palinka.errors import InputError

fractions = st.floats(0.01, 0.5)


@given(fractions, st.integers(0, 2**32), st.integers(0, 500))
def test_exactly_one_of_each_group_is_for_validation(
    fraction: float, seed: int, group: int
) -> None:
    size = round(1 / fraction)
    members = range(group * size, (group + 1) * size)
    splits = [split_of(document, fraction, seed) for document in members]
    assert splits.count("validation") == 1
    assert splits.count("train") == size - 1
    assert splits == [split_of(document, fraction, seed) for document in members]


def test_the_draw_is_the_same_everywhere_and_depends_on_seed_and_group() -> None:
    chosen = [d for d in range(60) if split_of(d, 0.1, seed=0) == "validation"]
    assert chosen == [2, 14, 20, 36, 40, 52]

    def places(seed: int) -> list[int]:
        return [d % 10 for d in range(1000) if split_of(d, 0.1, seed) == "validation"]

    assert places(0) != places(1)
    # Every place is taken now and then: 100 draws out of ten.
    assert set(places(0)) == set(range(10))
    assert {split_of(document, 0, 0) for document in range(100)} == {"train"}


def tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    documents = [(7 * index, text) for index, text in enumerate(texts)]
    found = list(tokenize_documents(documents, tokenizer))
    assert [index for index, _ in found] == [index for index, _ in documents]
    assert all(ids.dtype == np.int64 for _, ids in found)
    return [ids.tolist() for _, ids in found]


@settings(max_examples=50)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=5))
def test_equals_tokenizing_each_text_alone(
    texts: list[str], mini_tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = [mini_tokenizer.backend_tokenizer.encode(text).ids for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH_CHARACTERS", 40)
        assert tokenize(texts, mini_tokenizer) == plain


def test_a_long_document_gives_no_warning(
    mini_tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    long = "word " * 2 * mini_tokenizer.model_max_length
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    mini_tokenizer.deprecation_warnings.clear()
    try:
        tokenize([long], mini_tokenizer)
        assert caplog.records == []
    finally:
        logger.removeHandler(caplog.handler)


def test_the_sample_keeps_its_tokens_for_the_mini_tokenizer_alone(
    mini_tokenizer: PreTrainedTokenizerBase, other_tokenizer: PreTrainedTokenizerBase
) -> None:
    document = next(BundledSample().documents())
    ((_, kept),) = tokenize_documents([(0, document)], mini_tokenizer)
    np.testing.assert_array_equal(kept, document)
    ((_, other),) = tokenize_documents([(0, document)], other_tokenizer)
    assert other_tokenizer.decode(other) == mini_tokenizer.decode(document)
    assert len(other) > len(kept)


END, BOS = 900, 901


def packed(*arguments: Any) -> list[Context]:
    """The contexts, of which there may be none."""
    try:
        return list(pack(*arguments))
    except InputError as error:
        assert "fewer than" in str(error)  # noqa: PT017
        return []


documents_of_any_length = st.lists(st.lists(st.integers(0, 800), max_size=40), max_size=12)


def plain_pack(
    documents: list[tuple[int, list[int]]], context_length: int, bos: int | None
) -> list[list[tuple[int, int, int]]]:
    """Token by token: each context is a list of (token, document, position)."""
    stream = [
        (token, index, position)
        for index, tokens in documents
        for position, token in enumerate([*tokens, END])
    ]
    contexts = []
    content = context_length - (bos is not None)
    while len(stream) >= content:
        context, stream = stream[:content], stream[content:]
        head = [] if bos is None else [(bos, context[0][1], -1)]
        contexts.append(head + context)
    return contexts


@given(documents_of_any_length, st.integers(2, 50), st.booleans(), st.integers(1, 5))
def test_equals_a_plain_transcription(
    texts: list[list[int]], context_length: int, bos: bool, stride: int
) -> None:
    # The indices of a split's documents have gaps.
    documents = [(stride * index, tokens) for index, tokens in enumerate(texts)]
    bos_token = BOS if bos else None
    arrays = [(index, np.array(tokens, dtype=np.uint16)) for index, tokens in documents]
    contexts = packed(arrays, context_length, END, bos_token)
    columns = [(context.tokens, context.documents, context.positions) for context in contexts]
    assert all(array.dtype == np.int64 for context in columns for array in context)
    found = [list(zip(*context, strict=True)) for context in columns]
    assert found == plain_pack(documents, context_length, bos_token)


def test_documents_shorter_than_one_context_are_rejected() -> None:
    with pytest.raises(
        InputError,
        match="the documents have 4 tokens, fewer than the 5 of one context; "
        "give more text, or a context_length of at most 4",
    ):
        list(pack([(0, np.arange(3))], 5, END))
    with pytest.raises(InputError, match=r"fewer than the 5 of .* context_length of at most 5"):
        list(pack([(0, np.arange(3))], 6, END, BOS))
    assert len(list(pack([(0, np.arange(3))], 5, END, BOS))) == 1
    with pytest.raises(InputError, match="have 0 tokens"):
        list(pack([], 5, END))


class Texts(Corpus):
    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.read = 0

    def documents(self) -> Iterator[Document]:
        for text in self.texts:
            self.read += 1
            yield text

    def fingerprint(self) -> dict[str, object]:
        return {}


def members(texts: list[str], split: Split, fraction: float, seed: int = 0) -> list[int]:
    return [index for index, _ in documents_of_split(Texts(texts), split, fraction, seed)]


@given(st.integers(20, 60), st.sampled_from([0.05, 0.25, 0.5]), st.integers(0, 9))
def test_documents_of_a_split_are_the_same_however_many_follow(
    count: int, fraction: float, seed: int
) -> None:
    texts = [f"Document {index}." for index in range(count)]
    train, validation = (members(texts, s, fraction, seed) for s in ("train", "validation"))
    assert sorted(train + validation) == list(range(count))
    assert {split_of(index, fraction, seed) for index in validation} == {"validation"}
    longer = [*texts, *["More."] * 40]
    assert members(longer, "train", fraction, seed)[: len(train)] == train


def test_reads_no_further_than_is_needed(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = Texts(["A document of some words."] * 10_000)
    documents = documents_of_split(corpus, "train", 0.0, 0)
    list(islice(pack(tokenize_documents(documents, mini_tokenizer), 8, END), 5))
    assert corpus.read < 200


def test_splits_and_corpora_without_documents_are_rejected() -> None:
    chosen = split_of(0, 0.05, 0)
    empty: Split = "train" if chosen == "validation" else "validation"
    assert members(["one"], chosen, 0.05) == [0]
    message = f"no document is left for the {empty} split: the corpus has 1; give more, or"
    with pytest.raises(InputError, match=message):
        members(["one"], empty, 0.05)
    with pytest.raises(InputError, match="the train split: the corpus has 0"):
        members([], "train", 0)
