from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import palinka.interventions.steering as module
from palinka.autoencoders import TopKAutoencoder
from palinka.errors import InputError
from palinka.interventions.pairs import Pairs
from palinka.interventions.steering import _shuffled, _toward, added, divergences, steering
from palinka.interventions.study import Measured, Study
from palinka.language_models import LanguageModel

SITE = "hidden.1"
FILES: Mapping[str, Mapping[str, Sequence[Sequence[int]]]] = {
    "contrast": {"him": [[5, 6, 7], [9, 8, 7, 6]] * 10, "her": [[5, 60, i] for i in range(20)]},
    "neutral": {"": [list(range(100, 170)), [7]]},
}


def study_of(lm: LanguageModel, pairs: Pairs, **options: Any) -> Study:
    return Study(lm, pairs, sites=[SITE], texts=FILES.__getitem__, **options)


def measured(lm: LanguageModel, pairs: Pairs, **settings: Any) -> Measured:
    settings = {"contrast": "contrast", "neutral": "neutral", "draws": 2, **settings}
    (found,) = steering(study_of(lm, pairs), alphas=(0.3, 0, -0.1), **settings)
    return found


def test_a_probe_is_steered_along(gpt2: LanguageModel, pairs: Pairs) -> None:
    """The same of a contrast whose conditions are the other way round has the other sign."""
    her, him = FILES["contrast"].values()
    texts = {**FILES, "turned": {"him": him, "her": her}}
    study = Study(gpt2, pairs, sites=[SITE], texts=texts.__getitem__)
    given: Any = {"neutral": "neutral", "draws": 1, "probe": True}
    found, turned = (
        next(iter(steering(study, contrast=name, alphas=alphas, **given))).data
        for name, alphas in (("contrast", (0, 0.3)), ("turned", (-0.3, 0)))
    )
    assert found["directions"] == ["diff_mean", "probe"]
    np.testing.assert_allclose(found["steered"][:, 1], turned["steered"][:, 0], atol=1e-4)
    assert np.abs(found["steered"][0, 1] - found["steered"][1, 1]).max() > 1e-3


def slow_direction(lm: LanguageModel) -> torch.Tensor:
    means = [
        torch.stack([lm.read(torch.tensor([t]), SITE)[SITE][0, 1:].mean(0) for t in of]).mean(0)
        for of in FILES["contrast"].values()
    ]
    return (means[1] - means[0]) / (means[1] - means[0]).norm()


def slow_scale(lm: LanguageModel) -> float:
    text = torch.tensor(FILES["neutral"][""][0])
    norms = [lm.read(part[None], SITE)[SITE][0, 1:].norm(dim=1) for part in text.split(64)]
    return float(torch.cat(norms).median())


def test_outcomes_and_divergence_are_those_of_runs_with_a_hook(
    gpt2: LanguageModel, pairs: Pairs
) -> None:
    data = measured(gpt2, pairs).data
    unit, scale = slow_direction(gpt2), slow_scale(gpt2)
    assert data["alphas"].tolist() == [-0.1, 0.0, 0.3]
    assert {name: x.shape for name, x in data["controls"].items()} == dict.fromkeys(
        ["isotropic", "covariance", "shuffled_labels"], (2, 3, 6)
    )
    for at, alpha in enumerate(data["alphas"]):
        push = alpha * scale * unit
        for i, ids in enumerate(pairs.clean):
            with gpt2.replaced(SITE, lambda h, push=push: h + push):
                logits = gpt2.logits(torch.tensor([ids]))[0, -1]
            expected = logits[pairs.answers[i]].mean() - logits[pairs.wrong[i]].mean()
            np.testing.assert_allclose(data["steered"][0, at, i], expected, atol=1e-10)
        total = 0.0
        for part in torch.tensor(FILES["neutral"][""][0]).split(64):
            clean = gpt2.logits(part[None])[0, 1:].log_softmax(-1)
            with gpt2.replaced(SITE, lambda h, push=push: h + push):
                other = gpt2.logits(part[None])[0, 1:].log_softmax(-1)
            total += float((clean.exp() * (clean - other)).sum())
        np.testing.assert_allclose(data["kl"][0, at], total / 68, atol=1e-6)
    np.testing.assert_array_equal(data["steered"][0, 1], data["clean"])


def test_neutral_tokens_are_counted_and_of_all_conditions(
    gpt2: LanguageModel, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        name: [[start + i, 3, 4, 5] for i in range(9)] for name, start in (("a", 50), ("b", 80))
    }
    study = Study(gpt2, pairs, sites=[SITE], texts={**FILES, "short": texts}.__getitem__)
    used: list[Any] = []
    monkeypatch.setattr(
        module, "divergences", lambda lm, site, texts, x: used.append(texts) or x[..., 0]
    )
    list(steering(study, neutral="short", contrast="contrast", draws=2, neutral_tokens=14))
    assert [text[0] for text in used[0]] == [50, 80, 51, 81], "the fourth has the 14th token"


