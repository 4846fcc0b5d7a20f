import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.data import (
    BundledSample,
    Context,
    Corpus,
    Document,
    Passage,
    pack,
    split_of,
    token_contexts,
)
from palinka.data import packing as module
from palinka.data.packing import Split, tokenize_documents
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


def test_is_the_same_on_every_machine_and_in_every_version() -> None:
    chosen = [d for d in range(60) if split_of(d, 0.1, seed=0) == "validation"]
    assert chosen == [2, 14, 20, 36, 40, 52]


def test_the_seed_and_the_group_choose_the_place() -> None:
    def places(seed: int) -> list[int]:
        return [d % 10 for d in range(1000) if split_of(d, 0.1, seed) == "validation"]

    assert places(0) != places(1)
    # Every place is taken now and then: 100 draws out of ten.
    assert set(places(0)) == set(range(10))


def test_no_fraction_means_no_validation() -> None:
    assert {split_of(document, 0, 0) for document in range(100)} == {"train"}


@pytest.mark.parametrize("fraction", [-0.1, 0.6, 1.0, float("nan")])
def test_refuses_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(InputError, match=r"validation_fraction is .*; expected 0"):
        split_of(0, fraction, 0)


def tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    documents = [(7 * index, Document(str(index), text=text)) for index, text in enumerate(texts)]
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
    assert tokenize(texts, mini_tokenizer) == plain


def test_many_documents_keep_their_order(
    mini_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"Document {index} of many." for index in range(150)]
    at_once = tokenize(texts, mini_tokenizer)
    monkeypatch.setattr(module, "_BATCH_CHARACTERS", 40)
    assert tokenize(texts, mini_tokenizer) == at_once
    assert mini_tokenizer.decode(at_once[149]) == texts[149]


