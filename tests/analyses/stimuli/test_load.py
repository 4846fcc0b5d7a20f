import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
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

OCCURRENCES = "kind: occurrences\nconditions: {comma: {match: [',']}}\nbefore: 1\nafter: 1\n"
INLINE = OCCURRENCES + "text: a, b\n"
TARGETS = "kind: contrast\ntargets: {m: him, f: her}\n"
CARRIER = "kind: carrier\ncarrier: The {word}\ngroups: {a: [x, y, z]}\n"
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
PAGE = (Path(__file__).parents[3] / "docs" / "stimuli.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def load(folder: Path, content: str) -> Any:
    """Load stimuli from YAML as text, in `stimuli.yaml` of the folder."""
    file = folder / "stimuli.yaml"
    file.write_text(content, encoding="utf-8")
    return load_stimuli(file)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "kind: words\nconditions: {no: [no, 3.5, 2020-01-01], yes: [null, on, 0x10]}",
            Words({"no": ("no", "3.5", "2020-01-01"), "yes": ("null", "on", "0x10")}),
        ),
        (
            TARGETS + "frames: ['I {target}', 'A {target}', 'b {target}']",
            Contrast({"m": "him", "f": "her"}, frames=("I {target}", "A {target}", "b {target}")),
        ),
        (
            TARGETS + "sentences: {m: [a, b, c], f: [a, b, c]}",
            Contrast(
                {"m": "him", "f": "her"}, sentences={"m": ("a", "b", "c"), "f": ("a", "b", "c")}
            ),
        ),
        (CARRIER + "pool: mean", Carrier({"a": ("x", "y", "z")}, "The {word}", "mean")),
        (
            INLINE + "skip: 2\nlimit: 9",
            Occurrences("a, b", {"comma": Match((",",))}, before=1, after=1, limit=9, skip=2),
        ),
        (
            "kind: passage\ntext: In Rome.\ncategories: {c: [Rome]}",
            Passage("In Rome.", {"c": ("Rome",)}),
        ),
    ],
)
def test_the_five_kinds(tmp_path: Path, content: str, expected: Stimuli) -> None:
    assert load(tmp_path, content) == expected


def test_a_text_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "novel.txt").write_text("One, two.", encoding="utf-8")
    monkeypatch.setenv("NOVELS", str(tmp_path / "texts"))
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = load(tmp_path, "kind: passage\ntext: One, two.")
    for place in ("texts", "$NOVELS", "${NOVELS}", "~/texts"):
        name = f"{place}/novel.txt"
        found = load(tmp_path, f"kind: passage\nfile: {name}")
        assert (found, found.hash) == (expected, expected.hash)
    assert load_stimuli("$NOVELS/../stimuli.yaml").name == "$NOVELS/../stimuli.yaml"
    monkeypatch.delenv("NOVELS")
    with pytest.raises(InputError, match=r"stimuli\.yaml: .*NOVELS is not set"):
        load(tmp_path, "kind: passage\nfile: $NOVELS/novel.txt")


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_do_not_matter(
    tmp_path: Path, line_end: str, mini_tokenizer: PreTrainedTokenizerBase
) -> None:
    text = "Yes, he said,\nno, she said, é,\n\nand so on."
    (tmp_path / "unix.txt").write_bytes(text.encode())
    (tmp_path / "other.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", line_end).encode())
    unix, other = (load(tmp_path, OCCURRENCES + f"file: {n}.txt") for n in ("unix", "other"))
    assert unix.text == other.text == text
    assert unix.hash == other.hash
    yaml_file = tmp_path / "crlf.yaml"
    content = OCCURRENCES + "file: unix.txt"
    yaml_file.write_bytes(content.replace("\n", line_end).encode())
    assert load_stimuli(yaml_file).prepare(mini_tokenizer) == unix.prepare(mini_tokenizer)


