"""`palinka configs`, and configurations in the wheel."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from palinka.__main__ import main
from palinka.cli.options import config_names

ROOT = Path(__file__).parents[2]


def test_the_list_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == config_names()
    assert all(len(line.split(maxsplit=1)[1]) > 20 and len(line) <= 120 for line in lines)


def test_a_copy_can_be_run_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "copy", "him_her"]) == 0
    copied = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert copied == [Path("configs/analyses/him_her.yaml"), Path("configs/stimuli/him_her.yaml")]
    entry = yaml.safe_load(copied[0].read_text())["analyses"][0]
    assert (copied[0].parent / entry["stimuli"]).is_file()
    assert main(["configs", "copy", "him_her"]) == 2
    assert "him_her.yaml already exists; remove it" in capsys.readouterr().err


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
    printed = run(palinka, "fit", "--config", "quickstart", *steps)
    assert (tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    assert "version_0" in printed
