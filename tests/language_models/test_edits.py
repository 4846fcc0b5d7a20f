from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from palinka.autoencoders import KSparseAutoencoder
from palinka.data import Context
from palinka.errors import InputError
from palinka.evaluation.losses import COLUMNS, patched_losses
from palinka.language_models import LanguageModel, edits
from palinka.language_models.edits import as_function
from palinka.training import SparseAutoencoderModule

LATENTS = torch.tensor([[[0.0, 2.0, 3.0], [4.0, 0.0, 6.0]]])
SITE = "blocks.1.mlp.post"
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
TEXTS = ["The river was wide.", "Yes, and the water was still."]


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


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5, rtol=1e-5)


def logits(model: LanguageModel, *replacements: tuple[Any, ...]) -> Tensor:
    """Logits with replacements, each the arguments of `replaced`, the outermost first."""
    with ExitStack() as replaced:
        for arguments in replacements:
            replaced.enter_context(model.replaced(*arguments))
        return model.logits(TEXTS)


@pytest.fixture
def module(gpt2: LanguageModel) -> SparseAutoencoderModule:
    """An autoencoder with a shift and a scale of its own, as training leaves it."""
    torch.manual_seed(1)
    width = gpt2.width(SITE)
    made = SparseAutoencoderModule(KSparseAutoencoder(width, 2 * width, k=4))
    made.scaling.set(torch.randn(width), 0.25)
    return made.eval()


@pytest.mark.parametrize("keep_error", [True, False])
def test_clamping_a_latent_equals_a_direct_computation(
    keep_error: bool, gpt2: LanguageModel, module: SparseAutoencoderModule
) -> None:
    (x,) = gpt2.read(TEXTS, [SITE]).values()
    latents = module.encode(x)
    # In raw units a latent writes its direction, divided by the scale of the input.
    change = (9 - latents[..., 3:4]) * module.autoencoder.dictionary[3] / 0.25
    expected = (x if keep_error else module.decode(latents)) + change
    direct = logits(gpt2, (SITE, lambda _: expected.detach()))
    edited = logits(gpt2, (SITE, module, edits.clamp(3, 9.0), keep_error))
    assert close(edited, direct)
    assert not torch.allclose(edited, logits(gpt2), atol=1e-2)


def test_generate_is_steered(gpt2: LanguageModel, module: SparseAutoencoderModule) -> None:
    options = {"max_new_tokens": 4, "do_sample": False}
    clean = gpt2.generate(IDS, **options)
    with gpt2.replaced(SITE, module, edit=edits.scale(0, 1.0), keep_error=True):
        assert torch.equal(gpt2.generate(IDS, **options), clean)
    with gpt2.replaced(SITE, module, edit=edits.add([0, 1, 2], 50.0), keep_error=True):
        steered = gpt2.generate(IDS, **options)
        without_cache = gpt2.generate(IDS, use_cache=False, **options)
    assert not torch.equal(steered, clean)
    assert torch.equal(steered, without_cache)


class Halves:
    """An autoencoder by behavior alone, which loses half of what it is given."""

    def encode(self, x: Tensor) -> Tensor:
        return x * 4

    def decode(self, latents: Tensor) -> Tensor:
        return latents / 8


X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def zero_in_place(latents: Tensor) -> Tensor:
    latents[:, 0] = 0
    return latents


@pytest.mark.parametrize(
    ("replacement", "edit", "keep_error", "expected"),
    [
        (torch.neg, None, False, -X),
        (Halves(), None, False, X / 2),
        (Halves(), lambda latents: latents + 8, False, X / 2 + 1),
        (Halves(), None, True, X),
        # What the edit took away, and nothing else.
        (Halves(), zero_in_place, True, X * torch.tensor([0.5, 1.0])),
    ],
)
def test_a_replacement_is_a_function(
    replacement: object, edit: edits.Edit | None, keep_error: bool, expected: Tensor
) -> None:
    assert torch.equal(as_function(replacement, edit, keep_error)(X), expected)
    double = nn.Linear(2, 2).double()  # a module is given its own dtype
    double.encode, double.decode = double.forward, torch.neg
    assert as_function(double, keep_error=True)(X).dtype == torch.float64


