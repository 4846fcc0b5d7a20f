import pytest
import torch
from transformers import GPT2Config, OPTConfig

from palinka.errors import InputError
from palinka.language_models.sites import Sites, find_sites


@pytest.fixture(scope="module")
def sites() -> Sites:
    # At this size the weights of each layer alone would take 3 GB.
    return find_sites(GPT2Config(n_embd=8192, n_head=64, n_layer=5))


def test_sites_of_a_large_model_are_known_without_its_weights(sites: Sites) -> None:
    assert sites.width("hidden.5") == 8192
    assert sites.width("blocks.4.mlp.post") == 4 * 8192
    assert sites.width("transformer.h.0.attn.c_attn") == 3 * 8192
    assert sites.width("lm_head") == 50257
    assert len(sites.named) == 5 * 8 + 6


def test_the_middle_is_half_the_layers_rounded_down(sites: Sites) -> None:
    assert sites.resolve("blocks.middle.mlp.pre") == "blocks.2.mlp.pre"
    assert sites.resolve("blocks.4.attn.q") == "blocks.4.attn.q"
    assert sites.resolve("transformer.h.3.mlp.c_fc") == "transformer.h.3.mlp.c_fc"


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("blocks.2.mlp.prre", r"no site 'blocks.2.mlp.prre'.* nearest are blocks.2.mlp.pre"),
        ("hidden.6", r"5 blocks, so give hidden.0 to hidden.5"),
        ("blocks.5.mlp.pre", r"5 blocks, so give blocks.0 to blocks.4"),
        ("blocks.-1.mlp.pre", "no site"),
        ("", "no site"),
        ("transformer.h", "does not give one vector per token"),
        ("transformer.h.7.mlp.c_fc", "no site"),
    ],
)
def test_a_site_that_is_not_there_is_refused_with_those_that_are(
    sites: Sites, site: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        sites.width(site)
    text = str(error.value)
    assert "\n" not in text
    assert "hidden.{0..5}, blocks.{0..4}.attn.q" in text
    assert "blocks.{0..4}.mlp.pre" in text


def test_other_families_have_their_module_paths() -> None:
    config = OPTConfig(
        hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    sites = find_sites(config)
    assert sites.named == {}
    assert sites.width("model.decoder.layers.1.fc1") == 32
    with pytest.raises(InputError, match=r"modules are .*model.decoder.layers.\{0..1\}.fc1"):
        sites.resolve("blocks.0.mlp.pre")


def test_finding_sites_leaves_random_numbers_and_the_configuration_alone() -> None:
    config = GPT2Config(n_embd=16, n_head=2, n_layer=1)
    before, described = torch.get_rng_state(), config.to_dict()
    find_sites(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert config.to_dict() == described
