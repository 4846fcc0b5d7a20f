import copy
from typing import Any

import numpy as np
import pytest
import torch

from interventions.test_lens import ANSWERS, IDS, WRONG, difference, prompts, tolerance
from palinka.autoencoders import JumpReLUAutoencoder
from palinka.errors import InputError
from palinka.interventions.lens import frozen_direction
from palinka.interventions.logit_attribution import logit_attribution
from palinka.interventions.pairs import Pairs
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel


def contributions(study: Study, **options: Any) -> list[dict[str, Any]]:
    return [found.data for found in logit_attribution(study, **options)]


def test_contributions_add_up_to_the_logit_difference(
    any_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_model.model.config, "final_logit_softcapping", None, raising=False)
    (data,) = contributions(Study(any_model, prompts()))
    logits = [any_model.logits(torch.tensor([ids]))[0, -1] for ids in prompts().clean]
    expected = difference(torch.stack(logits), WRONG).numpy()
    close = tolerance(any_model)
    np.testing.assert_allclose(data["logit_difference"], expected, **close)
    parts = {name: values.reshape(-1, 3) for name, values in data["contributions"].items()}
    assert parts["attn.out"].shape == parts["mlp.out"].shape == (3, 3)
    zero, family = np.zeros((3, 3)), any_model.spec.sites.family
    names = ("embed", "positions", "attn.out", "mlp.out", "constant")
    whole = sum(parts.get(name, zero).sum(0) for name in names)
    np.testing.assert_allclose(whole, expected, **close)
    # The heads and the bias are what attention writes; the stream is all that came before.
    heads = data["contributions"]["heads"].sum(1) + parts.get("attn.bias", zero)
    np.testing.assert_allclose(heads, parts["attn.out"], **close)
    start = parts["embed"] + parts.get("positions", zero[:1]) + parts.get("constant", zero[:1])
    steps = np.cumsum(parts["attn.out"] + parts["mlp.out"], axis=0)
    np.testing.assert_allclose(parts["resid"], np.concatenate([start, start + steps]), **close)
    assert ("positions" in parts) == (family in ("gpt2", "gpt_neo"))
    assert ("constant" in parts) == (family in ("gpt2", "gpt_neo", "gpt_neox", "phi"))
    assert (np.abs(data["contributions"]["heads"]).mean(axis=(1, 2)) > 1e-3).all()


def test_one_head_is_the_transcription(gpt2: LanguageModel) -> None:
    """With the scale that the final LayerNorm has in the run, and its centering."""
    (data,) = contributions(Study(gpt2, prompts()))
    weights = gpt2.model.state_dict()
    for i, ids in enumerate(prompts().clean):
        acts = gpt2.read(torch.tensor([ids]), ["blocks.1.attn.z", "blocks.2.resid"])
        z, x = (acts[site][0, -1] for site in acts)
        written = z[6:12] @ weights["transformer.h.1.attn.c_proj.weight"][6:12]
        scale = (x.var(correction=0) + gpt2.model.config.layer_norm_epsilon).sqrt()
        normed = (written - written.mean()) * weights["transformer.ln_f.weight"] / scale
        logits = weights["lm_head.weight"] @ normed
        expected = logits[ANSWERS[i]].mean() - logits[WRONG[i]].mean()
        found = data["contributions"]["heads"][1, 1, i]
        np.testing.assert_allclose(found, float(expected), rtol=1e-9)


def test_units_add_up_to_what_their_site_writes(any_model: LanguageModel) -> None:
    sites = ["blocks.1.mlp.post", "blocks.0.mlp.out", "blocks.2.attn.z", "hidden.1"]
    main, *each = contributions(Study(any_model, prompts(), sites=sites), units=True)
    units = [data["contributions"]["units"].sum(0) for data in each]
    parts, close = main["contributions"], tolerance(any_model)
    projection = any_model.spec.sites.tap("blocks.1.mlp.post").module
    if getattr(any_model.model.get_submodule(projection), "bias", None) is None:
        np.testing.assert_allclose(units[0], parts["mlp.out"][1], **close)
    np.testing.assert_allclose(units[1], parts["mlp.out"][0], **close)
    np.testing.assert_allclose(units[2], parts["heads"][2].sum(0), **close)
    constant = parts.get("constant", 0.0)
    np.testing.assert_allclose(units[3], parts["resid"][1] - constant, **close)
    assert each[0]["axes"] == {"units": {"unit": list(range(40))}}


