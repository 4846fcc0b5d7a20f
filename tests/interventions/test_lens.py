import copy
from typing import Any

import numpy as np
import pytest
import torch

from palinka.errors import InputError
from palinka.interventions.lens import frozen_direction, lens
from palinka.interventions.pairs import Pairs
from palinka.interventions.study import Study
from palinka.language_models import LanguageModel

IDS = torch.from_numpy(np.random.default_rng(0).integers(1, 8192, (3, 7)))
ANSWERS, WRONG = [[5], [6, 7], [8]], [[9, 10], [11], [12]]
EXACT = {"atol": 1e-10, "rtol": 1e-10}
# Their norms compute in float32, whatever the dtype of the model.
INEXACT = {"atol": 1e-4, "rtol": 1e-5}


def tolerance(model: LanguageModel) -> dict[str, float]:
    return EXACT if model.spec.sites.family in ("gpt2", "gpt_neo", "gpt_neox", "phi") else INEXACT


def difference(logits: torch.Tensor, wrong: list[list[int]] | None) -> torch.Tensor:
    """Mean logit of the answers minus that of the wrong ones, row by row."""
    pairs = zip(logits, ANSWERS, wrong or [slice(None)] * len(logits), strict=True)
    return torch.stack([row[right].mean() - row[other].mean() for row, right, other in pairs])


@pytest.mark.parametrize("wrong", [WRONG, None])
def test_parts_of_the_residual_and_a_constant_add_up_to_the_logit_difference(
    any_model: LanguageModel, wrong: list[list[int]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(any_model.model.config, "final_logit_softcapping", None, raising=False)
    writes = [f"blocks.{i}.{part}.write" for i in range(3) for part in ("attn", "mlp")]
    sites = ["hidden.0", *writes]
    acts = any_model.read(IDS, [*sites, "blocks.2.resid"])
    last = acts["blocks.2.resid"][:, -1]
    functional, constant = frozen_direction(any_model, last, ANSWERS, wrong)
    parts = torch.stack([(acts[site][:, -1] * functional).sum(1) for site in sites])
    expected = difference(any_model.logits(IDS)[:, -1], wrong)
    torch.testing.assert_close(parts.sum(0) + constant, expected, **tolerance(any_model))
    assert parts.abs().mean() > 0.1
    assert bool(constant.abs().max() > 1e-3) == (tolerance(any_model) is EXACT)


def prompts() -> Pairs:
    """Prompts of 5 and 7 tokens, in two templates."""
    ids = [row[: 5 + 2 * (i == 1)] for i, row in enumerate(IDS.tolist())]
    return Pairs(ids, ids, ANSWERS, WRONG, ["a", "b", "a"])


def by_loops(logits: np.ndarray, final: np.ndarray, answers: list[int]) -> dict[str, Any]:
    """What the lens says of one token, from its logits at a layer and from the last ones."""
    logs = logits - np.log(np.exp(logits).sum())
    final = final - np.log(np.exp(final).sum())
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:2]
    return {
        "target_log_probability": np.mean([logs[i] for i in answers]),
        "target_rank": np.mean([sum(logits > logits[i]) for i in answers]),
        "entropy": -sum(np.exp(logs) * logs),
        "kl_to_final": sum(np.exp(final) * (final - logs)),
        "top_ids": order,
        "top_probability": np.exp(logs[order]),
    }


def test_the_lens_at_the_last_layer_is_the_model(any_model: LanguageModel) -> None:
    (found,) = lens(Study(any_model, prompts()), k=3)
    for i, ids in enumerate(prompts().clean):
        logits = any_model.logits(torch.tensor([ids]))[0, -1]
        expected = by_loops(logits.numpy(), logits.numpy(), ANSWERS[i])
        for name in ("target_log_probability", "target_rank", "entropy", "kl_to_final"):
            np.testing.assert_allclose(
                found.data[name][-1, i], expected[name], rtol=1e-5, atol=1e-9
            )
        np.testing.assert_array_equal(found.data["top_ids"][-1, i, :2], expected["top_ids"])
    assert found.data["target_rank"].shape == (4, 3)
    assert found.data["clusters"] == ["a", "b", "a"]


@pytest.mark.parametrize("norm", [True, False])
def test_every_layer_is_the_transcription(
    gpt2: LanguageModel, norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of two tokens; without the norm as in the course, which norms the last state."""
    monkeypatch.setattr("palinka.interventions.lens.CHUNK_LOGITS", 2 * 8192)
    texts = [IDS[0].tolist(), [3], IDS[1, :4].tolist()]
    (found,) = lens(Study(gpt2, None, texts), norm=norm, k=2)
    at = 0
    for text in (texts[0], texts[2]):
        states = gpt2.model(torch.tensor([text]), output_hidden_states=True).hidden_states
        for position, target in enumerate(text[1:]):
            final = gpt2.model.lm_head(states[3][0, position]).detach().numpy()
            for layer in range(4):
                state = states[layer][0, position]
                normed = gpt2.model.transformer.ln_f(state) if norm and layer < 3 else state
                logits = gpt2.model.lm_head(normed).detach().numpy()
                for name, value in by_loops(logits, final, [target]).items():
                    np.testing.assert_allclose(found.data[name][layer, at], value, atol=1e-9)
            at += 1
    assert found.data["clusters"] == [0] * 6 + [2] * 3  # the numbers of the texts
    assert found.context["shown"] == list(range(6))
    words = [gpt2.tokenizer.decode([i]) for i in texts[0]]
    assert found.context["tokens"] == words[:-1]
    assert found.context["targets"] == words[1:]
    assert found.context["predictions"][3][2] == gpt2.tokenizer.decode(
        [found.data["top_ids"][3, 2, 0]]
    )


def test_texts_without_a_next_token_are_an_error(gpt2: LanguageModel) -> None:
    with pytest.raises(InputError, match="no text has a next token; give texts of two tokens"):
        list(lens(Study(gpt2, None, [[3], [4]])))
    with pytest.raises(InputError, match=r"k: 0 tokens of a vocabulary of (\d+); give 1 to \1"):
        list(lens(Study(gpt2, None, [[3, 4]]), k=0))


@pytest.mark.parametrize("norm", [True, False])
def test_transformer_lens_has_the_same_lens(norm: bool) -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.logit_lens import logit_lens

    model = LanguageModel.from_pretrained("mini", device="cpu")
    options = {"hf_model": copy.deepcopy(model.model), "tokenizer": model.tokenizer}
    bridge: Any = TransformerBridge.boot_transformers(model.spec.name, device="cpu", **options)
    ids = model.tokenize("The king said that he would not go to the river, for it was").ids
    (found,) = lens(Study(model, None, ids.tolist()), norm=norm)
    settings = {"positions": None, "return_type": "log_probs", "apply_ln": norm}
    peer = logit_lens(bridge, ids[:, :-1], targets=ids[:, 1:], **settings).readout
    layers = slice(None if norm else -1)  # the last state is always normed here
    for name, theirs in (
        ("target_log_probability", peer.values[..., 0]),
        ("target_rank", peer.target_ranks[..., 0]),
        ("entropy", peer.entropy),
    ):
        ours = found.data[name][layers]
        np.testing.assert_allclose(ours, theirs[layers, 0].detach().numpy(), rtol=0, atol=1e-4)
