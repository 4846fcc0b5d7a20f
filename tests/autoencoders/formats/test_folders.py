from pathlib import Path

import pytest

from palinka.autoencoders import Autoencoder, KSparseAutoencoder
from palinka.autoencoders.formats import Origin, load, write
from palinka.autoencoders.formats.load import library_of
from palinka.errors import InputError


@pytest.mark.parametrize(
    ("files", "library"),
    [
        (["config.json", "model.safetensors", "README.md"], "palinka"),
        (["cfg.json", "sae_weights.safetensors", "sparsity.safetensors"], "SAELens"),
        (["cfg.json", "sae.safetensors"], "sparsify"),
        (["config.json", "ae.pt"], "dictionary_learning"),
        (["8.pt"], "OpenAI"),
    ],
)
def test_the_files_tell(files: list[str], library: str) -> None:
    assert library_of(files, "DIR")[0] == library


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "DIR holds no files"),
        (["a.txt", "b.bin"], "DIR holds a.txt, b.bin: no autoencoder"),
        (["1.pt", "2.pt"], "DIR holds 1.pt, 2.pt"),
        (["cfg.json"], "no file DIR/sae_weights.safetensors (SAELens), or DIR/sae.safetensors"),
        (["ae.pt"], "no file DIR/config.json (dictionary_learning)"),
        (["cfg.json", "sae.safetensors", "sae_weights.safetensors"], "SAELens and sparsify save"),
        (
            ["config.json", "h.1/cfg.json", "h.1/sae.safetensors", "h.2/cfg.json"],
            "holds autoencoders in h.1: give one of them, such as DIR/h.1",
        ),
    ],
)
def test_what_is_none_or_many(files: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        library_of(files, "DIR")
    assert expected in str(caught.value)


def test_our_own_format_remembers_its_origin(k_sparse: Autoencoder, folder: Path) -> None:
    origin = Origin(language_model="gpt2", site="blocks.6.mlp.pre", bos=False)
    write(k_sparse, origin, "palinka", folder)
    assert (folder / "README.md").is_file()
    assert load(folder)[1] == origin


@pytest.mark.parametrize("where", ["nowhere", "./no/where", "a\0b", "x" * 5000, "a/../b", "/x/y"])
def test_what_is_neither_a_folder_nor_on_the_hub(where: str) -> None:
    with pytest.raises(InputError) as caught:
        Autoencoder.from_pretrained(where)
    assert str(caught.value).isprintable()


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    KSparseAutoencoder(4).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="only the hub has revisions"):
        Autoencoder.from_pretrained(tmp_path, revision="main")