def test_the_bundled_sample(tmp_path: Path, mini_tokenizer: PreTrainedTokenizerBase) -> None:
    first = next(BundledSample().documents())
    text = load(tmp_path, OCCURRENCES + "text: bundled_sample").text
    assert text.startswith(mini_tokenizer.decode(first.tolist()) + "\n\n")
    assert text == bundled_sample()
    assert len(text) > 1_000_000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "empty; expected `kind:`"),
        ("- a\n- b", "a list; expected `kind:` and the keys of that kind"),
        ("a: [", "not YAML: "),
        ("conditions: {}", "kind: missing, expected a kind or FILE.py:CLASS; choose from carrier"),
        ("kind: word", "'word', expected a kind or FILE.py:CLASS (did you mean 'words'?)"),
        ("kind: nowhere.py:Endings", "nowhere.py does not exist; give FILE.py:NAME"),
        ("kind: endings.py:Ending", "endings.py has no 'Ending' (did you mean 'Endings'?)"),
        ("kind: endings.py:Path", "'endings.py:Path' is not a subclass of Stimuli"),
        ("kind: words\nwords: [a]", "words: unknown key; choose from conditions"),
        ("kind: words\nconditions: {}", "conditions: empty; name at least one"),
        ("kind: words\nconditions: [a]", "conditions: a list; expected keys with values"),
        ("kind: words\nconditions: {v: go}", "conditions.v: 'go'; expected a list"),
        ("kind: words\nconditions: {v: [go, [no], be]}", "conditions.v[1]: a list; expected text"),
        ("kind: words\nconditions: {v: [go, be]}", "conditions.v: expected at least 3 words"),
        ("kind: words\nconditions: {v: [a, '', c]}", "conditions.v[1]: ''; give text"),
        ("kind: words\nconditions: {v: [a, \u00a0b, c]}", "give text without white space"),
        ("kind: words\nconditions: {v: [a], v: [b]}", "line 2: the key 'v' comes twice"),
        (CARRIER + "pool: meen", "pool: 'meen'; expected 'last' or 'mean'"),
        ("kind: passage", "text: missing"),
        ("kind: passage\nfile: x\ntext: y", "text, file: both are given"),
        ("kind: passage\nfile: nowhere.txt", "nowhere.txt cannot be read: No such file"),
        ("kind: passage\nfile: latin.txt", "latin.txt is not UTF-8 at byte 1"),
        ("kind: passage\nfile: blank.txt", "text: blank"),
        (OCCURRENCES.replace("before: 1", "befor: 1"), "befor: unknown key (did you mean"),
        (INLINE.replace("before: 1", "before: 1.5"), "before: '1.5'; expected a whole"),
        (INLINE.replace("[',']", "[','], not_in_numbers: 3"), "not_in_numbers: '3'; expected"),
        (OCCURRENCES + "text: a\nlimit: 2", "limit: 2; give at least 3"),
        (OCCURRENCES.replace("match", "mtach") + "text: a", "conditions.comma.mtach: unknown key"),
        # A file cannot run code.
        (INLINE.replace("before: 1", "before: !!python/object/apply:os.abort []"), "a whole num"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, content: str, problem: str
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"a\xe9 ")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "endings.py").write_text(ENDINGS)
    with pytest.raises(InputError) as caught:
        load(tmp_path, content)
    file, _, rest = str(caught.value).partition("stimuli.yaml: ")
    assert file
    assert problem in rest
    assert "\n" not in rest


def test_a_kind_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "endings.py").write_text(ENDINGS)
    content = "kind: endings.py:Endings\nconditions: {v: [go, be, do]}\nweight: 2"
    stimuli = load(tmp_path, content)
    assert (stimuli.kind, stimuli.weight) == ("endings", 2)
    assert stimuli.conditions == {"v": ("go", "be", "do")}


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10).filter(
    lambda text: text == text.strip() != ""
)


@given(st.dictionaries(TEXT, st.lists(TEXT, min_size=3, max_size=4), min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, conditions: dict[str, list[str]]) -> None:
    content = yaml.safe_dump({"kind": "words", "conditions": conditions}, sort_keys=False)
    stimuli = load(tmp_path, content)
    assert stimuli == Words({name: tuple(words) for name, words in conditions.items()})
    assert stimuli.hash == Words(conditions).hash


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"kind: \xe9")
    for name, problem in {
        "nowhere.yaml": r"^[^:]*nowhere\.yaml cannot be read: No such file",
        ".": "cannot be read: Is a directory",
        "latin.yaml": r"latin\.yaml is not UTF-8",
    }.items():
        with pytest.raises(InputError, match=problem):
            load_stimuli(tmp_path / name)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_works(
    example: str, tmp_path: Path, mini_tokenizer: PreTrainedTokenizerBase
) -> None:
    text = f"text: '{'He came, and went. ' * 400}'"
    stimuli = load(tmp_path, example.replace("text: bundled_sample", text))
    assert stimuli.prepare(mini_tokenizer).labels


def test_every_kind_has_an_example() -> None:
    assert {example.split()[1] for example in EXAMPLES} == KINDS.keys()
    assert all(f"## {kind}\n" in PAGE for kind in KINDS)
