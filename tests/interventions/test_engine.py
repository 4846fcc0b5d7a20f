from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from palinka.interventions.engine import run
from palinka.interventions.metrics import METRICS
from palinka.interventions.pairs import Pairs
from palinka.interventions.plan import (
    Cell,
    Intervention,
    Mean,
    Median,
    Noise,
    Patch,
    ProjectOut,
    ScalarMean,
    Scale,
    ScaleContribution,
    SetAlong,
    Steer,
    TopToMedian,
    Zero,
)
from palinka.language_models import LanguageModel

Array = NDArray[np.float64]
LD = "logit_difference"


class Dictionary:
    """An autoencoder by behavior alone, which explains a part of what it is given."""

    def __init__(self, width: int) -> None:
        random = torch.Generator().manual_seed(width)
        self.weight = torch.randn(width, 2 * width, generator=random, dtype=torch.float64)

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.weight).relu()

    def decode(self, latents: Tensor) -> Tensor:
        return latents @ self.weight.T / 10


# The reference: each cell and prompt by itself, with hooks on the whole model.


def positions(place: Any, pairs: Pairs, prompt: int) -> list[int]:
    tokens = len(pairs.clean[prompt])
    if isinstance(place, tuple):
        return [p for each in place for p in positions(each, pairs, prompt)]
    if place == "all":
        return list(range(tokens))
    if isinstance(place, int):
        return [place % tokens]
    return [tokens - 1 if place == "end" else pairs.roles[place][prompt]]


