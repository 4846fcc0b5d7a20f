from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli import Match, Occurrences
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec

MINI = LanguageModelSpec("mini").tokenizer()
PIECES = ["a", " he", ",", " ,", ".", " .", ".\n", "3", " 5", "٣", "é", "😀", " said", "\r\n"]
CONDITIONS = {
    "comma": Match([","]),
    "stop": Match([".", "..."], not_in_numbers=True),
    "mark": Match(["é", "he"]),
}


def plainly(
    text: str, condition: Match, before: int, after: int, limit: int | None, skip: int
) -> list[tuple[int, ...]]:
    """The windows of a condition, word by word as the definition has them."""
    ids = MINI.backend_tokenizer.encode(text, add_special_tokens=False).ids[skip:]
    texts = [MINI.decode([index], clean_up_tokenization_spaces=False) for index in ids]
    windows: list[tuple[int, ...]] = []
    for place, shown in enumerate(texts):
        if shown.strip() not in condition.match:
            continue
        if condition.not_in_numbers:
            if place > 0 and texts[place - 1][-1].isdigit():
                continue
            if place + 1 < len(texts) and texts[place + 1][0].isdigit():
                continue
        if place - before < 0 or place + after >= len(ids):
            continue
        if limit is not None and len(windows) == limit:
            break
        windows.append(tuple(ids[place - before : place + after + 1]))
    return windows


@given(
    st.lists(st.sampled_from([*PIECES, "..."]), max_size=120).map("".join),
    st.integers(0, 3),
    st.integers(0, 3),
    st.none() | st.integers(3, 8),
    st.integers(0, 12),
)
def test_matches_are_those_of_the_definition(
    text: str, before: int, after: int, limit: int | None, skip: int
) -> None:
    window = before, after, limit, skip
    expected = {name: plainly(text, match, *window) for name, match in CONDITIONS.items()}
    stimuli = Occurrences(text, CONDITIONS, *window)
    short = [name for name, windows in expected.items() if len(windows) < 3]
    if short:
        with pytest.raises(InputError) as caught:
            stimuli.prepare(MINI)
        count = len(expected[short[0]])
        assert f"conditions.{short[0]}: {count} matches with " in str(caught.value)
        return
    prepared = stimuli.prepare(MINI)
    assert prepared.tokens == tuple(window for windows in expected.values() for window in windows)
    assert prepared.conditions == tuple(name for name, windows in expected.items() for _ in windows)
    assert set(prepared.pool) == {(before,)}
    for name, match in CONDITIONS.items():
        assert prepared.matches[name] == len(plainly(text, match, before, after, None, skip))
    assert f"items, the first of {prepared.matches['mark']:,} matches," in prepared.summary()


@pytest.mark.parametrize(
    ("not_in_numbers", "expected"),
    [(False, (" 3[.]5", " 3[.] Not", " Not [.]5", " this[.] Then")), (True, (" this[.] Then",))],
)
def test_a_point_in_a_number(not_in_numbers: bool, expected: tuple[str, ...]) -> None:
    text = "It is 3.5 or 3. Not .5 but this. Then the end and. and and. and and. and"
    points = {"x": Match(["."], not_in_numbers=not_in_numbers)}
    assert Occurrences(text, points, 1, 1).prepare(MINI).labels[:-3] == expected


def test_other_tokenizers(
    byte_tokenizer: PreTrainedTokenizerBase, piece_tokenizer: PreTrainedTokenizerBase
) -> None:
    prepared = Occurrences("é,é,é,é", {"c": Match([","])}, 1, 2).prepare(byte_tokenizer)
    assert prepared.labels == (r"\xa9[,]é",) * 3
    assert prepared.display[0] == (r"\xa9", ",", r"\xc3", r"\xa9")
    # The last byte of `é` is written 0xA9, which ends with a 9 and is no digit.
    match = Match(["."], not_in_numbers=True)
    assert len(Occurrences("é.é.é.é", {"x": match}, 1, 1).prepare(byte_tokenizer).tokens) == 3
    text = "a him.a him.a him.a"  # pieces get a space in front
    prepared = Occurrences(text, {"m": Match(["him"])}, 1, 1).prepare(piece_tokenizer)
    assert prepared.labels == (" a [him].", "a [him].", "a [him].")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"conditions": {}}, "conditions: empty"),
        ({"conditions": {"a": Match([])}}, r"conditions\.a\.match: empty"),
        ({"conditions": {"a": Match([","]), "b": Match([".", ","])}},
         r"conditions\.b\.match: ',' already belongs to the condition a"),
        ({"conditions": {"a": Match([" ,"])}}, r"conditions\.a\.match\[0\]: ' ,'"),
        ({"before": -1}, "before: -1; give at least 0"),
        ({"text": "none here"}, r"conditions\.a: 0 matches with a full"),
        ({"text": "one, two, three"}, r"conditions\.a: 2 matches with a full"),
        ({"skip": 1000}, r"conditions\.a: 0 matches .* in 0 tokens"),
    ],
)  # fmt: skip
def test_what_cannot_work(changes: dict[str, Any], problem: str) -> None:
    text = "a, b, c, d, e"
    arguments = {"text": text, "conditions": {"a": Match([","])}, "before": 1, "after": 1}
    with pytest.raises(InputError, match=problem):
        Occurrences(**(arguments | changes)).prepare(MINI)  # type: ignore[arg-type]
