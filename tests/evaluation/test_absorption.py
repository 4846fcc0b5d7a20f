"""Absorption of first letters by dictionaries of a model that can spell, or cannot."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from palinka.autoencoders import KSparseAutoencoder
from palinka.data import Context
from palinka.evaluation.absorption import _measurement, _words, absorption
from palinka.evaluation.values import Dictionary, Subject, value_of
from palinka.language_models import LanguageModel

SITE = "blocks.0.resid"


@pytest.fixture(scope="module")
def subject() -> Subject:
    model = LanguageModel.from_pretrained("mini")
    contexts = [Context(np.full(64, 300 + n), np.full(64, n), np.arange(64)) for n in range(70)]
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        autoencoder = KSparseAutoencoder(128, 64, k=8).eval()
        decoder = autoencoder.dictionary.detach().numpy()
        autoencoder.to(torch.float64 if seed else torch.float32)  # weights of any type
        made.append(Dictionary(f"seed={seed}", "r", seed, autoencoder, "KSparse", 64, "", decoder))
    return Subject(model, SITE, tuple(made), lambda: iter(contexts), 1, False, np.zeros(128))


def test_a_model_that_cannot_spell_has_one_line(subject: Subject) -> None:
    (note,) = absorption(subject, words=1000).notes
    assert note == "absorption not measured: 0 of 26 letters can be read here (F1 > .6)"


@pytest.fixture
def spelling(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """The same with activations from which first letters can be read."""
    ids, letters = _words(subject, 1000)
    random = np.random.default_rng(0)
    letter = random.normal(size=(128, 128))  # a direction of each letter's code
    of_token = {int(one): letter[ord(a)] for one, a in zip(ids, letters, strict=True)}

    def read(tokens: Any, site: str) -> dict[str, torch.Tensor]:
        ids = getattr(tokens, "ids", tokens)
        rows = [[of_token.get(int(one), letter[0]) for one in row] for row in ids]
        x = np.array(rows)
        return {site: torch.from_numpy(x + 0.5 * random.normal(size=x.shape)).float()}

    monkeypatch.setattr(subject.model, "read", read)
    return subject


def test_the_norms_of_decoder_rows_do_not_matter(spelling: Subject) -> None:
    one = spelling.dictionaries[0]
    inner, scale = one.autoencoder, 10.0 ** torch.linspace(-1, 1, 64)

    class Scaled:
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return inner.encode(x) * scale

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return inner.decode(latents / scale)

    rows = one.decoder / scale.numpy()[:, None]
    other = replace(one, name="scaled", autoencoder=Scaled(), decoder=rows)
    arrays = absorption(replace(spelling, dictionaries=(one, other)), words=1000).arrays
    assert arrays["split_features/seed=0"].any()
    for name in ("split_features", "absorption_fraction", "absorption_full"):
        np.testing.assert_allclose(
            arrays[f"{name}/scaled"], arrays[f"{name}/seed=0"], atol=1e-5, err_msg=name
        )


def test_where_letters_can_be_read_dictionaries_and_controls_have_intervals(
    spelling: Subject,
) -> None:
    group = absorption(spelling, words=1000)
    assert "letters (" in group.notes[0]
    metrics = {"split_features", "absorption_fraction", "absorption_full"}
    assert {(m.metric, m.of, m.unit) for m in group.measurements} == {
        (metric, name, "letters") for metric in metrics for name in ("seed=0", "seed=1")
    }
    random_line = {f"absorption_{kind}_random_direction" for kind in ("fraction", "full")}
    assert {(v.metric, v.of) for v in group.values} == {
        (metric, "random_dictionary") for metric in metrics | random_line
    } | {(metric, name) for metric in random_line for name in ("seed=0", "seed=1")}
    for one in group.measurements:
        assert one.influence is not None
        letters_of = group.arrays[f"{one.metric}/{one.of}"]
        error = np.std(letters_of, ddof=1) / np.sqrt(len(letters_of))
        assert np.sqrt(np.square(one.influence).sum()) == pytest.approx(error)
    assert set(group.bands) == metrics | random_line


@pytest.mark.slow
@pytest.mark.parametrize("letters", [10, 24])
def test_intervals_over_letters_cover(letters: int) -> None:
    """Each letter has a rate of its own, from which its 30 words are absorbed or not."""
    random, covered = np.random.default_rng(letters), []
    for rates in random.beta(1.0, 4.0, (2000, letters)):
        by_letter = random.binomial(30, rates) / 30
        found = value_of([_measurement("absorption_full/a", by_letter)], "a")
        covered.append(found.low <= 0.2 <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.98
