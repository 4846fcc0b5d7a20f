from contextlib import ExitStack

import pytest
import torch
from torch.autograd import forward_ad

from palinka.errors import InputError
from palinka.language_models import LanguageModel, direct_effect
from palinka.language_models.direct_effect import direct_path, token_effects
from palinka.language_models.sites import Tap, reading

IN_BLOCK = ("attn.z", "attn.out", "attn.write", "resid_mid", "mlp.post", "mlp.out", "mlp.write")


@torch.no_grad()
@pytest.mark.parametrize(
    "site", ["hidden.3", "blocks.2.resid", *(f"blocks.2.{part}" for part in IN_BLOCK)]
)
def test_the_path_from_the_last_block_is_exact(site: str, any_model: LanguageModel) -> None:
    """Nothing but the direct path leads from the last block to the logits.

    So it is the derivative of the whole model, but for the change of each norm's size, which moves
    what that norm returns along itself.
    """
    if site not in any_model.sites:
        pytest.skip("attention and MLP run in parallel")
    torch.manual_seed(0)
    ids = torch.randint(8192, (1, 4))
    (direction,) = torch.randn(1, any_model.width(site))
    mlp = any_model.read(ids, "blocks.2.mlp.out")["blocks.2.mlp.out"]
    with forward_ad.dual_level(), ExitStack() as replaced:
        replaced.enter_context(
            any_model.replaced(site, lambda x: forward_ad.make_dual(x, direction.expand_as(x)))
        )
        if "attn" in site or "mid" in site:  # the last MLP's reply is not of the direct path
            replaced.enter_context(any_model.replaced("blocks.2.mlp.out", lambda _: mlp))
        logits = any_model.logits(ids)[0, -1]
        if cap := getattr(any_model.model.config, "final_logit_softcapping", None):
            logits = cap * torch.atanh(logits / cap)
        change = forward_ad.unpack_dual(logits).tangent
    expected = direct_path(any_model, site)(direction[None])[0]
    along = []
    post_norms = any_model.model.config.model_type in ("gemma2", "gemma3_text", "olmo2")
    before = site.endswith(("z", "post", "out")) and post_norms
    for name in ["hidden.3"] * (site != "hidden.3") + [f"{site.rpartition('.')[0]}.write"] * before:
        path = any_model.spec.sites.tap(name).module
        norm = any_model.model.get_submodule(path)
        with reading(any_model.model, {"given": Tap(path, side="input")}) as found:
            any_model.model(ids)
        x = found["given"][0, -1]
        x = x - x.mean() if isinstance(norm, torch.nn.LayerNorm) else x
        expected = expected / x.square().mean().sqrt()
        bias = getattr(norm, "bias", None)
        returned = any_model.read(ids, name)[name][0, -1:]
        along.append(direct_path(any_model, name)(returned if bias is None else returned - bias)[0])
    residue = (change - change.mean() - expected)[:, None]
    if along:
        columns = torch.stack(along, dim=1)
        residue = residue - columns @ torch.linalg.lstsq(columns, residue).solution
    assert residue.norm() < 1e-4 * expected.norm()


def test_an_embedding_has_the_path_of_the_stream(any_model: LanguageModel) -> None:
    (direction,) = torch.randn(1, 24)
    found = [direct_path(any_model, site)(direction[None]) for site in ("embed", "hidden.0")]
    assert torch.equal(*found)


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
        ("phi3", "blocks.1.mlp.pre", "is a gate"),
    ):
        with pytest.raises(InputError, match=message):
            direct_path(models[family], site)
