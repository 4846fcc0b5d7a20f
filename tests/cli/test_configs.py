"""`palinka configs`, and every shipped configuration: it runs one batch of each loop.

Models and texts that a configuration takes from the hub are stood in for by a small random
model of the same family, and a data set of a few lines, in local folders.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from palinka.__main__ import main
from palinka.cli.configs import config_folder, config_names

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs"
CONFIGS = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("architectures/*.yaml")])
FAST = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--quiet"]
SMALL = [
    "--data.train_tokens=1024", "--data.validation_tokens=256", "--data.context_length=64",
    "--data.batch_size=128",
]  # fmt: skip


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    assert all(len(line.split(maxsplit=1)[1]) > 20 and len(line) <= 120 for line in lines)


def test_a_copy_can_be_run_where_it_is(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "copy", "him_her"]) == 0
    copied = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert copied == [Path("configs/analyses/him_her.yaml"), Path("configs/stimuli/him_her.yaml")]
    entry = yaml.safe_load(copied[0].read_text())["analyses"][0]
    assert (copied[0].parent / entry["stimuli"]).is_file()
    assert main(["configs", "copy", "him_her"]) == 2
    assert "him_her.yaml already exists; choose" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * ("frontier" in p.stem))
        for p in CONFIGS
    ],
)
def test_a_shipped_configuration_runs(
    config: Path, workspace: Path, models: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PALINKA_CACHE", str(cache))  # many have the same activations
    for folder in ("files", "dataset"):
        (workspace / folder).mkdir()
    with (workspace / "dataset" / "train.jsonl").open("w") as rows:
        for n in range(40):
            text = f"The {n}th barrel was opened in the spring, and it was good. " * 8
            (workspace / "files" / f"{n:02}.txt").write_text(text)
            rows.write(json.dumps({"text": text}) + "\n")
    gpt2 = [f"--data.language_model={models / 'gpt2'}"]
    gpt2 += ["--data.corpus.path=dataset", "--data.corpus.name=null"]
    llama = [f"--data.language_model={models / 'llama'}", "--data.corpus.path=files"]
    stand_ins: dict[str, list[str]] = {
        "gpt2": gpt2,
        "gpt2-medium": gpt2,
        "smollm2": llama,
        "frontier_smollm2": llama,
        # On two devices it is run in tests/test_devices.py.
        "sharded": ["--trainer.devices=1", "--trainer.strategy=auto"],
    }
    small = [] if config.stem == "passage" else [*SMALL, *stand_ins.get(config.stem, [])]
    if config.parent.name == "architectures":
        small = [*SMALL, "--model.autoencoder.init_args.latent_dim=64"]
    assert main(["fit", "--config", str(config), *small, *FAST]) == 0


def test_every_configuration_names_itself_in_the_command_it_shows() -> None:
    for config in CONFIGS:
        shown = config.read_text().split("seed_everything")[0]
        assert f"--config configs/{config.relative_to(FOLDER)}" in shown


@pytest.mark.slow
def test_the_wheel_runs_the_quickstart_outside_the_clone(tmp_path: Path) -> None:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> str:
        ran = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = tmp_path.glob("palinka-*.whl")
    run(python, "-m", "pip", "install", "--no-deps", wheel)
    # The other packages are those of this environment.
    inner = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(inner) / "others.pth").write_text(sysconfig.get_path("purelib"))
    palinka = tmp_path / "venv" / "bin" / "palinka"
    assert inner in run(python, "-c", "import palinka; print(palinka.__file__)")
    assert "quickstart" in run(palinka, "configs")
    steps = ["--trainer.max_steps=2", "--data.train_tokens=4096", "--data.validation_tokens=1024"]
    assert "version_0" in run(palinka, "fit", "--config", "quickstart", *steps)
    assert (tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").is_file()


def test_the_clones_own_file_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(config_folder().parent)
    assert main(["configs", "copy", "quickstart"]) == 2
    assert "quickstart.yaml already exists; choose another --to" in capsys.readouterr().err
