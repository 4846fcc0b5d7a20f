"""Built-in tasks, CSV files and sets of sae-probes."""

import csv
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palinka.analyses.stats.probes import clustered_auc
from palinka.data import Context
from palinka.errors import InputError
from palinka.evaluation import tasks as kinds
from palinka.evaluation.tasks import (
    BUILT_IN,
    CONTROLS,
    Segment,
    draw_pairs,
    find_segments,
    label_tokens,
    read_csv,
    read_sae_probes,
    text_task,
    token_tasks,
    word_lists,
)


def segment(pieces: list[str], is_start: bool = True) -> Segment:
    size = np.arange(len(pieces))
    return Segment(0, size, size, 0, is_start, pieces)


@pytest.fixture(scope="module")
def labels() -> dict[str, dict[str, int]]:
    start = ["She", " said", ' "', "I", " do", " not", " kn", "ow", " it", ",", " Tom", '".']
    pieces = [*start, *(f" {word}" for word in ["He", "walked", "to", "the", "children"]), "."]
    pieces += [" It", " was", " late"]
    found = label_tokens([segment(pieces)])
    return {
        name: {piece: int(label) for piece, label in zip(pieces, values, strict=True) if label >= 0}
        for name, values in found.items()
    }


@pytest.mark.parametrize(
    ("task", "positive", "negative"),
    [
        ("capital_next", [","], ["She", " not", " He", " to"]),
        ("word_ends", [" not", "ow", ","], [" kn", " it", " Tom"]),
        ("sentence_ends", [" children"], ["She", " Tom"]),
        ("function_word_next", ["I", " walked", " to", " It"], ["She", " not", " the"]),
        ("in_quotes", [' "', "I", ",", " Tom"], ["She", '".', " It"]),
        ("repeated", [" It"], ["She", " the"]),
        ("negated", [" kn", "ow", " Tom", " He"], ["She", " not", " to"]),
        ("after_comma", [" Tom", " He", " to"], [",", " children"]),
        ("plural", [" children"], []),
        ("past", [" said", " was"], [" do"]),
        ("gender", [" He"], ["She"]),
        ("first_letter", [" it", " do"], ["She", " not", " Tom"]),
        ("long_word", [" children"], ["She", " the"]),
    ],
)
def test_labels_by_rule(labels: Any, task: str, positive: list[str], negative: list[str]) -> None:
    assert {piece for piece in positive if labels[task].get(piece) == 1} == {*positive}
    assert {piece for piece in negative if labels[task].get(piece) == 0} == {*negative}


def test_tokens_without_an_answer_are_in_no_task(labels: Any) -> None:
    assert " kn" not in labels["repeated"]  # only the last token of a word
    assert " late" not in labels["word_ends"]  # the last token
    assert " it" not in labels["capital_next"]  # a comma is between, not a word's start
    assert '".' not in labels["capital_next"]  # a sentence ends
    assert " walked" not in labels["gender"]
    assert {*labels["parity"].values()} == {0, 1}
    assert len({*labels["random_document"].values()}) == 1


def test_what_a_cut_text_does_not_show_has_no_label() -> None:
    pieces = [" the", "\n", '"', " Well", " now", " and", " then"]
    with warnings.catch_warnings(action="error"):  # no token is late enough for a task
        cut = label_tokens([segment(pieces, is_start=False)])
    assert cut["in_quotes"].tolist() == [-1, -1, 1, 1, 1, 1, 1]  # a paragraph begins after 2
    assert cut["after_comma"].tolist() == [-1] * 5 + [0, 0]
    assert cut["negated"].tolist()[:5] == [-1] * 5


def test_contexts_are_divided_by_document_without_special_tokens(mini_tokenizer: Any) -> None:
    ids = mini_tokenizer("Two words", add_special_tokens=False)["input_ids"]
    end = mini_tokenizer.eos_token_id
    tokens = np.array([*ids, end, *ids])
    documents = np.array([3] * (len(ids) + 1) + [4] * len(ids))
    positions = np.array([*range(5, 6 + len(ids)), *range(len(ids))])
    found = [*find_segments([Context(tokens, documents, positions)], mini_tokenizer)]
    assert [(s.context, s.document, s.text, s.is_start) for s in found] == [
        (0, 3, "Two words", False),
        (0, 4, "Two words", True),
    ]
    assert found[1].positions.tolist() == [*range(len(ids) + 1, 2 * len(ids) + 1)]


