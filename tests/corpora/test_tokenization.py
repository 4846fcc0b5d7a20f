import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.data import BundledSample, Document
from palinka.data import packing as module
from palinka.data.packing import tokenize_documents


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
