from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config

from palinka.autoencoders import KSparseAutoencoder
from palinka.data import Context
from palinka.errors import InputError
from palinka.language_models import LanguageModel, edits
from palinka.language_models.edits import as_function
from palinka.training import SparseAutoencoderModule
from palinka.training.callbacks.loss_recovered import COLUMNS, patched_losses

LATENTS = torch.tensor([[[0.0, 2.0, 3.0], [4.0, 0.0, 6.0]]])
SITE = "blocks.1.mlp.post"
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (edits.ablate(2), [[0, 2, 0], [4, 0, 0]]),
        (edits.ablate([0, 1], positions=[1]), [[0, 2, 3], [0, 0, 6]]),
        (edits.scale(1, 0.5), [[0, 1, 3], [4, 0, 6]]),
        (edits.clamp(1, 7.0), [[0, 7, 3], [4, 7, 6]]),
        (edits.clamp(1, 7.0, positions=[-1]), [[0, 2, 3], [4, 7, 6]]),
        (edits.add([0, 2], -1.0, positions=[0, -2, 5]), [[-1, 2, 2], [4, 0, 6]]),
    ],
)
def test_an_edit_changes_the_latents_that_it_names_and_nothing_else(
    edit: Callable[[Tensor], Tensor], expected: list[list[float]]
) -> None:
    given = LATENTS.clone()
    assert torch.equal(edit(given), torch.tensor([expected]).float())
    assert torch.equal(given, LATENTS)


def test_a_latent_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="latent 3 does not exist; the autoencoder has 0 to 2"):
        edits.ablate(3)(LATENTS)


@pytest.fixture
def module(gpt2: LanguageModel) -> SparseAutoencoderModule:
    """An autoencoder with a shift and a scale of its own, as training leaves it."""
    torch.manual_seed(1)
    width = gpt2.width(SITE)
    made = SparseAutoencoderModule(KSparseAutoencoder(width, 2 * width, k=4))
    made.scaling.set(torch.randn(width), 0.25)
    return made.eval()


def test_an_identity_edit_with_the_error_gives_the_clean_logits(
    gpt2: LanguageModel, module: SparseAutoencoderModule
) -> None:
    clean = gpt2.logits(IDS)
    for autoencoder in (module, module.autoencoder):
        with gpt2.replaced(SITE, autoencoder, edit=lambda latents: latents, keep_error=True):
            torch.testing.assert_close(gpt2.logits(IDS), clean, rtol=0, atol=1e-5)
        with gpt2.replaced(SITE, autoencoder):
            assert (gpt2.logits(IDS) - clean).abs().max() > 1e-2


@pytest.mark.parametrize("keep_error", [True, False])
def test_clamping_a_latent_does_what_a_direct_computation_says(
    keep_error: bool, gpt2: LanguageModel, module: SparseAutoencoderModule
) -> None:
    x = gpt2.read(IDS, [SITE])[SITE]
    latents = module.encode(x)
    moved = latents.clone()
    moved[..., 3] = 9.0
    # In raw units a latent writes its direction, divided by the scale of the input.
    change = (moved - latents)[..., 3:4] * module.autoencoder.dictionary[3] / 0.25
    expected = (x if keep_error else module.decode(latents)) + change
    with gpt2.replaced(SITE, lambda _: expected.detach()):
        direct = gpt2.logits(IDS)
    with gpt2.replaced(SITE, module, edit=edits.clamp(3, 9.0), keep_error=keep_error):
        edited = gpt2.logits(IDS)
    torch.testing.assert_close(edited, direct, rtol=0, atol=1e-5)
    assert (edited - gpt2.logits(IDS)).abs().max() > 1e-2


def test_generate_works_inside(gpt2: LanguageModel, module: SparseAutoencoderModule) -> None:
    options = {"max_new_tokens": 4, "do_sample": False}
    clean = gpt2.generate(IDS, **options)
    with gpt2.replaced(SITE, module, edit=edits.scale(0, 1.0), keep_error=True):
        assert torch.equal(gpt2.generate(IDS, **options), clean)
    with gpt2.replaced(SITE, module, edit=edits.add([0, 1, 2], 50.0), keep_error=True):
        steered = gpt2.generate(IDS, **options)
        cached_or_not = gpt2.generate(IDS, use_cache=False, **options)
    assert not torch.equal(steered, clean)
    assert torch.equal(steered, cached_or_not)


class Halves:
    """An autoencoder by behavior alone, which loses half of what it is given."""

    def encode(self, x: Tensor) -> Tensor:
        return x * 4

    def decode(self, latents: Tensor) -> Tensor:
        return latents / 8


X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def test_an_autoencoder_stands_for_its_reconstruction() -> None:
    assert torch.equal(as_function(Halves())(X), X / 2)


def test_an_edit_acts_on_the_latents() -> None:
    edited = as_function(Halves(), lambda latents: latents + 8, False)(X)
    assert torch.equal(edited, X / 2 + 1)


def test_the_error_is_that_of_the_unedited_latents() -> None:
    def edit_in_place(latents: Tensor) -> Tensor:
        latents[:, 0] = 0
        return latents

    expected = X.clone()
    expected[:, 0] -= X[:, 0] / 2  # what the edit took away, and nothing else
    assert torch.equal(as_function(Halves(), edit_in_place, True)(X), expected)
    assert torch.equal(as_function(Halves(), None, True)(X), X)


def test_a_module_is_given_its_own_dtype() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2).double()

        def encode(self, x: Tensor) -> Tensor:
            result: Tensor = self.linear(x)
            return result

        def decode(self, latents: Tensor) -> Tensor:
            return latents

    assert as_function(Double())(X).dtype == torch.float64


def test_a_function_stands_for_itself() -> None:
    assert torch.equal(as_function(torch.neg)(X), -X)


@pytest.mark.parametrize(
    ("replacement", "edit", "keep_error", "message"),
    [
        (3, None, False, "a int cannot replace a site"),
        (torch.relu, torch.relu, False, "need an autoencoder"),
        (torch.relu, None, True, "need an autoencoder"),
    ],
)
def test_what_cannot_replace_is_refused(
    replacement: object, edit: object, keep_error: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        as_function(replacement, edit, keep_error)  # type: ignore[arg-type]


def test_an_edit_that_returns_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="return the edited latents"):
        as_function(Halves(), lambda latents: None, False)(X)  # type: ignore[arg-type,return-value]


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
    contexts = [Context(row, np.full(12, place), np.arange(12)) for place, row in enumerate(tokens)]

    def spliced() -> np.ndarray:
        documents, sums = patched_losses(
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
        pytest.raises(InputError, match="no site"),
        relu_gpt2.replaced(RETURNED, exact, source_site="blocks.1.mlp.outs"),
    ):
        pass
    assert hooks_left(relu_gpt2) == 0
