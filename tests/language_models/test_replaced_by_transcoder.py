"""A transcoder in its place: it reads one site and writes another in the same forward pass."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config

from palinka.autoencoders import KSparseAutoencoder
from palinka.data import Block
from palinka.errors import InputError
from palinka.language_models import LanguageModel
from palinka.training.callbacks.loss_recovered import COLUMNS, splice

GIVEN, RETURNED, NEURONS = "transformer.h.1.ln_2", "blocks.1.mlp.out", "blocks.1.mlp.post"
TEXTS = ["The river was wide.", "Yes, and the water was still."]


@pytest.fixture(scope="module")
def relu_gpt2(tmp_path_factory: pytest.TempPathFactory, save_random: Callable) -> LanguageModel:
    """A model whose MLPs are what a transcoder computes."""
    config = GPT2Config(
        vocab_size=8192, n_positions=32, n_embd=12, n_layer=2, n_head=2, n_inner=20,
        activation_function="relu", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    folder = save_random(config, tmp_path_factory.mktemp("relu"))
    return LanguageModel.from_pretrained(str(folder), device="cpu")


@pytest.fixture
def exact(relu_gpt2: LanguageModel) -> KSparseAutoencoder:
    """The MLP itself, as a transcoder that keeps all of its latents."""
    mlp = relu_gpt2.model.get_submodule("transformer.h.1.mlp")
    transcoder = KSparseAutoencoder(
        12, 20, k=20, tied=False, encoder_bias=True, decoder_bias=True, output_dim=12
    )
    weights = {
        "encoder.weight": mlp.c_fc.weight.T,
        "encoder.bias": mlp.c_fc.bias,
        "decoder_weight": mlp.c_proj.weight,
        "decoder_bias": mlp.c_proj.bias,
    }
    transcoder.load_state_dict({name: tensor.clone() for name, tensor in weights.items()})
    return transcoder


def test_the_mlp_itself_leaves_the_logits_as_they_are(
    relu_gpt2: LanguageModel, exact: KSparseAutoencoder, hooks_left: Callable
) -> None:
    clean = relu_gpt2.logits(TEXTS)
    with relu_gpt2.replaced(RETURNED, exact, source_site=GIVEN):
        torch.testing.assert_close(relu_gpt2.logits(TEXTS), clean, atol=1e-5, rtol=1e-5)
        ids = relu_gpt2.generate(TEXTS, max_new_tokens=4, do_sample=False)
    assert torch.equal(ids, relu_gpt2.generate(TEXTS, max_new_tokens=4, do_sample=False))
    assert hooks_left(relu_gpt2) == 0


def test_an_edited_latent_is_an_edited_neuron(
    relu_gpt2: LanguageModel, exact: KSparseAutoencoder
) -> None:
    def silence(values: Tensor) -> Tensor:
        values = values.clone()
        values[..., :10] = 0
        return values

    with relu_gpt2.replaced(NEURONS, silence):
        expected = relu_gpt2.logits(TEXTS)
    assert not torch.allclose(expected, relu_gpt2.logits(TEXTS), atol=1e-2)
    with relu_gpt2.replaced(RETURNED, exact, edit=silence, source_site=GIVEN):
        torch.testing.assert_close(relu_gpt2.logits(TEXTS), expected, atol=1e-5, rtol=1e-5)


def test_with_its_error_a_poor_transcoder_changes_nothing_but_the_edit(
    relu_gpt2: LanguageModel, exact: KSparseAutoencoder
) -> None:
    clean = relu_gpt2.logits(TEXTS)
    with torch.no_grad():
        exact.decoder_bias += torch.arange(12)
    with relu_gpt2.replaced(RETURNED, exact, source_site=GIVEN):
        assert not torch.allclose(relu_gpt2.logits(TEXTS), clean, atol=1e-2)
    with relu_gpt2.replaced(RETURNED, exact, keep_error=True, source_site=GIVEN):
        torch.testing.assert_close(relu_gpt2.logits(TEXTS), clean, atol=1e-5, rtol=1e-5)


def test_the_source_is_read_as_the_model_goes_on_with_it(
    relu_gpt2: LanguageModel, exact: KSparseAutoencoder
) -> None:
    with relu_gpt2.replaced(GIVEN, lambda x: 2 * x):
        expected = relu_gpt2.logits(TEXTS)
        with relu_gpt2.replaced(RETURNED, exact, source_site=GIVEN):
            outside = relu_gpt2.logits(TEXTS)
    with (
        relu_gpt2.replaced(RETURNED, exact, source_site=GIVEN),
        relu_gpt2.replaced(GIVEN, lambda x: 2 * x),
    ):
        inside = relu_gpt2.logits(TEXTS)
    torch.testing.assert_close(outside, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inside, expected, atol=1e-5, rtol=1e-5)


def test_splicing_in_the_mlp_itself_costs_nothing(
    relu_gpt2: LanguageModel, exact: KSparseAutoencoder
) -> None:
    tokens = torch.arange(24).reshape(2, 12).numpy()
    contexts = [Block(row, np.full(12, place), np.arange(12)) for place, row in enumerate(tokens)]

    def spliced() -> np.ndarray:
        documents, sums = splice(
            relu_gpt2, RETURNED, exact, np.zeros(12), contexts, skip=1, source_site=GIVEN
        )
        assert documents.tolist() == [0, 1]
        return sums[:, COLUMNS.index("ce_spliced")] - sums[:, COLUMNS.index("ce_clean")]

    np.testing.assert_allclose(spliced(), 0, atol=1e-4)
    with torch.no_grad():
        exact.decoder_weight.mul_(-3)
    assert (np.abs(spliced()) > 1e-2).all()


def test_a_function_of_the_source_replaces_too(relu_gpt2: LanguageModel) -> None:
    mlp = relu_gpt2.model.get_submodule("transformer.h.1.mlp")
    clean = relu_gpt2.logits(TEXTS)
    with relu_gpt2.replaced(
        RETURNED, lambda x: mlp.c_proj(mlp.act(mlp.c_fc(x))), source_site=GIVEN
    ):
        torch.testing.assert_close(relu_gpt2.logits(TEXTS), clean, atol=1e-5, rtol=1e-5)


def test_a_transcoder_needs_a_source_that_comes_first(
    relu_gpt2: LanguageModel, exact: KSparseAutoencoder, hooks_left: Callable
) -> None:
    with (
        pytest.raises(InputError, match="give the source_site that it reads"),
        relu_gpt2.replaced(RETURNED, exact),
    ):
        pass
    with (
        relu_gpt2.replaced(GIVEN, exact, source_site=RETURNED),
        pytest.raises(InputError, match="computed after the site"),
    ):
        relu_gpt2.logits(TEXTS)
    with (
        pytest.raises(InputError, match="there is no site"),
        relu_gpt2.replaced(RETURNED, exact, source_site="blocks.1.mlp.outs"),
    ):
        pass
    assert hooks_left(relu_gpt2) == 0
