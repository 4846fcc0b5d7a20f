import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from palinka.analyses.stimuli import (
    Carrier,
    Contrast,
    Match,
    Occurrences,
    Passage,
    Stimuli,
    Words,
    load_stimuli,
)
from palinka.analyses.stimuli.load import KINDS, bundled_sample
from palinka.data import BundledSample
from palinka.errors import InputError

Load = Callable[[str], Stimuli]
Refusal = Callable[[str], str]

OCCURRENCES = "kind: occurrences\nconditions: {comma: {match: [',']}}\nbefore: 1\nafter: 1\n"


def test_the_five_kinds(load: Load) -> None:
    assert load("kind: words\nconditions: {v: [go, be, do], n: [x, y, z]}") == Words(
        {"v": ("go", "be", "do"), "n": ("x", "y", "z")}
    )
    assert load(
        "kind: contrast\ntargets: {m: him, f: her}\n"
        "frames: ['I {target}', 'A {target}', 'b {target}']"
    ) == Contrast({"m": "him", "f": "her"}, frames=("I {target}", "A {target}", "b {target}"))
    sentences = "kind: contrast\ntargets: {m: him, f: her}\nsentences: {m: [a, b, c], f: [a, b, c]}"
    assert load(sentences) == Contrast(
        {"m": "him", "f": "her"}, sentences={"m": ("a", "b", "c"), "f": ("a", "b", "c")}
    )
    assert load(
        "kind: carrier\ncarrier: The {word}\ngroups: {a: [x, y, z]}\npool: mean"
    ) == Carrier({"a": ("x", "y", "z")}, "The {word}", "mean")
    assert load(OCCURRENCES + "text: a, b\nskip: 2\nlimit: 9") == Occurrences(
        "a, b", {"comma": Match((",",))}, before=1, after=1, limit=9, skip=2
    )
    assert load("kind: passage\ntext: In Rome.\ncategories: {c: [Rome]}") == Passage(
        "In Rome.", {"c": ("Rome",)}
    )


def test_a_text_from_a_file_beside_it(tmp_path: Path, load: Load) -> None:
    (tmp_path / "novel.txt").write_text("One, two.", encoding="utf-8")
    stimuli = load(OCCURRENCES + "file: novel.txt")
    assert stimuli.text == "One, two."
    assert stimuli.hash == load(OCCURRENCES + "text: One, two.").hash