def test_latents_and_the_rest_add_up_to_the_reconstruction(gpt2: LanguageModel) -> None:
    torch.manual_seed(0)
    dictionary = JumpReLUAutoencoder(24, 32)
    site = "blocks.1.resid"
    study = Study(gpt2, prompts(), sites=[site], dictionaries={site: dictionary})
    _, data = contributions(study, units=True)
    read = [gpt2.read(torch.tensor([i]), [site, "blocks.2.resid"]) for i in prompts().clean]
    acts, last = (torch.stack([each[s][0, -1] for each in read]) for s in (site, "blocks.2.resid"))
    latents = dictionary.encode(acts.float()).detach()
    active = latents.any(0).nonzero()[:, 0].tolist()
    assert 0 < len(active) < 32
    assert data["axes"] == {"latents": {"latent": active}}
    functional, _ = frozen_direction(gpt2, last, ANSWERS, WRONG)
    directions = dictionary.dictionary.detach().double()
    expected = (latents * (functional @ directions.T))[:, active].T
    np.testing.assert_allclose(data["contributions"]["latents"], expected, rtol=1e-5, atol=1e-7)


def test_a_site_without_a_direct_path_is_an_error(gpt2: LanguageModel) -> None:
    for site in ("blocks.1.mlp.pre", "blocks.1.attn.q", "hidden.3"):
        with pytest.raises(InputError, match=f"{site} has no direct path to the logits; choose"):
            contributions(Study(gpt2, prompts(), sites=[site]), units=True)


def test_next_tokens_are_compared_with_the_mean_of_the_vocabulary(gpt2: LanguageModel) -> None:
    texts = [IDS[0].tolist(), IDS[1, :4].tolist()]
    (data,) = contributions(Study(gpt2, None, texts))
    logits = [gpt2.logits(torch.tensor([ids]))[0] for ids in texts]
    expected = [
        float(row[target] - row.mean())
        for ids, rows in zip(texts, logits, strict=True)
        for row, target in zip(rows, ids[1:], strict=False)
    ]
    np.testing.assert_allclose(data["logit_difference"], expected, atol=1e-10)
    assert data["clusters"] == [0] * 6 + [1] * 3
    assert data["unit"] == "text"


def test_transformer_lens_has_the_same_contributions() -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.direct_logit_attribution import direct_logit_attribution

    model = LanguageModel.from_pretrained("mini", device="cpu")
    options = {"hf_model": copy.deepcopy(model.model), "tokenizer": model.tokenizer}
    bridge: Any = TransformerBridge.boot_transformers(model.spec.name, device="cpu", **options)
    bridge.enable_compatibility_mode(fold_value_biases=False)  # which leave the heads
    ids = model.tokenize("The king said that he would not go to the river, for it was").ids
    pairs = Pairs(ids.tolist(), ids.tolist(), [[300]], [[400]], ["a"])
    (data,) = contributions(Study(model, pairs))
    ours = {name: values[..., 0] for name, values in data["contributions"].items()}
    given = (bridge, ids, torch.tensor([300]), torch.tensor([400]))
    heads = direct_logit_attribution(*given, unit="head").attribution[:-1, 0].detach().numpy()
    np.testing.assert_allclose(ours["heads"].ravel(), heads, rtol=0, atol=1e-4)
    parts = direct_logit_attribution(*given, unit="component").attribution[:, 0].detach().numpy()
    np.testing.assert_allclose([ours["embed"], ours["positions"]], parts[:2], rtol=0, atol=1e-4)
    layers = np.stack([ours["attn.out"], ours["mlp.out"]], 1).ravel()
    np.testing.assert_allclose(layers, parts[2:], rtol=0, atol=1e-4)
