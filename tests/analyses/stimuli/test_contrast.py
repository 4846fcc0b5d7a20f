import re

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


def test_items_are_aligned_by_frame(mini_tokenizer: PreTrainedTokenizerBase) -> None:
    prepared = Contrast(TARGETS, frames=FRAMES).prepare(mini_tokenizer)
    assert prepared.kind == "contrast"
    assert prepared.conditions == ("m", "m", "m", "f", "f", "f")
    assert prepared.pairs
    assert prepared.labels == (
        "I saw [him] at the market.",
        "Of [him], nothing.",
        "Éva and 😀 met [him]",
        "I saw [her] at the market.",
        "Of [her], nothing.",
        "Éva and 😀 met [her]",
    )
    assert prepared.display[0] == ("I", " saw", " him", " at", " the", " market", ".")
    assert prepared.targets == {}
    for ids, pool, label in zip(prepared.tokens, prepared.pool, prepared.labels, strict=True):
        (position,) = pool
        assert mini_tokenizer.decode([ids[position]]) == (" him" if "him" in label else " her")
        assert mini_tokenizer.decode(ids) == label.replace("[", "").replace("]", "")


def test_explicit_sentences_follow_the_order_of_targets(
    mini_tokenizer: PreTrainedTokenizerBase,
) -> None:
    sentences = {
        "f": ["Ask her.", "Tell her.", "Thank her.", "See her."],
        "m": ["Ask him.", "Tell him.", "Thank him."],
    }
    prepared = Contrast(TARGETS, sentences=sentences).prepare(mini_tokenizer)
    assert prepared.conditions == ("m",) * 3 + ("f",) * 4
    assert prepared.labels[3] == "Ask [her]."
    assert not prepared.pairs


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
        (TARGETS, "To {target} and her.", r"f: 'To her and her\.': 'her' occurs 2 times"),
        (TARGETS, "To {target}s.", r"m: 'To hims\.': 'him' occurs 0 times"),
        (
            {"a": "him", "b": "wormwood"},
            "To {target}.",
            r"b: 'To wormwood\.': the tokenizer makes \[' w.*', .*'\] of 'wormwood'; "
            r"expected \[' wormwood'\]",
        ),
    ],
)
def test_sentences_whose_target_is_not_one_token(
    mini_tokenizer: PreTrainedTokenizerBase, targets: dict[str, str], frame: str, problem: str
) -> None:
    stimuli = Contrast(targets, frames=["I saw {target}.", "Ask {target}.", frame])
    with pytest.raises(InputError, match=problem) as caught:
        stimuli.prepare(mini_tokenizer)
    assert "\n" not in str(caught.value)


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
        ({"targets": TARGETS}, "frames, sentences: give exactly one"),
        ({"targets": TARGETS, "frames": FRAMES, "sentences": {"m": FRAMES, "f": FRAMES}}, "one of"),
        ({"targets": TARGETS, "frames": FRAMES[:2]}, r"frames\.m: 2 frames; .* at least 3"),
        ({"targets": TARGETS, "frames": [*FRAMES, "Him."]}, r"frames\[3\]: 'Him\.' .* 0 times"),
        ({"targets": TARGETS, "frames": ["{target} {target}"] * 3}, r"frames\[0\]: .* 2 times"),
        ({"targets": {"m": " him", "f": "her"}, "frames": FRAMES}, r"targets\.m\[0\]: ' him'"),
        (
            {"targets": TARGETS, "sentences": {"m": ["a"] * 3, "g": ["a"] * 3}},
            "sentences: conditions m, g; expected those of targets: m, f",
        ),
        (
            {"targets": TARGETS, "sentences": {"m": ["a"] * 3, "f": ["a"] * 2}},
            r"sentences\.f: 2 sentences; .* at least 3",
        ),
    ],
)
def test_what_makes_no_contrast(arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Contrast(**arguments)  # type: ignore[arg-type]