@cache
def read(lm: LanguageModel, site: str, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    return [lm.read(torch.tensor([ids]), site)[site][0] for ids in prompts]


def changed(
    lm: LanguageModel, pairs: Pairs, base: str, i: Intervention, prompt: int, repeat: int,
    block: list[Tensor],
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """The spec's formulas for one prompt; `block` holds what the block was given in this run."""
    runs = {"clean": pairs.clean, "corrupted": pairs.corrupted}
    states = {
        (name, j): x if i.dictionary is None else i.dictionary.encode(x)
        for name, prompts in runs.items()
        for j, x in enumerate(read(lm, i.site, tuple(map(tuple, prompts))))
    }
    other = "corrupted" if base == "clean" else "clean"
    value: Any = i.value

    def at(place: Any, h: Tensor) -> Tensor:
        where = positions(place, pairs, prompt)
        tokens = len(h)

        def reference(pooled: bool = False, first: int = 1) -> Tensor:
            if value.over == "text":
                chosen = [states[base, prompt][first:]]
            else:
                same = [
                    j for j in range(len(pairs)) if pairs.templates[j] == pairs.templates[prompt]
                ]
                chosen = []
                for j in same if value.over == "template" else range(len(pairs)):
                    every = pooled or place == "all"
                    chosen.append(
                        states["corrupted", j][
                            slice(first, None) if every else positions(place, pairs, j)
                        ]
                    )
            return torch.cat(chosen)[:, units]

        units = slice(None) if i.units is None else list(i.units)
        x = h[where][:, units]
        unit = value.direction / value.direction.norm() if hasattr(value, "direction") else None
        match value:
            case Zero():
                new = 0 * x
            case Scale():
                new = x * value.factor
            case ScaleContribution():
                given = block[0][0][where][:, units]
                new = given + value.factor * (x - given)
            case Patch():
                source = other if value.run == "paired" else value.run
                new = states[source, prompt][where][:, units]
            case Noise():
                random = np.random.default_rng([value.seed, prompt, repeat])
                noise = torch.tensor(random.standard_normal((tokens, h.shape[1])))
                new = x + value.scale * noise[where][:, units]
            case Mean():
                new = reference().mean(0).expand_as(x)
            case Median():
                new = reference().sort(0).values[(len(reference()) - 1) // 2].expand_as(x)
            case ScalarMean():
                new = reference(first=0).mean().expand_as(x)
            case TopToMedian():
                new = x.clone()
                for row in new:
                    k = round(len(row) * value.percent / 100)
                    row[row.argsort(descending=True)[:k]] = row.sort().values[(len(row) - 1) // 2]
            case ProjectOut():
                basis, _ = torch.linalg.qr(value.patterns)
                new = x - (x - reference().mean(0)) @ basis @ basis.T
            case SetAlong():
                target = (reference() @ unit).mean() + value.value * (reference() @ unit).std()
                new = x + (target - x @ unit)[:, None] * unit
            case Steer():
                new = x + value.alpha * reference(pooled=True).norm(dim=1).median() * unit
        full = h[where]
        full[:, units] = new
        result = h.clone()
        result[where] = full
        return result

    def function(whole: Tensor) -> Tensor:
        h = whole[0]
        latents = h if i.dictionary is None else i.dictionary.encode(h)
        new = latents
        for place in i.positions if isinstance(i.positions, tuple) else [i.positions]:
            new = at(place, new)
        if i.dictionary is None:
            return new[None]
        return (h + i.dictionary.decode(new) - i.dictionary.decode(latents))[None]

    return function


def keeping(found: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def keep(x: Tensor) -> Tensor:
        found[:] = [x]
        return x

    return keep


def reference_outcomes(
    lm: LanguageModel, pairs: Pairs, plan: Sequence[Cell], base: str, metrics: Sequence[str]
) -> dict[str, Array]:
    runs = {"clean": pairs.clean, "corrupted": pairs.corrupted}
    values = {name: np.zeros((len(plan), len(pairs))) for name in metrics}
    for c, cell in enumerate(plan):
        repeats = max(getattr(i.value, "repeats", 1) for i in cell)
        for prompt in range(len(pairs)):
            for repeat in range(repeats):
                functions = []
                blocks: list[list[Tensor]] = [[] for _ in cell]
                for i, block in zip(cell, blocks, strict=True):
                    functions.append(changed(lm, pairs, base, i, prompt, repeat, block))
                with ExitStack() as stack:
                    for i, function in zip(cell, functions, strict=True):
                        stack.enter_context(lm.replaced(i.site, function))
                    for i, block in zip(cell, blocks, strict=True):
                        if isinstance(i.value, ScaleContribution):
                            given = f"hidden.{i.site.split('.')[1]}"
                            stack.enter_context(lm.replaced(given, keeping(block)))
                    logits = lm.logits(torch.tensor([runs[base][prompt]]))[0, -1].double()
                clean = lm.logits(torch.tensor([pairs.clean[prompt]]))[0, -1].double()
                a, b = pairs.answers[prompt], pairs.wrong[prompt]
                p, q = logits.softmax(0), clean.softmax(0)
                every = {
                    LD: logits[a].mean() - logits[b].mean(),
                    "log_probability": p[a].log().mean(),
                    "probability": p[a].mean(),
                    "rank": np.mean([(logits > logits[one]).sum() for one in a]),
                    "kl": (q * (q / p).log()).sum(),
                }
                for name in metrics:
                    values[name][c, prompt] += float(every[name]) / repeats
    return values


def random_plan(lm: LanguageModel, random: np.random.Generator, cells: int) -> list[Cell]:
    heads, sites = lm.spec.sites.heads, list(lm.spec.sites.taps)
    plan: list[Cell] = []
    for _ in range(cells):
        cell = []
        for _ in range(random.choice([1, 1, 2, 3])):
            site = str(random.choice(sites))
            if random.random() < 0.3:
                part = str(random.choice(list("qkvz")))
                head = random.integers(heads.shared if part in "kv" else heads.count)
                site = f"blocks.{random.integers(3)}.attn.{part}.{head}"
            width = lm.width(site)
            dictionary = Dictionary(width) if random.random() < 0.2 else None
            width *= 1 if dictionary is None else 2
            units = None
            if random.random() < 0.4:
                units = random.choice(width, random.integers(1, width), replace=False).tolist()
            n = width if units is None else len(units)
            direction = torch.tensor(random.standard_normal((n, min(2, n))))
            over = str(random.choice(["stimuli", "template", "text"]))
            value: Any = random.choice(
                [
                    Zero(), Scale(0.5), Patch(), Patch(), Patch("clean"), Noise(0.3, 2, 1),
                    Mean(over=over), Median(over=over), ScalarMean(over=over), TopToMedian(30),
                    ProjectOut(direction, over=over), Steer(direction[:, 0], 0.4, over=over),
                    SetAlong(direction[:, 0], 0.5, True, over=over),
                ]
            )  # fmt: skip
            if isinstance(value, Noise) and site[-1].isdigit():
                value = Zero()  # the draws are those of all heads
            if random.random() < 0.1:
                site, value = f"blocks.{random.integers(3)}.resid", ScaleContribution(0.5)
                units = dictionary = None
            where: Any = ["all", "end", "subject", "verb", 3, -2, ("subject", "end"), (1, "verb")]
            place = where[random.integers(len(where))]
            cell.append(Intervention(site, value, place, units, dictionary))
        plan.append(tuple(cell))
    return plan


@pytest.mark.parametrize("seed", range(3))
def test_outcomes_are_those_of_single_runs(
    any_model: LanguageModel, pairs: Pairs, seed: int
) -> None:
    random = np.random.default_rng(seed)
    base: Any = ["clean", "corrupted"][seed % 2]
    plan = random_plan(any_model, random, 40)
    # Patches that find the same states are another test's matter.
    outcomes = run(
        any_model,
        pairs,
        plan,
        base=base,
        metrics=tuple(METRICS),
        rows_bytes=[1 << 30, 1 << 20, 1][seed],
    )
    expected = reference_outcomes(any_model, pairs, plan, base, tuple(METRICS))
    close = 1e-4 if any_model.spec.sites.family == "gpt_neo" else 1e-10
    for name, values in expected.items():
        wrong = ~np.isclose(outcomes.values[name], values, atol=close, rtol=close)
        assert not wrong.any(), (
            name,
            [(plan[c], np.flatnonzero(w)) for c, w in enumerate(wrong) if w.any()],
        )
