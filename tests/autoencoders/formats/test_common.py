import pytest

from palinka.autoencoders.formats.common import (
    hook_of,
    site_of_hook,
    site_of_module,
    within_base_model,
)


@pytest.mark.parametrize(
    ("site", "hook"),
    [
        ("blocks.6.mlp.pre", "blocks.6.mlp.hook_pre"),
        ("blocks.6.mlp.post", "blocks.6.mlp.hook_post"),
        ("blocks.6.mlp.write", "blocks.6.hook_mlp_out"),
        ("blocks.11.attn.write", "blocks.11.hook_attn_out"),
        ("blocks.0.resid", "blocks.0.hook_resid_post"),
        ("hidden.0", "blocks.0.hook_resid_pre"),
        ("blocks.2.resid_mid", "blocks.2.hook_resid_mid"),
        ("blocks.2.attn.z", "blocks.2.attn.hook_z"),
    ],
)
def test_hooks_and_back(site: str, hook: str) -> None:
    assert hook_of(site) == hook
    assert site_of_hook(hook) == site


def test_hooks_one_way_and_what_has_no_name_there() -> None:
    # A block's input is the output of the one before.
    assert hook_of("hidden.3", layers=6) == "blocks.3.hook_resid_pre"
    assert site_of_hook("blocks.3.hook_resid_pre") == "blocks.2.resid"
    assert hook_of("blocks.3.mlp.out") == "blocks.3.hook_mlp_out"  # the same without a norm
    assert hook_of("hidden.6", layers=6) is None  # after the final norm
    for site in ("hidden.3", "blocks.2.attn.q", "transformer.h.3.ln_1"):
        assert hook_of(site) is None
    for hook in ("blocks.2.attn.hook_q", "blocks.²5.hook_mlp_out"):
        assert site_of_hook(hook) is None


@pytest.mark.parametrize(
    ("module", "site"),
    [
        ("h.6.mlp.act", "blocks.6.mlp.post"),
        ("transformer.h.6.mlp.c_fc", "blocks.6.mlp.pre"),
        ("h.6", "blocks.6.resid"),
        ("h.6.attn", "blocks.6.attn.out"),
        ("gpt_neox.layers.2.mlp.dense_4h_to_h", "blocks.2.mlp.out"),
        ("layers.2.mlp.act", "blocks.2.mlp.post"),
        ("model.layers.7.mlp.gate_proj", "blocks.7.mlp.pre"),
        ("layers.7.mlp", "blocks.7.mlp.out"),
        ("layers.7.mlp.act_fn", None),  # not yet multiplied with the other half
        ("h.6.ln_1", None),
        ("resid_post_layer_8", "blocks.8.resid"),
        ("mlp_out_layer_0", "blocks.0.mlp.out"),
        ("", None),
    ],
)
def test_modules(module: str, site: str | None) -> None:
    assert site_of_module(module) == site
    assert within_base_model("transformer.h.3.mlp") == within_base_model("h.3.mlp") == "h.3.mlp"
