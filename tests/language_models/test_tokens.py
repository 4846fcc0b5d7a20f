import pytest
import torch
from transformers import AutoTokenizer

from palinka.assets import mini_gpt2_folder
from palinka.errors import InputError
from palinka.language_models.model import Tokens, padded_tokens, padding_id


def test_sequences_are_padded_on_the_right() -> None:
    tokens = Tokens.of([[1, 2, 3], [4]], pad=9)
    assert tokens.ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert tokens.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert tokens.lengths.tolist() == [3, 1]
    assert tokens.rows(1, 2).ids.tolist() == [[4]]


def test_texts_are_padded_whether_or_not_the_tokenizer_can() -> None:
    tokenizer = AutoTokenizer.from_pretrained(mini_gpt2_folder())
    assert tokenizer.pad_token is None
    vocabulary = len(tokenizer)
    texts = ["I saw him.", "The river", "x"]
    tokens = padded_tokens(tokenizer, texts)
    for text, ids, mask in zip(texts, tokens.ids, tokens.mask, strict=True):
        assert ids[mask.bool()].tolist() == tokenizer(text)["input_ids"]
    assert tokenizer.pad_token is None
    assert len(tokenizer) == vocabulary
    assert padding_id(tokenizer, vocabulary) == tokenizer.eos_token_id
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # beyond the model's embedding
    assert tokenizer.pad_token_id == vocabulary
    assert padding_id(tokenizer, vocabulary) == tokenizer.eos_token_id
    assert int(padded_tokens(tokenizer, texts).ids.max()) < vocabulary


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one string", "give a list of texts"),
        ([], "an empty list"),
        (["fine", ""], "text 1 has no tokens"),
    ],
)
def test_texts_that_cannot_be_tokenized_are_refused(texts: list[str], message: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(mini_gpt2_folder())
    with pytest.raises(InputError, match=message):
        padded_tokens(tokenizer, texts, bos=True)


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        (torch.zeros(2, 3), torch.ones(2, 2)),
        (torch.zeros(3), torch.ones(3)),
        (torch.zeros(1, 3), torch.tensor([[0, 1, 1]])),
        (torch.zeros(1, 3), torch.tensor([[1, 0, 1]])),
        (torch.zeros(2, 2), torch.tensor([[1, 1], [0, 0]])),
        (torch.zeros(0, 2), torch.zeros(0, 2)),
    ],
)
def test_a_mask_that_is_not_right_padded_is_refused(ids: torch.Tensor, mask: torch.Tensor) -> None:
    with pytest.raises(InputError):
        Tokens(ids.long(), mask.long())