def test_late_is_later_than_the_median_of_the_positions_in_use() -> None:
    found = label_tokens([segment([" x"] * 40)], first=30)["late"]
    assert found.tolist() == [int(at > 34.5) for at in range(40)]


def test_pairs_share_their_key_and_no_document_has_more_than_it_must() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(-1, 2, 3000).astype(np.int8)
    keys, documents = random.integers(0, 40, 3000), random.integers(0, 100, 3000)
    pairs = draw_pairs(labels, keys, documents, 300, random)
    assert len(pairs) == 300 == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))
    assert (labels[pairs] == [1, 0]).all()
    assert (keys[pairs[:, 0]] == keys[pairs[:, 1]]).all()
    assert max(Counter(documents[pairs[:, 0]].tolist()).values()) <= 4
    few = draw_pairs(labels, keys, documents % 10, 300, random)  # at most 4 would give 40
    assert len(few) == 300
    assert max(Counter((documents % 10)[few[:, 0]].tolist()).values()) <= 64


def test_a_lookup_of_the_token_has_an_auc_of_one_half_in_matched_tasks(
    mini_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, aucs = np.random.default_rng(2), []
    ids = random.zipf(1.5, (100, 40)).clip(0, 300)
    label = (random.random(ids.shape) < random.random(301)[ids]).astype(np.int8)
    every = np.arange(40)
    cut = [Segment(at, every, row, at, True, ["x"] * 40) for at, row in enumerate(ids)]
    monkeypatch.setattr(kinds, "find_segments", lambda *_: iter(cut))
    monkeypatch.setattr(kinds, "label_tokens", lambda *_: {"late": label.ravel()})
    monkeypatch.setattr(kinds, "FIRST_POSITION", 0)
    for seed in range(60):
        (task,), _ = token_tasks(["late"], [], mini_tokenizer, items=400, seed=seed)
        own, y = ids[tuple(task.places.T)], task.labels
        train = np.random.default_rng(seed).permutation(100)[task.groups] < 50
        sides = [np.bincount(own[train & (y == side)], minlength=301) for side in (True, False)]
        surplus = (sides[0] - sides[1])[own[~train]]
        aucs.append(clustered_auc(surplus, y[~train], own[~train]).value)
    assert abs(np.mean(aucs) - 0.5) < 3 * np.std(aucs) / np.sqrt(60)


def test_tasks_of_a_corpus(mini_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    words = [*word_lists()["plurals"].items()][:40]
    texts = []
    for _ in range(60):
        some = [pair[random.integers(2)] for pair in random.permutation(words)]
        texts.append(
            "She said no. " + " ".join(f"{w}{random.choice(['', ',', '.'])}" for w in some)
        )
    contexts = []
    for number, text in enumerate(texts):
        ids = np.array(mini_tokenizer(text, add_special_tokens=False)["input_ids"][:64])
        contexts.append(Context(ids, np.full(len(ids), number), np.arange(len(ids))))
    monkeypatch.setattr(kinds, "MIN_ITEMS", 50)
    tasks, notes = token_tasks((*BUILT_IN, *CONTROLS), contexts, mini_tokenizer, items=300)
    found = {task.name: task for task in tasks}
    assert {"plural", "late", "word_ends", "parity", "random_document"} <= found.keys()
    assert any("gender left out: 0 tokens" in note for note in notes)
    for task in tasks:
        assert task.labels.sum() == len(task.labels) // 2
        assert task.places[:, 1].min() >= 16
        assert (task.groups == task.places[:, 0]).all()
    by_document: dict[int, set[bool]] = {}
    for group, label in zip(*(found["random_document"].groups, found["random_document"].labels),
                            strict=True):  # fmt: skip
        by_document.setdefault(int(group), set()).add(bool(label))
    assert all(len(one) == 1 for one in by_document.values())


def test_word_lists() -> None:
    lists = word_lists()
    assert {name: len(words) for name, words in lists.items()} == {
        "function_words": 150,
        "plurals": 200,
        "pasts": 150,
        "negations": 4,
        "he": 4,
        "she": 4,
        "recommended": 20,
    }


def write(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def rows_of(texts: list[str], targets: list[str]) -> list[dict[str, str]]:
    return [{"prompt": x, "target": y} for x, y in zip(texts, targets, strict=True)]


def test_copies_are_removed_and_texts_with_two_labels_dropped(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(300)]
    targets = ["10" if i % 2 else "9" for i in range(300)]
    rows = rows_of([*texts, "TEXT  1", "text 2", " "], [*targets, "10", "10", "9"])
    task, notes = text_task("my.csv", read_csv(write(tmp_path / "my.csv", rows)))
    assert len(task.texts) == 299 == len({*task.groups})
    assert "text 2" not in task.texts
    assert [f"text {i}" in task.texts for i in (1, 3)] == [True, True]
    assert (task.labels == [int(text.split()[1]) % 2 == 1 for text in task.texts]).all()
    assert notes == [
        "my.csv: 1 text without a token left out",
        "my.csv: 3 of 303 rows are copies; 299 texts are left",
    ]
    fewer, _ = text_task("my.csv", rows, "9", items=100)
    assert (len(fewer.texts), fewer.labels.sum()) == (100, 50)
    whole, _ = text_task("my.csv", rows, items=None)
    assert len(whole.texts) == 303


@pytest.mark.parametrize(
    ("rows", "positive", "message"),
    [
        ([{"text": "a", "label": "b"}], None, "columns text, label; expected prompt"),
        (rows_of(["a", "b", "c"], ["a", "b", "c"]), None,
         r"target has 3 values \(a, b, c\); name the positive one with my.csv:a"),
        ([], None, "my.csv has no rows; expected some with a prompt and a target"),
        (rows_of(["a", "b"], ["x", "x"]), None, "every target is 'x'; a task needs two values"),
        (rows_of(["a", "b"], ["no", "yes"]), "yse", r"never 'yse' \(did you mean 'yes'"),
        (rows_of([f"t {i}" for i in range(400)], ["1"] * 31 + ["0"] * 369), None,
         "31 positives after removing copies; a task needs at least 100"),
    ],
)  # fmt: skip
def test_faults_of_csv_files(rows: Any, positive: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        text_task("my.csv", rows, positive)


def test_a_row_without_a_target_and_another_encoding_are_named(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text("prompt,target\na,0\nb,1\nc\n")
    with pytest.raises(InputError, match="target has 3 values"):
        text_task("my.csv", read_csv(str(path)))
    path.write_bytes("prompt,target\né,1\n".encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8"):
        read_csv(str(path))


def test_sets_of_sae_probes_are_read_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    import subprocess

    with pytest.raises(InputError, match="sae_probes is not installed; pip install sae-probes"):
        read_sae_probes("92_glue_sst2")
    if not shutil.which("zstd"):
        pytest.skip("needs the program zstd")
    folder = tmp_path / "sae_probes" / "data" / "cleaned_data"
    folder.mkdir(parents=True)
    (tmp_path / "sae_probes" / "__init__.py").write_text("raise RuntimeError('imported')")
    rows = rows_of(["a", "b, c"], ["0", "1"])
    write(folder / "92_glue_sst2.csv", rows)
    listed = {"Source": "GLUE ", "Dataset save name": "cleaned_data/92_glue_sst2.csv"}
    write(folder.parent / "probing_datasets_MASTER.csv", [listed])
    for file in [*folder.parent.rglob("*.csv")]:
        subprocess.run(["zstd", "-q", "--rm", file], check=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_sae_probes("92_glue_sst2") == (rows, "GLUE")
    with pytest.raises(InputError, match=r"not a set of sae-probes \(did you mean '92_glue_sst2'"):
        read_sae_probes("92_glue_sts2")
