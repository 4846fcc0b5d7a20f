from typing import Any

import numpy as np
import pytest
import torch

from palinka.analyses.stats.latents import TopHeap
from palinka.atlas.facts import Options, choose_from_bands, gather, random_priorities
from palinka.atlas.text import BEFORE, Windows
from palinka.autoencoders import KSparseAutoencoder
from palinka.data import ActivationDataModule, Passage
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule

WORDS = " ".join(f"{word} the river" for word in ("over", "under", "behind", "along") * 12)


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    "settings",
    [
        {"skip_first": True, "validation_tokens": 310},
        {"corpus": Passage(WORDS), "in_memory": True, "validation_fraction": 0.0},
    ],
    ids=["cache", "in_memory"],
)
def test_windows_hold_what_the_stored_rows_give(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    data = ActivationDataModule(context_length=32, train_tokens=64, batch_size=64, **settings)
    module = SparseAutoencoderModule(KSparseAutoencoder(data.width, 24, k=3))
    module.scaling.set(torch.randn(data.width), 0.5)
    data.prepare_data()
    data.setup("")
    facts = gather(data, module, Options(contexts=3, sample=12, quantiles=2, per_quantile=2))
    rows = data.validation_rows
    latents = module.encode(rows.read_rows(0, rows.rows)).detach().float().numpy()
    by_place = {}
    for row in range(rows.rows):
        context = rows.context(row)
        token = context.tokens[context.offset]
        by_place[context.document, context.position] = (token, latents[row])
    seen = 0
    for windows in (facts.top, facts.bands):
        for latent, column in zip(*np.nonzero(windows.places >= 0), strict=True):
            document = int(windows.documents[latent, column])
            position = int(windows.positions[latent, column])
            for step, token in enumerate(windows.tokens[latent, column].tolist(), start=-BEFORE):
                value = windows.activations[latent, column, step + BEFORE]
                if token < 0:
                    assert value == 0.0
                elif (document, position + step) in by_place:
                    expected, row = by_place[document, position + step]
                    assert token == expected
                    # As near as two ways to multiply matrices come.
                    assert value == pytest.approx(row[latent], abs=1e-4)
                    seen += 1
            assert windows.activations[latent, column, BEFORE] > 0
    assert seen > 500
    np.testing.assert_allclose(facts.top.peak, facts.report.top.values, atol=1e-4)
    shown = (facts.bands.places >= 0).sum(axis=1)
    assert (shown == np.minimum(4, (latents > 0).sum(axis=0))).all()
    np.testing.assert_array_equal(facts.histogram.counts.sum(axis=1), (latents != 0).sum(axis=0))
    tokens = facts.tokens
    assert rows.tokens().tolist() == [token for token, _ in by_place.values()]
    sums = np.bincount(tokens.latent, tokens.mean * tokens.counts[tokens.token], 24)
    np.testing.assert_allclose(sums, latents.clip(0).sum(axis=0), rtol=1e-4)
    raw = np.linalg.norm(rows.read_rows(0, rows.rows).float(), axis=1)
    assert facts.norm == pytest.approx(np.median(raw), rel=0.01)
    step = module.decode(torch.eye(24)) - module.decode(torch.zeros(24))
    np.testing.assert_allclose(facts.lengths, step.detach().norm(dim=1), rtol=1e-4)


def test_texts_come_from_bands_of_equal_probability() -> None:
    values = np.zeros((2, 10, 25), dtype=np.float32)
    values[0, :, BEFORE] = [3, 1, 4, 10, 5, 9, 2, 6, 8, 7]
    values[1, :3, BEFORE] = [2, 1, 3]
    places = np.zeros((2, 10), dtype=np.int64)
    places[1, 3:] = -1
    sample = Windows(places, np.zeros(values.shape, np.int32), values, places, places)
    chosen = sample.chosen(choose_from_bands(sample, 2, 2))
    # The upper half is 10 to 6, the lower 5 to 1.
    first = chosen.peak[0].tolist()
    assert sorted(first, reverse=True) == first
    assert [value > 5 for value in first] == [True, True, False, False]
    # Of three the upper half is one, the lower two, and none is shown twice.
    assert np.where(chosen.places[1] >= 0, chosen.peak[1], 0).tolist() == [3, 0, 2, 1]


def sampled(batches: list[np.ndarray], n: int) -> np.ndarray:
    heap, random = TopHeap(batches[0].shape[1], n), np.random.default_rng(3)
    for batch in batches:
        heap.add(random_priorities(batch, random))
    return heap.result().rows


def test_only_active_rows_are_drawn_and_each_once() -> None:
    random = np.random.default_rng(0)
    batches = [(random.random((50, 4)) < 0.3).astype(np.float32) for _ in range(4)]
    batches[1][:, 3] = -1.0  # below zero is not active
    for batch in batches:
        batch[:, 2] = 0.0
    batches[2][5, 2] = 0.5
    rows, whole = sampled(batches, 8), np.concatenate(batches)
    for latent in (0, 1, 3):
        assert len(set(rows[latent])) == 8
        assert (whole[rows[latent], latent] > 0).all()
    assert rows[2].tolist() == [105, *[-1] * 7]


def test_every_active_row_is_as_probable_as_the_others() -> None:
    # The strength must not matter, nor the batch: 2,000 latents draw 5 of 20 rows each.
    strength = np.linspace(0.01, 100.0, 20, dtype=np.float32)
    rows = sampled(np.array_split(np.repeat(strength[:, None], 2000, axis=1), 3), 5)
    # 500 expected of each, with a standard deviation of 19.
    assert rows.size == 10_000
    assert (abs(np.bincount(rows.ravel(), minlength=20) - 500) < 80).all()


def test_options_are_checked() -> None:
    for option, message in (
        ({"contexts": 0}, "contexts must be an integer of at least 1"),
        ({"sample": 5}, "sample 5; expected at least 0, and at least 15"),
        ({"seed": -1}, "seed is -1"),
    ):
        with pytest.raises(InputError, match=message):
            Options(**option)
