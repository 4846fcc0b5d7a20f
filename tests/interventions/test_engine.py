from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from palinka.errors import InputError
from palinka.interventions import engine
from palinka.interventions.attribution import attribute
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
    Resample,
    ScalarMean,
    Scale,
    ScaleContribution,
    SetAlong,
    Steer,
    TopToMedian,
    Value,
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

    def at(place: Any, h: Tensor, free: list[int]) -> Tensor:
        where = [p for p in positions(place, pairs, prompt) if p in free]
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
        new, free = latents, list(range(len(h)))
        for place in i.positions if isinstance(i.positions, tuple) else [i.positions]:
            new = at(place, new, free)
            free = [p for p in free if p not in positions(place, pairs, prompt)]
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
    lm: LanguageModel, pairs: Pairs, plan: Sequence[Cell], base: str, metrics: Sequence[str],
    random: np.random.Generator,
) -> dict[str, Array]:  # fmt: skip
    """Of a third of the prompts, others for each cell; NaN for the rest."""
    runs = {"clean": pairs.clean, "corrupted": pairs.corrupted}
    values = {name: np.full((len(plan), len(pairs)), np.nan) for name in metrics}
    clean_logits = [lm.logits(torch.tensor([ids]))[0, -1].double() for ids in pairs.clean]
    for c, cell in enumerate(plan):
        repeats = max(getattr(i.value, "repeats", 1) for i in cell)
        for prompt in random.choice(len(pairs), len(pairs) // 3, replace=False).tolist():
            for name in metrics:
                values[name][c, prompt] = 0.0
            for repeat in range(repeats):
                functions = []
                blocks: list[list[Tensor]] = [[] for _ in cell]
                for i, block in zip(cell, blocks, strict=True):
                    functions.append(changed(lm, pairs, base, i, prompt, repeat, block))
                with ExitStack() as stack:
                    # In the order of the forward pass, where one module has both of two sites.
                    both = zip(cell, functions, strict=True)
                    for i, function in sorted(both, key=lambda x: x[0].site.endswith("write")):
                        stack.enter_context(lm.replaced(i.site, function))
                    for i, block in zip(cell, blocks, strict=True):
                        if isinstance(i.value, ScaleContribution):
                            given = f"hidden.{i.site.split('.')[1]}"
                            stack.enter_context(lm.replaced(given, keeping(block)))
                    logits = lm.logits(torch.tensor([runs[base][prompt]]))[0, -1].double()
                a, b = pairs.answers[prompt], pairs.wrong[prompt]
                p, q = logits.softmax(0), clean_logits[prompt].softmax(0)
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
            where: Any = [
                "all",
                "end",
                "subject",
                "verb",
                3,
                -2,
                ("subject", "end"),
                (2, "subject", "all"),
            ]
            place = where[random.integers(len(where))]
            cell.append(Intervention(site, value, place, units, dictionary))
        plan.append(tuple(cell))
    return plan


@pytest.mark.parametrize("seed", range(4))
def test_outcomes_are_those_of_single_runs(
    any_model: LanguageModel, pairs: Pairs, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: Any = ["clean", "corrupted"][seed % 2]
    random = np.random.default_rng(seed)
    plan = random_plan(any_model, random, 36 if seed == 3 else 12)
    # All rows together, in chunks of a few, one pass for each first changed token, and patches
    # with the runs that they are from.
    options: Any = {"rows_bytes": 1 << 20} if seed == 1 else {}
    if seed == 2:
        monkeypatch.setattr(engine, "_CALLS", 0)
    if seed == 3:
        patches = [[i for i in cell if isinstance(i.value, Patch)] for cell in plan]
        plan = [tuple(cell) for cell in patches if cell]
    outcomes = run(any_model, pairs, plan, base=base, metrics=tuple(METRICS), **options)
    expected = reference_outcomes(any_model, pairs, plan, base, tuple(METRICS), random)
    # GPT-Neo's attention is in float32 whatever the dtype of the model is.
    close = 1e-4 if any_model.spec.sites.family == "gpt_neo" else 1e-10
    for name, values in expected.items():
        same = np.isclose(outcomes.values[name], values, atol=close, rtol=close)
        wrong = ~same & ~np.isnan(values)
        assert np.isfinite(values).sum() == len(plan) * (len(pairs) // 3)
        assert not wrong.any(), (name, [plan[c] for c, w in enumerate(wrong) if w.any()])
    alone = run(any_model, pairs, plan, base=base, **options)
    np.testing.assert_allclose(alone.values[LD], outcomes.values[LD], atol=close, rtol=close)


def cell(site: str, value: Value, positions: Any = "all", **options: Any) -> Cell:
    return (Intervention(site, value, positions, **options),)


def test_closed_forms(any_model: LanguageModel, pairs: Pairs) -> None:
    sites, last = any_model.spec.sites, any_model.spec.sites.layers - 1
    end = f"blocks.{last}.resid"
    heads = [f"blocks.1.attn.z.{head}" for head in range(sites.heads.count)]
    parts = [f"blocks.{i}.{part}.write" for i in range(last + 1) for part in ("attn", "mlp")]
    direction = torch.ones(any_model.width("hidden.1"))
    plan = [
        cell("hidden.0", Patch()),
        cell(end, Patch(), "end"),
        tuple(Intervention(site, Patch()) for site in heads),
        cell("blocks.1.attn.z", Patch()),
        cell("blocks.1.attn.out", Patch()),
        tuple(Intervention(site, Zero()) for site in parts),
        *(cell(site, Patch("corrupted")) for site in sites.taps),
        cell("hidden.1", Scale(1)),
        cell("hidden.1", Steer(direction, 0)),
    ]
    outcomes = run(any_model, pairs, plan)
    input_, output, by_head, z, out, nothing, *same = outcomes.values[LD]
    close: Any = {"atol": 1e-4 if sites.family == "gpt_neo" else 1e-10}
    np.testing.assert_allclose(input_, outcomes.clean[LD], **close)
    np.testing.assert_allclose(output, outcomes.clean[LD], **close)
    np.testing.assert_allclose(by_head, out, **close)
    np.testing.assert_allclose(z, out, **close)
    for values in same:
        tolerance = close["atol"] if sites.family == "gpt_neo" else 0
        np.testing.assert_allclose(values, outcomes.corrupted[LD], atol=tolerance, rtol=0)
    model, norm = any_model.model, sites.taps[f"hidden.{last + 1}"].module
    for i, ids in enumerate(pairs.corrupted):
        embedded = any_model.read(torch.tensor([ids]), "hidden.0")["hidden.0"][0, -1]
        logits = model.get_output_embeddings()(model.get_submodule(norm)(embedded))
        if cap := getattr(model.config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        expected = logits[pairs.answers[i]].mean() - logits[pairs.wrong[i]].mean()
        assert abs(nothing[i] - float(expected)) < close["atol"]


def test_noising_is_denoising_with_the_roles_swapped(gpt2: LanguageModel, pairs: Pairs) -> None:
    plan = [cell(f"blocks.{i}.mlp.out", Patch(), place) for i in range(3) for place in (2, "end")]
    swapped = replace(pairs, clean=pairs.corrupted, corrupted=pairs.clean)
    noised, denoised = run(gpt2, pairs, plan, base="clean"), run(gpt2, swapped, plan)
    np.testing.assert_array_equal(noised.values[LD], denoised.values[LD])
    np.testing.assert_array_equal(noised.gap(), -denoised.gap())


def test_outcomes_do_not_depend_on_the_other_prompts(gpt2: LanguageModel, pairs: Pairs) -> None:
    plan = [cell("blocks.1.resid", Noise(0.5, 3, 1), "end"), cell("hidden.1", Patch(), "verb")]
    alone = Pairs(
        pairs.clean[:1], pairs.corrupted[:1], pairs.answers[:1], pairs.wrong[:1],
        pairs.templates[:1], {role: places[:1] for role, places in pairs.roles.items()},
    )  # fmt: skip
    expected = run(gpt2, pairs, plan).values[LD][:, :1]
    np.testing.assert_allclose(run(gpt2, alone, plan).values[LD], expected, atol=1e-10)


def putting(new: Tensor, at: list[int]) -> Callable[[Tensor], Tensor]:
    def put(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, at] = new
        return x

    return put


def test_resampled_vectors_are_those_of_other_prompts(gpt2: LanguageModel, pairs: Pairs) -> None:
    """The mean over all draws of a prompt lies between outcomes with each of the others."""
    drawn = run(gpt2, pairs, [cell("hidden.1", Resample(2), place) for place in ("subject", 2)])
    np.testing.assert_allclose(*drawn.values[LD], atol=1e-12)
    for place in ("end", "subject", 1):
        value, members = Resample(repeats=1000), [0, 1, 3, 4]  # of as many tokens
        (drawn,) = run(gpt2, pairs, [cell("blocks.1.attn.out", value, place)]).values[LD]
        vectors = [
            gpt2.read(torch.tensor([ids]), "blocks.1.attn.out")["blocks.1.attn.out"][0]
            for ids in pairs.corrupted
        ]
        for i in (0, 1):
            each = []
            for j in members:
                put = putting(vectors[j][positions(place, pairs, j)], positions(place, pairs, i))
                with gpt2.replaced("blocks.1.attn.out", put):
                    logits = gpt2.logits(torch.tensor([pairs.corrupted[i]]))[0, -1]
                right = logits[pairs.answers[i]].mean()
                each += [float(right - logits[pairs.wrong[i]].mean())] if j != i else []
            share = np.std(each) / np.sqrt(1000)
            assert abs(drawn[i] - np.mean(each)) < 5 * share


def test_solved_prompts_are_known_whatever_is_measured(gpt2: LanguageModel, pairs: Pairs) -> None:
    right, wrong = [], []
    for prompts in zip(pairs.clean, pairs.corrupted, strict=True):
        clean, corrupted = (gpt2.logits(torch.tensor([ids]))[0, -1] for ids in prompts)
        order = clean.argsort()  # two neighbors that are the other way round in the corrupted run
        first = int(corrupted[order].diff().argmin())
        wrong.append([int(order[first])])
        right.append([int(order[first + 1])])
    answers, others = right[:3] + wrong[3:], wrong[:3] + right[3:]
    pairs = replace(pairs, answers=answers, wrong=others)
    for function in (run, attribute):
        found = function(gpt2, pairs, [cell("hidden.1", Patch())], metrics=["kl"])
        assert found.solved.tolist() == [True] * 3 + [False] * 3
        assert list(found.values) == ["kl"]


def test_what_cannot_have_an_effect_has_none(gpt2: LanguageModel, pairs: Pairs) -> None:
    plan = {
        cell("hidden.1", Patch(), 1): False,  # before the third token, the first that differs
        cell("hidden.1", Patch(), 3): True,
        cell("hidden.0", Patch(), 3): False,  # the token is the same
        cell("blocks.0.attn.k", Patch(), 3): False,
        cell("blocks.0.attn.z", Patch(), 3): True,
        cell("hidden.1", Zero(), 1): True,
        cell("blocks.2.attn.z", Zero(), 3): False,
        cell("blocks.2.attn.q", Zero(), 3): False,
        cell("blocks.2.attn.v", Zero(), 3): True,
        cell("blocks.2.mlp.post", Zero(), -2): False,
        cell("blocks.2.resid", Zero(), -2): False,
        cell("hidden.3", Zero(), "end"): True,
    }
    outcomes = run(gpt2, pairs, list(plan), metrics=("kl", "rank"))
    for i, possible in enumerate(plan.values()):
        assert (outcomes.possible[i] == possible).all()
        moved = outcomes.values["kl"][i] != outcomes.corrupted["kl"]
        assert (moved == possible).all()


class Broken(Value):
    def _new(self, h: Tensor, source: Any) -> Any:
        raise RuntimeError("broken")


@pytest.mark.parametrize("value", [Zero(), Broken(), Noise(1.0), Resample()])
def test_the_model_and_global_randomness_stay_as_they_are(
    gpt2: LanguageModel, pairs: Pairs, value: Value
) -> None:
    weights = {name: weight.clone() for name, weight in gpt2.model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    attention = gpt2.model.config._attn_implementation
    broken = pytest.raises(RuntimeError, match="broken") if value == Broken() else nullcontext()
    with broken:
        run(gpt2, pairs, [cell("blocks.1.resid", value, "end"), cell("embed", value)])
    with broken:  # with the first blocks skipped
        run(gpt2, pairs, [cell("blocks.2.mlp.post", value, "end")])
    for name, weight in gpt2.model.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert not any(weight.requires_grad for weight in gpt2.model.parameters())
    assert not any("forward" in vars(module) for module in gpt2.model.modules())
    assert gpt2.model.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


def test_a_patch_that_finds_the_same_is_an_error(gpt2: LanguageModel, pairs: Pairs) -> None:
    table = gpt2.model.get_input_embeddings().weight
    before = table.clone()
    plan = [cell("blocks.1.attn.z.2", Patch())]
    try:
        for clean, corrupted in zip(pairs.clean, pairs.corrupted, strict=True):
            table[list(corrupted)] = table[list(clean)]
        with pytest.raises(InputError, match=r"at blocks\.1\.attn\.z\.2 changed nothing in 6 of 6"):
            run(gpt2, pairs, plan)
    finally:
        table.copy_(before)
    run(gpt2, pairs, plan)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Intervention("blocks.1.attn.zz", Zero()), "no site 'blocks.1.attn.zz'"),
        (Intervention("blocks.1.attn.z.7", Zero()), "head 7 of block 1"),
        (Intervention("blocks.1.attn.result.2", Zero()), "cannot be changed here"),
        (Intervention("transformer.h.1.ln_2", Zero()), "cannot be changed here"),
        (Intervention("hidden.1", Zero(), "object"), r"no role 'object' \(did you mean 'subject'"),
        (Intervention("hidden.1", Zero(), 8), "no position 8 in prompts of 7 tokens"),
        (Intervention("hidden.1", Zero(), units=[3, 24]), "has 24 units, and no unit 24"),
        (Intervention("hidden.1", ScaleContribution(0)), r"at blocks\.\{i\}\.resid, not at hidden"),
        (Intervention("hidden.1", Mean(over="template")), "mean over a reference of 1 prompt"),
    ],
)
def test_unusable_interventions_are_rejected(
    gpt2: LanguageModel, pairs: Pairs, given: Intervention, message: str
) -> None:
    if isinstance(given.value, Mean):
        pairs = replace(pairs, templates=list("abcdef"))
    with pytest.raises(InputError, match=message):
        run(gpt2, pairs, [[given]])


def test_a_reference_of_its_own(gpt2: LanguageModel, pairs: Pairs) -> None:
    reference = [[1, 2, 3, 4], [5, 6, 7]]
    states = [gpt2.read(torch.tensor([ids]), "hidden.2")["hidden.2"][0] for ids in reference]
    every = torch.cat([states[0][1:], states[1][1:]]).mean(0)
    last = torch.stack([states[0][-1], states[1][-1]]).mean(0)
    for place, mean in (("all", every), ("subject", every), ("end", last)):
        outcomes = run(gpt2, pairs, [cell("hidden.2", Mean(), place)], reference=reference)
        for i, ids in enumerate(pairs.corrupted):
            put = putting(mean, positions(place, pairs, i))
            with gpt2.replaced("hidden.2", put):
                logits = gpt2.logits(torch.tensor([ids]))[0, -1]
            expected = logits[pairs.answers[i]].mean() - logits[pairs.wrong[i]].mean()
            assert abs(outcomes.values[LD][0, i] - float(expected)) < 1e-10
    with pytest.raises(InputError, match="no other prompt of 7 tokens to resample prompt 0 from"):
        run(gpt2, pairs, [cell("hidden.2", Resample())], reference=reference)


def test_values_with_other_tensors_are_other_values(gpt2: LanguageModel, pairs: Pairs) -> None:
    random = np.random.default_rng(0)
    along = [torch.tensor(random.standard_normal(gpt2.width("hidden.1"))) for _ in range(2)]
    values = [Steer(along[0], 0.5), Steer(along[1], 0.5), Steer(along[1], 2.0)]
    values += [SetAlong(u, 3.0) for u in along] + [ProjectOut(u[:, None]) for u in along]
    plan = [cell("hidden.1", value) for value in values]
    together = run(gpt2, pairs, plan).values[LD]
    alone = np.concatenate([run(gpt2, pairs, [each]).values[LD] for each in plan])
    np.testing.assert_allclose(together, alone, atol=1e-12)


def test_small_patches_in_bfloat16_are_patches(pairs: Pairs) -> None:
    mini = LanguageModel.from_pretrained("mini", dtype="bfloat16", device="cpu")
    outcomes = run(mini, pairs, [cell("hidden.3", Patch(), "end")])
    assert (outcomes.values[LD] != outcomes.corrupted[LD]).all()


def test_small_divergences_are_those_of_float64(pairs: Pairs) -> None:
    """A divergence is of second order in the change, and far below the rounding of logits."""
    plan = [cell("hidden.3", Scale(factor), "end") for factor in (1.0, 1.002, 1.01)]
    own, exact = (
        run(lm, pairs, plan, base="clean", metrics=["kl"]).values["kl"]
        for dtype in ("float32", "float64")
        for lm in [LanguageModel.from_pretrained("mini", dtype=dtype, device="cpu")]
    )
    assert (own[0] == 0).all()
    assert exact[1].max() < 3e-5
    np.testing.assert_allclose(own[1:], exact[1:], rtol=0.1)


def test_memory_of_a_row_counts_what_it_copies(gpt2: LanguageModel) -> None:
    copied = 2 * 5000 * gpt2.width("blocks.0.attn.k") * 8  # keys and values of tokens before
    assert engine._row_bytes(gpt2, 1, 5000) >= 2 * copied  # selected, and then concatenated
