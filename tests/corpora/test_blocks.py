from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.data import (
    Block,
    BundledSample,
    Corpus,
    Document,
    Passage,
    pack,
    split_of,
    token_blocks,
)
from palinka.data.packing import Split
from palinka.errors import InputError


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


def blocks(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int = 8,
    split: Split = "train",
    validation_fraction: float = 0.0,
    seed: int = 0,
    **options: int,
) -> Iterator[Block]:
    return token_blocks(
        corpus,
        tokenizer,
        context_length=context_length,
        split=split,
        validation_fraction=validation_fraction,
        seed=seed,
        **options,
    )


def rows(found: Iterator[Block]) -> list[tuple[list[int], list[int], list[int]]]:
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
            blocks(
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
            blocks(Texts(texts[:40]), mini_tokenizer, split=split, validation_fraction=0.1)
        )
        long = rows(blocks(Texts(texts), mini_tokenizer, split=split, validation_fraction=0.1))
        assert long[: len(short)] == short
        assert len(long) > len(short)


def test_reads_no_further_than_is_needed(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = Texts(["A document of some words."] * 10_000)
    list(islice(blocks(corpus, mini_tokenizer), 5))
    assert corpus.read < 200


def test_bos_is_the_tokenizers_own(other_tokenizer: PreTrainedTokenizerBase) -> None:
    first = next(blocks(Passage("Some words."), other_tokenizer, bos=True))
    assert first.tokens[0] == other_tokenizer.bos_token_id != other_tokenizer.eos_token_id
    assert other_tokenizer.decode(first.tokens[1:]) == "Some wo"


def test_the_sample_keeps_its_tokens(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    document = next(BundledSample().documents())
    first = next(blocks(BundledSample(), mini_tokenizer, context_length=128))
    assert document.tokens is not None
    np.testing.assert_array_equal(first.tokens, document.tokens[:128])
    np.testing.assert_array_equal(first.positions, np.arange(128))


def test_refuses_a_split_shorter_than_one_context(
    mini_tokenizer: PreTrainedTokenizerBase,
) -> None:
    corpus = Passage(" him her")
    message = (
        "the train split has 3 tokens, fewer than the 8 of one context; "
        "give more text, or a context_length of at most 3"
    )
    with pytest.raises(InputError, match=message):
        next(blocks(corpus, mini_tokenizer))
    assert len(list(blocks(corpus, mini_tokenizer, context_length=3))) == 1
    with pytest.raises(InputError, match=r"fewer than the 7 of .* context_length of at most 4"):
        next(blocks(corpus, mini_tokenizer, bos=True))
    assert len(list(blocks(corpus, mini_tokenizer, context_length=4, bos=True))) == 1


def test_refuses_a_split_without_documents(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    corpus = Passage("A single document of many words. " * 20)
    chosen = "validation" if split_of(0, 0.05, 0) == "validation" else "train"
    empty: Split = "train" if chosen == "validation" else "validation"
    assert list(blocks(corpus, mini_tokenizer, split=chosen, validation_fraction=0.05))
    message = f"no document is left for the {empty} split: the corpus has 1, .*at least 20 doc"
    with pytest.raises(InputError, match=message):
        next(blocks(corpus, mini_tokenizer, split=empty, validation_fraction=0.05))
    with pytest.raises(InputError, match=r"validation split.*validation_fraction is 0"):
        next(blocks(corpus, mini_tokenizer, split="validation"))


def test_refuses_a_corpus_without_documents(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="the corpus has no documents"):
        next(blocks(Texts([]), mini_tokenizer))


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
        blocks(corpus, mini_tokenizer, **option)
    assert corpus.read == 0


def test_refuses_a_tokenizer_without_the_tokens_it_needs(
    other_tokenizer: PreTrainedTokenizerBase,
) -> None:
    other_tokenizer.bos_token = None
    assert list(blocks(Passage("Some words."), other_tokenizer))
    with pytest.raises(InputError, match=r"no bos_token .*; set bos to false"):
        blocks(Passage("Some words."), other_tokenizer, bos=True)
    other_tokenizer.eos_token = None
    with pytest.raises(InputError, match="no eos_token for an end-of-text"):
        blocks(Passage("Some words."), other_tokenizer)
