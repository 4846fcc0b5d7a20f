"""Built-in tasks, CSV files and sets of sae-probes."""

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest

from palinka.analyses.stats.probes import clustered_auc
from palinka.data import Context
from palinka.evaluation import tasks as kinds
from palinka.evaluation.tasks import (
    BUILT_IN,
    CONTROLS,
    Segment,
    draw_pairs,
    find_segments,
    label_tokens,
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
