import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli import Paired, load_stimuli
from palinka.analyses.stimuli.paired import Noise, Pair, Template, draw
from palinka.errors import InputError
from palinka.language_models import LanguageModelSpec

MINI = LanguageModelSpec("mini").tokenizer()
CLEAN = "As {a:io} and {b:s1} left the bakery, {b:s2} passed the warm bread to"
CORRUPTED = "As {a:io} and {b:s1} left the bakery, {a:s2} passed the warm bread to"
OTHER = "While {a:io} and {b:s1} waited, {b:s2} showed the old map to"
TEMPLATES = {
    "bakery": Template(CLEAN, CORRUPTED),
    "harbor": Template(OTHER, OTHER.replace("b:s2", "a:s2")),
}
SLOTS = {"a": ["Mary", "Tom", "Paul"], "b": ["John", "Peter", "Alice", "Mary"]}
YAML = """
kind: paired
templates:
  bakery: {clean: "The {a:subject} said that", corrupted: "The {b:subject} said that"}
slots: {a: [king, man], b: [queen, woman]}
fill: zip
answer: he
wrong: [she, her]
"""


def paired(**changes: Any) -> Paired:
    settings = {"templates": TEMPLATES, "slots": SLOTS, "answer": "{a}", "wrong": "{b}"}
    return Paired(**{**settings, **changes})


def plainly_filled(texts: list[str], a: str, b: str, swap: bool) -> list[str]:
    """Texts with two names in place of their slots, by plain replacement."""
    made = []
    for text in texts:
        plain = re.sub(r":\w+", "", text)
        if swap:  # the first two slots change places
            plain = plain.replace("{a} and {b}", "{b} and {a}", 1)
        made.append(plain.replace("{a}", a).replace("{b}", b))
    return made


@pytest.mark.parametrize("both_orders", [False, True])
@pytest.mark.parametrize("fill", ["product", "zip", "permutations"])
def test_texts_answers_and_roles(fill: str, both_orders: bool) -> None:
    names = ["Mary", "Tom", "Paul"]
    slots = {
        "product": SLOTS,
        "zip": {"a": names, "b": ["John", "Peter", "Alice"]},
        "permutations": {"a": names, "b": names},
    }[fill]
    pairs = paired(slots=slots, fill=fill, both_orders=both_orders).prepare_pairs(MINI)
    fillings = {
        "product": [(a, b) for a, b in product(SLOTS["a"], SLOTS["b"]) if a != b],
        "zip": [("Mary", "John"), ("Tom", "Peter"), ("Paul", "Alice")],
        "permutations": [(a, b) for a in names for b in names if a != b],
    }[fill]
    expected = [
        (name, *plainly_filled([each.clean, str(each.corrupted)], a, b, swap), f" {a}", f" {b}")
        for name, each in TEMPLATES.items()
        for a, b in fillings
        for swap in ([False, True] if both_orders else [False])
    ]
    decoded = [
        [MINI.decode(list(ids)) for ids in side]
        for side in (pairs.clean, pairs.corrupted, pairs.answers, pairs.wrong)
    ]
    assert list(zip(pairs.templates, *decoded, strict=True)) == expected
    assert list(pairs.roles) == ["io", "s1", "s2", "end"]
    for index, (_, clean, _, a, b) in enumerate(expected):
        position = {role: at[index] for role, at in pairs.roles.items()}
        assert MINI.decode(pairs.clean[index][position["io"]]) == a
        assert MINI.decode(pairs.clean[index][position["s1"]]) == b
        assert MINI.decode(pairs.clean[index][position["s2"]]) == b
        assert MINI.decode(pairs.corrupted[index][position["s2"]]) == a
        assert position["end"] == len(pairs.clean[index]) - 1
        assert (position["io"] < position["s1"]) == (clean.index(a) < clean.index(b))


def test_a_role_is_the_last_token_of_its_words() -> None:
    pair = Pair(
        "See the {old wormwood:plant}, and", "See the {red wormwood:plant}, and", "a", "b", "t"
    )
    pairs = Paired(pairs=[pair]).prepare_pairs(MINI)
    (position,) = pairs.roles["plant"]
    assert MINI.decode(pairs.clean[0][: position + 1]) == "See the old wormwood"
    with_bos = Paired(pairs=[pair], bos=True).prepare_pairs(MINI)
    assert with_bos.clean[0] == [MINI.bos_token_id, *pairs.clean[0]]
    assert with_bos.roles == {
        role: [at + 1 for (at,) in [places]] for role, places in pairs.roles.items()
    }


