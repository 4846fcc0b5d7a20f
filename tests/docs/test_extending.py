"""The pages on extending palinka, followed to the letter in a copy of the project.

Files are written as the blocks with a title say; then the pages' own tests run, and their commands.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "extending").glob("*.md"))
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)

FAST = [
    "--trainer.fast_dev_run=true", "--data.train_tokens=1024", "--data.context_length=64",
    "--data.validation_tokens=256", "--data.batch_size=128",
]  # fmt: skip
# One process for all: it takes seconds to import torch.
RUN_ALL = """
import json, sys
import pytest
from palinka.__main__ import main
tests, commands = json.load(sys.stdin)
options = ["-q", "--import-mode=importlib", "-p", "no:cacheprovider"]
sys.exit(int(pytest.main([*options, *tests])) or any(map(main, commands)))
"""


def follow(page: Path, project: Path) -> tuple[list[str], list[list[str]]]:
    """Write a page's files, and return its tests and its commands."""
    commands, written = [], []
    for language, title, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if title:
            file = project / title
            # A file may come in several blocks of a page.
            assert file.exists() == (title in written), f"{title} is there already"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(text)
            written.append(title)
        else:
            assert not language, f"{page.name} has a block of {language} that names no file"
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "palinka"
                # What trains takes one batch.
                commands.append([*arguments, *(FAST if arguments[0] == "fit" else [])])
    return [title for title in written if Path(title).name.startswith("test_")], commands


@pytest.mark.slow
def test_the_pages_work_as_written(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    followed = [follow(page, tmp_path) for page in PAGES]
    tests = [test for page, _ in followed for test in page]
    commands = [command for _, page in followed for command in page]
    assert len(tests) == len(PAGES) == len(commands) == 3
    packages = f"{tmp_path / 'src'}{os.pathsep}{tmp_path}"
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], cwd=tmp_path, input=json.dumps([tests, commands]),
        env=os.environ | {"PYTHONPATH": packages, "PALINKA_CACHE": str(tmp_path / "cache")},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("him_or_her", "endings"):
        assert (tmp_path / "findings" / name / "findings.json").exists()
    assert (tmp_path / "findings" / "him_or_her" / "null.png").exists()
