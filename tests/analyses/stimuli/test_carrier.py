import pytest
from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli import Carrier
from palinka.errors import InputError

CARRIER = "The next word is {word}"
GROUPS = {"space": ["sun", "moon", "star"], "fruit": ["apple", "pear", "plum", "fig"]}


def test_the_last_token(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    prepared = Carrier(GROUPS, CARRIER).prepare(mini_tokenizer)
    assert prepared.labels == ("sun", "moon", "star", "apple", "pear", "plum", "fig")
    assert prepared.conditions == ("space",) * 3 + ("fruit",) * 4
    for word, ids, pool in zip(prepared.labels, prepared.tokens, prepared.pool, strict=True):
        assert mini_tokenizer.decode(ids) == f"The next word is {word}"
        assert pool == (len(ids) - 1,)
        assert mini_tokenizer.decode([ids[-1]]) == f" {word}"


def test_the_mean_over_the_words_tokens(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    prepared = Carrier({"a": ["wormwood", "café", "sun"]}, CARRIER, "mean").prepare(mini_tokenizer)
    carrier = len(mini_tokenizer.encode("The next word is", add_special_tokens=False))
    for ids, pool in zip(prepared.tokens, prepared.pool, strict=True):
        assert pool == tuple(range(carrier, len(ids)))
    assert [len(pool) > 1 for pool in prepared.pool] == [True, True, False]


def test_words_that_are_not_one_token_are_named(
    mini_tokenizer: PreTrainedTokenizerBase, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    drinks = {**GROUPS, "drink": ["wormwood", "palinka", "café"]}
    with pytest.raises(InputError, match=r"drink: 'wormwood' is \[' w.*'café' is.*pool: mean") as e:
        Carrier(drinks, CARRIER).prepare(mini_tokenizer)
    assert "palinka" not in str(e.value)
    with pytest.raises(InputError, match=r"a: 'nder' is \[' under'\]"):
        Carrier({"a": ["nder", "p", "ntil"]}, "it is u{word}").prepare(mini_tokenizer)
    letters = {"a": ["b", "c", "é"]}
    with pytest.raises(InputError, match=r"'é' is \['\\\\xc3', '\\\\xa9'\]"):
        Carrier(letters, "{word}").prepare(byte_tokenizer)
    assert Carrier(letters, "{word}", "mean").prepare(byte_tokenizer).pool == ((0,), (0,), (0, 1))


@pytest.mark.parametrize("carrier", ["The next word is", "{word} it is", "{word} {word}", "{wrod}"])
def test_a_carrier_must_end_with_its_slot(carrier: str) -> None:
    with pytest.raises(InputError, match=r"carrier: .* ends with \{word\}"):
        Carrier(GROUPS, carrier)
