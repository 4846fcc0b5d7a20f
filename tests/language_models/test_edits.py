from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from palinka.autoencoders import KSparseAutoencoder
from palinka.errors import InputError
from palinka.language_models import LanguageModel, edits
from palinka.training import SparseAutoencoderModule

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
    with pytest.raises(InputError, match="latent 3 is to be edited; the autoencoder has 0 to 2"):
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
