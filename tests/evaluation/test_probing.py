"""Probing of dictionaries of the bundled model."""

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from threadpoolctl import threadpool_info, threadpool_limits

from palinka.analyses.stats.probes import SparseProbe
from palinka.autoencoders import BatchTopKAutoencoder, JumpReLUAutoencoder, KSparseAutoencoder
from palinka.data import Context
from palinka.errors import InputError
from palinka.evaluation import protocols
from palinka.evaluation.probing import _measure, _permute, probing
from palinka.evaluation.report import Evaluation, summary
from palinka.evaluation.representations import random_dictionary, read_texts
from palinka.evaluation.tasks import Task
from palinka.evaluation.values import Dictionary, Group, Measurement, Subject, Value, value_of
from palinka.language_models import LanguageModel
from palinka.language_models.edits import latents_of

SITE = "blocks.3.resid"


def dictionary(autoencoder: Any, name: str) -> Dictionary:
    kind, decoder = type(autoencoder).__name__, autoencoder.dictionary.detach().numpy()
    size = autoencoder.latent_dim
    return Dictionary(name, "recipe", 0, autoencoder.eval(), kind, size, "", decoder)


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Two random dictionaries, and contexts of words that repeat."""
    model = LanguageModel.from_pretrained("mini")
    random = np.random.default_rng(0)
    listed = "he she it walked said the a house tree river and of in"
    words = [f" {word}" for word in listed.split()]
    contexts = []
    for number in range(60):
        text = "".join(random.choice(words, 50))
        ids = np.array(model.tokenizer(text, add_special_tokens=False)["input_ids"][:60])
        contexts.append(Context(ids, np.full(len(ids), number), np.arange(len(ids))))
    torch.manual_seed(0)
    made = [dictionary(KSparseAutoencoder(128, 64, k=8), name) for name in ("a", "b")]
    return Subject(model, SITE, tuple(made), lambda: iter(contexts), 0, False, np.zeros(128))


@pytest.fixture(scope="module")
def found(subject: Subject) -> Group:
    tasks = ["gender", "function_word_next", "random_word"]
    return probing(subject, tasks, k=[1, 4], items=200, shuffles=4)


def test_measurements_are_paired_and_have_their_units(found: Group) -> None:
    by = {(m.metric, m.of, m.task, m.k, m.unit): m for m in found.measurements}
    for name in ("a", "b"):
        parts = [by["auc", name, task, 4, "documents"] for task in ("gender", "function_word_next")]
        mean = by["auc_given_tasks", name, "", 4, "documents"]
        sample = by["auc", name, "", 4, "tasks"]
        assert mean.value == sample.value == pytest.approx(np.mean([p.value for p in parts]))
        assert sample.influence is not None
        spread = np.std([p.value for p in parts], ddof=1) / np.sqrt(2)
        assert np.sqrt(np.square(sample.influence).sum()) == pytest.approx(spread)
        assert (sample.freedom, mean.count) == (1, 60)  # contexts
    assert by["auc", "a", "random_word", 1, "documents"].value > 0.6  # a lookup of the word


def test_contributions_of_a_document_to_several_tasks_add_up() -> None:
    empty, probes = np.empty(0), {}
    documents = {"x": [0, 1, 2], "y": [1, 2, 3], "parity": [0, 1, 2]}
    for scale, name in ((1.0, "x"), (10.0, "y"), (1.0, "parity")):
        influence = scale * np.array([[1.0, 2.0, 3.0]])
        probe = SparseProbe((4,), np.array([0.5]), empty, empty, influence, empty, empty)  # type: ignore[arg-type]
        probes[name] = {"a": probe}
    tasks = [
        Task(name, np.ones(3, bool), np.array(own), is_control=name == "parity")
        for name, own in documents.items()
    ]
    _, (mean, sample) = _measure("a", tasks, probes, 0, 4)
    assert (mean.is_compared, sample.is_compared) == (True, False), "of two tasks"
    assert mean.influence is not None
    np.testing.assert_allclose(mean.influence, [0.5, 6.0, 11.5, 15.0])


def test_matched_tasks_and_selectivity_by_their_definitions() -> None:
    empty, probes, tasks = np.empty(0), dict[str, Any](), list[Task]()
    auc = {"late": 0.7, "negated": 0.8, "plural": 0.9, "past": 1.0, "random_word": 0.6}
    auc |= {f"more {number}": 0.75 for number in range(4)}
    random = np.random.default_rng(0)
    for name, value in auc.items():
        scores, influence = np.array([value]), random.standard_normal((1, 3))
        probe = SparseProbe((4,), scores, empty, empty, influence, empty, empty)  # type: ignore[arg-type]
        probes[name] = {"a": probe}
        is_control = name == "random_word"
        tasks.append(Task(name, np.ones(3, bool), np.arange(3), is_control=is_control))
    found = {m.metric: m for m in _measure("a", tasks, probes, 0, 4)[1]}
    of = {name: probe["a"].influence[0] for name, probe in probes.items()}
    assert found["auc_matched"].value == pytest.approx(0.75)
    assert found["auc_matched"].count == 2
    expected = (of["late"] + of["negated"]) / 2
    np.testing.assert_allclose(found["auc_matched_given_tasks"].influence, expected)
    assert found["selectivity"].value == pytest.approx(found["auc"].value - 0.6)
    mean = np.mean([own for name, own in of.items() if name != "random_word"], axis=0)
    np.testing.assert_allclose(found["selectivity"].influence, mean - of["random_word"])
    compared = [name for name, one in found.items() if one.is_compared]
    assert compared == ["auc", "auc_matched_given_tasks", "selectivity"], "8 tasks, and 2 matched"


def test_one_task_stands_for_the_mean_and_documents_may_be_too_few(subject: Subject) -> None:
    single = replace(subject, dictionaries=subject.dictionaries[:1])
    group = probing(single, ["random_word", "gender"], k=4, items=100, shuffles=0)
    (own,) = [m for m in group.measurements if (m.of, m.task) == ("a", "gender")]
    values = {(v.metric, v.of, v.task): v for v in group.values if v.k in (4, None)}
    dense = values["auc", "dense", "gender"]  # of any number of columns
    gaps = {metric: v for (metric, of, _), v in values.items() if of == "recipe" and v.task}
    assert gaps["auc_minus_dense"].value == pytest.approx(own.value - dense.value)
    assert (gaps["auc_minus_dense"].method, dense.value) == (dense.method, 1.0)
    assert dense.method.startswith("none: the AUC is 1 in every half")
    beaten = values["baselines_beaten", "recipe", ""]
    assert (beaten.value, beaten.n) == (sum(v.low > 0 for v in gaps.values()), {"baselines": 9})
    assert 0 < beaten.value < 9
    few = list(subject.contexts())[:7]
    short = probing(replace(subject, contexts=lambda: iter(few)), ["gender"], items=20)
    assert "documents, expected at least 10 in 8" in short.notes[0]


def test_every_baseline_has_values_and_every_recipe_differences(found: Group) -> None:
    baselines = {"dense", "pca", "pca_selected", "units", "random_directions", "random_dictionary",
                 "tokens_k", "tokens_all", "length"}  # fmt: skip
    assert {v.of for v in found.values} == baselines | {"recipe", "shuffled_labels"}
    gaps = {(v.metric, v.k): v for v in found.values if v.of == "recipe"}
    assert {metric for metric, _ in gaps} == {f"auc_minus_{name}" for name in baselines}
    mine = {(v.of, v.k): v for v in found.values if v.metric == "auc_given_tasks"}
    own = [m.value for m in found.measurements if (m.metric, m.k) == ("auc_given_tasks", 4)]
    gap = gaps["auc_minus_units", 4]
    assert gap.value == pytest.approx(np.mean(own) - mine["units", 4].value)
    assert (len(own), gap.n["seeds"], gap.low == gap.low) == (2, 2, False)  # of two seeds
    assert found.arrays["probing_auc"].shape == (11, 3, 2)
    null = [v for v in found.values if v.of == "shuffled_labels"]
    assert [v.n["permutations"] for v in null] == [6, 6]
    assert {*found.figures} == {"probing"}


def test_a_recipe_has_its_own_random_dictionary_alone(subject: Subject) -> None:
    recipes = zip(subject.dictionaries, ("k=8", "other/k=8"), strict=True)
    two = tuple(replace(one, recipe=recipe) for one, recipe in recipes)
    many = replace(subject, dictionaries=two)
    found = probing(many, ["function_word_next"], k=1, items=40, shuffles=0)
    assert "k_for_dense" in {v.metric for v in found.values}
    for of in ("k=8", "other/k=8"):
        random = {v.metric for v in found.values if v.of == of and "random_dictionary" in v.metric}
        assert random == {f"auc_minus_random_dictionary of {of}"}


def test_values_of_all_k_are_in_one_row(found: Group) -> None:
    lines = summary(Evaluation(tuple(found.values))).splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    (row,) = [cells for cells in table if cells[:2] == ["auc_given_tasks", "units"]]
    values = [v for v in found.values if (v.metric, v.of) == ("auc_given_tasks", "units")]
    assert [v.k for v in values] == [1, 4]
    for cell, v in zip(row[2:4], values, strict=True):
        assert float(cell.split()[0]) == pytest.approx(v.value, abs=0.01)
        assert cell.endswith(")")


def test_the_printed_summary_has_headlines_and_reasons_below_its_table() -> None:
    reason = "none: a resample has fewer tokens, on which more latents look dead"
    control = [Value("dead", "a on text", 9.0), Value("dead_gap", "a", -6.0)]
    values = [
        Value("dead", "a", 3.0, n={"tokens": 9}, method=reason),
        Value("k_for_dense", "a", np.nan, method="none: > 128"),
        Value("auc_minus_units", "a", 0.1, 0.0, 0.2),
        Value("auc", "a", 0.7, 0.6, 0.8),
        Value("auc", "a", 0.9, 0.8, 1.0, task="past"),
    ]
    whole = summary(Evaluation(tuple(values)))
    assert max(len(line) for line in whole.splitlines()) < 100
    assert "\nNo interval of dead: a resample has fewer tokens, on which more" in whole
    assert "| k_for_dense     | a  | \N{EN DASH}     | > 128 " in whole
    assert "past" in whole
    short = summary(Evaluation(tuple(values)).headlines())
    assert [line.split()[1] for line in short.splitlines() if line.startswith("|")][2:] == [
        "dead", "k_for_dense", "auc",
    ]  # fmt: skip
    beside = summary(Evaluation((*values, *control))).splitlines()
    named = [line.split()[1] for line in beside if line.startswith("|")][2:]
    assert named[:4] == ["dead", "dead", "dead_gap", "k_for_dense"]
    few = [Value("auc", "a", 0.5, 0.0, 1.0, {"tasks": 2}), Value("auc_given_tasks", "a", 0.5)]
    printed = [v.metric for v in Evaluation((*values[:1], *few)).headlines().values]
    assert printed == ["dead", "auc_given_tasks"]
    many = [replace(few[0], n={"tasks": 8}), few[1]]
    assert [v.metric for v in Evaluation(tuple(many)).headlines().values] == ["auc"]
    null = Value("auc", "shuffled_labels", 0.5, 0.4, 0.6)
    assert "auc past" in summary(Evaluation((null, values[-1])).headlines())


def test_the_interval_of_an_auc_is_symmetric_in_its_log_odds() -> None:
    one = Measurement("auc", "a", 0.98, np.full(4, 0.01), "documents", 8, 3.0, "task")
    found, half = value_of([one], "a"), stats.t.ppf(0.975, 3) * 0.02 / (0.98 * 0.02)
    odds = [value / (1 - value) for value in (found.low, 0.98, found.high)]
    np.testing.assert_allclose(np.diff(np.log(odds)), half, rtol=1e-9)
    certain = replace(one, value=1.0, influence=np.full(4, np.nan))
    assert np.isnan(value_of([certain], "a").low)


def test_a_dense_probe_and_lookups_find_the_word(found: Group) -> None:
    names = found.arrays["probing_names"].tolist()
    auc = found.arrays["probing_auc"][:, 0, 0]
    assert auc[names.index("tokens_all")] > 0.99
    assert auc[names.index("dense")] > 0.99
    assert abs(auc[names.index("length")] - 0.5) < 0.1


@pytest.mark.slow
def test_labels_without_a_meaning_have_an_auc_of_one_half(subject: Subject) -> None:
    """Documents have words of their own, by which halves that share one would know its label."""
    listed, found = "he she it the a house tree river and of in", []
    words = [f" {word}" for word in listed.split()]
    for seed in range(12):
        random, contexts = np.random.default_rng(seed), []
        for number in range(120):
            text = "".join(random.choice(random.choice(words, 4, replace=False), 50))
            ids = np.array(subject.model.tokenizer(text, add_special_tokens=False)["input_ids"])
            contexts.append(Context(ids, np.full(len(ids), number), np.arange(len(ids))))
        own = replace(subject, contexts=partial(iter, contexts))
        group = probing(own, ["random_document"], k=5, items=400, shuffles=6, seed=seed)
        (auc,) = [m.value for m in group.measurements
                  if (m.metric, m.of, m.task) == ("auc", "a", "random_document")]  # fmt: skip
        (null,) = [v.value for v in group.values if v.of == "shuffled_labels"]
        found.append([auc, null])
    error = np.std(found, axis=0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - 0.5) <= 3 * error).all()
    assert (error < 0.02).all()


def test_labels_are_permuted_by_group() -> None:
    labels, groups = np.repeat([True, False, True, False], 5), np.repeat([3, 1, 0, 2], 5)
    for seed in range(5):
        found = _permute(labels, groups, np.random.default_rng(seed))
        assert [len({*found[groups == one]}) for one in range(4)] == [1] * 4
        assert found.sum() == 10


@pytest.mark.parametrize("kind", [KSparseAutoencoder, BatchTopKAutoencoder, JumpReLUAutoencoder])
def test_the_random_dictionary_is_as_sparse(kind: Any) -> None:
    torch.manual_seed(1)
    settings = {} if kind is JumpReLUAutoencoder else {"k": 6}
    trained = kind(32, 128, **settings)
    with torch.no_grad():
        trained.encoder.weight.mul_(1.7)
        if kind is BatchTopKAutoencoder:
            trained.threshold.fill_(1.0)
    x = torch.randn(2000, 32)
    random = random_dictionary(dictionary(trained, "a"), x, 3)
    assert random is not None
    encode = random.encode
    theirs, ours = (float((z != 0).sum(1).float().mean()) for z in (trained.encode(x), encode(x)))
    assert ours == pytest.approx(theirs, rel=0.01)
    assert not torch.equal(encode(x), trained.encode(x))


def test_texts_are_cut_from_the_left_and_pooled_after_encoding(subject: Subject) -> None:
    texts = ["the house " * 200 + "a tree", "she said it", ""]
    task = Task("t", np.array([True, False, True]), np.arange(3), texts)
    encode = partial(latents_of, subject.dictionaries[0].autoencoder)
    for pooling, reduce in (("mean", lambda z: z.mean(0)), ("max", lambda z: z.amax(0)),
                            ("last", lambda z: z[-1])):  # fmt: skip
        kept, one = read_texts(subject, task, {"a": encode}, pooling)  # type: ignore[arg-type]
        assert (kept.texts, kept.labels.tolist(), kept.groups.tolist()) == (
            texts[:2], [True, False], [0, 1],
        )  # fmt: skip
        x = subject.model.read(texts[1], SITE)[SITE][0]
        np.testing.assert_allclose(one.latents["a"][1], reduce(encode(x)), 1e-4, 1e-4)
        np.testing.assert_allclose(one.dense[1], reduce(x), 1e-4, 1e-4)
    ids = subject.model.tokenizer(texts[0], add_special_tokens=False)["input_ids"][-256:]
    x = subject.model.read(torch.tensor([ids]), SITE)[SITE][0, -1]
    np.testing.assert_allclose(one.dense[0], x, atol=1e-4)
    assert one.length.tolist()[0] == 256


def test_texts_shorter_than_what_is_skipped_are_refused(subject: Subject) -> None:
    task = Task("t.csv", np.array([True, False]), np.arange(2), ["yes", "no"])
    with pytest.raises(
        InputError, match=r"t.csv: no text has more than the 40 tokens that the dict"
    ):
        read_texts(replace(subject, skip=40), task, {}, "last")


def test_texts_and_published_protocols(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, path = np.random.default_rng(1), tmp_path / "my.csv"
    words = ["the", "a", "of", "in", "house", "tree", "river", "and"]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "target"])
        for number in range(220):
            text = " ".join(random.choice(words, 8))
            writer.writerow([f"{'she' if number % 2 else 'he'} {text} {number}", number % 2])
    group = probing(subject, [f"{path}:1"], k=[2], pooling="mean", shuffles=0)
    (one,) = [m for m in group.measurements if m.of == "a"]
    assert (one.unit, one.count, one.task) == ("texts", 220, f"{path}")
    threads, whole = list[int](), protocols._fit

    def fit(*given: Any) -> Any:
        threads.extend(x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas")
        return whole(*given)

    monkeypatch.setattr(protocols, "_fit", fit)
    for protocol, metrics in (("saebench", 1), ("sae_probes", 5)):
        with threadpool_limits(2, "blas"):
            group = probing(subject, [str(path)], k=[2], protocol=protocol)  # type: ignore[arg-type]
        assert {*threads} == {1}
        assert len(group.values) == 2 * metrics
        assert "no interval" in group.notes[0]
        assert all(np.isnan(v.low) and v.method.startswith("none: ") for v in group.values)


def test_a_corpus_without_enough_tokens_has_no_tasks(subject: Subject) -> None:
    assert probing(subject, ["plural"]).notes == [
        "plural left out: 0 tokens of each class in 0 documents, expected at least 400 in 8",
        "no task is left; give more text",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": [128]}, "k is 128, the dictionary has 64 latents; give a smaller k"),
        ({"tasks": ["genders"], "k": [1]}, r"genders is not a task \(did you mean 'gender'\?\);"),
        ({"tasks": ["buitlin"], "k": [1]}, r"buitlin is not a task \(did you mean 'builtin'\?\);"),
        ({"tasks": ["missing.csv"], "k": [1]}, "missing.csv does not exist"),
        ({"tasks": ["gender"], "k": [1], "protocol": "saebench"}, "takes texts"),
        ({"protocol": "saebench", "items": 9, "seed": 1}, "saebench takes no items or seed; leave"),
        ({"penalty": "l1"}, "probing: protocol palinka takes no penalty; leave it out"),
    ],
)
def test_faults_are_named(subject: Subject, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        probing(subject, **options)
