"""Selection of latents that are associated with the label of a task."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit

from palinka.autoencoders import KSparseAutoencoder
from palinka.evaluation import selection as module
from palinka.evaluation.representations import Representations
from palinka.evaluation.selection import selection
from palinka.evaluation.tasks import Task
from palinka.evaluation.values import Dictionary, Subject


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A task of which 40 latents tell the label, two items of each of 1,500 documents."""
    random = np.random.default_rng(0)
    z = np.repeat(np.maximum(random.normal(size=(1500, 60)), 0.0), 2, axis=0).astype(np.float32)
    margin = z[:, :40].sum(axis=1)
    y = np.repeat(random.random(1500) < expit(margin - margin.mean())[::2], 2)
    z[5:, 59] = 0.0  # active on too few rows
    task = Task("made", y, np.repeat(np.arange(1500), 2))
    few = Task("few", y[:30], np.repeat(np.arange(15), 2))
    found = [(one, Representations(z, {"a": z[: len(one.labels)]}, z, y)) for one in (task, few)]  # type: ignore[arg-type]
    monkeypatch.setattr(module, "find_tasks", lambda *_: ([], [task, few], ["a remark"]))
    monkeypatch.setattr(module, "read_tasks", lambda *_: iter(found))
    autoencoder = KSparseAutoencoder(8, 60, k=4)
    dictionary = Dictionary("a", "a", 0, autoencoder, "", 60, "", np.zeros((60, 8), np.float32))
    model: Any = torch.nn.Module()
    return Subject(model, "", (dictionary,), lambda: iter(()), 0, False, np.zeros(8))


def test_latents_are_selected_on_one_item_of_each_document(subject: Subject) -> None:
    group = selection(subject, draws=5, simulations=40)
    by = {value.metric: value for value in group.values}
    assert list(by) == ["selected_bh", "selected_by", "selected_knockoffs"]
    masks, p = group.arrays["selection/a/made"], group.arrays["selection_p/a/made"]
    assert masks.sum(axis=1).tolist() == [value.value for value in by.values()]
    for value, chosen in zip(by.values(), masks, strict=True):
        assert (value.n, value.task) == ({"documents": 1500}, "made")
        assert chosen[:40].sum() >= 36
        assert chosen[40:].sum() <= 8
    assert np.flatnonzero(np.isnan(p)).tolist() == [59]
    assert group.notes[0].startswith("selection: by BH and BY")
    assert "a remark" in group.notes
    assert any("those by knockoffs: " in note for note in group.notes)
    assert any(note.startswith("few left out of selection: ") for note in group.notes)


def test_corpora_are_compared_by_the_documents_in_which_latents_are_active(
    subject: Subject,
) -> None:
    group = selection(subject, draws=1, simulations=0, test="frequency")
    difference, low, high = group.arrays["selection_frequency/a/made"]
    assert (difference[:40] > 0).all()
    assert ((low < difference) & (difference < high))[:59].all()
    p = group.arrays["selection_p/a/made"]
    assert ((p < 0.05) == ((low > 0) | (high < 0)))[:59].mean() > 0.95
    assert group.arrays["selection/a/made"][0, :40].sum() >= 30


def test_invalid_knockoffs_are_not_counted(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palinka.analyses.stats.knockoffs._false_shares", lambda *_: np.ones(40))
    group = selection(subject, draws=1, simulations=40)
    assert np.isnan(group.values[2].value)
    assert any("those by BY: " in note for note in group.notes)
    assert any("made: knockoffs not valid for these latents" in note for note in group.notes)
