import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli import Contrast
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec

MINI = LanguageModelSpec("mini").tokenizer()
TARGETS = {"m": "him", "f": "her"}
FRAMES = ["I saw {target} at the market.", "Of {target}, nothing.", "Éva and 😀 met {target}"]


def test_items_are_aligned_by_frame() -> None:
    prepared = Contrast(TARGETS, frames=FRAMES).prepare(MINI)
    assert prepared.kind == "contrast"
    assert prepared.conditions == ("m", "m", "m", "f", "f", "f")
    assert prepared.pairs
    labels = [frame.format(target=f"[{word}]") for word in ("him", "her") for frame in FRAMES]
    assert prepared.labels == tuple(labels)
    assert prepared.display[0] == ("I", " saw", " him", " at", " the", " market", ".")
    assert prepared.targets == {}
    for ids, (position,), label in zip(prepared.tokens, prepared.pool, labels, strict=True):
        assert MINI.decode([ids[position]]) == (" him" if "him" in label else " her")
        assert MINI.decode(ids) == label.replace("[", "").replace("]", "")


def test_explicit_sentences_follow_the_order_of_targets() -> None:
    sentences = {"f": ["Ask her.", "Tell her.", "See her.", "Dry her."], "m": ["Ask him."] * 3}
    prepared = Contrast(TARGETS, sentences=sentences).prepare(MINI)
    assert prepared.conditions == ("m",) * 3 + ("f",) * 4
    assert prepared.labels[3] == "Ask [her]."
    assert not prepared.pairs


def test_the_token_before_the_target_is_the_item_where_sentences_differ() -> None:
    sentences = {"m": ["The king said to him."] * 3, "f": ["The queen had asked her to go."] * 3}
    prepared = Contrast(TARGETS, sentences=sentences, pool="before").prepare(MINI)
    items = zip(prepared.tokens, prepared.pool, strict=True)
    assert [MINI.decode([ids[at] for at in pool]) for ids, pool in items] == [" to"] * 3 + [
        " asked"
    ] * 3
    assert prepared.labels[0] == "The king said to [him]."
    with pytest.raises(InputError, match="pool: before, where the conditions of a frame have the"):
        Contrast(TARGETS, frames=FRAMES, pool="before")


@given(
    st.lists(st.sampled_from(["I", "saw", "her,", "é", "😀", "the", "3.5", "(him)", "ham"])),
    st.lists(st.sampled_from(["and", "her", "naïve", "…", "hims", "chim", "\n"])),
)
def test_the_item_is_the_token_of_the_word(before: list[str], after: list[str]) -> None:
    """Against a plain search for the word's token, which must be there once."""
    text = " ".join([*before, "{target}", *after])
    sentence = text.replace("{target}", "him")
    ids = MINI.encode(sentence, add_special_tokens=False)
    (him,) = MINI.encode(" him", add_special_tokens=False)
    words = len(re.findall(r"\bhim\b", sentence))
    stimuli = Contrast(
        TARGETS, sentences={"m": [sentence, "At him.", "To him."], "f": ["a her"] * 3}
    )
    if words != 1 or not before:
        with pytest.raises(InputError, match="m: "):
            stimuli.prepare(MINI)
    else:
        prepared = stimuli.prepare(MINI)
        assert prepared.tokens[0] == tuple(ids)
        places = [place for place, index in enumerate(ids) if index == him]
        # " hims" may begin with the same token; the word is the first place of all here.
        assert prepared.pool[0] == (places[0],)


@pytest.mark.parametrize(
    ("targets", "frame", "problem"),
    [
        (TARGETS, "{target} saw me.", r"m: 'him saw me\.': the tokenizer makes \['h', 'im'\]"),
        ({"a": "the", "b": "her"}, "{target}", r"a: 'the': the tokenizer makes \['the'\] of 'the'"),
        (TARGETS, "({target})", r"m: '\(him\)': the tokenizer makes \[.*\] of 'him'; expected "),
        (TARGETS, "a\n{target}", r"m: 'a\\nhim': the tokenizer makes \["),
        (TARGETS, "To {target} and him.", r"m: 'To him and him\.': 'him' occurs 2 times"),
        ({"a": "him", "b": "wormwood"}, "To {target}.", r"b: 'I s.*\[' w.*', .* \[' wormwood'\]"),
    ],
)
def test_sentences_whose_target_is_not_one_token(
    targets: dict[str, str], frame: str, problem: str
) -> None:
    stimuli = Contrast(targets, frames=["I saw {target}.", "Ask {target}.", frame])
    with pytest.raises(InputError, match=problem) as caught:
        stimuli.prepare(MINI)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("wormwood") in (0, 3)  # in its text, its tokens and what it is


def test_a_space_put_in_front_of_the_text_is_a_space(
    piece_tokenizer: PreTrainedTokenizerBase,
) -> None:
    frames = ["see {target}.", "read {target}.", "do {target}"]
    prepared = Contrast({"a": "him", "b": "a"}, frames=frames).prepare(piece_tokenizer)
    for ids, (position,) in zip(prepared.tokens[:3], prepared.pool[:3], strict=True):
        assert piece_tokenizer.convert_ids_to_tokens(ids[position]) == "▁him"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"targets": {"m": "him"}, "frames": FRAMES}, "targets: 1 condition; .* needs two"),
        ({}, "frames, sentences: give exactly one"),
        ({"frames": FRAMES[:2]}, r"frames\.m: expected at least 3 frames, not 2"),
        ({"frames": [*FRAMES, "Him."]}, r"frames\[3\]: 'Him\.' .* 0 times"),
        ({"targets": {"m": " him", "f": "her"}, "frames": FRAMES}, r"targets\.m\[0\]: ' him'"),
        ({"sentences": {"m": ["a"] * 3, "g": ["a"] * 3}}, "m, g; expected m, f, as in targets"),
        ({"sentences": {"m": ["a"] * 3, "f": ["a"] * 2}}, r"sentences\.f: .* 3 sentences, not 2"),
    ],
)
def test_what_makes_no_contrast(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Contrast(**{"targets": TARGETS, **arguments})
