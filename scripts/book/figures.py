"""Figures of the book: the shipped configurations are run while it is built.

What a configuration gives is kept under a name that follows from the package's code and from all
configurations, so that a second build takes what is there and nothing in the book is stale.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "book"
ANALYSES = ("him_her", "grammar", "punctuation", "words", "geography")
# The reference run: its latents are what the chapter on category scores looks at.
PASSAGE = "passage"


def findings() -> dict[str, Path]:
    """The folder of findings of each analysis in the book, made where it is missing.

    Returns:
        Folders by name; `passage/…` are those of the latents of the reference run.
    """
    kept = KEPT / _key()
    for name in ANALYSES:
        _run(kept / name, "analyze", f"configs/analyses/{name}.yaml", "--output", ".")
    _run(kept / PASSAGE, "fit", "configs/passage.yaml", "--trainer.enable_progress_bar", "false")
    for other in KEPT.iterdir():
        if other != kept:
            shutil.rmtree(other)
    folders = {name: kept / name for name in ANALYSES}
    folders |= {name: folder / name for name, folder in folders.items()}
    folders["statistics"] = kept / "geography" / "statistics"
    latents = kept / PASSAGE / "lightning_logs" / "version_0" / "analyses"
    return folders | {f"{PASSAGE}/{folder.name}": folder for folder in latents.iterdir()}


def table(folder: Path, keep: str = "") -> str:
    """The numbers of some findings, as a table in Markdown.

    Args:
        folder: Where `findings.json` is.
        keep: What the names of the numbers begin with that are wanted.
    """
    scalars = json.loads((folder / "findings.json").read_text(encoding="utf-8"))["scalars"]
    rows = [
        f"| `{name}` | {_number(value)} |"
        for name, value in scalars.items()
        if name.startswith(keep)
    ]
    return "\n".join(["| number | value |", "|---|---:|", *rows])


def _number(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "none"


def _key() -> str:
    """The hash of whatever the findings depend on, but for other packages' versions."""
    digest = hashlib.sha256()
    for folder, pattern in (("src/palinka", "*.py"), ("src/palinka/assets", "*"), ("configs", "*")):
        for file in sorted((ROOT / folder).rglob(pattern)):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _run(folder: Path, command: str, config: str, *options: str) -> None:
    """Run a command in a folder that only a success leaves behind."""
    if folder.exists():
        return
    underway = folder.with_suffix(".underway")
    shutil.rmtree(underway, ignore_errors=True)
    underway.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-m", "palinka", command, "--config", str(ROOT / config), *options],
        cwd=underway,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    underway.rename(folder)
