"""Runs beside those of single replacements: with noise, with patterns, and of whole texts."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from palinka.errors import InputError
from palinka.interventions.ablation import ablation
from palinka.interventions.attribution import attribute
from palinka.interventions.engine import run
from palinka.interventions.pairs import Pairs
from palinka.interventions.patching import patching
from palinka.interventions.plan import Cell, Intervention, Patch, Resample, Scale, Zero
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel


def close_to(lm: LanguageModel) -> float:
    """GPT-Neo's attention is in float32 whatever the dtype of the model is."""
    return 1e-4 if lm.spec.sites.family == "gpt_neo" else 1e-10


def outcomes_of(lm: LanguageModel, pairs: Pairs, prompt: int, changes: Any) -> list[float]:
    """Logit difference and probability with functions in place of sites."""
    with ExitStack() as stack:
        for site, function in changes:
            stack.enter_context(lm.replaced(site, function))
        logits = lm.logits(torch.tensor([pairs.clean[prompt]]))[0, -1]
    right, wrong = pairs.answers[prompt], pairs.wrong[prompt]
    return [
        float(logits[right].mean() - logits[wrong].mean()),
        float(logits.softmax(0)[right].mean()),
    ]


def test_noise_on_embeddings_takes_the_place_of_corrupted_prompts(
    any_model: LanguageModel, pairs: Pairs
) -> None:
    at, draws = [2, 3], 10
    noisy = replace(pairs, corrupted=pairs.clean, noise=[at] * 6, sigma=3.0)
    plan: list[Cell] = [
        [Intervention("hidden.1", Patch(), "subject")],
        [Intervention("embed", Scale(0.5), 2), Intervention("blocks.1.attn.out", Zero(), "end")],
        [Intervention("hidden.0", Patch())],
    ]
    metrics = ["logit_difference", "probability"]
    found = run(any_model, noisy, plan, metrics=metrics)
    table = any_model.model.get_input_embeddings()
    own = table(torch.tensor([ids[p] for ids in pairs.clean for p in at]))
    checked = [1, 2]  # of both lengths and numbers of answers
    expected = np.zeros((4, 2, len(checked)))
    for column, prompt in enumerate(checked):
        ids = pairs.clean[prompt]
        clean = any_model.read(torch.tensor([ids]), "hidden.1")["hidden.1"]
        for draw in range(draws):
            random = np.random.default_rng([0, prompt, draw])
            eps = torch.tensor(random.standard_normal((len(ids), own.shape[1])))

            def add(x: Tensor, eps: Tensor = eps) -> Tensor:
                x = x.clone()
                x[0, at] += 3 * own.std() * eps[at]
                return x

            def half(x: Tensor) -> Tensor:
                return torch.cat((x[:, :2], x[:, 2:3] / 2, x[:, 3:]), 1)

            def end(x: Tensor) -> Tensor:
                return torch.cat((x[:, :-1], 0 * x[:, -1:]), 1)

            def patch(x: Tensor, clean: Tensor = clean) -> Tensor:
                return torch.cat((x[:, :2], clean[:, 2:3], x[:, 3:]), 1)

            noise = ("embed", add)
            runs: Any = [[noise], [noise, ("hidden.1", patch)], []]
            runs.insert(2, [noise, ("embed", half), ("blocks.1.attn.out", end)])
            for row, changes in zip(expected, runs, strict=True):
                row[:, column] += np.array(outcomes_of(any_model, noisy, prompt, changes)) / draws
    for m, name in enumerate(metrics):
        values = np.vstack([found.corrupted[name], found.values[name]])[:, checked]
        np.testing.assert_allclose(values, expected[:, m], atol=close_to(any_model))
    assert found.possible.tolist() == [[True] * 6] * 3
    if any_model.spec.sites.family == "gpt2":
        (measured,) = patching(Study(any_model, noisy), components=["heads"], direction="noise")
        assert measured.data["patched"]["heads"].shape == (3, 4, 6)
        (ablated,) = ablation(Study(any_model, noisy), components=["mlp.out"], value="zero")
        (plain,) = ablation(Study(any_model, pairs), components=["mlp.out"], value="zero")
        for name in ("patched", "direct"):
            values, others = (each.data[name]["mlp.out"] for each in (ablated, plain))
            np.testing.assert_allclose(values, others, atol=1e-10)
        with pytest.raises(InputError, match="give a corrupted text"):
            attribute(any_model, noisy, plan)


