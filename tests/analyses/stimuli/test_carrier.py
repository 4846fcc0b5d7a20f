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


def test_words_that_are_several_tokens_are_named(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    groups = {**GROUPS, "drink": ["wormwood", "palinka", "café"]}
    with pytest.raises(InputError) as caught:
        Carrier(groups, CARRIER).prepare(mini_tokenizer)
    line = str(caught.value)
    assert "drink: 'wormwood' is [' w" in line
    assert "'café' is [" in line
    assert "palinka" not in line
    assert "pool: mean" in line


def test_the_mean_over_the_words_tokens(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    prepared = Carrier({"a": ["wormwood", "café", "sun"]}, CARRIER, "mean").prepare(mini_tokenizer)
    carrier = len(mini_tokenizer.encode("The next word is", add_special_tokens=False))
    for ids, pool in zip(prepared.tokens, prepared.pool, strict=True):
        assert pool == tuple(range(carrier, len(ids)))
    assert len(prepared.pool[0]) > 1
    assert len(prepared.pool[2]) == 1


def test_a_character_of_several_tokens(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match=r"'é' is \['\\\\xc3', '\\\\xa9'\]"):
        Carrier({"a": ["b", "c", "é"]}, "{word}").prepare(byte_tokenizer)
    prepared = Carrier({"a": ["b", "c", "é"]}, "{word}", "mean").prepare(byte_tokenizer)
    assert prepared.pool == ((0,), (0,), (0, 1))


def test_a_word_that_grows_together_with_the_carrier(
    mini_tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(InputError, match=r"a: 'nder' is \[' under'\]"):
        Carrier({"a": ["nder", "p", "ntil"]}, "it is u{word}").prepare(mini_tokenizer)


@pytest.mark.parametrize("carrier", ["The next word is", "{word} it is", "{word} {word}", "{wrod}"])
def test_a_carrier_must_end_with_its_slot(carrier: str) -> None:
    with pytest.raises(InputError, match=r"carrier: .* ends with \{word\}"):
        Carrier(GROUPS, carrier)


def test_groups_of_one_word() -> None:
    with pytest.raises(InputError, match=r"groups\.b: 1 word; .* at least 3"):
        Carrier({**GROUPS, "b": ["sun"]}, CARRIER)
