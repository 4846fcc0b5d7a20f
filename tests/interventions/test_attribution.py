from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from palinka.errors import InputError
from palinka.interventions.attribution import attribute, attribution
from palinka.interventions.engine import run
from palinka.interventions.pairs import Pairs
from palinka.interventions.plan import Intervention, Patch
from palinka.interventions.study import Measured, Study
from palinka.language_models import LanguageModel
from palinka.language_models.edits import as_function

Array = NDArray[np.float64]
LD = "logit_difference"
SITES = [
    "embed", "hidden.1", "blocks.1.resid_mid", "blocks.0.attn.q", "blocks.1.attn.k",
    "blocks.2.attn.v.1", "blocks.1.attn.z", "blocks.0.attn.z.2", "blocks.1.attn.write",
    "blocks.0.attn.out", "blocks.1.mlp.pre", "blocks.1.mlp.post", "blocks.2.mlp.write",
]  # fmt: skip
# Their norms or attention compute in float32, whatever the dtype of the model.
FLOAT32 = {
    "gpt_neo", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"
}  # fmt: skip
PLACES = ["all", "end", "subject", -2]


class Dictionary(nn.Module):
    """A small autoencoder that explains a part of what it is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(width)
        self.weight = nn.Parameter(torch.randn(width, 2 * width, generator=random).double())

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.weight).relu()

    def decode(self, latents: Tensor) -> Tensor:
        return torch.tanh(latents @ self.weight.T / 10)


def mixed_plan(lm: LanguageModel) -> list[list[Intervention]]:
    """Cells at every kind of site that the family has."""
    sites = [site for site in SITES if site != "blocks.1.resid_mid" or site in lm.spec.sites.taps]
    plan = [[Intervention(site, Patch(), place)] for site in sites for place in PLACES]
    plan += [[Intervention("blocks.1.mlp.post", Patch(), "all", (1, 7))]]
    plan += [[Intervention("hidden.2", Patch(), "end", (3, 5), Dictionary(lm.width("embed")))]]
    return [*plan, [*plan[0], *plan[-1]]]


@cache
def read(lm: LanguageModel, site: str, ids: tuple[int, ...]) -> Tensor:
    return lm.read(torch.tensor([ids]), site)[site]


@cache
def last_logits(lm: LanguageModel, ids: tuple[int, ...]) -> Tensor:
    return lm.logits(torch.tensor([ids]))[0, -1].double()


def moved_outcomes(
    lm: LanguageModel, pairs: Pairs, base: str, cell: Sequence[Intervention], prompt: int,
    step: float, point: float = 0.0,
) -> dict[str, float]:  # fmt: skip
    """Outcomes of one prompt with its states moved by a step of the way to the other run's.

    Its embeddings are moved to a point on the way first.
    """
    runs = {"clean": pairs.clean[prompt], "corrupted": pairs.corrupted[prompt]}
    here, (there,) = tuple(runs.pop(base)), map(tuple, runs.values())
    places = pairs.roles | {"end": [len(here) - 1] * len(pairs)}

    def moves(i: Intervention) -> Callable[[Tensor], Tensor]:
        before, after = (read(lm, i.site, ids) for ids in (here, there))
        if i.dictionary is not None:
            before, after = i.dictionary.encode(before), i.dictionary.encode(after)
        place = i.positions if isinstance(i.positions, int) else places.get(str(i.positions))
        at = slice(None) if place is None else place if isinstance(place, int) else place[prompt]
        change = torch.zeros_like(before)
        units = slice(None) if i.units is None else list(i.units)
        change[0, at, ..., units] = (after - before)[0, at, ..., units]
        function = lambda x: x + step * change  # noqa: E731
        if i.dictionary is None:
            return function
        return as_function(i.dictionary, function, keep_error=True)

    embeddings = [read(lm, "embed", ids) for ids in (here, there)]
    functions = [(i.site, moves(i)) for i in cell]
    shift = point * (embeddings[1] - embeddings[0])
    with ExitStack() as stack:
        stack.enter_context(lm.replaced("embed", lambda x: x + shift))
        for site, function in functions:
            stack.enter_context(lm.replaced(site, function))
        logits = lm.logits(torch.tensor([here]))[0, -1].double()
    clean = last_logits(lm, tuple(pairs.clean[prompt]))
    a, b = pairs.answers[prompt], pairs.wrong[prompt]
    p, q = logits.softmax(0), clean.softmax(0)
    found = {
        LD: logits[a].mean() - logits[b].mean(),
        "log_probability": p[a].log().mean(),
        "probability": p[a].mean(),
        "kl": (q * (q / p).log()).sum(),
    }
    return {name: float(value) for name, value in found.items()}


METRICS = (LD, "log_probability", "probability", "kl")


@pytest.mark.parametrize("base", ["clean", "corrupted"])
def test_estimates_are_derivatives_towards_the_other_run(
    any_model: LanguageModel, pairs: Pairs, base: Any
) -> None:
    plan, random = mixed_plan(any_model), np.random.default_rng(base == "clean")
    metrics = METRICS[:3] if base == "clean" else METRICS
    found = attribute(any_model, pairs, plan, base=base, metrics=metrics)
    exact = run(any_model, pairs, plan, base=base)
    np.testing.assert_array_equal(found.possible, exact.possible)
    inexact = any_model.spec.sites.family in FLOAT32
    estimates = {name: found.values[name] - getattr(found, base)[name] for name in metrics}
    for estimate in estimates.values():
        assert (estimate[~found.possible] == 0).all()
    step, close = (4e-3, 1e-2) if inexact else (1e-4, 1e-6)
    for c in random.choice(len(plan), 14, replace=False):
        prompt = int(random.integers(len(pairs)))
        moved = [
            moved_outcomes(any_model, pairs, base, plan[c], prompt, s * step)
            for s in (1, -1, 2, -2)
        ]
        for name, estimate in estimates.items():
            near, back, far, farther_back = (each[name] for each in moved)
            expected = (8 * (near - back) - (far - farther_back)) / (12 * step)
            given = {"atol": close, "rtol": close, "err_msg": f"{name} {plan[c]}"}
            np.testing.assert_allclose(estimate[c, prompt], expected, **given)
    assert np.abs(found.values[LD] - found.corrupted[LD]).max() > 0.1


@pytest.mark.parametrize("base", ["clean", "corrupted"])
def test_integrated_gradients_of_the_embeddings_add_up_to_the_gap(
    gpt2: LanguageModel, pairs: Pairs, base: Any
) -> None:
    plan = [[Intervention(site, Patch())] for site in ("hidden.0", "embed", "blocks.1.attn.z")]
    found = attribute(gpt2, pairs, plan, base=base, steps=128)
    sums = found.values[LD] - getattr(found, base)[LD]
    gap = found.gap() if base == "corrupted" else -found.gap()
    np.testing.assert_allclose(sums[:2], [gap, gap], rtol=5e-3)
    # Elsewhere it is the mean gradient, times the difference between the runs.
    slopes = []
    for point in (1 / 8, 3 / 8, 5 / 8, 7 / 8):
        start = gpt2, pairs, base, plan[2], 1
        high, low = (moved_outcomes(*start, step, point)[LD] for step in (1e-4, -1e-4))
        slopes.append((high - low) / 2e-4)
    few = attribute(gpt2, pairs, plan, base=base, steps=4)
    estimate = few.values[LD][2, 1] - getattr(few, base)[LD][1]
    np.testing.assert_allclose(estimate, np.mean(slopes), rtol=1e-6)


def test_estimates_of_a_linear_model_are_exact(
    gpt2: LanguageModel, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without norms, nonlinearities, and queries and keys, effects are exact and add up."""
    for block in gpt2.model.transformer.h:
        for name in ("ln_1", "ln_2"):
            monkeypatch.setitem(block._modules, name, nn.Identity())
        monkeypatch.setitem(block.mlp._modules, "act", nn.Identity())
        weight = block.attn.c_attn.weight.clone()
        weight[:, : 2 * gpt2.width("embed")] = 0
        monkeypatch.setitem(block.attn.c_attn._parameters, "weight", nn.Parameter(weight, False))
    monkeypatch.setitem(gpt2.model.transformer._modules, "ln_f", nn.Identity())
    plan = [cell for cell in mixed_plan(gpt2) if cell[-1].dictionary is None]
    plan = [cell for cell in plan if ".q" not in cell[0].site and ".k" not in cell[0].site]
    heads = [[Intervention(f"blocks.1.attn.z.{head}", Patch())] for head in range(4)]
    plan += [*heads, [each for head in heads for each in head]]
    for base in ("clean", "corrupted"):
        exact = run(gpt2, pairs, plan, base=base)
        found = attribute(gpt2, pairs, plan, base=base)
        np.testing.assert_allclose(found.values[LD], exact.values[LD], rtol=1e-10, atol=1e-10)
        effects = found.values[LD] - getattr(found, base)[LD]
        np.testing.assert_allclose(effects[-5:-1].sum(0), effects[-1], rtol=1e-10, atol=1e-12)
        assert np.abs(effects[-1]).min() > 1e-3


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_of_the_model_changes(
    gpt2: LanguageModel, pairs: Pairs, mode: Any, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture checks that no hook is left."""
    before = {name: x.clone() for name, x in gpt2.model.state_dict().items()}

    def fail(*_: Any) -> None:
        raise RuntimeError("no room")

    plan = mixed_plan(gpt2)
    with mode():
        expected = attribute(gpt2, pairs, plan).values[LD]
        states = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        if fails:
            monkeypatch.setattr(gpt2.model.lm_head, "forward", fail)
            with pytest.raises(RuntimeError, match="no room"):
                attribute(gpt2, pairs, plan)
            monkeypatch.undo()
        assert states == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    for name, weight in gpt2.model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None
        assert not weight.requires_grad
    np.testing.assert_array_equal(attribute(gpt2, pairs, plan).values[LD], expected)


def test_gradients_of_trainable_weights_stay_none(gpt2: LanguageModel, pairs: Pairs) -> None:
    expected = attribute(gpt2, pairs, mixed_plan(gpt2)).values[LD]
    gpt2.model.requires_grad_(True)
    try:
        found = attribute(gpt2, pairs, mixed_plan(gpt2)).values[LD]
        assert all(x.requires_grad and x.grad is None for x in gpt2.model.parameters())
    finally:
        gpt2.model.requires_grad_(False)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def flat(data: Measured, name: str) -> Array:
    """Values of all cells, `(cells, …)`."""
    cells = [np.asarray(x) for x in data.data[name].values()]
    dimensions = cells[0].ndim - len(next(iter(data.data["axes"].values())))
    return np.concatenate([x.reshape(-1, *x.shape[x.ndim - dimensions :]) for x in cells])


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_largest_estimates_and_random_cells_are_run(
    gpt2: LanguageModel, pairs: Pairs, direction: Any
) -> None:
    study = Study(gpt2, pairs, metrics=(LD, "probability"))
    given: Any = {"components": ("resid", "heads"), "direction": direction}
    every, parts = (list(attribution(study, verify=v, **given)) for v in ("all", 3))
    base = "corrupted" if direction == "denoise" else "clean"
    largest = set()
    for exact, part in zip(every, parts, strict=True):
        assert part.part == part.data["outcome"]
        assert part.data["direction"] == direction
        estimated, possible = flat(part, "estimated"), flat(part, "possible")
        run_all, patched = flat(exact, "patched"), flat(part, "patched")
        assert not np.isnan(run_all).any()
        run_here = ~np.isnan(patched).any(1) & possible
        np.testing.assert_array_equal(patched[~possible], estimated[~possible])
        np.testing.assert_allclose(patched[run_here], run_all[run_here], atol=1e-9)
        size = np.abs((estimated - part.data[base]).mean(1))
        largest |= set(np.argsort(-size)[:3])
    assert largest <= set(np.flatnonzero(run_here))
    assert len(largest) + 3 <= run_here.sum() <= 3 * 3


@pytest.mark.parametrize("component", ["neurons", "latents"])
def test_all_units_of_a_site_are_estimated(
    gpt2: LanguageModel, pairs: Pairs, component: str
) -> None:
    site = "blocks.1.mlp.post"
    dictionary = Dictionary(gpt2.width(site))
    study = Study(gpt2, pairs, sites=[site], dictionaries={site: dictionary})
    (part,) = attribution(study, components=[component], verify=1)
    count = gpt2.width(site) * (2 if component == "latents" else 1)
    assert part.data["estimated"][component].shape == (1, count, len(pairs))
    given = dictionary if component == "latents" else None
    plan = [[Intervention(site, Patch(), "all", (u,), given)] for u in range(count)]
    expected = attribute(gpt2, pairs, plan).values[LD]
    np.testing.assert_array_equal(part.data["estimated"][component][0], expected)


def test_without_verification_no_patch_is_run(gpt2: LanguageModel, pairs: Pairs) -> None:
    (part,) = attribution(Study(gpt2, pairs), components=["heads"], verify=0)
    assert np.isnan(part.data["patched"]["heads"]).all()


def test_outcomes_without_a_gradient_are_rejected(gpt2: LanguageModel, pairs: Pairs) -> None:
    plan: Any = mixed_plan(gpt2)
    with pytest.raises(InputError, match="rank has no gradient; choose among logit_difference"):
        attribute(gpt2, pairs, plan, metrics=("rank",))
    with pytest.raises(InputError, match="kl has the gradient 0 in the clean run, which direction"):
        attribute(gpt2, pairs, plan, base="clean", metrics=("logit_difference", "kl"))
    found = attribute(gpt2, pairs, plan, base="clean", metrics=("kl",), steps=2).values["kl"]
    assert np.abs(found).max() > 0
