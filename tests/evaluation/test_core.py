import json
from copy import copy
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.nn import functional

from palinka.analyses.figures.forest import Row, forest
from palinka.analyses.stats.bootstrap import document_ratio
from palinka.analyses.stats.comparison import seed_spread
from palinka.autoencoders import KSparseAutoencoder
from palinka.data import Context
from palinka.errors import track
from palinka.evaluation.core import ROW_RATIOS, core
from palinka.evaluation.report import evaluation_findings
from palinka.evaluation.representations import random_dictionaries
from palinka.evaluation.values import Dictionary, Group, Measurement, Subject, value_of
from palinka.language_models import LanguageModel

SITE, SKIP = "blocks.3.mlp.pre", 1


def dictionary(name, recipe, seed, k=16):
    torch.manual_seed(seed)
    autoencoder = KSparseAutoencoder(512, 64, k=k).eval()
    decoder = autoencoder.dictionary.detach().numpy()
    kind = type(autoencoder).__name__
    return Dictionary(name, recipe, seed, autoencoder, kind, 64, "", decoder)


@pytest.fixture(scope="module")
def contexts():
    """Thirteen contexts of unequal lengths, of ten documents."""
    random = np.random.default_rng(0)
    lengths = [12] * 8 + [9] * 4 + [1]
    documents = [np.sort(random.integers(0, 10, n)) for n in lengths]
    return [
        Context(random.integers(0, 400, n), own, np.arange(n))
        for n, own in zip(lengths, documents, strict=True)
    ]


@pytest.fixture(scope="module")
def subject(contexts):
    model = LanguageModel.from_pretrained("mini")
    named = [("a0", "a", 0), ("a1", "a", 1), ("a2", "a", 2), ("b0", "b", 0), ("b2", "b", 2)]
    dictionaries = [dictionary(*one, k=16 if one[1] == "a" else 24) for one in named]
    mean = np.random.default_rng(1).normal(0.0, 0.1, 512)
    return Subject(model, SITE, (*dictionaries,), lambda: iter(contexts), SKIP, False, mean)


@pytest.fixture(scope="module")
def group(subject):
    whole, rest = (Mock(side_effect=f) for f in (LanguageModel.logits, LanguageModel.run_from))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "logits", lambda *given: whole(*given))
        patch.setattr(LanguageModel, "run_from", lambda *given: rest(*given))
        tracked = Mock(side_effect=track)
        patch.setattr("palinka.evaluation.core.track", tracked)
        found = core(subject)
        assert len(tracked.call_args[0][0]) == 12  # those with a predicted token
    # Two lengths, so two batches: one whole pass, and from the site's block on one with zeros, one
    # with the mean, and one for each dictionary, five trained and as many at initialization.
    assert whole.call_count == 2
    assert rest.call_count == 2 * (2 + 2 * len(subject.dictionaries))
    return found


def test_a_control_is_measured_without_losses(subject, group):
    model = copy(subject.model)  # trained weights: the rows are those of the fixture
    model.spec = replace(model.spec, control="permuted")
    found = core(replace(subject, model=model))
    assert {one.metric for one in found.measurements} == {*ROW_RATIOS, "dead"}
    losses = [one for one in group.measurements if one.metric in {*ROW_RATIOS, "dead"}]
    for one, other in zip(found.measurements, losses, strict=True):
        assert (one.metric, one.of) == (other.metric, other.of)
        assert one.value == pytest.approx(other.value, rel=1e-6)
    assert not found.values


def test_rows_are_measured_as_by_a_plain_transcription(subject, group, contexts):
    kept = [context for context in contexts if context.tokens.size > 1]
    one, mean = subject.dictionaries[3], torch.from_numpy(subject.mean)
    sums = np.zeros((10, 6))
    fired = np.zeros(64)
    for context in kept:
        ids = torch.from_numpy(context.tokens)[None]
        x = subject.model.read_contexts(ids, [SITE])[SITE][0][SKIP:]
        with torch.no_grad():
            z = one.autoencoder.encode(x)
            out = one.autoencoder.decode(z).double()
        fired += (z != 0).sum(0).numpy()
        for place, document in enumerate(context.documents[SKIP:]):
            row = x[place].double()
            sums[document] += [
                1.0,
                float((row - mean).square().sum()),
                float((row - out[place]).square().sum()),
                float((z[place] != 0).sum()),
                float(z[place].abs().sum()),
                float(functional.cosine_similarity(row, out[place], dim=0)),
            ]
    totals = sums.sum(axis=0)
    expected = {"fvu": totals[2] / totals[1]}
    expected |= {n: totals[i] / totals[0] for i, n in ((3, "l0"), (4, "l1"), (5, "cosine"))}
    expected["dead"] = float((fired == 0).sum())
    found = {m.metric: m for m in group.measurements if m.of == "b0"}
    assert {n: found[n].value for n in expected} == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(group.arrays["density/b0"], fired / totals[0])
    residual = (sums[:, 2] - expected["fvu"] * sums[:, 1]) / totals[1]
    share = sums[:, 1] / totals[1]
    np.testing.assert_allclose(
        found["fvu"].influence, residual / np.sqrt(1 - share), rtol=1e-3, atol=1e-8
    )
    assert found["dead"].influence is None
    assert {v.of for v in group.values if not v.metric.endswith("_gap")} == {
        "mini", "random_dictionary of a", "random_dictionary of b",
    }  # fmt: skip


