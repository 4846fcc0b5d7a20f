import math
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2LMHeadModel

from palinka.assets import mini_gpt2_folder

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon came with torch 2.9")

TINY = ["--vocabulary", "2048", "--width", "32", "--blocks", "1", "--context-length", "16"]
STORY = "The old man went down to the river, and saw him there with her dog. "


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(3):
        (folder / f"{index}.txt").write_text(STORY * (20 + index))
    return folder


def test_a_tiny_model_learns_is_saved_and_evaluated_as_a_plain_transcription(
    script: ModuleType, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = tmp_path / "unseen.txt"
    unseen.write_text("She saw the old dog down at the river. " + STORY)
    output = tmp_path / "mini"
    options = ["--evaluate", str(unseen), *TINY, "--steps", "30", "--batch-size", "8"]
    script.main(["--texts", str(texts), "--output", str(output), *options])
    printed = capsys.readouterr().out
    before, after = map(float, re.findall(r"([\d.]+) bits per character", printed))
    assert 0 < after < 0.8 * before < 100
    tokenizer = AutoTokenizer.from_pretrained(output)
    words = script.single_token_words()
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in words)
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0
    assert tokenizer.decode(tokenizer.encode("Straße € 東京")) == "Straße € 東京"
    weights = load_file(output / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert "lm_head.weight" not in weights  # tied
    model = GPT2LMHeadModel.from_pretrained(output, dtype=torch.float32)
    assert model.config.n_layer == 1

    text = unseen.read_text() * 2
    ids = [tokenizer.eos_token_id, *tokenizer.encode(text)]
    assert len(ids) > 2 * 15
    nats = 0.0
    for place in range(1, len(ids)):
        window_start = (place - 1) // 15 * 15
        with torch.no_grad():
            logits = model(torch.tensor([ids[window_start:place]])).logits[0, -1].double()
        nats -= logits.log_softmax(-1)[ids[place]].item()
    bits, nats_per_token = script.evaluate(model, tokenizer, text)
    assert bits == pytest.approx(nats / math.log(2.0) / len(text), rel=1e-5)
    assert nats_per_token == pytest.approx(nats / (len(ids) - 1), rel=1e-5)


def test_matrices_of_the_blocks_and_nothing_else_go_to_muon(script: ModuleType) -> None:
    tokenizer = AutoTokenizer.from_pretrained(mini_gpt2_folder())
    options = SimpleNamespace(context_length=8, width=32, blocks=2)
    model = script.new_model(tokenizer, options)
    muon, adam = script.optimizers(model)
    assert isinstance(muon, torch.optim.Muon)
    shapes = [tuple(p.shape) for p in muon.param_groups[0]["params"]]
    assert shapes == 2 * [(32, 96), (32, 32), (32, 128), (128, 32)]
    trained = sum(len(o.param_groups[0]["params"]) for o in (muon, adam))
    assert trained == len(list(model.parameters()))


def test_the_rate_goes_up_and_then_down_to_nothing(script: ModuleType) -> None:
    rates = [script.rate(done / 1000) for done in range(1000)]
    assert rates[20] == max(rates) == pytest.approx(1, abs=1e-2)
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] < 0.01


def test_lines_of_a_hard_wrapped_text_are_joined(script: ModuleType) -> None:
    assert script.unwrap("one\ntwo\n\nthree\n") == "one two\n\nthree "
    long_lines = "a" * 101 + "\nparagraph"
    assert script.unwrap(long_lines) == long_lines


@pytest.mark.real_data
@pytest.mark.slow
def test_the_bundled_model_predicts_an_unseen_book_as_well_as_its_card_says(
    script: ModuleType, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(["--evaluate", str(real_data / "texts" / "heart_of_darkness.txt")])
    figures = capsys.readouterr().out
    assert "1.598 bits per character, 4.302 nats per token" in figures
    card = (mini_gpt2_folder() / "README.md").read_text()
    assert "| 1.598 |" in card
    assert "| 4.302 |" in card
