import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from torch import Tensor

from palinka import analyses
from palinka.analyses.reader import ActivationReader
from palinka.analyses.stimuli import load_stimuli
from palinka.errors import InputError
from palinka.interventions.lesion import lesion, match_units, normal_scores
from palinka.interventions.pairs import Pairs
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel

SITES = ["blocks.0.mlp.post", "blocks.1.mlp.post"]


class Dictionary:
    """An autoencoder by behavior, which explains a part of what it is given."""

    def __init__(self, width: int) -> None:
        random = torch.Generator().manual_seed(width)
        self.dictionary = torch.randn(2 * width, width, generator=random, dtype=torch.float64)

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.dictionary.T).relu()

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.dictionary / 10


def positions(where: str, pairs: Pairs, prompt: int) -> list[int]:
    tokens = len(pairs.clean[prompt])
    if where == "all":
        return list(range(tokens))
    return [tokens - 1 if where == "before" else pairs.roles[where][prompt]]


def outcome(
    lm: LanguageModel, pairs: Pairs, site: str, units: Any, where: str, dictionary: Any
) -> NDArray[np.float64]:
    """Logit difference of every clean prompt with some units or latents at 0, one by one."""
    found, chosen = [], [int(unit) for unit in units]
    for prompt, ids in enumerate(pairs.clean):
        at = positions(where, pairs, prompt)

        def zeroed(h: Tensor, at: list[int] = at) -> Tensor:
            new = h.clone()
            for token in at:
                if dictionary is None:
                    new[0, token, chosen] = 0.0
                    continue
                latents = dictionary.encode(h[0, token])
                kept = latents.clone()
                kept[chosen] = 0.0
                new[0, token] += dictionary.decode(kept) - dictionary.decode(latents)
            return new

        with lm.replaced(site, zeroed):
            logits = lm.logits(torch.tensor([ids]))[0, -1]
        means = [logits[list(each[prompt])].mean() for each in (pairs.answers, pairs.wrong)]
        found.append(float(means[0] - means[1]))
    return np.array(found)


@pytest.mark.parametrize("where", ["all", "before", "subject"])
@pytest.mark.parametrize("latents", [False, True])
def test_outcomes_are_those_of_prompts_one_by_one(
    where: str, latents: bool, gpt2: LanguageModel, pairs: Pairs
) -> None:
    width = gpt2.width(SITES[0])
    dictionaries = {site: Dictionary(width) for site in SITES} if latents else {}
    order = np.random.default_rng(3).permutation(width)

    def units(site: str, *, analysis: str, k: int) -> NDArray[np.int64]:
        return order[:k] if site == SITES[0] else order[-k:]

    study = Study(gpt2, pairs, sites=SITES, dictionaries=dictionaries, units=units)
    settings: dict[str, Any] = {"selection": {"analysis": "earlier", "k": 4}, "dose": [1, 4]}
    (measured,) = lesion(study, positions=where, draws=3, seed=5, **settings)
    data = measured.data
    assert data["doses"] == [1, 4]
    assert data["lesioned"].shape == (2, 2, 4, len(pairs))
    assert data["axes"] == {"": {"layer": [0, 1]}}
    for s, site in enumerate(SITES):
        selected = units(site, analysis="earlier", k=4)
        np.testing.assert_array_equal(data["units"][s], selected)
        acts = []
        for prompt, ids in enumerate(pairs.clean):
            states = gpt2.read(torch.tensor([ids]), site)[site][0, positions(where, pairs, prompt)]
            acts.append(dictionaries[site].encode(states) if latents else states)
        active = torch.cat(acts).abs().mean(0)
        weight = gpt2.model.get_submodule(f"transformer.h.{s}.mlp.c_proj").weight
        rows = dictionaries[site].dictionary if latents else weight
        covariates = np.log([(active + 1e-8).tolist(), rows.norm(dim=1).tolist()])
        for d, k in enumerate((1, 4)):
            matched = match_units(covariates, selected[:k], 3, [5, s, k])
            for number, some in enumerate([selected[:k], *matched.controls]):
                expected = outcome(gpt2, pairs, site, some, where, dictionaries.get(site))
                np.testing.assert_allclose(data["lesioned"][s, d, number], expected, atol=1e-9)
        np.testing.assert_allclose(data["balance"][s], [matched.before, matched.after])
    np.testing.assert_allclose(data["clean"], outcome(gpt2, pairs, SITES[0], [], "all", None))