def test_losses_are_given_beside_those_at_initialization(subject, group):
    random = random_dictionaries(subject, 0, 3)[:3]
    assert {one.recipe for one in random} == {"a"}
    apart = core(replace(subject, dictionaries=tuple(random)), {}).measurements
    values = {(v.metric, v.of): v for v in group.values}
    for metric in ("ce_delta", "kl", "loss_recovered"):
        own, theirs = (
            [m.value for m in some if m.metric == metric and m.of in names]
            for some, names in (
                (group.measurements, {"a0", "a1", "a2"}), (apart, {one.name for one in random})
            )
        )  # fmt: skip
        beside, gap = values[metric, "random_dictionary of a"], values[f"{metric}_gap", "a"]
        assert beside.value == pytest.approx(np.mean(theirs), rel=1e-6)
        assert gap.value == pytest.approx(np.mean(own) - np.mean(theirs), rel=1e-4, abs=1e-6)
        assert gap.low < gap.value < gap.high
        assert group.bands[metric][0] <= beside.low
    # These dictionaries are not trained either.
    assert group.weak["a"].startswith("the dictionary at initialization in ce_delta")
    assert not [note for note in group.notes if "has an L0" in note]
    assert any(note.startswith("cosine is of activations as they are;") for note in group.notes)


def test_rows_of_shuffled_tokens_belong_to_their_documents(subject, contexts):
    model, one = subject.model.randomized("tokens"), subject.dictionaries[0]
    found = core(replace(subject, model=model, dictionaries=(one,), skip=3)).measurements
    sums = np.zeros((10, 2))
    for context in (context for context in contexts if context.tokens.size > 1):
        x = model.read_contexts(torch.from_numpy(context.tokens)[None], [SITE])[SITE][0][3:]
        with torch.no_grad():
            errors = x - one.autoencoder.decode(one.autoencoder.encode(x))
        columns = [errors, x - torch.from_numpy(subject.mean)]
        rows = torch.stack([c.double().square().sum(1) for c in columns], dim=1).numpy()
        np.add.at(sums, context.documents[3:], rows)
    fvu = next(m for m in found if m.metric == "fvu")
    expected = document_ratio(*sums.T)
    assert fvu.value == pytest.approx(expected.value, rel=1e-5)
    np.testing.assert_allclose(fvu.influence, expected.influence, rtol=1e-3, atol=1e-6)


def test_recipes_are_compared_and_written(subject, group, tmp_path):
    weak = Group(weak={"a": "the random model"}, bands={"fvu": (0.9, 1.1)})
    findings = evaluation_findings(subject, {"core": group, "controls": weak}, {"x": 1})
    folder = findings.write(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "evaluation.json", "values.csv", "comparisons.csv", "evaluation.md", "arrays.npz",
        "forest.png", "forest.svg",
    }  # fmt: skip
    record = json.loads((folder / "evaluation.json").read_text())
    assert (record["format"], record["model"]["site"]) == (1, SITE)
    values = {(v["metric"], v["of"]): v for v in record["values"]}
    recipe, seed = values["fvu", "a"], values["fvu", "a0"]
    assert (recipe["n"], recipe["given"]) == ({"documents": 10, "seeds": 3}, "")
    assert (seed["n"], seed["given"]) == ({"documents": 10}, "weights")
    assert recipe["low"] < recipe["value"] < recipe["high"]
    two = values["fvu", "b"]
    both = " and ".join(f"{values['fvu', name]['value']:.4g}" for name in ("b0", "b2"))
    assert (two["low"], two["method"]) == (None, f"none: two seeds, {both}")
    assert values["dead", "a"]["given"] == "data"
    assert values["dead", "a"]["low"] >= 0, "of a count"
    assert values["dead", "a0"]["method"].startswith("none: a resample")
    l0 = {one["name"]: one["l0"] for one in record["dictionaries"]}
    assert l0 == pytest.approx({n: 16.0 if n[0] == "a" else 24.0 for n in l0})
    comparisons = {c["metric"]: c for c in record["comparisons"]}
    assert "ce_spliced" not in comparisons
    fvu = comparisons["fvu"]
    paired = [values["fvu", f"a{s}"]["value"] - values["fvu", f"b{s}"]["value"] for s in (0, 2)]
    assert fvu["difference"] == pytest.approx(np.mean(paired))
    assert fvu["n"] == {"seeds": 2, "documents": 10}
    assert fvu["note"] == "L0 of 16 and 24: they are different points of a curve."
    assert "and the random model." in fvu["remark"]
    detectables = {d["metric"]: d for d in record["detectable"]}
    detectable = detectables["fvu"]
    assert "l0" not in detectables, "the same for all seeds"
    seeds = [
        [values["fvu", f"{r}{s}"]["value"] for s in own]
        for r, own in (("a", (0, 1, 2)), ("b", (0, 2)))
    ]
    assert detectable["sd"] == pytest.approx(seed_spread(seeds)[0])
    assert (detectable["df"], detectable["n"]) == (3, 2)
    text = (folder / "evaluation.md").read_text()
    assert "10 documents, 3 seeds" in text
    assert "| a0" not in text
    assert text.count(fvu["remark"]) == 1
    headline = fvu["remark"].partition(". ")[0].removesuffix(".")
    assert text.splitlines()[2] == f"**{headline}.**", "before any number"
    assert record["notes"][0] == f"{headline}."
    assert {note for c in only_fvu(subject, group) for note in [c["note"]]} == {fvu["note"]}
    only = evaluation_findings(subject, {"core": group}, {}, against=["a"]).record["comparisons"]
    assert {(c["a"], c["b"]) for c in only} == {("b", "a")}


