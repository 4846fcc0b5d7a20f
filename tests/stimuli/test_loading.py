from collections.abc import Callable
from pathlib import Path

import pytest
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
from palinka.analyses.stimuli.load import bundled_sample
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


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("conditions: {}", "kind: missing; give one of contrast, words, carrier, occurrences"),
        ("kind: word", "kind (line 1): 'word'; did you mean 'words'?"),
        ("kind: zzz", "kind (line 1): 'zzz'; choose from contrast, words, "),
        ("kind: no", "kind (line 1): YAML reads no as a truth value"),
        ("kind: words\nwords: [a]", "words (line 2): there is no such key"),
        ("kind: words", "conditions: missing; add this key"),
        ("kind: words\nconditions: {v: [go, no, be]}", "conditions.v[1] (line 2): YAML reads no"),
        ("kind: words\nconditions: {v: [go, be]}", "conditions.v: 2 words; a condition needs"),
        ("kind: words\nconditions: {v: [a, b, c]}\nfile: x", "file (line 3): there is no such key"),
        ("kind: words\nconditions: {v: [a, b, c]}\nname: x", "name (line 3): there is no such key"),
        ("kind: passage\nfiel: x", "fiel (line 2): there is no such key; did you mean 'file'?"),
        ("kind: passage", "text: missing"),
        ("kind: passage\nfile: x\ntext: y", "text, file: both are given"),
        ("kind: passage\nfile: 3", "file (line 2): YAML reads 3 as a number"),
        ("kind: passage\nfile: nowhere.txt", "nowhere.txt cannot be read: No such file"),
        ("kind: passage\nfile: .", "cannot be read: Is a directory"),
        ("kind: passage\nfile: latin.txt", "latin.txt is not UTF-8 (byte 1 cannot be decoded)"),
        ("kind: passage\nfile: blank.txt", "text: blank"),
        (OCCURRENCES.replace("before: 1", "befor: 1"), "befor (line 3): there is no such key; did"),
        (OCCURRENCES + "text: a\nlimit: 2", "limit: 2; give at least 3"),
        (OCCURRENCES.replace("match", "mtach") + "text: a", "conditions.comma.mtach (line 2): "),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(
    tmp_path: Path, refusal: Refusal, content: str, problem: str
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"a\xe9 ")
    (tmp_path / "blank.txt").write_text(" \n")
    assert problem in refusal(content)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_stimuli(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_stimuli(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"kind: \xe9")
    with pytest.raises(InputError, match=r"latin\.yaml is not UTF-8"):
        load_stimuli(tmp_path / "latin.yaml")


def test_nothing_is_left_behind(tmp_path: Path, refusal: Refusal) -> None:
    refusal("kind: zzz")
    assert [file.name for file in tmp_path.iterdir()] == ["stimuli.yaml"]
