from contextlib import ExitStack
from functools import partial

import pytest
import torch

from palinka.errors import InputError
from palinka.language_models import LanguageModel, direct_effect
from palinka.language_models.direct_effect import direct_path, token_effects


@pytest.mark.parametrize(
    "site",
    ["hidden.3", "blocks.2.attn.out", "blocks.2.resid", "blocks.2.mlp.out", "blocks.2.mlp.post"],
)
def test_the_path_from_the_last_block_is_exact(site: str, any_model: LanguageModel) -> None:
    """Nothing but the direct path leads from the last block to the logits."""
    torch.manual_seed(0)
    ids = torch.randint(8192, (1, 4))
    (direction,) = torch.randn(1, any_model.width(site))
    norm = any_model.model.get_submodule(any_model.spec.sites.tap("hidden.3").module)
    mlp = any_model.read(ids, ["blocks.2.mlp.out"])["blocks.2.mlp.out"]
    given: list[torch.Tensor] = []
    handle = norm.register_forward_hook(lambda _module, args, _output: given.append(args[0]))
    logits = []
    for amount in (-1e-3, 1e-3):
        with ExitStack() as replaced:
            move = partial(torch.add, other=direction, alpha=amount)
            replaced.enter_context(any_model.replaced(site, move))
            if site.endswith("attn.out"):  # the last MLP's reply is not of the direct path
                replaced.enter_context(any_model.replaced("blocks.2.mlp.out", lambda _: mlp))
            logits.append(any_model.logits(ids)[0, -1])
    handle.remove()
    x = given[-1][0, -1]
    x = x - x.mean() if isinstance(norm, torch.nn.LayerNorm) else x
    size = 1.0 if site == "hidden.3" else float(x.square().mean().sqrt())
    expected = direct_path(any_model, site)(direction[None])[0] / size
    change = (logits[1] - logits[0]) / 2e-3
    residue = change - change.mean() - expected
    if site != "hidden.3":
        # The norm's size changes as well, which moves all logits along the present ones.
        bias = getattr(norm, "bias", None)
        unembed = any_model.model.get_output_embeddings()
        along = logits[0] - unembed(torch.zeros_like(x) if bias is None else bias)
        along = along - along.mean()
        residue = residue - along * (residue @ along) / (along @ along)
    assert residue.norm() < 0.02 * expected.norm()


def test_effects_are_those_of_the_transcription(gpt2: LanguageModel) -> None:
    """Through the MLP's second matrix, the final LayerNorm's centering and weights, unembedding."""
    directions = torch.randn(2, gpt2.width("blocks.1.mlp.post"))
    weights = gpt2.model.state_dict()
    expected = []
    for direction in directions:
        residual = direction @ weights["transformer.h.1.mlp.c_proj.weight"]
        normed = weights["transformer.ln_f.weight"] * (residual - residual.mean())
        logits = weights["lm_head.weight"] @ normed
        expected.append(logits - logits.sum() / len(logits))
    found = direct_path(gpt2, "blocks.1.mlp.post")(directions)
    torch.testing.assert_close(found.detach(), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_shift_of_all_tokens_raises_none(
    gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (direction,) = torch.randn(1, gpt2.width("hidden.3"))
    unembedding = gpt2.model.get_output_embeddings()
    shifted = unembedding.weight.detach() + 3.0 * direction / direction.square().sum()
    before = direct_path(gpt2, "hidden.3")(direction[None]).detach()
    monkeypatch.setattr(unembedding.weight, "data", shifted)
    after = direct_path(gpt2, "hidden.3")(direction[None]).detach()
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert abs(float(after.mean())) < 1e-4


def test_token_effects_in_chunks(gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    directions = torch.randn(5, gpt2.width("blocks.1.mlp.pre"))
    logits = direct_path(gpt2, "blocks.1.mlp.pre")(directions)
    monkeypatch.setattr(direct_effect, "CHUNK_LOGITS", 2 * 8192)
    found = token_effects(gpt2, "blocks.1.mlp.pre", directions, n=4)
    order = logits.argsort(dim=1)
    assert torch.equal(found.raised, order.flip(1)[:, :4])
    assert torch.equal(found.lowered, order[:, :4])
    torch.testing.assert_close(found.lowered_by, logits.sort(dim=1).values[:, :4])
    assert (found.raised_by > found.lowered_by).all()


def test_sites_without_a_direct_path_are_rejected(models: dict[str, LanguageModel]) -> None:
    for family, site, message in (
        ("gpt2", "blocks.1.attn.q", "has no direct path"),
        ("gpt2", "transformer.wte", "has no direct path"),
        ("llama", "blocks.1.mlp.pre", "is a gate"),
    ):
        with pytest.raises(InputError, match=message):
            direct_path(models[family], site)
