"""Studies of latents of a trained module, against runs in which the model is edited by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError
from palinka.interventions.ablation import ablation
from palinka.interventions.attribution import attribution
from palinka.interventions.lesion import lesion
from palinka.interventions.pairs import Pairs
from palinka.interventions.patching import cells_of, patching
from palinka.interventions.plan import Patch
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel
from palinka.training import SparseAutoencoderModule

SITE, LATENTS, EVERY = "blocks.1.mlp.pre", 96, list(range(96))


def make(dtype: torch.dtype, width: int, **more: Any) -> SparseAutoencoderModule:
    torch.manual_seed(0)
    module = SparseAutoencoderModule(KSparseAutoencoder(width, LATENTS, k=8, **more))
    module.scaling.set(torch.randn(width) / 4, 0.5)
    return module.eval().to(dtype)


@pytest.fixture(params=["float32", "float64", "bfloat16"])
def study(request: pytest.FixtureRequest, gpt2: LanguageModel, pairs: Pairs) -> Study:
    """A model in float64, and an autoencoder in its own dtype whose error is large."""
    module = make(getattr(torch, request.param), gpt2.width(SITE))
    return Study(gpt2, pairs, sites=[SITE], dictionaries={SITE: module})


def latents(study: Study, ids: list[int]) -> torch.Tensor:
    module = study.dictionaries[SITE]
    acts = study.model.read(torch.tensor([ids]), [SITE])[SITE]
    with torch.no_grad():
        return module.encode(acts.to(next(module.parameters())))  # type: ignore[attr-defined]


def one_by_one(study: Study, run: str, units: list[int], new: Any) -> np.ndarray[Any, Any]:
    """Logit differences of prompts whose latents `units` become `new(prompt)`, `(…, units)`."""
    pairs, found = study.prompts, []
    for prompt, ids in enumerate(getattr(pairs, run)):

        def edit(values: torch.Tensor, prompt: int = prompt) -> torch.Tensor:
            edited = values.clone()
            edited[..., units] = new(prompt)
            return edited

        with study.model.replaced(SITE, study.dictionaries[SITE], edit=edit, keep_error=True):
            logits = study.model.logits(torch.tensor([ids]))[0, -1]
        a, b = (logits[given[prompt]].mean() for given in (pairs.answers, pairs.wrong))
        found.append(float(a - b))
    return np.array(found)


def test_patched_latents_are_those_of_the_other_prompt(study: Study) -> None:
    (found,) = patching(study, components=["latents"], units=EVERY)
    clean = [latents(study, ids) for ids in study.prompts.clean]
    for unit in EVERY[::12]:
        expected = one_by_one(study, "corrupted", [unit], lambda i, u=unit: clean[i][..., [u]])
        patched = found.data["patched"]["latents"][0, unit]
        np.testing.assert_allclose(patched, expected, atol=2e-5)
    effects = found.data["patched"]["latents"][0] - found.data["corrupted"]
    assert np.abs(effects).max() > 1e-2
    both = clean, [latents(study, ids) for ids in study.prompts.corrupted]
    idle = ~np.array([[(a != b).any(1)[0].numpy() for a, b in zip(*both, strict=True)]])[0].T
    assert idle.any()
    assert (effects[idle] == 0).all(), "a latent that is the same in both runs changes nothing"


def test_ablated_latents_are_zero_or_their_mean(study: Study) -> None:
    (found,) = ablation(study, components=["latents"], value=["zero", "mean"], units=EVERY)
    reference = torch.cat([latents(study, ids)[0, 1:] for ids in study.prompts.corrupted])
    for unit in EVERY[::12]:
        for row, value in enumerate((0.0, reference[:, unit].mean())):
            expected = one_by_one(study, "clean", [unit], lambda _, v=value: v)
            patched = found.data["patched"]["latents"][row, 0, unit]
            np.testing.assert_allclose(patched, expected, atol=2e-5)
    assert np.abs(found.data["patched"]["latents"][0] - found.data["clean"]).max() > 1e-2


def test_lesioned_latents_are_zero_together(study: Study) -> None:
    units = EVERY[3:40:4]
    (found,) = lesion(study, units=units, draws=5)
    expected = one_by_one(study, "clean", units, lambda _: 0.0)
    np.testing.assert_allclose(found.data["lesioned"][0, 0, 0], expected, atol=2e-5)
    assert np.abs(expected - found.data["clean"]).max() > 1e-2
    # Norms of what latents write are all 1, so that the controls are as active.
    assert np.isfinite(found.data["balance"]).all()


def test_estimates_are_derivatives_along_a_latent(study: Study) -> None:
    (found,) = attribution(study, components=["latents"], verify="all")
    assert found.data["estimated"]["latents"].shape == (1, LATENTS, len(study.prompts))
    (exact,) = patching(study, components=["latents"], units=EVERY)
    np.testing.assert_allclose(
        found.data["patched"]["latents"], exact.data["patched"]["latents"], atol=1e-12
    )
    if next(study.dictionaries[SITE].parameters()).dtype != torch.float64:  # type: ignore[attr-defined]
        return  # too coarse for differences
    estimated = found.data["estimated"]["latents"][0] - found.data["corrupted"]
    unit = int(np.abs(estimated).sum(1).argmax())
    clean, own = ([latents(study, ids)[..., [unit]] for ids in getattr(study.prompts, run)]
                  for run in ("clean", "corrupted"))  # fmt: skip
    step = 1e-4
    up, down = (
        one_by_one(study, "corrupted", [unit], lambda i, s=s: own[i] + s * (clean[i] - own[i]))
        for s in (step, -step)
    )
    np.testing.assert_allclose(estimated[unit], (up - down) / (2 * step), atol=1e-6)


@pytest.mark.parametrize("kind", ["patching", "ablation", "attribution", "lesion"])
def test_impossible_latents_are_rejected(kind: str, gpt2: LanguageModel, pairs: Pairs) -> None:
    function = {"patching": patching, "ablation": ablation, "attribution": attribution}.get(kind)
    settings: dict[str, Any] = {"components": ["latents"]} if function else {}

    def message(*modules: Any, **more: Any) -> str:
        given = Study(gpt2, pairs, sites=[SITE], dictionaries=dict.fromkeys([SITE], *modules))
        with pytest.raises(InputError) as error:
            list((function or lesion)(given, **settings, **more))
        assert "\n" not in str(error.value)
        return str(error.value)

    width = gpt2.width(SITE)
    transcoder = make(torch.float32, width, output_dim=width, tied=False)
    assert "is a transcoder, which writes at another site" in message(transcoder, units=[1])
    assert "latents 0 to 95, and -1, 96" in message(make(torch.float32, width), units=[-1, 96])
    if function:
        assert "need an autoencoder; give ckpt_path or autoencoder" in message(None, units=[1])


def test_windows_are_of_neighboring_layers(gpt2: LanguageModel, pairs: Pairs) -> None:
    study = Study(gpt2, pairs)
    made = cells_of(study, "resid", Patch(), "end", window=2)
    sites = [[each.site for each in cell] for cell in made.cells]
    assert sites == [["hidden.0"], ["hidden.0", "hidden.1"], ["hidden.1", "hidden.2"]]
    units = cells_of(Study(gpt2, pairs, sites=["hidden.1"]), "neurons", Patch(), units=[3, 1])
    assert units.axes == {"site": ["hidden.1"], "neuron": [3, 1]}
    with pytest.raises(InputError, match="window: 0 layers in a cell; give 1 or more"):
        cells_of(study, "resid", Patch(), "end", window=0)
