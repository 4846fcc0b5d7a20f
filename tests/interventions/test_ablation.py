from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from palinka.errors import InputError
from palinka.interventions import Pairs
from palinka.interventions.ablation import ablation
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel

TEXTS = ["The king went to", "A horse ran at", "The old man saw", "His wife said that"]
OTHER = ["The queen went to", "A woman ran at", "The old girl saw", "Her wife said that"]


@pytest.fixture(scope="module")
def study() -> Study:
    model = LanguageModel.from_pretrained("mini", device="cpu")
    clean, corrupted = (
        [[int(i) for i in row[mask > 0]] for row, mask in zip(t.ids, t.mask, strict=True)]
        for t in (model.tokenize(TEXTS), model.tokenize(OTHER))
    )
    ends = [len(ids) - 1 for ids in clean]
    pairs = Pairs(clean, corrupted, [[310]] * 4, [[411], [412]] * 2, "abab", {"end": ends})
    return Study(model, pairs)


def logit_difference(study: Study, prompt: int) -> float:
    pairs = study.prompts
    (logits,) = study.model.logits(torch.tensor([pairs.clean[prompt]])).double()
    return float(logits[-1, pairs.answers[prompt][0]] - logits[-1, pairs.wrong[prompt][0]])


def test_outcomes_are_those_of_single_replacements(study: Study) -> None:
    settings: Any = {"components": ["attn.out", "heads"], "value": ["zero", "mean"]}
    (found,) = ablation(study, **settings)
    patched, axes = found.data["patched"], found.data["axes"]
    assert list(axes["heads"]) == ["value", "layer", "head"]
    assert patched["heads"].shape == (2, 6, 4, 4)
    with study.model.replaced("blocks.3.attn.z.1", torch.zeros_like):
        expected = [logit_difference(study, prompt) for prompt in range(4)]
    np.testing.assert_allclose(patched["heads"][0, 3, 1], expected, atol=2e-5)
    every = torch.cat([  # the mean over the corrupted prompts, without first tokens
        study.model.read(torch.tensor([ids]), "blocks.2.attn.write")["blocks.2.attn.write"][0, 1:]
        for ids in study.prompts.corrupted
    ])  # fmt: skip
    with study.model.replaced("blocks.2.attn.write", lambda x: every.mean(0).expand_as(x)):
        expected = [logit_difference(study, prompt) for prompt in range(4)]
    np.testing.assert_allclose(patched["attn.out"][1, 2], expected, atol=2e-5)


def test_direct_effects_go_past_all_later_blocks(study: Study) -> None:
    settings: Any = {"components": ["heads", "mlp.out"], "value": "zero"}
    (found,) = ablation(study, **settings)
    model, direct = study.model, found.data["direct"]
    norm, unembedding = model.model.transformer.ln_f, model.model.lm_head.weight
    sites = ["blocks.1.attn.result.2", "blocks.4.mlp.write", "blocks.5.resid"]
    for prompt, ids in enumerate(study.prompts.clean):
        acts = model.read(torch.tensor([ids]), sites)
        head, mlp, final = (acts[site][0, -1].double() for site in sites)
        scale = (final.var(unbiased=False) + norm.eps).sqrt()
        answer, wrong = study.prompts.answers[prompt][0], study.prompts.wrong[prompt][0]
        along = (unembedding[answer] - unembedding[wrong]).double()
        for write, effect in ((head, direct["heads"][0, 1, 2]), (mlp, direct["mlp.out"][0, 4])):
            expected = -((write - write.mean()) * norm.weight / scale) @ along
            assert effect[prompt] == pytest.approx(float(expected), abs=1e-5)


def test_what_the_last_block_writes_has_a_direct_effect_only(study: Study) -> None:
    # But for the scale of the final norm, which an ablation changes.
    (found,) = ablation(study, components=["mlp.out"], value="scalar_mean")
    direct = found.data["direct"]["mlp.out"][0, 5]
    total = found.data["patched"]["mlp.out"][0, 5] - found.data["clean"]
    np.testing.assert_allclose(np.sign(direct), np.sign(total))


def test_an_unknown_value_is_rejected(study: Study) -> None:
    with pytest.raises(InputError, match="value: 'zeros' is not one of zero, mean"):
        next(ablation(study, value="zeros"))


def test_direct_effects_through_norms_of_what_is_written(
    doubles: dict[str, LanguageModel], pairs: Pairs
) -> None:
    model, pairs = doubles["gemma2"], replace(pairs, answers=[[7]] * 6, wrong=[[9]] * 6)
    (found,) = ablation(Study(model, pairs), components=["heads", "q", "attn.out"], value="zero")
    layer, final = model.model.model.layers[1], model.model.model.norm
    sites = ["blocks.1.attn.result.2", "blocks.1.attn.out", "blocks.1.attn.write", "blocks.2.resid"]
    along = (model.model.lm_head.weight[7] - model.model.lm_head.weight[9]) * (1 + final.weight)
    for prompt, ids in enumerate(pairs.clean):
        acts = model.read(torch.tensor([ids]), sites)
        head, out, write, last = (acts[site][0, -1] for site in sites)
        scales = [(x.square().mean() + final.eps).sqrt() for x in (out, last)]
        written = head * (1 + layer.post_attention_layernorm.weight) / scales[0]
        for name, change, at in (("heads", written, (0, 1, 2)), ("attn.out", write, (0, 1))):
            expected = -(change / scales[1]) @ along
            direct = found.data["direct"][name][*at, prompt]
            assert direct == pytest.approx(float(expected), rel=1e-5)  # Gemma norms in float32
    assert np.isnan(found.data["direct"]["q"]).all()  # no linear path
    (none,) = ablation(Study(model, pairs), components=["q"], value="zero")
    assert none.data["direct"] is None


def test_resampling_needs_a_prompt(study: Study) -> None:
    with pytest.raises(InputError, match="repeats: 0 prompts to resample from; give 1 or more"):
        next(ablation(study, value="resample", repeats=0))
