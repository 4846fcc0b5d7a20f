"""The atlas as a folder of files that a browser opens from the disk."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import palinka
from palinka.atlas.analyses import Found
from palinka.atlas.chunks import CHUNK, Chunks
from palinka.atlas.encoding import packed, script
from palinka.atlas.facts import LatentFacts
from palinka.atlas.overview import columns, labels, metrics, search_texts, shown_tokens
from palinka.atlas.windows import BEFORE
from palinka.callbacks.file_names import file_names
from palinka.errors import InputError

PAGES = Path(__file__).with_name("pages")
# What a site holds, and nothing else: a folder of other things is never replaced.
PARTS = frozenset({"index.html", "assets", "data", "figures"})
FORMAT = 1


@dataclass(frozen=True)
class About:
    """What the atlas is of.

    Attributes:
        language_model: The model's name.
        site: Where in it the latents are.
        autoencoder: Its class.
        metrics: What was measured, by name, such as `val/fvu`.
        text: Of which text, as "of …" and "on …" go on.
    """

    language_model: str
    site: str
    autoencoder: str
    metrics: Mapping[str, Any]
    text: str = "the validation split"


def write_site(
    output: Path, facts: LatentFacts, about: About, analyses: Sequence[Found] = ()
) -> Path:
    """Write the atlas into a folder, all of it or nothing.

    Args:
        output: A folder that is not there yet, is empty, or holds an atlas, which is replaced.
        facts: What is known of the latents.
        about: What the atlas is of.
        analyses: What was found besides.

    Returns:
        The page to open, `index.html`.

    Raises:
        InputError: If the folder holds anything else, or cannot be written.
    """
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            shutil.copyfile(PAGES / "index.html", beside / "index.html")
            shutil.copytree(PAGES / "assets", beside / "assets")
            (beside / "data").mkdir()
            for name, value in _data(facts, about, analyses):
                text = script(name, value)
                (beside / "data" / f"{name}.js").write_text(text, encoding="ascii")
            _copy_figures(beside / "figures", analyses)
            beside.chmod(0o755)  # temporary folders are their owner's alone
            if output.exists():
                shutil.rmtree(output)
            beside.replace(output)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"the atlas cannot be written to {output}: {error.strerror or error}; give another"
            " output folder"
        ) from error
    return output / "index.html"


def check_output(output: Path) -> None:
    """Refuse a folder that is something else than an atlas, before anything is measured.

    Raises:
        InputError: If it is no folder, or holds what no atlas holds.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"{output} is a file; give a folder for the atlas")
    names = {path.name for path in output.iterdir()}
    if names and not (names <= PARTS and (output / "data" / "overview.js").is_file()):
        raise InputError(f"{output} is there already, and is no atlas; give another folder")


def figure_names(found: Found, number: int) -> dict[Path, str]:
    """What each figure of an analysis is called in the site."""
    safe = file_names(path.stem for path in found.figures)
    return {path: f"{number}-{safe[path.stem]}.png" for path in found.figures}


def _data(facts: LatentFacts, about: About, analyses: Sequence[Found]) -> Iterator[tuple[str, Any]]:
    yield "overview", _overview(facts, about, analyses)
    yield "labels", labels(facts)
    yield "search", search_texts(facts)
    tokens = shown_tokens(facts.vocabulary)
    ids = sorted(tokens)
    yield (
        "vocabulary",
        {"ids": packed(np.array(ids), "uint32"), "texts": [tokens[token] for token in ids]},
    )
    for number, records in Chunks(facts):
        yield f"latents-{number:04d}", records
    for number, found in enumerate(analyses):
        yield f"analysis-{number}", _analysis(found, number)


def _overview(facts: LatentFacts, about: About, analyses: Sequence[Found]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "palinka": palinka.__version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "language_model": about.language_model,
        "site": about.site,
        "autoencoder": about.autoencoder,
        "text": about.text,
        "latents": len(facts.words),
        "rows": facts.rows,
        "chunk": CHUNK,
        "before": BEFORE,
        "quantiles": facts.quantiles,
        "per_quantile": facts.bands.places.shape[1] // facts.quantiles,
        "metrics": metrics(about.metrics),
        "notes": list(facts.report.notes),
        "columns": [column.described() for column in columns(facts, analyses)],
        "analyses": [
            {"name": found.name, "kind": found.settings.get("analysis", "")} for found in analyses
        ],
    }


def _analysis(found: Found, number: int) -> dict[str, Any]:
    return {
        "name": found.name,
        "settings": list(found.settings.items()),
        "scalars": list(found.scalars.items()),
        "notes": found.notes,
        "summary": found.summary,
        "figures": [
            {"file": name, "title": path.stem, "caption": found.captions.get(path.stem, "")}
            for path, name in figure_names(found, number).items()
        ],
        "tables": [
            {"name": name, "rows": [row for row in rows if row]}
            for name, rows in found.tables.items()
        ],
    }


def _copy_figures(folder: Path, analyses: Sequence[Found]) -> None:
    for number, found in enumerate(analyses):
        for path, name in figure_names(found, number).items():
            folder.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