def test_the_side_effect_of_every_direction_is_measured(gpt2: LanguageModel, pairs: Pairs) -> None:
    torch.manual_seed(0)
    dictionaries = {SITE: TopKAutoencoder(gpt2.width(SITE), 64, k=3).double()}
    study = study_of(gpt2, pairs, dictionaries=dictionaries)
    (found,) = steering(study, neutral="neutral", latents=range(7), alphas=(0, 0.1), draws=6)
    assert found.data["kl"].shape == (7, 2)
    assert found.data["control_kl"]["isotropic"].shape == (5, 2)


def test_runs_of_many_additions_are_those_of_one(gpt2: LanguageModel) -> None:
    added = np.random.default_rng(0).standard_normal((2, 3, gpt2.width(SITE)))
    texts = [[3, 4, 5], [6, 7, 8, 9]]
    together = divergences(gpt2, SITE, texts, added)
    alone = [[divergences(gpt2, SITE, texts, each[None])[0] for each in row] for row in added]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_one_answer_is_measured_in_all_prompts(gpt2: LanguageModel, pairs: Pairs) -> None:
    she, he = (gpt2.tokenizer(f" {word}")["input_ids"] for word in ("she", "he"))
    both = replace(pairs, answers=[she, he] * 3, wrong=[he, she] * 3)
    turned = _toward(study_of(gpt2, both), "she")
    assert turned.answers == [she] * 6
    assert turned.wrong == [he] * 6
    one = measured(gpt2, both).data["steered"]
    other = measured(gpt2, both, toward="she").data["steered"]
    np.testing.assert_array_equal(other, one * np.tile([1.0, -1.0], 3))
    with pytest.raises(InputError, match=r"toward: it is neither .* of 6 pairs"):
        _toward(study_of(gpt2, both), "it")


def test_labels_are_exchanged_in_half_of_the_pairs() -> None:
    """A common difference is gone, however large, and single texts count alike."""
    random = np.random.default_rng(0)
    frames, own = random.standard_normal((2, 20, 3))
    with pytest.raises(InputError, match=r"of contrast has 19 texts; .* at least 20: add texts"):
        _shuffled(frames, own[1:], 2, False, random)
    for pairs, b in ((True, frames + own), (False, own + 7.0)):
        drawn = _shuffled(frames, b, 500, pairs, random)
        shifted = _shuffled(frames, b + 1e6, 500, pairs, np.random.default_rng(1))
        assert np.abs(shifted).max() < 10
        variance = np.square(drawn).mean(axis=0)
        x = [b - frames] if pairs else [frames, b]
        expected = sum(each.var(axis=0) / 19 for each in x)  # of n balanced signs
        np.testing.assert_allclose(variance, expected, rtol=0.25)


def test_directions_of_latents_are_steered_along(gpt2: LanguageModel, pairs: Pairs) -> None:
    width = gpt2.width(SITE)
    autoencoder = TopKAutoencoder(width, 2 * width, k=3).double()
    study = study_of(gpt2, pairs, dictionaries={SITE: autoencoder})
    (found,) = steering(study, neutral="neutral", latents=[3, 1], alphas=(0, 0.5), draws=1)
    assert found.data["directions"] == ["latent_3", "latent_1"]
    assert list(found.data["controls"]) == ["isotropic", "covariance"]
    row = autoencoder.dictionary.detach()[1]
    push = 0.5 * slow_scale(gpt2) * row / row.norm()
    with gpt2.replaced(SITE, lambda h: h + push):
        logits = gpt2.logits(torch.tensor([pairs.clean[0]]))[0, -1]
    expected = logits[pairs.answers[0]].mean() - logits[pairs.wrong[0]].mean()
    np.testing.assert_allclose(found.data["steered"][1, 1, 0], expected, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neutral": ""}, "steering needs text for its side effect; give neutral"),
        ({"contrast": ""}, "steering has no direction; give contrast, latents or selection"),
        ({"contrast": "neutral"}, "a contrast has two conditions; 1 are given"),
        ({"latents": [1]}, "latents of hidden.1 need an autoencoder"),
    ],
)
def test_impossible_settings_are_rejected(
    gpt2: LanguageModel, pairs: Pairs, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measured(gpt2, pairs, **settings)


def test_greedy_continuations_agree_with_and_without_a_cache(any_model: LanguageModel) -> None:
    width = any_model.width(SITE)
    push = torch.randn(width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    found = []
    for use_cache in (True, False):
        with any_model.replaced(SITE, added(3 * push)):
            found.append(any_model.generate(ids, use_cache=use_cache, **options)[0].tolist())
    assert found[0] == found[1]
    assert found[0] != any_model.generate(ids, **options)[0].tolist()