def test_names_of_special_tokens_are_plain_text(
    mini_tokenizer: PreTrainedTokenizerBase, other_tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "The end <|endoftext|> is </s> near <s>"
    for tokenizer in (mini_tokenizer, other_tokenizer):
        (ids,) = tokenize([text], tokenizer)
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(ids) == text
        # What the caller does with the tokenizer afterwards is as before.
        assert tokenizer.eos_token_id in tokenizer(tokenizer.eos_token)["input_ids"]


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
    assert document.tokens is not None
    ((_, kept),) = tokenize_documents([(0, document)], mini_tokenizer)
    np.testing.assert_array_equal(kept, document.tokens)
    ((_, other),) = tokenize_documents([(0, document)], other_tokenizer)
    assert other_tokenizer.decode(other) == mini_tokenizer.decode(document.tokens)
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
    arrays = [(index, np.array(tokens, dtype=np.int64)) for index, tokens in documents]
    found = [
        list(zip(context.tokens, context.documents, context.positions, strict=True))
        for context in packed(arrays, context_length, END, bos_token)
    ]
    assert found == plain_pack(documents, context_length, bos_token)


@given(documents_of_any_length, st.integers(2, 50), st.booleans())
def test_every_token_appears_once_and_in_order(
    texts: list[list[int]], context_length: int, bos: bool
) -> None:
    arrays = [(index, np.array(tokens, dtype=np.int64)) for index, tokens in enumerate(texts)]
    contexts = packed(arrays, context_length, END, BOS if bos else None)
    found = [token for context in contexts for token in context.tokens if token != BOS]
    stream = [token for tokens in texts for token in [*tokens, END]]
    assert found == stream[: len(found)]
    assert len(stream) - len(found) < context_length - bos
    for context in contexts:
        for token, document, position in zip(
            context.tokens, context.documents, context.positions, strict=True
        ):
            if position >= 0:
                assert token == [*texts[document], END][position]


def test_arrays_are_int64_of_the_context_length() -> None:
    (context,) = pack([(0, np.arange(6, dtype=np.uint16))], 5, END, BOS)
    for array in (context.tokens, context.documents, context.positions):
        assert array.dtype == np.int64
        assert array.shape == (5,)


def test_a_block_is_there_before_the_next_document_is_read() -> None:
    read: list[int] = []

    def documents() -> Iterator[tuple[int, np.ndarray]]:
        for index in range(10):
            read.append(index)
            yield index, np.zeros(3, dtype=np.int64)

    contexts = pack(documents(), 8, END)
    next(contexts)
    assert read == [0, 1]
    next(contexts)
    assert read == [0, 1, 2, 3]


def test_documents_shorter_than_one_context_are_rejected() -> None:
    with pytest.raises(InputError, match=r"have 4 tokens, fewer than the 5 of .* at most 4"):
        list(pack([(0, np.arange(3))], 5, END))
    with pytest.raises(InputError, match="have 0 tokens"):
        list(pack([], 5, END))


class Texts(Corpus):
    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.read = 0

    def documents(self) -> Iterator[Document]:
        for index, text in enumerate(self.texts):
            self.read += 1
            yield Document(f"text {index}", text=text)

    def fingerprint(self) -> dict[str, object]:
        return {}


def contexts(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int = 8,
    split: Split = "train",
    validation_fraction: float = 0.0,
    seed: int = 0,
    **options: int,
) -> Iterator[Context]:
    return token_contexts(
        corpus,
        tokenizer,
        context_length=context_length,
        split=split,
        validation_fraction=validation_fraction,
        seed=seed,
        **options,
    )


def rows(found: Iterator[Context]) -> list[tuple[list[int], list[int], list[int]]]:
    return [(b.tokens.tolist(), b.documents.tolist(), b.positions.tolist()) for b in found]


long_texts = st.lists(st.text("ab ,\n", min_size=40, max_size=90), min_size=8, max_size=30)


@settings(max_examples=25, deadline=None)
@given(long_texts, st.sampled_from([0.05, 0.25, 0.5]), st.integers(0, 9), st.booleans())
def test_equals_packing_the_documents_of_the_split(
    mini_tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    fraction: float,
    seed: int,
    bos: bool,
) -> None:
    seen: dict[str, set[int]] = {}
    for split in ("train", "validation"):
        members = [i for i in range(len(texts)) if split_of(i, fraction, seed) == split]
        if not members:
            continue
        plain = pack(
            [(i, np.array(mini_tokenizer.backend_tokenizer.encode(texts[i]).ids)) for i in members],
            8,
            mini_tokenizer.eos_token_id,
            mini_tokenizer.bos_token_id if bos else None,
        )
        found = rows(
            contexts(
                Texts(texts),
                mini_tokenizer,
                split=split,
                validation_fraction=fraction,
                seed=seed,
                bos=bos,
            )
        )
        assert found == rows(plain)
        seen[split] = {document for _, documents, _ in found for document in documents}
    assert seen["train"].isdisjoint(seen.get("validation", set()))


def test_the_documents_before_are_the_same_however_many_follow(
    mini_tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = [f"This is the document with the number {index}." for index in range(60)]
    for split in ("train", "validation"):
        short = rows(
            contexts(Texts(texts[:40]), mini_tokenizer, split=split, validation_fraction=0.1)
        )
        long = rows(contexts(Texts(texts), mini_tokenizer, split=split, validation_fraction=0.1))
        assert long[: len(short)] == short
        assert len(long) > len(short)


def test_reads_no_further_than_is_needed(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = Texts(["A document of some words."] * 10_000)
    list(islice(contexts(corpus, mini_tokenizer), 5))
    assert corpus.read < 200


def test_bos_is_the_tokenizers_own(other_tokenizer: PreTrainedTokenizerBase) -> None:
    first = next(contexts(Passage("Some words."), other_tokenizer, bos=True))
    assert first.tokens[0] == other_tokenizer.bos_token_id != other_tokenizer.eos_token_id
    assert other_tokenizer.decode(first.tokens[1:]) == "Some wo"


def test_the_sample_keeps_its_tokens(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    document = next(BundledSample().documents())
    first = next(contexts(BundledSample(), mini_tokenizer, context_length=128))
    assert document.tokens is not None
    np.testing.assert_array_equal(first.tokens, document.tokens[:128])
    np.testing.assert_array_equal(first.positions, np.arange(128))


def test_refuses_a_split_shorter_than_one_context(
    mini_tokenizer: PreTrainedTokenizerBase,
) -> None:
    corpus = Passage(" him her")
    message = (
        "the documents have 3 tokens, fewer than the 8 of one context; "
        "give more text, or a context_length of at most 3"
    )
    with pytest.raises(InputError, match=message):
        next(contexts(corpus, mini_tokenizer))
    assert len(list(contexts(corpus, mini_tokenizer, context_length=3))) == 1
    with pytest.raises(InputError, match=r"fewer than the 7 of .* context_length of at most 4"):
        next(contexts(corpus, mini_tokenizer, bos=True))
    assert len(list(contexts(corpus, mini_tokenizer, context_length=4, bos=True))) == 1


def test_refuses_a_split_without_documents(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = Passage("A single document of many words. " * 20)
    chosen = "validation" if split_of(0, 0.05, 0) == "validation" else "train"
    empty: Split = "train" if chosen == "validation" else "validation"
    assert list(contexts(corpus, mini_tokenizer, split=chosen, validation_fraction=0.05))
    message = f"no document is left for the {empty} split: the corpus has 1, .*at least 20 doc"
    with pytest.raises(InputError, match=message):
        next(contexts(corpus, mini_tokenizer, split=empty, validation_fraction=0.05))
    with pytest.raises(InputError, match="the validation split is empty"):
        next(contexts(corpus, mini_tokenizer, split="validation"))


def test_refuses_a_corpus_without_documents(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="the corpus has no documents"):
        next(contexts(Texts([]), mini_tokenizer))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"context_length": 0}, "context_length is 0"),
        ({"validation_fraction": 0.7}, "validation_fraction is 0.7"),
        ({"split": "test"}, "split is 'test'; expected one of train, validation"),
    ],
)
def test_refuses_bad_arguments_before_anything_is_read(
    mini_tokenizer: PreTrainedTokenizerBase, option: dict[str, object], message: str
) -> None:
    corpus = Texts(["text"])
    with pytest.raises(InputError, match=message):
        contexts(corpus, mini_tokenizer, **option)
    assert corpus.read == 0


def test_refuses_a_tokenizer_without_the_tokens_it_needs(
    other_tokenizer: PreTrainedTokenizerBase,
) -> None:
    other_tokenizer.bos_token = None
    assert list(contexts(Passage("Some words."), other_tokenizer))
    with pytest.raises(InputError, match=r"no bos_token .*; set bos to false"):
        contexts(Passage("Some words."), other_tokenizer, bos=True)
    other_tokenizer.eos_token = None
    with pytest.raises(InputError, match="no eos_token for an end-of-text"):
        contexts(Passage("Some words."), other_tokenizer)