def test_patterns_are_patched(any_model: LanguageModel, pairs: Pairs) -> None:
    sites, before = any_model.spec.sites, any_model.model.config._attn_implementation
    count = any_model.heads.count
    (study,) = patching(Study(any_model, pairs), components=["pattern"], direction="noise")
    patched = study.data["patched"]["pattern"]
    assert patched.shape == (sites.layers, count, 6)
    both: Cell = [Intervention(f"blocks.1.attn.{part}", Patch()) for part in ("pattern", "v")]
    plan: list[Cell] = [
        both,
        [Intervention("blocks.1.attn.z", Patch())],
        [Intervention("blocks.1.attn.pattern.2", Zero(), "end")],
    ]
    joint, z, zero = run(any_model, pairs, plan, base="clean").values["logit_difference"]
    close: Any = {"atol": close_to(any_model)}
    np.testing.assert_allclose(joint, z, **close)
    assert any_model.model.config._attn_implementation == before
    for prompt, ids in enumerate(pairs.corrupted):
        others = any_model.attention(torch.tensor([ids]))
        for layer, head in ((0, 1), (1, count - 1), (2, 0)):

            def put(pattern: Tensor, head: int = head, other: Tensor = others[layer]) -> Tensor:
                changed = pattern.clone()
                changed[:, head] = other[:, head]
                return changed

            site = f"blocks.{layer}.attn.pattern"
            expected, _ = outcomes_of(any_model, pairs, prompt, [(site, put)])
            np.testing.assert_allclose(patched[layer, head, prompt], expected, **close)

        def lose(pattern: Tensor) -> Tensor:
            changed = pattern.clone()
            changed[:, 2, -1] = 0
            return changed

        expected, _ = outcomes_of(any_model, pairs, prompt, [("blocks.1.attn.pattern", lose)])
        np.testing.assert_allclose(zero[prompt], expected, **close)
    assert np.abs(patched - study.data["clean"]).max() > 1e-3
    for name in ("mean", "median", "scalar_mean"):
        with pytest.raises(InputError, match="over queries attends to later tokens"):
            next(ablation(Study(any_model, pairs), components=["pattern"], value=name))


def test_patterns_of_others_are_those_of_the_same_query(gpt2: LanguageModel, pairs: Pairs) -> None:
    """A role is at other tokens in other prompts, whose patterns reach past its query."""
    pairs = replace(pairs, roles={"mixed": [2, 5, 4, 3, 2, 6]})
    site, many = "blocks.1.attn.pattern", Resample(40)
    plan: list[Cell] = [[Intervention(site, many, "mixed")]]
    plan += [[Intervention(site, many, i)] for i in range(2, 7)]
    role, *places = run(gpt2, pairs, plan, base="clean").values["logit_difference"]
    expected = [places[at - 2][i] for i, at in enumerate(pairs.roles["mixed"])]
    np.testing.assert_allclose(role, expected, atol=1e-10)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_outcomes_of_texts(doubles: dict[str, LanguageModel], pairs: Pairs, family: str) -> None:
    lm, metrics = doubles[family], ("kl", "cross_entropy", "hidden_change", "cosine")
    texts, final = pairs.clean, f"hidden.{doubles[family].spec.sites.layers}"
    study = Study(lm, None, texts, metrics=metrics, clusters=range(6))
    settings: Any = {"components": ["mlp.out", "heads"], "value": ["zero", "mean"]}
    found = {each.part: each.data for each in ablation(study, **settings)}
    site = "blocks.1.mlp.write"
    every = [lm.read(torch.tensor([ids]), site)[site][0] for ids in texts]
    mean = torch.cat([x[1:] for x in every]).mean(0)
    for i, ids in enumerate(texts):
        tokens = torch.tensor([ids])
        runs: list[tuple[Tensor, Tensor]] = []
        for changes in ([], [(site, torch.zeros_like)], [(site, mean.expand_as)]):
            with ExitStack() as stack:
                for each in changes:
                    stack.enter_context(lm.replaced(*each))
                runs.append((lm.logits(tokens)[0], lm.read(tokens, final)[final][0]))
        p, h = runs[0][0].softmax(1), runs[0][1]
        for row, (logits, states) in enumerate(runs):
            q, n = logits.softmax(1), len(ids)
            cosines = [
                torch.cosine_similarity(states[s], states[t], dim=0)
                for t in range(1, n) for s in range(1, t)
            ]  # fmt: skip
            expected = {
                "kl": sum((p[t] * (p[t] / q[t]).log()).sum() for t in range(n - 1)) / (n - 1),
                "cross_entropy": -sum(q[t, ids[t + 1]].log() for t in range(n - 1)) / (n - 1),
                "hidden_change": (states[1:] - h[1:]).norm(),
                "cosine": sum(cosines) / len(cosines),
            }
            for name, value in expected.items():
                data = found[name]
                ours = data["patched"]["mlp.out"][row - 1, 1, i] if row else data["clean"][i]
                assert ours == pytest.approx(float(value), abs=1e-9), (name, row)
    assert found["kl"]["clusters"] == range(6)
    assert found["kl"]["corrupted"] is found["kl"]["solved"] is found["kl"]["direct"] is None
    with pytest.raises(InputError, match="no outcome 'logit_difference' of texts; choose from"):
        next(ablation(replace(study, metrics=["logit_difference"])))
    with pytest.raises(InputError, match="no outcome 'top'"):
        next(ablation(Study(lm, pairs, metrics=["top"])))
    (at_two,) = ablation(replace(study, metrics=["kl"]), positions=[2], **settings)
    assert at_two.data["axes"]["mlp.out"]["position"] == [2]
    with pytest.raises(InputError, match="fewer than 3 tokens"):
        next(ablation(replace(study, tokens=[[1, 2]])))
