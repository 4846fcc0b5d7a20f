import pytest
import torch

from palinka.errors import InputError
from palinka.language_models import LanguageModel, direct_effect
from palinka.language_models.direct_effect import direct_path, token_effects


@pytest.mark.parametrize(
    "site", ["hidden.3", "hidden.2", "blocks.2.resid", "blocks.2.mlp.out", "blocks.2.mlp.post"]
)
def test_after_the_last_attention_it_is_what_the_model_does(
    site: str, any_model: LanguageModel
) -> None:
    """Nothing but the direct path leads from the last block to the logits."""
    if site == "hidden.2":
        site = "blocks.2.attn.out"  # past the last MLP, whose reply is frozen below
    torch.manual_seed(0)
    ids = torch.randint(8192, (1, 4))
    directions = torch.randn(3, any_model.width(site))
    norm = any_model.model.get_submodule(_final_norm(any_model))
    sizes: list[torch.Tensor] = []
    mlp = any_model.read(ids, ["blocks.2.mlp.out"])["blocks.2.mlp.out"]

    def remember(_module: object, args: tuple[torch.Tensor, ...], _output: object) -> None:
        sizes.append(args[0])

    handle = norm.register_forward_hook(remember)
    try:
        for direction in directions:
            logits = []
            for amount in (-1e-3, 1e-3):

                def moved(x: torch.Tensor, by: torch.Tensor = amount * direction) -> torch.Tensor:
                    return x + by.to(x)

                with any_model.replaced(site, moved):
                    if site.endswith("attn.out"):
                        with any_model.replaced("blocks.2.mlp.out", lambda _: mlp):
                            logits.append(any_model.logits(ids))
                    else:
                        logits.append(any_model.logits(ids))
            change = (logits[1] - logits[0])[0, -1] / 2e-3
            x = sizes[-1][0, -1]
            if isinstance(norm, torch.nn.LayerNorm):
                x = x - x.mean()
            size = 1.0 if site == "hidden.3" else float(x.square().mean().sqrt())
            expected = direct_path(any_model, site)(direction[None])[0] / size
            # The norm's size changes as well, which moves all logits along the present ones.
            present = logits[0][0, -1]
            bias = any_model.model.get_output_embeddings()(
                norm.bias if hasattr(norm, "bias") and norm.bias is not None
                else torch.zeros_like(x)
            )  # fmt: skip
            residue = change - expected
            if site != "hidden.3":
                along = present - bias
                residue = residue - along * (residue @ along) / (along @ along)
            assert residue.norm() < 0.02 * expected.norm()
    finally:
        handle.remove()


def _final_norm(model: LanguageModel) -> str:
    tap = model.spec.sites.tap(f"hidden.{model.n_layers}")
    return tap.module


def test_the_tokens_are_those_of_the_whole_map_however_it_is_cut(
    gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    directions = torch.randn(5, gpt2.width("blocks.1.mlp.pre"))
    logits = direct_path(gpt2, "blocks.1.mlp.pre")(directions)
    monkeypatch.setattr(direct_effect, "CHUNK_LOGITS", 2 * 8192)
    found = token_effects(gpt2, "blocks.1.mlp.pre", directions, n=4)
    order = logits.argsort(dim=1)
    assert torch.equal(found.raised, order.flip(1)[:, :4])
    assert torch.equal(found.lowered, order[:, :4])
    torch.testing.assert_close(found.lowered_by, logits.sort(dim=1).values[:, :4])
    assert (found.raised_by > found.lowered_by).all()


@pytest.mark.parametrize("site", ["blocks.1.attn.q", "transformer.wte"])
def test_sites_without_a_direct_path_are_refused(site: str, gpt2: LanguageModel) -> None:
    with pytest.raises(InputError, match="has no direct path"):
        direct_path(gpt2, site)


def test_a_gate_is_refused(models: dict[str, LanguageModel]) -> None:
    with pytest.raises(InputError, match="a gate that multiplies"):
        direct_path(models["llama"], "blocks.1.mlp.pre")
