import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from palinka.autoencoders import Autoencoder, KSparseAutoencoder
from palinka.errors import InputError


class Halving(KSparseAutoencoder):
    """An architecture of somebody else's."""


@pytest.mark.parametrize(
    "settings",
    [{}, {"tied": False, "encoder_bias": True, "decoder_bias": True, "unit_norm": True}],
)
def test_a_saved_autoencoder_comes_back(tmp_path: Path, settings: dict[str, Any]) -> None:
    sae = KSparseAutoencoder(6, 10, 3, **settings)
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    folder = tmp_path / "new" / "folder"
    sae.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = Autoencoder.from_pretrained(folder)
    assert type(again) is KSparseAutoencoder
    assert again.config() == sae.config()
    assert KSparseAutoencoder.from_pretrained(str(folder)).config() == sae.config()
    x = torch.randn(5, 6)
    assert torch.equal(again(x).latents, sae(x).latents)
    assert torch.equal(again(x).reconstruction, sae(x).reconstruction)


def test_a_class_of_ones_own_is_found_by_its_name(tmp_path: Path) -> None:
    Halving(4).save_pretrained(tmp_path)
    assert type(Autoencoder.from_pretrained(tmp_path)) is Halving


def test_saving_again_replaces(tmp_path: Path) -> None:
    KSparseAutoencoder(4).save_pretrained(tmp_path)
    KSparseAutoencoder(6).save_pretrained(tmp_path)
    assert Autoencoder.from_pretrained(tmp_path).input_dim == 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    KSparseAutoencoder(6, 10, 3).save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    (folder / "config.json").write_text(json.dumps(config))


def refusal(folder: Path, kind: type[Autoencoder] = Autoencoder) -> str:
    with pytest.raises(InputError) as caught:
        kind.from_pretrained(folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_no_folder(tmp_path: Path) -> None:
    assert "nowhere" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"no file {folder / name}" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "JSON"),
        ("[1]", "JSON object, got list"),
        ("{}", "names no class"),
        ('{"class": 3}', "names no class"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_config_that_is_none(folder: Path, text: str, expected: str) -> None:
    (folder / "config.json").write_text(text)
    assert expected in refusal(folder)


def test_an_unknown_class_names_the_nearest(folder: Path) -> None:
    change(folder, **{"class": "KSparseAutoencodr"})
    assert "did you mean 'KSparseAutoencoder'?" in refusal(folder)


@pytest.mark.parametrize("name", ["Autoencoder", "Module", "os.system"])
def test_no_other_class_is_made(folder: Path, name: str) -> None:
    change(folder, **{"class": name})
    assert f"{name!r} is no known Autoencoder" in refusal(folder)


def test_another_class_than_asked_for(folder: Path) -> None:
    assert "'KSparseAutoencoder' is no known Halving" in refusal(folder, Halving)


def test_an_unknown_key_names_the_nearest(folder: Path) -> None:
    change(folder, teid=True)
    assert "no argument 'teid' (did you mean 'tied'?)" in refusal(folder)


def test_a_missing_key(folder: Path) -> None:
    (folder / "config.json").write_text('{"class": "KSparseAutoencoder"}')
    assert "lacks 'input_dim'" in refusal(folder)


def test_a_value_that_cannot_be(folder: Path) -> None:
    change(folder, k=11)
    assert "k must be at most latent_dim" in refusal(folder)


def test_another_width(folder: Path) -> None:
    change(folder, input_dim=7)
    line = refusal(folder)
    assert "(10, 6)" in line
    assert "(10, 7)" in line


def test_weights_too_few_or_too_many(folder: Path) -> None:
    change(folder, tied=False)
    assert "lacks the weight 'decoder_weight'" in refusal(folder)
    change(folder, tied=True)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "extra": torch.zeros(1)}, folder / "model.safetensors")
    assert "weight 'extra' too many" in refusal(folder)


def test_a_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert "no complete safetensors file" in refusal(folder)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot save into"):
        KSparseAutoencoder(4).save_pretrained(tmp_path / "file")
    (tmp_path / "taken" / "config.json").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot save into"):
        KSparseAutoencoder(4).save_pretrained(tmp_path / "taken")
    left = [path.name for path in (tmp_path / "taken").iterdir()]
    assert not [name for name in left if "partial" in name]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("decoder_bias", "false", "decoder_bias must be bool, got 'false'"),
        ("k", True, "k must be int"),
        ("k", 3.0, "k must be int"),
        ("output_dim", "6", "output_dim must be int or null"),
    ],
)
def test_an_argument_of_another_type_is_not_taken_for_one(
    folder: Path, name: str, value: Any, expected: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(InputError, match=expected):
        Autoencoder.from_pretrained(folder)