def test_an_unusable_replacement_or_edit_is_rejected() -> None:
    for arguments, message in (
        ((3,), "a int cannot replace a site"),
        ((torch.relu, torch.relu), "need an autoencoder"),
        ((torch.relu, None, True), "need an autoencoder"),
        ((Halves(), lambda latents: None), "return the edited latents"),
        ((Halves(), edits.ablate([1, 2])), r"latents \[2\] do not exist; expected 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            as_function(*arguments)(X)


GIVEN, RETURNED, NEURONS = "transformer.h.1.ln_2", "blocks.1.mlp.out", "blocks.1.mlp.post"


@pytest.fixture
def exact(relu_gpt2: LanguageModel) -> KSparseAutoencoder:
    """The MLP itself, as a transcoder that keeps all of its latents."""
    mlp = relu_gpt2.model.get_submodule("transformer.h.1.mlp")
    transcoder = KSparseAutoencoder(
        24, 40, k=40, tied=False, encoder_bias=True, decoder_bias=True, output_dim=24
    )
    weights = (mlp.c_fc.weight.T, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias)
    names = ("encoder.weight", "encoder.bias", "decoder_weight", "decoder_bias")
    transcoder.load_state_dict({n: w.clone() for n, w in zip(names, weights, strict=True)})
    return transcoder


def test_the_mlp_itself_is_neutral(relu_gpt2: LanguageModel, exact: KSparseAutoencoder) -> None:
    mlp, options = relu_gpt2.model.transformer.h[1].mlp, {"max_new_tokens": 4, "do_sample": False}
    for same in (exact, lambda x: mlp.c_proj(mlp.act(mlp.c_fc(x)))):
        assert close(logits(relu_gpt2, (RETURNED, same, None, False, GIVEN)), logits(relu_gpt2))
        with relu_gpt2.replaced(RETURNED, same, source_site=GIVEN):
            ids = relu_gpt2.generate(TEXTS, **options)
        assert torch.equal(ids, relu_gpt2.generate(TEXTS, **options))


def test_an_edited_latent_is_a_neuron(relu_gpt2: LanguageModel, exact: KSparseAutoencoder) -> None:
    silence = edits.ablate(range(10))
    expected = logits(relu_gpt2, (NEURONS, silence))
    assert not torch.allclose(expected, logits(relu_gpt2), atol=1e-2)
    assert close(logits(relu_gpt2, (RETURNED, exact, silence, False, GIVEN)), expected)


def test_a_replaced_source_is_read_and_the_error_is_kept(
    relu_gpt2: LanguageModel, exact: KSparseAutoencoder
) -> None:
    transcoder, doubled = (RETURNED, exact, None, False, GIVEN), (GIVEN, lambda x: 2 * x)
    expected = logits(relu_gpt2, doubled)
    assert close(logits(relu_gpt2, doubled, transcoder), expected)
    assert close(logits(relu_gpt2, transcoder, doubled), expected)
    exact.decoder_bias.data += torch.arange(24)
    for keep_error in (False, True):
        changed = logits(relu_gpt2, (RETURNED, exact, None, keep_error, GIVEN))
        assert close(changed, logits(relu_gpt2)) == keep_error


def test_patching_in_the_mlp_is_free(relu_gpt2: LanguageModel, exact: KSparseAutoencoder) -> None:
    tokens = torch.arange(24).reshape(2, 12).numpy()
    contexts = [Context(row, np.full(12, place), np.arange(12)) for place, row in enumerate(tokens)]

    def cost() -> np.ndarray:
        given = relu_gpt2, RETURNED, [as_function(exact)], np.zeros(24), contexts
        documents, (sums,) = patched_losses(*given, skip=1, source_site=GIVEN)
        assert documents.tolist() == [0, 1]
        return sums[:, COLUMNS.index("ce_spliced")] - sums[:, COLUMNS.index("ce_clean")]

    np.testing.assert_allclose(cost(), 0, atol=1e-4)
    with torch.no_grad():
        exact.decoder_weight.mul_(-3)
    assert (np.abs(cost()) > 1e-2).all()


def test_a_transcoder_needs_a_source_first(
    relu_gpt2: LanguageModel, exact: KSparseAutoencoder
) -> None:
    for site, source_site, message in (
        (RETURNED, None, "give the source_site that it reads"),
        (GIVEN, RETURNED, "give a site that comes before"),
        (RETURNED, "blocks.1.mlp.outs", "no site"),
        ("nowhere", GIVEN, "no site"),
    ):
        with pytest.raises(InputError, match=message):
            logits(relu_gpt2, (site, exact, None, False, source_site))