def test_answers_follow_a_space_unless_the_prompt_has_one(
    piece_tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = {"word": ("I saw", "I see"), "line": ("I saw\n", "I see\n"), "space": ("I a ", "I I ")}
    given = [Pair(*both, "him", ["her", "me"], name) for name, both in texts.items()]
    pairs = Paired(pairs=given, answers="first_token").prepare_pairs(MINI)
    shown = [[MINI.decode([i]) for i in ids] for ids in pairs.answers]
    assert shown[0] == [" him"]
    first = MINI.decode(MINI.encode("him", add_special_tokens=False)[:1])
    assert shown[1:] == [[first], [first]]
    assert [len(ids) for ids in pairs.wrong] == [2, 2, 2]
    (ids,) = (
        Paired(pairs=[Pair("a", "him", "him", "a", "t")]).prepare_pairs(piece_tokenizer).answers
    )
    assert piece_tokenizer.convert_ids_to_tokens(list(ids)) == ["▁him"]


def test_noise_in_place_of_a_text() -> None:
    templates = {"a": Template("The {a:subject} said", Noise("subject", 3.0))}
    stimuli = paired(
        templates=templates, slots={"a": ["old wormwood", "king"]}, answer="he", wrong="she"
    )
    pairs = stimuli.prepare_pairs(MINI)
    assert pairs.clean == pairs.corrupted
    assert pairs.sigma == 3.0
    words = [
        MINI.decode([ids[i] for i in at]) for ids, at in zip(pairs.clean, pairs.noise, strict=True)
    ]
    assert words == [" old wormwood", " king"]
    assert set(stimuli.prepare(MINI).conditions) == {"clean"}


def test_observation_compares_clean_and_corrupted_prompts() -> None:
    stimuli = paired(pool="s2")
    prepared, pairs = stimuli.prepare(MINI), stimuli.prepare_pairs(MINI)
    n = len(pairs)
    assert prepared.conditions == ("clean",) * n + ("corrupted",) * n
    assert prepared.pairs
    assert [list(ids) for ids in prepared.tokens] == [*pairs.clean, *pairs.corrupted]
    assert prepared.pool == tuple((at,) for at in pairs.roles["s2"]) * 2
    assert prepared.labels[0] == "As Mary and John left the bakery, [John] passed the warm bread to"
    blank = Paired(pairs=[Pair("I am\n", "I saw\n", "him", "her", "t")], answers="first_token")
    assert blank.prepare(MINI).labels == ("I am[\n]", "I saw[\n]")


def test_the_draw_is_balanced_and_repeats() -> None:
    drawn = paired(both_orders=True, limit=6, seed=1).prepare_pairs(MINI)
    assert Counter(drawn.templates) == {"bakery": 6, "harbor": 6}
    assert drawn == paired(both_orders=True, limit=6, seed=1).prepare_pairs(MINI)
    assert drawn != paired(both_orders=True, limit=6, seed=2).prepare_pairs(MINI)
    everything = paired().prepare_pairs(MINI)
    assert paired(limit=1000).prepare_pairs(MINI) == everything
    assert len(everything) == 2 * 11


@given(
    st.integers(2, 6), st.integers(2, 6), st.integers(1, 40), st.integers(0, 1000), st.booleans()
)
def test_words_are_drawn_about_equally_often(
    a: int, b: int, limit: int, seed: int, same: bool
) -> None:
    rows = [row for row in product(range(a), range(b), range(2)) if same or row[0] != row[1]]
    drawn = draw(rows, limit, [seed])
    assert len(drawn) == min(limit, len(rows))
    assert drawn == sorted(set(drawn))
    if len(drawn) <= len(rows) // 2 and same:
        for column, size in zip(zip(*drawn, strict=True), (a, b, 2), strict=True):
            times = Counter(column)
            assert max(times.values()) - min(times[word] for word in range(size)) <= 2


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "pairs.yaml").write_text(YAML)
    stimuli = load_stimuli(tmp_path / "pairs.yaml")
    pairs = stimuli.prepare_pairs(MINI)  # type: ignore[attr-defined]
    assert [len(ids) for ids in pairs.wrong] == [2, 2]
    assert len(stimuli.hash) == 64
    noisy = YAML.replace('"The {b:subject} said that"', "{noise: subject, sigma: 2}")
    (tmp_path / "noise.yaml").write_text(noisy)
    noise = load_stimuli(tmp_path / "noise.yaml")
    assert noise.templates["bakery"].corrupted == Noise("subject", 2)  # type: ignore[attr-defined]
    assert noise.hash != stimuli.hash
    for old, new, problem in (
        ("answer: he", "answer: {he: she}", "answer: keys with values; expected a list"),
        ("{a:subject} said that", "{a:subject} said", "clean has 3 tokens and corrupted 4"),
        ("corrupted:", "corupted:", r"templates\.bakery\.corupted: unknown key \(did you mean"),
        ("fill: zip", "fill: all", "fill: 'all'; expected 'product' or 'zip' or 'permutations'"),
    ):
        (tmp_path / "wrong.yaml").write_text(YAML.replace(old, new))
        with pytest.raises(InputError, match=rf"wrong\.yaml: .*{problem}"):
            load_stimuli(tmp_path / "wrong.yaml").prepare_pairs(MINI)  # type: ignore[attr-defined]


def only(clean: str, corrupted: Any) -> dict[str, Any]:
    return {"templates": {"bakery": Template(clean, corrupted)}}