def test_a_text_from_a_file_elsewhere(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "novel.txt").write_text("One, two.", encoding="utf-8")
    monkeypatch.setenv("NOVELS", str(tmp_path / "texts"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("$NOVELS/novel.txt", "${NOVELS}/novel.txt", "~/texts/novel.txt"):
        assert load(f"kind: passage\nfile: {name}").text == "One, two."
    monkeypatch.delenv("NOVELS")
    with pytest.raises(InputError, match=r"stimuli\.yaml: .*NOVELS is not set"):
        load("kind: passage\nfile: $NOVELS/novel.txt")


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_do_not_matter(
    tmp_path: Path, load: Load, line_end: str, mini_tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "Yes, he said,\nno, she said, é,\n\nand so on."
    (tmp_path / "unix.txt").write_bytes(text.encode())
    (tmp_path / "other.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", line_end).encode())
    unix, other = (load(OCCURRENCES + f"file: {name}.txt") for name in ("unix", "other"))
    assert unix.text == other.text == text
    assert unix.hash == other.hash
    yaml_file = tmp_path / "crlf.yaml"
    content = OCCURRENCES + "file: unix.txt"
    yaml_file.write_bytes(content.replace("\n", line_end).encode())
    assert load_stimuli(yaml_file).prepare(mini_tokenizer) == unix.prepare(mini_tokenizer)


def test_the_bundled_sample(load: Load, mini_tokenizer: PreTrainedTokenizerBase) -> None:
    first = next(BundledSample().documents())
    stimuli = load(OCCURRENCES + "text: bundled_sample")
    assert stimuli.text.startswith(mini_tokenizer.decode(first.tokens.tolist()) + "\n\n")
    assert stimuli.text == bundled_sample()
    assert len(stimuli.text) > 1_000_000


def test_the_path_may_name_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.yaml").write_text("kind: words\nconditions: {v: [go, be, do]}")
    monkeypatch.setenv("STIMULI", str(tmp_path))
    stimuli = load_stimuli("$STIMULI/words.yaml")
    assert stimuli.name == "$STIMULI/words.yaml"


INLINE = OCCURRENCES + "text: a, b\n"
CARRIER = "kind: carrier\ncarrier: The {word}\ngroups: {a: [x, y, z]}\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "empty; expected `kind:`"),
        ("- a\n- b", "a list; expected `kind:` and the keys of that kind"),
        ("just text", "'just text'; expected `kind:`"),
        ("a: [", "not YAML: "),
        ("a: \x07", "not YAML: "),
        ("a: 1\n---\nb: 2", "not YAML: "),
        ("? [a]\n: 1", "not YAML: "),
        ("conditions: {}", "kind: missing, expected a kind or FILE.py:CLASS; choose from carrier"),
        ("kind: word", "kind: 'word', expected a kind or FILE.py:CLASS; did you mean 'words'?"),
        ("kind: [words]", "kind: "),
        ("kind: nowhere.py:Endings", "nowhere.py does not exist; give FILE.py:NAME"),
        ("kind: endings.py:Ending", "endings.py has no 'Ending'; did you mean 'Endings'?"),
        ("kind: endings.py:Path", "'endings.py:Path' is not a subclass of Stimuli"),
        ("kind: words\nwords: [a]", "words: unknown key; choose from conditions"),
        ("kind: words", "conditions: missing; add this key"),
        ("kind: words\nconditions: {}", "conditions: empty; name at least one"),
        ("kind: words\nconditions:", "conditions: empty; expected keys with values"),
        ("kind: words\nconditions: [a]", "conditions: a list; expected keys with values"),
        ("kind: words\nconditions: {v: go}", "conditions.v: 'go'; expected a list"),
        ("kind: words\nconditions: {v: [go, [no], be]}", "conditions.v[1]: a list; expected text"),
        ("kind: words\nconditions: {v: [go, be]}", "conditions.v: 2 words; a condition needs"),
        ("kind: words\nconditions: {v: [a, '', c]}", "conditions.v[1]: ''; give text"),
        ("kind: words\nconditions: {v: [a, b, c]}\nfile: x", "file: unknown key"),
        ("kind: words\nconditions: {v: [a, b, c]}\nname: x", "name: unknown key"),
        ("kind: words\nconditions: {v: [a], v: [b]}", "line 2: the key 'v' comes twice"),
        (CARRIER + "pool: meen", "pool: 'meen'; expected 'last' or 'mean'"),
        ("kind: passage\nfiel: x", "fiel: unknown key; did you mean 'file'?"),
        ("kind: passage", "text: missing"),
        ("kind: passage\nfile: x\ntext: y", "text, file: both are given"),
        ("kind: passage\nfile: nowhere.txt", "nowhere.txt cannot be read: No such file"),
        ("kind: passage\nfile: .", "cannot be read: Is a directory"),
        ("kind: passage\nfile: latin.txt", "latin.txt is not UTF-8 (byte 1 cannot be decoded)"),
        ("kind: passage\nfile: blank.txt", "text: blank"),
        (OCCURRENCES.replace("before: 1", "befor: 1"), "befor: unknown key; did you mean"),
        (INLINE.replace("before: 1", "before: many"), "before: 'many'; expected a whole"),
        (INLINE.replace("before: 1", "before: 1.5"), "before: '1.5'; expected a whole"),
        (INLINE.replace("before: 1", "before: true"), "before: 'true'; expected a whole num"),
        (INLINE.replace("before: 1", "before: [1]"), "before: a list; expected a whole"),
        (INLINE.replace("before: 1", "before: '['"), "before: '['; expected a whole"),
        (INLINE.replace("[',']", "[','], not_in_numbers: 3"), "not_in_numbers: '3'; expected"),
        (OCCURRENCES + "text: a\nlimit: 2", "limit: 2; give at least 3"),
        (OCCURRENCES.replace("match", "mtach") + "text: a", "conditions.comma.mtach: unknown key"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(
    tmp_path: Path, refusal: Refusal, content: str, problem: str
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"a\xe9 ")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "endings.py").write_text(ENDINGS)
    assert problem in refusal(content)


ENDINGS = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from palinka.analyses.stimuli import Words

@dataclass(frozen=True)
class Endings(Words):
    kind: ClassVar[str] = "endings"
    weight: float = 1.0
"""


def test_a_kind_of_the_user(tmp_path: Path, load: Load) -> None:
    (tmp_path / "endings.py").write_text(ENDINGS)
    stimuli = load("kind: endings.py:Endings\nconditions: {v: [go, be, do]}\nweight: 2")
    assert stimuli.kind == "endings"
    assert stimuli.conditions == {"v": ("go", "be", "do")}
    assert stimuli.weight == 2


def test_words_that_yaml_would_take_for_something_else(load: Load) -> None:
    stimuli = load("kind: words\nconditions: {no: [no, 3.5, 2020-01-01], yes: [null, on, 0x10]}")
    assert stimuli.conditions == {"no": ("no", "3.5", "2020-01-01"), "yes": ("null", "on", "0x10")}


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.abort []", "!!python/name:os.abort"])
def test_a_file_cannot_run_code(refusal: Refusal, tag: str) -> None:
    assert "expected a whole number" in refusal(INLINE.replace("before: 1", f"before: {tag}"))


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10).filter(
    lambda text: text == text.strip() != ""
)


@given(st.dictionaries(TEXT, st.lists(TEXT, min_size=3, max_size=4), min_size=1, max_size=3))
def test_what_is_written_is_read(conditions: dict[str, list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "words.yaml")
        file.write_text(
            yaml.safe_dump({"kind": "words", "conditions": conditions}, sort_keys=False)
        )
        stimuli = load_stimuli(file)
    assert stimuli == Words({name: tuple(words) for name, words in conditions.items()})
    assert stimuli.hash == Words(conditions).hash


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_stimuli(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_stimuli(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"kind: \xe9")
    with pytest.raises(InputError, match=r"latin\.yaml is not UTF-8"):
        load_stimuli(tmp_path / "latin.yaml")


PAGE = (Path(__file__).parents[3] / "docs" / "stimuli.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_works(
    example: str, load: Callable[[str], Stimuli], mini_tokenizer: PreTrainedTokenizerBase
) -> None:
    prepared = load(
        example.replace("text: bundled_sample", f"text: '{'He came, and went. ' * 400}'")
    )
    assert prepared.prepare(mini_tokenizer).labels


def test_every_kind_has_an_example() -> None:
    assert {re.match(r"kind: (\w+)", example)[1] for example in EXAMPLES} == KINDS.keys()
    for kind in KINDS:
        assert f"## {kind}\n" in PAGE
