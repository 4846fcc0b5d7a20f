"""Every shipped configuration is parsed, and runs one batch of each loop.

Models and texts that a configuration takes from the hub are stood in for by a small random
model of the same family, and a data set of a few lines, in local folders.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from palinka.__main__ import main
from palinka.assets import mini_gpt2_folder

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
ARCHITECTURES = sorted((FOLDER / "architectures").glob("*.yaml"))

FAST = [
    "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
SMALL = [
    "--data.train_tokens=1024", "--data.validation_tokens=256", "--data.context_length=64",
    "--data.batch_size=128",
]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random GPT-2 and a random Llama, of two small blocks each."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(mini_gpt2_folder())
    size = len(tokenizer)
    llama = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    made = {"gpt2": GPT2LMHeadModel(gpt2), "llama": LlamaForCausalLM(llama)}
    folder = tmp_path_factory.mktemp("models")
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in made}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short texts, as files and as a data set."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [f"The {n}th barrel was opened in the spring, and it was good. " * 8 for n in range(40)]
    (folder / "files").mkdir()
    (folder / "dataset").mkdir()
    for number, line in enumerate(lines):
        (folder / "files" / f"{number:02}.txt").write_text(line)
    rows = "\n".join(json.dumps({"text": line}) for line in lines)
    (folder / "dataset" / "train.jsonl").write_text(rows)
    return folder


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for configurations that train on the same activations."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * ("frontier" in p.stem))
        for p in CONFIGS
    ],
)
def test_a_shipped_configuration_runs(
    config: Path, workspace: Path, models: dict[str, Path], texts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    gpt2 = [
        f"--data.language_model={models['gpt2']}",
        f"--data.corpus.path={texts / 'dataset'}",
        "--data.corpus.name=null",
    ]
    llama = [f"--data.language_model={models['llama']}", f"--data.corpus.path={texts / 'files'}"]
    stand_ins: dict[str, list[str]] = {
        "gpt2": gpt2,
        "gpt2-medium": gpt2,
        "smollm2": llama,
        "frontier_smollm2": llama,
        # On two devices it is run in tests/test_devices.py.
        "sharded": ["--trainer.devices=1", "--trainer.strategy=auto"],
    }
    small = [] if config.stem == "passage" else [*SMALL, *stand_ins.get(config.stem, [])]
    monkeypatch.setenv("PALINKA_DATA", str(texts))
    assert main(["fit", "--config", str(config), *small, *FAST]) == 0


@pytest.mark.parametrize("config", ARCHITECTURES, ids=[path.stem for path in ARCHITECTURES])
def test_every_architecture_runs(
    config: Path, workspace: Path, harvested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALINKA_CACHE", str(harvested))
    small = [*SMALL, "--model.autoencoder.init_args.latent_dim=64"]
    assert main(["fit", "--config", str(config), *small, *FAST]) == 0


def test_every_configuration_names_itself_in_the_command_it_shows() -> None:
    for config in CONFIGS + ARCHITECTURES:
        shown = config.read_text().split("seed_everything")[0]
        assert f"--config configs/{config.relative_to(FOLDER)}" in shown
