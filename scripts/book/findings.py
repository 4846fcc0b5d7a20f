"""Tables and pictures of the pages about questions: run what they show, and write it into them.

    python scripts/book/findings.py

A page has a table of findings between `<!-- findings NAME -->` and `<!-- end -->`, or, with
`<!-- findings NAME PREFIX -->`, of those whose names begin with PREFIX. An image under
`images/NAME/` is a figure of the same findings. A slow test computes the tables again.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "questions").glob("*.md"))
IMAGES = ROOT / "docs" / "images"
ANALYSES = (
    "him_her", "grammar", "punctuation", "words", "geography", "he_she_patching", "him_her_lesion",
    "he_she_steering", "he_she_subspaces", "lens", "heads",
)  # fmt: skip
# The reference run: its latents are what the chapter on category scores looks at.
PASSAGE = "passage"
TABLE = re.compile(r"<!-- findings (\S+)(?: (\S+))? -->\n(.*?)<!-- end -->", re.DOTALL)
FIGURE = re.compile(r"\]\(\.\./images/([\w/]+)/([\w.-]+\.png)\)")
# Width in pixels and colors, the first whose file is small enough.
FORMS, MAX_BYTES = ((960, 256), (960, 64), (960, 16), (720, 16)), 100_000


def run_all(folder: Path) -> dict[str, Path]:
    """Run every configuration of the pages in a folder.

    Returns:
        Folders of findings by name; `passage/…` are those of the latents of the reference run.
    """
    for name in ANALYSES:
        _run(folder, "analyze", f"analyses/{name}.yaml", "--output", ".")
    _run(folder, "fit", f"{PASSAGE}.yaml")
    latents = folder / "lightning_logs" / "version_0" / "analyses"
    found = {each.parent.name: each.parent for each in folder.glob("*/findings.json")}
    return found | {f"{PASSAGE}/{each.name}": each for each in latents.iterdir()}


def _run(folder: Path, command: str, config: str, *options: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "palinka", command, "--config", ROOT / "configs" / config, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PALINKA_QUIET": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )


def with_tables(page: str, folders: dict[str, Path]) -> str:
    """The text of a page, with the numbers of the findings."""

    def table(found: re.Match[str]) -> str:
        name, prefix, _ = found.groups()
        text = (folders[name] / "findings.json").read_text(encoding="utf-8")
        scalars = json.loads(text)["scalars"]
        kept = {k: v for k, v in scalars.items() if k.startswith(prefix or "")}
        rows = [f"| `{k}` | {'none' if v is None else f'{v:.4g}'} |" for k, v in kept.items()]
        head = found[0].partition("\n")[0]
        return "\n".join([head, "", "| number | value |", "|---|---:|", *rows, "", "<!-- end -->"])

    return TABLE.sub(table, page)


def shrink(source: Path, target: Path) -> None:
    """Copy a picture with few colors, in the largest size that is below `MAX_BYTES`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        for width, colors in FORMS:
            image.thumbnail((width, 2 * width))
            few = image.convert("RGB").quantize(colors, Image.Quantize.MAXCOVERAGE)
            few.save(target, optimize=True)
            if target.stat().st_size < MAX_BYTES:
                break


def main() -> None:
    """Run everything, and update tables and pictures."""
    with tempfile.TemporaryDirectory() as folder:
        folders = run_all(Path(folder))
        for path in PAGES:
            page = path.read_text(encoding="utf-8")
            path.write_text(with_tables(page, folders), encoding="utf-8")
            for name, figure in FIGURE.findall(page):
                shrink(folders[name] / figure, IMAGES / name / figure)


if __name__ == "__main__":
    main()