WRITTEN: dict[str, Any] = {"templates": {}, "slots": {}, "answer": (), "wrong": ()}
PAIR = Pair("I saw", "I see", "him", "her", "t")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"templates": {}}, "templates, pairs: give exactly one of the two"),
        ({"pairs": [PAIR]}, "templates, pairs: give exactly one"),
        ({**WRITTEN, "pairs": [PAIR], "limit": 3}, "limit: belongs to templates; leave it out"),
        ({"wrong": ()}, "wrong: missing; add this key"),
        ({"limit": 0}, "limit: 0; give at least 1"),
        ({"slots": {"a": ["x "], "b": ["y"]}}, r"slots\.a\[0\]: 'x '; give text without"),
        ({"fill": "zip"}, "zip needs slots with the same number of words; a has 3, b has 4"),
        ({"fill": "permutations"}, "permutations needs the same list of words in every slot"),
        ({"slots": {"a": ["Tom"], "b": ["Tom"]}}, r"bakery: slots a, b have no words that differ"),
        (only("{c} and {d}", "{a}"), r"^\{c\} in templates\.bakery is not in slots; \{d\} in "
         r"templates\.bakery is not in slots; there are a, b$"),
        ({"answer": "{d}"}, r"^\{d\} in answer or wrong is not in slots; there are a, b$"),
        (only("{a:x} or {b:y}", "{b:x} or {a}"), "^templates.bakery: role y is in clean but not in "
         "corrupted$"),
        (only("{a:x} or {b}", "{b:x} or {a:y}"), "role y is in corrupted but not in clean"),
        (only("{a:x} or {b:x}", "{b:x} or {a:x}"), "bakery: role x is there twice"),
        (only("{a:end} {b}", "{b:end} {a}"), "bakery: role end is the last token of every prompt"),
        ({"templates": {**TEMPLATES, "third": Template("{a:io}", "{b:io}")}},
         r"templates\.third: roles io, end; templates\.bakery has io, s1, s2, end$"),
        (only("{a} {b}", "{a} {b}"), r"bakery: clean and corrupted are the same text; nothing to"),
        (only("{a:x} {b}", Noise("y", 3)), r"bakery: noise: no role 'y'; choose from end, x"),
        ({"templates": {"u": Template("{a:x}", Noise("x", 3)), "v": Template("{a:x}", "{b:x}")}},
         r"templates\.v: corrupted: give all pairs a text, or the noise of templates\.u"),
        ({**only("{a}", "{b}"), "both_orders": True}, r"templates\.bakery: both_orders swaps two"),
        ({"pool": "s3"}, r"pool: no role 's3' \(did you mean 's2'\?\)"),
    ],
)  # fmt: skip
def test_files_that_no_tokenizer_can_read(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        paired(**changes)
    assert "\n" not in str(caught.value)


def test_prompts_that_cannot_be_aligned() -> None:
    text = "{a:x} met {b}"
    stimuli = paired(
        templates={"bakery": Template(text, "{b:x} met"), "harbor": Template("{a:x}.", ".{a:x}")},
        slots={"a": ["Lucy"], "b": ["Tom"]},
        answer="he",
        wrong="she",
        name="pairs.yaml",
    )
    pieces = re.escape(
        str([MINI.decode([i]) for i in MINI.encode("Lucy", add_special_tokens=False)])
    )
    count = len(MINI.encode("Lucy met Tom", add_special_tokens=False))
    expected = (
        rf"^pairs\.yaml: templates\.bakery: clean has {count} tokens and corrupted \d "
        rf"\('Lucy' is {pieces}\); templates\.harbor: role x .*; positions cannot be "
        "aligned: choose words of as many tokens$"
    )
    with pytest.raises(InputError, match=expected):
        stimuli.prepare_pairs(MINI)
    with pytest.raises(InputError, match=expected):
        stimuli.prepare(MINI)
    moved = paired(templates={"t": Template("I, {a:x} met {b}", "I, {b} met {a:x}")})
    with pytest.raises(InputError, match=r"templates\.t: role x is token 2 of clean and 4 of cor"):
        moved.prepare_pairs(MINI)


def test_answers_that_are_several_tokens_or_both_right_and_wrong() -> None:
    pairs = [Pair("I saw", "I see", "Lucy", ["Daniel", "Tom"], "t")]
    with pytest.raises(
        InputError,
        match=r"answer ' Lucy' is \d tokens; answer ' Daniel' is \d tokens; give one that is one, "
        r"or set answers: first_token$",
    ):
        Paired(pairs=pairs).prepare_pairs(MINI)
    allowed = Paired(pairs=pairs, answers="first_token").prepare_pairs(MINI)
    assert allowed.answers == [MINI.encode(" Lucy", add_special_tokens=False)[:1]]
    same = [Pair("I saw", "I see", name, [name, "Tom"], "t") for name in ("Mary", "Mary", "John")]
    expected = r"answer and wrong are both ' Mary' in 2 pairs; ' John' in 1 pairs; leave those fill"
    with pytest.raises(InputError, match=expected):
        Paired(pairs=same).prepare_pairs(MINI)
