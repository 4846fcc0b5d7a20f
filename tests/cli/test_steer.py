"""`palinka steer`, as it is typed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from palinka.__main__ import main
from palinka.autoencoders import TopKAutoencoder
from palinka.language_models import LanguageModel

TEXT = "--text=The man stayed at home because"


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[str, str, str]:
    head, _, both = capsys.readouterr().out.rstrip("\n").partition("\n\nwithout   ")
    without, _, steered = both.partition("\nwith      ")
    assert without.startswith(TEXT[7:])
    assert steered.startswith(TEXT[7:])
    return head, without, steered


def test_a_contrast_changes_the_continuation_and_no_strength_does_not(
    workspace: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contrast = f"--contrast={repository / 'configs/stimuli/him_her.yaml'}"
    assert main(["steer", TEXT, contrast, "--strength=0.3", "--tokens=12"]) == 0
    head, without, steered = printed(capsys)
    assert head.startswith("added at blocks.3.resid: 0.3 of the median norm, ")
    assert " she" in steered
    assert " she" not in without
    assert main(["steer", TEXT, contrast, "--strength=0", "--tokens=12"]) == 0
    assert printed(capsys)[1:] == (without, without)


def test_a_latent_writes_its_decoder_direction(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    autoencoder = TopKAutoencoder(128, 256, k=4)
    autoencoder.save_pretrained("dictionary")
    options = ["--autoencoder=dictionary", "--latent=7", "--site=hidden.2", "--tokens=6"]
    assert main(["steer", TEXT, *options, "--strength=1.5"]) == 0
    _, without, steered = printed(capsys)
    lm = LanguageModel.from_pretrained("mini", device="cpu")
    row = autoencoder.dictionary.detach()[7]
    ids = lm.tokenize(TEXT[7:]).ids
    plain = lm.generate(ids, max_new_tokens=6, do_sample=False)
    norms = lm.read(plain, "hidden.2")["hidden.2"][0, 1:].norm(dim=1)
    push = 1.5 * float(norms.median()) * row / row.norm()
    for _ in range(6):  # without a cache, token by token
        with lm.replaced("hidden.2", lambda h: h + push):
            ids = torch.cat([ids, lm.logits(ids)[:, -1:].argmax(-1)], dim=1)
    assert without == lm.tokenizer.decode(plain[0])
    assert steered == lm.tokenizer.decode(ids[0])
    assert steered != without


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--latent=3"],
        ["--contrast=a.yaml", "--latent=3"],
        ["--autoencoder=a"],
        ["--autoencoder=a", "--contrast=b"],
    ],
)
def test_one_direction_is_needed(options: list[str], refused: Callable[..., str]) -> None:
    assert "give contrast, or latent with either" in refused("steer", TEXT, *options)


def test_a_continuation_fits_in_the_context(repository: Path, refused: Callable[..., str]) -> None:
    contrast = f"--contrast={repository / 'configs/stimuli/him_her.yaml'}"
    found = refused("steer", TEXT, contrast, "--tokens=251")
    assert found == "tokens is 251; the model has room for 250 more after the text; give fewer"


def test_a_text_is_needed(refused: Callable[..., str]) -> None:
    assert refused("steer", "--text=", "--contrast=a") == "--text is empty; give its first words"