def test_controls_are_matched_by_the_norm_of_what_a_unit_writes(
    any_model: LanguageModel, pairs: Pairs
) -> None:
    from palinka.interventions import lesion as module

    site = SITES[1]
    found = module._covariates(Study(any_model, pairs, sites=[site]), site, "all")
    ids = torch.tensor([pairs.clean[0]])
    for unit in (0, 3):

        def only(h: Tensor, unit: int = unit, value: float = 0.0) -> Tensor:
            new = torch.zeros_like(h)
            new[..., unit] = value
            return new

        written = []
        for value in (0.0, 1.0):
            with any_model.replaced(site, lambda h, u=unit, v=value: only(h, u, v)):  # type: ignore[misc]
                written.append(any_model.read(ids, "blocks.1.mlp.out")["blocks.1.mlp.out"][0, 0])
        norm = float((written[1] - written[0]).norm())
        assert found[1, unit] == pytest.approx(np.log(norm))


def test_a_site_with_too_few_selected_units_is_nan(gpt2: LanguageModel, pairs: Pairs) -> None:
    def units(site: str, *, analysis: str, k: int) -> NDArray[np.int64]:
        return np.arange(k if site == SITES[0] else 2)

    study = Study(gpt2, pairs, sites=SITES, units=units, metrics=("logit_difference", "rank"))
    selection: dict[str, str | int] = {"analysis": "earlier", "k": 3}
    first, second = lesion(study, selection=selection, dose=[2], draws=2)
    assert (first.part, second.part) == ("logit_difference", "rank")
    missing = np.isnan(first.data["lesioned"]).all(axis=(2, 3))
    assert missing.tolist() == [[False, False], [False, True]]
    assert first.data["units"].tolist() == [[0, 1, 2], [-1, -1, -1]]


def he_she(lm: LanguageModel, repository: Path) -> Pairs:
    stimuli: Any = load_stimuli(str(repository / "configs/stimuli/he_she.yaml"))
    pairs: Pairs = stimuli.prepare_pairs(lm.tokenizer)
    return pairs


