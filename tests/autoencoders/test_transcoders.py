"""Every architecture as a transcoder: one space in, another out."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import palinka.autoencoders
from palinka.autoencoders import Autoencoder, InputScaling, KSparseAutoencoder
from palinka.autoencoders.formats.load import fold, is_known, plain
from palinka.errors import InputError

SETTINGS: dict[str, dict[str, Any]] = {
    "KSparseAutoencoder": {"tied": False, "encoder_bias": True, "decoder_bias": True},
    "MatryoshkaAutoencoder": {"group_fractions": [0.5, 0.5]},
    "LayerNormalizedAutoencoder": {"tied": False, "encoder_bias": True, "decoder_bias": True},
}
ARCHITECTURES = [
    kind
    for kind in vars(palinka.autoencoders).values()
    if inspect.isclass(kind) and issubclass(kind, Autoencoder) and kind is not Autoencoder
]


@pytest.fixture(params=ARCHITECTURES, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def make(kind: Any, output_dim: int | None, **settings: Any) -> Autoencoder:
    torch.manual_seed(0)
    chosen = {**SETTINGS.get(kind.__name__, {}), **settings}
    made: Autoencoder = kind(6, 20, output_dim=output_dim, **chosen)
    return made


def test_it_reads_one_width_and_gives_another(kind: Any) -> None:
    transcoder = make(kind, 4)
    assert (transcoder.input_dim, transcoder.output_dim) == (6, 4)
    assert transcoder.is_transcoder
    output = transcoder(torch.randn(5, 6))
    assert output.latents.shape == (5, 20)
    assert output.reconstruction.shape == (5, 4)
    assert transcoder.dictionary.shape == (20, 4)
    if transcoder.unit_norm:
        torch.testing.assert_close(transcoder.dictionary.norm(dim=1), torch.ones(20))


def test_its_output_bias_is_no_point_of_its_input(kind: Any) -> None:
    transcoder = make(kind, 6)
    x, latents = torch.randn(5, 6), torch.rand(5, 20)
    before, written = transcoder.encode(x), transcoder.decode(latents)
    assert before.any()
    with torch.no_grad():
        transcoder.decoder_bias += 3
    assert torch.equal(transcoder.encode(x), before)
    torch.testing.assert_close(transcoder.decode(latents), written + 3)


def test_at_the_start_it_writes_elsewhere_than_it_reads(kind: Any) -> None:
    transcoder = make(kind, 6)
    weight = transcoder.get_parameter("encoder.weight")
    assert not torch.equal(weight, transcoder.dictionary)
    assert (transcoder.dictionary != 0).all()


def test_a_folder_keeps_it(kind: Any, tmp_path: Path) -> None:
    for width in (4, 6):
        transcoder = make(kind, width).eval()
        transcoder.save_pretrained(tmp_path)
        back = Autoencoder.from_pretrained(tmp_path).eval()
        assert back.is_transcoder
        assert back.config() == transcoder.config()
        x = torch.randn(3, 6)
        assert torch.equal(back(x).reconstruction, transcoder(x).reconstruction)


def test_the_scalings_of_both_sites_are_taken_into_the_weights(kind: Any) -> None:
    if not is_known(kind) or kind.__name__ == "LayerNormalizedAutoencoder":
        pytest.skip("takes no scaling into its weights")
    bare = {"encoder_bias": False, "decoder_bias": False} if kind is KSparseAutoencoder else {}
    for settings in (bare, {}):
        transcoder = make(kind, 4, **settings).eval()
        scaling, target_scaling = InputScaling(6), InputScaling(4)
        scaling.set(torch.randn(6), 3.0)
        target_scaling.set(torch.randn(4), 0.5)
        folded = fold(transcoder, scaling, target_scaling)
        x = torch.randn(50, 6)
        expected = transcoder(scaling(x))
        found = folded(x)
        torch.testing.assert_close(found.latents, expected.latents, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            found.reconstruction,
            target_scaling.inverse(expected.reconstruction),
            atol=1e-5,
            rtol=1e-5,
        )


def test_formats_of_others_are_refused(kind: Any) -> None:
    with pytest.raises(InputError, match="palinka's own format only"):
        plain(make(kind, 4))


def test_without_a_width_it_is_the_autoencoder_that_it_was(kind: Any) -> None:
    autoencoder = make(kind, None)
    assert not autoencoder.is_transcoder
    assert autoencoder.output_dim == 6
    assert "output_dim" not in autoencoder.config()
    assert torch.equal(autoencoder.get_parameter("encoder.weight"), autoencoder.dictionary)


def test_a_tied_transcoder_is_refused() -> None:
    with pytest.raises(InputError, match="set tied to false"):
        KSparseAutoencoder(6, output_dim=4)


@pytest.mark.parametrize("width", [0, True, 2.5])
def test_a_width_that_is_none_is_refused(width: Any) -> None:
    with pytest.raises(InputError, match="output_dim must be an integer of at least 1"):
        KSparseAutoencoder(6, tied=False, output_dim=width)