def only_fvu(subject, group):
    alone = Group([m for m in group.measurements if m.metric == "fvu"])
    return evaluation_findings(subject, {"other": alone}, {}).record["comparisons"]


def test_tasks_without_a_claim_are_not_compared(subject, group):
    fvu = [m for m in group.measurements if m.metric == "fvu"]
    tasks = [replace(m, metric="auc", task=task) for task in ("negated", "parity") for m in fvu]
    record = evaluation_findings(subject, {"probing": Group(tasks)}, {}).record
    assert [one["task"] for one in record["comparisons"]] == ["negated"]
    assert {one["task"] for one in record["values"]} == {"negated", "parity"}


def test_few_documents_have_no_interval(subject, contexts):
    one = Context(contexts[0].tokens, np.zeros(12, dtype=np.int64), contexts[0].positions)
    few = Subject(**{**vars(subject), "contexts": lambda: iter([one])})
    found = core(few)
    fvu = [m for m in found.measurements if m.metric == "fvu"]
    for of in (fvu[:1], fvu[:3]):  # neither one, nor over seeds alone
        value = value_of(of, "a")
        assert np.isnan([value.low, value.high]).all()
        assert value.method == "none: fewer than 8 documents"
    assert any("no intervals" in note for note in found.notes)
    record = evaluation_findings(few, {"core": found}, {}, margin=9.0).record
    verdicts = {c["verdict"] for c in record["comparisons"] if c["metric"] != "dead"}
    assert verdicts == {"no interval"}


def test_spreads_that_differ_are_not_pooled(subject):
    def measured(metric, of, value):
        return Measurement(metric, of, value, None, "rows", 5)

    random = np.random.default_rng(2)
    ones = tuple(
        Dictionary(**{**vars(subject.dictionaries[0]), "name": f"{r}{s}", "recipe": r, "seed": s})
        for r in "ab" for s in range(12)
    )  # fmt: skip
    spread = {"a": 1.0, "b": 20.0}
    group = Group([measured("x", d.name, spread[d.recipe] * random.normal()) for d in ones])
    alike = Subject(**{**vars(subject), "dictionaries": ones})
    rows = evaluation_findings(alike, {"g": group}, {}).record["detectable"]
    assert [row["of"] for row in rows] == ["a", "b"]


def test_the_forest_has_a_row_for_each_value_and_a_band_for_the_control():
    rows = [Row("wide", 0.5, 0.4, 0.6, (0.45, 0.55)), Row("narrow", 0.7, np.nan, np.nan)]
    figure = forest({"fvu": rows, "l0": rows}, {"fvu": (0.1, 0.2)})["forest"]
    fvu, l0 = figure.axes
    assert [text.get_text() for text in fvu.get_yticklabels()] == ["wide", "narrow"]
    assert (len(fvu.patches), len(l0.patches)) == (1, 0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["control"]
    assert not forest({"fvu": rows})["forest"].legends
    assert figure.get_suptitle() == "Metrics with 95 % intervals"
    many = forest({"fvu": [Row(f"k={k}", 0.1, 0.0, 0.2) for k in range(20)]})["forest"]
    assert many.get_suptitle().endswith("(the first 16 of 20 rows)")
    assert fvu.lines[1].get_xdata().tolist() == [0.4, 0.6]
