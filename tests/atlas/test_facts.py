from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from palinka.atlas.facts import Options, choose_from_bands, gather
from palinka.atlas.text import BEFORE, Windows
from palinka.autoencoders import KSparseAutoencoder
from palinka.data import ActivationDataModule, Passage
from palinka.errors import InputError
from palinka.training import SparseAutoencoderModule


def made(**options: Any) -> tuple[ActivationDataModule, SparseAutoencoderModule]:
    torch.manual_seed(0)
    data = ActivationDataModule(context_length=32, train_tokens=64, batch_size=64, **options)
    module = SparseAutoencoderModule(KSparseAutoencoder(data.width, 24, k=3))
    module.scaling.set(torch.randn(data.width), 0.5)
    data.prepare_data()
    data.setup("")
    return data, module


def passage() -> dict[str, Any]:
    words = " ".join(f"{word} the river" for word in ("over", "under", "behind", "along") * 12)
    return {"corpus": Passage(words), "in_memory": True, "validation_fraction": 0.0}


@pytest.mark.parametrize(
    "settings",
    [{"skip_first": True, "validation_tokens": 310}, passage()],
    ids=["cache", "in_memory"],
)
def test_windows_hold_what_the_stored_rows_give(workspace: Path, settings: dict[str, Any]) -> None:
    data, module = made(**settings)
    facts = gather(data, module, Options(contexts=3, sample=12, quantiles=2, per_quantile=2))
    rows = data.validation_rows
    latents = module.encode(rows.read_rows(0, rows.rows)).detach().float().numpy()
    by_place = {}
    for row in range(rows.rows):
        context = rows.context(row)
        by_place[context.document, context.position] = (row, context)
    seen = 0
    for windows in (facts.top, facts.bands):
        for latent, column in zip(*np.nonzero(windows.places >= 0), strict=True):
            document = int(windows.documents[latent, column])
            position = int(windows.positions[latent, column])
            for step, token in enumerate(windows.tokens[latent, column].tolist(), start=-BEFORE):
                row, context = by_place.get((document, position + step), (None, None))
                value = windows.activations[latent, column, step + BEFORE]
                if token < 0:
                    assert value == 0.0
                elif context is not None and row is not None:
                    assert token == context.tokens[context.offset]
                    # As near as two ways to multiply matrices come.
                    assert value == pytest.approx(latents[row, latent], abs=1e-4)
                    seen += 1
            assert windows.activations[latent, column, BEFORE] > 0
    assert seen > 500
    np.testing.assert_allclose(facts.top.peak, facts.report.top.values, atol=1e-4)
    assert (facts.sampled == np.minimum(12, (latents > 0).sum(axis=0))).all()
    np.testing.assert_array_equal(facts.histogram.counts.sum(axis=1), (latents != 0).sum(axis=0))
    for latent, words in enumerate(facts.words):
        assert sum(word.places for word in words) <= facts.sampled[latent]
        sums = [word.places * word.activation for word in words]
        assert sums == sorted(sums, reverse=True)


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
    assert all(value > 5 for value in first[:2])
    assert all(value <= 5 for value in first[2:])
    # Of three the upper half is one, the lower two, and none is shown twice.
    assert np.where(chosen.places[1] >= 0, chosen.peak[1], 0).tolist() == [3, 0, 2, 1]


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="contexts must be an integer of at least 1"):
        Options(contexts=0)
    with pytest.raises(InputError, match="sample 5; expected at least 0, and at least 15"):
        Options(sample=5)