def test_prompts_are_told_apart_by_the_preferred_answer(
    mini: ActivationReader, repository: Path
) -> None:
    lm = mini.model
    pairs = he_she(lm, repository)
    study = Study(lm, pairs, sites=[SITES[0]])
    (measured,) = lesion(study, units=[1, 2], draws=1, preferred="he")
    he = lm.tokenize(" he").ids[0].tolist()
    assert measured.data["preferred"].tolist() == [list(ids) == he for ids in pairs.answers]
    assert measured.data["axes"] == {"": {"site": [SITES[0]]}}
    with pytest.raises(
        InputError, match="preferred is 'him'; give one of several answers: he, she"
    ):
        list(lesion(study, units=[1], preferred="him"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no units are given; give units of one site, or a selection"),
        ({"units": [1], "positions": "subjekt"}, "no role 'subjekt' (did you mean 'subject'"),
        ({"units": [0], "dose": [600]}, "lesion: k 600 of {} units; at most {} leave matched"),
    ],
)
def test_impossible_lesions_are_rejected(
    settings: dict[str, Any], message: str, gpt2: LanguageModel, pairs: Pairs
) -> None:
    width = gpt2.width(SITES[0])
    with pytest.raises(InputError, match=re.escape(message.format(width, width // 2))):
        list(lesion(Study(gpt2, pairs, sites=SITES[:1]), **settings))
    with pytest.raises(InputError, match="units are given for 2 sites"):
        list(lesion(Study(gpt2, pairs, sites=SITES), units=[1]))
    with pytest.raises(InputError, match="on one template and lesions others, and there is 1; add"):
        list(lesion(Study(gpt2, pairs.of([0, 1]), sites=SITES), units=[1], holdout="frames"))


def test_too_few_units_at_all_sites_are_an_error(gpt2: LanguageModel, pairs: Pairs) -> None:
    study = Study(gpt2, pairs, sites=SITES, units=lambda *_, **__: np.arange(2))
    (measured,) = lesion(study, selection={"analysis": "earlier", "k": 3}, draws=2)
    with pytest.raises(InputError, match="no site has 3 units to lesion"):
        analyses.lesion(**measured.data)


def possible_controls(scores, selected, taken, unit):
    """The 20 nearest units that are neither selected nor taken, as the definition has it."""
    left = [j for j in range(scores.shape[1]) if j not in selected and j not in taken]
    distances = {j: sum((scores[c, j] - scores[c, unit]) ** 2 for c in range(2)) for j in left}
    return sorted(left, key=lambda j: round(distances[j], 9))[:20]


def drawn_by_steps(covariates, selected, draws, seed):
    """Control sets one unit at a time, from the same random numbers."""
    scores = np.array([norm.ppf(rankdata(x) / (len(x) + 1)) for x in covariates])
    random = np.random.default_rng(seed)
    orders = random.permuted(np.tile(np.arange(len(selected)), (draws, 1)), axis=1)
    others = scores.shape[1] - len(selected)
    picks = [random.integers(min(20, others - i), size=(draws, 1)) for i in range(len(selected))]
    sets = []
    for draw in range(draws):
        controls = {}
        for step, place in enumerate(orders[draw]):
            near = possible_controls(scores, selected, controls.values(), selected[place])
            controls[place] = near[picks[step][draw, 0]]
        sets.append([controls[place] for place in range(len(selected))])
    return np.array(sets)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), units=st.integers(12, 60), k=st.integers(1, 30))
def test_controls_are_those_of_the_definition(seed, units, k):
    random = np.random.default_rng(seed)
    covariates = random.normal(size=(2, units)).round(2)  # with ties
    selected = random.permutation(units)[: min(k, units // 2)]
    found = match_units(covariates, selected, 4, seed).controls
    np.testing.assert_array_equal(found, drawn_by_steps(covariates, selected, 4, seed))
    assert not np.isin(found, selected).any()
    assert all(len(set(each)) == len(each) for each in found.tolist())


def test_every_near_unit_is_drawn_equally_often():
    values = np.arange(101.0)
    controls = match_units([values, values], [50], 4000).controls[:, 0]
    drawn, counts = np.unique(controls, return_counts=True)
    assert drawn.tolist() == [*range(40, 50), *range(51, 61)]
    assert ((counts - 200.0) ** 2 / 200.0).sum() < 43.8  # chi-squared of 19, p 0.001


def test_matching_removes_the_difference_in_size():
    random = np.random.default_rng(0)
    covariates = random.normal(size=(2, 2000))
    selected = random.choice(2000, 20, replace=False, p=(w := np.exp(covariates[0])) / w.sum())
    found = match_units(covariates, selected, 200)
    scores = np.stack([normal_scores(x) for x in covariates])
    others = np.delete(scores, selected, axis=1).mean(1)
    expected = (scores[:, selected].mean(1) - others) / scores.std(1)
    np.testing.assert_allclose(found.before, expected)
    difference = scores[:, selected].mean(1) - scores[:, found.controls].mean((1, 2))
    np.testing.assert_allclose(found.after, difference / scores.std(1))
    assert abs(found.before[0]) > 0.5
    assert np.abs(found.after).max() < 0.1


def test_extreme_units_have_no_controls_like_them():
    covariates = np.random.default_rng(0).normal(size=(2, 200))
    largest = np.argsort(-covariates[0])[:20]
    assert match_units(covariates, largest, 50).after[0] > 0.5


def test_norms_that_differ_in_rounding_are_equal():
    norms = 1.0 + 1e-8 * np.arange(40.0)
    np.testing.assert_array_equal(normal_scores(norms), 0.0)
    found = match_units([np.arange(40.0), norms], [20], 100)
    assert found.before[1] == found.after[1] == 0.0
    assert set(found.controls.ravel()) == set(range(10, 31)) - {20}


def test_half_of_the_units_leave_all_others_as_controls():
    half = match_units(np.ones((2, 12)), range(6), 3).controls
    np.testing.assert_array_equal(np.sort(half), np.tile(range(6, 12), (3, 1)))
